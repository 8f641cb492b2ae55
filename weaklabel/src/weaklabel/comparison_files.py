"""Comparing transcripts that lie in files: lines of text, Kaldi's `text`, or tables."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import polars as pl

from weaklabel import tables
from weaklabel.checks import refuse_rows, require_columns, require_ids, same_ids, shown
from weaklabel.comparison import Comparison, compare
from weaklabel.errors import WeakLabelError
from weaklabel.reading.files import FORMATS

FilePath = str | os.PathLike[str]


def compare_files(
    references: FilePath,
    hypotheses: FilePath,
    normalizer: str = "basic",
    *,
    kaldi: bool = False,
    missing: Literal["error", "empty"] = "error",
    extra: Literal["error", "ignore"] = "error",
    worst: int = 10,
    confusions: int = 20,
    resamples: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Compare two files of transcripts, see `weaklabel.comparison.compare`.

    A table (Parquet, CSV, JSON lines; a file, a folder or a glob) has columns `query_id` and
    `transcript`; tables are joined on `query_id`, in the references' order. Any other file is text,
    one utterance a line, and two of them are compared line by line.

    Args:
        references: what was said.
        hypotheses: what was written.
        normalizer: name of the rule that both go through.
        kaldi: lines of text begin with the utterance's id, as in Kaldi's `text`, and are joined on
            it.
        missing: what is done about references without a hypothesis: an error, or an empty
            hypothesis for each, all of whose words are deleted.
        extra: what is done about hypotheses without a reference: an error, or nothing.
        worst: how many alignments to keep.
        confusions: how many confusions to keep.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        FileNotFoundError: there is no such file.
        WeakLabelError: a file cannot be used, or ids are missing on one side.
    """
    said, written = _read(references, kaldi), _read(hypotheses, kaldi)
    if ("query_id" in said.columns) != ("query_id" in written.columns):
        lines, table = (
            (hypotheses, references) if "query_id" in said.columns else (references, hypotheses)
        )
        raise WeakLabelError(
            f"{lines} is lines of text and {table} has ids: give two of one kind, or a text with"
            " ids at the head of its lines (kaldi)"
        )
    options = {"worst": worst, "confusions": confusions, "resamples": resamples, "seed": seed}
    if "query_id" not in said.columns:
        if said.height != written.height:
            raise WeakLabelError(
                f"{references} has {said.height} lines and {hypotheses} {written.height}: give one"
                " line for each utterance, an empty one where nothing was said"
            )
        return compare(
            said["transcript"].to_list(),
            written["transcript"].to_list(),
            normalizer,
            ids=range(1, said.height + 1),
            **options,
        )
    said, written = same_ids(said, written)
    unheard = said.join(written, on="query_id", how="anti")["query_id"]
    if len(unheard) and missing == "error":
        raise WeakLabelError(
            f"{len(unheard)} of {said.height} references have no hypothesis in {hypotheses}:"
            f" {shown(unheard)}; add them, or count them as empty (missing)"
        )
    unasked = written.join(said, on="query_id", how="anti")["query_id"]
    if len(unasked) and extra == "error":
        raise WeakLabelError(
            f"{len(unasked)} of {written.height} hypotheses have no reference in {references}:"
            f" {shown(unasked)}; add them, or leave them out (extra)"
        )
    pairs = said.join(
        written, on="query_id", how="left", suffix="_written", maintain_order="left"
    ).with_columns(pl.col("transcript_written").fill_null(""))
    return compare(
        pairs["transcript"].to_list(),
        pairs["transcript_written"].to_list(),
        normalizer,
        ids=pairs["query_id"].to_list(),
        missing=len(unheard),
        extra=len(unasked),
        **options,
    )


def _read(path: FilePath, kaldi: bool) -> pl.DataFrame:
    """`transcript`, and `query_id` unless the file is lines without ids."""
    if _is_table(path):
        table = tables.read(path)
        require_columns(table, ("query_id", "transcript"), str(path))
        table = table.select("query_id", "transcript")
        if ".csv" in Path(path).suffixes:  # CSV has no null: an empty cell is no words
            table = table.with_columns(pl.col("transcript").fill_null(""))
    else:
        lines = _lines(Path(path))
        if not kaldi:
            return pl.DataFrame({"transcript": lines}, schema={"transcript": pl.String})
        heads = [line.split(maxsplit=1) for line in lines]
        if [] in heads:
            raise WeakLabelError(f"{path}: line {heads.index([]) + 1} is empty: it has no id")
        table = pl.DataFrame(
            {
                "query_id": [head[0] for head in heads],
                "transcript": ["".join(head[1:]) for head in heads],
            },
            schema={"query_id": pl.String, "transcript": pl.String},
        )
    require_ids(table, str(path))
    if table["transcript"].dtype not in (pl.String, pl.Null):
        kind = table["transcript"].dtype
        raise WeakLabelError(f"{path}: transcript must be strings, got {kind}")
    refuse_rows(
        table,
        pl.col("transcript").is_null(),
        str(path),
        'have no transcript (where nothing was said, write "")',
    )
    return table


def _is_table(path: FilePath) -> bool:
    name = Path(path)
    suffix = name.with_suffix("").suffix if name.suffix == ".gz" else name.suffix
    return suffix in FORMATS or name.is_dir() or "://" in os.fspath(path)


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise WeakLabelError(f"{path} is not UTF-8 text: {error}") from error
    # Not splitlines: a transcript may hold Unicode's other line separators.
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]
