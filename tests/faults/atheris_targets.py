"""Let atheris change bytes, guided by the branches that they take, until a reader breaks.

    python tests/faults/atheris_targets.py --minutes 10

Each target begins with files that are whole. Any exception that is not documented is a finding, and
so are an input that takes a minute and an end of the process, unless Polars ended it; libFuzzer
keeps the input, and the message names it. atheris is no dependency of this repository: where it is
missing it is installed into runs/. The packages' own modules are instrumented, Polars and
libsndfile are not.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import record

ATHERIS = "atheris==3.0.0"
PLACE = Path(__file__).parents[2] / "runs/atheris"
PACKAGES = ("daam_diffusers", "hf_cudagraph_asr", "weaklabel")
# Words of a Rust program's end where Polars believes the length in a damaged page of Parquet, which
# Python cannot prevent: see docs/reliability.md.
POLARS_ENDED = {"handle_alloc_error", "polars_parquet"}
Target = Callable[[bytes], None]

WORD = re.compile(r"\w+")
BEGAN = re.compile(r"began at ([\d.]+)")
# What libFuzzer says last: runs, and edges of the code that they covered.
DONE = re.compile(r"#(\d+)\s+DONE\s+cov: (\d+)")
LAST = re.compile(r"#(\d+)\s+\w+\s+cov: (\d+)")


def file_target(name: str) -> tuple[Target, list[bytes]]:
    """A kind of file, which is read by its documented error or without one."""
    from kinds import kinds

    kind = kinds()[name]
    return kind.read, [kind.content]


def upload_target() -> tuple[Target, list[bytes]]:
    """Bytes that a Gateway decodes, in the formats that it takes."""
    import soundfile
    from fastapi import HTTPException
    from kinds import kinds

    from hf_cudagraph_asr.serve import Limits
    from hf_cudagraph_asr.serve.application import decoded

    samples, rate = soundfile.read(kinds()["audio.wav"].folder / "audio.wav", dtype="float32")
    whole, limits = [], Limits(max_seconds=2)
    for number, kind in enumerate(("WAV", "FLAC", "OGG", "MP3")):
        path = Path(tempfile.gettempdir()) / f"upload-{os.getpid()}-{number}"
        soundfile.write(path, samples, rate, format=kind)
        whole.append(path.read_bytes())
        path.unlink()

    def decode(content: bytes) -> None:
        try:
            decoded(content, limits, rate)
        except HTTPException as error:
            if error.status_code not in (400, 413, 415):
                raise

    return decode, whole


def prompt_target() -> tuple[Target, list[bytes]]:
    """A prompt; the first byte chooses the tokenizer."""
    from test_prompts import KINDS, PIECES, read

    tokenizers = [make() for make in KINDS.values()]

    def align(content: bytes) -> None:
        if content:
            text = content[1:65].decode("utf-8", "ignore")
            read(text, tokenizers[content[0] % len(tokenizers)])

    words = "".join(PIECES).encode()[:64]
    return align, [bytes([number]) + words for number in range(len(tokenizers))]


FILES = (
    "maps.safetensors",
    "plan.json",
    "model.json",
    "patterns.parquet",
    "votes.parquet",
    "metadata.json",
    "queries.parquet",
    "queries.csv",
    "queries.jsonl",
)
TARGETS: dict[str, Callable[[], tuple[Target, list[bytes]]]] = {
    **{name: lambda name=name: file_target(name) for name in FILES},  # type: ignore[misc]
    "uploads": upload_target,
    "prompts": prompt_target,
}


def fuzz(name: str, seconds: int, folder: Path, seed: int) -> None:
    """Fuzz one target in this process, which libFuzzer ends."""
    import atheris

    with atheris.instrument_imports(include=list(PACKAGES)):
        target, whole = TARGETS[name]()
    for number, content in enumerate(whole):
        (folder / f"whole-{number}").write_bytes(content)
    warnings.simplefilter("ignore")
    words = f"-max_total_time={seconds} -timeout=60 -rss_limit_mb=8192 -max_len=65536 -seed={seed}"
    atheris.Setup([sys.argv[0], *words.split(), f"-artifact_prefix={PLACE}/", str(folder)], target)
    print(f"began at {time.time()}", flush=True)
    atheris.Fuzz()


def run_apart(name: str, seconds: float, seed: int) -> tuple[int, str, float]:
    """Fuzz a target in a process of its own.

    Returns:
        Its exit code, what it said, and the seconds that it fuzzed.
    """
    command = [sys.executable, __file__, "--only", name, "--seed", str(seed)]
    path = os.pathsep.join([str(PLACE), *sys.path])
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as output:
            code = subprocess.run(
                [*command, "--seconds", str(math.ceil(seconds))],
                stdout=output,
                stderr=output,
                env={**os.environ, "PYTHONPATH": path, "TMPDIR": folder},
            ).returncode
        said = log.read_text("utf-8", "replace")
    began = BEGAN.search(said)
    return code, said, time.time() - float(began[1]) if began else seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10, help="of all targets together")
    parser.add_argument("--seed", type=int, default=1, help="from 1 on: 0 is random to libFuzzer")
    parser.add_argument("--targets", nargs="*", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--only", choices=TARGETS, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--no-record", action="store_true", help="leave docs/reliability alone")
    args = parser.parse_args()
    seconds = round(60 * args.minutes / len(args.targets))
    if args.only:
        with tempfile.TemporaryDirectory() as name:
            fuzz(args.only, args.seconds, Path(name), args.seed)
    if not (PLACE / "atheris").is_dir():
        install = "-m pip install --quiet --disable-pip-version-check --no-deps --target"
        subprocess.run([sys.executable, *install.split(), PLACE, ATHERIS], check=True)
    began, wrong, aborted = time.perf_counter(), 0, 0
    figures: dict[str, object] = {"minutes of all targets": f"{args.minutes:g}"}
    for name in args.targets:
        left, seed, runs, edges = float(seconds), args.seed, 0, 0
        while True:
            code, said, took = run_apart(name, left, seed)
            done = DONE.findall(said) or LAST.findall(said)
            runs += int(done[-1][0]) if done else 0
            edges = max(edges, int(done[-1][1]) if done else 0)
            ended_by_polars = bool(code) and {*WORD.findall(said)} >= POLARS_ENDED
            aborted += ended_by_polars
            left, seed = left - took, seed + 1
            if not ended_by_polars or left < 1:
                break
        figures[f"{name}: inputs, branches they took"] = f"{runs:,}, {edges:,}"
        print(f"{name}: {runs:,} inputs, {edges:,} branches, exit {code}", flush=True)
        if (code and not ended_by_polars) or not runs:
            wrong += 1
            print(said[-6000:], file=sys.stderr, flush=True)
    figures["processes that Polars ended, as it asked for exabytes"] = aborted
    figures["findings"] = wrong
    if not args.no_record:
        record.save("atheris", figures, began=began, seed=args.seed, packages=("polars", *PACKAGES))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
