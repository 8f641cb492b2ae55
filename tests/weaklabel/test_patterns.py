"""Counts of vote patterns: counted, merged, saved; never a transcript."""

from __future__ import annotations

import itertools
import json
import math
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weaklabel import MISSING, Identity, Patterns, WeakLabelError, WeakLabelWarning

ROWS = st.lists(st.tuples(*[st.sampled_from([-1, 0, 1])] * 3), min_size=1, max_size=40)


def version(number: str) -> Identity:
    return Identity("a", "mine", number, "cafe", {"high": 0.9})


def table(
    rows: Sequence[tuple[int | None, ...]], names: tuple[str, ...] = ("a", "b", "c")
) -> pl.DataFrame:
    votes = pl.DataFrame(rows, schema={f"lf:{name}": pl.Int8 for name in names}, orient="row")
    return votes.with_row_index("query_id").with_columns(transcript=pl.lit("play some jazz"))


@given(ROWS)
def test_counts_are_those_of_a_plain_counter_and_rows_are_sorted(
    rows: list[tuple[int, ...]],
) -> None:
    patterns = Patterns.count(table(rows))

    found = [tuple(row) for row in patterns.votes.tolist()]
    assert found == sorted(set(rows))
    assert dict(zip(found, patterns.counts.tolist(), strict=True)) == Counter(rows)
    assert (patterns.rows, len(patterns)) == (len(rows), len(set(rows)))
    assert patterns.votes.dtype == np.int8
    assert patterns.counts.dtype == np.int64


@given(ROWS, st.randoms())
def test_the_order_of_rows_does_not_matter(rows: list[tuple[int, ...]], random: object) -> None:
    shuffled = list(rows)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert Patterns.count(table(rows)) == Patterns.count(table(shuffled))


@given(ROWS, ROWS)
def test_shards_merge_to_the_patterns_of_all_rows_whatever_their_order_of_functions(
    one: list[tuple[int, ...]], two: list[tuple[int, ...]]
) -> None:
    turned = table(two).select("query_id", "lf:c", "lf:a", "lf:b")
    assert Patterns.count(table(one)) + Patterns.count(turned) == Patterns.count(table(one + two))


def test_lazy_frames_and_relations_are_counted_in_their_engine() -> None:
    votes = table(list(itertools.product([-1, 0, 1], repeat=3)) * 2)
    relation = duckdb.sql("select * from votes")

    assert (
        Patterns.count(votes)
        == Patterns.count(votes.lazy())
        == Patterns.count(relation)
        == Patterns.count(votes.to_arrow())
    )


@pytest.mark.parametrize("nothing", [None, math.nan])
def test_a_missing_input_is_no_abstain(nothing: float | None) -> None:
    votes = pl.DataFrame({"lf:a": pl.Series([nothing, 0, nothing, 1], dtype=pl.Float64)})
    for table_ in (votes, votes.lazy(), duckdb.from_arrow(votes.to_arrow()), votes.to_pandas()):
        patterns = Patterns.count(table_)
        assert patterns.votes.tolist() == [[MISSING], [0], [1]]
        assert patterns.counts.tolist() == [2, 1, 1]
    assert patterns.present.tolist() == [[False], [True], [True]]
    assert patterns.without_missing() == Patterns.of("a", [[0], [1]], [3, 1])
    assert (patterns + patterns).counts.tolist() == [4, 2, 2]


def test_a_file_holds_votes_counts_and_provenance_and_nothing_else(tmp_path: Path) -> None:
    votes = table([(1, 0, -1), (1, None, 1)])
    patterns = Patterns.count(votes, {"b": "session"}, {"a": version("2")}, {"c": 500})
    path = patterns.save(tmp_path / "patterns.parquet")

    assert Patterns.load(path) == patterns
    assert pl.read_parquet(path).columns == ["lf:a", "lf:b", "lf:c", "count"]
    assert b"jazz" not in path.read_bytes()


def test_a_file_that_is_no_patterns_is_refused(tmp_path: Path) -> None:
    votes = tmp_path / "votes.parquet"
    table([(1, 0, -1)]).write_parquet(votes)
    with pytest.raises(WeakLabelError, match=r"Patterns\.count"):
        Patterns.load(votes)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(WeakLabelError, match="no Parquet file"):
        Patterns.load(tmp_path / "broken.parquet")
    with pytest.raises(FileNotFoundError):
        Patterns.load(tmp_path / "missing.parquet")


def test_patterns_that_counted_missing_inputs_as_abstains_are_refused(tmp_path: Path) -> None:
    old = json.dumps({"patterns": 1, "functions": [{"name": "a", "identity": None}]})
    path = tmp_path / "patterns.parquet"
    pl.DataFrame({"lf:a": [1], "count": [1]}).write_parquet(path, metadata={"weaklabel": old})
    with pytest.raises(WeakLabelError, match=r"format 2 \(found 1\): count the votes again"):
        Patterns.load(path)


@pytest.mark.parametrize("value", [2, -3, 0.5, -128])
def test_a_vote_that_is_none_is_refused_by_the_function_s_name(value: float) -> None:
    votes = pl.DataFrame({"lf:fine": [0, 1], "lf:odd": [0, value]}, strict=False)
    with pytest.raises(WeakLabelError, match="'odd' votes"):
        Patterns.count(votes)


def test_tables_without_votes_and_votes_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(WeakLabelError, match="no columns of votes"):
        Patterns.count(pl.DataFrame({"query_id": [1]}))
    with pytest.raises(WeakLabelError, match="'lf:a' is String"):
        Patterns.count(pl.DataFrame({"lf:a": ["accept"]}))


def test_shards_of_other_functions_or_versions_do_not_merge() -> None:
    one = Patterns.count(table([(1, 0, 0)]))
    with pytest.raises(WeakLabelError, match=r"only the first have \['c'\]"):
        one + Patterns.count(table([(1, 0)], ("a", "b")))
    other = Patterns.count(table([(1, 0, 0)]), identities={"a": version("2")})
    # A shard that says nothing agrees with any, and so does another version of the same source.
    assert (one + other).identities == (version("2"), None, None)
    first = Patterns.count(table([(1, 0, 0)]), identities={"a": version("1")})
    assert (first + other).identities == (version("2"), None, None)
    for change, words in (
        ({"source": "beef"}, "source cafe → beef"),
        ({"parameters": {"high": 0.1}}, "high 0.9 → 0.1"),
    ):
        changed = replace(version("2"), **change)
        third = Patterns.count(table([(1, 0, 0)]), identities={"a": changed})
        with pytest.raises(WeakLabelError, match=f"two functions 'a': {words}"):
            Patterns.merge([first, third])
    with pytest.raises(WeakLabelError, match="no patterns to merge"):
        Patterns.merge([])


def test_logs_of_very_different_size_do_not_add_up_in_silence() -> None:
    day, fortnight = (
        Patterns.count(table([(1, 0, 0)]), log_rows={"a": rows}) for rows in (1_000, 14_000)
    )
    with pytest.warns(WeakLabelWarning, match=r"'a' looks at the whole log.* 1,000 to 14,000 rows"):
        assert (day + fortnight).log_rows == (14_000, None, None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (day + day).log_rows == (1_000, None, None)


def test_a_family_of_a_function_that_is_not_there_is_refused() -> None:
    with pytest.raises(WeakLabelError, match=r"family is given for \['dwel'\]"):
        Patterns.count(table([(1, 0, 0)]), {"dwel": "session"})


def test_fifty_functions_with_as_many_patterns_as_rows_are_counted() -> None:
    votes = np.random.default_rng(7).integers(-1, 2, (2_000, 50))
    patterns = Patterns.count(pl.DataFrame(votes, schema=[f"lf:f{i}" for i in range(50)]))
    assert len(patterns) == patterns.rows == 2_000


def test_patterns_cannot_be_changed() -> None:
    patterns = Patterns.count(table([(1, 0, 0)]))
    with pytest.raises(ValueError, match="read-only"):
        patterns.counts[0] = 5
