"""Votes on a standalone Spark cluster of two workers, one of which is killed on the way."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from weaklabel.testing import synthetic_query_log

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

BRIEF = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"

# What a user runs: functions of their own, and a log that any engine reads.
APPLY = """
    import json, os, sys, time
    from pathlib import Path
    from weaklabel import labeling_function
    from weaklabel import functions as built_in
    from weaklabel.runs import apply_files

    folder = Path(sys.argv[1])

    @labeling_function(requires=["transcript"], rowwise=True)
    def careful(row):
        "Wait on the first worker until it is killed; raise on some rows."
        if Path.cwd().is_relative_to(folder / "first"):
            (folder / "reached").touch()
            time.sleep(120)
        if row["query_id"] % 7 == 0:
            raise ValueError("seven")
        return 1 if row["transcript"] else -1

    functions = [careful, built_in.session_position, built_in.asr_confidence, built_in.rarity,
                 built_in.rephrasing, built_in.rephrasing_edit_distance]
    engine, out = sys.argv[2], folder / sys.argv[3]
    summary = apply_files(functions, folder / "queries.parquet", out, engine=engine,
                          master=sys.argv[4] or None, partitions=3, progress=False)
    print(json.dumps([summary.rows, [[e.name, e.total, e.first] for e in summary.errors]]))
"""

CONFIGURATION = f"""
spark.driver.host 127.0.0.1
spark.driver.bindAddress 127.0.0.1
spark.executor.memory 512m
spark.executor.extraJavaOptions {BRIEF}
spark.scheduler.minRegisteredResourcesRatio 1.0
spark.sql.shuffle.partitions 6
spark.sql.adaptive.coalescePartitions.enabled false
"""


@contextmanager
def started(
    environment: dict[str, str], log: Path, *arguments: str
) -> Iterator[subprocess.Popen[bytes]]:
    """One of Spark's daemons, with a log of what it says."""
    import pyspark

    home = Path(pyspark.__file__).parent
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(home / "bin" / "spark-class"), *arguments],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment, "SPARK_HOME": str(home)},
        )
        try:
            yield process
        finally:
            process.terminate()
            process.wait(20)


def awaited(found: Callable[[], Any], what: str, seconds: float = 200) -> Any:
    until = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < until, f"no {what} after {seconds:.0f} s"
        time.sleep(0.1)
    return value


def said(log: Path, prefix: str) -> str | None:
    """The first word of a log that starts with something."""
    words = log.read_text(errors="replace").split() if log.exists() else []
    return next((word for word in words if word.startswith(prefix)), None)


def test_votes_are_those_of_polars_though_a_worker_is_killed(require: Any, tmp_path: Path) -> None:
    require(shutil.which("java"), "no Java")
    log = synthetic_query_log(300)
    log.write_parquet(tmp_path / "queries.parquet")
    script = tmp_path / "apply.py"
    script.write_text(textwrap.dedent(APPLY))
    settings = tmp_path / "conf"
    settings.mkdir()
    (settings / "spark-defaults.conf").write_text(CONFIGURATION)
    environment = {
        "SPARK_CONF_DIR": str(settings),
        "SPARK_LOCAL_IP": "127.0.0.1",
        "SPARK_DAEMON_MEMORY": "256m",
        "SPARK_DAEMON_JAVA_OPTS": BRIEF,
        "PYSPARK_PYTHON": sys.executable,
    }
    deploy = "org.apache.spark.deploy"
    address = ("--host", "127.0.0.1", "--port", "0", "--webui-port", "0")
    with started(environment, tmp_path / "master.log", f"{deploy}.master.Master", *address):
        master = awaited(lambda: said(tmp_path / "master.log", "spark://"), "master").rstrip(".,")
        worker = (f"{deploy}.worker.Worker", master, *address, "--cores", "1", "--memory", "512m")

        def working(name: str) -> Any:
            return started(
                environment, tmp_path / f"{name}.log", *worker, "--work-dir", str(tmp_path / name)
            )

        with working("first") as first, working("second"):
            applying = subprocess.Popen(
                [sys.executable, str(script), str(tmp_path), "spark", "votes", master],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, **environment},
            )
            with applying:
                try:
                    awaited(
                        lambda: (tmp_path / "reached").exists() or applying.poll() is not None,
                        "task on the first worker",
                    )
                    first.kill()
                    output, errors = applying.communicate(timeout=300)
                finally:
                    applying.kill()  # or a failure here would wait for its end
            assert (tmp_path / "reached").exists(), errors
            assert applying.returncode == 0, errors
    alone = subprocess.run(
        [sys.executable, str(script), str(tmp_path), "polars", "alone", ""],
        capture_output=True,
        text=True,
        check=True,
    )
    votes, wanted = (
        pl.read_parquet(tmp_path / name / "*.parquet").sort("query_id")
        for name in ("votes", "alone")
    )
    assert votes.equals(wanted)
    # Errors are counted once, though tasks were run again.
    assert json.loads(output) == json.loads(alone.stdout)
    assert json.loads(output)[0] == len(log)
