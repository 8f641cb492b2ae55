"""Rules of the tree that no single package can check."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml


def modules_imported(source: Path) -> set[str]:
    """Top-level names of all absolute imports in a file, also those inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add((node.module or "").partition(".")[0])
    return names


def test_a_package_is_its_src_folder_and_never_an_empty_namespace(package, root):
    # From the root, where a folder of the package's name lies on the path.
    code = f"import importlib.util; print(importlib.util.find_spec({package.name!r}).origin)"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == str(package.source / "__init__.py")


def test_tests_are_no_packages(root):
    assert not list((root / "tests").rglob("__init__.py"))


def test_no_package_imports_a_sibling(package):
    imported = {name: modules_imported(name) for name in package.source.rglob("*.py")}
    offenders = [file for file, names in imported.items() if names & set(package.siblings)]
    assert imported
    assert not offenders


def test_no_package_requires_a_sibling(package):
    declared = [*package.project["dependencies"]]
    for extra in package.project["optional-dependencies"].values():
        declared += extra
    assert not [
        requirement
        for requirement in declared
        if re.match(r"[\w.-]+", requirement)[0].replace("-", "_") in package.siblings
    ]


def test_a_readme_lists_every_extra(package):
    readme = (package.folder / "README.md").read_text()
    section = readme.partition("## Install")[2].partition("\n## ")[0]
    listed = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert set(listed) == set(package.project["optional-dependencies"])


@pytest.mark.parametrize("file", ["pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE"])
def test_a_package_is_complete(package, file):
    assert (package.folder / file).read_text().strip()


def test_a_package_carries_the_repositorys_license(package, root):
    assert (package.folder / "LICENSE").read_bytes() == (root / "LICENSE").read_bytes()


def test_a_package_is_typed_and_documented(package):
    assert (package.source / "py.typed").is_file()
    assert ast.get_docstring(ast.parse((package.source / "__init__.py").read_text()))


def test_the_version_is_the_distributions_and_is_looked_up_late(package):
    code = (
        f"import {package.name}, sys\n"
        f"late = '__version__' not in vars({package.name})\n"
        f"print(late, {package.name}.__version__)"
    )
    run = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == ["True", package.project["version"]]


def test_relative_links_lead_somewhere(root):
    documents = [*root.glob("*.md"), *root.glob("*/*.md"), *root.glob("docs/**/*.md")]
    links = {
        (document.relative_to(root), target)
        for document in documents
        for target in re.findall(r"\]\(([^)#\s]+)", document.read_text())
        if ":" not in target
    }
    assert links
    assert not [link for link in links if not (root / link[0]).parent.joinpath(link[1]).exists()]


def test_documents_install_the_packages_from_a_checkout(root, package):
    documents = [*root.glob("*.md"), *root.glob("*/*.md"), *root.glob("docs/**/*.md")]
    commands = [
        (document.name, command)
        for document in documents
        for command in re.findall(r"pip install [^`\n]+", document.read_text())
    ]
    assert [one for one in commands if f"./{package.name}" in one[1]]
    from_an_index = re.compile(rf"(?<![\w./-]){package.name.replace('_', '[-_]')}\b")
    assert not [one for one in commands if from_an_index.search(one[1])]


def test_every_target_that_a_document_names_is_in_the_makefile(root):
    makefile = (root / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z][\w-]*):", makefile, re.MULTILINE))
    for document in ("README.md", "CONTRIBUTING.md", ".ci/run"):
        named = set(re.findall(r"(?:^|`)make ([a-z][\w-]*)", (root / document).read_text(), re.M))
        assert named, document
        assert named <= targets, document


def test_every_script_that_the_makefile_runs_is_there(root):
    scripts = set(re.findall(r"[\w./-]+\.py", (root / "Makefile").read_text()))
    assert scripts
    assert not [script for script in scripts if not (root / script).is_file()]


def test_every_test_that_contributing_names_is_there(root):
    text = (root / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"(tests/[\w/]+\.py)(?:::(\w+))?", text))
    assert named
    for file, test in named:
        assert f"def {test}" in (root / file).read_text()


def test_ci_runs_the_readmes_commands(root):
    readme = (root / "README.md").read_text()
    assert set(re.findall(r"^make (\w+)", readme, re.MULTILINE)) == {"demo", "test"}
    script = (root / ".ci/run").read_text().splitlines()
    assert [line for line in script if line.startswith("make ")] == [
        "make lint",
        "make test",
        "make demo",
        "make speechnet SIZE=smoke",
    ]


def test_the_citation_names_both_papers_and_every_package(root):
    citation = yaml.safe_load((root / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    identifiers = [i["value"] for r in citation["references"] for i in r["identifiers"]]
    assert {"arXiv:2210.04885", "arXiv:2211.11740"} <= set(identifiers)


def test_the_newest_section_of_a_changelog_is_the_packages_version(package):
    changelog = (package.folder / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## \[(.+?)\] - (?:Unreleased|\d{4}-\d\d-\d\d)$", changelog, re.M)
    assert versions[0] == package.project["version"]


def test_the_index_of_changelogs_links_to_each(package, root):
    assert f"({package.name}/CHANGELOG.md)" in (root / "CHANGELOG.md").read_text()


def test_a_package_names_its_paper(package, root):
    (paper,) = re.findall(r"https://arxiv.org/abs/(\S+)", package.project["urls"]["Paper"])
    assert f"arXiv:{paper}" in (root / "CITATION.cff").read_text()
    assert f"arxiv.org/abs/{paper}" in (package.folder / "README.md").read_text()


def folders(parent: Path, root: Path) -> set[str]:
    """Paths from the root of the folders in `parent`, but for caches."""
    found = {it for it in parent.iterdir() if it.is_dir() and it.name != "__pycache__"}
    return {it.relative_to(root).as_posix() for it in found}


def test_the_makefile_gives_every_test_and_document_to_one_package(root, names):
    makefile = (root / "Makefile").read_text().replace("\\\n", " ")
    given = " ".join(re.findall(r"^WITH_\w+ := (.*)", makefile, re.MULTILINE)).split()
    # The tests of a package go with its name; those of the last three folders concern them all.
    apart = {f"tests/{name}" for name in (*names, "benchmarks", "gpu", "repository")}
    pages = {page.relative_to(root).as_posix() for page in root.glob("docs/*.md")}
    tests = folders(root / "tests", root) - apart
    assert sorted(given) == sorted(tests | folders(root / "docs/examples", root) | pages)


@pytest.mark.parametrize("goals", [["PACKAGE=weaklable"], ["demo", "PACKAGE=weaklabel"]])
def test_make_refuses_a_package_that_it_cannot_test_alone(root, goals):
    # Also where make runs these tests, which tells every make below it by the environment.
    here = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    make = ["make", "--dry-run", *goals]
    done = subprocess.run(make, cwd=root, capture_output=True, text=True, env=here)
    assert done.returncode != 0
    assert "PACKAGE=weaklab" in done.stderr
    assert not done.stdout


@pytest.mark.parametrize("form", ["bug", "feature"])
def test_an_issue_form_asks_which_package(root, names, form):
    template = yaml.safe_load((root / f".github/ISSUE_TEMPLATE/{form}.yml").read_text())
    assert {"name", "description", "body"} <= template.keys()
    fields = {field["id"]: field for field in template["body"] if field["type"] != "markdown"}
    assert len(fields) == sum(field["type"] != "markdown" for field in template["body"])
    assert fields["package"]["attributes"]["options"] == list(names)
    assert all(field["attributes"]["label"] for field in fields.values())
