"""Kaldi: a data folder that `utils/validate_data_dir.sh --no-feats` accepts.

Files are sorted as `LC_ALL=C sort` does, by utterance and by speaker at once; for that an
utterance is named `speaker-query`, a speaker being a session, or the query itself where there are
no sessions. In names, every character but letters, digits and `._:@` of ASCII (and `-` in a
query's) becomes `=XX` a byte, so that different ids stay different and no speaker's name holds what
sorts before the hyphen.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from weaklabel.audio import is_url
from weaklabel.errors import WeakLabelError
from weaklabel.formats.lines import write_lines
from weaklabel.queries import refuse_rows, shown

REQUIRED = ("audio", "duration")

# What Kaldi would take for something else than a file to read (a pipe, which it runs, a range, an
# offset), or for the end of a line. Paths are absolute: how they begin needs no look.
_NO_FILE = re.compile(r"[|\]\s]$|:\d+$|[\x00-\x1f\x7f]")
# As `grep -w` finds them in the C locale.
_ILLEGAL = re.compile(r"(?<![A-Za-z0-9_])(?:<s>|</s>|#0)(?![A-Za-z0-9_])")


def write(rows: pl.DataFrame, folder: Path) -> None:
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
    audio, text = rows["audio"].to_list(), [_spaced(line) for line in rows["transcript"]]
    _refuse(rows, [bool(_NO_FILE.search(path)) or is_url(path) for path in audio], "audio")
    _refuse(rows, [bool(_ILLEGAL.search(line)) for line in text], "transcript")

    _table(folder / "wav.scp", dict(zip(utterances, audio, strict=True)))
    _table(folder / "text", dict(zip(utterances, text, strict=True)))
    _table(folder / "utt2spk", dict(zip(utterances, speakers, strict=True)))
    _table(folder / "utt2dur", dict(zip(utterances, map(repr, rows["duration"]), strict=True)))
    _table(folder / "utt2weight", dict(zip(utterances, map(repr, rows["weight"]), strict=True)))
    spoken: defaultdict[str, list[str]] = defaultdict(list)
    for utterance, speaker in sorted(zip(utterances, speakers, strict=True)):
        spoken[speaker].append(utterance)
    _table(folder / "spk2utt", {speaker: " ".join(named) for speaker, named in spoken.items()})


_REASONS = {
    "audio": "have an audio path that Kaldi would not read as one file (copy or rename them)",
    "transcript": "have <s>, </s> or #0 in their transcript, which Kaldi refuses (rewrite them)",
}


def _refuse(rows: pl.DataFrame, bad: list[bool], column: str) -> None:
    if any(bad):
        found = rows.filter(pl.Series(bad, dtype=pl.Boolean))
        named = shown(
            [f"{row[0]}: {row[1]}"[:80] for row in found.select("query_id", column).rows()]
        )
        raise WeakLabelError(f"{found.height} of {rows.height} rows {_REASONS[column]}: {named}")


def _name(text: str, kept: str = "") -> str:
    """`text` as a name: ASCII without white space; different for different texts."""
    return re.sub(
        rf"[^A-Za-z0-9._:@{kept}]",
        lambda letter: "".join(f"={byte:02X}" for byte in letter[0].encode()),
        text,
    )


def _spaced(text: str) -> str:
    return " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text).split())


def _table(path: Path, values: Mapping[str, str]) -> None:
    # Names are ASCII: the order of strings is the order of bytes.
    write_lines(path, (f"{name} {values[name]}".rstrip(" ") for name in sorted(values)))
