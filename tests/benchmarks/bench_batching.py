"""How many texts change when recordings are transcribed in batches, and in half precision.

    python tests/benchmarks/bench_batching.py
    python tests/benchmarks/bench_batching.py --orders 1 --batch-sizes 4

All three dtypes take about twenty minutes of processor time without a GPU; `--dtypes float32`, a
third of that.

The forty recordings of docs/examples/tinyvoice, in several random orders, in batches of several
sizes. A text counts as changed where it is not the stock model's for that recording alone, in the
same dtype. The stock model is called in the two ways people call it: with what a feature extractor
without attention mask makes of a batch (the setting of many group-norm checkpoints, such as
wav2vec2-base-960h), and with the mask. Ours is a `Transcriber` on a pool of `torch.export` programs
or, with --backend, of others.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import figures
import numpy as np
import soundfile
import torch
from rich.console import Console
from rich.table import Table
from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC, Wav2Vec2Processor
from transformers.utils.logging import disable_progress_bar

from hf_cudagraph_asr import Transcriber, enable_cuda_graphs, plan_buckets

TINYVOICE = Path(__file__).parents[2] / "docs/examples/tinyvoice"
RATE = 16_000
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Waveforms = Sequence[Any]
Transcribe = Callable[[Waveforms], list[str]]


def stock(model: Any, processor: Any, *, mask: bool) -> Transcribe:
    """The model as it is, on a batch as its feature extractor pads it."""
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=mask)

    def transcribe(waveforms: Waveforms) -> list[str]:
        inputs = extractor(
            list(waveforms), sampling_rate=RATE, padding=True, return_tensors="pt"
        ).to(model.device)
        inputs["input_values"] = inputs["input_values"].to(model.dtype)
        with torch.inference_mode():
            tokens = model(**inputs).logits.argmax(-1).cpu()
        texts: list[str] = processor.batch_decode(tokens)
        return texts

    return transcribe


def changed(
    transcribe: Transcribe,
    alone: Sequence[str],
    waveforms: Waveforms,
    orders: Sequence[Sequence[int]],
    size: int,
) -> int:
    """Texts that differ from those of each recording alone, over all orders."""
    count = 0
    for order in orders:
        for first in range(0, len(order), size):
            batch = order[first : first + size]
            found = transcribe([waveforms[at] for at in batch])
            count += sum(text != alone[at] for at, text in zip(batch, found, strict=True))
    return count


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(TINYVOICE / "model"))
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4, 8, 32])
    parser.add_argument("--orders", type=int, default=5)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=[*DTYPES])
    parser.add_argument("--backend", default="export")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    figures.add_option(parser)
    options = parser.parse_args(arguments)
    disable_progress_bar()
    console = Console(width=None if sys.stdout.isatty() else 100)
    files = sorted((TINYVOICE / "recordings").glob("*.flac"))
    waveforms = [soundfile.read(file, dtype="float32")[0] for file in files]
    draw = np.random.default_rng(0)
    orders = [draw.permutation(len(waveforms)).tolist() for _ in range(options.orders)]
    processor = Wav2Vec2Processor.from_pretrained(options.model)

    texts = options.orders * len(waveforms)
    table = Table("dtype", "called", *(f"batch {size}" for size in options.batch_sizes))
    table.title = f"texts that change, of {texts}"
    rows: list[dict[str, Any]] = []
    reference: list[str] = []
    for dtype in options.dtypes:
        model = Wav2Vec2ForCTC.from_pretrained(options.model, dtype=DTYPES[dtype])
        model = model.eval().to(options.device)
        single = stock(model, processor, mask=True)
        alone = [single([waveform])[0] for waveform in waveforms]
        reference = reference or alone
        plan = plan_buckets(
            [len(waveform) / RATE for waveform in waveforms],
            graphs=3,
            model=model,
            batch_sizes=(1, 4, 8),
        )

        def row(called: str, transcribe: Transcribe, base: Sequence[str], dtype: str) -> None:
            counts = {
                size: changed(transcribe, base, waveforms, orders, size)
                for size in options.batch_sizes
            }
            rows.append({"dtype": dtype, "called": called, "texts": texts, "changed": counts})
            table.add_row(dtype, called, *map(str, counts.values()))

        row("stock, no mask", stock(model, processor, mask=False), alone, dtype)
        row("stock, mask", single, alone, dtype)
        with Transcriber(
            model, processor, enable_cuda_graphs(model, plan, backend=options.backend)
        ) as asr:

            def ours(waveforms: Waveforms, asr: Transcriber = asr) -> list[str]:
                return [transcript.text for transcript in asr.transcribe(waveforms)]

            row("ours", ours, alone, dtype)
            if dtype != options.dtypes[0]:
                row(f"ours, against {options.dtypes[0]}", ours, reference, dtype)
    console.print(table)
    shares = [
        figures.Figure.of(
            f"{row['dtype']}, {row['called']}: texts that change in batches / all texts",
            count / row["texts"],
            margin=0.1,
            better="neither" if row["called"].startswith("stock") else "lower",
            along="rows in a batch",
            at=size,
        )
        for row in rows
        for size, count in row["changed"].items()
    ]
    packages = ("hf_cudagraph_asr", "transformers", "torch")
    figures.save("batching", shares, options.save, packages=packages)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
