"""Logs in which inputs are missing: what a label model makes of them, against the best there is.

20,000 queries, 82% of the transcripts right, five functions: three vote both ways, one only ever
accepts and one only ever rejects. The oracle knows the true rates and leaves missing inputs out;
`knowing` ones also know at which rate right and wrong transcripts lose them. The benchmark
bench_label_model.py --missing prints the same as a table.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest

from weaklabel import MISSING, LabelModel, MajorityVote, Patterns, WeakLabelWarning
from weaklabel.gold import auc
from weaklabel.label_model import FittedLabelModel
from weaklabel.models import FittedModel

QUERIES = 20_000
RIGHT = 0.82
SEEDS = range(301, 306)

# P(accept), P(reject) where the transcript is right, and where it is wrong.
RATES = {
    "confidence": ((0.70, 0.10), (0.10, 0.70)),
    "dwell": ((0.63, 0.12), (0.12, 0.63)),
    "second_asr": ((0.72, 0.18), (0.18, 0.72)),
    "last_in_session": ((0.55, 0.0), (0.10, 0.0)),
    "repetition": ((0.0, 0.03), (0.0, 0.60)),
}
FUNCTIONS = tuple(RATES)

# Which functions lack their input where, and how much more often wrong transcripts do.
KINDS = {
    "nothing missing": ((), 0.0, 1),
    "15% of the rows": (FUNCTIONS, 0.15, 1),
    "30% of the households, four functions": (FUNCTIONS[1:], 0.30, 1),
    "two columns, 40% and 50%": (("dwell", "repetition"), 0.0, 1),
    "wrong ones twice as often, a household's four functions": (FUNCTIONS[1:], 0.15, 2),
    "wrong ones twice as often, two columns": (("dwell", "repetition"), 0.0, 2),
}
PLAIN = [kind for kind, (_, _, more) in KINDS.items() if more == 1]
INFORMATIVE = [kind for kind, (_, _, more) in KINDS.items() if more > 1]


@dataclass(frozen=True)
class Log:
    """Votes, the truth, and P(right) as oracles know it: of votes alone, and of missing inputs."""

    votes: npt.NDArray[np.int8]
    right: npt.NDArray[np.bool_]
    oracle: npt.NDArray[np.float64]
    knowing: npt.NDArray[np.float64]

    @property
    def patterns(self) -> Patterns:
        return Patterns.of(FUNCTIONS, self.votes)

    def scores(self, model: FittedModel) -> tuple[float, float]:
        """Accuracy and AUC."""
        index = [FUNCTIONS.index(name) for name in model.functions]
        return of(self.right, model.weights(self.votes[:, index]))


def of(right: npt.NDArray[np.bool_], weights: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Accuracy and AUC."""
    area = auc(weights, right)
    assert area is not None
    return float(((weights >= 0.5) == right).mean()), area


def make_log(seed: int, kind: str) -> Log:
    """A log of the five functions in which inputs are missing.

    Of a household, which is ten queries, all of some functions' inputs are missing, or none; where
    wrong transcripts lose them more often, each query has a lot of its own.
    """
    rng = np.random.default_rng(seed)
    right = rng.random(QUERIES) < RIGHT
    chance = rng.random((QUERIES, len(FUNCTIONS)))
    table = np.array(list(RATES.values()))  # (F, 2, 2): right and wrong; accept and reject
    rates = np.where(right[:, None, None], table[:, 0], table[:, 1])  # (N, F, 2)
    votes = np.where(chance < rates[..., 1], -1, np.where(chance > 1 - rates[..., 0], 1, 0))
    functions, share, more = KINDS[kind]
    gone = np.zeros(votes.shape, dtype=bool)
    lost = np.zeros((QUERIES, 2))  # log P(which inputs are missing | right, wrong)
    if kind.startswith(("30%", "15%")):
        size = 10 if kind.startswith("30%") else 1
        own = np.repeat(rng.random(QUERIES // size) < share, size)
        gone[np.ix_(own, [FUNCTIONS.index(name) for name in functions])] = True
    elif "columns" in kind:
        for name, of_wrong in (("dwell", 0.40), ("repetition", 0.50)):
            of_right = of_wrong / more
            own = rng.random(QUERIES) < np.where(right, of_right, of_wrong)
            gone[own, FUNCTIONS.index(name)] = True
            lost += np.log(
                np.where(own[:, None], [of_right, of_wrong], [1 - of_right, 1 - of_wrong])
            )
    elif functions:
        own = rng.random(QUERIES) < np.where(right, share, share * more)
        gone[np.ix_(own, [FUNCTIONS.index(name) for name in functions])] = True
        both = np.array([share, share * more])
        lost += np.log(np.where(own[:, None], both, 1 - both))
    votes = np.where(gone, MISSING, votes).astype(np.int8)
    odds = np.full(QUERIES, math.log(RIGHT / (1 - RIGHT)))
    for index, (if_right, if_wrong) in enumerate(RATES.values()):
        for vote, wanted in ((1, lambda rate: rate[0]), (-1, lambda rate: rate[1]), (0, _silent)):
            own = votes[:, index] == vote
            odds[own] += math.log(max(wanted(if_right), 1e-9) / max(wanted(if_wrong), 1e-9))
    knowing = odds + lost[:, 0] - lost[:, 1]
    return Log(votes, right, 1 / (1 + np.exp(-odds)), 1 / (1 + np.exp(-knowing)))


def _silent(rate: tuple[float, float]) -> float:
    return 1 - rate[0] - rate[1]


def fit(log: Log, **options: object) -> FittedLabelModel:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WeakLabelWarning)
        return LabelModel(**options).fit(log.patterns)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", PLAIN)
def test_missing_inputs_cost_no_more_than_the_oracle_loses_by_them(kind: str) -> None:
    logs = [make_log(seed, kind) for seed in SEEDS]
    ours = np.mean([log.scores(fit(log)) for log in logs], axis=0)
    best = np.mean([of(log.right, log.oracle) for log in logs], axis=0)
    votes = np.mean([log.scores(MajorityVote().fit(log.patterns)) for log in logs], axis=0)

    assert (ours >= best - 0.01).all()
    assert (ours >= votes - 0.005).all()


@pytest.mark.parametrize("kind", INFORMATIVE)
def test_which_inputs_are_missing_is_evidence_where_it_is_asked_for(kind: str) -> None:
    logs = [make_log(seed, kind) for seed in SEEDS]
    plain = np.mean([log.scores(fit(log)) for log in logs], axis=0)
    ours = np.mean([log.scores(fit(log, missing="evidence")) for log in logs], axis=0)
    best = np.mean([of(log.right, log.knowing) for log in logs], axis=0)

    assert (ours >= best - 0.01).all()
    assert ours[1] > plain[1]


@pytest.mark.parametrize("kind", INFORMATIVE)
def test_inputs_that_wrong_transcripts_lose_twice_as_often_are_always_noticed(kind: str) -> None:
    for seed in range(401, 411):
        log = make_log(seed, kind)
        gone = log.votes[:, 1] == MISSING
        model = fit(log)
        (rate,) = [rate for rate in model.missing if rate.name == FUNCTIONS[1]]
        assert rate.informative
        assert rate.right == pytest.approx(log.right[gone].mean(), abs=0.03)
        assert rate.right_elsewhere == pytest.approx(log.right[~gone].mean(), abs=0.03)
        assert any("lose their input at different rates" in warning for warning in model.warnings)


@pytest.mark.parametrize("kind", [kind for kind in PLAIN if kind != "nothing missing"])
def test_inputs_that_are_missing_by_chance_are_hardly_ever_taken_for_informative(kind: str) -> None:
    models = [fit(make_log(seed, kind)) for seed in range(501, 521)]
    assert sum(any(rate.informative for rate in model.missing) for model in models) <= 1
