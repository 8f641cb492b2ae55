"""Let atheris change bytes, guided by the branches that they take, until a reader breaks.

    python tests/faults/atheris_targets.py --minutes 10

Each target begins with files that are whole. Any exception that is not documented is a finding, and
so are an end of the process and an input that takes a minute; libFuzzer keeps the input, and the
message names it. Parquet is left to Hypothesis, as Polars believes lengths in damaged pages: asked
for exabytes, its allocator ends the process, as atheris finds within seconds.

atheris is no dependency of this repository: where it is missing it is installed into runs/. The
packages' own modules are instrumented, libsndfile is not.
"""

from __future__ import annotations

import argparse
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
Target = Callable[[bytes], None]

# What libFuzzer says last: runs, and edges of the code that they covered.
DONE = re.compile(r"#(\d+)\s+DONE\s+cov: (\d+)")


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
    "metadata.json",
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
    atheris.Fuzz()


def run_apart(name: str, seconds: int, seed: int) -> tuple[int, str]:
    """Fuzz a target in a process of its own; its exit code and what it said."""
    command = [sys.executable, __file__, "--only", name, "--seed", str(seed)]
    path = os.pathsep.join([str(PLACE), *sys.path])
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as output:
            code = subprocess.run(
                [*command, "--seconds", str(seconds)],
                stdout=output,
                stderr=output,
                env={**os.environ, "PYTHONPATH": path, "TMPDIR": folder},
            ).returncode
        return code, log.read_text("utf-8", "replace")


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
    began, wrong = time.perf_counter(), 0
    figures: dict[str, object] = {"minutes of all targets": f"{args.minutes:g}"}
    for name in args.targets:
        code, said = run_apart(name, seconds, args.seed)
        done = DONE.search(said)
        runs, edges = map(int, done.groups()) if done else (0, 0)
        figures[f"{name}: inputs, branches they took"] = f"{runs:,}, {edges:,}"
        print(f"{name}: {runs:,} inputs, {edges:,} branches, exit {code}", flush=True)
        if code or not runs:
            wrong += 1
            print(said[-6000:], file=sys.stderr, flush=True)
    figures["findings"] = wrong
    if not args.no_record:
        record.save("atheris", figures, began=began, seed=args.seed, packages=("polars", *PACKAGES))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
