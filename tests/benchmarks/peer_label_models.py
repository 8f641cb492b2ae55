"""One other project's label model on a table of votes; run in an environment of its own.

    python peer_label_models.py PEER votes.npy out.npz SHARE_RIGHT

Votes are (N, F), 1, 0 (abstain) and -1; the output holds P(right), (N,), by model. Printed are the
seconds of processor time by model, of a second call: the first one imports. All peers take
an abstain for a missing answer. Queries that no function votes on get the mean of the others where
a peer does not take them. Snorkel also gets the true share of right transcripts, which its default
takes to be half.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Iterator

import numpy as np

Table = np.ndarray


def classes(votes: Table) -> Table:
    """The votes with the symbols of these packages: 1 and 0 for the classes, -1 for an abstain."""
    return np.where(votes == 0, -1, (votes + 1) // 2)


def with_mean(weights: Table, voted: Table) -> Table:
    """The weights (M,) of the queries that are voted on, and their mean for the others: (N,)."""
    every = np.full(len(voted), weights.mean())
    every[voted] = weights
    return every


def snorkel(votes: Table, share: float) -> Iterator[tuple[str, Table]]:
    """Snorkel's LabelModel, without and with the true share of right transcripts."""
    from snorkel.labeling.model import LabelModel

    for name, balance in (("", None), (", true balance", [1 - share, share])):
        model = LabelModel(cardinality=2, verbose=False)
        settings = {"n_epochs": 500, "seed": 1, "progress_bar": False}
        model.fit(classes(votes), class_balance=balance, **settings)
        yield f"Snorkel LabelModel{name}", model.predict_proba(classes(votes))[:, 1]


def crowd_kit(votes: Table, share: float) -> Iterator[tuple[str, Table]]:
    """crowd-kit's Dawid and Skene."""
    import pandas as pd
    from crowdkit.aggregation import DawidSkene

    rows, workers = np.nonzero(votes)
    answers = pd.DataFrame({"task": rows, "worker": workers, "label": votes[rows, workers]})
    shares = DawidSkene(n_iter=100).fit_predict_proba(answers)
    weights = shares[1].sort_index().to_numpy()
    yield "crowd-kit DawidSkene", with_mean(weights, (votes != 0).any(axis=1))


def hyperlm(votes: Table, share: float) -> Iterator[tuple[str, Table]]:
    """Wu et al. 2023: a network trained once on synthetic votes, applied as it is."""
    from hyperlm import HyperLabelModel
    from torch.serialization import safe_globals

    voted = (votes != 0).any(axis=1)
    # Its checkpoint of 2023 holds a NumPy number, which torch does not load unless allowed to.
    number = (np._core.multiarray.scalar, "numpy.core.multiarray.scalar")
    with safe_globals([number, np.dtype, np.dtypes.Float64DType]):
        model = HyperLabelModel(device="cpu")
    yield "hyperlm", with_mean(model.infer(classes(votes[voted]), return_probs=True)[:, 1], voted)


def cleanlab(votes: Table, share: float) -> Iterator[tuple[str, Table]]:
    """CROWDLAB, which weighs annotators against a classifier.

    There is nothing but votes to classify by: the classifier is a logistic regression on the votes'
    symbols, trained on majority votes and cross-validated, as cleanlab asks for.
    """
    from cleanlab.multiannotator import get_label_quality_multiannotator, get_majority_vote_label
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict

    voted = (votes != 0).any(axis=1)
    answers = np.where(votes[voted] == 0, np.nan, classes(votes[voted]))
    majority = get_majority_vote_label(answers, verbose=False)
    symbols = np.concatenate([votes[voted] == 1, votes[voted] == -1], axis=1)
    model = LogisticRegression(max_iter=1000)
    predicted = cross_val_predict(model, symbols, majority, cv=5, method="predict_proba")
    quality = get_label_quality_multiannotator(
        answers,
        predicted,
        consensus_method="best_quality",
        return_detailed_quality=False,
        return_annotator_stats=False,
        verbose=False,
    )["label_quality"]
    sure = quality["consensus_quality_score"].to_numpy()
    weights = np.where(quality["consensus_label"] == 1, sure, 1 - sure)
    yield "cleanlab CROWDLAB", with_mean(weights, voted)


PEERS = {"snorkel": snorkel, "crowd-kit": crowd_kit, "hyperlm": hyperlm, "cleanlab": cleanlab}


def timed(peer: str, votes: Table, share: float) -> tuple[dict[str, Table], dict[str, float]]:
    """The weights by model, and the processor seconds that each took."""
    for _ in PEERS[peer](votes[:500], share):
        pass
    weights, seconds = {}, {}
    start = time.process_time()
    for name, found in PEERS[peer](votes, share):
        seconds[name] = time.process_time() - start
        weights[name] = found
        start = time.process_time()
    return weights, seconds


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    peer, given, out, right = sys.argv[1:]
    weights, seconds = timed(peer, np.load(given), float(right))
    np.savez(out, **weights)
    print(json.dumps(seconds))
