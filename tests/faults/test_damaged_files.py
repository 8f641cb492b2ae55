"""Saved files with bytes changed, cut and added: an error that is documented, or an object."""

from __future__ import annotations

import contextlib
import io
import json
import random
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

import record  # noqa: F401 - finds the makers of tiny maps

from hf_cudagraph_asr import BucketPlan, plan_buckets
from hf_cudagraph_asr.audio import AudioError, read_audio
from weaklabel.baselines import MajorityVote
from weaklabel.errors import WeakLabelError
from weaklabel.label_model import LabelModel
from weaklabel.models import load_model
from weaklabel.patterns import Patterns


@dataclass(frozen=True)
class Kind:
    """A kind of file: one that is whole, how it is read, and the errors that are documented."""

    whole: bytes = field(repr=False)
    suffix: str
    read: Callable[[Path], Any]
    errors: tuple[type[Exception], ...]


def wave() -> bytes:
    import soundfile

    buffer = io.BytesIO()
    samples = np.sin(np.arange(4000) / 9).astype(np.float32)
    soundfile.write(buffer, samples, 16_000, format="WAV")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kind]:
    from made_maps import made

    from daam_diffusers import HeatMaps

    folder, rng = tmp_path_factory.mktemp("whole"), np.random.default_rng(0)
    made().save(folder / "maps.safetensors")
    plan_buckets([0.5, 1.0, 2.0] * 9, graphs=2).save(folder / "plan.json")
    patterns = Patterns.of(("one", "two", "three"), rng.integers(-1, 2, (300, 3)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        LabelModel().fit(patterns).save(folder / "model.json")
        MajorityVote().fit(patterns).save(folder / "majority.json")
    patterns.save(folder / "patterns.parquet")
    (folder / "audio.wav").write_bytes(wave())
    readers: dict[str, tuple[Callable[[Path], Any], tuple[type[Exception], ...]]] = {
        "maps.safetensors": (HeatMaps.load, (ValueError,)),
        "plan.json": (BucketPlan.load, (ValueError,)),
        "model.json": (load_model, (WeakLabelError,)),
        "majority.json": (load_model, (WeakLabelError,)),
        "patterns.parquet": (Patterns.load, (WeakLabelError,)),
        "audio.wav": (lambda path: read_audio(path, 16_000), (AudioError,)),
    }
    return {
        name: Kind((folder / name).read_bytes(), Path(name).suffix, *reader)
        for name, reader in readers.items()
    }


def damaged(whole: bytes, rng: random.Random) -> bytes:
    """Some bytes are changed, cut out, repeated or added."""
    content = bytearray(whole)
    for _ in range(rng.randint(1, 4)):
        # Heads hold what the rest means, so that half of the damage is there.
        end = min(len(content), 512) if rng.random() < 0.5 else len(content)
        at = rng.randrange(max(end, 1))
        match rng.randrange(4):
            case 0 if content:
                content[at] ^= 1 << rng.randrange(8)
            case 1:
                del content[at : at + rng.randint(1, 40)]
            case 2:
                content[at:at] = content[at : at + rng.randint(1, 40)]
            case _:
                content[at:at] = rng.randbytes(rng.randint(1, 8))
    return bytes(content)


VALUES: tuple[Any, ...] = (None, True, -1, 0, 1e400, 10**30, "", "x", [], {}, [[]], {"": 0})


def altered(whole: bytes, rng: random.Random) -> bytes:
    """A value of a JSON file, at any depth, is another one, or is missing."""
    content = json.loads(whole)
    place = content
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = rng.choice(keys)
        if isinstance(place[key], dict | list) and place[key] and rng.random() < 0.7:
            place = place[key]
            continue
        if rng.random() < 0.2:
            del place[key]
        else:
            place[key] = rng.choice(VALUES)
        return json.dumps(content).encode()


@pytest.mark.parametrize(
    "name",
    [
        "maps.safetensors",
        "plan.json",
        "model.json",
        "majority.json",
        "patterns.parquet",
        "audio.wav",
    ],
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_a_damaged_file_is_read_or_refused_as_documented(
    name: str, seed: int, kinds: dict[str, Kind], tmp_path: Path
) -> None:
    kind, rng = kinds[name], random.Random(seed)
    alters = kind.suffix == ".json" and rng.random() < 0.7
    path = tmp_path / f"damaged{kind.suffix}"
    path.write_bytes((altered if alters else damaged)(kind.whole, rng))
    with contextlib.suppress(*kind.errors):
        kind.read(path)
