"""Broken, odd and enormous files: a right answer or an error that names the place; nothing lost."""

from __future__ import annotations

import bz2
import csv
import functools
import gzip
import http.server
import io
import json
import lzma
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from weaklabel import queries, tables
from weaklabel.cli import main
from weaklabel.errors import WeakLabelError

HEAD = "query_id,transcript\n"


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[str, str | bytes], Path]:
    def save(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return save


Saved = Callable[[str, str | bytes], Path]


def _parquet(rows: int = 3) -> bytes:
    buffer = io.BytesIO()
    pl.select(pl.int_range(rows).alias("query_id"), transcript=pl.lit("x")).write_parquet(buffer)
    return buffer.getvalue()


# Nothing to read


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "gone.csv", tmp_path / "*.parquet"):
        with pytest.raises(FileNotFoundError, match=r"gone\.csv|\*\.parquet"):
            tables.scan(path)
    with pytest.raises(FileNotFoundError, match="no table in the folder"):
        tables.scan(tmp_path)


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_a_file_of_no_bytes_is_named(suffix: str, saved: Saved) -> None:
    with pytest.raises(WeakLabelError, match=rf"log\.{suffix} is empty \(0 bytes\)"):
        tables.scan(saved(f"log.{suffix}", ""))


def test_a_header_alone_is_a_log_without_rows(saved: Saved) -> None:
    path = saved("log.csv", "query_id,transcript,timestamp,confidence\n")
    assert tables.read(path).schema["timestamp"] == pl.Datetime("us", "UTC")
    with pytest.raises(WeakLabelError, match="has no rows"):
        queries.check(path)


def test_an_unknown_suffix_lists_the_known_ones(saved: Saved) -> None:
    with pytest.raises(WeakLabelError, match=r"unknown format of .*log\.xlsx: give \.parquet"):
        tables.scan(saved("log.xlsx", "x"))
    with pytest.raises(WeakLabelError, match=r"ends in \.parquet, \.csv or \.jsonl"):
        tables.write(pl.DataFrame({"query_id": [1]}), saved("log.xlsx", "x"))


def test_mixed_formats_in_a_folder_are_an_error(saved: Saved) -> None:
    path = saved("logs/a.csv", HEAD + "1,x\n")
    saved("logs/b.parquet", _parquet())
    with pytest.raises(WeakLabelError, match=r"CSV \(a\.csv\), Parquet \(b\.parquet\)"):
        tables.scan(path.parent)
    assert len(tables.read(path.parent / "*.csv")) == 1


def test_files_of_a_folder_that_are_no_tables_are_reported(
    saved: Saved, caplog: pytest.LogCaptureFixture
) -> None:
    path = saved("logs/a.csv", HEAD + "1,x\n")
    saved("logs/b.csv.bak", "lost?")
    saved("logs/weaklabel_lfs.py", "")
    assert len(tables.read(path.parent)) == 1
    assert "b.csv.bak" in caplog.text
    assert "weaklabel_lfs" not in caplog.text


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
@pytest.mark.parametrize("name", ["a[1]", "what?", "star*", "day=1", "50%"])
def test_odd_names_of_files_are_names(name: str, suffix: str, tmp_path: Path) -> None:
    log = pl.DataFrame({"query_id": [1], "transcript": ["x"]})
    for number, folder in enumerate(["", "in[1]"]):
        (tmp_path / folder).mkdir(exist_ok=True)
        path = tmp_path / folder / f"{name}.{suffix}"
        tables.write(log, path)
        assert_frame_equal(tables.read(path), log)
        assert_frame_equal(tables.read(path.as_uri()), log)
        # The pattern would find this one; the file of that very name was meant.
        tables.write(log, path.with_name(f"a1{number}.{suffix}"))
        assert_frame_equal(tables.read(path), log)


# Parquet


@pytest.mark.parametrize(
    "broken",
    [
        _parquet()[:-4],
        _parquet()[:-8] + b"\0" * 8,
        _parquet()[:-40] + b"\xff" * 32 + _parquet()[-8:],
        _parquet()[:20],
        b"PAR1",
        b"query_id,transcript\n1,x\n",
    ],
    ids=["cut", "no magic", "footer", "start", "magic", "a CSV"],
)
def test_a_corrupt_parquet_footer_names_the_file(broken: bytes, saved: Saved) -> None:
    saved("logs/a.parquet", _parquet())
    path = saved("logs/b.parquet", broken)
    for source in (path, path.parent):
        with pytest.raises(WeakLabelError, match=r"b\.parquet is no Parquet file, or was cut"):
            tables.scan(source)


def test_a_corrupt_page_is_an_error_that_names_the_file(saved: Saved) -> None:
    whole = _parquet(5000)
    path = saved("log.parquet", whole[:4] + b"\xff" * 400 + whole[404:])
    for reading in (tables.read, queries.check, queries.validate):
        with pytest.raises(WeakLabelError, match=r"log\.parquet cannot be read"):
            reading(path)


def test_a_corrupt_page_of_a_column_that_is_only_copied_names_the_log(
    saved: Saved, capsys: pytest.CaptureFixture[str]
) -> None:
    buffer = io.BytesIO()
    log = pl.select(query_id=pl.int_range(9), transcript=pl.lit("x"), note=pl.lit("noted"))
    log.write_parquet(buffer, compression="uncompressed", statistics=False)
    whole = buffer.getvalue()
    at = whole.index(b"noted")  # behind the head of its page
    path = saved("log.parquet", whole[: at - 20] + b"\xff" * 20 + whole[at:])
    out = path.with_name("accepted.parquet")
    assert main(["check", str(path), "--out", str(out)]) == 2
    assert f"{path} cannot be read" in capsys.readouterr().err
    assert not out.exists()


def _whole(path: Path) -> Path:
    """Write a log in two row groups."""
    rows = pl.int_range(40)
    pl.select(
        query_id=pl.format("q{}", rows),
        session_id=pl.format("s{}", rows // 4),
        timestamp=pl.lit(NOON) + pl.duration(seconds=rows * 5),
        transcript=pl.lit("play jazz"),
        second_transcript=pl.lit("play jazz"),
        confidence=pl.lit(0.9),
        action=pl.when(rows % 2 == 0).then(pl.lit("none")).otherwise(pl.lit("stopped")),
    ).write_parquet(path, row_group_size=20)
    return path


def _damaged(path: Path, column: str) -> Path:
    """Write a log in which one page of a column has a broken head; the other columns are whole."""
    _whole(path)
    chunks = pq.ParquetFile(path).metadata.row_group(1)
    chunk = next(
        chunk
        for chunk in map(chunks.column, range(chunks.num_columns))
        if chunk.path_in_schema == column
    )
    at = chunk.dictionary_page_offset or chunk.data_page_offset
    whole = path.read_bytes()
    broken = bytes(byte ^ 0xFF for byte in whole[at : at + 16])
    path.write_bytes(whole[:at] + broken + whole[at + 16 :])
    return path


@pytest.mark.parametrize("column", ["session_id", "timestamp", "action", "second_transcript"])
def test_a_check_reads_every_column_that_tables_are_known_for(column: str, tmp_path: Path) -> None:
    path = _damaged(tmp_path / "log.parquet", column)
    with pytest.raises(WeakLabelError, match=r"log\.parquet cannot be read"):
        queries.check(path)


def test_a_log_that_breaks_when_hypotheses_are_joined_to_it_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _damaged(tmp_path / "log.parquet", "action")
    others = pl.DataFrame({"query_id": ["q1"], "source": ["b"], "text": ["play jazz"]})
    others.write_parquet(tmp_path / "others.parquet")
    arguments = ["check", str(path), "--rename", "second_transcript=third_transcript"]
    assert main([*arguments, "--hypotheses", str(tmp_path / "others.parquet")]) == 2
    assert f"{path} cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("more", [(), ("--on-error", "fail"), ("--partitions", "2")])
@pytest.mark.parametrize("engine", ["polars", "duckdb"])
@pytest.mark.parametrize("column", ["session_id", "timestamp", "action", "second_transcript"])
def test_no_function_is_blamed_for_a_broken_page_of_the_log(
    column: str,
    engine: str,
    more: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = _damaged(tmp_path / "log.parquet", column)
    out = tmp_path / ("votes" if "--partitions" in more else "votes.parquet")
    arguments = ["apply", str(path), "--out", str(out), "--no-check", "--engine", engine, *more]
    assert main([*arguments, "--no-progress"]) == 2
    told = capsys.readouterr().err
    assert f"{engine} failed on {path}, which cannot be read" in told
    assert "labeling function" not in told
    assert not out.exists()


@pytest.mark.parametrize("engine", ["polars", "duckdb"])
@pytest.mark.parametrize("column", ["query_id", "transcript"])
def test_a_broken_page_of_the_reference_names_the_reference(
    column: str, engine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "log.parquet"
    pl.DataFrame({"query_id": ["a"], "transcript": ["stop"]}).write_parquet(path)
    reference = _damaged(tmp_path / "reference.parquet", column)
    out = tmp_path / "votes.parquet"
    arguments = ["apply", str(path), "--out", str(out), "--reference", str(reference)]
    assert main([*arguments, "--engine", engine, "--lf", "rarity", "--no-progress"]) == 2
    told = capsys.readouterr().err
    assert f"failed on {reference}, which cannot be read" in told
    assert not out.exists()


@pytest.mark.parametrize("engine", ["polars", "duckdb"])
@pytest.mark.parametrize("folder", [True, False])
def test_the_broken_part_of_several_is_named(
    folder: bool, engine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    broken = _damaged(logs / "b.parquet", "session_id")
    _whole(logs / "a.parquet")
    _whole(logs / "c.parquet")
    given = str(logs if folder else logs / "*.parquet")
    with pytest.raises(WeakLabelError, match=rf"^{broken} cannot be read: parquet"):
        queries.check(given)
    out = tmp_path / "votes.parquet"
    arguments = ["apply", given, "--out", str(out), "--no-check", "--engine", engine]
    assert main([*arguments, "--no-progress"]) == 2
    assert f"{engine} failed on {broken}, which cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("more", [(), ("--no-check",), ("--no-check", "--on-error", "fail")])
def test_where_polars_panics_the_file_is_named(
    more: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "log.parquet"
    rows = pl.int_range(40)
    pl.select(query_id=rows, transcript=pl.lit("x"), confidence=rows * 0.01).write_parquet(path)
    whole = path.read_bytes()
    page = pq.ParquetFile(path).metadata.row_group(0).column(2).data_page_offset
    at = whole.index(b"\x15\x00\x15\x06\x15\x06", page) + 1  # of an encoding, which is plain
    path.write_bytes(whole[:at] + b"\x28" + whole[at + 1 :])  # there is none of this number
    with pytest.raises(WeakLabelError, match=rf"^{path} cannot be read"):
        tables.read(path)
    out = tmp_path / "votes.parquet"
    arguments = ["apply", str(path), "--out", str(out), "--engine", "polars", "--no-progress"]
    assert main([*arguments, *more]) == 2
    assert f"{path}{', which' * bool(more)} cannot be read" in capsys.readouterr().err
    assert not out.exists()


def test_parquet_files_of_other_columns_or_types_are_named(saved: Saved) -> None:
    def parquet(frame: pl.DataFrame) -> bytes:
        buffer = io.BytesIO()
        frame.write_parquet(buffer)
        return buffer.getvalue()

    first = pl.DataFrame({"query_id": [1], "transcript": ["x"]})
    folder = saved("logs/a.parquet", parquet(first)).parent
    saved("logs/b.parquet", parquet(first.drop("transcript")))
    with pytest.raises(WeakLabelError, match=r"b\.parquet lacks column 'transcript', which .*a"):
        tables.scan(folder)
    saved("logs/b.parquet", parquet(first.with_columns(extra=pl.lit(1))))
    with pytest.raises(WeakLabelError, match=r"a\.parquet lacks column 'extra', which .*b"):
        tables.scan(folder)
    saved("logs/b.parquet", parquet(first.cast({"query_id": pl.String})))
    with pytest.raises(WeakLabelError, match=r"'query_id' is Int64 in .* and String in"):
        tables.scan(folder)
    # Another order, a narrower integer, a column of nulls: nothing is lost, so they are read.
    second = first.select(pl.lit(None).alias("transcript"), pl.lit(2, pl.Int32).alias("query_id"))
    saved("logs/b.parquet", parquet(second))
    assert tables.read(folder).rows() == [(1, "x"), (2, None)]


def test_a_partitioned_folder_keeps_the_columns_in_its_path(tmp_path: Path) -> None:
    for day in (1, 2):
        folder = tmp_path / "logs" / f"day={day}"
        folder.mkdir(parents=True)
        (folder / "0.parquet").write_bytes(_parquet())
    assert tables.read(tmp_path / "logs")["day"].to_list() == [1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize(
    ("column", "folders", "values"),
    [
        ("session_id", ["01", "1"], ["01", "1"]),
        ("session_id", ["10", "11"], [10, 11]),
        ("session_id", ["10", "x1"], ["10", "x1"]),
        ("confidence", ["0.3", "__HIVE_DEFAULT_PARTITION__"], [0.3, None]),
        ("dwell", ["100", "3.5"], [100.0, 3.5]),
        ("timestamp", ["2026-01-01T01%3A00%3A00Z"], [datetime(2026, 1, 1, 1, tzinfo=UTC)]),
        ("month", ["01", "12"], ["01", "12"]),
        ("day", ["2026-01-01", "2026-01-02"], [date(2026, 1, 1), date(2026, 1, 2)]),
        ("day", ["2026-01-01", "today"], ["2026-01-01", "today"]),
    ],
)
def test_values_in_the_names_of_folders_are_settled_together(
    column: str, folders: list[str], values: list[Any], tmp_path: Path
) -> None:
    for number, folder in enumerate(folders):
        (tmp_path / f"key={folder}").mkdir()
        frame = pl.DataFrame({"query_id": [number], "transcript": ["play"]})
        frame.write_parquet(tmp_path / f"key={folder}/1.parquet")
    found = tables.scan(tmp_path, rename={"key": column}).collect().sort("query_id")
    assert found[column].to_list() == values


def test_folders_hold_columns_only_below_what_is_given(tmp_path: Path) -> None:
    """A sweep's folder must not replace the log's own column, and a glob names folders, too."""
    log = tmp_path / "confidence=0.9" / "log"
    for day in ("2026-01-01", "__HIVE_DEFAULT_PARTITION__"):
        (log / f"day={day}").mkdir(parents=True)
        pl.DataFrame({"query_id": [1], "confidence": [0.5]}).write_parquet(
            log / f"day={day}/1.parquet"
        )
    for source in (log, log / "**/*.parquet", log / "day=*/1.parquet"):
        found = tables.read(source)
        assert found["confidence"].to_list() == [0.5, 0.5]
        assert found["day"].to_list() == [date(2026, 1, 1), None]
    above = tables.read(tmp_path / "*/log/*/1.parquet")
    assert above["confidence"].to_list() == [0.9, 0.9]
    assert tables.read(log / "day=2026-01-01/*.parquet").columns == ["query_id", "confidence"]


# CSV


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"query_id,transcript\n1,ok\n2,caf\xe9\n", "line 3 is not UTF-8: byte 0xe9"),
        (b"query_id,trans\xe9\n1,ok\n", "line 1 is not UTF-8"),
        (HEAD.encode("utf-16"), "line 1 is not UTF-8"),
        (HEAD + "1,a\n2,b,c\n", "line 3 has 3 fields and the header 2"),
        (HEAD + '1,"a\nb\nc"\n2\n3,c\n', "line 5 has 1 fields and the header 2: it was cut short"),
        (HEAD + "1,a\n2,b\n3", "line 4 has 1 fields and the header 2: it was cut short"),
        (HEAD + '1,"a\nb"\n2,b,c\n', "line 4 has 3 fields and the header 2"),
        (HEAD + '1,a\n2,"open\n3,c\n', "line 3: "),
        ('query_id,transcript,extra\n1,"a, b"\n', "line 2 has 2 fields and the header 3"),
        ('query_id,transcript,extra\n1,"a, b\nc, d, e"\n', "line 2 has 2 fields and the header 3"),
        ("1,play jazz\n2,stop\n", "has no header: its first line is .'1', 'play jazz'"),
        ("query_id:transcript\n1:stop\n", "has no header"),
        (HEAD + '1,5" tv\n2,stop\n', "line 2: a quote stands in a text that has none around it"),
        (HEAD + '1,"a\nb"\n2,5" tv\n3,6" tv\n', "line 4: a quote stands in a text"),
        (HEAD + '1,"best" tv\n', "line 2: "),
        (HEAD + '1,"say "hello""\n', "line 2: "),
        ("query_id,transcript,transcript\n1,a,b\n", "several columns 'transcript'"),
    ],
)
def test_a_broken_csv_names_its_line(content: str | bytes, said: str, saved: Saved) -> None:
    with pytest.raises(WeakLabelError, match=rf"log\.csv.*{said}"):
        tables.read(saved("log.csv", content))


@pytest.mark.parametrize("name", ["log.csv.gz", "log.jsonl.gz"])
def test_a_gzip_file_is_read_and_a_truncated_one_is_named(name: str, saved: Saved) -> None:
    lines = [
        f"{number},play song {number * 7919}\n"
        if "csv" in name
        else json.dumps({"query_id": number, "transcript": f"play song {number * 7919}"}) + "\n"
        for number in range(20_000)
    ]
    whole = gzip.compress(((HEAD if "csv" in name else "") + "".join(lines)).encode())
    assert len(tables.read(saved(name, whole))) == 20_000
    for cut in (12, len(whole) // 2, len(whole) - 5):
        with pytest.raises(WeakLabelError, match=rf"{name} is no gzip file, or was cut short"):
            tables.read(saved(name, whole[:cut]))
    with pytest.raises(WeakLabelError, match=rf"{name}"):
        tables.read(saved(name, b"\x1f\x8bnot gzip at all"))


def test_formulas_and_markup_are_plain_text(saved: Saved) -> None:
    said = [
        '=HYPERLINK("http://x.y","z")',
        "+1",
        "@SUM(A1)",
        "<b>hi</b>",
        "a,b\r\nc",
        "NULL",
        "nan",
    ]
    buffer = io.StringIO()
    csv.writer(buffer).writerows([["query_id", "transcript"], *enumerate(said)])
    path = saved("log.csv", buffer.getvalue())
    assert tables.read(path)["transcript"].to_list() == said
    tables.write(tables.read(path), path)
    assert tables.read(path)["transcript"].to_list() == said


@pytest.mark.parametrize(
    ("name", "values", "wanted"),
    [
        ("query_id", ["7", "8"], [7, 8]),
        ("query_id", ["007", "8"], ["007", "8"]),
        ("query_id", ["1", "12345678901234567890"], ["1", "12345678901234567890"]),
        ("query_id", ["9223372036854775807", "-9223372036854775808"], [2**63 - 1, -(2**63)]),
        ("query_id", ["1", "1.0"], ["1", "1.0"]),
        ("query_id", ["+1", "-0"], ["+1", "-0"]),
        ("session_id", ["", "0012"], [None, "0012"]),
        ("transcript", ["1", "2"], ["1", "2"]),
        ("second_transcript", ["1", "2"], ["1", "2"]),
        ("action", ["true", "false"], ["true", "false"]),
        ("confidence", ["1", "0"], [1.0, 0.0]),
        ("confidence", [" 0.5", ""], [0.5, None]),
        ("confidence", ["0,5", "1"], ["0,5", "1"]),
        ("timestamp", ["2026-01-01 12:00", ""], ["2026-01-01 12:00", None]),
        ("extra", ["1", "-2"], [1, -2]),
        ("extra", ["1", "0.5"], [1.0, 0.5]),
        ("extra", ["01", "2"], ["01", "2"]),
        ("extra", ["1.10.2", "2"], ["1.10.2", "2"]),
        ("extra", ["12345678901234567890", "2"], ["12345678901234567890", "2"]),
        ("extra", ["9007199254740993", "0.5"], ["9007199254740993", "0.5"]),
        ("extra", ["nan", "2"], ["nan", "2"]),
        ("extra", ["true", "false"], [True, False]),
        ("extra", ["2026-01-01T00:00:00Z", ""], [datetime(2026, 1, 1, tzinfo=UTC), None]),
        ("extra", ["", ""], [None, None]),
    ],
)
def test_values_of_a_csv_lose_nothing(
    name: str, values: list[str], wanted: list[Any], saved: Saved
) -> None:
    buffer = io.StringIO()
    rows = [["query_id" if name != "query_id" else "transcript", name]]
    rows += [[f"x{index}", value] for index, value in enumerate(values)]
    csv.writer(buffer).writerows(rows)
    found = tables.read(saved("log.csv", buffer.getvalue()))[name].to_list()
    assert found == wanted
    assert list(map(type, found)) == list(map(type, wanted))


def test_what_the_thousandth_row_hides_the_last_one_shows(saved: Saved) -> None:
    rows = "".join(f"{number},0.5,1\n" for number in range(5000))
    found = tables.read(saved("log.csv", f"query_id,confidence,extra\n{rows}007,high,x\n"))
    assert found["query_id"].to_list()[-2:] == ["4999", "007"]
    assert found["confidence"].to_list()[-2:] == ["0.5", "high"]
    assert found["extra"].to_list()[-2:] == ["1", "x"]


NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        ("2026-01-01T12:00:00Z", NOON),
        ("2026-01-01 12:00:00z", NOON),
        ("2026-01-01T12:00Z", NOON),
        ("2026-01-01T14:00:00+02:00", NOON),
        ("2026-01-01 14:00:00+0200", NOON),
        ("2026-01-01T14:00:00+02", NOON),
        ("2026-01-01 06:30:00 -05:30", NOON),
        ("2026-01-01T12:00:00.250000Z", NOON.replace(microsecond=250_000)),
        ("2026-01-01T12:00:00.000001999Z", NOON.replace(microsecond=1)),
        ("1767268800", NOON),
        ("1767268800000", NOON),
        ("1767268800.25", NOON.replace(microsecond=250_000)),
        ("2026-01-01T12:00:00", None),
        ("2026-01-01", None),
        ("2026-13-01T12:00:00Z", None),
        ("2026-01-01T25:00:00Z", None),
        ("176726880", None),
        ("17672688000", None),
        ("yesterday", None),
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_timestamps_with_an_offset_become_utc_and_others_are_refused(
    written: str, wanted: datetime | None, suffix: str, saved: Saved
) -> None:
    if suffix == "csv":
        text = f"query_id,transcript,timestamp\n1,x,{written}\n2,y,2026-01-01T00:00:00Z\n"
    else:
        text = "".join(
            json.dumps({"query_id": number, "transcript": "x", "timestamp": stamp}) + "\n"
            for number, stamp in enumerate([written, "2026-01-01T00:00:00Z"])
        )
    path = saved(f"log.{suffix}", text)
    if wanted is not None:
        assert queries.check(path).accepted.collect()["timestamp"][0] == wanted
        return
    assert tables.read(path)["timestamp"][0] == written
    with pytest.raises(WeakLabelError, match=r"timestamp.* is no time.*in 1 row") as raised:
        queries.check(path)
    assert repr(written) in str(raised.value)


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_other_separators_are_recognized(separator: str, saved: Saved) -> None:
    rows = [["query_id", "transcript", "confidence"], ["007", f"a, {separator} b", "0.5"]]
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=separator).writerows(rows)
    for name in ("log.csv", "log.tsv"):
        assert tables.read(saved(name, buffer.getvalue())).rows() == [("007", rows[1][1], 0.5)]
    with pytest.raises(WeakLabelError, match="line 3 has 2 fields and the header 3"):
        tables.read(saved("log.csv", buffer.getvalue() + f"8{separator}b\n"))


_PACKED = {
    "gz": gzip.compress,
    "GZ": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda content: pa.compress(content, codec="zstd", asbytes=True),
}


@pytest.mark.parametrize("packed", _PACKED)
@pytest.mark.parametrize("suffix", ["csv", "CSV", "jsonl", "json"])
def test_compressed_texts_are_read(packed: str, suffix: str, saved: Saved) -> None:
    plain = {
        "csv": "\ufeff" + HEAD + "1,x\n2,😀\n",
        "jsonl": '{"query_id": 1, "transcript": "x"}\n{"query_id": 2, "transcript": "😀"}\n',
        "json": '[{"query_id": 1, "transcript": "x"},\n{"query_id": 2, "transcript": "😀"}]',
    }[suffix.lower()]
    path = saved(f"log.{suffix}.{packed}", _PACKED[packed](plain.encode()))
    assert tables.read(path).rows() == [(1, "x"), (2, "😀")]
    assert queries.check(path).rows == 2


def test_blank_lines_are_no_rows_and_are_reported(
    saved: Saved, caplog: pytest.LogCaptureFixture
) -> None:
    found = tables.read(saved("log.csv", HEAD + "1,x\n\n2,y\n\n"))
    assert found.rows() == [(1, "x"), (2, "y")]
    assert "2 blank lines" in caplog.text


def test_a_byte_order_mark_is_no_part_of_the_name(saved: Saved) -> None:
    lines = saved("log.jsonl", '\ufeff{"query_id": 1}\n{"query_id": 2}\n')
    assert tables.read(lines)["query_id"].to_list() == [1, 2]
    array = saved("log.json", '\ufeff [{"query_id": 1},\n{"query_id": 2, "extra": 1e400}]\n')
    with pytest.raises(WeakLabelError, match=r"log\.json"):
        tables.read(array)
    array = saved("log.json", '\ufeff [{"query_id": 1},\n{"query_id": 2}]\n')
    assert tables.read(array)["query_id"].to_list() == [1, 2]
    assert tables.read(saved("log.csv", "\ufeff" + HEAD + "1,x\n")).columns[0] == "query_id"


def test_csv_files_of_a_folder_have_their_types_settled_together(saved: Saved) -> None:
    folder = saved("logs/a.csv", HEAD + "7,x\n").parent
    saved("logs/b.csv", "transcript,query_id\ny,007\n")
    assert tables.read(folder).rows() == [("7", "x"), ("007", "y")]
    saved("logs/c.csv", "query_id\n1\n")
    with pytest.raises(WeakLabelError, match=r"c\.csv lacks column 'transcript'"):
        tables.scan(folder)


# JSON lines


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"query_id": 1}\n{"query_id": "caf\xe9"}\n', "line 2 is not UTF-8"),
        ('{"query_id": 1}\n{"query_id": 2, "tran', "line 2 is no JSON"),
        ('{"query_id": 1}\nquery\n', "line 2 is no JSON"),
        ('[{"query_id": 1}', "is no JSON"),
        ('[{"query_id": 1}, 7]', "object 2 is a number, expected an object"),
        ('[{"query_id": 1},\n {"query_id": "2"}]', "object 2: 'query_id' is text"),
        ("[]", "is an array without objects"),
        ('{"query_id": 1}\n[{"query_id": 2}]\n', "line 2 is a list, expected an object"),
        ('{"transcript": "\\ud83d\\ude00"}\n{"transcript": "\\ud83d"}\n', "line 2 holds half of"),
        ('{"transcript": "\\ude00\\ud83d"}\n', "line 1 holds half of a character, .ude00"),
        ('{"query_id": 1}\n7\n', "line 2 is a number, expected an object"),
        ('{"confidence": NaN}\n', "line 1 is no JSON: NaN"),
        ('{"query_id": 1}\n{"query_id": "2"}\n', "line 2: 'query_id' is text, \"2\", and a number"),
        (
            '{"extra": 0.5}\n\n{"extra": null}\n{"extra": "high"}\n',
            "line 4: 'extra' is text, \"high\", and a number in .*line 1",
        ),
        ('{"x": true}\n{"x": 1}\n', "line 2: 'x' is a number, 1, and true or false"),
        ('{"x": [1]}\n{"x": 1}\n', "line 2: 'x' is a number, 1, and a list"),
        ('{"x": {"y": 1}}\n{"x": "z"}\n', "line 2: 'x' is text, \"z\", and an object"),
    ],
)
def test_broken_json_lines_name_the_line(content: str | bytes, said: str, saved: Saved) -> None:
    with pytest.raises(WeakLabelError, match=rf"log\.jsonl,? {said}"):
        tables.read(saved("log.jsonl", content))


def test_missing_keys_are_null_and_late_ones_are_columns(saved: Saved) -> None:
    rows = "".join(f'{{"query_id": "{number}"}}\n' for number in range(3000))
    found = tables.read(saved("log.jsonl", rows + '{"query_id": "x", "confidence": 1}\n'))
    assert found["confidence"].to_list() == [None] * 3000 + [1.0]
    assert found["query_id"].to_list()[-2:] == ["2999", "x"]


def test_keys_and_quotes_within_a_transcript_are_text(saved: Saved) -> None:
    said = 'he said "query_id": 7, {"transcript": [1]} \\" and "confidence": "high"'
    rows = [{"query_id": "a", "transcript": said, "confidence": 0.5, "x": {"query_id": 7}}] * 2
    path = saved("log.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert tables.read(path)["transcript"].to_list() == [said] * 2


_JSON = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**53), 2**53),
    st.floats(allow_nan=False, allow_infinity=False, width=32),
    st.text(max_size=6),
)


@given(
    rows=st.lists(
        st.fixed_dictionaries({"query_id": _JSON}, optional={"x": _JSON, 'a"b\\': _JSON}),
        min_size=1,
        max_size=6,
    )
)
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much],
    max_examples=200,
)
def test_json_of_mixed_types_is_refused_and_other_json_is_read_exactly(
    rows: list[dict[str, Any]], saved: Saved
) -> None:
    path = saved("log.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    def kinds(key: str) -> set[str]:
        values = (row.get(key) for row in rows)
        return {
            "number"
            if isinstance(value, int | float) and not isinstance(value, bool)
            else type(value).__name__
            for value in values
            if value is not None
        }

    keys = ["query_id", "x", 'a"b\\']
    if any(len(kinds(key)) > 1 for key in keys):
        with pytest.raises(WeakLabelError, match=r"log\.jsonl, line \d+: "):
            tables.read(path)
        return
    found = tables.read(path)
    for key in keys:
        if key in found.columns:
            assert found[key].to_list() == [row.get(key) for row in rows]
        else:
            assert not any(key in row for row in rows)


# Size and the machine


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_a_transcript_of_a_megabyte_is_read_back(suffix: str, tmp_path: Path) -> None:
    long = ('say "😀", ' * 100_000 + "شغّل\u2028\n") + "x" * 100_000
    log = pl.DataFrame({"query_id": ["a", "b", "c"], "transcript": [long, "", long]})
    path = tmp_path / f"log.{suffix}"
    tables.write(log, path)
    assert_frame_equal(queries.check(path).accepted.collect(), log)


def test_a_broken_row_behind_a_long_transcript_is_still_named(saved: Saved) -> None:
    path = saved("log.csv", HEAD + f'1,"{"x" * 1_000_000}"\n2,a,b\n')
    with pytest.raises(WeakLabelError, match="line 3 has 3 fields"):
        tables.read(path)
    assert csv.field_size_limit() == 131_072


def test_metadata_is_stored_in_parquet_alone(tmp_path: Path) -> None:
    log = pl.DataFrame({"query_id": [1]})
    tables.write(log, tmp_path / "log.parquet", metadata={"weaklabel": "{}"})
    assert pl.read_parquet_metadata(tmp_path / "log.parquet")["weaklabel"] == "{}"
    with pytest.raises(WeakLabelError, match="have no metadata"):
        tables.write(log, tmp_path / "log.csv", metadata={"weaklabel": "{}"})
    assert [path.name for path in tmp_path.iterdir()] == ["log.parquet"]


@pytest.mark.parametrize(
    ("suffix", "value"),
    [
        ("csv", [1]),
        ("csv", {"a": 1}),
        ("csv", b"x"),
        ("csv", timedelta(1)),
        ("csv", object()),
        ("jsonl", b"x"),
        ("jsonl", object()),
        ("parquet", object()),
    ],
)
def test_what_a_format_has_no_place_for_is_named(suffix: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(WeakLabelError, match="cannot hold column 'x', "):
        tables.write(pl.DataFrame({"x": [value]}), tmp_path / f"log.{suffix}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_times_of_every_kind_are_written(suffix: str, tmp_path: Path) -> None:
    log = pl.DataFrame({"query_id": ["a"], "zoned": [NOON]}).with_columns(
        pl.col("zoned").dt.convert_time_zone("America/New_York").alias("elsewhere"),
        pl.col("zoned").dt.replace_time_zone(None).alias("naive"),
        pl.col("zoned").dt.date().alias("day"),
    )
    tables.write(log, tmp_path / f"log.{suffix}")
    back = tables.read(tmp_path / f"log.{suffix}")
    assert back["zoned"][0] == back["elsewhere"][0] == NOON
    assert str(back["naive"][0]).startswith("2026-01-01")
    assert str(back["day"][0]) == "2026-01-01"


@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
@pytest.mark.parametrize("threads", ["1", "2"])
def test_a_full_disk_leaves_no_part_of_a_reject_file(
    suffix: str, threads: str, tmp_path: Path
) -> None:
    # Writing beyond a limit fails as it does on a full disk, in a process of its own.
    script = f"""
        import random, resource, signal
        import polars as pl
        from weaklabel import queries, tables
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        letters = random.Random(0)
        texts = [f"{{letters.getrandbits(256):x}}" for _ in range(20_000)]
        log = pl.DataFrame({{"query_id": ["a"] * 20_000, "transcript": texts}})
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        queries.check(log, reject="refused.{suffix}")
    """
    kept = tmp_path / f"refused.{suffix}"
    kept.write_text("of a run before")
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "POLARS_MAX_THREADS": threads},
    )
    assert ended.returncode == 1, ended.stderr
    assert "File too large" in ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == [kept.name]
    assert kept.read_text() == "of a run before"


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Files of a folder, with the ranges that a reader of Parquet asks for."""

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        whole, asked = len(content), self.headers.get("Range")
        self.send_response(206 if asked else 200)
        if asked:
            start, _, stop = asked.removeprefix("bytes=").partition("-")
            first = int(start) if start else max(0, whole - int(stop))
            last = min(int(stop), whole - 1) if start and stop else whole - 1
            content = content[first : last + 1]
            self.send_header("Content-Range", f"bytes {first}-{last}/{whole}")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    if int(pl.__version__.partition(".")[0]) < 2:
        pytest.skip("of this Polars' URLs plain http is none, and https needs a certificate")
    handler = functools.partial(_Handler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_a_url_is_read_like_a_file(suffix: str, served: str, tmp_path: Path) -> None:
    log = pl.DataFrame({"query_id": ["007"], "transcript": ["😀"], "timestamp": [NOON]})
    tables.write(log, tmp_path / f"log.{suffix}")
    assert_frame_equal(queries.check(f"{served}/log.{suffix}").accepted.collect(), log)
    with pytest.raises(FileNotFoundError, match=r"gone\."):
        tables.scan(f"{served}/gone.{suffix}")


def test_mixed_json_behind_a_url_is_refused_too(served: str, saved: Saved) -> None:
    saved("log.jsonl", '{"query_id": 1}\n\n{"query_id": "2"}\n')
    with pytest.raises(WeakLabelError, match=r"log\.jsonl, line 3: 'query_id' is text"):
        tables.scan(f"{served}/log.jsonl")
    saved("log.csv", "query_id,transcript,transcript\n1,a,b\n")
    with pytest.raises(WeakLabelError, match="several columns 'transcript'"):
        tables.scan(f"{served}/log.csv")


def test_other_urls_are_refused() -> None:
    with pytest.raises(WeakLabelError, match=r"memory://logs/part\.csv: .*copy it to a file"):
        tables.scan("memory://logs/part.csv")
