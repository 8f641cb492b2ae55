"""Other tools' environments, made by uv where they are missing: under runs/peers, one each."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "runs" / "peers"


class ToolError(RuntimeError):
    """A tool could not be installed or run; the message is the last line it wrote."""


def environment(name: str, *needs: str, bare: tuple[str, ...] = ()) -> Path:
    """The Python of an environment.

    Args:
        name: of its folder.
        needs: requirements, installed with their dependencies.
        bare: requirements, installed afterwards without theirs.

    Raises:
        ToolError: where something cannot be installed.
    """
    root = FOLDER / name
    python, done = root / "bin" / "python", root / "installed"
    wanted = "\n".join((sys.version, *needs, "bare:", *bare))
    # Written last: an environment that failed half-way, or is another one's, is made anew.
    if not done.exists() or done.read_text(encoding="utf-8") != wanted:
        uv = (sys.executable, "-m", "uv", "--quiet")
        install = (*uv, "pip", "install", "--python", python)
        run(*uv, "venv", "--clear", "--python", sys.executable, root)
        run(*install, *needs)
        if bare:
            run(*install, "--no-deps", *bare)
        done.write_text(wanted, encoding="utf-8")
    return python


def run(*command: str | Path, folder: Path | None = None) -> str:
    """What a command writes, without our Python's settings and without a network for models."""
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
    return done.stdout
