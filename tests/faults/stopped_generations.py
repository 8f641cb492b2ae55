"""Stop traced generations at every call of the tracer; then look, and generate again.

    python tests/faults/stopped_generations.py               # some minutes
    python tests/faults/stopped_generations.py --calls 5 --generations 20
    python tests/faults/stopped_generations.py --calls 0 --generations 500  # memory alone

Every function of daam_diffusers that is entered while a pipeline generates, hooks and all that they
call, raises in its turn: an exception of its own, and KeyboardInterrupt. After each the pipeline
must be as it was, and its next generation, plain and traced, bit for bit what it is undisturbed.
Then one process traces many generations, and its memory is watched.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import record
import tiny_joint
import tiny_pipelines
import tiny_video
import torch
from diffusers import DiffusionPipeline
from turn import Turn

import daam_diffusers
from daam_diffusers import HeatMaps, trace

ROOT = Path(__file__).parents[2]


class Fault(Exception):
    """Raised where nobody expects it."""


@dataclass(frozen=True)
class Case:
    """A pipeline, and one seeded generation of it.

    Attributes:
        make: builds it.
        run: generates; gives the latents.
        refine: record self-attention as well.
    """

    make: Callable[[], Any]
    run: Callable[[Any], torch.Tensor]
    refine: bool = False


def tinyworld(folder: str) -> Case:
    def make() -> Any:
        pipe = DiffusionPipeline.from_pretrained(ROOT / "docs/examples/tinyworld" / folder)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def run(pipe: Any) -> Any:
        return pipe(
            "a red house left of a green tree",
            num_inference_steps=2,
            height=32,
            width=32,
            output_type="latent",
            generator=torch.Generator().manual_seed(3),
        ).images

    return Case(make, run, refine=True)


def tiny(variant: Any) -> Case:
    return Case(variant.make, lambda pipe: variant.run(pipe, num_inference_steps=2))


CASES = {
    "tinyworld's U-Net, cross- and self-attention": tinyworld("model"),
    "tinyworld's transformer, joint attention": tinyworld("model-transformer"),
    "Stable Diffusion in slices": tiny(tiny_pipelines.VARIANTS["sliced"]),
    "Stable Diffusion with an IP-Adapter": tiny(tiny_pipelines.VARIANTS["ip-adapter"]),
    "Flux, joint attention": tiny(tiny_joint.VARIANTS["flux dev"]),
    "PRX, text added to the keys": tiny(tiny_joint.VARIANTS["prx"]),
    "Wan, cross-attention of a video": tiny(tiny_video.VIDEOS["wan"]),
}


def state(pipe: Any) -> dict[str, Any]:
    """Everything that a tracer could leave behind, by identity."""
    found: dict[str, Any] = {f"pipe.{k}": id(v) for k, v in vars(pipe).items() if k[0] != "_"}
    found["class"] = type(pipe)
    for component, part in pipe.components.items():
        for name, module in part.named_modules() if isinstance(part, torch.nn.Module) else ():
            for key, value in vars(module).items():
                if "hooks" in key:
                    found[f"{component}.{name}.{key}"] = (
                        tuple(value) if hasattr(value, "keys") else value
                    )
            found[f"{component}.{name}.attributes"] = frozenset(vars(module))
            found[f"{component}.{name}.processor"] = id(getattr(module, "processor", None))
    found["modes"] = torch.overrides._get_current_function_mode_stack()
    return found


def traced(case: Case, pipe: Any, turn: Turn) -> tuple[torch.Tensor, HeatMaps]:
    with trace(pipe, refine=case.refine) as tracer, turn:
        latents = case.run(pipe)
    return latents, tracer.heat_maps()


def equal(left: HeatMaps, right: HeatMaps) -> bool:
    """Whether all maps are the same to the bit."""
    same = left.probabilities.keys() == right.probabilities.keys()
    return same and all(
        torch.equal(value, right.probabilities[name]) for name, value in left.probabilities.items()
    )


def stop_everywhere(
    name: str, case: Case, calls: int | None, rng: random.Random
) -> tuple[int, int, list[str]]:
    """Faults of one pipeline.

    Args:
        name: for messages.
        case: the pipeline.
        calls: how many of the calls to stop at; None for every one.
        rng: chooses them.

    Returns:
        How many calls a generation makes, how many faults there were, and what was wrong.
    """
    pipe, wrong, faults = case.make(), [], 0
    plain = torch.as_tensor(case.run(pipe))
    before = state(pipe)
    traced(case, pipe, Turn(daam_diffusers))  # the first fills caches, by calls of its own
    counter = Turn(daam_diffusers)
    latents, maps = traced(case, pipe, counter)
    assert torch.equal(torch.as_tensor(latents), plain)
    numbers: Sequence[int] = range(1, counter.calls + 1)
    if calls is not None:
        numbers = sorted(rng.sample(numbers, min(calls, len(numbers))))
    for number in numbers:
        for error in (Fault("in its turn"), KeyboardInterrupt()):
            turn = Turn(daam_diffusers, number, error)
            where = f"{name}, {type(error).__name__} at call {number}"
            try:
                traced(case, pipe, turn)
                # Python itself drops what is raised as a generator is closed.
                if "<genexpr>" in turn.at:
                    continue
                wrong.append(f"{where}: it is swallowed")
            except (Fault, KeyboardInterrupt) as caught:
                if caught is not error:
                    wrong.append(f"{where}: another is raised")
            faults += 1
            after = state(pipe)
            if after != before:
                changed = [k for k in after.keys() | before if after.get(k) != before.get(k)]
                wrong.append(f"{where}, {turn.at}: left behind {sorted(changed)[:3]}")
                while torch.overrides._get_current_function_mode_stack():
                    torch.overrides._pop_mode()
                pipe = case.make()
                before = state(pipe)
            if not torch.equal(torch.as_tensor(case.run(pipe)), plain):
                wrong.append(f"{where}: the next generation is another")
            again = traced(case, pipe, Turn(daam_diffusers))
            if not torch.equal(torch.as_tensor(again[0]), plain) or not equal(again[1], maps):
                wrong.append(f"{where}: the next traced generation is another")
    return counter.calls, faults, wrong


def resident() -> int:
    """Bytes of this process in memory (Linux)."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * 4096


def slope(case: Case, generations: int) -> tuple[float, float]:
    """Growth of memory over traced generations with all their maps read.

    The first fifth is left out, while caches fill.

    Returns:
        KiB a generation by least squares, and MiB from the first counted one to the last.
    """
    pipe, sizes = case.make(), []
    for _ in range(generations):
        _, maps = traced(case, pipe, Turn(daam_diffusers))
        for word in maps:
            maps[word].values.sum()
        gc.collect()
        sizes.append(resident())
    counted = np.array(sizes[generations // 5 :], dtype=float)
    steps = np.arange(len(counted))
    return float(np.polyfit(steps, counted, 1)[0]) / 1024, (counted[-1] - counted[0]) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, help="calls to stop at; default: every one")
    parser.add_argument("--generations", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-record", action="store_true", help="leave docs/reliability alone")
    args = parser.parse_args()
    torch.set_num_threads(1)
    wrong: list[str] = []
    if args.generations:
        began = time.perf_counter()
        name = "tinyworld's U-Net, cross- and self-attention"
        grown, whole = slope(CASES[name], args.generations)
        figures: dict[str, Any] = {
            "traced generations in one process": args.generations,
            "growth of its memory, KiB a generation": f"{grown:.2f}",
            "from first to last after a fifth of them, MiB": f"{whole:.2f}",
        }
        report("daam_diffusers_memory", figures, began, args)
    if args.calls is None or args.calls:
        began, rng, figures = time.perf_counter(), random.Random(args.seed), {}
        for name, case in CASES.items():
            calls, faults, found = stop_everywhere(name, case, args.calls, rng)
            figures[f"{name}: calls of the tracer in a generation"] = calls
            figures[f"{name}: generations stopped"] = faults
            wrong += found
            print(name, calls, faults, *found, sep="\n  ", flush=True)
        figures["other things left behind, generations or maps that are others"] = len(wrong)
        report("daam_diffusers", figures, began, args)
    sys.exit(bool(wrong))


def report(name: str, figures: dict[str, Any], began: float, args: argparse.Namespace) -> None:
    print(json.dumps(figures, indent=1), flush=True)
    if not args.no_record:
        record.save(
            name, figures, began=began, seed=args.seed,
            packages=("daam_diffusers", "torch", "diffusers"),
        )  # fmt: skip


if __name__ == "__main__":
    main()
