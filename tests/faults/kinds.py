"""The kinds of files that the packages read: one of each that is whole, its reader, its errors."""

from __future__ import annotations

import atexit
import contextlib
import functools
import io
import shutil
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import record  # noqa: F401 - finds the makers of tiny maps
from made_maps import made

from daam_diffusers import HeatMaps
from hf_cudagraph_asr import BucketPlan, plan_buckets
from hf_cudagraph_asr.audio import AudioError, read_audio
from weaklabel import tables
from weaklabel.baselines import MajorityVote
from weaklabel.cli import main
from weaklabel.errors import WeakLabelError
from weaklabel.label_model import LabelModel
from weaklabel.models import load_model
from weaklabel.patterns import METADATA, Patterns

# Read by a command of weaklabel's, from its beginning to its end.
COMMANDS = (
    "queries.parquet",
    "queries.csv",
    "queries.jsonl",
    "votes.parquet",
    "metadata.json",  # of votes
    "manifest.json",  # of a folder of votes
)
NAMES = (
    "maps.safetensors",
    "plan.json",
    "model.json",
    "majority.json",
    "patterns.parquet",
    "audio.wav",
    *COMMANDS,
)
LOG = Path(__file__).parents[2] / "docs/examples/households/queries.parquet"


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        folder: where what belongs to a file lies, and where others are tried.
        content: of one that is whole.
        suffix: of its name.
        reader: reads one.
        error: that is documented.
    """

    folder: Path
    content: bytes = field(repr=False)
    suffix: str
    reader: Callable[[Path], Any]
    error: type[Exception]

    def read(self, content: bytes) -> None:
        """Read a file of this content; the documented error is an answer."""
        path = self.folder / f"tried{self.suffix}"
        path.write_bytes(content)
        with contextlib.suppress(self.error):
            self.reader(path)


class Refused(Exception):
    """What a command said as it refused what it was given."""


def command(*words: Any) -> None:
    """Run weaklabel's command line, which ends well or says in words why not; it never raises."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = main([str(word) for word in words])
    if code == 2 and "error: " in said.getvalue():
        raise Refused(said.getvalue())
    assert code == 0, said.getvalue()


def voted(log: Path) -> None:
    command("apply", log, "--out", log.with_name("made.parquet"), "--no-progress")


def labeled(votes: Path) -> None:
    """Fit a model to votes, and label them by it."""
    model = votes.with_name("fitted.json")
    command("fit", votes, "--out", model)
    command("label", votes, "--model", model, "--out", votes.with_name("labels.parquet"))


def described_by(metadata: Path) -> None:
    """Read votes with this metadata."""
    votes = metadata.with_name("described.parquet")
    about = {METADATA: metadata.read_text("utf-8", "replace")}
    pl.read_parquet(metadata.with_name("votes.parquet")).write_parquet(votes, metadata=about)
    labeled(votes)


def resumed(manifest: Path) -> None:
    """Go on with a run that has this manifest, and read its votes."""
    folder = manifest.with_name("votes")
    shutil.copy(manifest, folder / "_weaklabel.json")
    log = manifest.with_name("queries.parquet")
    command("apply", log, "--out", folder, "--partitions", 2, "--resume", "--no-progress")
    labeled(folder)


@functools.cache
def kinds() -> dict[str, Kind]:
    """Every kind of file by its name, made in a folder that goes with this process."""
    folder, rng = Path(tempfile.mkdtemp()), np.random.default_rng(0)
    atexit.register(shutil.rmtree, folder)
    made().save(folder / "maps.safetensors")
    plan_buckets([0.5, 1.0, 2.0] * 9, graphs=2).save(folder / "plan.json")
    patterns = Patterns.of(("one", "two", "three"), rng.integers(-1, 2, (300, 3)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        LabelModel().fit(patterns).save(folder / "model.json")
        MajorityVote().fit(patterns).save(folder / "majority.json")
    patterns.save(folder / "patterns.parquet")
    (folder / "audio.wav").write_bytes(wave())
    log = pl.read_parquet(LOG).head(40)
    for suffix in ("parquet", "csv", "jsonl"):
        tables.write(log, folder / f"queries.{suffix}")
    command("apply", folder / "queries.parquet", "--out", folder / "votes.parquet", "--no-progress")
    command(
        *("apply", folder / "queries.parquet", "--out", folder / "votes"),
        *("--partitions", 2, "--no-progress"),
    )
    shutil.copy(folder / "votes/_weaklabel.json", folder / "manifest.json")
    about = pl.read_parquet_metadata(folder / "votes.parquet")[METADATA]
    (folder / "metadata.json").write_text(about, "utf-8")
    readers: dict[str, tuple[Callable[[Path], Any], type[Exception]]] = {
        "maps.safetensors": (HeatMaps.load, ValueError),
        "plan.json": (BucketPlan.load, ValueError),
        "model.json": (load_model, WeakLabelError),
        "majority.json": (load_model, WeakLabelError),
        "patterns.parquet": (Patterns.load, WeakLabelError),
        "audio.wav": (lambda path: read_audio(path, 16_000), AudioError),
        **dict.fromkeys(("queries.parquet", "queries.csv", "queries.jsonl"), (voted, Refused)),
        "votes.parquet": (labeled, Refused),
        "metadata.json": (described_by, Refused),
        "manifest.json": (resumed, Refused),
    }
    return {
        name: Kind(folder, (folder / name).read_bytes(), Path(name).suffix, *readers[name])
        for name in NAMES
    }


def wave() -> bytes:
    import soundfile

    buffer = io.BytesIO()
    samples = np.sin(np.arange(4000) / 9).astype(np.float32)
    soundfile.write(buffer, samples, 16_000, format="WAV")
    return buffer.getvalue()
