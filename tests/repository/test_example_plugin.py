"""The example plugin, built and installed as by a stranger: its functions are listed and vote."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl
import pytest
from uv import find_uv_bin

UV = find_uv_bin()
EXAMPLE = "docs/examples/weaklabel-plugin"

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WEAKLABEL_")}
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=clean)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def environment(root, tmp_path_factory):
    """A fresh environment with the wheels of weaklabel and of the plugin."""
    out = tmp_path_factory.mktemp("dist")
    for folder in (root / "weaklabel", root / EXAMPLE):
        run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, folder, cwd=out)
    # Not in the temporary folder: where that is memory, packages would be copied, not linked.
    build = root / "build"
    build.mkdir(exist_ok=True)
    with TemporaryDirectory(prefix="plugin-", dir=build) as folder:
        run(UV, "venv", "--quiet", "--python", sys.executable, folder, cwd=out)
        binaries = Path(folder, "Scripts" if sys.platform == "win32" else "bin")
        wheels = sorted(out.glob("*.whl"))
        assert [wheel.name.partition("-")[0] for wheel in wheels] == ["weaklabel", "weaklabel_tv"]
        pytest_ = "pytest"  # the example's extra `test`
        run(
            *(UV, "pip", "install", "--quiet", "--python", binaries / "python"),
            *("--constraint", root / "requirements.lock", *wheels, pytest_),
            cwd=out,
        )
        yield binaries


def test_the_plugins_functions_are_listed_with_their_origin(environment, tmp_path):
    listing = json.loads(run(environment / "weaklabel", "plugins", "--json", cwd=tmp_path))
    assert listing["faults"] == []
    plugins = {(p["distribution"], p["name"], p["version"]) for p in listing["plugins"]}
    assert {("weaklabel", "builtin", "0.1.0"), ("weaklabel-tv", "tv", "0.1.0")} <= plugins
    functions = {function["name"]: function for function in listing["labeling_functions"]}
    assert {"speaking_rate", "channel_tuned", "unfinished", "dwell"} <= functions.keys()
    rate = functions["speaking_rate"]
    assert (rate["distribution"], rate["version"]) == ("weaklabel-tv", "0.1.0")
    assert re.fullmatch(r"[0-9a-f]{12}", rate["source"])
    assert rate["requires"] == ["transcript", "duration"]
    assert rate["parameters"] == {"slowest": 0.8, "fastest": 6.0}
    assert functions["unfinished"]["rowwise"]
    for kind, name in (("exporters", "tsv"), ("label_models", "veto"), ("normalizers", "tv")):
        assert name in {item["name"] for item in listing[kind]}


def test_the_plugins_functions_vote_and_its_exporter_writes(environment, tmp_path):
    pl.DataFrame(
        {
            "query_id": ["a", "b", "c"],
            "transcript": ["channel nine", "turn on the", "play the next one now"],
            "duration": [1.0, None, 0.2],
            "action": ["play", "none", None],
        }
    ).write_parquet(tmp_path / "queries.parquet")
    command = environment / "weaklabel"
    names = ["speaking_rate", "channel_tuned", "unfinished"]
    chosen = [word for name in names for word in ("--lf", name)]
    run(command, "apply", "queries.parquet", "--out", "votes.parquet", *chosen, cwd=tmp_path)
    votes = pl.read_parquet(tmp_path / "votes.parquet").sort("query_id")
    assert votes["lf:speaking_rate"].to_list() == [0, None, -1]
    assert votes["lf:channel_tuned"].to_list() == [1, 0, 0]
    assert votes["lf:unfinished"].to_list() == [0, -1, 0]
    metadata = json.loads(pl.read_parquet_metadata(tmp_path / "votes.parquet")["weaklabel"])
    versions = {f["name"]: (f["distribution"], f["version"]) for f in metadata["functions"]}
    assert versions["unfinished"] == ("weaklabel-tv", "0.1.0")
    run(command, "fit", "votes.parquet", "--model", "veto", "--out", "m.json", cwd=tmp_path)
    run(
        *(command, "label", "votes.parquet", "--model", "m.json", "--out", "labels.parquet"),
        cwd=tmp_path,
    )
    run(
        *(command, "export", "labels.parquet", "--queries", "queries.parquet"),
        *("--format", "tsv", "--out", "tsv"),
        cwd=tmp_path,
    )
    lines = (tmp_path / "tsv" / "transcripts.tsv").read_text().splitlines()
    assert sorted(lines) == [
        "0.5000\tturn on the",
        "0.6667\tplay the next one now",
        "1.0000\tchannel nine",
    ]


def test_the_plugins_own_tests_pass(environment, root):
    run(
        *(environment / "python", "-I", "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider"),
        "tests",
        cwd=root / EXAMPLE,
    )
