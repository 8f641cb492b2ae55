"""What `apply` promises: kinds of frames, order, missing votes, errors, a reference log."""

from __future__ import annotations

import math
from asyncio import CancelledError
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import narwhals.stable.v2 as nw
import numpy as np
import polars as pl
import pytest
from polars.exceptions import PanicException

from weaklabel import functions as built_in
from weaklabel.errors import WeakLabelError
from weaklabel.labeling import LabelingFunction, labeling_function
from weaklabel.runs import apply, apply_files
from weaklabel.votes import MISSING, accept_if, occurrences, reject_if

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


def votes_by(
    where: Any, functions: list[LabelingFunction], log: pl.DataFrame, folder: Path, **options: Any
) -> Any:
    match where:
        case "frame":
            return apply(functions, log, **options)
        case "lazy":
            return apply(functions, log.lazy(), **options).collect()
        case "pandas":
            return apply(functions, log.to_pandas(), **options)
        case "relation":
            import duckdb

            return apply(functions, duckdb.sql("FROM log"), **options)
        case engine:
            log.write_parquet(folder / "q.parquet")
            out = folder / "v.parquet"
            return apply_files(
                functions, folder / "q.parquet", out, engine=engine, progress=False, **options
            )


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


@pytest.mark.parametrize("where", ["frame", "lazy", "pandas", "relation", *ENGINES])
def test_a_vote_is_null_where_a_function_has_no_input(where: Any, tmp_path: Path) -> None:
    @labeling_function(requires=["confidence", "transcript"])
    def high() -> nw.Expr:
        return accept_if(nw.col("confidence") <= 1.0)

    @labeling_function(requires=["confidence"], nullable=["confidence"])
    def silent() -> nw.Expr:
        return reject_if(nw.col("confidence").is_null())

    @labeling_function(requires=["confidence", "transcript"], rowwise=True)
    def called(row: Mapping[str, Any]) -> int | None:
        assert row["confidence"] == row["confidence"]
        return {"none": None, "missing": MISSING}.get(row["transcript"], 1)

    @labeling_function(requires=["confidence"], nullable=["confidence"], rowwise=True)
    def unsure(row: Mapping[str, Any]) -> int:
        return -1 if row["confidence"] is None else 0

    own = voting(nw.when(nw.col("confidence") > 0.5).then(1), "own")
    log = pl.DataFrame(
        {
            "query_id": range(7),
            "confidence": [0.2, 0.95, math.nan, None, 0.9, 0.9, 0.9],
            "transcript": ["", "a", "a", "a", None, "none", "missing"],
        },
        schema_overrides={"transcript": pl.String},
    )
    found = votes_by(where, [high, silent, called, unsure, own], log, tmp_path)
    if where in ENGINES:
        found = pl.read_parquet(tmp_path / "v.parquet")
    votes = (found.pl() if where == "relation" else pl.DataFrame(found)).sort("query_id")
    assert votes["lf:high"].to_list() == [1, 1, None, None, None, 1, 1]
    assert votes["lf:silent"].to_list() == [0, 0, -1, -1, 0, 0, 0]
    assert votes["lf:called"].to_list() == [1, 1, None, None, None, 0, None]
    assert votes["lf:unsure"].to_list() == [0, 0, -1, -1, 0, 0, 0]
    assert votes["lf:own"].to_list() == [None, 1, None, None, 1, 1, 1]


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


@labeling_function(rowwise=True, requires=["transcript"])
def broken(row: Mapping[str, Any]) -> int:
    """Know two transcripts only."""
    return {"play 0": 1, "play 2": 1}[row["transcript"]]


def test_a_row_wise_function_that_raises_misses_that_vote_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    import duckdb

    log = plain_log(4)
    wanted = [1, None, 1, None]
    assert apply([broken, long_text], log)["lf:broken"].to_list() == wanted
    assert "'broken' raised on 2 rows" in caplog.text
    assert "KeyError('play 1') on query_id 'q000001', KeyError('play 3')" in caplog.text
    lazy = apply([broken, long_text], log.lazy()).collect()
    assert lazy["lf:broken"].to_list() == wanted
    assert lazy["lf:long_text"].null_count() == 0
    relation = apply([broken], duckdb.sql("FROM log")).pl().sort("query_id")
    assert relation["lf:broken"].to_list() == wanted
    assert caplog.text.count("Traceback") >= 2


@pytest.mark.parametrize("where", ["frame", "relation", *ENGINES])
def test_where_a_row_is_to_stop_the_run_function_and_query_are_named(
    where: Any, tmp_path: Path
) -> None:
    message = r"'broken' raised KeyError\('play 1'\).*'q000001'"
    with pytest.raises(WeakLabelError, match=message) as caught:
        votes_by(where, [broken], plain_log(3), tmp_path, on_error="fail")
    assert "in broken" in "".join(caught.value.__notes__)
    assert not (tmp_path / "v.parquet").exists()


@pytest.mark.parametrize("where", ["frame", "lazy", "relation"])
def test_a_reference_is_counted_beside_the_log_each_query_once(where: str) -> None:
    import duckdb

    @labeling_function(
        requires=["transcript"],
        rowwise=True,
        scope="log",
        inputs={"times": occurrences("transcript")},
    )
    def often(row: Mapping[str, Any]) -> int:
        return 1 if row["times"] > 3 else -1

    whole = plain_log(40)
    day = whole[3:10].sample(fraction=1, shuffle=True, seed=2)
    functions = [often, built_in.session_position, built_in.asr_confidence, long_text]
    wanted = apply(functions, day).with_columns(
        day.select("query_id").join(
            apply([often], whole), on="query_id", how="left", maintain_order="left"
        )["lf:often"]
    )
    if where == "relation":
        given, reference = duckdb.sql("FROM day"), duckdb.sql("FROM whole")
        found = apply(functions, given, keep=["transcript"], reference=reference).pl()
        wanted = wanted.sort("query_id")
        found = found.sort("query_id")
    else:
        given = day if where == "frame" else day.lazy()
        found = apply(functions, given, keep=["transcript"], reference=whole).lazy().collect()
    assert found.columns[:2] == ["query_id", "transcript"]
    assert found.drop("transcript").equals(wanted)
    assert set(found["lf:often"]) == {-1, 1}


def test_a_reference_with_other_columns_is_refused() -> None:
    log = plain_log(4)
    with pytest.raises(WeakLabelError, match="'rarity' requires 'transcript'"):
        apply([built_in.rarity], log, reference=log.drop("transcript"))
    with pytest.raises(WeakLabelError, match=r"'query_id' \(Int64 in the reference, String in the"):
        apply([built_in.rarity], log, reference=log.with_columns(query_id=pl.int_range(pl.len())))


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
    @labeling_function()
    def undeclared() -> nw.Expr:
        return accept_if(nw.col("loudness") > 1)

    with pytest.raises(
        WeakLabelError, match=r"'undeclared' cannot be computed on polars.*loudness"
    ):
        apply([*FUNCTIONS, undeclared], plain_log())

    @labeling_function(requires=["loudness"])
    def of_text() -> nw.Expr:
        return accept_if(nw.col("loudness") > 1)

    with pytest.raises(WeakLabelError, match=r"'of_text' failed: cannot compare string"):
        apply([*FUNCTIONS, of_text, long_text], plain_log().with_columns(loudness=pl.lit("high")))


@pytest.mark.parametrize("kind", [pl.Int64, pl.Float64, pl.Date, pl.String])
def test_times_that_are_none_are_refused_on_every_engine(kind: Any, tmp_path: Path) -> None:
    import duckdb

    times = pl.col("timestamp")
    log = plain_log().with_columns(times.cast(kind) if kind == pl.Date else times.dt.epoch("s"))
    log = log.cast({"timestamp": kind})
    log.write_parquet(tmp_path / "log.parquet")
    functions, said = [long_text, built_in.rapid_repetition], f"'timestamp' is {kind.__name__}, ex"
    for frame in (log, log.lazy(), log.to_arrow(), duckdb.sql("FROM log")):
        with pytest.raises(WeakLabelError, match=said):
            apply(functions, frame)
        apply([long_text], frame, keep=["timestamp"])  # which reads no times
    for engine in ENGINES:
        out = tmp_path / "v.parquet"
        with pytest.raises(WeakLabelError, match=said):
            apply_files(functions, tmp_path / "log.parquet", out, engine=engine, progress=False)


@pytest.mark.parametrize("kind", [pl.Duration("ms"), pl.Duration("ns"), pl.Time(), pl.Boolean()])
def test_numbers_that_are_none_are_refused_on_every_engine(kind: Any, tmp_path: Path) -> None:
    import duckdb

    name = "confidence" if kind == pl.Boolean else "dwell"
    log = plain_log().with_columns(dwell=pl.lit(1.0))
    log = log.with_columns(pl.lit(3_600_000_000_000).cast(kind).alias(name))
    log.write_parquet(tmp_path / "log.parquet")
    functions = [long_text, built_in.asr_confidence, built_in.dwell]
    for frame in (log, log.lazy(), log.to_pandas(), duckdb.sql("FROM log")):
        with pytest.raises(WeakLabelError, match=f"'{name}' is .*, expected num|of type TIME_NS"):
            apply(functions, frame)
        apply([built_in.rarity], frame, keep=[name])  # which reads no numbers
    for engine in ENGINES:
        out = tmp_path / "v.parquet"
        with pytest.raises(WeakLabelError, match=f"'{name}' is .*, expected numbers"):
            apply_files(functions, tmp_path / "log.parquet", out, engine=engine, progress=False)


@pytest.mark.parametrize("where", ["frame", "lazy", "pandas", "relation"])
def test_a_column_of_nothing_is_a_missing_input(where: str, tmp_path: Path) -> None:
    reading = {
        "second_transcript": built_in.second_asr_agreement,
        "confidence": built_in.asr_confidence,
        "dwell": built_in.dwell,
        "timestamp": built_in.rapid_repetition,
        "session_id": built_in.session_position,
        "transcript": built_in.rephrasing,
    }
    log = plain_log().with_columns(second_transcript=pl.lit("a"))
    for column, function in reading.items():
        none = log.with_columns(pl.lit(None).alias(column))
        votes = nw.from_native(votes_by(where, [function], none, tmp_path)).lazy()
        assert votes.collect("polars")[function.column].is_null().all()


def test_row_wise_functions_are_reported_as_the_slow_kind(tmp_path: Path) -> None:
    plain_log().write_parquet(tmp_path / "q.parquet")
    summary = apply_files(
        [long_text, built_in.rarity],
        tmp_path / "q.parquet",
        tmp_path / "v.parquet",
        progress=False,
    )
    assert [tally.rowwise for tally in summary.functions] == [True, False]


class Awkward(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (SystemExit, "SystemExit()"),
        (Awkward, "Awkward"),
        (ValueError("half \ud800 and \x00"), r"ValueError('half \ud800 and \x00')"),
        (CancelledError, "CancelledError()"),
        (PanicException("oops"), "PanicException('oops')"),
        (ValueError("long" * 250_000), f"ValueError('{'long' * 121}lon…"),
    ],
    ids=["exits", "has no words", "no valid text", "cancels", "panics", "too many words"],
)
def test_whatever_a_function_of_one_row_raises_costs_no_other_vote(
    tmp_path: Path, error: Any, message: str
) -> None:
    @labeling_function(requires=["confidence"], rowwise=True)
    def breaks(row: Any) -> int:
        """Accept what is sure, and fail on what is not."""
        if row["confidence"] < 0.5:
            raise error
        return 1

    log = pl.DataFrame({"query_id": [1, 2, 3], "confidence": [0.9, 0.1, None]})
    log.write_parquet(tmp_path / "log.parquet")
    for engine in ("polars", "duckdb"):
        out = tmp_path / f"{engine}.parquet"
        summary = apply_files(
            [breaks, built_in.asr_confidence], tmp_path / "log.parquet", out, engine=engine
        )
        (raised,) = summary.errors
        assert raised.first == [(2, message)]
        assert len(raised.traceback) < 10_000
        votes = pl.read_parquet(out).sort("query_id")
        assert votes["lf:breaks"].to_list() == [1, None, None]
        assert votes["lf:asr_confidence"].to_list() == [1, -1, None]


class Equal:
    """What equals everything."""

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0


class OneElement(Equal):
    """What is no number, but can be turned into one, as a tensor of one element."""

    def __int__(self) -> int:
        return 1


class Mute(Equal):
    def __eq__(self, other: object) -> bool:
        raise RuntimeError("not equal")

    def __repr__(self) -> str:
        raise RuntimeError("no words")

    __hash__ = Equal.__hash__


@pytest.mark.parametrize(
    "vote",
    [
        *(np.array([1]), [1, 1], np.True_, 1 + 0j, Decimal("sNaN"), Equal(), Mute()),
        *(pytest.param(np.array(True), id="array of a bool"), OneElement()),
        "1" * 1_000_000,
    ],
    ids=lambda vote: type(vote).__name__,
)
def test_whatever_a_function_of_one_row_returns_is_a_vote_or_an_error_that_names_it(
    vote: Any,
) -> None:
    with pytest.raises(WeakLabelError, match=r"'strange' cast 3 votes other than.*'q000002'") as no:
        apply([row_voting(vote)], plain_log(3))
    assert len(str(no.value)) < 3_000


@pytest.mark.parametrize("vote", [1.0, np.int8(1), np.float32(1), Decimal(1), np.array(1)])
def test_numbers_of_any_kind_are_votes(vote: Any) -> None:
    assert apply([row_voting(vote)], plain_log(2))["lf:strange"].to_list() == [1, 1]


@pytest.mark.parametrize("error", [SystemExit, CancelledError, Awkward()])
def test_whatever_the_making_of_an_expression_raises_names_the_function(error: Any) -> None:
    @labeling_function(requires=["confidence"])
    def breaks() -> nw.Expr:
        """Raise."""
        raise error

    with pytest.raises(WeakLabelError, match="labeling function 'breaks' raised "):
        apply([breaks], plain_log(2))
