"""Run Hypothesis tests of what comes from outside again and again, each time with another seed.

    python tests/faults/fuzz.py --minutes 10
    python tests/faults/fuzz.py --minutes 60 tests/weaklabel tests/daam_diffusers

A failure ends it with the seed; `pytest --hypothesis-seed=SEED` repeats it. pytest runs each test
once with that many examples as the test asks for, so that rounds, not examples, grow with time.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import record

ROOT = Path(__file__).parents[2]
# Prompts, query logs, uploads, and files that the packages wrote.
PLACES = (
    "tests/faults",
    "tests/daam_diffusers/test_prompt.py",
    "tests/hf_cudagraph_asr/test_serve_http.py",
    "tests/weaklabel/test_hostile_input.py",
)
PASSING = re.compile(r"(\d+) passing(?: examples)?, ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the first round")
    parser.add_argument("--no-record", action="store_true", help="leave docs/reliability alone")
    parser.add_argument("places", nargs="*", default=PLACES, help="tests or folders of tests")
    args = parser.parse_args()
    began, seed, examples, tests = time.perf_counter(), args.seed, 0, 0
    while seed == args.seed or time.perf_counter() - began < 60 * args.minutes:
        options = f"-m hypothesis -q -p no:cacheprovider --hypothesis-seed={seed}".split()
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "--hypothesis-show-statistics",
                *options,
                *args.places,
            ],
            cwd=ROOT,
            env={**os.environ, "HYPOTHESIS_PROFILE": "dev"},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            sys.exit(f"{done.stdout[-8000:]}\nseed {seed}")
        examples += sum(map(int, PASSING.findall(done.stdout)))
        tests = int(re.findall(r"(\d+) passed", done.stdout)[-1])
        seed += 1
        print(f"round {seed - args.seed}: {tests} tests, {examples:,} examples", flush=True)
    figures = {
        "tests": tests,
        "rounds, each with a seed of its own": seed - args.seed,
        "examples": examples,
        "failures": 0,
    }
    if not args.no_record:
        record.save(
            "fuzzing", figures, began=began, seed=args.seed,
            packages=("hypothesis", "daam_diffusers", "hf_cudagraph_asr", "weaklabel"),
        )  # fmt: skip


if __name__ == "__main__":
    main()
