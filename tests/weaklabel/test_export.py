"""Exports, read back by the real library where it installs, else by its documented format."""

import gzip
import json
import os
import re
import tempfile
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from weaklabel import Exporter, load_registry
from weaklabel.cli import main
from weaklabel.errors import WeakLabelError
from weaklabel.export import export, join

FORMATS = [exporter.name for exporter in load_registry().exporters.values()]
RATE = 8_000
HOSTILE = [
    "turn it on",
    "tab\tand\nnew line\r\n",
    "line\u2028and\u2029paragraph\x85next",
    "שלום עולם \u202eevil",
    "📺👨‍👩‍👧 emoji",
    '=cmd|"/c calc"!A1',
    "",
    'quote " backslash \\ null \x00 bell \x07',
]

Rows = Callable[..., pl.DataFrame]


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    """`rows(transcripts, **columns)`: a joined frame with a short wave file a row."""

    def make(transcripts: list[str] | None = None, **columns: Any) -> pl.DataFrame:
        texts = ["turn it on", "mute", "what's on"] if transcripts is None else transcripts
        count = len(texts)
        folder = tmp_path / "audio files"
        folder.mkdir(exist_ok=True)
        paths = [folder / f"{number}.wav" for number in range(count)]
        samples = [800 + 80 * number for number in range(count)]
        for path, length in zip(paths, samples, strict=True):
            soundfile.write(path, [0.0] * length, RATE)
        frame = {
            "query_id": [f"q{number}" for number in range(count)],
            "audio": [str(path) for path in paths],
            "transcript": texts,
            "weight": [(number + 1) / (count + 1) for number in range(count)],
            "label": pl.Series([1] * count, dtype=pl.Int8),
            "duration": [length / RATE for length in samples],
            "sampling_rate": [RATE] * count,
            "session_id": [f"s{number // 2}" for number in range(count)],
        }
        return pl.DataFrame({**frame, **columns})

    return make


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# Hugging Face datasets


def load(folder: Path, cache: Path) -> Any:
    import datasets

    return datasets.load_dataset(str(folder), split="train", cache_dir=str(cache))


def test_huggingface_loads_what_was_exported(rows: Rows, tmp_path: Path) -> None:
    from datasets import Audio, Value

    frame = rows(
        HOSTILE,
        timestamp=pl.Series(range(8)).cast(pl.Datetime("us", "Asia/Kolkata")),
        action=pl.Series(["play", None] * 4, dtype=pl.Categorical),
    )
    summary = export(frame, tmp_path / "out")
    assert (summary.rows, summary.below_threshold) == (8, 0)
    data = load(tmp_path / "out", tmp_path / "cache")
    assert data.column_names[:5] == ["query_id", "audio", "transcript", "weight", "label"]
    assert data.features["transcript"] == Value("string")
    for column in frame.columns:
        assert (
            data[column][:]
            == frame[column]
            .cast(pl.String if column == "action" else frame[column].dtype)
            .to_list()
        )
    decoded = data.cast_column("audio", Audio(decode=False))
    assert decoded[3]["audio"]["path"] == frame["audio"][3]


def test_huggingface_refuses_a_type_without_a_feature(rows: Rows, tmp_path: Path) -> None:
    frame = rows(["a"], words=[["a"]])
    with pytest.raises(WeakLabelError, match=r"column 'words' is List\(String\)"):
        export(frame, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_huggingface_column_names_may_be_odd(rows: Rows, tmp_path: Path) -> None:
    name = 'a: "b" #é'
    export(rows(["a"], **{name: [1]}), tmp_path / "out")
    assert load(tmp_path / "out", tmp_path / "cache")[name][:] == [1]


# NeMo


def test_nemo_manifest_holds_one_object_a_line(rows: Rows, tmp_path: Path) -> None:
    frame = rows(HOSTILE)
    export(frame, tmp_path / "out", "nemo")
    text = (tmp_path / "out" / "manifest.json").read_text(encoding="utf-8")
    assert len(text.splitlines()) == len(HOSTILE)  # at Unicode's line ends as well
    read = [json.loads(line) for line in text.splitlines()]
    assert [one["audio_filepath"] for one in read] == frame["audio"].to_list()
    for key, column in (("text", "transcript"), ("duration", "duration"), ("weight", "weight")):
        assert [one[key] for one in read] == frame[column].to_list()
    assert "שלום" in text


# Lhotse; tests/repository/test_lhotse.py reads its files with the library, which requires torch.


def test_lhotse_urls_need_no_reading(rows: Rows, tmp_path: Path) -> None:
    export(rows(["a"], audio=["s3://bucket/a.flac"]), tmp_path / "out", "lhotse")
    with gzip.open(tmp_path / "out" / "recordings.jsonl.gz", "rt") as file:
        (recording,) = map(json.loads, file)
    assert recording["sources"] == [
        {"type": "url", "channels": [0], "source": "s3://bucket/a.flac"}
    ]


def test_lhotse_counts_samples_of_inexact_durations(rows: Rows, tmp_path: Path) -> None:
    assert 0.29 * 100 < 29
    export(rows(["a"], duration=[0.29], sampling_rate=[100]), tmp_path / "out", "lhotse")
    with gzip.open(tmp_path / "out" / "recordings.jsonl.gz", "rt") as file:
        (recording,) = map(json.loads, file)
    assert recording["num_samples"] == 29


def test_lhotse_files_do_not_hold_the_hour(rows: Rows, tmp_path: Path) -> None:
    export(rows(), tmp_path / "out", "lhotse")
    for raw in contents(tmp_path / "out").values():
        assert raw[4:8] == bytes(4)  # MTIME of RFC 1952


# Kaldi


def kaldi_table(path: Path) -> dict[str, str]:
    """A file of a data folder, by the rules of Kaldi's documentation; asserts them."""
    raw = path.read_bytes()
    assert raw.endswith(b"\n")
    lines = raw[:-1].split(b"\n")
    names = [line.split(b" ")[0] for line in lines]
    assert names == sorted(set(names))  # bytewise, as in LC_ALL=C, and unique
    pairs = [line.decode().partition(" ") for line in lines]
    assert all(name and name.isascii() for name, _, _ in pairs)
    return {name: value for name, _, value in pairs}


def kaldi_folder(folder: Path) -> dict[str, dict[str, str]]:
    """What utils/validate_data_dir.sh --no-feats checks, and the folder's tables."""
    read = {path.name: kaldi_table(path) for path in folder.iterdir()}
    speakers = read["utt2spk"]
    for name in ("wav.scp", "text", "utt2dur", "utt2weight"):
        assert list(read[name]) == list(speakers)
    assert all(re.fullmatch(r"\S+", speaker) for speaker in speakers.values())
    by_speaker = sorted(speakers.items(), key=lambda item: (item[1].encode(), item[0].encode()))
    assert by_speaker == list(speakers.items())
    inverse = {u: s for s, named in read["spk2utt"].items() for u in named.split(" ")}
    assert inverse == speakers
    assert all(float(duration) > 0 for duration in read["utt2dur"].values())
    for text in read["text"].values():
        assert not re.search(r"[^\S ]|[\x00-\x1f]", text)  # no white space but spaces
        assert text == " ".join(text.split(" ")).strip(" ")
    return read


def test_kaldi_folder_is_valid_and_holds_every_row(rows: Rows, tmp_path: Path) -> None:
    frame = rows(HOSTILE)
    export(frame, tmp_path / "out", "kaldi")
    read = kaldi_folder(tmp_path / "out")
    assert list(read["text"]) == [f"s{n // 2}-q{n}" for n in range(8)]
    assert read["text"]["s0-q1"] == "tab and new line"
    assert read["text"]["s1-q2"] == "line and paragraph next"
    assert read["text"]["s3-q6"] == ""
    assert list(read["wav.scp"].values()) == frame["audio"].to_list()
    assert [float(weight) for weight in read["utt2weight"].values()] == frame["weight"].to_list()


def test_kaldi_speakers_are_the_queries_where_there_are_no_sessions(
    rows: Rows, tmp_path: Path
) -> None:
    export(rows().drop("session_id"), tmp_path / "out", "kaldi")
    assert kaldi_folder(tmp_path / "out")["utt2spk"] == {f"q{n}": f"q{n}" for n in range(3)}


IDS = st.text(st.sampled_from("aB1-_=!%~ \té.:/\u3000"), min_size=1, max_size=4)


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(IDS, IDS, st.text(max_size=9), st.floats(0, 1)),
        min_size=1,
        unique_by=lambda row: row[0],
    )
)
def test_kaldi_and_nemo_hold_any_text_and_ids(table: list[tuple[str, str, str, float]]) -> None:
    frame = pl.DataFrame(
        table, schema=["query_id", "session_id", "transcript", "weight"], orient="row"
    ).with_columns(pl.lit("/a b.wav").alias("audio"), pl.lit(1.5).alias("duration"))
    with tempfile.TemporaryDirectory() as name:
        export(frame, Path(name) / "nemo", "nemo", check_audio=False)
        lines = (Path(name) / "nemo" / "manifest.json").read_text("utf-8").splitlines()
        read = [json.loads(line) for line in lines]
        assert [one["text"] for one in read] == frame["transcript"].to_list()
        assert [one["weight"] for one in read] == frame["weight"].to_list()
        assert [one["query_id"] for one in read] == frame["query_id"].to_list()

        export(frame, Path(name) / "kaldi", "kaldi", check_audio=False)
        tables = kaldi_folder(Path(name) / "kaldi")
        assert sorted(map(float, tables["utt2weight"].values())) == sorted(frame["weight"])
        assert len(set(tables["utt2spk"].values())) == frame["session_id"].n_unique()


@pytest.mark.parametrize(
    "path",
    [
        "/a.flac |",
        "/a.wav]",
        "/a.ark:12",
        "/a\nb.wav",
        "/a.wav ",
        "https://host/a.wav",
    ],
)
def test_kaldi_refuses_audio_that_it_would_run_or_misread(
    rows: Rows, tmp_path: Path, path: str
) -> None:
    frame = rows(["a", "b"]).with_columns(audio=pl.Series([path, "/fine.wav"]))
    with pytest.raises(WeakLabelError, match=r"1 of 2 rows have an audio path .*q0: "):
        export(frame, tmp_path / "out", "kaldi", check_audio=False, audio_root="/")


def test_kaldi_refuses_its_own_symbols(rows: Rows, tmp_path: Path) -> None:
    with pytest.raises(WeakLabelError, match=r"2 of 4 rows have <s>, .*: 'q0: call #0', 'q2: <s>'"):
        export(rows(["call #0", "call #01", "<s>", "a<s>b"]), tmp_path / "out", "kaldi")
    assert os.listdir(tmp_path) == ["audio files"]


def test_kaldi_refuses_rows_without_a_session(rows: Rows, tmp_path: Path) -> None:
    with pytest.raises(WeakLabelError, match="2 of 3 rows have no session_id: 'q0', 'q1'"):
        export(rows(session_id=["", None, "s"]), tmp_path / "out", "kaldi")


# What every format has in common


@pytest.mark.parametrize("name", FORMATS)
def test_equal_rows_give_equal_bytes(rows: Rows, tmp_path: Path, name: str) -> None:
    first, second = tmp_path / "one", tmp_path / "another"
    export(rows(HOSTILE), first, name)
    export(rows(HOSTILE).lazy(), second, name)
    assert contents(first) == contents(second) != {}


@pytest.mark.parametrize("name", FORMATS)
def test_threshold_keeps_the_rows_that_reach_it(rows: Rows, tmp_path: Path, name: str) -> None:
    frame = rows(weight=[0.8, 0.79, 1.0])
    summary = export(frame, tmp_path / "out", name, threshold=0.8)
    assert (summary.rows, summary.below_threshold) == (2, 1)
    export(frame[[0, 2]], tmp_path / "plain", name)
    assert contents(tmp_path / "out") == contents(tmp_path / "plain")


@pytest.mark.parametrize("name", FORMATS)
def test_audio_paths_are_absolute(rows: Rows, tmp_path: Path, name: str) -> None:
    frame = rows()
    relative = frame.with_columns(pl.col("audio").str.replace(str(tmp_path), "..", literal=True))
    (tmp_path / "inner").mkdir()
    export(frame, tmp_path / "absolute", name)
    export(relative, tmp_path / "rooted", name, audio_root=tmp_path / "inner")
    with chdir(tmp_path / "inner"):
        export(relative, tmp_path / "here", name)
    assert contents(tmp_path / "absolute") == contents(tmp_path / "rooted")
    assert contents(tmp_path / "absolute") == contents(tmp_path / "here")


@pytest.mark.parametrize("name", FORMATS)
def test_required_columns_are_named(rows: Rows, tmp_path: Path, name: str) -> None:
    (exporter,) = (one for one in load_registry().exporters.values() if one.name == name)
    for column in ("query_id", "transcript", "weight", *exporter.required):
        with pytest.raises(
            WeakLabelError, match=f"'{column}' is missing|{column} missing among|needs {column}"
        ):
            export(rows().drop(column), tmp_path / "out", name)
    assert os.listdir(tmp_path) == ["audio files"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"weight": [0.5, None, 0.5]}, r"'weight' is null in 1 row;(?s:.*)query_id 'q1'"),
        ({"weight": [0.5, float("nan"), 0.5]}, r"'weight' is null in 1 row;(?s:.*)query_id 'q1'"),
        ({"weight": [0.5, 0.5, 1.01]}, r"is not within \[0, 1\] in 1 row;(?s:.*)'q2'\): 1.01"),
        ({"weight": ["a", "b", "c"]}, r"'weight' is text \(String\), expected numbers within"),
        ({"transcript": ["a", None, None]}, r"'transcript' is null in 2 rows;(?s:.*)'q1'"),
        ({"transcript": [1, 2, 3]}, r"'transcript' is Int64, expected text"),
        ({"query_id": ["a", "b", "a"]}, "'query_id' is not unique in 2 rows"),
        ({"query_id": [1, None, 2]}, "'query_id' is null in 1 row"),
        ({"duration": [1.0, None, 1.0]}, "1 of 3 rows have no duration: 'q1'"),
        ({"duration": [1.0, 0.0, 1.0]}, "duration that is not positive: 'q1'"),
        ({"duration": [1.0, 1.0, float("inf")]}, "duration that is not positive: 'q2'"),
        ({"duration": ["1", "1", "1"]}, "duration must be positive numbers, got String"),
        ({"audio": [None, "", "/a"]}, "audio: 2 of 3 rows have none at all: 'q0', 'q1'"),
        ({"audio": ["/no", "/where", "s3://b/k"]}, "2 of 3 audio paths are no files: '/no'"),
    ],
)
def test_broken_rows_are_named_and_nothing_is_written(
    rows: Rows, tmp_path: Path, columns: dict[str, list[object]], message: str
) -> None:
    frame = rows().with_columns(pl.Series(name, values) for name, values in columns.items())
    with pytest.raises(WeakLabelError, match=message):
        export(frame, tmp_path / "out", "nemo")
    assert os.listdir(tmp_path) == ["audio files"]


def test_thresholds_that_keep_nothing_or_mean_nothing_are_refused(
    rows: Rows, tmp_path: Path
) -> None:
    with pytest.raises(WeakLabelError, match=r"no weight reaches 0.9: the greatest is 0.7500"):
        export(rows(), tmp_path / "out", threshold=0.9)
    for threshold in (80, -1, float("nan")):
        with pytest.raises(WeakLabelError, match=r"within \[0, 1\]"):
            export(rows(), tmp_path / "out", threshold=threshold)
    with pytest.raises(WeakLabelError, match="no rows"):
        export(rows()[:0], tmp_path / "out", threshold=0.5)
    with pytest.raises(WeakLabelError, match="no format 'tfrecord': there are huggingface"):
        export(rows(), tmp_path / "out", "tfrecord")


def test_a_folder_with_something_in_it_is_left_alone(rows: Rows, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    with pytest.raises(FileExistsError):
        export(rows(), tmp_path / "out")
    assert os.listdir(tmp_path / "out") == ["mine"]


def test_headers_that_cannot_be_read_are_named(rows: Rows, tmp_path: Path) -> None:
    frame = rows()
    Path(frame["audio"][1]).write_text("no audio")
    with pytest.raises(WeakLabelError, match=r"1 of 3 audio files cannot be read: .*1\.wav"):
        export(frame, tmp_path / "out", "nemo", read_audio=True)


def test_headers_take_the_place_of_the_columns(rows: Rows, tmp_path: Path) -> None:
    frame = rows()
    export(frame, tmp_path / "right", "kaldi")
    export(frame.with_columns(duration=9.0), tmp_path / "read", "kaldi", read_audio=True)
    assert contents(tmp_path / "right") == contents(tmp_path / "read")


def test_another_exporter_gets_checked_rows(rows: Rows, tmp_path: Path) -> None:
    def write(frame: pl.DataFrame, folder: Path) -> None:
        frame.select("query_id", "weight").write_csv(folder / "weights.csv")

    mine = Exporter("mine", "a CSV of weights", (), write)
    export(rows().drop("audio", "duration"), tmp_path / "out", mine)
    assert contents(tmp_path / "out") == {
        "weights.csv": b"query_id,weight\nq0,0.25\nq1,0.5\nq2,0.75\n"
    }


def test_an_exporter_that_fails_leaves_nothing(rows: Rows, tmp_path: Path) -> None:
    def write(frame: pl.DataFrame, folder: Path) -> None:
        (folder / "half").write_text("")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        export(rows(), tmp_path / "out", Exporter("full", "fails", (), write))
    assert os.listdir(tmp_path) == ["audio files"]


@pytest.mark.parametrize("kind", ["polars lazy", "pyarrow", "duckdb"])
def test_frames_of_other_libraries_are_taken(rows: Rows, tmp_path: Path, kind: str) -> None:
    frame = rows()
    arrow = frame.to_arrow()
    given = {
        "polars lazy": frame.lazy,
        "pyarrow": lambda: arrow,
        "duckdb": lambda: duckdb.from_arrow(arrow),
    }[kind]()
    export(frame, tmp_path / "plain", "nemo")
    export(given, tmp_path / "out", "nemo")
    assert contents(tmp_path / "plain") == contents(tmp_path / "out")


# Joining

LOG = pl.DataFrame({"query_id": ["a", "b", "c"], "transcript": ["x", "y", "z"], "audio": "/n.wav"})
LABELS = pl.DataFrame({"query_id": ["c", "a", "b"], "weight": [0.3, 0.1, 0.2], "lf:f": [1, 0, 1]})
CHOSEN = pl.DataFrame(
    {"query_id": ["b", "c", "a"], "transcript": ["Y", "Z", "X"], "weight": [0.8, 0.7, 0.9]}
)


def test_labels_are_joined_in_the_logs_order() -> None:
    assert join(LOG, LABELS)[0].rows() == [
        ("a", "x", "/n.wav", 0.1),
        ("b", "y", "/n.wav", 0.2),
        ("c", "z", "/n.wav", 0.3),
    ]


def test_transcripts_replace_the_logs_and_bring_their_weight() -> None:
    assert join(LOG, transcripts=CHOSEN)[0].to_dicts()[0] == {
        "query_id": "a",
        "audio": "/n.wav",
        "transcript": "X",
        "weight": 0.9,
    }
    assert join(LOG, LABELS, CHOSEN)[0].to_dicts()[1] == {
        "query_id": "b",
        "audio": "/n.wav",
        "transcript": "Y",
        "transcript_weight": 0.8,
        "weight": 0.2,
    }


def test_labels_that_hold_what_was_kept_need_no_log(rows: Rows, tmp_path: Path) -> None:
    frame = rows().with_columns(pl.Series("lf:f", [1, None, 0], dtype=pl.Int8))
    frame.write_parquet(tmp_path / "labels.parquet")
    assert main(["export", str(tmp_path / "labels.parquet"), "--out", str(tmp_path / "out")]) == 0
    data = pl.read_parquet(tmp_path / "out" / "data" / "*.parquet")
    assert data["lf:f"].to_list() == [1, None, 0]  # a missing vote is null, an abstain is 0
    joined, _ = join(
        labels=frame.drop("lf:f"), transcripts=CHOSEN.with_columns(query_id=frame["query_id"])
    )
    assert joined["transcript"].to_list() == ["Y", "Z", "X"]
    assert joined["weight"].to_list() == frame["weight"].to_list()
    assert joined["transcript_weight"].to_list() == [0.8, 0.7, 0.9]
    with pytest.raises(WeakLabelError, match="give labels, or a query log and transcripts"):
        join(transcripts=CHOSEN)


@pytest.mark.parametrize(
    ("log", "labels", "message"),
    [
        (LOG, LABELS[1:], "1 of 3 query_ids of the query log are not in the labels: 'c'"),
        (LOG[:1], LABELS, "2 of 3 query_ids of the labels are not in the query log: 'c', 'b'"),
        (pl.concat([LOG, LOG]), LABELS, "the query log: query_id must be unique, 3 are not"),
        (LOG, pl.concat([LABELS, LABELS]), "the labels: query_id must be unique, 3 are not"),
        (LOG, LABELS.drop("weight"), "weight missing among query_id, lf:f"),
        (LOG.with_columns(weight=1.0), LABELS, "the query log and the labels both have weight"),
        (LOG, None, "give labels"),
    ],
)
def test_tables_that_do_not_match_are_refused(
    log: pl.DataFrame, labels: pl.DataFrame | None, message: str
) -> None:
    with pytest.raises(WeakLabelError, match=message):
        join(log, labels)


def test_rows_without_a_partner_are_dropped_on_request_and_counted() -> None:
    joined, dropped = join(LOG[:2], LABELS[:2], unmatched="drop")  # a, b and c, a
    assert joined["query_id"].to_list() == ["a"]
    assert dropped == 2


def test_integer_ids_meet_strings() -> None:
    log = LOG.with_columns(query_id=pl.Series([1, 2, 3], dtype=pl.Int32))
    assert join(log, LABELS.with_columns(query_id=pl.Series(["3", "1", "2"])))[0][
        "weight"
    ].to_list() == [0.1, 0.2, 0.3]


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_files_are_joined_and_exported(
    rows: Rows, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    frame = rows(["turn it on", "007", ', "quoted"'])
    paths = {name: tmp_path / f"{name}.{kind}" for name in ("queries", "labels", "transcripts")}
    for name, part in (
        ("queries", frame.drop("weight", "label")),
        ("labels", frame.select("query_id", "weight", "label").reverse()),
        ("transcripts", frame.select("query_id", "transcript", "weight")),
    ):
        {"parquet": part.write_parquet, "csv": part.write_csv, "jsonl": part.write_ndjson}[kind](
            paths[name]
        )
    log = ["export", "--queries", str(paths["queries"]), "--format", "nemo"]
    labels = [str(paths["labels"]), "--threshold", "0.5", "--out", str(tmp_path / "out")]
    assert main([*log, *labels]) == 0
    assert "2 transcripts as nemo" in (said := capsys.readouterr().out)
    assert "(left out: 1 below 0.5)" in said
    export(frame, tmp_path / "plain", "nemo", 0.5)
    assert contents(tmp_path / "out") == contents(tmp_path / "plain")
    combined = ["--transcripts", str(paths["transcripts"]), "--out", str(tmp_path / "combined")]
    assert main([*log, *combined]) == 0
    read = (tmp_path / "combined" / "manifest.json").read_text().splitlines()
    assert [json.loads(line)["text"] for line in read] == frame["transcript"].to_list()
