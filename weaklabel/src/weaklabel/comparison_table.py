"""A comparison on the terminal: its rates by their names, confusions, alignments."""

from __future__ import annotations

from collections.abc import Iterator

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

from weaklabel.comparison import AlignedWord, Alignment, Comparison

# As sclite's reports have it: asterisks stand for the word that is not there.
LETTERS = {"hit": "", "substitution": "S", "deletion": "D", "insertion": "I"}
STYLES = {"hit": "", "substitution": "yellow", "deletion": "red", "insertion": "blue"}
_LABEL = 5  # cells: "REF: "
_LONGEST = 60  # cells of a word
_JOINERS = frozenset("\u200c\u200d")  # within emoji and Persian words


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print every rate with its name, the normaliser, the confusions and the worst utterances."""
    table = Table(
        title=f"{comparison.utterances} utterances, normaliser {comparison.normalizer!r}",
        title_justify="left",
    )
    table.add_column("measure", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    wer = comparison.corpus_wer
    table.add_row("corpus WER", f"{wer.point:.2%}")
    table.add_row("  95 % bootstrap interval", f"{wer.low:.2%} to {wer.high:.2%}")
    table.add_row("mean utterance WER", f"{comparison.mean_utterance_wer:.2%}")
    table.add_row("corpus CER", f"{comparison.corpus_cer:.2%}")
    for name in ("words", "hits", "substitutions", "deletions", "insertions"):
        table.add_row(
            "reference words" if name == "words" else name, f"{getattr(comparison, name)}"
        )
    for count, name in (
        (comparison.empty_references, "empty references"),
        (comparison.missing, "missing hypotheses, counted as empty"),
        (comparison.extra, "hypotheses without a reference, left out"),
    ):
        if count:
            table.add_row(name, f"{count}")
    console.print(table)
    if comparison.confusions:
        console.print(_confusions(comparison))
    for alignment in comparison.worst:
        console.print(
            Text(f"\nutterance {_word(str(alignment.id))}", style="bold")
            + Text(f"  errors {alignment.errors}, reference words {alignment.words}")
        )
        for line in alignment_lines(alignment, console.width):
            console.print(line, no_wrap=True, overflow="ignore", crop=False)


def alignment_lines(alignment: Alignment, width: int) -> Iterator[Text]:
    """Lines REF, HYP and operations of an alignment, at most `width` cells wide where words allow.

    Words stand in columns: their width is counted in terminal cells, not characters.
    """
    row: list[AlignedWord] = []
    used = _LABEL
    for pair in alignment.pairs:
        cells = _cells(pair) + 1
        if row and used + cells > width:
            yield from _rows(row)
            row, used = [], _LABEL
        row.append(pair)
        used += cells
    if row:
        yield from _rows(row)


def printable(text: str) -> str:
    """`text` without what would steer a terminal: controls, overrides of the writing direction."""
    return "".join(
        c if c.isprintable() or c in _JOINERS else "\N{REPLACEMENT CHARACTER}" for c in text
    )


def _confusions(comparison: Comparison) -> Table:
    table = Table("said", "written", title="most frequent errors", title_justify="left")
    table.add_column("count", justify="right")
    for confusion in comparison.confusions:
        said, written = (
            Text(_word(word)) if word else Text(nothing, style="dim")
            for word, nothing in (
                (confusion.reference, "(inserted)"),
                (confusion.hypothesis, "(deleted)"),
            )
        )
        table.add_row(said, written, f"{confusion.count}")
    return table


def _word(text: str) -> str:
    """`text` fit for a column: printable, and no longer than a reader's patience."""
    text = printable(text[:_LONGEST])
    return text if cell_len(text) < _LONGEST else set_cell_size(text, _LONGEST - 1) + "…"


def _cells(pair: AlignedWord) -> int:
    return max(cell_len(_word(pair.reference)), cell_len(_word(pair.hypothesis)), 1)


def _rows(pairs: list[AlignedWord]) -> Iterator[Text]:
    for label in ("REF: ", "HYP: ", "     "):
        line = Text(label, style="dim" if label.strip() else "")
        for pair in pairs:
            cells = _cells(pair)
            word = {"REF: ": pair.reference, "HYP: ": pair.hypothesis}.get(label)
            shown = LETTERS[pair.operation] if word is None else _word(word) or "*" * cells
            line.append(shown, style=STYLES[pair.operation])
            line.append(" " * (cells - cell_len(shown) + 1))
        line.rstrip()
        yield line
