"""Each wheel is installed alone, with nothing but what it declares."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Set
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

import pytest
from uv import find_uv_bin

# Run by the fresh environment's Python, isolated: neither the checkout nor a variable can help.
PROBE = """
import importlib, importlib.metadata, importlib.util, json, sys
name, distribution, *siblings = sys.argv[1:]
module = importlib.import_module(name)
print(json.dumps({
    "file": module.__file__,
    "version": module.__version__,
    "metadata": importlib.metadata.version(distribution),
    "missing": [public for public in module.__all__ if not hasattr(module, public)],
    "siblings": [sibling for sibling in siblings if importlib.util.find_spec(sibling)],
}))
"""


UV = find_uv_bin()
NO_TESTS = pytest.ExitCode.NO_TESTS_COLLECTED


def run(*command: str | Path, cwd: Path, accepted: Set[int] = frozenset({0})) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode in accepted, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(package, tmp_path_factory) -> Path:
    """The wheel, built from the source distribution as an index would get it."""
    out = tmp_path_factory.mktemp("dist")
    run(
        *(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, package.folder),
        cwd=out,
    )
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def constraints(lock, tmp_path_factory) -> Path:
    """The lock's versions and markers without its hashes, which no wheel of ours could have."""
    plain = re.sub(r"\s*\\\n\s+--hash=\S+", "", lock)
    assert "--hash" not in plain
    file = tmp_path_factory.mktemp("lock") / "constraints.txt"
    file.write_text(plain)
    return file


@pytest.fixture(scope="module")
def alone(wheel, constraints, root) -> Iterator[Path]:
    """The Python of a fresh environment that holds one wheel and what it requires."""
    # Not under /tmp: where that is memory, gigabytes would be copied there instead of linked.
    build = root / "build"
    build.mkdir(exist_ok=True)
    with TemporaryDirectory(prefix="alone-", dir=build) as folder:
        run(UV, "venv", "--quiet", "--python", sys.executable, folder, cwd=wheel.parent)
        python = Path(folder, "Scripts" if sys.platform == "win32" else "bin", "python")
        install(python, wheel, constraints)
        yield python


def install(python: Path, wheel: Path, constraints: Path, extra: str = "") -> None:
    run(
        *(UV, "pip", "install", "--quiet", "--python", python),
        *("--constraint", constraints, f"{wheel}{extra}"),
        cwd=wheel.parent,  # outside the checkout, whose pyproject.toml uv would heed
    )


def test_a_wheel_holds_the_sources_the_license_and_nothing_else(package, wheel):
    with ZipFile(wheel) as archive:
        names = set(archive.namelist())
    sources = {
        file.relative_to(package.folder / "src").as_posix()
        for file in package.source.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    info = f"{package.name}-{package.project['version']}.dist-info"
    assert {f"{package.name}/py.typed", f"{package.name}/__init__.py"} <= sources
    assert sources <= names
    assert f"{info}/licenses/LICENSE" in names
    assert {name.partition("/")[0] for name in names} == {package.name, info}
    assert not [name for name in names if re.search(r"(^|/)tests?[_/]", name)]


@pytest.mark.slow
def test_a_wheel_installed_alone_imports(package, wheel, alone):
    probe = (package.name, package.project["name"], *package.siblings)
    seen = json.loads(run(alone, "-I", "-c", PROBE, *probe, cwd=wheel.parent))
    assert Path(seen.pop("file")).is_relative_to(alone.parents[1])
    version = package.project["version"]
    assert seen == {"version": version, "metadata": version, "missing": [], "siblings": []}


@pytest.mark.slow
def test_the_extra_test_is_all_that_a_packages_tests_import(
    package, alone, wheel, constraints, root
):
    install(alone, wheel, constraints, "[test]")
    places = [folder for folder in [root / "tests" / package.name] if folder.is_dir()]
    places.append(package.folder / "README.md")
    run(
        *(alone, "-I", "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *places),
        cwd=root,
        accepted={0, NO_TESTS},
    )
