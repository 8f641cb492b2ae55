"""A plugin's tests: what each function votes, that it keeps the contract, and the other hooks."""

import numpy as np
import polars as pl
import pytest

from weaklabel import MISSING, apply, load_model
from weaklabel.export import export
from weaklabel.testing import assert_votes, check_engines, check_labeling_function
from weaklabel_tv import TSV, TV, VETO, Veto, channel_tuned, speaking_rate, unfinished

FUNCTIONS = [speaking_rate, channel_tuned, unfinished]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_contract(function):
    check_labeling_function(function)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_engines_agree(function):
    pytest.importorskip("duckdb")
    check_engines(function)


def test_speaking_rate():
    assert_votes(
        speaking_rate,
        [
            ({"transcript": "play the news", "duration": 1.2}, 0),
            ({"transcript": "play the news", "duration": 0.2}, -1),
            ({"transcript": "play", "duration": 9.0}, -1),
            ({"transcript": None, "duration": 1.0}, None),  # no input, no vote
            ({"transcript": "play", "duration": float("nan")}, None),
        ],
    )


def test_channel_tuned():
    assert_votes(
        channel_tuned,
        [
            ({"transcript": "Channel nine", "action": "play"}, 1),
            ({"transcript": "channel nine", "action": "back"}, -1),
            ({"transcript": "channel nine", "action": None}, -1),  # action is nullable
            ({"transcript": "louder", "action": "back"}, 0),
            ({"transcript": None, "action": "back"}, None),
        ],
    )


def test_unfinished():
    assert_votes(
        unfinished,
        [
            ({"transcript": "turn to the"}, -1),
            ({"transcript": "the news"}, 0),
            ({"transcript": "音楽"}, None),
            ({"transcript": None}, None),
        ],
    )


def test_veto_weighs_a_table_and_an_array_alike(tmp_path):
    log = pl.DataFrame(
        {
            "query_id": [1, 2, 3, 4],
            "transcript": ["channel nine", "turn to the", "音楽", None],
            "duration": [1.0, None, 0.5, None],
            "action": ["back", "play", None, None],
        }
    )
    fitted = Veto().fit(apply(FUNCTIONS, log))
    loaded = load_model(fitted.save(tmp_path / "model.json"), {"veto": VETO})
    votes = apply(FUNCTIONS, log).select(f"lf:{name}" for name in loaded.functions)
    weights = loaded.label(votes)["weight"]
    assert weights.to_list() == pytest.approx([2 / 3, 1 / 2, 1, 1])
    table = votes.fill_null(MISSING).to_numpy()
    np.testing.assert_allclose(loaded.weights(table), weights)


def test_the_exporter(tmp_path):
    rows = pl.DataFrame({"query_id": [1], "transcript": ["play  the news"], "weight": [0.9]})
    export(rows, tmp_path / "out", TSV)
    assert (tmp_path / "out" / "transcripts.tsv").read_text() == "0.9000\tplay the news\n"


def test_the_normalizer():
    assert TV("Play the news, please!") == "play the news"
