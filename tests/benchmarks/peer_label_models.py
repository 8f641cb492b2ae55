"""Snorkel's and crowd-kit's label models on a table of votes; run in an environment of their own.

    python peer_label_models.py votes.npy out.npz SHARE_RIGHT

Votes are (N, F), 1, 0 (abstain) and -1; the output holds P(right), (N,), by model. Snorkel gets the
true share of right transcripts, which its default takes to be half.
"""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
from crowdkit.aggregation import DawidSkene
from snorkel.labeling.model import LabelModel


def snorkel(votes: np.ndarray, balance: list[float] | None) -> np.ndarray:
    # Its symbols are 0 and 1 for the classes, -1 for an abstain.
    table = np.where(votes == 0, -1, (votes + 1) // 2)
    model = LabelModel(cardinality=2, verbose=False)
    model.fit(table, class_balance=balance, n_epochs=500, seed=1, progress_bar=False)
    return model.predict_proba(table)[:, 1]


def crowd_kit(votes: np.ndarray) -> np.ndarray:
    rows, workers = np.nonzero(votes)
    answers = pd.DataFrame({"task": rows, "worker": workers, "label": votes[rows, workers]})
    shares = DawidSkene(n_iter=100).fit_predict_proba(answers)
    # A query nobody votes on is not among the answers: it gets the mean.
    return shares[1].reindex(range(len(votes))).fillna(shares[1].mean()).to_numpy()


if __name__ == "__main__":
    table = np.load(sys.argv[1])
    share = float(sys.argv[3])
    np.savez(
        sys.argv[2],
        **{
            "Snorkel LabelModel": snorkel(table, None),
            "Snorkel LabelModel, true balance": snorkel(table, [1 - share, share]),
            "crowd-kit DawidSkene": crowd_kit(table),
        },
    )
