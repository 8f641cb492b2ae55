"""crowd-kit's ROVER over hypotheses in JSON, timed. Run by bench_transcripts.py, in its Python."""

from __future__ import annotations

import argparse
import json
import time
from importlib.metadata import version
from pathlib import Path

import pandas as pd
from crowdkit.aggregation import ROVER


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("hypotheses", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    columns = json.loads(arguments.hypotheses.read_text(encoding="utf-8"))
    frame = pd.DataFrame(columns).rename(columns={"query_id": "task", "source": "worker"})
    rover = ROVER(str.split, " ".join)
    wall, cpu = time.perf_counter(), time.process_time()
    texts = rover.fit_predict(frame)
    done = {
        "cpu": time.process_time() - cpu,
        "wall": time.perf_counter() - wall,
        "version": version("crowd-kit"),
        "transcripts": {str(task): text for task, text in texts.items()},
    }
    arguments.out.write_text(json.dumps(done), encoding="utf-8")


if __name__ == "__main__":
    main()
