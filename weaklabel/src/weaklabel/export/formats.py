"""The package's own formats: Hugging Face datasets, NeMo, Lhotse and Kaldi.

Each writes checked rows (see `weaklabel.export.export`) into an empty folder, and is registered
through the hook that plugins use.
"""

from __future__ import annotations

import gzip
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import polars as pl

from weaklabel.errors import WeakLabelError
from weaklabel.plugins import Exporter, hookimpl
from weaklabel.queries import refuse_rows
from weaklabel.tables.files import is_url


@hookimpl
def weaklabel_exporters(register: Callable[[Exporter], None]) -> None:
    """Register the four formats."""
    about = "a folder for datasets.load_dataset: Parquet and a dataset card"
    register(Exporter("huggingface", about, ("audio",), write_huggingface))
    register(Exporter("nemo", "a NeMo manifest of JSON lines", ("audio", "duration"), write_nemo))
    about = "Lhotse recordings and supervisions"
    register(Exporter("lhotse", about, ("audio", "duration", "sampling_rate"), write_lhotse))
    about = "a Kaldi data folder with utt2weight"
    register(Exporter("kaldi", about, ("audio", "duration"), write_kaldi))


# Lines of text and of JSON that no reader takes for more than one. JSON lets these stand within a
# string; readers that split at every line end of Unicode's do not.
_LINE_ENDS = {ord(letter): f"\\u{ord(letter):04x}" for letter in "\x85\u2028\u2029"}


def _json_line(record: Mapping[str, object]) -> str:
    """One JSON object without any line end; letters of every script stay readable."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False).translate(_LINE_ENDS)


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write lines as UTF-8, gzipped for a name in .gz: the same bytes for the same lines."""
    with path.open("wb") as file:
        if path.suffix == ".gz":  # without a name and the hour
            with gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0) as packed:
                packed.writelines(f"{line}\n".encode() for line in lines)
        else:
            file.writelines(f"{line}\n".encode() for line in lines)


# Hugging Face datasets

_CARD = """\
---
task_categories:
- automatic-speech-recognition
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*.parquet
dataset_info:
  features:
{features}
---

# Weighted transcripts

{rows} queries with transcripts weighted by labeling functions, without human labels; written by
weaklabel. `weight` is the estimated probability that `transcript` is right, here {low:.3f} to
{high:.3f}; multiply each example's loss by it, or keep the examples above a threshold.

`audio` holds paths. To have them decoded:

```python
from datasets import Audio, load_dataset

data = load_dataset("path/of/this/folder", split="train")
data = data.cast_column("audio", Audio(sampling_rate=16_000))
```
"""
_FIRST = ("query_id", "audio", "transcript", "weight", "label")
_FEATURES = {pl.String: "string", pl.Boolean: "bool", pl.Date: "date32"}


def write_huggingface(rows: pl.DataFrame, folder: Path) -> None:
    """Write data/train-00000-of-00001.parquet and README.md, every column of the rows included.

    `audio` is a column of strings, so that no audio is copied and whatever reads Parquet reads it.

    Raises:
        WeakLabelError: a column's type has no counterpart among the features of datasets.
    """
    first = [name for name in _FIRST if name in rows.columns]
    rows = rows.select(*first, pl.exclude(first)).with_columns(
        pl.selectors.by_dtype(pl.Categorical, pl.Enum).cast(pl.String)
    )
    # Without these the strings would be `large_string`, which does not cast to Audio.
    features = "\n".join(
        f"  - name: {json.dumps(name)}\n    dtype: {_feature(name, kind)}"
        for name, kind in rows.schema.items()
    )
    weights = rows["weight"].to_list()
    card = _CARD.format(features=features, rows=rows.height, low=min(weights), high=max(weights))
    (folder / "data").mkdir()
    rows.write_parquet(folder / "data" / "train-00000-of-00001.parquet")
    (folder / "README.md").write_bytes(card.encode())


def _feature(name: str, kind: pl.DataType) -> str:
    if isinstance(kind, pl.Datetime):
        zone = f", tz={kind.time_zone}" if kind.time_zone else ""
        return f"timestamp[{kind.time_unit}{zone}]"
    if isinstance(kind, pl.Duration):
        return f"duration[{kind.time_unit}]"
    if re.fullmatch(r"U?Int(8|16|32|64)|Float(32|64)", str(kind)):
        return str(kind).lower()
    if type(kind) not in _FEATURES:
        raise WeakLabelError(
            f"column {name!r} is {kind}, which has no feature of its own: drop it, or turn it into"
            " strings"
        )
    return _FEATURES[type(kind)]


# NVIDIA NeMo reads `audio_filepath`, `duration` and `text`; other keys are there for its users.

_NEMO = ("audio", "duration", "transcript", "weight", "label", "query_id", "session_id")


def write_nemo(rows: pl.DataFrame, folder: Path) -> None:
    """Write `manifest.json`, a JSON object a line, in the rows' order."""
    own = rows.select([column for column in _NEMO if column in rows.columns])
    records = own.rename({"audio": "audio_filepath", "transcript": "text"})
    _write_lines(folder / "manifest.json", map(_json_line, records.iter_rows(named=True)))


# Lhotse


def write_lhotse(rows: pl.DataFrame, folder: Path) -> None:
    """Write recordings.jsonl.gz and supervisions.jsonl.gz, in the rows' order.

    Ids are the query_id, speakers the session_id; the weight is in a supervision's `custom`.
    Recordings have one channel unless the column `channels` counts them.

        recordings = RecordingSet.from_file(folder / "recordings.jsonl.gz")
        supervisions = SupervisionSet.from_file(folder / "supervisions.jsonl.gz")
        cuts = CutSet.from_manifests(recordings=recordings, supervisions=supervisions)
        cuts[0].supervisions[0].custom["weight"]
    """
    recordings, supervisions = [], []
    for row in rows.iter_rows(named=True):
        query, rate = str(row["query_id"]), row["sampling_rate"]
        samples = int(row["duration"] * rate + 0.5)
        channels = list(range(row.get("channels") or 1))
        kind = "url" if is_url(row["audio"]) else "file"
        recording = {
            "id": query,
            "sources": [{"type": kind, "channels": channels, "source": row["audio"]}],
            "sampling_rate": rate,
            "num_samples": samples,
            "duration": samples / rate,
            "channel_ids": channels,
        }
        supervision = {
            "id": query,
            "recording_id": query,
            "start": 0.0,
            "duration": samples / rate,
            "channel": channels[0] if len(channels) == 1 else channels,
            "text": row["transcript"],
            "custom": {"weight": row["weight"]},
        }
        if row.get("session_id") is not None:
            supervision["speaker"] = str(row["session_id"])
        recordings.append(_json_line(recording))
        supervisions.append(_json_line(supervision))
    _write_lines(folder / "recordings.jsonl.gz", recordings)
    _write_lines(folder / "supervisions.jsonl.gz", supervisions)


# Kaldi: a data folder that `utils/validate_data_dir.sh --no-feats` accepts. Files are sorted as
# `LC_ALL=C sort` does, by utterance and by speaker at once; for that an utterance is named
# `speaker-query`, a speaker being a session, or the query itself where there are no sessions.

# A path that Kaldi would take for something else than a file to read (a pipe, which it runs, a
# range, an offset), or for the end of a line. Paths are absolute: how they begin needs no look.
_NO_FILE = r"[|\]\s]$|:[0-9]+$|[\x00-\x1f\x7f]"
# As `grep -w` finds them in the C locale.
_ILLEGAL = r"(?:^|[^A-Za-z0-9_])(?:<s>|</s>|#0)(?:$|[^A-Za-z0-9_])"


def write_kaldi(rows: pl.DataFrame, folder: Path) -> None:
    """Write wav.scp, text, utt2spk, spk2utt, utt2dur and utt2weight.

    White space of any kind within a transcript, and control characters, become single spaces.

    Raises:
        WeakLabelError: a row has no session where others have, its audio is no plain path of a
            file, or its transcript holds a symbol that Kaldi keeps for itself.
    """
    if "session_id" in rows.columns:
        session = pl.col("session_id").cast(pl.String)
        refuse_rows(rows, session.is_null() | (session == ""), "rows", "have no session_id")
        speakers = [_name(str(session)) for session in rows["session_id"]]
        queries = [_name(str(query), "-") for query in rows["query_id"]]
        utterances = [f"{s}-{q}" for s, q in zip(speakers, queries, strict=True)]
    else:
        speakers = utterances = [_name(str(query)) for query in rows["query_id"]]
    if "" in utterances:
        raise WeakLabelError('a query_id is "": give every query a name')
    reason = "have an audio path that Kaldi would not read as one file (copy or rename them)"
    is_file = ~pl.col("audio").str.contains(_NO_FILE)
    urls = pl.Series([is_url(path) for path in rows["audio"]], dtype=pl.Boolean)
    refuse_rows(rows, ~is_file | urls, "audio", reason, "audio")
    reason = "have <s>, </s> or #0 in their transcript, which Kaldi refuses (rewrite them)"
    illegal = pl.col("transcript").str.contains(_ILLEGAL)
    refuse_rows(rows, illegal, "transcript", reason, "transcript")
    spaced = pl.col("transcript").str.replace_all(r"[\s\x00-\x1f\x7f-\x9f]+", " ")
    columns: dict[str, Iterable[str]] = {
        "wav.scp": rows["audio"],
        "text": rows.select(spaced.str.strip_chars(" ")).to_series(),
        "utt2spk": speakers,
        "utt2dur": map(repr, rows["duration"]),
        "utt2weight": map(repr, rows["weight"]),
    }
    for file, values in columns.items():
        _table(folder / file, dict(zip(utterances, values, strict=True)))
    spoken: defaultdict[str, list[str]] = defaultdict(list)
    for utterance, speaker in sorted(zip(utterances, speakers, strict=True)):
        spoken[speaker].append(utterance)
    _table(folder / "spk2utt", {speaker: " ".join(named) for speaker, named in spoken.items()})


def _name(text: str, kept: str = "") -> str:
    """`text` as a name: ASCII without white space; different for different texts.

    Every character but letters, digits and `._:@` of ASCII (and `-` in a query's) becomes `=XX` a
    byte, so that no speaker's name holds a character that sorts before the hyphen.
    """
    return re.sub(
        rf"[^A-Za-z0-9._:@{kept}]",
        lambda letter: "".join(f"={byte:02X}" for byte in letter[0].encode()),
        text,
    )


def _table(path: Path, values: Mapping[str, str]) -> None:
    # Names are ASCII: the order of strings is the order of bytes.
    _write_lines(path, (f"{name} {values[name]}".rstrip(" ") for name in sorted(values)))
