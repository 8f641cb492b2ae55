"""What `apply` and `apply_files` promise beside the votes: errors, order, resuming, whole files."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
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
from weaklabel.runs import apply, apply_files, read_metadata
from weaklabel.votes import accept_if, occurrences

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


def read(folder: Path) -> pl.DataFrame:
    return pl.read_parquet(folder / "*.parquet").sort("query_id")


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


# Files


def run(log: pl.DataFrame, folder: Path, out: str, **options: Any) -> Any:
    path = folder / "queries.parquet"
    if not path.exists():
        log.write_parquet(path)
    options = {"functions": [*FUNCTIONS, long_text], "progress": False} | options
    return apply_files(options.pop("functions"), path, folder / out, **options)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("out", ["votes.parquet", "votes"])
def test_files_of_votes_say_what_they_are(engine: Any, out: str, tmp_path: Path) -> None:
    identity = "somewhere:rarity@1.2#abc"
    log = plain_log()
    summary = run(
        log, tmp_path, out, engine=engine, metadata={"identities": {"rarity": identity}, "who": "ß"}
    )
    about = read_metadata(tmp_path / out)
    assert [entry["name"] for entry in about["functions"]] == [
        "session_position",
        "rarity",
        "second_asr_agreement",
        "long_text",
    ]
    rarity, long = about["functions"][1], about["functions"][3]
    assert rarity["identity"] == identity
    assert rarity["parameters"] == {"rare": 1, "common": 20}
    assert long["identity"] == f"local:long_text@0#{long_text.source_hash}"
    assert (long["rowwise"], long["family"]) == (True, "text")
    assert about["who"] == "ß"
    assert about["engine"].startswith(f"{engine} ")
    assert about["queries"]["files"] == 1
    assert summary.engine == engine
    votes = pl.read_parquet(
        tmp_path / out if out.endswith(".parquet") else tmp_path / out / "*.parquet"
    )
    for tally in summary.functions:
        counts = [(votes[f"lf:{tally.name}"] == vote).sum() for vote in (1, 0, -1)]
        assert [tally.accept, tally.abstain, tally.reject] == counts
    assert summary.rows == len(votes) == len(log)


def test_auto_takes_an_engine_that_is_there_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(plain_log(), tmp_path, "a.parquet").engine == "polars"
    limited = run(plain_log(), tmp_path, "b.parquet", memory_limit="1GB")
    assert (limited.engine, limited.reason) == ("duckdb", "it keeps to a memory limit")
    with monkeypatch.context() as patch:
        patch.setattr("weaklabel.engines.runs.POLARS_GROWTH", 10**12)
        large = run(plain_log(), tmp_path, "c.parquet")
        assert large.engine == "duckdb"
        assert "spills to disk" in large.reason
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    summary = run(plain_log(), tmp_path, "d.parquet")
    assert (summary.engine, summary.reason) == ("polars", "DuckDB is not installed")


def test_a_missing_engine_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for engine in ("duckdb", "spark"):
        monkeypatch.setitem(sys.modules, {"spark": "pyspark"}.get(engine, engine), None)
        with pytest.raises(ImportError, match=rf'pip install "weaklabel\[{engine}\]"'):
            run(plain_log(), tmp_path, "v.parquet", engine=engine)
    assert [path.name for path in tmp_path.iterdir()] == ["queries.parquet"]


@pytest.mark.parametrize("engine", ENGINES)
def test_log_wide_functions_see_the_whole_log_in_every_part(engine: Any, tmp_path: Path) -> None:
    @labeling_function(
        requires=["transcript"],
        rowwise=True,
        scope="log",
        inputs={"times": occurrences("transcript")},
    )
    def often(row: Mapping[str, Any]) -> int:
        return 1 if row["times"] > 3 else -1

    functions = [often, built_in.rarity.with_parameters(common=4), long_text]
    run(plain_log(), tmp_path, "whole.parquet", engine=engine, functions=functions)
    run(plain_log(), tmp_path, "parts", engine=engine, functions=functions, partitions=7)
    whole = pl.read_parquet(tmp_path / "whole.parquet").sort("query_id")
    parts = read(tmp_path / "parts")
    assert parts.equals(whole)
    assert set(whole["lf:often"]) == {-1, 1}


def test_resume_does_the_missing_parts_alone(tmp_path: Path) -> None:
    log, out = plain_log(), tmp_path / "votes"
    run(log, tmp_path, "votes", partitions=5)
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*")}
    whole = read(out)
    gone = out / "part-00003-of-00005.parquet"
    gone.unlink()
    with pytest.raises(WeakLabelError, match="lacks 1 of 5 parts"):
        read_metadata(out)
    summary = run(log, tmp_path, "votes", resume=True)
    assert (summary.partitions, summary.resumed, summary.rows) == (5, 4, len(log))
    after = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*")}
    assert {name for name in before if before[name] != after[name]} == {gone.name}
    assert read(out).equals(whole)
    assert run(log, tmp_path, "votes", resume=True).resumed == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keep": ["transcript"]}, "columns to keep"),
        ({"partitions": 4}, "number of partitions: 5 then, 4 now"),
        ({"functions": [*FUNCTIONS, long_text.with_parameters(letters=9)]}, "the functions"),
        ({"functions": FUNCTIONS}, "the functions"),
        ({"engine": "polars"}, "the engine"),
        ({"touch": True}, "the log's files"),
    ],
)
def test_resume_refuses_other_settings(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    run(plain_log(), tmp_path, "votes", partitions=5, engine="duckdb")
    (tmp_path / "votes/part-00000-of-00005.parquet").unlink()
    if change.pop("touch", False):
        plain_log(41).write_parquet(tmp_path / "queries.parquet")
    with pytest.raises(WeakLabelError, match=f"cannot be resumed.*{message}"):
        run(plain_log(), tmp_path, "votes", resume=True, **({"engine": "duckdb"} | change))


def test_what_is_there_is_not_overwritten_by_a_folder(tmp_path: Path) -> None:
    run(plain_log(), tmp_path, "votes")
    with pytest.raises(FileExistsError, match="resume"):
        run(plain_log(), tmp_path, "votes")
    other = tmp_path / "other"
    other.mkdir()
    (other / "letter.txt").write_text("dear")
    for resume in (False, True):
        with pytest.raises((FileExistsError, WeakLabelError), match="other"):
            run(plain_log(), tmp_path, "other", resume=resume)
    assert [path.name for path in other.iterdir()] == ["letter.txt"]
    with pytest.raises(WeakLabelError, match="is one file"):
        run(plain_log(), tmp_path, "v.parquet", partitions=3)
    with pytest.raises(FileNotFoundError, match="create it first"):
        run(plain_log(), tmp_path, "nowhere/votes")


def test_a_run_that_fails_leaves_nothing_and_may_be_tried_again(tmp_path: Path) -> None:
    with pytest.raises(WeakLabelError, match="257"):
        run(plain_log(), tmp_path, "votes", functions=[voting(nw.lit(257))], partitions=3)
    assert [path.name for path in tmp_path.iterdir()] == ["queries.parquet"]
    assert run(plain_log(), tmp_path, "votes", partitions=3).rows == 40


# Interruptions, broken inputs, full disks: in processes of their own

SLOW = """
    import sys, time
    from pathlib import Path
    from weaklabel.runs import apply_files
    from weaklabel.labeling import labeling_function
    from weaklabel import functions as built_in

    @labeling_function(requires=["transcript"], rowwise=True)
    def slow(row, pause=0.0):
        time.sleep(pause)
        return 1 if row["transcript"] > "play 5" else None

    folder, engine, pause, resume = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]), sys.argv[4]
    # The pause is no parameter here: it would be another run.
    time.sleep, pause_for = (lambda _: pause_for(pause)), time.sleep
    summary = apply_files(
        [slow, built_in.rarity], folder / "queries.parquet", folder / sys.argv[5], engine=engine,
        partitions=8, resume=resume == "resume", progress=False,
    )
    print(summary.resumed)
"""


def child(script: Path, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "POLARS_MAX_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(script), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **options,
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_a_killed_run_leaves_whole_parts_only_and_can_be_resumed(
    engine: Any, tmp_path: Path
) -> None:
    plain_log(2000).write_parquet(tmp_path / "queries.parquet")
    script = tmp_path / "slow.py"
    script.write_text(textwrap.dedent(SLOW))
    with child(script, tmp_path, engine, 0.001, "new", "votes") as process:
        until = time.monotonic() + 120
        while not list((tmp_path / "votes").glob("part-0000[2-9]*")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < until
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    done = sorted((tmp_path / "votes").glob("*.parquet"))
    assert 0 < len(done) < 8
    for part in done:
        assert pl.read_parquet(part).columns == ["query_id", "lf:slow", "lf:rarity"]
    outputs = []
    for resume, out in (("resume", "votes"), ("new", "again")):
        with child(script, tmp_path, engine, 0, resume, out) as process:
            output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        outputs.append(int(output))
    assert outputs == [len(done), 0]
    resumed, whole = (tmp_path / name for name in ("votes", "again"))
    assert sorted(p.name for p in resumed.iterdir()) == sorted(p.name for p in whole.iterdir())
    for part in whole.glob("part-*"):
        rows = [pl.read_parquet(folder / part.name).sort("query_id") for folder in (resumed, whole)]
        assert rows[0].equals(rows[1])


FULL = """
    import resource, signal, sys
    from pathlib import Path
    from weaklabel.runs import apply_files
    from weaklabel import functions as built_in

    folder, engine, out = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    try:
        apply_files([built_in.rarity], folder / "queries.parquet", folder / out, engine=engine,
                    keep=["transcript"], progress=False)
    except OSError as error:
        print("OSError", error)
"""


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("out", ["votes.parquet", "votes"])
def test_a_full_disk_leaves_what_was_there(engine: Any, out: str, tmp_path: Path) -> None:
    log = pl.select(query_id=pl.int_range(100_000)).with_columns(
        transcript=pl.format("{}", pl.col("query_id").hash())
    )
    log.write_parquet(tmp_path / "queries.parquet")
    if out.endswith(".parquet"):
        (tmp_path / out).write_text("before")
    before = sorted(path.name for path in tmp_path.iterdir())
    script = tmp_path / "full.py"
    script.write_text(textwrap.dedent(FULL))
    with child(script, tmp_path, engine, out) as process:
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "the votes could not be written" in output, output + errors
    script.unlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    if out.endswith(".parquet"):
        assert (tmp_path / out).read_text() == "before"


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("fault", ["footer", "page", "empty", "missing", "suffix"])
def test_a_log_that_cannot_be_read_is_named(engine: Any, fault: str, tmp_path: Path) -> None:
    path = tmp_path / "queries.parquet"
    plain_log(5000).write_parquet(path, statistics=False)
    whole = path.read_bytes()
    match fault:
        case "footer":
            path.write_bytes(whole[:-20])
        case "page":
            path.write_bytes(b"PAR1" + b"\xff" * 30_000 + whole[30_004:])
        case "empty":
            path.write_bytes(b"")
        case "missing":
            path.unlink()
        case "suffix":
            path = path.rename(tmp_path / "queries.xls")
    with pytest.raises((WeakLabelError, FileNotFoundError)) as caught:
        apply_files(FUNCTIONS, path, tmp_path / "v.parquet", engine=engine, progress=False)
    assert type(caught.value) is (FileNotFoundError if fault == "missing" else WeakLabelError)
    assert "queries" in str(caught.value)
    assert not list(tmp_path.glob("*v.parquet*"))
    with pytest.raises((WeakLabelError, FileNotFoundError)):
        read_metadata(path if fault != "page" else tmp_path / "nothing")


def test_the_manifest_is_plain_json(tmp_path: Path) -> None:
    run(plain_log(), tmp_path, "votes", partitions=2)
    text = (tmp_path / "votes/_weaklabel.json").read_text()
    assert json.loads(text)["partitions"] == 2
    (tmp_path / "votes/_weaklabel.json").write_text(text[:40])
    with pytest.raises(WeakLabelError, match="no manifest of votes"):
        run(plain_log(), tmp_path, "votes", resume=True)
