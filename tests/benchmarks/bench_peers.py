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
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peer_driver
import torch
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
PARITY_BOUND = 1e-3


@dataclass(frozen=True)
class Environment:
    """What is installed for a tool.

    Attributes:
        bare: installed without their dependencies.
        needs: installed with their dependencies.
    """

    bare: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


ENVIRONMENTS = {
    "daam": Environment(
        bare=("daam==0.2.0",),
        needs=(
            "diffusers==0.21.2",
            "transformers==4.30.2",
            "accelerate==0.23.0",
            "huggingface-hub<0.26",
            "matplotlib",
            "scipy",
            "spacy",
        ),
    ),
    "attention-map-diffusers": Environment(needs=("attention-map-diffusers==1.0.0",)),
}


class ToolError(RuntimeError):
    """A tool could not be installed or run; the message is the last line it wrote."""


def environment(name: str, folder: Path) -> Path:
    """The Python of a tool's environment, made if it does not exist; ours for ourselves."""
    if name not in ENVIRONMENTS:
        return Path(sys.executable)
    wanted, root = ENVIRONMENTS[name], folder / f"env-{name}"
    python = root / "bin" / "python"
    # Written last: an environment that failed half-way, or is another one's, is made anew.
    done, contents = root / "installed", f"{wanted} torch {torch.__version__}"
    if not done.exists() or done.read_text(encoding="utf-8") != contents:
        uv = (sys.executable, "-m", "uv", "--quiet")
        install = (*uv, "pip", "install", "--python", str(python))
        _run((*uv, "venv", "--clear", "--python", sys.executable, str(root)), folder)
        torch_version = torch.__version__.partition("+")[0]
        _run((*install, f"torch=={torch_version}", *wanted.needs), folder)
        if wanted.bare:
            _run((*install, "--no-deps", *wanted.bare), folder)
        done.write_text(contents, encoding="utf-8")
    return python


def drive(tool: str, folder: Path, *options: str) -> dict[str, Any]:
    """What peer_driver.py found out about a tool."""
    scratch = folder / tool.replace(", ", "-").replace(" ", "-")
    scratch.mkdir(parents=True, exist_ok=True)
    python = environment(tool.split(",")[0], folder)
    _run((str(python), str(HERE / "peer_driver.py"), tool, "--scratch", ".", *options), scratch)
    result: dict[str, Any] = json.loads((scratch / "result.json").read_text(encoding="utf-8"))
    if "maps" in result:
        with np.load(scratch / result.pop("maps")) as arrays:
            result["arrays"] = dict(arrays)
    return result


def _run(command: tuple[str, ...], folder: Path) -> None:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        command,
        cwd=folder,
        env={**kept, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        text=True,
        capture_output=True,
        check=False,
    )
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise ToolError(lines[-1] if lines else f"ended with status {done.returncode}")


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
    settings = {k: v for k, v in vars(arguments).items() if k not in ("folder", "json")}
    text = json.dumps({"settings": settings, "results": results, "failures": failures}, indent=2)
    path.write_text(text + "\n", encoding="utf-8")
    return 1 if failures else 0


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
        versions = found["versions"]
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
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
