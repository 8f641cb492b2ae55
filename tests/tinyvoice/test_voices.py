"""Who speaks: sets of voices that do not meet, plans that repeat, synthesisers that speak."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

import perturb
import queries
import voices
from voices import Speaker

Require = Callable[[object, str], None]

ESPEAK = Speaker("espeak-ng", "en-us+f1", 150, 50, 1.0)
FLITE = Speaker("flite", "slt", 1.0, 1.0, 1.0)


def test_a_plan_is_a_function_of_its_arguments() -> None:
    assert voices.plan("seen", 30, 5) == voices.plan("seen", 30, 5)
    assert voices.plan("seen", 30, 5) != voices.plan("seen", 30, 6)
    # More of it begins with the same.
    assert voices.plan("unseen", 30)[:20] == voices.plan("unseen", 20)


def test_voices_never_heard_share_no_voice_variant_or_unheard_accent_with_the_others() -> None:
    def names(part: voices.Set) -> set[str]:
        return {one.speaker.voice for one in voices.plan(part, 1500)}

    train, unseen = names("train"), names("unseen")
    assert unseen == {*voices.UNHEARD, "rms"}
    assert not train & (unseen | set(voices.DEV))
    variants = {voice.split("+")[1] for voice in train if "+" in voice}
    for voice in [*voices.UNHEARD, *voices.DEV]:
        accent, variant = voice.split("+")
        assert variant not in variants
        assert accent in voices.ACCENTS or not any(name.startswith(accent + "+") for name in train)
    assert names("seen") <= {speaker.voice for speaker in voices.speakers("train", 240, 0)}
    assert "rms" not in train


def test_a_hundred_speakers_and_more_train_and_the_same_ones_are_tested() -> None:
    train = voices.speakers("train", 240, 0)
    assert len(set(train)) > 200
    assert train == voices.speakers("seen", 240, 0)


def test_the_parts_say_their_own_sentences_and_every_unheard_voice_as_many() -> None:
    for part, kind in (("train", "train"), ("seen", "test"), ("unseen", "test"), ("dev", "dev")):
        assert {queries.part_of(one.text) for one in voices.plan(part, 64)} == {kind}  # type: ignore[arg-type]
    said = [one.speaker.voice for one in voices.plan("unseen", 640)]
    assert {said.count(name) for name in set(said)} == {80}


@pytest.mark.parametrize("speaker", [ESPEAK, FLITE, replace(FLITE, voice="kal")])
def test_a_synthesiser_speaks_at_the_level_rate_and_pace_it_is_asked_for(
    speaker: Speaker, require: Require
) -> None:
    require(shutil.which(speaker.engine), f"{speaker.engine} is not installed")
    speech = voices.speak("watch star wars", speaker)
    np.testing.assert_array_equal(speech, voices.speak("watch star wars", speaker))
    assert speech.dtype == np.int16
    assert 0.5 < len(speech) / perturb.RATE < 2
    level = np.sqrt(np.mean((speech / 32767.0) ** 2))
    assert level == pytest.approx(perturb.LEVEL, rel=0.02)
    slowly = 1.3 * speaker.pace if speaker.engine == "flite" else speaker.pace / 1.3
    assert len(voices.speak("watch star wars", replace(speaker, pace=slowly))) > 1.15 * len(speech)
    larger = voices.speak("watch star wars", replace(speaker, size=1.2))
    assert len(larger) == pytest.approx(1.2 * len(speech), rel=0.03)


def test_every_variant_named_exists(require: Require) -> None:
    # espeak-ng speaks in its own voice, without a word, if it does not know a variant.
    require(shutil.which("espeak-ng"), "espeak-ng is not installed")
    done = subprocess.run(
        ["espeak-ng", "--voices=variant"], capture_output=True, check=True, text=True
    )
    known = {line.split("!v/")[1].split()[0] for line in done.stdout.splitlines() if "!v/" in line}
    held_out = {voice.split("+")[1] for voice in [*voices.UNHEARD, *voices.DEV]}
    assert not ({*voices.VARIANTS} | held_out) - known


def test_what_cannot_be_spoken_is_an_error(
    require: Require, monkeypatch: pytest.MonkeyPatch
) -> None:
    require(shutil.which("espeak-ng"), "espeak-ng is not installed")
    with pytest.raises(RuntimeError, match="espeak-ng"):
        voices.speak("hello", replace(ESPEAK, voice="xx-nowhere"))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FileNotFoundError, match="apt-get install espeak-ng"):
        voices.speak("hello", ESPEAK)
