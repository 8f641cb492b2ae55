"""Resampling, rooms and noise, against what they promise in decibels and hertz."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import perturb

SECOND = perturb.RATE


def tone(hertz: float, samples: int = SECOND) -> perturb.Floats:
    return np.sin(2 * np.pi * hertz * np.arange(samples) / SECOND).astype(np.float32)


def loudest(wave: perturb.Floats) -> float:
    """Frequency of the highest line, in Hz."""
    power = np.abs(np.fft.rfft(wave * np.hanning(len(wave)), 2**17))
    return float(np.argmax(power)) * SECOND / 2**17


def decibels(ratio: npt.ArrayLike) -> float:
    return float(10 * np.log10(ratio))


@settings(max_examples=25, deadline=None)
@given(st.floats(0.8, 1.25), st.floats(200, 3000), st.integers(8000, 40000))
def test_resampling_moves_a_tone_by_the_ratio_of_the_lengths(
    ratio: float, hertz: float, samples: int
) -> None:
    changed = perturb.resample(tone(hertz, samples), ratio)
    real = len(changed) / samples
    assert real == pytest.approx(ratio, rel=0.012)
    assert loudest(changed) == pytest.approx(hertz / real, rel=2e-3, abs=1)


def test_resampling_by_one_changes_nothing_and_levels_stay() -> None:
    wave = np.random.default_rng(0).standard_normal(12_345).astype(np.float32)
    np.testing.assert_allclose(perturb.resample(wave, 1.0), wave, atol=1e-5)
    slower = perturb.resample(tone(440), 1.2)
    assert np.std(slower) == pytest.approx(np.std(tone(440)), rel=0.01)


def test_a_response_is_applied_where_it_says() -> None:
    response = np.ones(513, np.complex64)
    response[256:] = 0  # nothing from 4 kHz on
    wave = tone(1000) + tone(6000)
    np.testing.assert_allclose(
        perturb.resample(wave, 1.0, response)[500:-500], tone(1000)[500:-500], atol=5e-3
    )


def test_a_room_is_within_its_decibels_and_an_echo_begins_with_the_sound() -> None:
    for seed in range(20):
        gain = 20 * np.log10(np.abs(perturb.room(np.random.default_rng(seed))[20:240]))
        assert np.ptp(gain) < 40
    click = np.zeros(8000, np.float32)
    click[100] = 1
    wet = perturb.echo(click, np.random.default_rng(0))
    np.testing.assert_allclose(wet[:100], 0, atol=1e-6)
    assert wet[100] == pytest.approx(1, abs=1e-5)
    assert 0 < np.sum(wet[101:] ** 2) < 0.3


@pytest.mark.parametrize("kind", perturb.NOISES)
def test_noise_is_as_far_below_the_speech_as_asked(kind: perturb.NoiseKind) -> None:
    speech = 0.05 * tone(300)
    mixed = perturb.in_noise(speech, kind, 15.0, np.random.default_rng(1), [tone(700), tone(900)])
    again = perturb.in_noise(speech, kind, 15.0, np.random.default_rng(1), [tone(700), tone(900)])
    np.testing.assert_array_equal(mixed, again)
    assert SECOND * 1.2 <= len(mixed) <= SECOND * 1.6
    fits = np.correlate(mixed, speech, "valid")
    lead = int(np.argmax(fits))
    rest = mixed.copy()
    rest[lead : lead + SECOND] -= speech
    assert decibels(np.mean(speech**2) / np.mean(rest**2)) == pytest.approx(15.0, abs=0.5)


def test_pink_noise_falls_by_three_decibels_an_octave() -> None:
    power = np.zeros(8193)
    for seed in range(20):
        wave = perturb.noise("pink", 16_384, np.random.default_rng(seed), [])
        power += np.abs(np.fft.rfft(wave)) ** 2
    low, high = power[512:1024].mean(), power[1024:2048].mean()
    assert decibels(low / high) == pytest.approx(3.0, abs=0.3)


def test_babble_of_nobody_and_unknown_noise_are_refused() -> None:
    with pytest.raises(ValueError, match="others"):
        perturb.noise("babble", 100, np.random.default_rng(0), [])
    with pytest.raises(ValueError, match="'brown'"):
        perturb.noise("brown", 100, np.random.default_rng(0), [])  # type: ignore[arg-type]
