"""The query log's contract: what breaks it is named, and no row is lost."""

from __future__ import annotations

import logging
import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import narwhals.stable.v2 as nw
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from weaklabel import apply, load_registry, queries, schema, tables
from weaklabel.errors import WeakLabelError
from weaklabel.export import export

START = datetime(2026, 1, 1, 18, tzinfo=UTC)

SOUND = pl.DataFrame(
    {
        "query_id": ["a", "b", "c", "d"],
        "transcript": ["play jazz", "", "😀", "شغّل"],
        "session_id": ["s", "s", None, "t"],
        "timestamp": [START, START, None, START],
        "confidence": [0.0, 1.0, 0.5, None],
        "duration": [1.5, 0.0, None, 2.0],
        "audio": ["a.wav", None, None, None],
        "action": ["play", None, "back", None],
        "dwell": [30.0, 0.0, None, 1.0],
        "device": ["tv", "tv", "box", None],
    },
    schema_overrides={"confidence": pl.Float64},
)


def _only(validation: queries.Checked) -> queries.Problem:
    assert len(validation.problems) == 1, str(validation)
    return validation.problems[0]


def test_a_sound_log_passes_whole() -> None:
    validation = queries.validate(SOUND, requires=["confidence", "device"])
    assert validation.ok
    assert (validation.rows, validation.refusals) == (4, 0)
    assert validation.unchanged
    assert_frame_equal(queries.check(SOUND).accepted.collect(), SOUND)


def _with(**columns: list[Any]) -> pl.DataFrame:
    return SOUND.with_columns(pl.Series(name, values) for name, values in columns.items())


@pytest.mark.parametrize(
    ("log", "column", "problem", "examples", "remedy"),
    [
        (
            _with(query_id=["a", "b", "a", "b"]),
            "query_id",
            "is not unique",
            [(1, "a", "a"), (2, "b", "b"), (3, "a", "a"), (4, "b", "b")],
            "leave one",
        ),
        (_with(query_id=[7, 8, 9, 7]), "query_id", "is not unique", [(1, 7, 7), (4, 7, 7)], ""),
        (_with(query_id=["a", None, "c", None]), "query_id", "is null", [(2, None, None)], "give"),
        (
            _with(transcript=["x", None, "", "y"]),
            "transcript",
            "is null",
            [(2, "b", None)],
            'write an empty text, ""',
        ),
        (
            _with(confidence=[0.5, 1.5, None, -0.1]),
            "confidence",
            "is not within [0, 1]",
            [(2, "b", 1.5), (4, "d", -0.1)],
            "divide percentages by 100",
        ),
        (
            _with(confidence=[1, 0, 87, None]),
            "confidence",
            "is not within [0, 1]",
            [(3, "c", 87)],
            "divide percentages by 100",
        ),
        (
            _with(duration=[1.0, -1.0, math.inf, None]),
            "duration",
            "is negative or infinite",
            [(2, "b", -1.0), (3, "c", math.inf)],
            "not negative",
        ),
        (_with(dwell=[1, 2, -3, None]), "dwell", "is negative or infinite", [(3, "c", -3)], ""),
    ],
)
def test_a_faulty_row_is_named_with_its_value_and_a_remedy(
    log: pl.DataFrame,
    column: str,
    problem: str,
    examples: list[tuple[int, Any, Any]],
    remedy: str,
) -> None:
    found = _only(queries.validate(log))
    assert (found.column, found.problem, found.by_row) == (column, problem, True)
    assert list(found.examples[: len(examples)]) == examples
    assert remedy in found.remedy
    with pytest.raises(WeakLabelError, match="--reject") as raised:
        queries.check(log)
    message = str(raised.value)
    assert repr(column) in message
    assert f"row {examples[0][0]} (query_id {examples[0][1]!r}): {examples[0][2]!r}" in message
    assert found.remedy in message


@pytest.mark.parametrize("column", ["confidence", "duration", "dwell"])
def test_nan_is_a_value_that_is_not_known(column: str) -> None:
    checked = queries.check(_with(**{column: [0.5, math.nan, None, 0.25]}))
    assert not checked.unchanged
    assert checked.accepted.collect()[column].to_list() == [0.5, None, None, 0.25]


@pytest.mark.parametrize(
    ("log", "column", "said", "remedy"),
    [
        (
            SOUND.with_columns(pl.col("timestamp").dt.replace_time_zone(None)),
            "timestamp",
            "is a Datetime without a time zone",
            "--timezone",
        ),
        (
            _with(timestamp=["2026-01-01T00:00:00"] * 4),
            "timestamp",
            "is text (String), expected a Datetime with a time zone",
            "write the offset",
        ),
        (_with(timestamp=[17] * 4), "timestamp", "is Int64", "since 1970"),
        (SOUND.with_columns(pl.col("timestamp").dt.date()), "timestamp", "is Date", "time of day"),
        (
            _with(confidence=["n/a", "", "high", None]),
            "confidence",
            "is text (String), expected numbers within [0, 1]",
            "decimal point",
        ),
        (_with(confidence=[True] * 4), "confidence", "is Boolean", "write numbers"),
        (_with(transcript=[1, 2, 3, 4]), "transcript", "is Int64", "write text"),
        (_with(query_id=[1.0, 2.0, 3.0, 4.0]), "query_id", "is Float64", "integers"),
        (
            SOUND.with_columns(query_id=pl.int_range(4).cast(pl.Int128)),
            "query_id",
            "is Int128",
            "or text",
        ),
        (_with(session_id=[1.0, 2.0, 3.0, 4.0]), "session_id", "text or integers", "or text"),
        (_with(second_transcript=[1, 2, 3, 4]), "second_transcript", "is Int64", "write text"),
    ],
)
def test_a_column_of_another_type_is_an_error_even_with_a_file_to_reject_to(
    log: pl.DataFrame, column: str, said: str, remedy: str, tmp_path: Path
) -> None:
    found = _only(queries.validate(log, requires=[column]))
    assert (found.column, found.by_row) == (column, False)
    assert said in found.problem
    assert remedy in found.remedy
    assert found.examples
    with pytest.raises(WeakLabelError, match=f"unusable table:\n  column '{column}'"):
        queries.check(log, requires=[column], reject=tmp_path / "refused.parquet")
    assert not list(tmp_path.iterdir())


def test_what_no_function_reads_may_be_of_any_type() -> None:
    assert queries.validate(_with(has_transcript=[True, False, None, True])).ok
    log = _with(third_transcript=[1, 2, 3, 4])
    assert queries.validate(log).ok
    assert _only(queries.validate(log, requires=["third_transcript"])).column == "third_transcript"


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
@pytest.mark.parametrize(
    ("column", "values", "unreadable"),
    [
        ("confidence", ["0.5", "n/a", None, "1e-1"], "is no number"),
        ("dwell", ["3", "5 min", None, "4.5"], "is no number"),
        (
            "timestamp",
            ["2026-01-01T18:00:00Z", "garbage", None, "2026-01-01 19:00+01:00"],
            "is no time with an offset",
        ),
    ],
)
def test_a_value_that_cannot_be_read_is_a_fault_of_its_row(
    column: str, values: list[Any], unreadable: str, suffix: str, tmp_path: Path
) -> None:
    log, reject = tmp_path / f"log.{suffix}", tmp_path / f"refused.{suffix}"
    tables.write(_with(**{column: values}), log)
    found = _only(queries.validate(log))
    assert (found.column, found.rows, found.by_row) == (column, 1, True)
    assert unreadable in found.problem
    assert list(found.examples) == [(2, "b", values[1])]
    with pytest.raises(WeakLabelError, match=rf"row 2 \(query_id 'b'\): '{values[1]}'"):
        queries.check(log)
    accepted = queries.check(log, reject=reject).accepted.collect()
    read = {"confidence": [0.5, None, 0.1], "dwell": [3.0, None, 4.5]}
    assert accepted[column].to_list() == read.get(column, [START, None, START])
    refused = tables.read(reject)
    assert refused[column].to_list() == [values[1]]
    assert refused["reason"].item().startswith(f"{column} {values[1]} {unreadable}")


@pytest.mark.parametrize("per_second", [1, 10**3, 10**6, 10**9])
@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_numbers_since_1970_are_times_by_their_size(
    per_second: int, suffix: str, tmp_path: Path
) -> None:
    seconds = 1767290400
    values = [seconds * per_second, None, seconds * per_second + per_second // 2, 17]
    tables.write(_with(timestamp=values), tmp_path / f"log.{suffix}")
    checked = queries.check(tmp_path / f"log.{suffix}", reject=tmp_path / "refused.csv")
    half = timedelta(microseconds=per_second // 2 * 10**6 // per_second)
    assert checked.accepted.collect()["timestamp"].to_list() == [START, None, START + half]
    assert (
        "timestamp 17 is no time between 1980 and 2100"
        in tables.read(tmp_path / "refused.csv").get_column("reason").item()
    )


def test_seconds_with_a_fraction_are_times_and_coarse_ones_are_refused() -> None:
    log = _with(timestamp=[1767290400.25, math.nan, None, 1767290400.000001])
    times = queries.check(log).accepted.collect()["timestamp"].to_list()
    assert times == [START + timedelta(seconds=0.25), None, None, START.replace(microsecond=1)]
    with pytest.raises(WeakLabelError, match="Float32 is too coarse"):
        queries.check(log.cast({"timestamp": pl.Float32}))


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_a_time_zone_is_given_to_clocks_without_one(suffix: str, tmp_path: Path) -> None:
    clocks = ["2026-01-01 19:00", "2026-07-01T20:00:00", None, "2026-01-01T18:00:00Z"]
    tables.write(_with(timestamp=clocks), tmp_path / f"log.{suffix}")
    checked = queries.check(tmp_path / f"log.{suffix}", timezone="Europe/Berlin")
    summer = datetime(2026, 7, 1, 18, tzinfo=UTC)
    assert checked.accepted.collect()["timestamp"].to_list() == [START, summer, None, START]
    naive = SOUND.with_columns(pl.col("timestamp").dt.replace_time_zone(None))
    checked = queries.check(naive, timezone="UTC")
    assert_frame_equal(checked.accepted.collect(), SOUND)
    with pytest.raises(WeakLabelError, match="no time zone 'Mars'"):
        queries.check(naive, timezone="Mars")


def test_an_hour_that_a_clock_skips_or_shows_twice_is_refused() -> None:
    clocks = ["2026-03-29 02:30", "2026-10-25 02:30", "2026-10-25 03:30", None]
    found = _only(queries.validate(_with(timestamp=clocks), timezone="Europe/Berlin"))
    assert [value for _, _, value in found.examples] == clocks[:2]


def test_columns_are_renamed_before_anything_else() -> None:
    log = SOUND.rename({"query_id": "q", "timestamp": "when"})
    checked = queries.check(log, rename={"q": "query_id", "when": "timestamp"})
    assert_frame_equal(checked.accepted.collect(), SOUND)
    assert not checked.unchanged
    with pytest.raises(WeakLabelError, match=r"cannot rename .'x'.: the columns are .'q'"):
        queries.check(log, rename={"x": "query_id"})
    with pytest.raises(WeakLabelError, match=r"two columns .'transcript'"):
        queries.check(log, rename={"q": "transcript"})
    with pytest.raises(WeakLabelError, match="--rename QueryID=query_id"):
        queries.check(log.rename({"q": "QueryID"}))


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_what_a_renamed_column_is_its_new_name_says(suffix: str, tmp_path: Path) -> None:
    names = {"utt": "query_id", "said": "transcript", "conf": "confidence"}
    log = pl.DataFrame({"utt": ["1", "2"], "said": ["7", "true"], "conf": ["n/a", "0.5"]})
    tables.write(log, tmp_path / f"log.{suffix}")
    checked = queries.check(
        tmp_path / f"log.{suffix}", rename=names, reject=tmp_path / "refused.csv"
    )
    assert checked.accepted.drop("query_id").collect().rows() == [("true", 0.5)]
    with pytest.raises(WeakLabelError, match=r"cannot rename .'other'.: the columns are"):
        queries.check(tmp_path / f"log.{suffix}", rename={"other": "query_id", **names})


def test_categories_are_texts(tmp_path: Path) -> None:
    log = SOUND.cast(
        {
            "query_id": pl.Categorical,
            "transcript": pl.Categorical,
            "action": pl.Enum(["play", "back"]),
        }
    )
    tables.write(log, tmp_path / "log.parquet")
    for given_ in (log, tmp_path / "log.parquet"):
        assert_frame_equal(queries.check(given_).accepted.collect(), SOUND)
    twice = pl.concat([log, log[:1]])
    assert _only(queries.validate(twice)).rows == 2


def test_a_pandas_column_of_mixed_objects_is_named() -> None:
    log = SOUND.to_pandas()
    log["action"] = log["action"].astype(object)
    log.loc[0, "action"] = 7
    function = load_registry().labeling_functions["follow_up_action"]
    for reading in (queries.check, lambda log: apply([function], log)):
        with pytest.raises(WeakLabelError, match="column 'action' holds values of several types"):
            reading(log)


@pytest.mark.parametrize("column", ["query_id", "transcript"])
def test_a_missing_column_is_an_error(column: str) -> None:
    found = _only(queries.validate(SOUND.drop(column)))
    assert (found.column, found.by_row) == (column, False)
    assert "every table has it" in found.problem


def test_a_missing_column_that_a_function_needs_is_an_error_with_the_likely_name() -> None:
    log = SOUND.rename({"session_id": "sessionId", "device": "gadget"})
    validation = queries.validate(log, requires=["session_id", "color", "confidence"])
    assert [problem.column for problem in validation.problems] == ["session_id", "color"]
    session, color = validation.problems
    assert "a labeling function reads it" in session.problem
    assert "--rename sessionId=session_id" in session.remedy
    assert "'gadget'" in color.remedy


def test_an_empty_log_is_an_error() -> None:
    found = _only(queries.validate(SOUND.clear()))
    assert (found.column, found.problem) == (None, "has no rows")


def test_at_most_five_rows_are_shown_and_the_others_counted() -> None:
    log = pl.DataFrame({"query_id": range(100), "transcript": [None] * 90 + ["x"] * 10})
    found = _only(queries.validate(log))
    assert [row for row, _, _ in found.examples] == [1, 2, 3, 4, 5]
    assert found.rows == 90
    assert "and 85 more" in str(found)


def test_a_long_value_is_cut_in_the_message() -> None:
    log = _with(confidence=["x" * 1_000_000] * 4)
    assert len(str(queries.validate(log))) < 2000


def test_all_null_columns_count_as_their_type() -> None:
    log = _with(confidence=[None] * 4, timestamp=[None] * 4, session_id=[None] * 4)
    assert queries.validate(log).ok
    assert queries.check(log).accepted.collect_schema()["timestamp"] == pl.Datetime("us", "UTC")


def test_other_frames_are_checked_alike() -> None:
    log = _with(query_id=["a", "b", "a", "d"])
    wanted = str(queries.validate(log))
    assert str(queries.validate(log.to_arrow())) == wanted
    assert str(queries.validate(nw.from_native(log.lazy()))) == wanted
    assert "not unique" in str(queries.validate(log.to_pandas()))
    duckdb = pytest.importorskip("duckdb")
    table = duckdb.sql("select 'a' query_id, 'x' transcript from range(2)")
    assert _only(queries.validate(table)).rows == 2
    with pytest.raises(TypeError):
        queries.validate([1, 2])


# Rows refused and accepted, against a plain reference

_IDS = st.one_of(st.none(), st.sampled_from([f"q{i}" for i in range(12)]), st.text(max_size=3))
_NUMBERS = st.one_of(
    st.none(),
    st.floats(-0.5, 1.5),
    st.sampled_from([0.0, 1.0, -0.0, math.nan, math.inf, -math.inf, 5e-324, 1 + 2**-52]),
)
_ROWS = st.fixed_dictionaries(
    {
        "query_id": _IDS,
        "transcript": st.one_of(st.none(), st.text(max_size=5)),
        "confidence": _NUMBERS,
        "duration": _NUMBERS,
        "dwell": _NUMBERS,
        "extra": st.integers(0, 3),
    }
)
_TYPES = {
    "query_id": pl.String,
    "transcript": pl.String,
    "confidence": pl.Float64,
    "duration": pl.Float64,
    "dwell": pl.Float64,
    "extra": pl.Int64,
}


def _breaks(row: dict[str, Any], rows: list[dict[str, Any]]) -> bool:
    share = row["confidence"]
    if row["query_id"] is None or row["transcript"] is None:
        return True
    if sum(other["query_id"] == row["query_id"] for other in rows) > 1:
        return True
    if share is not None and (share < 0 or share > 1):
        return True
    return any(
        row[name] is not None and (row[name] < 0 or row[name] == math.inf)
        for name in ("duration", "dwell")
    )


@given(st.lists(_ROWS, min_size=1, max_size=15), st.booleans())
@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
def test_accepted_and_refused_are_all_rows_and_each_is_where_the_contract_puts_it(
    rows: list[dict[str, Any]], eager: bool
) -> None:
    log = pl.DataFrame(rows, schema=_TYPES).with_row_index("line")
    checked = queries.validate(log if eager else log.lazy())
    accepted, refused = checked.accepted.collect(), checked.refused.collect()
    broken = [line for line, row in enumerate(rows) if _breaks(row, rows)]
    assert refused["line"].to_list() == broken
    assert accepted["line"].to_list() == [i for i in range(len(rows)) if i not in broken]
    assert refused["reason"].null_count() == 0
    assert all(refused["reason"].to_list())
    floats = pl.col("confidence", "duration", "dwell")
    assert_frame_equal(
        pl.concat([accepted, refused.drop("reason")])
        .with_columns(floats.fill_nan(None))
        .sort("line"),
        log.with_columns(floats.fill_nan(None)),
        check_exact=True,
    )
    assert not any(accepted.select(floats.is_nan().any()).row(0))
    assert (checked.rows, checked.refusals) == (len(rows), len(broken))
    assert checked.ok == (not broken)
    # Every problem is counted in as many rows as have its words in their reason.
    for problem in checked.problems:
        said = refused.filter(
            pl.col("reason").str.contains(rf"{problem.column}( \S+)? ", literal=False)
            & pl.col("reason").str.contains(problem.problem, literal=True)
        )
        assert len(said) >= problem.rows > 0


@given(st.lists(st.tuples(_IDS, st.sampled_from(["x", "y"])), min_size=1, max_size=12))
def test_hypotheses_share_no_query_and_source(rows: list[tuple[str | None, str]]) -> None:
    table = pl.DataFrame(
        {
            "query_id": [row[0] for row in rows],
            "source": [row[1] for row in rows],
            "text": ["t"] * len(rows),
        },
        schema_overrides={"query_id": pl.String},
    )
    broken = sum(row[0] is None or rows.count(row) > 1 for row in rows)
    assert queries.validate(table, contract=schema.HYPOTHESES).refusals == broken


def test_duplicates_are_found_among_many_rows() -> None:
    many = pl.select(pl.int_range(200_000).alias("query_id"), transcript=pl.lit("x"))
    log = pl.concat([many, many[[7, 199_999]]])
    found = _only(queries.validate(log))
    assert found.rows == 4
    assert [query for _, query, _ in found.examples] == [7, 199_999, 7, 199_999]
    assert [row for row, _, _ in found.examples] == [8, 200_000, 200_001, 200_002]
    assert _only(queries.validate(pl.concat([many, many]))).rows == 400_000


# Reject files

FAULTY = _with(
    query_id=["a", "b", "a", "d"], confidence=[0.5, math.inf, 0.5, 1.0], transcript=["=1+1"] * 4
)


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_the_reject_file_and_what_is_accepted_are_everything(
    suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tables.write(FAULTY, tmp_path / "log.parquet")
    reject = tmp_path / f"refused.{suffix}"
    accepted = queries.check(tmp_path / "log.parquet", reject=reject).accepted.collect()
    refused = tables.read(reject)
    assert accepted["query_id"].to_list() == ["d"]
    assert refused["query_id"].to_list() == ["a", "b", "a"]
    assert refused["reason"].to_list() == [
        "query_id is not unique",
        "confidence inf is not within [0, 1]",
        "query_id is not unique",
    ]
    again = pl.concat(
        [accepted, refused.drop("reason").cast(dict(accepted.schema))], how="vertical"
    ).sort("query_id", maintain_order=True)
    wanted = FAULTY.sort("query_id", maintain_order=True)
    if suffix == "jsonl":  # JSON has no infinity; the reason says what it was
        infinite = pl.col("confidence").is_infinite()
        wanted = wanted.with_columns(pl.when(~infinite).then("confidence").alias("confidence"))
    assert_frame_equal(again, wanted)
    assert "3 of 4 rows refused" in caplog.text


def test_without_refused_rows_the_reject_file_is_written_and_empty(tmp_path: Path) -> None:
    reject = tmp_path / "refused.parquet"
    reject.write_text("of a run before")
    queries.check(SOUND, reject=reject)
    left = tables.read(reject)
    assert left.columns == [*SOUND.columns, "reason"]
    assert left.is_empty()


def test_a_log_of_refused_rows_alone_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    reject = tmp_path / "refused.csv"
    log = pl.DataFrame({"query_id": ["a", "a"], "transcript": ["x", "y"]})
    with pytest.raises(WeakLabelError, match=r"no row is left; .*refused\.csv holds them all"):
        queries.check(log, reject=reject)
    assert len(tables.read(reject)) == 2


def test_the_reject_file_is_not_a_part_of_the_log(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    path = tmp_path / "logs" / "part.parquet"
    tables.write(FAULTY, path)
    before = path.read_bytes()
    for log, reject in [
        (path, path),
        (path.parent, path.parent / "refused.csv"),
        (tmp_path / "logs" / "*.parquet", tmp_path / "logs" / "refused.parquet"),
    ]:
        with pytest.raises(WeakLabelError, match="read as a part of"):
            queries.check(log, reject=reject)
    assert [file.name for file in path.parent.iterdir()] == ["part.parquet"]
    assert path.read_bytes() == before


def test_a_column_called_reason_is_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(WeakLabelError, match="'reason'"):
        queries.check(FAULTY.with_columns(reason=pl.lit("mine")), reject=tmp_path / "r.csv")


# Hypotheses

HYPOTHESES = pl.DataFrame(
    {
        "query_id": ["a", "a", "b", "z"],
        "source": ["asr2", "asr3", "asr2", "asr2"],
        "text": ["play jazz", "played jazz", "", "stop"],
    }
)


def test_a_source_becomes_a_column_beside_the_log_in_its_order(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        joined = queries.join_hypotheses(SOUND, HYPOTHESES, source="asr2").collect()
    assert "1 hypotheses belong to no query" in caplog.text
    assert_frame_equal(joined.select(SOUND.columns), SOUND)
    assert joined["second_transcript"].to_list() == ["play jazz", "", None, None]
    alone = HYPOTHESES.filter(source="asr3")
    one = queries.join_hypotheses(SOUND, alone).collect()
    assert one.columns == [*SOUND.columns, "second_transcript"]
    assert one["second_transcript"].to_list() == ["played jazz", None, None, None]
    assert one.equals(queries.join_hypotheses(SOUND, HYPOTHESES, source="asr3").collect())


def test_hypotheses_that_cannot_be_joined_are_errors() -> None:
    twice = pl.concat([HYPOTHESES, HYPOTHESES[:1]])
    with pytest.raises(WeakLabelError, match="query_id and source"):
        queries.join_hypotheses(SOUND, twice)
    with pytest.raises(WeakLabelError, match=r"no hypotheses of 'asr9'.*'asr2', 'asr3'"):
        queries.join_hypotheses(SOUND, HYPOTHESES, source="asr9")
    numbered = SOUND.with_columns(query_id=pl.int_range(pl.len()))
    with pytest.raises(WeakLabelError, match="query_id is Int64 in the query log and String"):
        queries.join_hypotheses(numbered, HYPOTHESES)
    with pytest.raises(WeakLabelError, match="'second_transcript' already"):
        queries.join_hypotheses(
            SOUND.with_columns(second_transcript=pl.lit("x")), HYPOTHESES, source="asr2"
        )
    with pytest.raises(WeakLabelError, match="column 'text' is missing"):
        queries.join_hypotheses(SOUND, HYPOTHESES.drop("text"))
    with pytest.raises(WeakLabelError, match=r"several sources: choose one.*'asr2', 'asr3'"):
        queries.join_hypotheses(SOUND, HYPOTHESES)


def test_integer_ids_of_two_widths_join() -> None:
    log = SOUND.with_columns(query_id=pl.int_range(pl.len(), dtype=pl.Int32))
    table = pl.DataFrame({"query_id": [3], "source": ["x"], "text": ["stop"]})
    joined = queries.join_hypotheses(log, table, source="x").collect()
    assert joined["second_transcript"].to_list() == [None, None, None, "stop"]


# Files


def test_a_folder_and_a_glob_are_the_concatenation_of_their_files(tmp_path: Path) -> None:
    days = [
        SOUND.with_columns(
            pl.format("{}{}", "query_id", pl.lit(day)).alias("query_id"),
            pl.col("timestamp") + timedelta(days=day),
        )
        for day in range(3)
    ]
    for suffix in ("parquet", "csv", "jsonl"):
        folder = tmp_path / suffix
        (folder / "later").mkdir(parents=True)
        (folder / "_SUCCESS").touch()
        (folder / "weaklabel_lfs.py").touch()
        for day, name in enumerate(["0", "1", "later/2"]):
            tables.write(days[day], folder / f"{name}.{suffix}")
        assert_frame_equal(tables.read(folder), pl.concat(days), check_exact=True)
        pattern = str(folder / f"[01].{suffix}")
        assert_frame_equal(tables.read(pattern), pl.concat(days[:2]), check_exact=True)
        everything = str(folder / "**" / f"*.{suffix}")
        assert_frame_equal(tables.read(everything), pl.concat(days), check_exact=True)
        assert queries.validate(folder).rows == 12


@pytest.mark.parametrize("sessions", [True, False])
@pytest.mark.parametrize("format", ["huggingface", "nemo", "lhotse", "kaldi"])
def test_what_is_exported_is_a_log_again(format: str, sessions: bool, tmp_path: Path) -> None:
    log = pl.DataFrame(
        {
            "query_id": ["a-1", "ü 2", "c"],
            "transcript": ["play jazz", "", "öff = on"],
            "session_id": ["s-1", "s-1", "t/"],
            "audio": ["/x/a.wav", "/x/b c.wav", "/x/c.wav"],
            "duration": [1.5, 2.0, 0.25],
            "sampling_rate": [16_000] * 3,
            "weight": [0.5, 0.25, 1.0],
        }
    )
    log = log if sessions else log.drop("session_id")
    export(log, tmp_path / "out", format, check_audio=False)
    accepted = queries.check(tmp_path / "out").accepted.collect()
    columns = [name for name in log.columns if name != "sampling_rate"]
    assert_frame_equal(accepted.select(columns).sort("audio"), log.select(columns))


def test_a_kaldi_folder_of_others_keeps_its_names(tmp_path: Path) -> None:
    for name, line in {"text": "s-1 play", "wav.scp": "s-1 sox x |", "utt2spk": "s-1 s"}.items():
        (tmp_path / name).write_text(f"{line}\n")
    assert tables.read(tmp_path).rows(named=True) == [
        {"query_id": "s-1", "transcript": "play", "audio": "sox x |", "session_id": "s"}
    ]


_CELLS = st.text(
    st.characters(codec="utf-8")
    | st.sampled_from('",\n\r\t\u2028\u2029\u0085\ufeff\0😀\u202eشע=\\'),
    max_size=12,
)
_WHEN = st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))
_LOGS = st.lists(
    st.fixed_dictionaries(
        {
            "query_id": st.one_of(_CELLS, st.integers(-(2**70), 2**70).map(str), st.just("007")),
            "transcript": st.one_of(st.none(), _CELLS),
            "session_id": st.one_of(st.none(), st.integers(0, 9).map(str)),
            "timestamp": st.one_of(st.none(), _WHEN),
            "confidence": st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False)),
            "audio": st.one_of(st.none(), st.sampled_from(["1", "true", "2026-01-01T00:00:00Z"])),
        }
    ),
    min_size=1,
    max_size=8,
)
_LOG_TYPES = {
    "query_id": pl.String,
    "transcript": pl.String,
    "session_id": pl.String,
    "timestamp": pl.Datetime("us", "UTC"),
    "confidence": pl.Float64,
    "audio": pl.String,
}


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
@given(rows=_LOGS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_read_back(
    suffix: str, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    log = pl.DataFrame(rows, schema=_LOG_TYPES)
    path = tmp_path / f"log.{suffix}"
    tables.write(log.lazy(), path)
    back = tables.read(path)
    if suffix == "csv":  # names that are all integers, as they would be written, are integers
        for name in ("query_id", "session_id"):
            if back.schema[name] == pl.Int64:
                values = [value for value in log[name] if value is not None]
                assert values == [str(int(value)) for value in values]
                back = back.cast({name: pl.String})
    assert_frame_equal(back, log, check_exact=True)


@pytest.mark.parametrize("name", ["log.csv", "log.tsv"])
def test_text_files_bring_back_what_was_written_nan_included(tmp_path: Path, name: str) -> None:
    texts = ["a, b", "c\td"]
    log = pl.DataFrame({"query_id": [1, 2], "transcript": texts, "rating": [0.2, math.nan]})
    path = tables.write(log, tmp_path / name)
    mark = "\t" if name.endswith("tsv") else ","
    assert path.read_text().splitlines()[0].split(mark) == log.columns
    assert tables.read(path).equals(log)
