"""One tool in its own environment: the same generation traced and untraced, or its maps saved.

Run by bench_peers.py with each environment's Python. A tool's own code runs unmodified.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pipelines
import torch
from safetensors.torch import load_file, save_file
from timing import compare

# A tool generates traced and returns the latents, and a function that makes maps of its record.
Generate = Callable[[], torch.Tensor]
Traced = tuple[torch.Tensor, Callable[[], object]]


def ours(pipe: Any, generate: Generate, scratch: Path) -> Traced:
    from daam_diffusers import trace

    with trace(pipe) as tracer:
        latents = generate()
    return latents, lambda: [heat_map for _, heat_map in tracer.heat_maps().by_word()]


def castorini_daam(pipe: Any, generate: Generate, scratch: Path) -> Traced:
    import daam

    # Its hooks make a folder, by default in the user's cache.
    with daam.trace(pipe, data_dir=str(scratch)) as tracer:
        latents = generate()
    return latents, tracer.compute_global_heat_map


def _attention_map_diffusers(timesteps: str) -> Callable[[Any, Generate, Path], Traced]:
    def traced(pipe: Any, generate: Generate, scratch: Path) -> Traced:
        from attention_map_diffusers import AttentionCapture

        with AttentionCapture(pipe, timesteps=timesteps) as capture:
            latents = generate()
        return latents, capture.compute

    return traced


TOOLS: dict[str, Callable[[Any, Generate, Path], Traced]] = {
    "daam-diffusers": ours,
    "daam": castorini_daam,
    "attention-map-diffusers": _attention_map_diffusers("last"),
    "attention-map-diffusers, all steps": _attention_map_diffusers("all"),
}


def measure(tool: str, geometry: str, steps: int, pairs: int, scratch: Path) -> dict[str, Any]:
    pipe = pipelines.build(geometry)
    made: list[Callable[[], object]] = []

    def plain() -> torch.Tensor:
        return pipelines.generate(pipe, geometry, prompt=pipelines.PROMPT_20, steps=steps)

    def traced() -> torch.Tensor:
        made.clear()  # only one record at a time
        latents, maps = TOOLS[tool](pipe, plain, scratch)
        made.append(maps)
        return latents

    expected, untraced_peak = plain(), _peak()
    latents, traced_peak = traced(), _peak()
    comparison = compare(plain, traced, pairs=pairs, device="cpu")
    start = time.process_time()
    made[0]()
    return {
        **asdict(comparison),
        "wall_ratio": asdict(comparison.ratio("wall")),
        "cpu_ratio": asdict(comparison.ratio("cpu")),
        "maps_cpu": time.process_time() - start,
        "untraced_peak_bytes": untraced_peak,
        "traced_extra_peak_bytes": traced_peak - untraced_peak,
        "with_maps_extra_peak_bytes": _peak() - untraced_peak,
        "bit_identical": torch.equal(expected, latents),
        "latents_max_difference": float((expected - latents).abs().max()),
    }


def save_maps(tool: str, geometry: str, steps: int, scratch: Path, weights: Path) -> dict[str, Any]:
    """Maps of the special and the prompt's own tokens, (T, h, w), of a pipeline with `weights`.

    Our mean over the steps, and castorini/daam's sum over them divided by their number.
    """
    pipe = pipelines.build(geometry)
    for name, part in _parts(pipe).items():
        _load_parameters(part, load_file(weights / f"{name}.safetensors"))

    def generate() -> torch.Tensor:
        return pipelines.generate(pipe, geometry, prompt=pipelines.PROMPT_20, steps=steps)

    if tool == "daam":
        latents, compute = castorini_daam(pipe, generate, scratch)
        global_map: Any = compute()
        values = global_map.heat_maps.float().numpy() / steps
    elif tool == "daam-diffusers":
        from daam_diffusers import trace

        with trace(pipe, keep=("head",)) as tracer:
            latents = generate()
        maps = tracer.heat_maps(clamp="per_map")
        columns = [maps.column(c).mean().values for c in range(len(maps.tokens) + 2)]
        values = torch.stack(columns).numpy()
    else:
        raise ValueError(f"{tool} has no such maps")
    file = scratch / "maps.npz"
    np.savez(file, maps=values, latents=latents.numpy())
    return {"maps": str(file)}


def save_weights(geometry: str, folder: Path) -> None:
    """Weights that every environment can load, whatever versions of the hosts it has."""
    folder.mkdir(parents=True, exist_ok=True)
    pipe = pipelines.build(geometry)
    with torch.no_grad():
        for name, weight in pipe.unet.named_parameters():
            if name.endswith("attn2.to_q.weight"):
                weight.mul_(4)  # random attention is nearly flat; trained attention is not
    for name, part in _parts(pipe).items():
        save_file(dict(part.named_parameters()), folder / f"{name}.safetensors")


def _load_parameters(part: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    # Not load_state_dict(strict=True): which buffers are saved differs between versions.
    parameters = dict(part.named_parameters())
    if parameters.keys() != weights.keys():
        raise ValueError(f"parameters differ: {sorted(parameters.keys() ^ weights.keys())}")
    part.load_state_dict(weights, strict=False)


def _parts(pipe: Any) -> dict[str, torch.nn.Module]:
    # transformers 5 dropped a level of CLIP's text model; what is inside has the same names.
    text = pipe.text_encoder
    return {"unet": pipe.unet, "text_encoder": getattr(text, "text_model", text)}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tool", choices=tuple(TOOLS))
    parser.add_argument("--geometry", default="sd15", choices=tuple(pipelines.GEOMETRIES))
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--weights", type=Path, help="save maps with these weights")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    diffusers.utils.logging.set_verbosity_error()
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    common = (arguments.tool, arguments.geometry, arguments.steps)
    if arguments.weights:
        result = save_maps(*common, arguments.scratch, arguments.weights)
    else:
        result = measure(*common, arguments.pairs, arguments.scratch)
    result["versions"] = {
        name: version(name)
        for name in (arguments.tool.split(",")[0], "diffusers", "transformers", "torch", "numpy")
    }
    (arguments.scratch / "result.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
