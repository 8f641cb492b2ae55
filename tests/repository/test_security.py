"""The packages run no code that they read: nothing is unpickled, evaluated or given to a shell."""

import ast
import runpy
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

# Modules whose readers run what a file says.
UNSAFE = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
CALLS = {"eval", "exec", "os.popen", "os.system", "torch.load", "yaml.load", "yaml.unsafe_load"}
FLAGS = {"allow_pickle", "shell", "trust_remote_code"}


def faults(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            names = [module, *(alias.name for alias in node.names if not module)]
            yield from (name for name in names if name.partition(".")[0] in UNSAFE)
        elif isinstance(node, ast.Call):
            if (name := ast.unparse(node.func)) in CALLS:
                yield name
            for keyword in node.keywords:
                unset = isinstance(keyword.value, ast.Constant) and not keyword.value.value
                if keyword.arg in FLAGS and not unset:
                    yield f"{keyword.arg}={ast.unparse(keyword.value)}"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import pickle as p", ["pickle"]),
        ("from joblib.hashing import hash", ["joblib.hashing"]),
        ("torch.load(path)", ["torch.load"]),
        ("np.load(path, allow_pickle=True)", ["allow_pickle=True"]),
        ("np.load(path, allow_pickle=False); model.eval()", []),
    ],
)
def test_what_counts(text, found):
    assert list(faults(ast.parse(text))) == found


def test_nothing_that_is_read_is_run(package):
    found = {
        str(path.relative_to(package.source)): names
        for path in sorted(Path(package.source).rglob("*.py"))
        if (names := list(faults(ast.parse(path.read_text(encoding="utf-8")))))
    }
    assert not found


@pytest.fixture(scope="module")
def advisories() -> dict[str, Any]:
    """The functions of the script that `make release-check` runs."""
    return runpy.run_path(f"{Path(__file__).parent / 'advisories.py'}")


def test_a_known_vulnerability_is_told_and_a_pin_that_no_database_has_is_no_safe_one(advisories):
    found = {"id": "PYSEC-1", "fix_versions": ["2.1", "3"]}
    answers = [
        {"name": "a", "version": "1", "vulns": []},
        {"name": "b", "version": "2", "vulns": [found]},
        {"name": "c", "skip_reason": "not found"},
    ]
    assert advisories["judge"](answers) == (
        {("a", "1"), ("b", "2")},
        ["b 2: PYSEC-1, mended in 2.1, 3"],
    )


def test_pins_are_listed_by_the_upload_of_their_first_file(advisories):
    def on(day: int) -> dict[str, datetime]:
        return {"upload-time": datetime(2026, 1, day, tzinfo=UTC)}

    packages = [
        {"name": "new", "version": "2", "wheels": [on(9)]},
        {"name": "old", "version": "1", "wheels": [on(8), on(5)], "sdist": on(6)},
        {"name": "odd", "version": "3", "wheels": [{}]},
    ]
    now = datetime(2026, 1, 10, 12, tzinfo=UTC)
    assert [line.split() for line in advisories["ages"](packages, now)] == [
        ["uploaded:", "unknown", "odd", "3"],
        ["2026-01-05", "5", "days", "old", "1"],
        ["2026-01-09", "1", "days", "new", "2"],
    ]
