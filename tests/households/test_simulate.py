"""The simulated query log of docs/examples/households can be made again and is worth judging."""

import importlib
import re
import runpy
import subprocess
import sys
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import jiwer
import numpy as np
import polars as pl
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

sys.path.insert(0, str(Path(__file__).parents[2] / "docs/examples/households"))

import describe
import sounds
from behavior import ACTIONS
from catalog import KINDS, catalog
from households import Log, simulate
from weaklabel.export import export, join

FOLDER = Path(describe.__file__).parent
TABLES = ("queries", "hypotheses", "gold", "truth")


@pytest.fixture(scope="module")
def shipped() -> Log:
    return Log(*(pl.read_parquet(FOLDER / f"{name}.parquet") for name in TABLES))


@pytest.fixture(scope="module")
def judged(shipped: Log) -> pl.DataFrame:
    """The log's signals beside the truth."""
    return describe.signals(shipped.queries).join(shipped.truth, on="query_id")


def test_the_command_makes_the_shipped_tables_again(tmp_path, shipped):
    # In a process of its own: another hash seed, nothing drawn before.
    command = [sys.executable, str(FOLDER / "simulate.py"), "--out", str(tmp_path / "log")]
    subprocess.run(command, check=True, capture_output=True)
    for name in TABLES:
        made = pl.read_parquet(tmp_path / "log" / f"{name}.parquet")
        assert_frame_equal(made, getattr(shipped, name), check_exact=True)
    made, recorded = (pl.read_parquet(p / "recorded.parquet") for p in (tmp_path / "log", FOLDER))
    assert_frame_equal(made, recorded, check_exact=True)
    for path in recorded["audio"]:
        # Sines differ in the last bit from machine to machine.
        one, other = (soundfile.read(p / path)[0] for p in (tmp_path / "log", FOLDER))
        np.testing.assert_allclose(one, other, atol=2 / 2**15)


def test_the_same_seed_makes_the_same_bytes_and_another_seed_another_log(tmp_path):
    paths = []
    for seed in (5, 5, 6):
        path = tmp_path / f"{len(paths)}.parquet"
        simulate(households=10, days=2, seed=seed).queries.write_parquet(path)
        paths.append(path)
    first, again, other = (path.read_bytes() for path in paths)
    assert first == again
    assert first != other


def test_the_shipped_files_are_small():
    assert sum(path.stat().st_size for path in FOLDER.glob("*.parquet")) <= 400_000
    assert sum(path.stat().st_size for path in FOLDER.glob("recordings/*")) <= 200_000


def test_recordings_are_of_the_first_queries_and_last_as_long(shipped):
    recorded = pl.read_parquet(FOLDER / "recorded.parquet")
    assert_frame_equal(recorded.drop("audio"), shipped.queries.head(recorded.height))
    assert len(list(FOLDER.glob("recordings/*"))) == recorded.height
    for path, duration in recorded.select("audio", "duration").iter_rows():
        samples, rate = soundfile.read(FOLDER / path)
        assert len(samples) == round(duration * rate)
        assert 0.3 < abs(samples).max() <= 1


@pytest.mark.parametrize("exporter", ["huggingface", "nemo", "lhotse", "kaldi"])
def test_what_is_recorded_can_be_exported(tmp_path, exporter):
    recorded = pl.read_parquet(FOLDER / "recorded.parquet")
    labels = recorded.select("query_id", weight=pl.lit(0.9))
    rows, _ = join(recorded, labels)
    done = export(rows, tmp_path / "out", exporter, audio_root=FOLDER, read_audio=True)
    assert done.rows == recorded.height


def test_the_log_keeps_the_contract_of_query_logs(shipped):
    queries = shipped.queries
    assert queries.schema == {
        "query_id": pl.String,
        "session_id": pl.String,
        "timestamp": pl.Datetime("ms", "UTC"),
        "transcript": pl.String,
        "second_transcript": pl.String,
        "confidence": pl.Float64,
        "duration": pl.Float64,
        "action": pl.String,
        "dwell": pl.Float64,
    }
    assert 4_500 <= queries.height <= 6_500
    assert queries["query_id"].is_unique().all()
    assert queries["query_id"].is_sorted()
    assert queries["timestamp"].is_sorted()
    assert set(queries["action"]) == set(ACTIONS)
    nulls = queries.null_count().row(0, named=True)
    assert 0.01 < nulls.pop("confidence") / queries.height < 0.03
    assert 0.03 < nulls.pop("dwell") / queries.height < 0.07
    assert not any(nulls.values())
    numbers = queries.select("confidence", "duration", "dwell")
    assert not numbers.select(pl.all().is_nan().any()).row(0).count(True)
    assert queries["confidence"].is_between(0, 1, closed="none").all()
    assert queries["duration"].min() > 0
    assert queries["dwell"].is_between(0, 4 * 3600).all()


def test_the_log_holds_ties_and_letters_of_several_scripts(shipped):
    ties = shipped.queries.select(pl.struct("session_id", "timestamp").is_duplicated().sum())
    assert ties.item() >= 20
    text = "".join(shipped.queries["transcript"])
    for letter in "éöłø夜йق":
        assert letter in text, letter


def test_hypotheses_hold_three_sources_for_every_query_and_the_log_is_one_of_them(shipped):
    hypotheses = shipped.hypotheses
    assert hypotheses.schema == {
        "query_id": pl.String,
        "source": pl.String,
        "text": pl.String,
        "confidence": pl.Float64,
    }
    for source, column in (("asr", "transcript"), ("second_asr", "second_transcript")):
        rows = hypotheses.filter(source=source)
        assert rows["query_id"].equals(shipped.queries["query_id"])
        assert rows["text"].equals(shipped.queries[column])
    assert hypotheses.filter(source="asr")["confidence"].equals(shipped.queries["confidence"])
    third = hypotheses.filter(source="third_asr")
    assert third["query_id"].equals(shipped.queries["query_id"])
    assert hypotheses.height == 3 * shipped.queries.height


def test_truth_says_for_every_query_what_was_said_and_gold_for_300_of_them(shipped):
    truth, gold = shipped.truth, shipped.gold
    assert truth["query_id"].equals(shipped.queries["query_id"])
    assert truth["right"].equals(
        (truth["transcript"] == shipped.queries["transcript"]).alias("right")
    )
    assert set(truth["transcript"]) <= set(catalog().texts)
    assert set(truth["kind"]) == set(KINDS)
    assert gold.columns == ["query_id", "transcript"]
    assert gold.height == 300
    assert gold["query_id"].is_unique().all()
    assert gold.join(truth, on=["query_id", "transcript"]).height == 300
    # Drawn at random: as often right as the log, within four standard errors.
    share = gold.join(truth, on="query_id")["right"].mean()
    assert abs(share - truth["right"].mean()) < 4 * (0.85 * 0.15 / 300) ** 0.5


def test_recognizers_are_as_good_as_calibrated(shipped):
    rates = describe.errors(shipped.hypotheses, shipped.truth)
    right = dict(zip(rates["source"], rates["right"], strict=True))
    wer = dict(zip(rates["source"], rates["corpus WER"], strict=True))
    assert 0.82 <= right["asr"] <= 0.88
    assert 0.06 <= wer["asr"] <= 0.10
    assert 0.70 <= right["third_asr"] < right["second_asr"] < right["asr"]
    assert wer["asr"] < wer["second_asr"] < wer["third_asr"] <= 0.12


# Positive: shows more often where the transcript is right.
DIRECTIONS = {
    "confidence ≥ 0.95": 1,
    "confidence < 0.80": -1,
    "last in session": 1,
    "next query within 10 s": -1,
    "next query within 15 s": -1,
    "next query repeats, contains or shortens": -1,
    "next query similar, not equal": -1,
    "dwell ≥ 120 s": 1,
    "dwell < 20 s": -1,
    "action play or select": 1,
    "action back": -1,
    "transcript seen once": -1,
    "transcript seen ≥ 5 times": 1,
    "second ASR agrees": 1,
}


@pytest.mark.parametrize("signal", DIRECTIONS)
def test_a_signal_helps_and_is_far_from_perfect(signal, judged):
    shown = judged.drop_nulls(signal)
    right, wrong = (shown.filter(right=value)[signal] for value in (True, False))
    gap = DIRECTIONS[signal] * (right.mean() - wrong.mean())
    pooled = shown[signal].mean()
    error = (pooled * (1 - pooled) * (1 / len(right) + 1 / len(wrong))) ** 0.5
    assert gap > 4 * error
    # Neither is it there for all of one kind only, nor does it tell right from wrong for sure.
    sensitivity, false_alarms = right.mean(), wrong.mean()
    assert min(sensitivity, false_alarms) > 0.01
    assert max(sensitivity, false_alarms) < 0.95
    assert gap < 0.75


def test_every_signal_that_is_measured_is_tested(judged, shipped):
    assert set(DIRECTIONS) == set(describe.signals(shipped.queries).columns) - {"query_id"}


def test_the_confidence_ranks_but_promises_too_much(shipped):
    rows = shipped.queries.join(shipped.truth, on="query_id").drop_nulls("confidence")
    right, wrong = (rows.filter(right=value)["confidence"] for value in (True, False))
    # Area under the curve by ranks (Mann and Whitney).
    ranks = rows.select(pl.col("confidence").rank(), "right").filter("right")["confidence"].sum()
    area = (ranks - len(right) * (len(right) + 1) / 2) / (len(right) * len(wrong))
    assert 0.65 < area < 0.85
    low = rows.filter(pl.col("confidence") < 0.7)
    assert low["confidence"].mean() - low["right"].mean() > 0.08
    assert rows["confidence"].mean() - rows["right"].mean() > 0.03


def test_signals_of_satisfaction_depend_on_each_other_given_the_transcript(judged):
    for right in (True, False):
        rows = judged.filter(right=right)
        names = ["next query within 15 s", "dwell < 20 s"]
        correlation = rows.select(pl.corr(*(pl.col(name).cast(pl.Int8) for name in names))).item()
        assert 0.1 < correlation < 0.8
    # Not done although right, and done although wrong.
    assert 0.02 < (~judged.filter(right=True)["done"]).mean() < 0.15
    assert 0.05 < judged.filter(right=False)["done"].mean() < 0.35


def _wrong(log: Log) -> pl.DataFrame:
    said = log.truth.filter(right=False).select("query_id", pl.col("transcript").alias("said"))
    return log.queries.join(said, on="query_id")


def test_recognizers_share_errors(shipped):
    wrong = _wrong(shipped)
    same_error = (wrong["transcript"] == wrong["second_transcript"]).mean()
    assert 0.2 < same_error < 0.5
    second = wrong["second_transcript"] == wrong["said"]
    overall = (shipped.queries["second_transcript"] == shipped.truth["transcript"]).mean()
    assert second.mean() < overall - 0.2


def test_wrong_words_sound_like_what_was_said(shipped):
    wrong = _wrong(shipped)
    output = jiwer.process_words(wrong["said"].to_list(), wrong["transcript"].to_list())
    words = sorted(set(catalog().words))
    likeness, chance = [], []
    for chunks, said, heard in zip(
        output.alignments, output.references, output.hypotheses, strict=True
    ):
        for chunk in chunks:
            if chunk.type == "substitute":
                a = sounds.pronounce(said[chunk.ref_start_idx])
                b = sounds.pronounce(heard[chunk.hyp_start_idx])
                other = sounds.pronounce(words[len(likeness) % len(words)])
                likeness.append(float(sounds.distances([a], [b])[0, 0]))
                chance.append(float(sounds.distances([a], [other])[0, 0]))
    assert len(likeness) > 200
    assert pl.Series(likeness).median() < 0.5 * pl.Series(chance).median()
    kinds = {chunk.type for chunks in output.alignments for chunk in chunks}
    assert kinds == {"equal", "substitute", "delete", "insert"}


def test_the_readme_states_the_measured_numbers():
    assert describe.describe(FOLDER) in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_the_readme_states_every_assumption():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    stated = dict(re.findall(r"^\| `(\w+\.[A-Z_]+)` \| `(.+?)` \|", text, re.MULTILINE))
    for name, value in stated.items():
        module, constant = name.split(".")
        assert repr(getattr(importlib.import_module(module), constant)) == value, name
    numbers = r"^([A-Z_, ]+) = [(\s]*\d|^(SPEAKERS|DEVICES) = "
    for module in ("people", "behavior", "recognizers", "households"):
        source = (FOLDER / f"{module}.py").read_text(encoding="utf-8")
        for match in re.finditer(numbers, source, re.MULTILINE):
            for constant in (match[1] or match[2]).split(", "):
                assert f"{module}.{constant}" in stated


def test_the_measurements_replace_the_old_ones_in_a_document(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{describe.BEGIN}\nout of date\n{describe.END}\nafter\n")
    describe.write_card(readme, FOLDER)
    describe.write_card(readme, FOLDER)
    text = readme.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "out of date" not in text
    assert text.count(describe.describe(FOLDER)) == 1


@given(households=st.integers(5, 12), days=st.integers(2, 4), seed=st.integers(0, 2**32))
@settings(max_examples=15)
def test_any_log_keeps_the_invariants(households, days, seed):
    log = simulate(households, days, seed)
    queries = log.queries
    assert queries["query_id"].is_unique().all()
    assert queries["timestamp"].is_sorted()
    assert (queries["transcript"].str.len_chars() > 0).all()
    assert log.truth["query_id"].equals(queries["query_id"])
    assert log.truth["right"].equals(log.truth["transcript"] == queries["transcript"])
    assert log.gold.height == min(300, queries.height)
    assert log.hypotheses.height == 3 * queries.height
    for _, session in queries.group_by("session_id"):
        pauses = (b - a for a, b in pairwise(session["timestamp"]))
        # Half an hour of silence ends a session; a tie makes the pause after it longer.
        assert all(timedelta(0) <= pause < timedelta(hours=1) for pause in pauses)


def test_two_logs_hold_different_people_of_one_world():
    a, b = (simulate(60, 7, seed) for seed in (1, 2))
    assert not a.truth["transcript"].equals(b.truth["transcript"])
    assert abs(a.truth["right"].mean() - b.truth["right"].mean()) < 0.08


@pytest.mark.parametrize(("households", "days"), [(0, 3), (3, 0), (-1, 1)])
def test_no_households_or_days_are_refused(households, days):
    with pytest.raises(ValueError, match=f"got {households} and {days}"):
        simulate(households, days)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--out", "log", "--households", "0"], "--households: at least 1 is needed, got 0"),
        (["--out", "log", "--days", "0"], "--days: at least 1"),
        (["--out", "log", "--seed", "-1"], "--seed: at least 0"),
        (["--out", "log", "--recorded", "-1"], "--recorded: at least 0"),
        (["--out", "a_file"], "a_file"),
        (["--describe", "nowhere"], "nowhere"),
    ],
)
def test_an_argument_that_cannot_be_is_named(tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    Path("a_file").touch()
    monkeypatch.setattr(sys, "argv", ["simulate.py", *arguments])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(FOLDER / "simulate.py"), run_name="__main__")
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a_file"]


def test_the_command_with_nothing_to_do_says_so():
    command = [sys.executable, str(FOLDER / "simulate.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--out" in done.stderr


PHONES = st.lists(st.text("abdgimnstAIYTR", max_size=7), min_size=1, max_size=5)


@given(PHONES, PHONES)
def test_distances_are_those_of_a_plain_edit_distance(a, b):
    table = sounds.distances(a, b)
    assert table.shape == (len(a), len(b))
    for i, p in enumerate(a):
        for j, q in enumerate(b):
            assert table[i, j] == pytest.approx(_plain(p, q), abs=1e-4)


def _plain(a: str, b: str) -> float:
    drop = {phone: 0.5 if phone in sounds.VOWELS else 0.8 for phone in a + b}
    row = [0.0]
    for phone in b:
        row.append(row[-1] + drop[phone])
    for p in a:
        following = [row[0] + drop[p]]
        for j, q in enumerate(b):
            following.append(
                min(
                    row[j + 1] + drop[p],
                    following[j] + drop[q],
                    row[j] + sounds._exchange(p, q),
                )
            )
        row = following
    return row[-1]


@pytest.mark.parametrize(
    ("word", "like", "unlike"),
    [("night", "knight", "garden"), ("sea", "see", "bridge"), ("four", "for", "violin")],
)
def test_homophones_are_nearer_than_other_words(word, like, unlike):
    a, b, c = map(sounds.pronounce, (word, like, unlike))
    near, far = sounds.distances([a], [b, c])[0]
    assert near < 0.7
    assert far > 2
