"""Helpers for the tests of a plugin.

    from weaklabel.testing import assert_votes, check_labeling_function

    def test_short_queries_are_rejected():
        assert_votes(too_short, [({"transcript": "a"}, -1), ({"transcript": "play it"}, 0)])

    def test_the_contract():
        check_labeling_function(too_short)

They raise AssertionError, and need no test framework.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import polars as pl

from weaklabel.labeling import LabelingFunction
from weaklabel.runs import Engine, apply, apply_files
from weaklabel.votes import ORDER, SESSION

START: Final = datetime(2026, 1, 1, tzinfo=UTC)

_WORDS: Final = (
    *("play", "show", "me", "the", "next", "channel", "news", "movie", "louder", "don’t"),
    *("étoile", "电影", "الأخبار", "Straße", "ΟΔΟΣ", "İzmir"),
)
_SCHEMA: Final[dict[str, Any]] = {
    "query_id": pl.Int64,
    "session_id": pl.String,
    "timestamp": pl.Datetime("us", "UTC"),
    "transcript": pl.String,
    "second_transcript": pl.String,
    "confidence": pl.Float64,
    "duration": pl.Float64,
    "audio": pl.String,
    "action": pl.String,
    "dwell": pl.Float64,
}


def synthetic_query_log(rows: int = 500, *, seed: int = 0) -> pl.DataFrame:
    """A query log with every standard column and what functions stumble on.

    There are ties in its timestamps, nulls and NaN, numbers that end in .5, empty texts and letters
    that engines could read in two ways. Its content is noise: it shows that a function keeps its
    contract, not that it is any good. In each column but `query_id` one value of 20 is null, and in
    those of floats another NaN.

    Args:
        rows: queries.
        seed: the same seed makes the same log.

    Returns:
        Columns `query_id` (integers, not in order of time), `session_id`, `timestamp` (UTC, whole
        seconds), `transcript`, `second_transcript`, `confidence` in [0, 1], `duration` and `dwell`
        in seconds, `audio`, `action`.
    """
    random = np.random.default_rng(seed)
    start = np.sort(random.integers(0, max(1, rows * 3), rows))
    length = random.integers(0, 5, rows)  # words; an ASR may write nothing
    text = [" ".join(random.choice(_WORDS, count)) for count in length]
    again = random.random(rows) < 0.7
    other = [text[row] if same else text[row - 1] for row, same in enumerate(again)]
    columns: dict[str, Any] = {
        "query_id": random.permutation(rows),
        "session_id": [f"s{place}" for place in start // 40],
        "timestamp": [START + timedelta(seconds=int(second)) for second in start],
        "transcript": text,
        "second_transcript": other,
        "confidence": random.beta(4, 1, rows),
        "duration": random.gamma(4, 0.5, rows),
        "audio": [f"{row}.flac" for row in range(rows)],
        "action": random.choice(["play", "select", "back", "cancel", "none"], rows),
        "dwell": random.exponential(60, rows),
    }
    log = pl.DataFrame(columns, schema=_SCHEMA)
    for name, dtype in _SCHEMA.items():
        value = pl.col(name)
        if dtype == pl.Float64:
            chance = pl.Series(random.random(rows))
            value = pl.when(chance < 0.1).then(value.floor() + 0.5).otherwise(value)
            value = pl.when(chance > 0.95).then(float("nan")).otherwise(value)
        if name != "query_id":
            null = pl.Series(random.random(rows) < 0.05)
            log = log.with_columns(pl.when(~null).then(value).alias(name))
    return log


def assert_votes(
    function: LabelingFunction, cases: Sequence[tuple[Mapping[str, Any], int | None]]
) -> None:
    """Assert the votes on a few rows, written as they are read: what is there, and the vote on it.

    Args:
        function: the labeling function.
        cases: `(columns, vote)`, None for a missing vote; together they are one log. What a row
            leaves out is null, but for `query_id` (its number), `session_id` (one for all) and
            `timestamp` (a minute after the one before); a number there is seconds from a fixed
            start.
    """
    rows = []
    for number, (given, _) in enumerate(cases):
        row = {"query_id": number, "session_id": "s", "timestamp": 60 * number, **given}
        if isinstance(row["timestamp"], int | float):
            row["timestamp"] = START + timedelta(seconds=row["timestamp"])
        rows.append(row)
    ids = [row["query_id"] for row in rows]
    assert len(set(ids)) == len(ids) > 0, f"cases need a query_id each of their own, not {ids}"
    names = dict.fromkeys([*(name for row in rows for name in row), *function.columns])
    # None: Polars finds the type. A query_id of the case's own may be a text.
    schema = {name: None if name == "query_id" else _SCHEMA.get(name) for name in names}
    log = pl.DataFrame(rows, schema=schema, infer_schema_length=None)
    votes = _votes(function, log)
    for row, (given, expected) in zip(rows, cases, strict=True):
        vote = votes[row["query_id"]]
        assert vote == expected, (
            f"{function.name} votes {vote} on {dict(given)}, expected {expected}"
        )


def check_labeling_function(
    function: LabelingFunction, queries: pl.DataFrame | None = None
) -> None:
    """Assert that a labeling function keeps its contract.

    It says in a docstring what it does; it votes −1, 0, 1 or null on logs with nulls and NaN, and
    on an empty one, and raises on no row; it reads no column but those it requires; its votes do
    not change with the order of the rows; with scope "session", nor with what other sessions hold,
    or other rows where it does not read the session: no `max()` or `len()` of the whole log.

    Args:
        function: the labeling function.
        queries: a log that has its columns, for functions that read others than the standard ones;
            by default `synthetic_query_log()`.
    """
    name = function.name
    assert function.description, f"{name} needs a docstring: lists of functions show its beginning"
    log = synthetic_query_log() if queries is None else queries
    missing = set(function.columns) - set(log.columns)
    assert not missing, (
        f"{name} requires {sorted(missing)}, which the log lacks: give check_labeling_function a"
        " log that has them"
    )
    log = log.select("query_id", *(column for column in function.columns if column != "query_id"))
    votes = _votes(function, log)
    shuffled = _votes(function, log.sample(fraction=1.0, shuffle=True, seed=1))
    _assert_equal(name, votes, shuffled, "the same rows in another order")
    empty = _votes(function, log.clear())
    assert empty == {}, f"{name} votes on queries that are not there: {empty}"
    if function.scope == "log":
        return
    change = 'fewer sessions in the log (with scope="log" it may look at all of them)'
    whole = SESSION if SESSION in log.columns else ORDER[-1]
    units = log[whole].drop_nulls().unique().sort()
    start, size = 0, 1
    while start < len(units):  # parts of 1, 4, 16, … units: what sums up a log differs among them
        part = log.filter(pl.col(whole).is_in(units[start : start + size].implode()))
        some = _votes(function, part)
        _assert_equal(name, {query: votes[query] for query in some}, some, change)
        start, size = start + size, 4 * size


def check_engines(
    function: LabelingFunction,
    queries: pl.DataFrame | None = None,
    *,
    engines: Sequence[Engine] = ("polars", "duckdb"),
) -> None:
    """Assert that a labeling function votes the same on several engines.

    Some expressions are no function of the row alone, for engines compute them differently: `round`
    of a number that ends in .5, upper case of "ß", the order of texts beyond ASCII, regular
    expressions with look-around, a division by zero, an integer that overflows. Their functions
    fail here where the log has such a value: compare with thresholds instead, or use `normalized`.

    Args:
        function: the labeling function.
        queries: by default `synthetic_query_log()`.
        engines: DuckDB needs `pip install "weaklabel[duckdb]"`, Spark "weaklabel[spark]" and Java.

    Raises:
        ImportError: an engine is not installed; the message says how to install it.
    """
    assert len(engines) > 1, f"to compare engines takes two or more, not {list(engines)}"
    log = synthetic_query_log() if queries is None else queries
    first, *others = engines
    votes = _votes(function, log, first)
    for engine in others:
        _assert_equal(function.name, votes, _votes(function, log, engine), f"{engine} for {first}")


def _votes(
    function: LabelingFunction, log: pl.DataFrame, engine: Engine = "polars"
) -> dict[Any, int | None]:
    """The vote of each query."""
    # Frames for Polars, files for the others: each as it is mostly used.
    if engine == "polars":
        seen = apply([function], log, on_error="fail")
    else:
        with TemporaryDirectory() as folder:
            queries, votes = Path(folder, "queries.parquet"), Path(folder, "votes.parquet")
            log.write_parquet(queries)
            apply_files([function], queries, votes, engine=engine, on_error="fail", progress=False)
            seen = pl.read_parquet(votes)
    return dict(seen.select(ORDER[-1], function.column).iter_rows())


def _assert_equal(
    name: str, votes: dict[Any, int | None], seen: dict[Any, int | None], change: str
) -> None:
    assert votes.keys() == seen.keys(), f"{name} loses or makes up queries with {change}"
    different = [query for query, vote in votes.items() if seen[query] != vote]
    assert not different, (
        f"{name} votes differently with {change}: "
        + ", ".join(f"{seen[q]} for {votes[q]} on query_id {q}" for q in different[:5])
        + f" ({len(different)} in all)"
    )
