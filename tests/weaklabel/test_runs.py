"""Votes in files: what they say of themselves, resuming, errors of rows, locks, interruptions."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import narwhals.stable.v2 as nw
import polars as pl
import pytest

from weaklabel import WeakLabelError, apply, labeling_function
from weaklabel import functions as built_in
from weaklabel.files import keep_apart, written_beside
from weaklabel.labeling import Identity, LabelingFunction
from weaklabel.labels import count_files
from weaklabel.runs import apply_files, read_metadata
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
            "second_transcript": [
                None if query % 5 == 0 else f"play {query % 7}" for query in range(rows)
            ],
        },
        schema_overrides={"timestamp": pl.Datetime("us", "UTC")},
    )


@labeling_function(requires=["transcript"], rowwise=True, family="text")
def long_text(row: Mapping[str, Any], letters: int = 6) -> int | None:
    """Accept long transcripts."""
    return 1 if len(row["transcript"]) > letters else None


def voting(expression: Any) -> LabelingFunction:
    @labeling_function(name="strange", requires=["transcript"])
    def function() -> nw.Expr:
        return expression

    return function


def read(folder: Path) -> pl.DataFrame:
    return pl.read_parquet(folder / "*.parquet").sort("query_id")


def run(log: pl.DataFrame, folder: Path, out: str, **options: Any) -> Any:
    path = folder / "queries.parquet"
    if not path.exists():
        log.write_parquet(path)
    options = {"functions": [*FUNCTIONS, long_text], "progress": False} | options
    return apply_files(options.pop("functions"), path, folder / out, **options)


# What votes say of themselves


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("out", ["votes.parquet", "votes"])
def test_files_of_votes_say_what_they_are(engine: Any, out: str, tmp_path: Path) -> None:
    log = plain_log()
    given = Identity("rarity", "somewhere", "1.2", "abc", {"rare": 1})
    summary = run(log, tmp_path, out, engine=engine, identities={"rarity": given})
    about = read_metadata(tmp_path / out)
    assert about["votes"] == 2
    assert about["functions"] == [
        {
            **asdict(given if function.name == "rarity" else function.identity()),
            "family": function.family,
            "rowwise": function is long_text,
            "scope": function.scope,
            "log_rows": 40 if function.name == "rarity" else None,
        }
        for function in [*FUNCTIONS, long_text]
    ]
    assert about["engine"].startswith(f"{engine} ")
    assert about["queries"]["files"] == 1
    assert "errors" not in about
    assert summary.engine == engine
    votes = pl.read_parquet(
        tmp_path / out if out.endswith(".parquet") else tmp_path / out / "*.parquet"
    )
    assert summary.rows == len(votes) == len(log)
    for tally in summary.functions:
        column = votes[f"lf:{tally.name}"]
        counts = [(column == vote).sum() for vote in (1, 0, -1)]
        assert [tally.accept, tally.abstain, tally.reject] == counts
        assert tally.missing == column.null_count()
        assert tally.coverage == pytest.approx((counts[0] + counts[2]) / sum(counts))
    assert [tally.missing for tally in summary.functions] == [5, 0, 8, 0]


def test_votes_of_another_format_are_refused_with_what_to_do(tmp_path: Path) -> None:
    run(plain_log(), tmp_path, "votes.parquet")
    about = read_metadata(tmp_path / "votes.parquet")
    votes = pl.read_parquet(tmp_path / "votes.parquet")
    for path, number in (("old.parquet", None), ("new.parquet", 3)):
        del about["votes"]
        about |= {} if number is None else {"votes": number}
        votes.write_parquet(tmp_path / path, metadata={"weaklabel": json.dumps(about)})
        for reading in (read_metadata, lambda path: count_files([path])):
            with pytest.raises(
                WeakLabelError, match=rf"{path} holds votes of format {number or 1}.*apply the func"
            ):
                reading(tmp_path / path)
        about["votes"] = 2
    votes.write_parquet(tmp_path / "plain.parquet")
    assert read_metadata(tmp_path / "plain.parquet") == {}
    assert count_files([tmp_path / "plain.parquet"]).rows == 40


def test_auto_takes_an_engine_that_is_there_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(plain_log(), tmp_path, "a.parquet").engine == "polars"
    limited = run(plain_log(), tmp_path, "b.parquet", memory_limit="1GB")
    assert (limited.engine, limited.reason) == ("duckdb", "it keeps to a memory limit")
    with monkeypatch.context() as patch:
        patch.setattr("weaklabel.runs.POLARS_GROWTH", 10**12)
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

    functions = [often, built_in.rarity.with_parameters(enough=0), long_text]
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
    with pytest.raises(WeakLabelError, match="lacks votes in 1 of 5 parts"):
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
        ({"keep": ["transcript"]}, r"the columns kept: \[\] then, \['transcript'\] now"),
        ({"partitions": 4}, "the number of partitions: 5 then, 4 now"),
        ({"functions": FUNCTIONS}, "function 'long_text' was applied then and is not now"),
        ({"engine": "polars"}, "the engine: duckdb [^;]* then, polars [^;]* now"),
        ({"touch": True}, r"the query log's files .*queries.parquet', \d+, \d+\] then, .* now"),
        (
            {"reference": "queries.parquet"},
            "the reference log's files .* nothing else then",
        ),
    ],
)
def test_resume_refuses_another_log_or_other_settings_by_name(
    change: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(plain_log(), tmp_path, "votes", partitions=5, engine="duckdb")
    (tmp_path / "votes/part-00000-of-00005.parquet").unlink()
    if change.get("touch"):
        plain_log(41).write_parquet(tmp_path / "queries.parquet")
    options = {"engine": "duckdb"} | {k: v for k, v in change.items() if k != "touch"}
    with pytest.raises(WeakLabelError, match=f"cannot be resumed: {message}"):
        run(plain_log(), tmp_path, "votes", resume=True, **options)


def counting(calls: list[Any], name: str = "counted", letters: int = 6) -> LabelingFunction:
    """A row-wise function that notes the queries it is called on."""

    @labeling_function(requires=["transcript"], rowwise=True, name=name)
    def function(row: Mapping[str, Any]) -> int:
        calls.append(row["query_id"])
        return 1 if len(row["transcript"]) > letters else -1

    return function


@pytest.mark.parametrize("engine", ENGINES)
def test_resume_computes_changed_and_new_functions_alone(engine: Any, tmp_path: Path) -> None:
    log, out, calls = plain_log(), tmp_path / "votes", []
    first = [built_in.rarity, counting(calls), long_text]
    run(log, tmp_path, "votes", partitions=3, engine=engine, functions=first, keep=["transcript"])
    assert len(calls) == 40
    gone = out / "part-00001-of-00003.parquet"
    in_gone = set(pl.read_parquet(gone)["query_id"])
    gone.unlink()
    calls.clear()
    changed = [
        built_in.session_position,
        long_text.with_parameters(letters=5),
        built_in.rarity,
        counting(calls),
    ]
    options = {"engine": engine, "functions": changed, "keep": ["transcript"]}
    summary = run(log, tmp_path, "votes", resume=True, **options)
    assert set(calls) == in_gone
    assert (summary.resumed, summary.redone) == (0, ("long_text", "session_position"))
    assert read(out).columns == [
        *("query_id", "transcript", "lf:rarity", "lf:counted", "lf:long_text"),
        "lf:session_position",
    ]
    run(log, tmp_path, "whole.parquet", **options)
    whole = pl.read_parquet(tmp_path / "whole.parquet").sort("query_id")
    assert read(out).equals(whole.select(read(out).columns))
    about = {entry["name"]: entry for entry in read_metadata(out)["functions"]}
    assert about["long_text"]["parameters"] == {"letters": 5}
    assert {t.name: t.accept for t in summary.functions} == {
        name: (whole[f"lf:{name}"] == 1).sum() for name in about
    }


def test_another_source_is_computed_again_and_another_version_is_not(tmp_path: Path) -> None:
    calls: list[Any] = []
    function = counting(calls)
    known = function.identity("plugin", "1.0")
    options = {"functions": [function], "partitions": 2}
    run(plain_log(), tmp_path, "votes", identities={"counted": known}, **options)
    newer = function.identity("plugin", "2.0")
    again = run(
        plain_log(), tmp_path, "votes", resume=True, identities={"counted": newer}, **options
    )
    assert (len(calls), again.resumed) == (40, 2)
    other = run(plain_log(), tmp_path, "votes", resume=True, functions=[counting(calls, letters=5)])
    assert (len(calls), other.resumed, other.redone) == (80, 0, ("counted",))


def test_queries_of_one_id_are_computed_again_as_a_whole(tmp_path: Path) -> None:
    log = plain_log().with_columns(query_id=pl.lit("q"), session_id=pl.int_range(40) // 3)
    run(log, tmp_path, "votes", partitions=2, functions=[built_in.session_position])
    both = [built_in.session_position, long_text]
    run(log, tmp_path, "votes", resume=True, functions=both)
    assert len(read(tmp_path / "votes")) == 40
    run(log, tmp_path, "whole", partitions=1, functions=both)
    assert (
        read(tmp_path / "votes").group_by(pl.all()).len().sort(pl.all()).rows()
        == read(tmp_path / "whole").group_by(pl.all()).len().sort(pl.all()).rows()
    )


@pytest.mark.parametrize("given", ["votes", "votes/*.parquet", "vot*/*0-of-00003.parquet"])
def test_an_unfinished_folder_is_not_read(given: str, tmp_path: Path) -> None:
    log = plain_log()
    run(log, tmp_path, "votes", partitions=3)
    assert read_metadata(tmp_path / given)["votes"] == 2
    (tmp_path / "votes/part-00002-of-00003.parquet").unlink()
    with pytest.raises(WeakLabelError, match=r"lacks votes in 1 of 3 parts.*--resume"):
        read_metadata(tmp_path / given)
    with pytest.raises(WeakLabelError, match="lacks votes in 1 of 3 parts"):
        count_files([tmp_path / given])


# Rows on which a function raises


def raising(on: tuple[str, ...], name: str = "fragile") -> LabelingFunction:
    @labeling_function(requires=["transcript"], rowwise=True, name=name)
    def function(row: Mapping[str, Any]) -> int:
        if row["query_id"] in on:
            raise ValueError(f"no {row['transcript']}")
        return -1

    return function


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("out", ["votes.parquet", "votes"])
def test_a_row_that_raises_misses_one_vote_and_is_on_record(
    engine: Any, out: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = tuple(f"q{query:06d}" for query in range(3, 33, 3))
    options = {} if out.endswith(".parquet") else {"partitions": 3}
    functions = [raising(bad), long_text]
    summary = run(plain_log(), tmp_path, out, engine=engine, functions=functions, **options)
    votes = pl.read_parquet(
        tmp_path / out if out.endswith(".parquet") else tmp_path / out / "*.parquet"
    )
    assert set(votes.filter(pl.col("lf:fragile").is_null())["query_id"]) == set(bad)
    assert votes["lf:long_text"].null_count() == 0
    assert (summary.functions[0].missing, summary.functions[0].reject) == (10, 30)
    (errors,) = summary.errors
    (recorded,) = read_metadata(tmp_path / out)["errors"]
    assert errors.name == recorded["name"] == "fragile"
    assert errors.total == recorded["total"] == 10
    assert errors.first[0] == recorded["first"][0] == ("q000003", "ValueError('no play 3')")
    assert [query for query, _ in recorded["first"]] == list(bad[:5])
    assert "in function" in recorded["traceback"]
    assert "ValueError: no play" in recorded["traceback"]
    assert "'fragile' raised on 10 rows, whose votes are missing" in caplog.text


def test_errors_stay_on_record_beside_functions_that_are_computed_again(tmp_path: Path) -> None:
    functions = [raising(("q000003",)), raising(("q000004",), "other")]
    run(plain_log(), tmp_path, "votes", partitions=2, functions=functions)
    mended = [functions[0], raising((), "other")]
    summary = run(plain_log(), tmp_path, "votes", resume=True, functions=mended)
    assert [(error.name, error.total) for error in summary.errors] == [("fragile", 1)]
    assert [entry["name"] for entry in read_metadata(tmp_path / "votes")["errors"]] == ["fragile"]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("fault", ["raises", "casts no vote", "row casts no vote"])
def test_a_run_that_stops_keeps_the_work_of_other_functions(
    engine: Any, fault: str, tmp_path: Path
) -> None:
    calls: list[Any] = []
    match fault:
        case "raises":
            broken, mended = raising(("q000003",)), raising(())
        case "casts no vote":
            broken, mended = voting(nw.lit(257)), voting(nw.lit(1))
        case _:
            broken, mended = row_voting(2), row_voting(1)
    options = {"partitions": 1, "engine": engine, "on_error": "fail"}
    with pytest.raises(WeakLabelError, match=r"'q000003'|257|cast 40 votes.*\(--resume\)"):
        run(plain_log(), tmp_path, "votes", functions=[broken, counting(calls)], **options)
    with pytest.raises(WeakLabelError, match="lacks votes in 1 of 1 parts"):
        read_metadata(tmp_path / "votes")
    functions = [mended, counting(calls)]
    summary = run(plain_log(), tmp_path, "votes", resume=True, functions=functions, **options)
    assert len(calls) == 40
    assert summary.redone == (mended.name,)
    assert read(tmp_path / "votes").columns == ["query_id", mended.column, "lf:counted"]
    assert read(tmp_path / "votes")[mended.column].null_count() == 0


def test_a_single_file_is_not_written_where_a_row_is_to_stop_the_run(tmp_path: Path) -> None:
    with pytest.raises(WeakLabelError, match=r"'fragile' raised ValueError.*'q000003'"):
        run(
            plain_log(),
            tmp_path,
            "votes.parquet",
            functions=[raising(("q000003",)), long_text],
            on_error="fail",
        )
    assert [path.name for path in tmp_path.iterdir()] == ["queries.parquet"]


def row_voting(vote: int) -> LabelingFunction:
    @labeling_function(rowwise=True, name="strange")
    def function(row: Mapping[str, Any]) -> int:
        return vote

    return function


# Functions that look at the whole log


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("partitions", [1, 3])
def test_a_reference_lets_a_days_log_mean_the_same_as_a_months(
    engine: Any, partitions: int, tmp_path: Path
) -> None:
    month = plain_log(200)
    day = month.tail(30)
    month.write_csv(tmp_path / "month.csv")

    @labeling_function(requires=["transcript"], scope="log")
    def common_text() -> nw.Expr:
        return accept_if(occurrences("transcript") > 10)

    functions = [common_text, long_text]
    wanted = apply(functions, month).tail(30)
    day.write_parquet(tmp_path / "queries.parquet")
    options = {"functions": functions, "engine": engine, "partitions": partitions}
    run(day, tmp_path, "votes", reference=tmp_path / "month.csv", **options)
    assert read(tmp_path / "votes").equals(wanted)
    about = read_metadata(tmp_path / "votes")
    assert about["functions"][0]["log_rows"] == 200
    assert about["reference"] == str(tmp_path / "month.csv")
    assert apply(functions, day, reference=month).equals(wanted)
    assert not apply(functions, day).equals(wanted)


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
    from weaklabel import functions as built_in, labeling_function
    from weaklabel.files import terminated
    from weaklabel.runs import apply_files

    @labeling_function(requires=["transcript"], rowwise=True)
    def slow(row, pause=0.0):
        time.sleep(pause)
        return 1 if row["transcript"] > "play 5" else None

    folder, engine, pause = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    # The pause is no parameter here: it would be another run.
    begun = folder / "begun"
    time.sleep, pause_for = (lambda _: begun.touch() or pause_for(pause)), time.sleep
    for resume, name in zip(sys.argv[4::2], sys.argv[5::2], strict=True):
        out = folder / name
        with terminated(grace=0.3):
            summary = apply_files(
                [slow, built_in.rarity], folder / "queries.parquet", out, engine=engine,
                partitions=None if out.suffix else 8, resume=resume == "resume", progress=False,
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
    with child(script, tmp_path, engine, 0, "resume", "votes", "new", "again") as process:
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert [int(resumed) for resumed in output.split()] == [len(done), 0]
    resumed, whole = (tmp_path / name for name in ("votes", "again"))
    assert sorted(p.name for p in resumed.iterdir()) == sorted(p.name for p in whole.iterdir())
    for part in whole.glob("part-*"):
        rows = [pl.read_parquet(folder / part.name).sort("query_id") for folder in (resumed, whole)]
        assert rows[0].equals(rows[1])


@contextmanager
def running(folder: Path, engine: str, out: str) -> Iterator[subprocess.Popen[str]]:
    """A run in a process of its own, from when it is at work; ended at the end."""
    plain_log(2000).write_parquet(folder / "queries.parquet")
    (folder / "slow.py").write_text(textwrap.dedent(SLOW))
    with child(folder / "slow.py", folder, engine, 0.1, "new", out) as process:
        until = time.monotonic() + 120
        while not (folder / "begun").exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < until
            time.sleep(0.01)
        yield process
        process.kill()


@pytest.mark.parametrize("out", ["votes", "votes.parquet"])
def test_a_second_run_on_one_output_is_refused_while_the_first_lives(
    out: str, tmp_path: Path
) -> None:
    with running(tmp_path, "polars", out) as process:
        for resume in {False, out == "votes"}:
            with pytest.raises(WeakLabelError, match=rf"by another process \({process.pid}\)"):
                run(plain_log(), tmp_path, out, resume=resume)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    if out == "votes":  # no longer held, but by other functions
        with pytest.raises(WeakLabelError, match="'slow' was applied then"):
            run(plain_log(), tmp_path, out, resume=True)
    else:
        assert run(plain_log(), tmp_path, out).rows == 2000
    assert not list(tmp_path.rglob(".*"))  # what the killed process left behind is gone


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("out", ["votes", "votes.parquet"])
def test_a_terminated_run_leaves_no_temporary_files(engine: Any, out: str, tmp_path: Path) -> None:
    with running(tmp_path, engine, out) as process:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)  # the run itself would take 200 s
        assert process.returncode == 143
    assert not list(tmp_path.rglob(".*"))
    assert not (tmp_path / "votes.parquet").exists()


def test_an_output_is_held_by_one_process_and_given_up_with_it(tmp_path: Path) -> None:
    with written_beside(tmp_path / "out.txt") as beside:
        beside.write_text("mine")
        with (
            pytest.raises(WeakLabelError, match="another process"),
            written_beside(tmp_path / "out.txt"),
        ):
            pass
        with written_beside(tmp_path / "other.txt") as other:
            other.write_text("other")
    with written_beside(tmp_path / "out.txt") as beside:
        beside.write_text("again")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "out.txt": "again",
        "other.txt": "other",
    }


@pytest.mark.skipif(sys.platform == "win32", reason="has no such files")
@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
def test_what_is_no_file_is_no_output_and_stays(kind: str, folder: bool, tmp_path: Path) -> None:
    target = tmp_path / "out.txt"
    kinds = {"pipe": stat.S_IFIFO, "socket": stat.S_IFSOCK, "device": stat.S_IFCHR}
    try:
        os.mknod(target, kinds[kind] | 0o600, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root makes these")
    (tmp_path / "link.txt").symlink_to(target)
    before = target.lstat()
    for path in (target, tmp_path / "link.txt"):
        with pytest.raises(WeakLabelError, match=rf"{path.name} is a {kind}, expected a file"):
            keep_apart([path], [])
        with (
            pytest.raises(WeakLabelError, match=f"is a {kind}, expected a file"),
            written_beside(path, folder=folder),
        ):
            pass
    assert target.lstat() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.txt", "out.txt"]


def test_a_link_is_written_through_to_its_file(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    for name in ("old.txt", "new.txt"):  # the second one is there only as a link
        link = tmp_path / f"link-{name}"
        link.symlink_to(Path("kept", name))
    (tmp_path / "kept" / "old.txt").write_text("before")
    for name in ("old.txt", "new.txt"):
        link = tmp_path / f"link-{name}"
        with written_beside(link) as beside:
            assert beside.parent.parent == tmp_path / "kept"
            beside.write_text("after")
        assert link.is_symlink()
        assert (tmp_path / "kept" / name).read_text() == "after"
    assert len(list(tmp_path.rglob("*"))) == 5


@pytest.mark.parametrize("path", ["afile/x", "afile/deeper/x"])
def test_a_file_in_the_place_of_a_folder_is_named(path: str, tmp_path: Path) -> None:
    (tmp_path / "afile").write_text("x")
    with (
        pytest.raises(NotADirectoryError, match="afile is a file, expected a folder"),
        written_beside(tmp_path / path),
    ):
        pass


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
