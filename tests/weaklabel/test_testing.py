"""The helpers for plugin authors pass what keeps the contract and say what does not."""

import sys
from dataclasses import replace

import narwhals.stable.v2 as nw
import polars as pl
import pytest

from weaklabel import accept_if, functions, labeling_function, occurrences, reject_if
from weaklabel.labeling import LabelingFunction
from weaklabel.testing import (
    assert_votes,
    check_engines,
    check_labeling_function,
    synthetic_query_log,
)

BUILTIN = [value for value in vars(functions).values() if isinstance(value, LabelingFunction)]


@pytest.mark.parametrize("function", BUILTIN, ids=lambda function: function.name)
def test_the_built_in_functions_keep_the_contract(function):
    check_labeling_function(function)


@pytest.mark.parametrize("function", BUILTIN, ids=lambda function: function.name)
def test_the_built_in_functions_vote_the_same_on_two_engines(function):
    check_engines(function)


def test_the_log_is_made_alike_by_one_seed():
    log = synthetic_query_log(200, seed=3)
    assert log.equals(synthetic_query_log(200, seed=3))
    assert not log.equals(synthetic_query_log(200, seed=4))
    assert log["query_id"].n_unique() == 200
    assert log["timestamp"].dtype == pl.Datetime("us", "UTC")
    assert log["timestamp"].drop_nulls().is_duplicated().any()
    assert all(log[column].null_count() for column in log.columns if column != "query_id")
    floats = log.select(pl.col(pl.Float64))
    assert all(column.is_nan().any() for column in floats)
    assert all((column.fill_nan(None) % 1 == 0.5).any() for column in floats)
    assert log["transcript"].str.contains("ß").any()
    assert synthetic_query_log(0).is_empty()


def declared(**options):
    def make(function):
        return labeling_function(**options)(function)

    return make


@declared(requires=["transcript"])
def undocumented():
    return accept_if(nw.col("transcript") == "play")


@declared(requires=["confidence"])
def undeclared():
    """Read a column that it does not require."""
    return accept_if(nw.col("transcript") == "play")


@declared(requires=["confidence"])
def out_of_range():
    """Vote what is no vote."""
    return nw.col("confidence").round(0).cast(nw.Int64) + 4


@declared(requires=["transcript"])
def far_sighted():
    """Look at the whole log and not say so."""
    return reject_if(occurrences("transcript") < 2)


@declared(requires=["transcript"], rowwise=True)
def brittle(row):
    """Take it that something was said."""
    return 1 if row["transcript"].split()[0] == "play" else 0


@declared(requires=["dwell"])
def rounding(at: float = 3.0):
    """Round, which engines do in two ways."""
    return accept_if(nw.col("dwell").round(0) == at)


seen = set()


@declared(requires=["transcript"], rowwise=True)
def order_bound(row):
    """Remember earlier rows."""
    new = row["transcript"] not in seen
    seen.add(row["transcript"])
    return int(new)


@declared(requires=["speed"])
def unusual():
    """Read a column of its own."""
    return accept_if(nw.col("speed") > 1)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (undocumented, "needs a docstring"),
        (undeclared, "transcript"),
        (out_of_range, "out_of_range"),
        (far_sighted, "votes differently with fewer sessions"),
        (order_bound, "another order"),
        (brittle, "'brittle' raised IndexError"),
        (unusual, r"requires \['speed'\], which the log lacks"),
    ],
)
def test_a_broken_contract_is_named(function, message):
    with pytest.raises((AssertionError, ValueError), match=message):
        check_labeling_function(function)


@pytest.mark.parametrize("with_session", [False, True], ids=["rows", "sessions"])
@pytest.mark.parametrize(
    "condition",
    [
        nw.col("duration") > nw.col("duration").max() * 0.6,
        nw.col("duration") > nw.col("duration").mean(),
        nw.col("duration") < nw.col("duration").quantile(0.9, "linear"),
        nw.col("duration").std() < 1,
        nw.len() > 100,
        nw.col("duration").n_unique() > 99,
        nw.col("duration").null_count() > 3,
        nw.len().over("action") > 20,
    ],
    ids=["max", "mean", "quantile", "std", "len", "n_unique", "null_count", "over"],
)
def test_a_vote_that_depends_on_the_rest_of_the_log_needs_its_scope(condition, with_session):
    columns = ["duration", "action", *(["session_id"] if with_session else [])]

    @labeling_function(requires=columns, nullable=columns)
    def summed_up():
        """Accept by what the whole log holds."""
        return accept_if(condition)

    with pytest.raises(AssertionError, match=r'votes differently with .* \(with scope="log"'):
        check_labeling_function(summed_up)
    check_labeling_function(replace(summed_up, scope="log"))


def test_what_engines_compute_differently_is_named():
    halves = pl.DataFrame({"query_id": [1, 2], "dwell": [2.5, 3.5]})
    with pytest.raises(AssertionError, match="rounding votes differently with duckdb for polars"):
        check_engines(rounding, halves)


@pytest.mark.parametrize("engine", ["duckdb", "spark"])
def test_an_engine_that_is_not_installed_says_what_to_install(engine, monkeypatch):
    monkeypatch.setitem(sys.modules, {"spark": "pyspark"}.get(engine, engine), None)
    with pytest.raises(ImportError, match=rf'pip install "weaklabel\[{engine}\]"'):
        check_engines(functions.dwell, engines=["polars", engine])


def test_a_log_of_ones_own_can_be_given():
    check_labeling_function(unusual, pl.DataFrame({"query_id": [1, 2], "speed": [0.5, None]}))


def test_expected_votes_are_compared_row_by_row():
    assert_votes(functions.dwell, [({"dwell": 100.0}, 1), ({"dwell": 1.0}, -1), ({}, None)])
    with pytest.raises(AssertionError, match=r"dwell votes 1 on .*100.*, expected -1"):
        assert_votes(functions.dwell, [({"dwell": 100.0}, -1)])


def test_rows_of_cases_are_one_session_in_order():
    assert_votes(
        functions.rapid_repetition,
        [({}, 0), ({"timestamp": 100}, -1), ({"timestamp": 104}, 0), ({"session_id": "t"}, 0)],
    )


def test_a_comparison_of_nothing_is_no_test():
    with pytest.raises(AssertionError, match="two or more"):
        check_engines(functions.dwell, engines=["polars"])
    with pytest.raises(AssertionError, match="of their own"):
        assert_votes(functions.dwell, [])
    with pytest.raises(AssertionError, match="of their own"):
        assert_votes(functions.dwell, [({"query_id": 1}, 0), ({"query_id": 1}, 0)])
