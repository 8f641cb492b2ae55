"""The repository as data: its packages, their manifests and the lock."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("daam_diffusers", "hf_cudagraph_asr", "weaklabel")


@dataclass(frozen=True)
class Package:
    """One of the three.

    Attributes:
        name: what is imported.
        folder: holds pyproject.toml, README.md, LICENSE and src/.
        project: the table `project` of its pyproject.toml.
    """

    name: str
    folder: Path
    project: Mapping[str, Any]

    @property
    def source(self) -> Path:
        return self.folder / "src" / self.name

    @property
    def siblings(self) -> tuple[str, ...]:
        return tuple(name for name in PACKAGES if name != self.name)


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def names() -> tuple[str, ...]:
    """The packages' names."""
    return PACKAGES


@pytest.fixture(scope="module", params=PACKAGES)
def package(request: pytest.FixtureRequest) -> Package:
    folder = ROOT / request.param
    manifest = tomllib.loads((folder / "pyproject.toml").read_text())
    return Package(request.param, folder, manifest["project"])


@pytest.fixture(scope="session")
def lock() -> str:
    return (ROOT / "requirements.lock").read_text()
