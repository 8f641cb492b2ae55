"""One transcript out of several: by hand, against brute force, and on planted and real sources."""

import importlib.util
import random
import tracemalloc
from collections.abc import Callable, Sequence
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from sklearn.metrics import roc_auc_score

from weaklabel import WeakLabelError, WeakLabelWarning, combine
from weaklabel.cli import main
from weaklabel.tables import read, write
from weaklabel.transcripts import Combined, Method

METHODS: tuple[Method, ...] = ("rover", "medoid")
TESTS = Path(__file__).resolve().parents[1]
BENCHMARKS, DOCS = TESTS / "benchmarks", TESTS.parent / "docs"


def table(queries: Sequence[Sequence[str]], **columns: Any) -> pl.DataFrame:
    """Hypotheses by query; the sources are s0, s1, …"""
    rows = [(q, f"s{s}", text) for q, texts in enumerate(queries) for s, text in enumerate(texts)]
    frame = pl.DataFrame(rows, ["query_id", "source", "text"], orient="row")
    return frame.with_columns(**{name: pl.Series(values) for name, values in columns.items()})


def voted(*texts: str, method: Method = "rover", rounds: int = 0) -> str:
    done = combine(table([texts]), method=method, rounds=rounds).transcripts
    return str(done["transcript"].item())


words = st.sampled_from(["a", "b", "see", "sea", "חדשות", "📺"])
texts_of = st.lists(words, max_size=6).map(" ".join)
queries_of = st.lists(st.lists(texts_of, min_size=1, max_size=5), min_size=1, max_size=6)


# One query, by hand


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        # Substitution: two against one.
        (("play the news", "play a news", "play the new"), "play the news"),
        # No transcript has all of it right.
        (("turn on tea tv", "turn in the tv", "burn on the tv"), "turn on the tv"),
        # An insertion by one, and by two.
        (("a b", "a x b", "a b"), "a b"),
        (("a b", "a x b", "a x b"), "a x b"),
        # Two insertions at one place are one slot.
        (("a b", "a x b", "a y b", "a x b"), "a x b"),
        # A word missed by one, and by two.
        (("a b c", "a c", "a b c"), "a b c"),
        (("a b c", "a c", "a c"), "a c"),
        # As many have a word as have none: a word is missed more often than invented.
        (("a b c", "a c"), "a b c"),
        (("", "a", ""), ""),
        (("news news news", "news news", "news news news"), "news news news"),
    ],
)
def test_equal_sources_vote_word_by_word(texts: tuple[str, ...], expected: str) -> None:
    assert voted(*texts) == expected


def test_the_medoid_is_one_of_the_hypotheses() -> None:
    texts = ("turn on tea tv", "turn in the tv", "burn on the tv")
    assert voted(*texts) == "turn on the tv"
    assert voted(*texts, method="medoid") in texts


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("text", ["", "one", "שלום 📺 नमस्ते", "a  b\tc\n"])
def test_a_single_hypothesis_is_the_transcript(method: Method, text: str) -> None:
    done = combine(table([[text]]), method=method).transcripts
    assert done["transcript"].item() == " ".join(text.split())
    assert 0 < done["weight"].item() < 1  # no other source agrees


@pytest.mark.parametrize("method", METHODS)
def test_ties_do_not_depend_on_the_sources_names(method: Method) -> None:
    assert voted("b x", "a x", method=method) == voted("a x", "b x", method=method)


# Against brute force


def _distance(a: Sequence[str], b: Sequence[str]) -> int:
    if not a or not b:
        return len(a) + len(b)
    if a[-1] == b[-1]:
        return _distance(a[:-1], b[:-1])
    return 1 + min(_distance(a[:-1], b), _distance(a, b[:-1]), _distance(a[:-1], b[:-1]))


@settings(max_examples=50, deadline=None)
@given(st.lists(texts_of, min_size=1, max_size=4))
def test_the_medoid_has_the_least_expected_distance(texts: list[str]) -> None:
    def expected(text: str) -> int:
        return sum(_distance(text.split(), other.split()) for other in texts)

    chosen = voted(*texts, method="medoid")
    assert chosen in texts
    assert expected(chosen) == min(map(expected, texts))


@settings(max_examples=50, deadline=None)
@given(queries_of, st.sampled_from(METHODS))
def test_where_all_agree_that_is_the_transcript(queries: list[list[str]], method: Method) -> None:
    same = [[texts[0]] * len(texts) for texts in queries]
    done = combine(table(same), method=method).transcripts
    assert done["transcript"].to_list() == [texts[0] for texts in queries]


# What must always hold


@settings(max_examples=60, deadline=None)
@given(queries_of, st.sampled_from(METHODS), st.integers(0, 5), st.randoms(use_true_random=False))
def test_neither_rows_nor_names_matter(
    queries: list[list[str]], method: Method, rounds: int, rng: random.Random
) -> None:
    frame = table(queries)
    names = frame["source"].unique().sort().to_list()
    renamed = dict(zip(names, rng.sample(names, len(names)), strict=True))
    order = rng.sample(range(frame.height), frame.height)
    other = frame[order].with_columns(pl.col("source").replace(renamed))
    one = combine(frame, method=method, rounds=rounds)
    two = combine(other, method=method, rounds=rounds)
    assert_frame_equal(one.transcripts, two.transcripts)
    back = two.sources.with_columns(
        pl.col("source").replace({new: old for old, new in renamed.items()})
    )
    assert_frame_equal(one.sources, back.sort("source"))


@settings(max_examples=60, deadline=None)
@given(queries_of, st.sampled_from(METHODS), st.integers(0, 5))
def test_weights_are_probabilities_and_each_query_has_one(
    queries: list[list[str]], method: Method, rounds: int
) -> None:
    done = combine(table(queries), method=method, rounds=rounds)
    assert done.transcripts["query_id"].to_list() == list(range(len(queries)))
    assert done.transcripts["weight"].is_between(0, 1).all()
    assert done.sources["error_rate"].is_between(0, 1).all()
    assert done.sources["weight"].is_finite().all()
    assert done.sources["weight"].min() > 0  # type: ignore[operator]
    said = {word for texts in queries for text in texts for word in text.split()}
    assert set(" ".join(done.transcripts["transcript"]).split()) <= said


def test_the_more_agree_the_likelier_is_the_transcript() -> None:
    queries = [
        ["a b"] * 5,
        ["a b", "a b", "a b", "a b", "a c"],
        ["a b", "a b", "a b", "a c", "d c"],
    ]
    weights = combine(table(queries), rounds=0).transcripts["weight"].to_list()
    assert weights == sorted(weights, reverse=True)
    assert len(set(weights)) == 3


def test_the_weight_is_the_product_of_the_words_shares() -> None:
    """Five equal sources; the shares worked out with the formula in `Combined`."""
    done = combine(table([["a b", "a b", "a b", "a b", "a c"], *[["x " * 500] * 5] * 20]), rounds=0)
    # 50 002 slots of 5 votes, of which one is lost, and the prior of one in ten; but not below 1 %.
    unsaid = np.exp(1) * 0.01 / 0.99
    first = np.exp(5) / (np.exp(5) + unsaid)
    second = np.exp(4) / (np.exp(4) + np.exp(1) + unsaid)
    assert done.transcripts["weight"][0] == pytest.approx(first * second)
    assert done.transcripts["weight"][1] == pytest.approx(first**500)


# Planted sources


def _misread(rng: random.Random, spoken: Sequence[str], rates: Sequence[float]) -> str:
    """`spoken` with errors; a word is mistaken in two ways, so that errors coincide at times."""
    written = []
    for word, rate in zip(spoken, rates, strict=True):
        kind = rng.random() / rate
        wrong = f"{word}{rng.choice('xy')}"
        if kind >= 0.85:
            written.append(word if kind >= 1 else f"{word} {wrong}")
        elif kind < 0.65:
            written.append(wrong)
    return " ".join(written)


def _planted(
    rates: Sequence[float], queries: int, sources_of: Callable[[int], Sequence[int]], seed: int
) -> tuple[pl.DataFrame, list[str]]:
    """Hypotheses of sources with the given word error rates, and what was said.

    One word in five is hard: all err three times as often there, and half as often elsewhere.
    """
    rng = random.Random(seed)
    lexicon = [f"w{i}" for i in range(200)]
    rows, spoken = [], []
    for query in range(queries):
        said = [rng.choice(lexicon) for _ in range(8)]
        spoken.append(" ".join(said))
        harder = [3.0 if rng.random() < 0.2 else 0.5 for _ in said]
        for source in sources_of(query):
            each = [min(0.95, rates[source] * factor) for factor in harder]
            rows.append((query, f"s{source:05d}", _misread(rng, said, each)))
    frame = pl.DataFrame(rows, ["query_id", "source", "text"], orient="row")
    return frame, spoken


def _wer(spoken: Sequence[str], transcripts: Sequence[str]) -> float:
    return float(jiwer.wer(list(spoken), list(transcripts)))


def test_a_good_source_among_bad_ones_weighs_most_and_the_vote_beats_every_source() -> None:
    rates = [0.2, 0.2, 0.1, 0.25, 0.25]
    frame, spoken = _planted(rates, 500, lambda query: range(5), seed=0)
    done = combine(frame)
    assert done.sources["weight"].arg_max() == 2
    assert set(done.sources.sort("weight")["source"].to_list()[:2]) == {"s00003", "s00004"}
    alone = [_wer(spoken, texts["text"].to_list()) for _, texts in frame.group_by("source")]
    together = _wer(spoken, done.transcripts["transcript"].to_list())
    assert together < min(alone)
    equal = combine(frame, rounds=0).transcripts["transcript"].to_list()
    assert together < _wer(spoken, equal)


@pytest.mark.parametrize("method", METHODS)
def test_thousands_of_sources_with_few_utterances_are_weighed_apart(method: Method) -> None:
    rng = random.Random(1)
    sources = 3000
    rates = [0.05 if source % 3 == 0 else 0.4 for source in range(sources)]
    crews = [rng.sample(range(sources), 5) for _ in range(1500)]  # 2.5 utterances a source
    frame, spoken = _planted(rates, 1500, crews.__getitem__, seed=1)
    done = combine(frame, method=method)
    good = pl.Series([rates[int(name[1:])] < 0.1 for name in done.sources["source"]])
    weight = done.sources["weight"]
    ranked = roc_auc_score(good.to_numpy(), weight.to_numpy())
    assert ranked > 0.85
    equal = combine(frame, method=method, rounds=0)
    assert _wer(spoken, done.transcripts["transcript"].to_list()) < 0.9 * _wer(
        spoken, equal.transcripts["transcript"].to_list()
    )


def test_of_three_sources_with_many_utterances_none_becomes_a_dictator() -> None:
    rates = [0.03, 0.1, 0.12]
    frame, spoken = _planted(rates, 3000, lambda query: range(3), seed=2)
    done = combine(frame, rounds=20)
    assert done.sources["weight"].arg_max() == 0
    assert _wer(spoken, done.transcripts["transcript"].to_list()) < 0.022
    truth = [
        text == said for text, said in zip(done.transcripts["transcript"], spoken, strict=True)
    ]
    weight = done.transcripts["weight"]
    right, wrong = weight.filter(pl.Series(truth)), weight.filter(~pl.Series(truth))
    assert right.mean() > wrong.mean() + 0.1  # type: ignore[operator]


def test_error_rates_come_near_the_planted_ones() -> None:
    rates = [0.05, 0.1, 0.2, 0.1, 0.05]
    frame, _ = _planted(rates, 1000, lambda query: range(5), seed=3)
    estimated = combine(frame).sources["error_rate"].to_list()
    assert estimated == pytest.approx(rates, abs=0.02)


# Copies


def _copied(
    noise: float = 0.0, *, right: float = 0.6, copies: int = 3, others: int = 2
) -> tuple[pl.DataFrame, list[str]]:
    """Copies of one source, `right` of whose words are, and independent ones, right in 90 %."""
    rng = random.Random(0)
    lexicon = [f"w{i}" for i in range(300)]
    rows, spoken = [], []
    for query in range(500):
        said = [rng.choice(lexicon) for _ in range(8)]
        spoken.append(" ".join(said))
        wrong = [word if rng.random() < right else rng.choice(lexicon) for word in said]
        for names, text, kept in (("copy", wrong, 1 - noise), ("own", said, 0.9)):
            for number in range(copies if names == "copy" else others):
                written = [word if rng.random() < kept else rng.choice(lexicon) for word in text]
                rows.append((query, f"{names}{number}", " ".join(written)))
    return pl.DataFrame(rows, ["query_id", "source", "text"], orient="row"), spoken


@pytest.mark.parametrize("noise", [0.0, 0.05])
@pytest.mark.parametrize("copies", [2, 3, 5])
def test_copies_are_noticed_although_they_win_the_vote(noise: float, copies: int) -> None:
    frame, _ = _copied(noise, copies=copies)
    names = tuple(f"copy{number}" for number in range(copies))
    with pytest.warns(WeakLabelWarning, match=f"same errors: {', '.join(names)}. If they are"):
        assert combine(frame).copies == (names,)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rounds", [0, 3])
def test_copies_of_one_family_share_one_vote(method: Method, rounds: int) -> None:
    frame, spoken = _copied(0.05)
    families = {f"copy{number}": "engine" for number in range(3)}

    def rate(given: pl.DataFrame, **options: Any) -> float:
        done = combine(given, method=method, rounds=rounds, **options)
        assert done.copies == ()
        return _wer(spoken, done.transcripts["transcript"].to_list())

    once = rate(frame.filter(~pl.col("source").is_in(["copy1", "copy2"])))
    assert rate(frame, families=families) == pytest.approx(once, abs=0.006)
    with pytest.warns(WeakLabelWarning):
        assert _wer(spoken, combine(frame).transcripts["transcript"].to_list()) > 5 * once


def test_exact_copies_of_a_family_change_nothing_but_the_sources() -> None:
    frame, _ = _copied(copies=1)
    twice = pl.concat([frame, frame.filter(source="copy0").with_columns(source=pl.lit("copy1"))])
    done = combine(twice, families={"copy0": "engine", "copy1": "engine"})
    expected = combine(frame)
    assert_frame_equal(done.transcripts, expected.transcripts, rel_tol=0.05)
    weights = dict(done.sources.select("source", "weight").iter_rows())
    assert weights["copy0"] == weights["copy1"]
    one = dict(expected.sources.select("source", "weight").iter_rows())["copy0"]
    assert weights["copy0"] == pytest.approx(one / 2, rel=0.05)


def test_a_family_alone_with_a_query_is_as_one_source_and_not_judged_by_its_differences() -> None:
    frame, _ = _copied(0.05, copies=2, others=1)
    families = {"copy0": "engine", "copy1": "engine"}
    members = frame.filter(pl.col("source") != "own0")
    with pytest.warns(WeakLabelWarning, match="2 sources of 1 family: with fewer than 3 votes"):
        alone = combine(members, families=families)
    one = combine(members.filter(source="copy0")).transcripts["weight"]
    both = members.sort("source").group_by("query_id").agg("text").sort("query_id")["text"]
    apart = np.array([sum(map(str.__ne__, *map(str.split, texts))) for texts in both])
    weights = alone.transcripts["weight"].to_numpy()
    assert weights[apart == 0] == pytest.approx(one.to_numpy()[apart == 0])
    # A word that the members differ in: half a vote each, and what speaks for a third.
    half, third = np.exp(0.5), np.exp(1) / 9
    assert weights[apart == 1] == pytest.approx(0.9**7 * half / (2 * half + third))
    # Queries that the family has to itself change no rate.
    ten = frame.filter((pl.col("source") != "own0") | (pl.col("query_id") < 10))
    with pytest.warns(WeakLabelWarning, match="3 sources of 2 families"):
        rates = [
            combine(given, families=families).sources["error_rate"].to_list()
            for given in (ten, ten.filter(pl.col("query_id") < 10))
        ]
    assert rates[0] == pytest.approx(rates[1])


def test_two_of_three_sources_are_copies_where_they_never_differ() -> None:
    frame, _ = _copied(copies=2, others=1)
    with pytest.warns(WeakLabelWarning, match="same errors: copy0, copy1. If"):
        combine(frame)


@pytest.mark.parametrize(
    ("noise", "copies", "others"),
    [
        *((0.0, 2, 0), (0.0, 3, 0), (0.0, 12, 0), (0.0, 2, 1), (0.0, 3, 1)),
        *((0.01, 2, 0), (0.01, 3, 0), (0.01, 2, 1)),
    ],
)
def test_copies_are_noticed_where_no_two_others_can_judge_them(
    noise: float, copies: int, others: int
) -> None:
    frame, _ = _copied(noise, copies=copies, others=others)
    with pytest.warns(WeakLabelWarning, match="say no more than one of them would"):
        (found,) = combine(frame).copies
    names = sorted(f"copy{number}" for number in range(copies))
    assert found == tuple(names[:10])  # as many as are compared


@pytest.mark.parametrize(
    "rates",
    [
        *([0.4] * 5, [0.02, 0.02, 0.4, 0.4, 0.4], [0.3, 0.3, 0.05, 0.05], [0.6] * 4, [0.1] * 3),
        *([0.02] * 2, [0.02] * 3, [0.02, 0.02, 0.4], [0.01, 0.01, 0.3, 0.3]),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("error")
def test_independent_sources_are_no_copies(rates: list[float]) -> None:
    """All err at the same words, and in one of two ways."""
    frame, _ = _planted(rates, 500, lambda query: range(len(rates)), seed=9)
    assert combine(frame).copies == ()


@pytest.mark.parametrize("crew", [6, 3])
@pytest.mark.filterwarnings("error")
def test_good_sources_that_others_can_judge_are_no_copies(crew: int) -> None:
    crews = list(combinations(range(6), crew))
    frame, _ = _planted([0.01] * 5 + [0.05], 500, lambda query: crews[query % len(crews)], seed=1)
    assert combine(frame).copies == ()


@pytest.mark.filterwarnings("error")
def test_the_recognizers_of_the_shipped_log_are_no_copies() -> None:
    assert combine(DOCS / "examples/households/hypotheses.parquet").copies == ()


def test_a_family_of_unknown_sources_is_refused() -> None:
    with pytest.raises(WeakLabelError, match="no hypothesis is of source 's7'; there are 's0', 's"):
        combine(table([["a", "b"]]), families={"s0": "x", "s7": "x"})


# Confidences


def test_a_hypothesis_its_source_is_unsure_of_counts_less() -> None:
    queries = [["a b", "a c"], ["x", "x"]]
    for unsure, expected in ((0, "a c"), (1, "a b")):
        confidence = [1.0] * 4
        confidence[unsure] = 0.1
        frame = table(queries, confidence=confidence)
        assert combine(frame).transcripts["transcript"][0] == expected


def test_the_scale_of_a_sources_confidences_does_not_matter() -> None:
    rng = random.Random(4)
    frame, _ = _planted([0.2, 0.2, 0.3], 40, lambda query: range(3), seed=4)
    confidence = pl.Series("confidence", [rng.uniform(0.5, 1) for _ in range(frame.height)])
    one = frame.with_columns(confidence)
    half = pl.when(pl.col("source") == "s00001").then(0.5).otherwise(1.0)
    two = one.with_columns(pl.col("confidence") * half)
    assert_frame_equal(combine(one).transcripts, combine(two).transcripts)


def test_missing_and_all_zero_confidences_leave_votes_as_they_are() -> None:
    queries = [["a b", "a c", "a c"], ["x", "x", "y"]]
    plain = combine(table(queries))
    for confidence in ([None] * 6, [0.0] * 6, [0, 1, None] * 2):
        frame = table(queries).with_columns(pl.Series("confidence", confidence, pl.Float64))
        assert_frame_equal(combine(frame).transcripts, plain.transcripts)


# Tables and files


def test_a_source_that_gave_nothing_is_left_out_and_counted() -> None:
    frame = table([["a", "b"], ["c", "d"]]).with_columns(
        text=pl.Series(["a", None, None, None], dtype=pl.String)
    )
    done = combine(frame)
    assert done.transcripts["transcript"].to_list() == ["a"]
    assert (done.left_out, done.without) == (3, 1)
    with pytest.raises(WeakLabelError, match="no hypothesis has a text"):
        combine(frame.with_columns(text=None))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: frame.drop("source"), "column 'source' is missing"),
        (lambda frame: frame.drop("text"), "column 'text' is missing"),
        (lambda frame: frame.with_columns(text=1), "column 'text'"),
        (lambda frame: frame.with_columns(query_id=None), "query_id"),
        (lambda frame: frame.with_columns(source=pl.lit("s0")), r"row 1 \(query_id 0\)"),
        (lambda frame: frame.with_columns(confidence=1.5), "column 'confidence'"),
        (lambda frame: frame.with_columns(confidence=float("inf")), "'confidence'.*within"),
        (lambda frame: frame.head(0), "has no rows"),
    ],
)
def test_what_breaks_the_contract_is_an_error_that_names_it(
    change: Callable[[pl.DataFrame], pl.DataFrame], message: str
) -> None:
    with pytest.raises(WeakLabelError, match=message):
        combine(change(table([["a", "b"]])))


def test_unknown_arguments_are_errors() -> None:
    frame = table([["a"]])
    with pytest.raises(WeakLabelError, match="choose rover or medoid"):
        combine(frame, method="best")  # type: ignore[arg-type]
    with pytest.raises(WeakLabelError, match="rounds must be 0 or more, got -1"):
        combine(frame, rounds=-1)
    with pytest.raises(WeakLabelError, match="no normalizer 'loud'"):
        combine(frame, normalizer="loud")


def test_hypotheses_are_compared_as_the_normalizer_spells_them() -> None:
    frame = table([["Play, the NEWS!", "play a news", "play the knews"]])
    assert combine(frame, normalizer="basic").transcripts["transcript"].item() == "play the news"


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_files_in_and_out_hold_the_same(tmp_path: Path, suffix: str) -> None:
    frame, _ = _planted([0.1, 0.2, 0.3], 30, lambda query: range(3), seed=5)
    given_, out, sources = (tmp_path / f"{name}{suffix}" for name in ("in", "out", "sources"))
    write(frame, given_)
    assert main(["combine", str(given_), "--out", str(out), "--sources", str(sources)]) == 0
    expected = combine(frame)
    assert_frame_equal(read(out), expected.transcripts, check_exact=False)
    assert_frame_equal(read(sources), expected.sources, check_exact=False)
    assert sorted(tmp_path.iterdir()) == sorted([given_, out, sources])


def test_each_source_may_have_its_own_file(tmp_path: Path) -> None:
    texts = {"a": "u1 turn on\nu2 stop\n", "b": "u2 stop\nu1 turn off\n", "c": "u1 turn on\n"}
    paths = {name: tmp_path / name for name in texts}
    for name, path in paths.items():
        path.write_text(texts[name])
    expected = ["turn on", "stop"]
    done = combine(paths)
    assert dict(done.transcripts.select("query_id", "transcript").iter_rows()) == dict(
        zip(["u1", "u2"], expected, strict=True)
    )
    assert done.sources["source"].to_list() == ["a", "b", "c"]
    for name, path in paths.items():
        ids = sorted(line.split(maxsplit=1) for line in texts[name].splitlines())
        paths[name] = path.with_suffix(".csv")
        write(pl.DataFrame(ids, ["query_id", "transcript"], orient="row"), paths[name])
    assert combine(paths).transcripts["transcript"].to_list() == expected


def test_a_missing_output_folder_is_found_out_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["combine", "no such file.csv", "--out", str(tmp_path / "absent/out.csv")]) == 2
    printed = " ".join(capsys.readouterr().err.split())
    assert "absent to write out.csv in: create it first" in printed


def test_other_frames_are_taken_too() -> None:
    import pandas as pd

    frame = table([["a b", "a c", "a c"]])
    expected = combine(frame).transcripts
    assert_frame_equal(combine(frame.lazy()).transcripts, expected)
    assert_frame_equal(combine(frame.to_arrow()).transcripts, expected)
    assert_frame_equal(combine(pd.DataFrame(frame.to_dict(as_series=False))).transcripts, expected)


# Hostile input


@pytest.mark.slow
def test_transcripts_of_a_megabyte() -> None:
    rng = random.Random(8)
    base = [rng.choice("abcdefgh") * rng.randint(1, 9) for _ in range(180_000)]
    near = [word if rng.random() > 0.02 else "oops" for word in base]
    texts = [" ".join(text) for text in (base, near, base)]
    assert len(texts[0]) > 1_000_000
    assert voted(*texts, rounds=3) == texts[0]


@pytest.mark.parametrize("method", METHODS)
def test_long_transcripts_need_no_table_of_all_words(method: Method) -> None:
    rng = random.Random(6)
    base = [rng.choice("abcdefgh") * rng.randint(1, 9) for _ in range(20_000)]
    near = [word if rng.random() > 0.02 else "oops" for word in base]
    other = [rng.choice("ijkl") * rng.randint(1, 9) for _ in range(20_000)]
    texts = [" ".join(text) for text in (base, near, base, other)]
    tracemalloc.start()
    done = combine(table([texts]), method=method)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert done.transcripts["transcript"].item() == texts[0]
    assert peak < 1 << 28  # 20 000 words against 20 000 would take 3 GiB


def test_a_thousand_sources_of_one_query() -> None:
    rng = random.Random(7)
    texts = [_misread(rng, "the quick brown fox".split(), [0.4] * 4) for _ in range(1000)]
    assert voted(*texts, rounds=3) == "the quick brown fox"


# Real sources


@pytest.fixture(scope="module")
def crowdspeech(require: Callable[[object, str], None]) -> Any:
    spec = importlib.util.spec_from_file_location("crowdspeech", BENCHMARKS / "crowdspeech.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not module.FOLDER.is_dir():  # the data are not the project's: skipped everywhere
        pytest.skip("the CrowdSpeech data are not here")
    return module


@pytest.fixture(scope="module")
def voted_on(crowdspeech: Any) -> Callable[[str], tuple[Combined, dict[Any, str]]]:
    """A set's transcripts, which take a second, and what was spoken."""

    @cache
    def one(name: str) -> tuple[Combined, dict[Any, str]]:
        hypotheses, references = crowdspeech.load(name)
        return combine(hypotheses), references

    return one


@pytest.mark.parametrize(("name", "bar"), [("dev-clean", 0.051), ("dev-other", 0.104)])
def test_crowdspeech_is_transcribed_at_the_corpus_word_error_rate_measured(
    voted_on: Any, name: str, bar: float
) -> None:
    combined, references = voted_on(name)
    done = combined.transcripts
    spoken = [references[query] for query in done["query_id"]]
    assert len(spoken) == len(references)
    assert _wer(spoken, done["transcript"].to_list()) <= bar


@pytest.mark.filterwarnings("error")
def test_people_of_crowdspeech_are_no_copies(crowdspeech: Any, voted_on: Any) -> None:
    for name in crowdspeech.SETS:
        assert voted_on(name)[0].copies == ()
