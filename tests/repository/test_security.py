"""The packages run no code that they read: nothing is unpickled, evaluated or given to a shell."""

import ast
from collections.abc import Iterator
from pathlib import Path

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
