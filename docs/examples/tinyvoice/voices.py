"""Voice queries of simulated speakers, spoken by espeak-ng and flite.

    python docs/examples/tinyvoice/voices.py --part unseen --count 8 --out runs/queries

A speaker is a synthesiser's voice with a pace, a pitch and a resampling of its own. Three sets of
voices never meet: those trained on, two used to watch the training, and those never heard. For
espeak-ng a voice is an accent with a variant ("en-us+f1"); the variants and accents of the unheard
set occur in neither other set, and neither does flite's `rms` in any form.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import soundfile

import perturb
import queries

Engine = Literal["espeak-ng", "flite"]
Set = Literal["train", "dev", "seen", "unseen"]

FLITE = ("slt", "awb", "kal16", "kal")
FLITE_UNHEARD = "rms"
# The common accents come up more often.
ACCENTS = (
    "en-us", "en-us", "en-us", "en-gb", "en-gb", "en-gb-x-rp", "en-gb-scotland", "en-gb-x-gbclan",
    "en-gb-x-gbcwmd",
)  # fmt: skip
VARIANTS = (
    "f1", "f2", "f3", "f4", "m1", "m2", "m3", "m4", "m6", "m7", "Alex", "Alicia", "Andy", "Denis",
    "Diogo", "Gene", "Henrique", "Hugo", "Jacky", "Lee", "Marco", "Mario", "Michael", "Mike",
    "adam", "anika", "antonio", "aunty", "benjamin", "boris", "caleb", "david", "ed", "edward",
    "grandma", "grandpa", "gustave", "iven", "linda", "marcelo", "max", "miguel", "norbert",
    "pablo", "paul", "rob", "robert", "sandro", "shelby", "steph", "travis", "victor", "zac",
)  # fmt: skip
DEV = ("en-us+Annie", "en-gb+m8")
UNHEARD = (
    "en-us+f5",
    "en-us+belinda",
    "en-us+quincy",
    "en-gb+m5",
    "en-gb-x-rp+john",
    "en-us-nyc+Andrea",
    "en-029+m5",
)
SNR = {"train": (8.0, 35.0), "dev": (10.0, 30.0), "seen": (10.0, 30.0), "unseen": (10.0, 30.0)}
FLITE_SHARE = 0.4


@dataclass(frozen=True)
class Speaker:
    """Somebody who says things.

    Attributes:
        engine: "espeak-ng" or "flite".
        voice: the synthesiser's name for it.
        pace: words a minute (espeak-ng), or how much longer everything takes (flite).
        pitch: 0 to 99 (espeak-ng), or a factor (flite).
        size: resampling: above 1 for a larger, deeper voice that is also slower.
    """

    engine: Engine
    voice: str
    pace: float
    pitch: float
    size: float


@dataclass(frozen=True)
class Utterance:
    """A query as it will be said, `speaker` with this utterance's own pace and pitch.

    Attributes:
        noise, snr: kind and decibels below the speech; training draws its own each time.
        seed: of that noise.
    """

    text: str
    speaker: Speaker
    noise: perturb.NoiseKind
    snr: float
    seed: int


def speakers(part: Set, count: int, seed: int) -> list[Speaker]:
    """Speakers of one set of voices. Test speakers in trained voices are the trained speakers."""
    name = "train" if part == "seen" else part
    rng = np.random.default_rng([seed, *name.encode()])
    return [_speaker(rng, name, index) for index in range(count)]


def plan(part: Set, count: int, seed: int = 0, speaker_count: int = 240) -> list[Utterance]:
    """What is said by whom in which noise: a function of the arguments alone.

    "train" says sentences of queries' training part; "dev" the development part in two voices of
    its own and in trained voices, half and half; "seen" and "unseen" the test part.
    """
    rng = np.random.default_rng([seed, *b"plan", *part.encode()])
    people = speakers(part, speaker_count, seed)
    trained = speakers("train", speaker_count, seed)
    said: queries.Part = "test" if part in ("seen", "unseen") else part  # type: ignore[assignment]
    utterances = []
    for index in range(count):
        group = trained if part == "dev" and index % 2 else people
        # In turn where voices are to be compared: every one of them says as much.
        speaker = group[index % len(group) if part == "unseen" else int(rng.integers(len(group)))]
        utterances.append(
            Utterance(
                queries.draw(rng, said),
                _today(rng, speaker),
                perturb.NOISES[int(rng.integers(len(perturb.NOISES)))],
                round(float(rng.uniform(*SNR[part])), 1),
                int(rng.integers(2**31)),
            )
        )
    return utterances


def speak(text: str, speaker: Speaker) -> npt.NDArray[np.int16]:
    """Clean speech, 16 kHz, (N,), without silence at its ends and with a level of its own mean.

    Raises:
        FileNotFoundError: if the synthesiser is not installed.
        RuntimeError: if it fails or says nothing.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speech.wav"
        command = _command(text, speaker, path)
        try:
            done = subprocess.run(command, capture_output=True, check=False, text=True)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{command[0]} is not installed: apt-get install {command[0]}"
            ) from error
        if done.returncode or not path.exists():
            raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()}")
        audio, rate = soundfile.read(path, dtype="float32")
    if not np.any(audio):
        raise RuntimeError(f"{' '.join(command)} said nothing.")
    return finish(audio, rate, speaker.size)


def finish(audio: perturb.Floats, rate: int, size: float) -> npt.NDArray[np.int16]:
    """A synthesizer's speech, (M,) at `rate` Hz, as `speak` returns it for a speaker of a size."""
    audio = perturb.resample(audio, perturb.RATE / rate * size)
    loud = np.flatnonzero(np.abs(audio) > 2e-3 * np.abs(audio).max())
    audio = audio[loud[0] : loud[-1] + 1]
    audio *= perturb.LEVEL / np.sqrt(np.mean(audio**2))
    return np.round(np.clip(audio, -1, 1) * 32767).astype(np.int16)


def render(
    utterance: Utterance, speech: perturb.Floats, others: Sequence[perturb.Floats]
) -> perturb.Floats:
    """An utterance's recording in its own noise: float32, (M,).

    Args:
        utterance: what decides the noise.
        speech: what `speak` made of it, as floats.
        others: clean speech for babble.
    """
    rng = np.random.default_rng(utterance.seed)
    return perturb.in_noise(speech, utterance.noise, utterance.snr, rng, others)


def group(speaker: Speaker) -> str:
    """A name to compare voices by: the voice, or the accent of a trained espeak-ng voice."""
    if speaker.engine == "flite":
        return f"flite {speaker.voice}"
    if speaker.voice in UNHEARD:
        return f"espeak-ng {speaker.voice}"
    return f"espeak-ng {speaker.voice.split('+')[0]}"


def _speaker(rng: np.random.Generator, part: str, index: int) -> Speaker:
    if part == "unseen":
        voice = [*UNHEARD, FLITE_UNHEARD][index % (len(UNHEARD) + 1)]
        if voice == FLITE_UNHEARD:
            return _flite(rng, voice)
        return _espeak(rng, voice)
    if part == "dev":
        return _espeak(rng, DEV[index % len(DEV)])
    if rng.random() < FLITE_SHARE:
        # kal and kal16 are one speaker at two rates.
        return _flite(rng, str(rng.choice(FLITE, p=(0.35, 0.35, 0.2, 0.1))))
    accent, variant = rng.choice(ACCENTS), rng.choice(VARIANTS)
    return _espeak(rng, f"{accent}+{variant}")


def _flite(rng: np.random.Generator, voice: str) -> Speaker:
    pace, pitch, size = rng.uniform(0.85, 1.25), rng.uniform(0.8, 1.25), rng.uniform(0.88, 1.14)
    return Speaker("flite", voice, round(pace, 3), round(pitch, 3), round(size, 3))


def _espeak(rng: np.random.Generator, voice: str) -> Speaker:
    pace, pitch, size = rng.uniform(120, 175), rng.uniform(25, 75), rng.uniform(0.93, 1.07)
    return Speaker("espeak-ng", voice, round(pace), round(pitch), round(size, 3))


def _today(rng: np.random.Generator, speaker: Speaker) -> Speaker:
    """Nobody says a thing twice in exactly the same way."""
    pace, pitch = rng.uniform(0.94, 1.06, size=2)
    digits = 3 if speaker.engine == "flite" else None
    return Speaker(
        speaker.engine,
        speaker.voice,
        round(float(speaker.pace * pace), digits),
        round(float(speaker.pitch * pitch), digits),
        round(float(speaker.size * rng.uniform(0.985, 1.015)), 3),
    )


def _command(text: str, speaker: Speaker, path: Path) -> list[str]:
    if speaker.engine == "espeak-ng":
        return [
            "espeak-ng", "-v", speaker.voice, "-s", str(round(speaker.pace)),
            "-p", str(round(speaker.pitch)), "-w", str(path), text,
        ]  # fmt: skip
    return [
        "flite", "-voice", speaker.voice, "--setf", f"duration_stretch={speaker.pace:.3f}",
        "--setf", f"f0_shift={speaker.pitch:.3f}", "-t", text, "-o", str(path),
    ]  # fmt: skip


def main() -> None:
    """Write some queries as FLAC and print what is said in them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=list(SNR), default="seen")
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="a folder")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    planned = plan(options.part, options.count, options.seed)
    clips = [speak(one.text, one.speaker).astype(np.float32) / 32767 for one in planned]
    for number, (utterance, clip) in enumerate(zip(planned, clips, strict=True)):
        path = options.out / f"{options.part}-{number:04d}.flac"
        soundfile.write(path, render(utterance, clip, clips), perturb.RATE, subtype="PCM_16")
        print(path, utterance.speaker.voice, utterance.noise, utterance.snr, utterance.text)


if __name__ == "__main__":
    main()
