"""What `apply` promises beside the votes: kinds of frames, order, errors."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import narwhals.stable.v2 as nw
import polars as pl
import pytest

from weaklabel import functions as built_in
from weaklabel.errors import WeakLabelError
from weaklabel.labeling import LabelingFunction, labeling_function
from weaklabel.runs import apply, apply_files
from weaklabel.votes import accept_if

ENGINES = ["polars", "duckdb"]
FUNCTIONS = [built_in.session_position, built_in.rarity, built_in.second_asr_agreement]


def plain_log(rows: int = 40) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "query_id": [f"q{query:06d}" for query in range(rows)],
            "session_id": [None if query % 9 == 0 else query // 3 for query in range(rows)],
            "timestamp": [
                datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=q) for q in range(rows)
            ],
            "transcript": [f"play {query % 11}" for query in range(rows)],
            "second_transcript": [f"play {query % 7}" for query in range(rows)],
            "confidence": [query / rows for query in range(rows)],
        },
        schema_overrides={"timestamp": pl.Datetime("us", "UTC")},
    )


@labeling_function(requires=["transcript"], rowwise=True, family="text")
def long_text(row: Mapping[str, Any], letters: int = 6) -> int | None:
    """Accept long transcripts."""
    return 1 if len(row["transcript"]) > letters else None


def voting(expression: Any, name: str = "strange") -> LabelingFunction:
    @labeling_function(name=name, requires=["confidence"])
    def function() -> nw.Expr:
        return expression

    return function


def row_voting(vote: Any, name: str = "strange") -> LabelingFunction:
    @labeling_function(rowwise=True, name=name)
    def function(row: Mapping[str, Any]) -> Any:
        return vote

    return function


def votes_by(where: Any, functions: list[LabelingFunction], log: pl.DataFrame, folder: Path) -> Any:
    match where:
        case "frame":
            return apply(functions, log)
        case "lazy":
            return apply(functions, log.lazy()).collect()
        case "pandas":
            return apply(functions, log.to_pandas())
        case "relation":
            import duckdb

            return apply(functions, duckdb.sql("FROM log"))
        case engine:
            log.write_parquet(folder / "q.parquet")
            out = folder / "v.parquet"
            return apply_files(functions, folder / "q.parquet", out, engine=engine, progress=False)


# Frames


def test_votes_stand_beside_what_is_kept_in_the_order_of_rows_and_functions() -> None:
    log = plain_log().sample(fraction=1, shuffle=True, seed=1)
    functions = [built_in.rarity, long_text, built_in.asr_confidence]
    votes = apply(functions, log, keep=["session_id", "transcript", "query_id"])
    assert votes.columns == [
        "query_id",
        "session_id",
        "transcript",
        "lf:rarity",
        "lf:long_text",
        "lf:asr_confidence",
    ]
    assert votes[:, :3].equals(log["query_id", "session_id", "transcript"])
    assert set(votes.dtypes[3:]) == {pl.Int8}
    assert votes["lf:long_text"].to_list() == [int(len(t) > 6) for t in log["transcript"]]


def test_frames_come_back_as_their_own_kind() -> None:
    import duckdb

    log = plain_log()
    functions = [*FUNCTIONS, long_text]
    votes = apply(functions, log)
    assert isinstance(votes, pl.DataFrame)
    lazy = apply(functions, log.lazy())
    assert isinstance(lazy, pl.LazyFrame)
    assert lazy.collect().equals(votes)
    arrow = apply(functions, log.to_arrow())
    assert type(arrow) is type(log.to_arrow())
    assert pl.DataFrame(arrow).equals(votes)
    pandas = log.to_pandas().set_index(log["confidence"].to_numpy())
    found = apply(functions, pandas)
    assert type(found) is type(pandas)
    assert found.index.equals(pandas.index)
    assert pl.DataFrame(found).equals(votes)
    with duckdb.connect() as connection:
        relation = apply(functions, connection.sql("FROM log"), keep=["transcript"])
        assert type(relation) is duckdb.DuckDBPyRelation
        assert relation.pl().drop("transcript").sort("query_id").equals(votes)


def test_null_votes_are_abstains() -> None:
    high = nw.when(nw.col("confidence") > 0.5).then(1)
    votes = apply([voting(high), row_voting(None, "none")], plain_log(4))
    assert votes.rows() == [
        ("q000000", 0, 0),
        ("q000001", 0, 0),
        ("q000002", 0, 0),
        ("q000003", 1, 0),
    ]


@pytest.mark.parametrize(
    ("expression", "shown"),
    [
        (nw.when(nw.col("confidence") >= 0.5).then(257).otherwise(1), "257 on query_id 'q000002'"),
        (nw.when(nw.col("confidence") >= 0.5).then(2).otherwise(1).cast(nw.Int8), "2 on query_id"),
        (nw.when(nw.col("confidence") >= 0.5).then(255).otherwise(0).cast(nw.UInt8), "255 on"),
        (nw.when(nw.col("confidence") >= 0.5).then(0.5).otherwise(1.0), "0.5 on query_id"),
        (nw.when(nw.col("confidence") >= 0.5).then(float("nan")).otherwise(0.0), "nan on query_id"),
        (nw.when(nw.col("confidence") >= 0.5).then(2**40).otherwise(-1), f"{2**40} on query_id"),
    ],
)
@pytest.mark.parametrize("where", ["frame", "pandas", *ENGINES])
def test_a_vote_that_is_none_names_function_and_queries(
    expression: nw.Expr, shown: str, where: Any, tmp_path: Path
) -> None:
    log = plain_log(4)
    functions = [voting(expression), built_in.asr_confidence]
    with pytest.raises(WeakLabelError, match="'strange' cast 2 votes other than") as caught:
        votes_by(where, functions, log, tmp_path)
    assert shown in str(caught.value)
    assert "'q000003'" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] in ([], ["q.parquet"])


def test_in_a_lazy_frame_a_vote_that_is_none_is_found_when_it_is_counted() -> None:
    from weaklabel.patterns import Patterns

    lazy = apply([voting(nw.lit(257))], plain_log(3).lazy())
    assert lazy.collect()["lf:strange"].to_list() == [2, 2, 2]
    with pytest.raises(WeakLabelError, match="'strange' votes 2"):
        Patterns.count(lazy)


@pytest.mark.parametrize("expression", [nw.col("confidence") > 0.5, nw.lit("yes")])
@pytest.mark.parametrize("lazy", [False, True])
def test_votes_that_are_no_numbers_are_refused_by_their_type(
    expression: nw.Expr, lazy: bool
) -> None:
    log = plain_log(3)
    with pytest.raises(WeakLabelError, match=r"'strange' votes (Boolean|String).*accept_if"):
        apply([voting(expression)], log.lazy() if lazy else log)


@pytest.mark.parametrize("vote", [2, True, 0.5, float("nan"), "1", [1]])
@pytest.mark.parametrize("where", ["frame", "relation", *ENGINES])
def test_a_row_wise_vote_that_is_none_names_function_and_queries(
    vote: Any, where: Any, tmp_path: Path
) -> None:
    log, function = plain_log(3), row_voting(vote)
    with pytest.raises(WeakLabelError, match=r"'strange' cast 3 votes other than.*'q000002'"):
        votes_by(where, [function], log, tmp_path)
    assert not (tmp_path / "v.parquet").exists()


def test_in_a_lazy_frame_a_row_wise_vote_that_is_none_is_raised_when_it_is_collected() -> None:
    lazy = apply([row_voting(2)], plain_log(3).lazy())
    with pytest.raises(
        (WeakLabelError, pl.exceptions.PolarsError), match=r"'strange' cast \d votes? other than"
    ):
        lazy.collect()


@pytest.mark.parametrize("where", ["frame", "relation", *ENGINES])
def test_a_row_wise_function_that_raises_is_named_with_the_query(
    where: Any, tmp_path: Path
) -> None:
    @labeling_function(rowwise=True, requires=["transcript"])
    def broken(row: Mapping[str, Any]) -> int:
        return {"play 0": 1, "play 2": 1}[row["transcript"]]

    message = r"'broken' raised KeyError\('play 1'\).*'q000001'"
    with pytest.raises(WeakLabelError, match=message):
        votes_by(where, [broken], plain_log(3), tmp_path)


def test_missing_columns_are_named_with_the_functions_that_want_them() -> None:
    log = plain_log().select("query_id", "transcript")
    with pytest.raises(WeakLabelError) as caught:
        apply([*FUNCTIONS, long_text], log, keep=["audio"])
    message = str(caught.value)
    assert "'session_position' requires 'session_id', 'timestamp'" in message
    assert "'second_asr_agreement' requires 'second_transcript'" in message
    assert "keep names 'audio'" in message
    assert "rarity" not in message
    with pytest.raises(WeakLabelError, match="every query needs a 'query_id'"):
        apply([built_in.rarity], log.drop("query_id"))


def test_two_functions_of_one_name_are_refused() -> None:
    other = voting(nw.lit(0), name="RARITY")
    with pytest.raises(WeakLabelError, match="'rarity' and 'RARITY'"):
        apply([built_in.rarity, other], plain_log())
    with pytest.raises(WeakLabelError, match="'rarity' and 'rarity'"):
        apply([built_in.rarity, built_in.rarity], plain_log())
    with pytest.raises(WeakLabelError, match="no labeling functions"):
        apply([], plain_log())


def test_a_function_that_an_engine_cannot_compute_is_named() -> None:
    @labeling_function
    def undeclared() -> nw.Expr:
        return accept_if(nw.col("loudness") > 1)

    with pytest.raises(
        WeakLabelError, match=r"'undeclared' cannot be computed on polars.*loudness"
    ):
        apply([*FUNCTIONS, undeclared], plain_log())


def test_row_wise_functions_are_reported_as_the_slow_kind(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    plain_log().write_parquet(tmp_path / "q.parquet")
    with caplog.at_level(logging.INFO, "weaklabel"):
        summary = apply_files(
            [long_text, built_in.rarity],
            tmp_path / "q.parquet",
            tmp_path / "v.parquet",
            progress=False,
        )
    assert "row-wise functions call Python for every query: long_text" in caplog.text
    assert [tally.rowwise for tally in summary.functions] == [True, False]
    assert summary.rowwise_seconds is not None
    assert 0 < summary.rowwise_seconds < summary.seconds
