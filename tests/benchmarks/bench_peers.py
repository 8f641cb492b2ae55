"""Other tools that record attention, each in an environment of its own, side by side with ours.

    python tests/benchmarks/bench_peers.py

Every tool runs the same guided generation, untraced and traced in alternation, against the version
of diffusers that it needs: a tool's overhead is relative to its own untraced run. All environments
get this one's torch. Then castorini/daam, the reference implementation, and we make maps of one
model with the same weights and seed, and the maps are compared.

Environments: castorini/daam 0.2.0 pins diffusers and transformers of 2023 and names no version of
the rest. Of its dependencies only those that `import daam` needs are installed (the others serve
its demo and its scripts), with two pins it lacks: huggingface-hub below 0.26, which removed what
diffusers 0.21 imports, and matplotlib and scipy, which it imports without declaring them. Its code
runs unmodified. attention-map-diffusers 1.0.0 installs as it is.

A tool that cannot be installed or fails gets a row that says so, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import figures
import numpy as np
import peer_driver
import torch
from environments import ToolError, environment, run
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
PARITY_BOUND = 1e-3


# Requirements with their dependencies, and those installed without theirs.
ENVIRONMENTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "daam": (
        (
            "diffusers==0.21.2",
            "transformers==4.30.2",
            "accelerate==0.23.0",
            "huggingface-hub<0.26",
            "matplotlib",
            "scipy",
            "spacy",
        ),
        ("daam==0.2.0",),
    ),
    "attention-map-diffusers": (("attention-map-diffusers==1.0.0",), ()),
}


def interpreter(tool: str) -> Path:
    """The Python of a tool's environment; ours for ourselves."""
    if tool not in ENVIRONMENTS:
        return Path(sys.executable)
    needs, bare = ENVIRONMENTS[tool]
    # All environments get this one's torch.
    torch_version = torch.__version__.partition("+")[0]
    return environment(tool, f"torch=={torch_version}", *needs, bare=bare)


def drive(tool: str, folder: Path, *options: str) -> dict[str, Any]:
    """What peer_driver.py found out about a tool."""
    scratch = folder / tool.replace(", ", "-").replace(" ", "-")
    scratch.mkdir(parents=True, exist_ok=True)
    python = interpreter(tool.split(",")[0])
    run(python, HERE / "peer_driver.py", tool, "--scratch", ".", *options, folder=scratch)
    result: dict[str, Any] = json.loads((scratch / "result.json").read_text(encoding="utf-8"))
    if "maps" in result:
        with np.load(scratch / result.pop("maps")) as arrays:
            result["arrays"] = dict(arrays)
    return result


def parity(folder: Path, geometry: str, steps: int) -> dict[str, float]:
    """How far our maps are from the reference's, relative to its, the worst token of the prompt."""
    weights = folder / "weights"
    peer_driver.save_weights(geometry, weights)
    options = ("--geometry", geometry, "--steps", str(steps), "--weights", str(weights.resolve()))
    reference = drive("daam", folder, *options)["arrays"]
    own = drive("daam-diffusers", folder, *options)["arrays"]
    if own["maps"].shape != reference["maps"].shape:
        raise ToolError(f"maps of {own['maps'].shape} against {reference['maps'].shape}")
    difference = np.abs(own["maps"] - reference["maps"])  # (T, h, w)
    pixels = (1, 2)
    return {
        "tokens": len(difference),
        "contrast": float(np.median(np.ptp(reference["maps"], pixels) / reference["maps"].mean())),
        "mean_error": float((difference.mean(pixels) / reference["maps"].mean(pixels)).max()),
        "largest_error": float((difference.max(pixels) / reference["maps"].max(pixels)).max()),
        "latents_max_difference": float(np.abs(own["latents"] - reference["latents"]).max()),
    }


def main() -> int:
    arguments = _arguments()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    results: dict[str, Any] = {}
    failures: dict[str, str] = {}
    options = ["--geometry", arguments.geometry, "--steps", str(arguments.steps)]
    options += ["--pairs", str(arguments.pairs), "--threads", str(arguments.threads)]
    for tool in arguments.tools:
        try:
            results[tool] = drive(tool, folder, *options)
        except ToolError as error:
            failures[tool] = str(error)
    try:
        results["parity"] = parity(folder, arguments.parity_geometry, arguments.parity_steps)
    except ToolError as error:
        failures["parity"] = str(error)
    console = Console(width=160)
    console.print(_table(arguments, results, failures))
    console.print(_parity_line(arguments, results, failures))
    path: Path = arguments.json
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = {k: v for k, v in vars(arguments).items() if k not in ("folder", "json", "save")}
    text = json.dumps({"settings": settings, "results": results, "failures": failures}, indent=2)
    path.write_text(text + "\n", encoding="utf-8")
    # Each with the diffusers that it needs.
    named = {}
    for tool in arguments.tools:
        if tool in results:
            found, name = results[tool]["versions"], tool.split(",")[0]
            named[name] = f"{found[name]} with diffusers {found['diffusers']}"
    figures.save(
        "peers-maps",
        ratios(arguments, results),
        arguments.save,
        packages=("torch",),
        failures=failures,
        versions=named,
    )
    return 1 if failures else 0


def ratios(arguments: argparse.Namespace, results: dict[str, Any]) -> Iterator[figures.Figure]:
    """Of each tool to its own untraced generation, and of the maps to the reference's."""
    for tool in arguments.tools:
        if tool not in results:
            continue
        found = results[tool]
        better = "lower" if tool == "daam-diffusers" else "neither"
        plain = [timing["cpu"] for timing in found["plain"]]
        traced = [timing["cpu"] for timing in found["traced"]]
        what = f"{tool}: processor time of a traced generation / of an untraced one"
        pairs = [b / a for a, b in zip(plain, traced, strict=True)]
        yield figures.Figure.of(what, pairs, margin=0.1, better=better)
        what = f"{tool}: processor time to make maps afterwards / of an untraced generation"
        yield figures.Figure.of(what, found["maps_cpu"] / statistics.median(plain), better=better)
        what = f"{tool}: memory at the peak, maps made / of an untraced generation"
        grown = 1 + found["with_maps_extra_peak_bytes"] / found["untraced_peak_bytes"]
        yield figures.Figure.of(what, grown, margin=0.1, better=better)
    if "parity" in results:
        found = results["parity"]
        what = "worst token: mean difference from castorini/daam's map / its mean"
        yield figures.Figure.of(
            what, found["mean_error"], margin=PARITY_BOUND / found["mean_error"]
        )


def _table(
    arguments: argparse.Namespace, results: dict[str, Any], failures: dict[str, str]
) -> Table:
    table = Table(
        "tool", "with", "untraced", "traced / untraced", "by the clock", "maps", "peak MiB",
        "output",
        title=f"{arguments.geometry}, {arguments.steps} step(s), guided, float32, CPU, "
        f"{arguments.threads} thread(s); medians of {arguments.pairs} pairs (lowest to highest)",
        caption="untraced, traced / untraced, maps (made after the generation): processor time; "
        "peak MiB: of the untraced process, what a traced generation adds, what making maps adds",
    )  # fmt: skip
    for tool in arguments.tools:
        if tool in failures:
            table.add_row(tool, f"failed: {failures[tool]}", *[""] * 6)
            continue
        found = results[tool]
        versions = dict(found["versions"])
        own = versions.pop(tool.split(",")[0])
        untraced = sorted(timing["cpu"] for timing in found["plain"])
        extra, with_maps = found["traced_extra_peak_bytes"], found["with_maps_extra_peak_bytes"]
        table.add_row(
            f"{tool} {own}",
            f"diffusers {versions['diffusers']}\ntorch {versions['torch']}",
            f"{untraced[len(untraced) // 2]:.2f} s",
            _ratio(found["cpu_ratio"]),
            _ratio(found["wall_ratio"]),
            f"{found['maps_cpu']:.2f} s",
            f"{_mib(found['untraced_peak_bytes'])} + {_mib(extra)} + {_mib(with_maps - extra)}",
            "bit-identical" if found["bit_identical"]
            else f"differs by {found['latents_max_difference']:.1e}",
        )  # fmt: skip
    return table


def _parity_line(
    arguments: argparse.Namespace, results: dict[str, Any], failures: dict[str, str]
) -> str:
    if "parity" in failures:
        return f"Comparison with the reference's maps failed: {failures['parity']}"
    found = results["parity"]
    worst = max(found["mean_error"], found["largest_error"])
    return (
        f"Maps of {found['tokens']} tokens ({arguments.parity_geometry}, "
        f"{arguments.parity_steps} steps) against castorini/daam: worst token's mean relative "
        f"error {found['mean_error']:.1e}, largest error over its maximum "
        f"{found['largest_error']:.1e}; bound {PARITY_BOUND}: "
        f"{'met' if worst <= PARITY_BOUND else 'MISSED'}"
    )


def _ratio(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})"


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    tools = tuple(peer_driver.TOOLS)
    parser.add_argument("--tools", nargs="+", choices=tools, default=tools)
    geometries = tuple(peer_driver.pipelines.GEOMETRIES)
    parser.add_argument("--geometry", choices=geometries, default="sd15")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    parser.add_argument("--parity-geometry", choices=geometries, default="sd15-narrow")
    parser.add_argument("--parity-steps", type=int, default=4)
    parser.add_argument("--folder", type=Path, default=Path("out/bench/peers"))
    parser.add_argument("--json", type=Path, default=Path("out/bench/peers.json"))
    figures.add_option(parser)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
