"""Word error rates: against jiwer, hand-worked cases and a plain bootstrap."""

import io
import json
import re
from dataclasses import asdict
from pathlib import Path

import jiwer
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from weaklabel import WeakLabelError, combine, load_registry
from weaklabel.export import export
from weaklabel.text import Normalizer
from weaklabel.wer import (
    Comparison,
    compare,
    compare_files,
    print_comparison,
    utterance_errors,
    wer_interval,
)

UTTERANCES = st.lists(st.lists(st.sampled_from("abcde"), max_size=6).map(" ".join), min_size=1)


def split(sentences: list[str]) -> list[list[str]]:
    """A jiwer transform that leaves empty references be."""
    return [sentence.split() for sentence in sentences]


@st.composite
def corpora(draw: st.DrawFn) -> tuple[list[str], list[str]]:
    references = draw(UTTERANCES)
    lines = st.lists(st.sampled_from("abcde"), max_size=6).map(" ".join)
    count = len(references)
    return references, draw(st.lists(lines, min_size=count, max_size=count))


@given(corpora())
def test_corpus_wer_is_jiwers(corpus: tuple[list[str], list[str]]) -> None:
    references, hypotheses = corpus
    assert compare(references, hypotheses).corpus_wer.point == pytest.approx(
        jiwer.process_words(references, hypotheses, split, split).wer
    )


@given(corpora())
def test_mean_utterance_wer_is_the_mean_of_jiwers(corpus: tuple[list[str], list[str]]) -> None:
    single = [jiwer.process_words(a, b, split, split).wer for a, b in zip(*corpus, strict=True)]
    assert compare(*corpus).mean_utterance_wer == pytest.approx(sum(single) / len(single))


def test_the_two_rates_differ_where_lengths_do() -> None:
    references, hypotheses = ["one two three four", "five"], ["one two three", "six"]
    found = compare(references, hypotheses)
    assert found.corpus_wer.point == 2 / 5
    assert found.mean_utterance_wer == (1 / 4 + 1) / 2


@pytest.mark.parametrize(
    ("reference", "hypothesis", "rate"), [("", "", 0), ("", "a", 1), ("", "a b", 2), ("a", "", 1)]
)
def test_empty_transcripts_are_counted_as_jiwer_does(
    reference: str, hypothesis: str, rate: float
) -> None:
    found = compare([reference], [hypothesis])
    assert found.corpus_wer.point == found.mean_utterance_wer == rate


def test_errors_are_those_of_the_normalized_words() -> None:
    for rule, errors in (("basic", 0), ("none", 2), (Normalizer("x", "all alike", len_of), 0)):
        assert utterance_errors(["Don’t stop!"], ["don't stop"], rule)[0].tolist() == [errors]


def len_of(text: str) -> str:
    return str(len(text.rstrip("!")))


def bootstrap(errors: list[int], words: list[int], resamples: int, seed: int) -> list[float]:
    """Sorted corpus WERs of resampled corpora, utterance by utterance."""
    pairs = sorted(set(zip(errors, words, strict=True)))
    shares = [
        sum((e, w) == pair for e, w in zip(errors, words, strict=True)) / len(errors)
        for pair in pairs
    ]
    rng = np.random.default_rng(seed)
    rates = []
    for _ in range(resamples):
        corpus = []
        for pair, count in zip(pairs, rng.multinomial(len(errors), shares), strict=True):
            corpus += [pair] * int(count)
        rates.append(sum(e for e, _ in corpus) / max(sum(w for _, w in corpus), 1))
    return sorted(rates)


def percentile(ordered: list[float], share: float) -> float:
    position = share * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def test_interval_equals_a_plain_bootstrap_of_one_seed() -> None:
    rng = np.random.default_rng(7)
    words = rng.integers(0, 8, 60).tolist()
    errors = [int(rng.binomial(max(count, 1), 0.2)) for count in words]
    found = wer_interval(errors, words, resamples=200, seed=3)
    ordered = bootstrap(errors, words, 200, 3)
    assert found.point == sum(errors) / sum(words)
    assert found.low == pytest.approx(percentile(ordered, 0.025), abs=1e-12)
    assert found.high == pytest.approx(percentile(ordered, 0.975), abs=1e-12)


def test_interval_agrees_with_drawing_utterances_one_by_one() -> None:
    rng = np.random.default_rng(1)
    words = rng.integers(1, 12, 400)
    errors = rng.binomial(words, 0.15)
    drawn = rng.integers(0, 400, (4000, 400))  # (resamples, utterances)
    rates = errors[drawn].sum(axis=1) / words[drawn].sum(axis=1)
    found = wer_interval(errors, words, resamples=4000)
    spread = rates.std()
    assert found.low == pytest.approx(np.quantile(rates, 0.025), abs=0.15 * spread)
    assert found.high == pytest.approx(np.quantile(rates, 0.975), abs=0.15 * spread)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1))
def test_interval_does_not_depend_on_the_order(counts: list[tuple[int, int]]) -> None:
    shuffled = sorted(counts)
    first, second = (wer_interval(*np.array(rows).T, resamples=20) for rows in (counts, shuffled))
    assert first == second
    assert first.low <= first.high


def test_no_errors_at_all_have_an_interval_of_no_width() -> None:
    found = wer_interval([0, 0], [3, 4])
    assert (found.point, found.low, found.high) == (0, 0, 0)


@pytest.mark.parametrize(
    ("errors", "words", "message"),
    [
        ([], [], "no utterances"),
        ([1], [1, 2], r"errors have shape \(1,\) and words \(2,\): give one of each"),
        ([[1]], [[1]], r"shape \(1, 1\)"),
    ],
)
def test_meaningless_counts_are_refused(errors: list[int], words: list[int], message: str) -> None:
    with pytest.raises(WeakLabelError, match=message):
        wer_interval(errors, words)


def test_lists_of_two_lengths_are_refused() -> None:
    with pytest.raises(WeakLabelError, match="2 references for 1 hypotheses"):
        utterance_errors(["a", "b"], ["a"])


def test_a_missing_transcript_is_refused_by_its_number() -> None:
    with pytest.raises(
        WeakLabelError, match="hypothesis of utterance 1 must be a string, got None"
    ):
        compare(["a", "b"], ["a", None])  # type: ignore[list-item]


def test_comparison_equals_jiwer_on_everything_both_count() -> None:
    references = ["turn on the tv", "", "what's on now", "mute"]
    hypotheses = ["turn the the tv please", "hm", "what is on", ""]
    found = compare(references, hypotheses, "none")
    words = jiwer.process_words(references, hypotheses, split, split)
    characters = jiwer.process_characters(references, hypotheses)
    assert found.corpus_wer.point == words.wer
    assert found.corpus_cer == characters.cer
    assert found.hits == words.hits
    # jiwer aligns the whole list; ties between alignments fall alike
    assert (found.substitutions, found.deletions, found.insertions) == (
        words.substitutions,
        words.deletions,
        words.insertions,
    )
    assert found.words == 8
    assert found.empty_references == 1


@given(corpora())
def test_comparison_equals_the_plain_rates(corpus: tuple[list[str], list[str]]) -> None:
    references, hypotheses = corpus
    found = compare(references, hypotheses)
    errors, words = utterance_errors(references, hypotheses)
    assert found.corpus_wer == wer_interval(errors, words)
    assert found.corpus_cer == jiwer.process_characters(references, hypotheses).cer
    assert found.substitutions + found.deletions + found.insertions == errors.sum()
    assert found.hits + found.substitutions + found.deletions == found.words == words.sum()
    assert len(found.worst) == min(10, np.count_nonzero(errors))
    assert [one.errors for one in found.worst] == sorted(errors[errors > 0], reverse=True)[:10]


def test_alignment_by_hand() -> None:
    found = compare(["turn on the tv"], ["turn the tv off"], ids=["q7"])
    (worst,) = found.worst
    assert (worst.id, worst.errors, worst.words) == ("q7", 2, 4)
    assert show(found).splitlines()[-4:] == [
        "utterance q7: errors 2, words 4",
        "REF: turn on the tv ***",
        "HYP: turn ** the tv off",
        "           D          I",
    ]


def test_confusions_are_counted_over_the_corpus() -> None:
    found = compare(["tv on", "tv off", "mute"], ["tea on", "tea off", ""], worst=1)
    assert [(c.reference, c.hypothesis, c.count) for c in found.confusions] == [("tv", "tea", 2)]


def test_comparison_goes_through_json() -> None:
    found = compare(["turn it on"], ["turn on"])
    read = json.loads(json.dumps(asdict(found)))
    assert read["normalizer"] == "basic"
    assert read["corpus_wer"]["point"] == pytest.approx(1 / 3)
    assert read["confusions"] == [{"reference": "it", "hypothesis": "", "count": 1}]
    assert read["worst"][0]["hypothesis"] == "turn on"


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(WeakLabelError, match="no utterances"):
        compare([], [])


def show(comparison: Comparison, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    print_comparison(comparison, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_every_printed_rate_says_which_it_is() -> None:
    shown = show(compare(["one two three four", "five"], ["one two three", "six"]))
    assert re.search(r"corpus WER\W+40\.00%", shown)
    assert re.search(r"mean utterance WER\W+62\.50%", shown)
    assert re.search(r"corpus CER\W", shown)
    assert "normalizer 'basic'" in shown


def test_columns_of_wide_words_stay_aligned() -> None:
    shown = show(compare(["日本 放送 を 見る"], ["日本 を 聞 見る"]))
    lines = shown.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("REF:"))
    assert lines[start : start + 3] == [
        "REF: 日本 放送 を 見る",
        "HYP: 日本   を 聞 見る",
        "             S  S",
    ]


def test_columns_of_marks_without_a_width_stay_aligned() -> None:
    lines = show(compare(["e\u0323\u0301 ok ภาษา"], ["x ok ภา"], "none")).splitlines()
    reference, hypothesis, operations = (cell_len(line) for line in lines[-3:])
    assert reference == hypothesis == operations


def test_alignments_wrap_at_words() -> None:
    reference = " ".join("abcdefghijklmnopqrstuvwxyz")
    shown = show(compare([reference], ["a"]), width=50)
    aligned = [line for line in shown.splitlines() if line.startswith(("REF:", "HYP:"))]
    assert len(aligned) == 4
    assert max(map(len, aligned)) <= 50
    assert "".join(line[5:] for line in aligned[::2]).replace(" ", "") == reference.replace(" ", "")


def test_transcripts_are_neither_markup_nor_terminal_commands() -> None:
    shown = show(
        compare(["[bold]a[/bold] \x1b[31mred \u202eevil", "x" * 10**6], ["b", "y"], "none")
    )
    assert "[bold]a[/bold]" in shown
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert len(shown) < 10_000


def write(folder: Path, name: str, rows: list[tuple[object, object]]) -> Path:
    path = folder / name
    frame = pl.DataFrame(rows, schema=["query_id", "transcript"], orient="row")
    writers = {
        ".parquet": frame.write_parquet,
        ".csv": frame.write_csv,
        ".jsonl": frame.write_ndjson,
    }
    writers[path.suffix](path)
    return path


ROWS: list[tuple[object, object]] = [("007", "turn it on"), ("8", ""), ("9", 'say "hi", now')]


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
@pytest.mark.parametrize("other", ["parquet", "csv", "jsonl"])
def test_tables_are_joined_on_query_id(tmp_path: Path, kind: str, other: str) -> None:
    references = write(tmp_path, f"ref.{kind}", ROWS)
    hypotheses = write(tmp_path, f"hyp.{other}", [*ROWS[1:], ("007", "turn on")])
    found = compare_files(references, hypotheses)
    assert (found.utterances, found.words, found.deletions, found.empty_references) == (3, 6, 1, 1)
    assert found.worst[0].id == "007"


def test_integer_ids_meet_those_read_from_csv(tmp_path: Path) -> None:
    references = write(tmp_path, "ref.parquet", [(1, "a"), (2, "b")])
    hypotheses = write(tmp_path, "hyp.csv", [(2, "b"), (1, "a")])
    assert compare_files(references, hypotheses).corpus_wer.point == 0


def test_lines_are_compared_in_order(tmp_path: Path) -> None:
    references, hypotheses = tmp_path / "ref.txt", tmp_path / "hyp.txt"
    # A line separator of Unicode's is no line's end, a missing last newline no missing line.
    references.write_bytes("\ufeffturn it\u2028on\r\n\r\nmute\r\n".encode())
    hypotheses.write_bytes(b"turn it on\n\nmuted")
    found = compare_files(references, hypotheses, "none")
    assert (found.utterances, found.words, found.substitutions) == (3, 4, 1)
    assert found.worst[0].id == 3


@pytest.mark.parametrize("kaldi", [True, None])
def test_kaldi_texts_are_joined_on_their_ids(
    tmp_path: Path, kaldi: bool | None, caplog: pytest.LogCaptureFixture
) -> None:
    references, hypotheses = tmp_path / "text", tmp_path / "hyp"
    references.write_text("u1 turn it on\nu2\n")
    hypotheses.write_text("u2 hm\nu1 turn it on\n")
    found = compare_files(references, hypotheses, kaldi=kaldi)
    assert (found.hits, found.insertions) == (3, 1)
    assert ("taken for ids, not words" in caplog.text) == (kaldi is None)


@pytest.mark.parametrize(
    ("said", "written", "words", "warning"),
    [
        # Ids that are no words, in one order or with some missing.
        ("utt-a go\nutt-b stop\n", "utt-a go\nutt-b stop\n", 2, "taken for ids"),
        ("1 go\n2 stop now\n", "2 stop now\n1 go\n", 3, "taken for ids"),
        # Ids like words: another order gives them away.
        ("ann go\nbob stop\n", "bob stop\nann go\n", 2, "taken for ids"),
        # In the same order they may be words, which is what the lines hold unless said otherwise.
        (
            "ann go\nbob stop\n",
            "ann go\nbob stop\n",
            4,
            "taken for words; if they are ids, give --kaldi",
        ),
        # One word of a line, words that repeat, and words that differ are nothing to doubt.
        ("turn on\n", "turn off\n", 2, ""),
        ("go on\ngo up\n", "go on\ngo up\n", 4, ""),
        ("go on\nstop\n", "no on\nstop\n", 3, ""),
    ],
)
def test_ids_at_the_head_of_lines_are_no_words_or_a_warning(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    said: str,
    written: str,
    words: int,
    warning: str,
) -> None:
    references, hypotheses = tmp_path / "ref.txt", tmp_path / "hyp.txt"
    references.write_text(said)
    hypotheses.write_text(written)
    assert compare_files(references, hypotheses).words == words
    assert warning in caplog.text if warning else not caplog.text
    assert compare_files(references, references, "none", kaldi=False).words == len(said.split())


def test_a_text_with_ids_meets_a_table_of_them(tmp_path: Path) -> None:
    table = write(tmp_path, "ref.csv", [("ann", "go on"), ("bob", "")])
    text = tmp_path / "hyp.txt"
    text.write_text("ann go\nbob\n")
    assert compare_files(table, text).deletions == 1


@pytest.mark.parametrize(
    ("exporter", "file"),
    [
        ("nemo", "manifest.json"),
        ("kaldi", ""),
        ("kaldi", "text"),
        ("lhotse", ""),
        ("huggingface", ""),
    ],
)
def test_exports_are_read(tmp_path: Path, exporter: str, file: str) -> None:
    rows = pl.DataFrame(
        {
            "query_id": ["q1", "q2", "q3"],
            "transcript": ["turn it on", "mute", "off"],
            "audio": ["/a/1.wav", "/a/2.wav", "/a/3.wav"],
            "duration": [1.0, 2.0, 1.5],
            "weight": [1.0, 0.5, 0.25],
            "sampling_rate": [16_000] * 3,
            "channels": [1] * 3,
        }
    )
    truth = write(tmp_path, "ref.csv", [("q1", "turn on"), ("q2", "mute"), ("q3", "off")])
    exporters = load_registry().exporters
    export(rows, tmp_path / "data", exporters[exporter], check_audio=False)
    found = compare_files(truth, tmp_path / "data" / file)
    assert (found.utterances, found.hits, found.insertions) == (3, 4, 1)
    paths = {"one": str(truth), "two": tmp_path / "data" / file}
    assert combine(paths).transcripts["transcript"].to_list()[1:] == ["mute", "off"]


def test_missing_hypotheses_are_an_error_or_all_deleted(tmp_path: Path) -> None:
    references = write(tmp_path, "ref.csv", [(n, "turn it on") for n in range(9)])
    hypotheses = write(tmp_path, "hyp.csv", [(0, "turn it on")])
    with pytest.raises(
        WeakLabelError, match=r"8 of 9 references have no hypothesis .* 1, 2, 3, 4, 5, …"
    ):
        compare_files(references, hypotheses)
    found = compare_files(references, hypotheses, missing="empty")
    assert (found.missing, found.deletions) == (8, 24)
    assert "missing hypotheses, counted as empty" in show(found)


def test_hypotheses_without_a_reference_are_an_error_or_left_out(tmp_path: Path) -> None:
    references = write(tmp_path, "ref.csv", [(0, "a")])
    hypotheses = write(tmp_path, "hyp.csv", [(0, "a"), (1, "b")])
    with pytest.raises(WeakLabelError, match=r"1 of 2 hypotheses have no reference .*: 1;"):
        compare_files(references, hypotheses)
    found = compare_files(references, hypotheses, extra="ignore")
    assert (found.utterances, found.extra, found.corpus_wer.point) == (1, 1, 0)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a", "x"), ("a", "y")], "query_id must be unique, 1 are not: 'a'"),
        ([(None, "x"), ("a", "y")], "1 rows have no query_id"),
        ([("a", None), ("b", "y")], "1 of 2 rows have no transcript .*: 'a'"),
        ([(0.5, "x")], "query_id must be strings or integers, got Float64"),
        ([("a", 1)], "transcript must be strings, got Int64"),
    ],
)
def test_broken_tables_are_refused(
    tmp_path: Path, rows: list[tuple[object, object]], message: str
) -> None:
    path = write(tmp_path, "ref.parquet", rows)
    with pytest.raises(WeakLabelError, match=message):
        compare_files(path, path)


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    table = write(tmp_path, "ref.parquet", ROWS)
    lines, more, latin = tmp_path / "a.txt", tmp_path / "b.txt", tmp_path / "c.txt"
    lines.write_text("a\n")
    more.write_text("a\nb\n")
    latin.write_bytes(b"\xe9\n")
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(table.read_bytes()[:-9])
    other = tmp_path / "other.csv"
    other.write_text("id,text\n1,a\n")
    for pair, message in (
        ((table, lines), "is lines of text and .* has ids"),
        ((lines, more), "has 1 lines and .* 2"),
        ((latin, lines), "not UTF-8"),
        ((broken, table), "broken.parquet is no Parquet file"),
        ((other, table), "query_id, transcript missing among id, text"),
    ):
        with pytest.raises(WeakLabelError, match=message):
            compare_files(*pair)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        compare_files(tmp_path / "nowhere.csv", table)
    more.write_text("u a\n\n")
    with pytest.raises(WeakLabelError, match="line 2 is empty"):
        compare_files(more, more, kaldi=True)
