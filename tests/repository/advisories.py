"""Look what the lock pins up among known vulnerabilities, or say how old each pin is.

    python tests/repository/advisories.py

`make release-check` runs it. It exits with 1 where a pin has a known vulnerability. Where no
database says anything of a pin, its age is listed instead, the oldest first: the older a pin, the
longer its own project has had to publish what it has mended since.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from uv import find_uv_bin

ROOT = Path(__file__).resolve().parents[2]
SERVICES = ("pypi", "osv")  # databases that pip-audit asks
UV = find_uv_bin()


def lock(folder: Path) -> dict[str, Any]:
    """What the lock pins, for every platform, with the files that the index has of it.

    Writes pylock.toml to `folder`, which pip-audit reads. The index is uv's own.
    """
    written = folder / "pylock.toml"
    command = [UV, "pip", "compile", "--quiet", "--universal", "--python-version", "3.11"]
    command += ["--no-deps", "--format", "pylock.toml", "--output-file", f"{written}"]
    subprocess.run([*command, ROOT / "requirements.lock"], check=True, cwd=ROOT)
    return tomllib.loads(written.read_text("utf-8"))


def ask(service: str, folder: Path) -> list[dict[str, Any]]:
    """What pip-audit says of each pin of `folder`'s pylock.toml; nothing if it gets no answer."""
    command = [UV, "tool", "run", "--quiet", "--from", "pip-audit==2.10.1", "pip-audit"]
    command += ["--locked", f"{folder}", "--vulnerability-service", service]
    command += ["--format", "json", "--progress-spinner", "off"]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        return json.loads(done.stdout)["dependencies"]
    except json.JSONDecodeError:
        *_, reason = ["no answer", *done.stderr.split("\n")[:-1]]
        print(f"{service}: {reason}", file=sys.stderr)
        return []


def judge(answers: list[dict[str, Any]]) -> tuple[set[tuple[str, str]], list[str]]:
    """The pins that a database knows, as (name, version), and a line for each vulnerability."""
    known = [pin for pin in answers if "skip_reason" not in pin]
    lines = [
        f"{pin['name']} {pin['version']}: {found['id']}, mended in "
        f"{', '.join(found['fix_versions']) or 'no version'}"
        for pin in known
        for found in pin["vulns"]
    ]
    return {(pin["name"], pin["version"]) for pin in known}, lines


def uploaded(package: Mapping[str, Any]) -> datetime | None:
    """When the first file of a pin was uploaded, if the index says so."""
    files = [*package.get("wheels", ()), *filter(None, [package.get("sdist")])]
    return min((file["upload-time"] for file in files if "upload-time" in file), default=None)


def ages(packages: list[dict[str, Any]], now: datetime) -> list[str]:
    """A line a pin, the oldest first; those without a date before all."""
    dates = {(pin["name"], pin["version"]): uploaded(pin) for pin in packages}
    earliest = datetime.min.replace(tzinfo=UTC)
    return [
        f"{date:%Y-%m-%d} {(now - date).days:5} days  {name} {version}"
        if date
        else f"uploaded: unknown       {name} {version}"
        for (name, version), date in sorted(
            dates.items(), key=lambda pin: (pin[1] or earliest, pin[0])
        )
    ]


def main() -> None:
    with TemporaryDirectory() as place:
        folder = Path(place)
        packages = rest = lock(folder)["packages"]
        vulnerable: list[str] = []
        for service in SERVICES:
            if rest:
                known, lines = judge(ask(service, folder))
                vulnerable += [line for line in lines if line not in vulnerable]
                rest = [pin for pin in rest if (pin["name"], pin["version"]) not in known]
    if rest:
        print("\n".join(ages(rest, datetime.now(UTC))))
        print(f"no database knows {len(rest)} of {len(packages)} pins: their ages stand above")
    else:
        print(f"all {len(packages)} pins are known to a database")
    sys.exit("\n".join(vulnerable) or 0)


if __name__ == "__main__":
    main()
