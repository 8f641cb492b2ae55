"""What `plan` still takes from here; the rest lies in `hf_cudagraph_asr.cli`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from hf_cudagraph_asr.cli import (
    Device,
    Dtype,
    Plan,
    Progress,
    counted,
    keep_apart,
    quiet_host,
    say,
    sizes,
    warn,
)
from hf_cudagraph_asr.cli import output as console

if TYPE_CHECKING:
    from hf_cudagraph_asr.durations import Durations
    from hf_cudagraph_asr.geometry import Geometry

__all__ = [
    "Column", "Device", "Dtype", "Plan", "Progress", "console", "counted", "keep_apart",
    "quiet_host", "say", "size_in_bytes", "sizes", "usable", "warn",
]  # fmt: skip

Column: TypeAlias = Annotated[
    str, typer.Option(help="The column, or the key of JSON lines, that holds seconds.")
]

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def size_in_bytes(text: str | None) -> float | None:
    """A number of bytes such as "1GiB", "500MB" or "1000000".

    >>> size_in_bytes("1.5GiB"), size_in_bytes("500 MB")
    (1610612736.0, 500000000.0)

    Raises:
        ValueError: it is none.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]i?)?b?", text.strip().lower())
    if found is None or not float(found[1]):
        raise ValueError(f"--memory-limit {text}: expected bytes, such as 1000000, 500MB or 1GiB")
    return float(found[1]) * _UNITS[found[2] or ""]


def usable(found: Durations, geometry: Geometry) -> Durations:
    """Those that a model can transcribe; what is left out is told on standard error."""
    for message in found.unread:
        warn(message)
    if found.unread:
        warn(f"{counted(len(found.unread), 'file')} could not be read: not counted")
    if found.missing:
        warn(f"{counted(found.missing, 'row')} without a number of seconds: not counted")
    shortest = geometry.receptive_field / geometry.sampling_rate
    usable = found.at_least(shortest)
    if short := len(found) - len(usable):
        warn(
            f"{counted(short, 'duration')} below the {shortest:g} s of a frame, down to "
            f"{found.seconds.min():g} s: not counted"
        )
    return usable
