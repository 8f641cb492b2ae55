"""Votes are the same on every engine, and those of a plain loop over the sessions; and labels."""

from __future__ import annotations

import math
import random
import re
import shutil
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import narwhals.stable.v2 as nw
import numpy as np
import polars as pl
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from weaklabel import functions as built_in
from weaklabel.engines import LogFiles
from weaklabel.engines.spark import _readable
from weaklabel.errors import WeakLabelError, WeakLabelWarning
from weaklabel.label_model import LabelModel
from weaklabel.labeling import labeling_function
from weaklabel.patterns import Patterns
from weaklabel.runs import apply, apply_files, read_metadata
from weaklabel.text import find_normalizer
from weaklabel.votes import MISSING, SESSION_COLUMNS, accept_if, next_in_session, vote

# PySpark 4.0 leaves it to Python to close the sockets by which it collects rows.
LEFT_OPEN = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")

FUNCTIONS = [
    built_in.session_position,
    built_in.asr_confidence,
    built_in.rapid_repetition,
    built_in.dwell,
    built_in.follow_up_action,
    built_in.rephrasing,
    built_in.rephrasing_edit_distance,
    built_in.rarity.with_parameters(common=0.01, enough=20),
    built_in.second_asr_agreement,
    built_in.second_asr_wer,
]
SESSION_FUNCTIONS = [function for function in FUNCTIONS if function.scope == "session"]
COLUMNS = [function.column for function in FUNCTIONS]

START = datetime(2026, 1, 1, tzinfo=UTC)
SCHEMA = {
    "query_id": pl.Int64,
    "session_id": pl.String,
    "timestamp": pl.Datetime("us", "UTC"),
    "transcript": pl.String,
    "second_transcript": pl.String,
    "confidence": pl.Float64,
    "action": pl.String,
    "dwell": pl.Float64,
}
TEXTS = [
    None,
    "",
    " ",
    "!?",
    "'",
    "play",
    "play news",
    "Play, news!",
    "PLAY  NEWS",
    "play news now",
    "display news",
    "don’t stop",
    "don't stop",
    "donʼt STOP",
    "ΟΔΟΣ",
    "οδος",
    "οδοσ",
    "ΟΔΟΣ ΜΟΥ",
    "İstanbul",
    "istanbul",
    "i̇stanbul",
    "ISTANBUL",
    "🎬 play",
    "🎬",
    "شغّل الأخبار",
    "الأخبار",
    "שלום עולם",
    "étoile",
    "e\u0301toile",
    "नमस्ते",
    "straße",
    "STRASSE",
    "a\u00a0b",
    "a\tb\n",
    "\u200bplay",
    "% _ \\ $1 .* play",
]
SECONDS = [0, 0, 0, 1, 5, 9, 10, 11, 30, 59, 60, 61, 600]
CONFIDENCES = [None, math.nan, -0.5, 0.0, 0.3, 0.5, 0.7, 0.9, 0.95, 1.0, 1.5, math.inf]
DWELLS = [None, math.nan, -1.0, 0.0, 4.999, 5.0, 30.0, 60.0, 1e9, math.inf, -math.inf]
ACTIONS = [None, "", "play", "select", "back", "cancel", "PLAY", "none"]


def hostile_log(rows: int, seed: int = 0) -> pl.DataFrame:
    """Ties in time, nulls everywhere, NaN, texts that engines could read in two ways."""
    draw = random.Random(seed)
    queries = [
        {
            "query_id": query,
            "session_id": draw.choice([None, "", *(f"s{n}" for n in range(rows // 4 + 1))]),
            "timestamp": draw.choice(
                [None] + 9 * [START + timedelta(seconds=draw.choice(SECONDS))]
            ),
            "transcript": draw.choice(TEXTS),
            "second_transcript": draw.choice(TEXTS),
            "confidence": draw.choice(CONFIDENCES),
            "action": draw.choice(ACTIONS),
            "dwell": draw.choice(DWELLS),
        }
        for query in draw.sample(range(10 * rows), rows)
    ]
    for one, other in pairwise(queries):  # a second ASR that often agrees
        if draw.random() < 0.5:
            other["second_transcript"] = other["transcript"]
        if draw.random() < 0.3:
            other["transcript"] = one["transcript"]
            other["session_id"] = one["session_id"]
    return pl.DataFrame(queries, schema=SCHEMA)


def simplified(text: str) -> str:
    """The normalization of the expressions, letter by letter."""
    lowered = text.lower().replace("ς", "σ").replace("i\u0307", "i")
    lowered = re.sub("[’ʼ]", "'", lowered)
    spaced = "".join(c if c == "'" or unicodedata.category(c)[0] in "LMN" else " " for c in lowered)
    return re.sub(" +", " ", spaced).strip(" ")


def distance(one: Any, other: Any) -> int:
    """Edit distance, by the textbook."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def reference(log: pl.DataFrame) -> dict[Any, list[int | None]]:
    """Votes of `FUNCTIONS` by query_id, from loops over the sessions."""
    rows = log.to_dicts()
    sessions: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["session_id"] is not None and row["timestamp"] is not None:
            sessions.setdefault(row["session_id"], []).append(row)
    following: dict[Any, dict[str, Any]] = {}
    last = set()
    for queries in sessions.values():
        queries.sort(key=lambda row: (row["timestamp"], row["query_id"]))
        following.update((one["query_id"], two) for one, two in pairwise(queries))
        last.add(queries[-1]["query_id"])
    counts = Counter(row["transcript"] for row in rows)
    return {
        row["query_id"]: votes_on(
            row,
            following.get(row["query_id"]),
            row["query_id"] in last,
            (counts[row["transcript"]], len(rows)),
        )
        for row in rows
    }


def votes_on(
    row: dict[str, Any], following: dict[str, Any] | None, last: bool, times: tuple[int, int]
) -> list[int | None]:
    """The votes on a row: None without a function's input, by the loop's own rules."""
    text, other = row["transcript"], row["second_transcript"]
    gap, after = timedelta.max, None
    if following is not None:
        gap, after = following["timestamp"] - row["timestamp"], following["transcript"]
    confidence, dwell = number(row["confidence"]), number(row["dwell"])
    placed = row["session_id"] is not None and row["timestamp"] is not None
    near = gap < timedelta(seconds=60)
    rephrased = edited = False
    if near and text is not None and after is not None:
        this, that = simplified(text), simplified(after)
        if this and that:
            rephrased = f" {this} " in f" {that} " or f" {that} " in f" {this} "
        this, that = find_normalizer("basic")(text), find_normalizer("basic")(after)
        if this and that:
            edited = 1 - distance(this, that) / max(len(this), len(that)) >= 0.75
    count, rows = times
    common = count > 1 and count >= 0.01 * rows
    both = text is not None and other is not None
    rate = 0.0
    if both:
        first, second = (find_normalizer("basic")(words).split() for words in (text, other))
        longest = max(len(first), len(second))
        rate = distance(first, second) / longest if longest else 0.0
    return [
        int(last) if placed else None,
        None if confidence is None else int(0.9 <= confidence <= 1) - int(confidence < 0.5),
        -int(gap < timedelta(seconds=10)) if placed else None,
        None if dwell is None else int(dwell >= 60) - int(dwell < 5),
        None
        if row["action"] is None
        else int(row["action"] in ("play", "select")) - int(row["action"] in ("back", "cancel")),
        -int(rephrased) if placed and text is not None else None,
        -int(edited) if placed and text is not None else None,
        None if text is None or not (common or rows >= 20) else int(common) - int(count <= 1),
        (1 if simplified(text) == simplified(other) else -1) if both else None,
        int(rate <= 0) - int(rate >= 0.5) if both else None,
    ]


def number(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


def by_query(votes: pl.DataFrame) -> dict[Any, list[int | None]]:
    assert votes.columns == ["query_id", *COLUMNS]
    assert set(votes.schema.values()) <= {pl.Int8, votes.schema["query_id"]}
    found = {row[0]: list(row[1:]) for row in votes.iter_rows()}
    assert len(found) == len(votes)
    return found


def assert_same(
    found: dict[Any, list[int | None]], wanted: dict[Any, list[int | None]], log: pl.DataFrame
) -> None:
    assert found.keys() == wanted.keys()
    for row in log.to_dicts():
        query = row["query_id"]
        named = dict(zip(COLUMNS, zip(found[query], wanted[query], strict=True), strict=True))
        assert found[query] == wanted[query], (
            f"{ ({name: pair for name, pair in named.items() if pair[0] != pair[1]}) } on {row}"
        )


def on_polars(log: pl.DataFrame, functions: Any = FUNCTIONS) -> pl.DataFrame:
    return apply(functions, log)


def on_lazy_polars(log: pl.DataFrame) -> pl.DataFrame:
    return apply(FUNCTIONS, log.lazy()).collect()


def on_streaming_polars(log: pl.DataFrame) -> pl.DataFrame:
    return apply(FUNCTIONS, log.lazy()).collect(engine="streaming")


def on_duckdb(log: pl.DataFrame, functions: Any = FUNCTIONS) -> pl.DataFrame:
    import duckdb

    with duckdb.connect() as connection:
        return apply(functions, connection.sql("FROM log")).pl()


FRAMES = [on_polars, on_lazy_polars, on_streaming_polars, on_duckdb]


@pytest.mark.parametrize("engine", FRAMES)
@pytest.mark.parametrize("rows", [0, 1, 30, 3000])
def test_frames_have_the_votes_of_a_plain_loop(
    engine: Callable[[pl.DataFrame], pl.DataFrame], rows: int
) -> None:
    log = hostile_log(rows)
    assert_same(by_query(engine(log)), reference(log), log)


@pytest.mark.parametrize("engine", ["polars", "duckdb"])
@pytest.mark.parametrize("form", ["parquet", "csv", "jsonl", "folder"])
def test_files_have_the_votes_of_a_plain_loop(engine: Any, form: str, tmp_path: Path) -> None:
    log = hostile_log(600, seed=1)
    if form in ("csv", "jsonl"):  # neither tells NaN and infinity from null as Parquet does
        log = log.with_columns(
            pl.when(pl.col(name).is_finite()).then(name) for name in ("confidence", "dwell")
        )
    path = written(log, form, tmp_path)
    out = tmp_path / "votes.parquet"
    apply_files(FUNCTIONS, path, out, engine=engine, progress=False)
    assert_same(by_query(pl.read_parquet(out)), reference(log), log)


def written(log: pl.DataFrame, form: str, folder: Path) -> Path:
    path = folder / f"queries.{form}"
    match form:
        case "parquet":
            log.write_parquet(path, row_group_size=100)
        case "csv":
            log.write_csv(path, datetime_format="%Y-%m-%dT%H:%M:%S%.f%:z")
        case "jsonl":
            times = pl.col("timestamp").dt.to_string("%Y-%m-%dT%H:%M:%S%.f%:z")
            log.with_columns(times).write_ndjson(path)
        case "folder":
            path = folder / "queries"
            path.mkdir()
            for index, part in enumerate(log.iter_slices(250)):
                part.write_parquet(path / f"{index}.parquet")
    return path


@st.composite
def logs(draw: st.DrawFn) -> pl.DataFrame:
    rows = draw(st.integers(0, 36))
    words = st.sampled_from(TEXTS) | st.text(
        st.sampled_from("aAzZ '’ʼ-,.!ςσΣİıIéÉßẞ०९Ωﬃ🎬\u0301\u0307\u200d\u00a0\u3000ا"), max_size=6
    )
    return pl.DataFrame(
        {
            "query_id": draw(st.permutations(range(rows))),
            "session_id": [draw(st.sampled_from([None, "a", "b"])) for _ in range(rows)],
            "timestamp": [
                draw(
                    st.none() | st.sampled_from(SECONDS).map(lambda s: START + timedelta(seconds=s))
                )
                for _ in range(rows)
            ],
            "transcript": [draw(words) for _ in range(rows)],
            "second_transcript": [draw(words) for _ in range(rows)],
            "confidence": [draw(st.sampled_from(CONFIDENCES)) for _ in range(rows)],
            "action": [draw(st.sampled_from(ACTIONS)) for _ in range(rows)],
            "dwell": [draw(st.sampled_from(DWELLS)) for _ in range(rows)],
        },
        schema=SCHEMA,
    )


# Few and large logs: an engine takes as long for one row as for many. Not made smaller, which would
# take longer than a test may: the first row that differs is named.
@settings(max_examples=20, phases=set(Phase) - {Phase.shrink})
@given(logs())
def test_polars_and_duckdb_vote_as_a_plain_loop_on_any_log(log: pl.DataFrame) -> None:
    wanted = reference(log)
    assert_same(by_query(on_polars(log)), wanted, log)
    assert_same(by_query(on_duckdb(log)), wanted, log)


@settings(max_examples=10)
@given(logs(), st.randoms())
def test_the_order_of_rows_and_functions_does_not_matter(log: pl.DataFrame, draw: Any) -> None:
    order = draw.sample(range(len(log)), len(log))
    functions = draw.sample(FUNCTIONS, len(FUNCTIONS))
    votes = apply(functions, log[order])
    assert votes.columns == ["query_id", *(function.column for function in functions)]
    assert votes["query_id"].to_list() == log[order]["query_id"].to_list()
    assert by_query(votes.select("query_id", *COLUMNS)) == by_query(on_polars(log))


@settings(max_examples=10)
@given(logs())
def test_a_vote_depends_on_its_own_session_only(log: pl.DataFrame) -> None:
    votes = apply(SESSION_FUNCTIONS, log)
    for session in ("a", "b", None):
        own = log.filter(pl.col("session_id").eq_missing(pl.lit(session)))
        alone = apply(SESSION_FUNCTIONS, own)
        assert alone.equals(votes.filter(pl.col("query_id").is_in(own["query_id"].implode())))


def test_spark_is_given_microseconds_for_nanoseconds_and_else_the_files(tmp_path: Path) -> None:
    log = hostile_log(20)
    path = written(log, "parquet", tmp_path)
    assert _readable(LogFiles.open(path)).parquet(tmp_path / "made.parquet") == (str(path),)
    finer = log.with_columns(pl.col("timestamp").dt.cast_time_unit("ns"))
    path = written(finer, "parquet", tmp_path)
    (made,) = _readable(LogFiles.open(path)).parquet(tmp_path / "made.parquet")
    assert pl.read_parquet(made).equals(log)
    assert pl.read_parquet(made).schema == log.schema


@pytest.mark.parametrize("rows", [20, 40])
def test_a_column_of_type_null_is_no_input_on_any_engine(rows: int, tmp_path: Path) -> None:
    log = hostile_log(40)
    lacking = log[:rows].with_columns(timestamp=pl.lit(None))
    (tmp_path / "log").mkdir()
    lacking.write_parquet(tmp_path / "log/0.parquet")
    log[rows:].write_parquet(tmp_path / "log/1.parquet")
    whole = pl.concat([lacking.cast({"timestamp": SCHEMA["timestamp"]}), log[rows:]])
    out = tmp_path / "v.parquet"
    apply_files(FUNCTIONS, tmp_path / "log", out, engine="duckdb", progress=False)
    assert_same(by_query(pl.read_parquet(out)), reference(whole), whole)
    # Spark takes one file's types for all of them.
    (made,) = LogFiles.open(tmp_path / "log").parquet(tmp_path / "made.parquet")
    assert pl.read_parquet_schema(made) == log.schema


@pytest.mark.parametrize("reference", [False, True])
def test_polars_keeps_the_order_of_a_log_that_a_function_looks_at_as_a_whole(
    reference: bool, tmp_path: Path
) -> None:
    log = pl.select(query_id=pl.int_range(200_000), transcript=pl.lit("play"))
    path, out = tmp_path / "log.parquet", tmp_path / "votes.parquet"
    log.write_parquet(path, row_group_size=20_000)
    other = path if reference else None
    apply_files([built_in.rarity], path, out, engine="polars", reference=other, progress=False)
    assert pl.read_parquet(out)["query_id"].is_sorted()


@pytest.fixture(scope="module")
def spark(require: Any) -> Iterator[Any]:
    """A session of this module, which `apply_files` joins."""
    require(shutil.which("java"), "no Java")
    from weaklabel.engines import spark as spark_engine

    session = spark_engine.started()
    yield session
    session.stop()


@pytest.mark.slow
@LEFT_OPEN
def test_spark_has_the_votes_of_a_plain_loop(spark: Any, tmp_path: Path) -> None:
    log = hostile_log(2000, seed=2)
    path = written(log, "parquet", tmp_path)
    wanted = reference(log)
    frame = apply(FUNCTIONS, spark.read.parquet(str(path)))
    frame.write.parquet(str(tmp_path / "frame"))
    found = pl.read_parquet(tmp_path / "frame" / "*.parquet")
    assert_same(by_query(found), wanted, log)

    finer = log.with_columns(pl.col("timestamp").dt.cast_time_unit("ns"))
    (tmp_path / "finer").mkdir()
    finer_path = written(finer, "parquet", tmp_path / "finer")
    apply_files(FUNCTIONS, finer_path, tmp_path / "v.parquet", engine="spark", progress=False)
    apply_files(FUNCTIONS, path, tmp_path / "votes", engine="spark", partitions=5, progress=False)
    assert_same(by_query(pl.read_parquet(tmp_path / "v.parquet")), wanted, log)
    assert_same(by_query(pl.read_parquet(tmp_path / "votes" / "*.parquet")), wanted, log)

    gone = tmp_path / "votes/part-00002-of-00005.parquet"
    before = pl.read_parquet(gone).sort("query_id")
    gone.unlink()
    summary = apply_files(
        FUNCTIONS, path, tmp_path / "votes", engine="spark", resume=True, progress=False
    )
    assert (summary.partitions, summary.resumed) == (5, 4)
    assert pl.read_parquet(gone).sort("query_id").equals(before)
    about = read_metadata(tmp_path / "votes")
    assert [entry["name"] for entry in about["functions"]] == [f.name for f in FUNCTIONS]
    assert about["engine"].startswith("spark ")


@pytest.mark.slow
@LEFT_OPEN
@pytest.mark.usefixtures("spark")
def test_a_broken_page_of_the_reference_ends_spark_s_run_with_an_error(tmp_path: Path) -> None:
    whole, broken = tmp_path / "log.parquet", tmp_path / "reference.parquet"
    pl.DataFrame({"query_id": ["a", "b"], "transcript": ["x", "y"]}).write_parquet(whole)
    content = whole.read_bytes()
    broken.write_bytes(content[:4] + b"\xff" * 16 + content[20:])
    out = tmp_path / "v.parquet"
    with pytest.raises(WeakLabelError, match="spark failed on"):
        apply_files([built_in.rarity], whole, out, engine="spark", reference=broken, progress=False)
    assert not out.exists()


@pytest.mark.slow
@LEFT_OPEN
def test_labels_in_spark_are_those_in_polars(spark: Any) -> None:
    rng = np.random.default_rng(9)
    truth = np.where(rng.random(3_200) < 0.8, 1, -1)[:, None]
    votes = np.where(rng.random((3_200, 9)) < 0.8, truth, -truth) * (rng.random((3_200, 9)) < 0.5)
    votes[rng.random(votes.shape) < 0.1] = MISSING
    votes = votes.astype(np.int8)
    names = [f"f{i}" for i in range(9)]
    families = {**dict.fromkeys(names[:2], "x"), **dict.fromkeys(names[2:6], "y")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WeakLabelWarning)
        patterns = Patterns.of(names, votes[200:], families=families)
        fitted = LabelModel(missing="evidence").fit(patterns)
    table = pl.DataFrame(votes[:200], schema=[f"lf:{name}" for name in names], orient="row")
    table = table.with_columns(pl.all().replace(MISSING, None))
    table.insert_column(0, pl.Series("query_id", range(200)))
    session = spark.newSession()
    session.conf.set("spark.sql.shuffle.partitions", "1")
    in_spark = session.createDataFrame(table.to_arrow())

    assert Patterns.count(in_spark) == Patterns.count(table)
    weights = fitted.label(in_spark).toArrow().to_pydict()
    assert weights["weight"] == pytest.approx(fitted.label(table)["weight"].to_list(), abs=1e-14)


@pytest.mark.slow
@LEFT_OPEN
def test_spark_names_the_queries_with_a_vote_that_is_none(spark: Any, tmp_path: Path) -> None:
    path = written(hostile_log(50), "parquet", tmp_path)

    @labeling_function(requires=["query_id"], name="too.high")
    def too_high() -> nw.Expr:
        return nw.col("query_id") * 0 + 257

    with pytest.raises(WeakLabelError, match=r"'too.high' cast 50 votes other than.*257 on query"):
        apply_files([too_high], path, tmp_path / "v.parquet", engine="spark", progress=False)
    assert not (tmp_path / "v.parquet").exists()


@pytest.mark.parametrize("engine", ["polars", "duckdb"])
@pytest.mark.parametrize("partitions", [2, 7])
def test_parts_together_have_the_votes_of_the_whole(
    engine: Any, partitions: int, tmp_path: Path
) -> None:
    log = hostile_log(500, seed=3)
    path = written(log, "parquet", tmp_path)
    summary = apply_files(
        FUNCTIONS, path, tmp_path / "votes", engine=engine, partitions=partitions, progress=False
    )
    parts = sorted((tmp_path / "votes").glob("part-*.parquet"))
    assert len(parts) == summary.partitions == partitions
    assert_same(by_query(pl.read_parquet(parts)), reference(log), log)
    sessions = [
        set(pl.read_parquet(part).join(log, on="query_id")["session_id"].drop_nulls())
        for part in parts
    ]
    assert sum(map(len, sessions)) == len(set.union(*sessions))


@labeling_function(requires=["rating"])
def at_most_one() -> nw.Expr:
    return accept_if(nw.col("rating") <= 1.0)


@labeling_function(requires=["rating"], nullable=["rating"])
def above() -> nw.Expr:
    return vote(accept=nw.col("rating") > 0.5, reject=nw.col("rating").is_null())


@labeling_function(requires=["rating", *SESSION_COLUMNS], nullable=["rating"])
def followed() -> nw.Expr:
    return accept_if(next_in_session("rating") >= 0)


@labeling_function(
    requires=["rating", *SESSION_COLUMNS],
    rowwise=True,
    inputs={"after": next_in_session("rating"), "twice": nw.col("rating") * 2},
)
def both(row: Mapping[str, Any]) -> int:
    assert row["twice"] == 2 * row["rating"]
    return 0 if row["after"] is None else 1 if row["after"] >= 0 else -1


@pytest.mark.parametrize(
    "engine", ["polars", "duckdb", pytest.param("spark", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("dtype", [pl.Float64, pl.Float32])
def test_nan_is_null_wherever_a_function_meets_it(
    engine: Any, dtype: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Polars writes statistics without NaN, and DuckDB takes comparisons for settled by them."""
    if engine == "spark":
        request.getfixturevalue("spark")
    ratings = [0.25, 0.75, math.nan, -0.0, math.inf, -math.inf, math.nan, 2.0]
    log = pl.DataFrame(
        {
            "query_id": range(8),
            "session_id": ["s"] * 8,
            "timestamp": [START + timedelta(seconds=second) for second in range(8)],
            "rating": pl.Series(ratings, dtype=dtype),
        },
    )
    functions = [at_most_one, above, followed, both]
    frames = [apply(functions, log)] if engine == "polars" else []
    for name in ("nan", "nan and null"):
        log.write_parquet(tmp_path / "q.parquet")
        out = tmp_path / f"{name}.parquet"
        apply_files(
            functions, tmp_path / "q.parquet", out, engine=engine, keep=["rating"], progress=False
        )
        frames.append(pl.read_parquet(out))
        assert frames[-1].sort("query_id")["rating"].is_nan().sum() in (1, 2)  # kept as it came
        log = log.with_columns(pl.when(pl.col("query_id") != 6).then("rating").alias("rating"))
    for votes in frames:
        rows = votes.sort("query_id").select(function.column for function in functions).rows()
        assert rows == [
            (1, 0, 1, 1),
            (1, 1, 0, 0),
            (None, -1, 1, None),
            (1, 0, 1, 1),
            (0, 1, 0, -1),
            (1, 0, 0, 0),
            (None, -1, 1, None),
            (0, 1, 0, 0),
        ]


@labeling_function(requires=["transcript"])
def numeric() -> nw.Expr:
    return accept_if(nw.col("transcript").cast(nw.Int64) > 0)


@pytest.mark.parametrize("engine", ["polars", "duckdb"])
def test_an_expression_that_fails_on_a_row_costs_no_other_function_its_votes(
    engine: Any, tmp_path: Path
) -> None:
    log = pl.DataFrame({"query_id": [1, 2, 3], "transcript": ["1", "2", "play"]})
    log.write_parquet(tmp_path / "q.parquet")
    functions = [numeric, built_in.rarity.with_parameters(enough=1)]

    def run(out: str, functions: list[Any] = functions, **options: Any) -> Any:
        given = (functions, tmp_path / "q.parquet", tmp_path / out)
        return apply_files(*given, engine=engine, progress=False, **options)

    summary = run("votes.parquet")
    votes = pl.read_parquet(tmp_path / "votes.parquet").sort("query_id")
    assert votes.rows() == [(1, None, -1), (2, None, -1), (3, None, -1)]
    assert [(error.name, error.total) for error in summary.errors] == [("numeric", 3)]
    assert "play" in str(summary.errors[0])
    for options in ({"on_error": "fail"}, {"functions": [numeric]}):
        with pytest.raises(WeakLabelError, match=r"'numeric' failed: .*play"):
            run("other.parquet", **options)
    assert not (tmp_path / "other.parquet").exists()


@pytest.mark.parametrize("engine", ["polars", "duckdb"])
@pytest.mark.parametrize("more", [False, True])
def test_parts_keep_each_row_of_a_log_whose_ids_are_not_unique(
    engine: Any, more: bool, tmp_path: Path
) -> None:
    log = pl.DataFrame(
        {
            "query_id": ["a", "a", None, None, "b", "c", "c", "d"],
            "session_id": ["s", "t", "s", "u", None, "v", "v", "w"],
            "transcript": ["play", "stop", "play", "play", "stop", "next", "", None],
        }
    )
    log.write_parquet(tmp_path / "q.parquet")
    functions = [built_in.rarity, built_in.second_asr_agreement.with_parameters(other="session_id")]
    reference = tmp_path / "q.parquet" if more else None
    rows = []
    for out, partitions in (("whole.parquet", None), ("parts", 2)):
        apply_files(
            functions,
            tmp_path / "q.parquet",
            tmp_path / out,
            engine=engine,
            partitions=partitions,
            keep=["session_id", "transcript"],
            reference=reference,
            progress=False,
        )
        found = pl.read_parquet(
            tmp_path / out if partitions is None else tmp_path / out / "*.parquet"
        )
        rows.append(sorted(found.rows(), key=repr))
    assert len(rows[0]) == len(log)
    assert rows[0] == rows[1]


@pytest.mark.parametrize("engine", [on_polars, on_duckdb])
@pytest.mark.parametrize("sessions", ["one", "each"])
def test_one_session_of_100000_queries_and_as_many_of_one(
    engine: Callable[..., pl.DataFrame], sessions: str
) -> None:
    rows = 100_000
    session = pl.lit("s") if sessions == "one" else pl.format("s{}", "query_id")
    log = pl.select(query_id=pl.int_range(rows)).with_columns(
        session_id=session,
        timestamp=pl.lit(START) + pl.duration(seconds=pl.col("query_id") * 7),
        transcript=pl.format("play {}", pl.col("query_id") // 2),
        second_transcript=pl.lit("play"),
        confidence=pl.lit(0.95),
        action=pl.lit("play"),
        dwell=pl.lit(1.0),
    )
    log = log.cast(SCHEMA)
    # Row-wise functions take a row after the other, however long its session is.
    expressions = [function for function in FUNCTIONS if not function.rowwise]
    votes = engine(log, expressions).sort("query_id")
    last = votes["lf:session_position"]
    if sessions == "each":
        assert last.sum() == rows
        assert votes["lf:rapid_repetition"].sum() == votes["lf:rephrasing"].sum() == 0
    else:
        assert last.to_list() == [0] * (rows - 1) + [1]
        assert votes["lf:rapid_repetition"].sum() == -(rows - 1)
        assert votes["lf:rephrasing"].to_list() == [-1, 0] * (rows // 2)


@pytest.mark.parametrize("engine", [on_polars, on_duckdb])
def test_a_transcript_of_a_megabyte_is_one_like_others(
    engine: Callable[[pl.DataFrame], pl.DataFrame],
) -> None:
    log = hostile_log(4).with_columns(
        session_id=pl.lit("s"),
        timestamp=pl.lit(START) + pl.duration(seconds=pl.int_range(pl.len())),
        query_id=pl.int_range(pl.len(), dtype=pl.Int64),
        transcript=pl.Series(["play", "Play " + "é, " * 250_000, "é", "next"]),
        second_transcript=pl.Series(["play", "play " + "É " * 250_000, None, "next"]),
    )
    functions = [built_in.rephrasing, built_in.second_asr_agreement]
    votes = engine(log).sort("query_id").select(function.column for function in functions)
    assert votes.rows() == [(-1, 1), (-1, 1), (0, None), (0, 1)]


@pytest.mark.parametrize("engine", ["polars", "duckdb"])
def test_single_precision_and_other_time_zones_vote_the_same(engine: Any, tmp_path: Path) -> None:
    @labeling_function(requires=["timestamp"])
    def at_night() -> nw.Expr:
        return accept_if(nw.col("timestamp").dt.hour() < 6)

    log = pl.DataFrame(
        {
            "query_id": [1, 2, 3],
            "confidence": pl.Series([0.9, 0.91, 0.5], dtype=pl.Float32),
            "timestamp": pl.Series([START, START + timedelta(hours=5), START + timedelta(hours=6)])
            .dt.convert_time_zone("Asia/Tokyo")
            .dt.cast_time_unit("ns"),
            "transcript": pl.Series(["a", "b", "a"], dtype=pl.Categorical),
        }
    )
    log.write_parquet(tmp_path / "q.parquet")
    functions = [built_in.asr_confidence, at_night, built_in.rarity.with_parameters(enough=1)]
    apply_files(
        functions,
        tmp_path / "q.parquet",
        tmp_path / "v.parquet",
        engine=engine,
        keep=["confidence", "timestamp"],
        progress=False,
    )
    votes = pl.read_parquet(tmp_path / "v.parquet").sort("query_id")
    # 0.9 in single precision is a little less than 0.9.
    assert votes.select(f.column for f in functions).rows() == [(0, 1, 1), (1, 1, -1), (0, 0, 1)]
    assert votes["confidence"].dtype == pl.Float32
    instants = [frame["timestamp"].dt.convert_time_zone("UTC") for frame in (votes, log)]
    assert instants[0].equals(instants[1])
