"""Words beyond the prompt: what layers were given in a run is kept, and read with another text."""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from daam_diffusers.errors import TraceError
from daam_diffusers.families import Call, Family

logger = logging.getLogger(__name__)

# Arguments of `encode_prompt` that take the place of `prompt`.
_INSTEAD = re.compile(r"prompt_\d|(pooled_)?prompt_(embeds|attention_mask)(_\d)?")


class Inputs:
    """Pixels that the layers which read the prompt were given, and how their denoisers were called.

    What is more than `budget` bytes lies in a temporary folder, as long as this object lives.
    """

    def __init__(self, budget: int) -> None:
        self.size = 0  # bytes kept so far
        # Of each call of `encode_prompt` for the prompt: arguments by name, and what it returned.
        self.encodings: list[tuple[Mapping[str, Any], Any]] = []
        # By component, of its first call: arguments by name, the prompt's samples, their number.
        self.calls: dict[str, tuple[dict[str, Any], slice, int]] = {}
        self.fault: str | None = None  # why they could not be kept, if so
        self._budget = budget
        self._folder: Path | None = None
        self._states: dict[str, list[tuple[int, torch.Tensor | Path]]] = {}
        # Of a component's argument: which encoding, and which of its results.
        self._places: dict[tuple[str, str], tuple[int, int]] = {}

    def add(self, layer: str, step: int, states: torch.Tensor) -> None:
        """Keep what a layer was given in one step, samples first, in its own dtype."""
        if self.fault is not None:
            return
        states = states.detach().to("cpu", copy=True)
        kept: torch.Tensor | Path = states
        self.size += states.nbytes
        if self.size > self._budget:
            try:
                kept = self._written(states)
            except (OSError, SafetensorError) as error:  # the run goes on without
                self.fault = (
                    "what a probe needs of this run could not be written to "
                    f"{self._folder or 'a temporary folder'} ({error}): make room there, set "
                    "TMPDIR to another folder, or give more probe_memory"
                )
                logger.warning(self.fault)
                self._states.clear()
                self.size = 0
                return
        self._states.setdefault(layer, []).append((step, kept))

    def _written(self, states: torch.Tensor) -> Path:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="daam-probe-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
            logger.info("probe: the memory for inputs is full; writing to %s", self._folder)
        path = self._folder / f"{self.size}.safetensors"
        save_file({"states": states.contiguous()}, path)
        return path

    def of(self, layer: str) -> Iterator[tuple[int, torch.Tensor]]:
        """Steps, and what a layer was given in each."""
        for step, kept in self._states.get(layer, ()):
            yield step, load_file(kept)["states"] if isinstance(kept, Path) else kept

    def called(self, component: str, family: Family, call: Call, rows: slice, samples: int) -> None:
        """Take note of a denoiser's first call with the prompt.

        Which results of `encode_prompt` its texts and masks are is found by value, in the samples
        `rows` of a batch of `samples`.
        """
        arguments = {name: value for name, value in call.arguments.items() if name != "self"}
        names = [text.argument for text in family.text]
        lengths = {arguments[name].shape[-2] for name in names}
        names += [
            name for name, x in arguments.items()
            if "mask" in name and torch.is_tensor(x) and x.shape[-1] in lengths
        ]  # fmt: skip
        results = [
            ((number, place), one)
            for number, (_, result) in enumerate(self.encodings)
            for place, one in enumerate(_parts(result))
        ]
        for name in names:
            own = arguments[name][:: max(1, len(arguments[name]) // samples)][rows]
            found = next((place for place, one in results if _alike(one, own)), None)
            if found is None:
                raise TraceError(
                    f"probe=True: {name} of {type(call.denoiser).__name__} is not what "
                    "encode_prompt returned, so what it would be for another text is not known; "
                    "trace this pipeline without probe=True."
                )
            self._places[component, name] = found
        self.calls[component] = arguments, rows, samples

    def arguments(self, component: str, results: Sequence[Any]) -> dict[str, Any]:
        """The arguments of a denoiser's first call, another text in the prompt's samples.

        It is in `results`, which `encode_prompt` returned for each of `encodings`.
        """
        arguments, rows, samples = self.calls[component]
        changed = dict(arguments)
        for name, old in arguments.items():
            if (component, name) not in self._places:
                continue
            number, place = self._places[component, name]
            repeats = max(1, len(old) // samples)  # a row for each frame
            new = _parts(results[number])[place].to(old).repeat_interleave(repeats, dim=0)
            new = new.unsqueeze(1) if new.ndim < old.ndim else new
            if new.shape[1:] == old.shape[1:]:
                changed[name] = old.clone()
                changed[name][rows.start * repeats : rows.stop * repeats] = new
            else:  # another length, which all rows of a batch share
                changed[name] = new.repeat(len(old) // len(new), *[1] * (new.ndim - 1))
        return changed


def another(arguments: Mapping[str, Any], text: str) -> dict[str, Any]:
    """The arguments of `encode_prompt` with one text for all its encoders and rows."""
    given = arguments.get("prompt")
    given = arguments["prompt_embeds"] if given is None else given
    prompt = text if isinstance(given, str) else [text] * len(given)
    own = {name: None if _INSTEAD.fullmatch(name) else x for name, x in arguments.items()}
    return {**own, "prompt": prompt}


def _parts(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


def _alike(one: Any, own: torch.Tensor) -> bool:
    """Whether one is a tensor, and the other one but for dtype, device and axes of length 1."""
    if not isinstance(one, torch.Tensor) or one.numel() != own.numel() or len(one) != len(own):
        return False
    return torch.equal(one.to(own).reshape(own.shape), own)
