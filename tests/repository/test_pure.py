"""Tests of pure logic pass where neither torch nor diffusers is installed."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Files in tests/<package>; a file that tests pure logic belongs here. None of weaklabel's tests
# needs either host: see test_weaklabel_never_imports_torch, and test_packaging.py, which collects
# them in an environment without.
PURE = {
    "daam_diffusers": ("test_linguistics.py", "test_prompt.py", "test_report.py"),
    "hf_cudagraph_asr": (
        "test_events.py",
        "test_metrics.py",
        "test_packing.py",
        "test_plan.py",
        "test_replan.py",
        "test_sketch.py",
    ),
}
HOSTS = ("torch", "diffusers")

# Python finds installed packages with PathFinder; this one overlooks the hosts, so that importing
# them fails and a search for them finds nothing, as where they are not installed.
WITHOUT_HOSTS = f"""
import sys
from importlib.machinery import PathFinder

class WithoutHosts(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in {HOSTS}:
            return None
        return super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = WithoutHosts
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""


def run_without_hosts(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    # Without a PATH no browser is found, so a report's tests of its text run and the others are
    # skipped: they take long, and have run already, as has all that Hypothesis draws.
    clean = {name: value for name, value in os.environ.items() if name != "REQUIRE_ALL"}
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_HOSTS, "-q", "-p", "no:cacheprovider", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**clean, "PATH": "", "HYPOTHESIS_PROFILE": "few"},
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", PURE)
def test_tests_of_pure_logic_pass_without_torch_and_diffusers(name, root):
    files = [f"tests/{name}/{file}" for file in PURE[name]]
    done = run_without_hosts(*files, cwd=root)
    assert done.returncode == 0, done.stdout + done.stderr


def test_tests_that_import_a_host_fail_without_it(tmp_path):
    for host in HOSTS:
        (tmp_path / f"test_{host}.py").write_text(f"import {host}\n\ndef test_it(): pass\n")
    done = run_without_hosts("--rootdir", tmp_path, tmp_path, cwd=tmp_path)
    assert done.returncode == pytest.ExitCode.INTERRUPTED
    for host in HOSTS:
        assert f"No module named '{host}'" in done.stdout


def test_weaklabel_never_imports_torch(root):
    files = [*(root / "weaklabel/src").rglob("*.py"), *(root / "tests/weaklabel").glob("*.py")]
    assert files
    offenders = [
        (file.relative_to(root), name)
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in [getattr(node, "module", None) or node.names[0].name]
        if name.partition(".")[0] in {"diffusers", "torch", "transformers"}
    ]
    assert not offenders
