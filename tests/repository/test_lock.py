"""requirements.lock: complete, hashed, free of addresses, and importable together."""

import re
import subprocess
import sys
from collections.abc import Mapping

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
PLATFORMS = (
    {"sys_platform": "linux", "platform_machine": "x86_64", "os_name": "posix"},
    {"sys_platform": "linux", "platform_machine": "aarch64", "os_name": "posix"},
    {"sys_platform": "darwin", "platform_machine": "arm64", "os_name": "posix"},
    {"sys_platform": "win32", "platform_machine": "AMD64", "os_name": "nt"},
)


def environments() -> list[dict[str, str]]:
    return [
        {**platform, "python_version": python, "python_full_version": f"{python}.0"}
        for platform in PLATFORMS
        for python in PYTHONS
    ]


@pytest.fixture(scope="module")
def entries(lock: str) -> list[str]:
    """One string a pin, its hashes and origin included."""
    return re.split(r"^(?=\S)", lock, flags=re.MULTILINE)[1:]


@pytest.fixture(scope="module")
def pins(entries: list[str]) -> list[Requirement]:
    return [Requirement(entry.partition("\\")[0]) for entry in entries]


def pinned(pins: list[Requirement], environment: Mapping[str, str]) -> dict[str, Version]:
    return {
        canonicalize_name(pin.name): Version(next(iter(pin.specifier)).version)
        for pin in pins
        if pin.marker is None or pin.marker.evaluate(environment)
    }


def test_every_entry_is_one_exact_version(pins):
    assert pins
    for pin in pins:
        assert [s.operator for s in pin.specifier] == ["=="], pin


def test_every_pin_has_a_hash(entries):
    assert not [entry for entry in entries if not re.search(r"--hash=sha256:[0-9a-f]{64}", entry)]


def test_there_are_no_addresses(lock):
    assert "://" not in lock
    assert not re.search(r"^\s*(-i|-f|--(extra-)?index-url|--find-links)\b", lock, re.MULTILINE)


@pytest.mark.parametrize(
    "environment",
    environments(),
    ids=lambda e: f"{e['sys_platform']}-{e['platform_machine']}-{e['python_version']}",
)
def test_the_lock_satisfies_what_the_packages_declare(package, pins, environment):
    versions = pinned(pins, environment)
    declared = list(package.project["dependencies"])
    for extra in package.project["optional-dependencies"].values():
        declared += extra
    for requirement in map(Requirement, declared):
        if requirement.name == package.project["name"]:
            continue  # one extra includes another
        if requirement.marker and not requirement.marker.evaluate(environment):
            continue
        assert versions[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_torch_and_torchaudio_are_builds_that_load_together(pins):
    versions = pinned(pins, environments()[0])
    assert versions["torch"] in SpecifierSet(">=2.13,<2.15")
    assert versions["torchaudio"] in SpecifierSet(">=2.11,<2.12")


def test_the_hosts_import_together_in_one_process():
    code = (
        "import torch, torchaudio\n"
        "from diffusers import StableDiffusionPipeline\n"
        "from transformers import Wav2Vec2ForCTC\n"
        "torch.ones(1); torchaudio.functional.resample(torch.ones(1, 320), 16_000, 8_000)\n"
        "print(StableDiffusionPipeline.__name__, Wav2Vec2ForCTC.__name__)"
    )
    run = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["StableDiffusionPipeline", "Wav2Vec2ForCTC"]
