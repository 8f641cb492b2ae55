"""Stop traced generations at every place of the tracer; then look, and generate again.

    python tests/faults/stopped_generations.py            # two calls at each place
    python tests/faults/stopped_generations.py --every    # hours
    python tests/faults/stopped_generations.py --calls 5 --generations 20
    python tests/faults/stopped_generations.py --calls 0 --generations 500  # memory alone

As a pipeline generates and calls a function of daam_diffusers, hooks and all that they call, or as
daam_diffusers calls torch, the call raises: an exception of its own, and KeyboardInterrupt. After
each the pipeline must be as it was, and its next generation, plain and traced, bit for bit what it
is undisturbed. Before, one process traces many generations, and its memory is watched.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
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
from tqdm import tqdm
from turn import Turn, parser

import daam_diffusers
from daam_diffusers import HeatMaps, trace

ROOT = Path(__file__).parents[2]
UNDISTURBED = nullcontext()


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


def traced(
    case: Case, pipe: Any, turn: AbstractContextManager[object] = UNDISTURBED
) -> tuple[torch.Tensor, HeatMaps]:
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
    name: str, case: Case, choose: Callable[[Turn], Sequence[tuple[int, Any]]]
) -> tuple[dict[str, int], list[str]]:
    """Stop one pipeline's generation again and again, each time at another call.

    Args:
        name: for messages.
        case: the pipeline.
        choose: numbers of calls and kinds of faults, from the turn that counted the calls.

    Returns:
        How many calls, places and stops there are, and what was wrong.
    """
    pipe, stops = case.make(), 0
    wrong: list[str] = []
    plain = torch.as_tensor(case.run(pipe))
    before = state(pipe)
    traced(case, pipe)  # the first fills caches, by calls of its own
    counter = Turn(daam_diffusers, host="/diffusers/pipelines/")
    latents, maps = traced(case, pipe, counter)
    assert torch.equal(torch.as_tensor(latents), plain)
    for number, kind in tqdm(choose(counter), name):
        found, error = [], kind("in its turn")
        turn = Turn(daam_diffusers, number, error)
        try:
            traced(case, pipe, turn)
            if turn.dropped:
                continue
            found.append("it is swallowed")
        except (Fault, KeyboardInterrupt) as caught:
            if caught is not error:
                found.append("another is raised")
        stops += 1
        after = state(pipe)
        if after != before:
            changed = [k for k in after.keys() | before if after.get(k) != before.get(k)]
            found.append(f"left behind {sorted(changed)[:3]}")
            while torch.overrides._get_current_function_mode_stack():
                torch.overrides._pop_mode()
            pipe = case.make()
            case.run(pipe)  # the host's encoders get hooks of their own
            before = state(pipe)
        if not torch.equal(torch.as_tensor(case.run(pipe)), plain):
            found.append("the next generation is another")
        again = traced(case, pipe)
        if not torch.equal(torch.as_tensor(again[0]), plain) or not equal(again[1], maps):
            found.append("the next traced generation is another")
        for text in found:
            wrong.append(f"{name}, {kind.__name__} in {turn.at} (call {number}): {text}")
            tqdm.write(wrong[-1])
    counts = {
        "calls of the tracer in a generation": counter.calls,
        "places of these calls": len(counter.places),
        "generations stopped": stops,
    }
    return counts, wrong


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
        _, maps = traced(case, pipe)
        for word in maps:
            maps[word].values.sum()
        gc.collect()
        sizes.append(resident())
    counted = np.array(sizes[generations // 5 :], dtype=float)
    steps = np.arange(len(counted))
    return float(np.polyfit(steps, counted, 1)[0]) / 1024, (counted[-1] - counted[0]) / 2**20


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--generations", type=int, default=500)
    args = options.parse_args()
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
        last = "other things left behind, generations or maps that are others"
        for name, case in CASES.items():
            counts, found = stop_everywhere(
                name, case, lambda turn: turn.faults(args, rng, (KeyboardInterrupt, Fault))
            )
            wrong += found
            figures.pop(last, None)
            figures |= {f"{name}: {what}": count for what, count in counts.items()}
            figures[last] = len(wrong)
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
