"""Each wheel is installed alone, with nothing but what it declares.

`make release-check` gives the folder of the distributions to look at, DIST, and interpreters to
install them for beside this one, PYTHONS.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from email import message_from_string
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement
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


# What the root's conftest.py gives to the examples of a document that says `pipe`.
PIPE = """
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained("docs/examples/tinyworld/model")
"""

UV = find_uv_bin()

# Where addresses in a distribution lead. What it needs comes from the user's index and models.
HOSTS = {"arxiv.org", "github.com", "keepachangelog.com", "semver.org"}


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def dist(package, tmp_path_factory) -> Path:
    """A folder with the source distribution, and the wheel that was built from it."""
    if made := os.environ.get("DIST"):
        return Path(made)
    out = tmp_path_factory.mktemp("dist")
    run(
        *(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, package.folder),
        cwd=out,
    )
    return out


@pytest.fixture(scope="module")
def wheel(package, dist) -> Path:
    (built,) = dist.glob(f"{package.name}-*.whl")
    return built


@pytest.fixture(scope="module")
def sdist(package, dist) -> Path:
    (built,) = dist.glob(f"{package.name}-*.tar.gz")
    return built


@pytest.fixture(
    scope="module",
    params=[sys.executable, *os.environ.get("PYTHONS", "").split()],
    ids=lambda python: Path(python).name,
)
def alone(request, wheel, root) -> Iterator[Path]:
    """The Python of a fresh environment that holds one wheel and what it requires."""
    # Not in the temporary folder: where that is memory, gigabytes would be copied, not linked.
    build = root / "build"
    build.mkdir(exist_ok=True)
    with TemporaryDirectory(prefix="alone-", dir=build) as folder:
        run(UV, "venv", "--quiet", "--python", request.param, folder, cwd=wheel.parent)
        python = Path(folder, "Scripts" if sys.platform == "win32" else "bin", "python")
        install(python, f"{wheel}", root)
        yield python


@pytest.fixture(scope="module")
def with_tests(alone, wheel, root) -> Path:
    """The same environment, with the extra `test` as well."""
    install(alone, f"{wheel}[test]", root)
    return alone


def install(python: Path, requirement: str, root: Path) -> None:
    folder = python.parent  # outside the checkout, whose pyproject.toml uv would heed
    command = (
        *(UV, "pip", "install", "--quiet", "--python", python),
        *("--constraint", root / "requirements.lock", requirement),
    )
    # What the lock names is in uv's cache since `make venv`. Where an index cannot say that a
    # source distribution is unchanged, uv would build it again: PySpark takes half a minute.
    if subprocess.run([*command, "--offline"], cwd=folder, capture_output=True).returncode:
        run(*command, cwd=folder)
    lend_bytecode(python)


def lend_bytecode(python: Path) -> None:
    """Copy what this environment has compiled of the modules that the other one has too.

    uv links the same files into both, and Python takes bytecode only of a source of the very time
    and size. To compile torch and transformers anew takes longer than all else here.
    """
    place = "import sysconfig; print(sysconfig.get_path('purelib'), end='')"
    ours, theirs = (
        run(one, "-I", "-c", place, cwd=python.parent) for one in (sys.executable, python)
    )
    ending = f".{sys.implementation.cache_tag}.pyc"
    for folder, folders, files in os.walk(theirs):
        cache = os.path.join(folder, "__pycache__")
        lender = os.path.join(ours, os.path.relpath(cache, theirs))
        if "__pycache__" in folders:
            folders.remove("__pycache__")
        if not os.path.isdir(lender):
            continue
        os.makedirs(cache, exist_ok=True)
        compiled = {file.removesuffix(".py") + ending for file in files if file.endswith(".py")}
        for name in compiled.intersection(os.listdir(lender)).difference(os.listdir(cache)):
            shutil.copyfile(os.path.join(lender, name), os.path.join(cache, name))


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


def test_a_source_distribution_holds_what_the_repository_has_of_the_package(package, sdist, root):
    top = f"{package.name}-{package.project['version']}/"
    with tarfile.open(sdist) as archive:
        names = {name.removeprefix(top) for name in archive.getnames()}
    listing = ("git", "ls-files", "--cached", "--others", "--exclude-standard", ".")
    listed = run(*listing, cwd=package.folder).splitlines()
    assert names - {"PKG-INFO", ".gitignore"} == set(listed)


def test_the_metadata_says_what_the_repository_does(package, wheel):
    info = f"{package.name}-{package.project['version']}.dist-info"
    with ZipFile(wheel) as archive:
        said = message_from_string(archive.read(f"{info}/METADATA").decode())
    assert said["Version"] == package.project["version"]
    assert said["Requires-Python"] == package.project["requires-python"]
    required = [Requirement(one) for one in said.get_all("Requires-Dist")]
    declared = {Requirement(one) for one in package.project["dependencies"]}
    assert {one for one in required if "extra" not in str(one.marker)} == declared
    lines = zip(
        said.get_payload().strip().splitlines(),
        (package.folder / "README.md").read_text().strip().splitlines(),
        strict=True,
    )
    assert not [(line, own) for line, own in lines if (line != own) != ("](../" in own)]


def test_the_description_shows_and_links_only_what_an_index_has(package, wheel):
    readme = (package.folder / "README.md").read_text()
    outside = re.findall(r"\[([^\]]*)\]\(\.\./([^)#]+)", readme)
    assert outside
    with ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        text = message_from_string(archive.read(metadata).decode()).get_payload()
    assert "![" not in text
    assert not [link for link in re.findall(r"\]\(([^)]+)\)", text) if "../" in link]
    for words, path in outside:
        assert re.search(rf"{re.escape(words)}\*? \(`{re.escape(path)}`\)", text), words


def test_the_packages_make_their_descriptions_alike(package, names, root):
    hook = (package.folder / "hatch_build.py").read_bytes()
    assert all((root / name / "hatch_build.py").read_bytes() == hook for name in names)


def test_a_distribution_names_no_address_to_download_from(package, sdist):
    with tarfile.open(sdist) as archive:
        texts = {
            member.name: archive.extractfile(member).read().decode("utf-8", "replace")
            for member in archive
            if member.isfile()
        }
    found = {
        (name, host)
        for name, text in texts.items()
        for host in re.findall(r"https?://((?:[\w-]+\.)+[a-z]{2,})", text)
        if host not in HOSTS
    }
    assert not found
    assert any("https://arxiv.org/" in text for text in texts.values())


@pytest.mark.slow
def test_a_wheel_installed_alone_imports(package, wheel, alone):
    probe = (package.name, package.project["name"], *package.siblings)
    seen = json.loads(run(alone, "-I", "-c", PROBE, *probe, cwd=wheel.parent))
    assert Path(seen.pop("file")).is_relative_to(alone.parents[1])
    version = package.project["version"]
    assert seen == {"version": version, "metadata": version, "missing": [], "siblings": []}


@pytest.mark.slow
def test_the_first_example_of_the_readme_runs_on_what_it_says_to_install(
    package, wheel, alone, root, tmp_path
):
    readme = (package.folder / "README.md").read_text()
    (section,) = re.findall(r"^## Install\n(.+?)^## ", readme, re.DOTALL | re.MULTILINE)
    # The last command of that section: pip install ./weaklabel, or "./weaklabel[report]".
    *_, extras = re.findall(rf"pip install \"?\./{package.name}((?:\[[\w,-]+\])?)", section)
    if extras:
        install(alone, f"{wheel}{extras}", root)
    example = re.search(r"^```python\n(.*?)^```$", readme, re.DOTALL | re.MULTILINE)[1]
    assert package.name in example
    (tmp_path / "docs").symlink_to(root / "docs")
    given = PIPE if re.search(r"\bpipe\b", example) else ""
    run(alone, "-I", "-c", given + example, cwd=tmp_path)


@pytest.mark.slow
def test_the_extra_test_is_all_that_a_packages_tests_import(package, with_tests, root):
    # What `make test PACKAGE=...` runs, after the options of that command.
    make = ("make", "--no-print-directory", "--dry-run", "test", f"PACKAGE={package.name}")
    _, places = run(*make, cwd=root).rsplit("--dist loadfile", 1)
    run(
        *(with_tests, "-I", "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"),
        *places.split(),
        cwd=root,
    )


@pytest.mark.slow
def test_torch_is_installed_only_with_a_package_that_declares_it(package, with_tests, wheel):
    declared = {Requirement(one).name for one in package.project["dependencies"]}
    probe = "import importlib.util; print(importlib.util.find_spec('torch') is not None)"
    assert run(with_tests, "-I", "-c", probe, cwd=wheel.parent).split() == [
        str("torch" in declared)
    ]
