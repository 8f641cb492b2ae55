"""Hours of recordings to texts: seconds of audio a second, beside the stock pipeline, in one run.

    python tests/benchmarks/bench_offline.py
    python tests/benchmarks/bench_offline.py --minutes 5 --device cuda --backend cuda

The forty recordings of docs/examples/tinyvoice, repeated in random order to an hour. The stock
pipeline gets them one by one, and in batches as they come. A `Transcriber` puts them in order of
length, in batches by what `calibrate` measured, and makes features and texts beside the model.
Texts count as changed where they are not the stock pipeline's at batch 1.

The stock forward alone, of features that are there already and in order of length, without texts,
bounds whatever calls it. Processor time is that of all threads together, so it counts the same on a
busy machine; what runs beside the model shows in the time by the clock alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import figures
import numpy as np
import soundfile
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCTC, AutoProcessor, pipeline
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from hf_cudagraph_asr import Transcriber, enable_cuda_graphs, plan_buckets

TINYVOICE = Path(__file__).parents[2] / "docs/examples/tinyvoice"
RATE = 16_000

Waveforms = Sequence[Any]
Transcribe = Callable[[Waveforms], list[str]]


@dataclass(frozen=True)
class Result:
    """One way to transcribe them all.

    Attributes:
        name: what it is.
        clock: seconds of audio a second by the clock.
        processor: seconds of audio a second of processor time.
        changed: texts that are not those of the first one; None where no texts are made.
    """

    name: str
    clock: float
    processor: float
    changed: int | None


def stock(model: Any, processor: Any, batch_size: int) -> Transcribe:
    """The host's pipeline."""
    recognize = pipeline(
        "automatic-speech-recognition",
        model=model,
        tokenizer=processor.tokenizer,
        feature_extractor=processor.feature_extractor,
        device=model.device,
    )

    def transcribe(waveforms: Waveforms) -> list[str]:
        given = ({"raw": waveform, "sampling_rate": RATE} for waveform in waveforms)
        return [found["text"] for found in recognize(given, batch_size=batch_size)]

    return transcribe


def forward(model: Any, processor: Any, recordings: Waveforms, batch_size: int) -> Transcribe:
    """The host's model alone: no texts."""
    extract = processor.feature_extractor
    features = {
        id(one): torch.from_numpy(extract(one, sampling_rate=RATE).input_values[0])
        for one in recordings
    }

    def transcribe(waveforms: Waveforms) -> list[str]:
        rows = sorted((features[id(one)] for one in waveforms), key=len)
        with torch.inference_mode():
            for start in range(0, len(rows), batch_size):
                batch = rows[start : start + batch_size]
                values = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True)  # (B, T)
                model(values.to(model.device)).logits.argmax(-1).cpu()
        return []

    return transcribe


def measure(name: str, transcribe: Transcribe, waveforms: Waveforms, texts: list[str]) -> Result:
    """Time one; the first one fills `texts`."""
    transcribe(waveforms[:8])  # what is lazy is done before
    clock, processor = time.perf_counter(), time.process_time()
    found = transcribe(waveforms)
    clock, processor = time.perf_counter() - clock, time.process_time() - processor
    texts += [] if texts else found
    seconds = sum(map(len, waveforms)) / RATE
    changed = (
        sum(ours != wanted for ours, wanted in zip(found, texts, strict=True)) if found else None
    )
    return Result(name, seconds / clock, seconds / processor, changed)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(TINYVOICE / "model"))
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--backend", default="export")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=1, help="of all ways, in turns")
    parser.add_argument("--json", type=Path)
    figures.add_option(parser)
    options = parser.parse_args(arguments)
    disable_progress_bar()
    set_verbosity_error()
    files = sorted((TINYVOICE / "recordings").glob("*.flac"))
    recordings = [soundfile.read(file, dtype="float32")[0] for file in files]
    draw, waveforms, left = np.random.default_rng(0), [], 60 * options.minutes * RATE
    while left > 0:
        waveforms.append(recordings[draw.integers(len(recordings))])
        left -= len(waveforms[-1])
    processor = AutoProcessor.from_pretrained(options.model)
    texts: list[str] = []

    def model() -> Any:
        return AutoModelForCTC.from_pretrained(options.model).eval().to(options.device)

    ways: dict[str, Transcribe] = {}
    for size in (1, *options.batch_sizes):
        ways[f"stock, batch {size}"] = stock(model(), processor, size)
        alone = forward(model(), processor, recordings, size)
        ways[f"stock forward alone, batch {size}"] = alone
    durations = [len(waveform) / RATE for waveform in waveforms]
    with ExitStack() as stack:
        for backend in dict.fromkeys(("eager", options.backend)):
            network = model()
            plan = plan_buckets(durations, graphs=4, model=network, batch_sizes=(1, 4, 8))
            pool = enable_cuda_graphs(
                network, None if backend == "eager" else plan, backend=backend
            )
            asr = stack.enter_context(Transcriber(network, processor, pool))
            if pool.backend.captures:
                pool.calibrate(repeats=3)

            def ours(waveforms: Waveforms, asr: Transcriber = asr) -> list[str]:
                return [transcript.text for transcript in asr.transcribe(waveforms)]

            ways[f"ours, {backend}"] = ours
        rounds = [
            [measure(name, transcribe, waveforms, texts) for name, transcribe in ways.items()]
            for _ in range(options.repeats)
        ]
    results = [
        replace(
            runs[0],
            clock=statistics.median(run.clock for run in runs),
            processor=statistics.median(run.processor for run in runs),
        )
        for runs in zip(*rounds, strict=True)
    ]
    table = Table("", "× real time, clock", "× real time, processor", "texts changed")
    for found in results:
        rates = (f"{found.clock:,.0f}", f"{found.processor:,.0f}")
        changed = "" if found.changed is None else f"{found.changed} of {len(waveforms)}"
        table.add_row(found.name, *rates, changed)
    console = Console(width=None if sys.stdout.isatty() else 100)
    console.print(table)
    for clock in ("clock", "processor"):
        stocks, alone, ours = (
            max(getattr(found, clock) for found in results if found.name.startswith(name))
            for name in ("stock, ", "stock forward", "ours")
        )
        console.print(
            f"over the stock's best, by the {clock}: ours {ours / stocks:.2f}, "
            f"the forward alone {alone / stocks:.2f}"
        )
    named = [{run.name: run.processor for run in runs} for runs in rounds]
    what = "seconds of audio a second of processor time"
    ratios = [
        figures.Figure.of(
            f"{what}: {ours} / {theirs}",
            [runs[ours] / runs[theirs] for runs in named],
            margin=0.15,
            better="higher",
        )
        for ours in ways
        if ours.startswith("ours")
        for theirs in ways
        if theirs.startswith("stock, ")
    ]
    ratios += [
        figures.Figure.of(
            f"texts changed by {found.name} / all",
            found.changed / len(waveforms),
            better="neither" if found.name.startswith("stock") else "lower",
        )
        for found in results
        if found.changed is not None
    ]
    packages = ("hf_cudagraph_asr", "transformers", "torch")
    figures.save("offline", ratios, options.save, packages=packages)
    if options.json is not None:
        rows = [asdict(found) for found in results]
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
