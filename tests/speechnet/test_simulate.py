"""What households say: sentences nobody trained on, people and days apart, speech that repeats."""

from __future__ import annotations

import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import soundfile

import perturb
import queries
import voices
from speechnet import phrases, settings, simulate, speech
from speechnet.settings import SIZES

Require = Callable[[object, str], None]

TINY = replace(SIZES["smoke"], name="tiny", train=8, test=4)


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(settings, "WORK", tmp_path / "work")
    monkeypatch.setattr(settings, "RESULTS", tmp_path / "results")
    return tmp_path


@pytest.fixture(scope="module")
def planned() -> pl.DataFrame:
    return simulate.plan(SIZES["cpu"])


def test_the_catalog_has_300_words_that_pocketsphinx_knows_and_no_two_sound_the_same() -> None:
    pocketsphinx = pytest.importorskip("pocketsphinx")
    sounds: defaultdict[str, set[str]] = defaultdict(set)
    known = phrases.words()
    dictionary = Path(pocketsphinx.get_model_path()) / "en-us" / "cmudict-en-us.dict"
    for line in dictionary.read_text().splitlines():
        word, pronunciation = line.split(maxsplit=1)
        if word.split("(")[0] in known:
            sounds[pronunciation.strip()].add(word.split("(")[0])
    assert len(known) >= 300
    assert set().union(*sounds.values()) == set(known)
    assert [same for same in sounds.values() if len(same) > 1] == []


def test_no_sentence_is_one_that_tinyvoice_was_trained_on() -> None:
    told = json.loads((Path(voices.__file__).parent / "model" / "training.json").read_text())
    planned = voices.plan("train", told["utterances"], told["seed"], told["speakers"])
    heard = {one.text for one in planned} | queries.ALWAYS_TRAINED
    assert len(heard) > 5_000
    assert not heard & {phrase.text for phrase in phrases.sentences()}


def test_a_sentence_asks_for_one_thing() -> None:
    wanted = Counter(phrase.text for phrase in phrases.sentences())
    assert [text for text, count in wanted.items() if count > 1] == []


def test_popularity_drifts_and_new_titles_begin_as_news() -> None:
    first, later = phrases.shares("title", 0), phrases.shares("title", 20)
    assert first.sum() == pytest.approx(1)
    new = (first == 0) & (later > 0)
    assert new.sum() > 10
    assert not ((first > 0) & (later == 0)).any()
    # Some of the head of the list changes places, and a few titles are half of what is wanted.
    assert set(np.argsort(first)[-10:]) != set(np.argsort(later)[-10:])
    assert np.sort(first)[-20:].sum() > 0.5
    shares = np.stack([phrases.shares("title", day) for day in range(60)])
    appears = (shares > 0).argmax(axis=0)
    late = np.flatnonzero((appears > 0) & (appears < 50))
    assert shares[appears[late], late].mean() > 2 * shares[appears[late] + 8, late].mean()


def test_what_is_asked_on_a_day_adds_up_and_names_only_what_has_appeared() -> None:
    asked = phrases.asked(3)
    assert sum(asked.values()) == pytest.approx(1)
    assert set(asked) < set(phrases.sentences())
    titles = {phrase.item for phrase in asked if phrase.kind == "title"}
    assert len(titles) == (phrases.shares("title", 3) > 0).sum() < len(phrases.titles())


def test_an_unknown_size_is_refused() -> None:
    with pytest.raises(ValueError, match="smoke, cpu, full, not 'huge'"):
        settings.size_named("huge")


def test_a_plan_repeats_and_has_its_size_in_order_of_time(planned: pl.DataFrame) -> None:
    assert planned.equals(simulate.plan(SIZES["cpu"]))
    train, test = (planned.filter(pl.col("part") == part) for part in settings.PARTS)
    assert 4_000 <= len(train) < 4_030
    assert len(test) == 1_000
    assert planned["utterance_id"].n_unique() == len(planned)
    assert planned["utterance_id"].is_sorted()
    for part in (train, test):
        assert part["clock"].is_sorted()


def test_the_test_has_people_days_and_voices_of_its_own(planned: pl.DataFrame) -> None:
    train, test = (planned.filter(pl.col("part") == part) for part in settings.PARTS)
    assert not set(train["household"]) & set(test["household"])
    assert train["day"].min() == settings.HISTORY
    assert train["day"].max() < test["day"].min()  # type: ignore[operator]
    engine, voice = simulate.UNHEARD
    assert voice not in set(train["voice"])
    assert test.filter(engine=engine)["voice"].unique().to_list() == [voice]
    assert set(test["engine"]) == {engine, *train["engine"]}  # the others have the log's voices
    counts: Counter[str] = Counter(test["engine"])
    for part in {engine for engine, _ in simulate.TEST_VOICES}:
        share = sum(s for (engine, _), s in simulate.TEST_VOICES.items() if engine == part)
        assert counts[part] / len(test) == pytest.approx(share, abs=0.02)


def test_attempts_follow_their_wish_in_its_own_voice_and_room(planned: pl.DataFrame) -> None:
    train = planned.filter(pl.col("part") == "train")
    wishes = train.group_by("session", "wish", maintain_order=True)
    more = Counter()
    for _, wish in wishes:
        assert wish["attempt"].to_list() == list(range(len(wish)))
        assert wish["how"][0] == "first"
        for column in ("household", "person", "item", "voice", "device", "noise", "day"):
            assert wish[column].n_unique() == 1
        for how, text, before in zip(wish["how"][1:], wish["text"][1:], wish["text"], strict=False):
            assert how == ("again" if text == before else "otherwise")
        more[len(wish) - 1] += 1
    for attempts, share in enumerate(settings.TRIES):
        assert more[attempts] / more.total() == pytest.approx(share, abs=0.04)


def test_a_person_keeps_to_one_voice_and_speaks_a_little_differently_each_time(
    planned: pl.DataFrame,
) -> None:
    people = planned.group_by("household", "person").agg(
        pl.col("voice", "device").n_unique(),
        (pl.col("size").max() / pl.col("size").min()).alias("spread"),
    )
    assert people["voice"].to_list() == [1] * len(people)
    assert people["device"].to_list() == [1] * len(people)
    assert people["spread"].max() < 1.05  # type: ignore[operator]
    assert people["spread"].max() > 1.01  # type: ignore[operator]


@pytest.mark.parametrize(
    ("engine", "voice", "pace", "pitch", "tool"),
    [
        ("espeak-ng", "en-us+f5", 150.0, 50.0, "espeak-ng"),
        ("flite", "rms", 1.0, 1.0, "flite"),
        ("festival", "ked_diphone", 1.1, 110.0, "festival"),
        ("hibari", "heart", 1.0, 1.0, ""),
        ("piper", "joe", 1.1, 1.0, "piper"),
    ],
)
def test_a_voice_says_a_thing_in_one_way_in_any_company(
    engine: str, voice: str, pace: float, pitch: float, tool: str
) -> None:
    speaker = voices.Speaker(engine, voice, pace, pitch, 1.0)  # type: ignore[arg-type]
    one = voices.Utterance("play the golden brothers", speaker, "pink", 20.0, 3)
    other = replace(one, text="news harbor", speaker=replace(speaker, size=1.1))
    try:
        alone, together = speech.clean([one]), speech.clean([other, one])
    except FileNotFoundError as missing:
        pytest.skip(str(missing))
    np.testing.assert_array_equal(alone[0], together[1])
    assert 0.8 < len(alone[0]) / settings.RATE < 3.0
    assert len(together[0]) < len(together[1])
    assert np.sqrt(np.mean(alone[0] ** 2)) == pytest.approx(perturb.LEVEL, rel=0.02)


def test_a_missing_piper_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    joe = voices.Speaker("piper", "joe", 1.0, 1.0, 1.0)  # type: ignore[arg-type]
    monkeypatch.setenv(speech.PIPER, str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match="piper is not installed: make runs/speechnet/piper"
    ):
        speech.clean([voices.Utterance("mute", joe, "pink", 20.0, 0)])


def test_noise_lies_where_the_table_says_below_the_speech() -> None:
    rng = np.random.default_rng(0)
    voice = (0.06 * np.sin(np.arange(16_000) / 9) * rng.uniform(0.5, 1, 16_000)).astype(np.float32)
    speaker = voices.Speaker("flite", "rms", 1.0, 1.0, 1.0)
    said = voices.Utterance("mute", speaker, "white", 60.0, 1)
    for device in simulate.SNR:
        near, far = (speech.in_room(voice, device, replace(said, snr=snr)) for snr in (60.0, 6.0))
        assert len(near) == len(far)
        noise = np.sqrt(np.mean((far - near) ** 2))
        assert 20 * np.log10(perturb.LEVEL / noise) == pytest.approx(6, abs=0.5)
    quiet, pink = (
        speech.in_room(voice, "remote", replace(said, noise=noise)) for noise in ("quiet", "pink")
    )
    np.testing.assert_array_equal(quiet, pink)


def test_recordings_are_made_once_and_again_when_the_plan_changes(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not shutil.which("espeak-ng"):
        pytest.skip("espeak-ng is not installed")
    monkeypatch.setattr(simulate, "TRAIN_VOICES", {("espeak-ng", ""): 1.0})
    monkeypatch.setattr(simulate, "TEST_VOICES", {("espeak-ng", "en-us+f5"): 1.0})
    rows = simulate.simulate(TINY)
    first = rows.row(0, named=True)
    path = settings.audio(TINY, first["part"], first["utterance_id"])
    audio, rate = soundfile.read(path, dtype="int16")
    assert (rate, soundfile.info(path).subtype) == (16_000, "PCM_16")
    assert len(audio) / rate == first["duration"]
    assert rows["duration"].is_between(0.4, 8).all()

    before = path.stat().st_mtime_ns
    assert simulate.simulate(TINY).equals(rows)  # nothing to do
    assert path.stat().st_mtime_ns == before
    path.unlink()  # one is missing: only it is made again, and is the same
    simulate.simulate(TINY)
    np.testing.assert_array_equal(soundfile.read(path, dtype="int16")[0], audio)

    other = rows.with_columns(pl.col("seed") + (pl.col("utterance_id") == first["utterance_id"]))
    kept = settings.audio(TINY, rows["part"][1], rows["utterance_id"][1])
    untouched = kept.stat().st_mtime_ns
    speech.record(other, TINY)
    assert not np.array_equal(soundfile.read(path, dtype="int16")[0][: len(audio)], audio)
    assert kept.stat().st_mtime_ns == untouched
