"""`make demo`: the shipped recordings, through a model with a pool planned from their durations.

    python docs/examples/tinyvoice/transcribe.py
    python docs/examples/tinyvoice/transcribe.py --graphs 8 --backend eager

Each recording is transcribed three times: by the model as it comes, one at a time; by the model
with its pool, one at a time; and with its pool in batches. All three must agree, or this fails.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import jiwer
import torch
from rich.console import Console
from rich.table import Table
from transformers import Wav2Vec2ForCTC, Wav2Vec2Processor
from transformers.utils.logging import disable_progress_bar

import perturb
import recordings
from hf_cudagraph_asr import BucketPlan, enable_cuda_graphs, plan_buckets
from recordings import Recording

MODEL = Path(__file__).with_name("model")


def transcribe(
    model: Any, processor: Any, audio: Sequence[perturb.Floats], size: int
) -> tuple[list[str], float]:
    """The texts, `size` recordings at a time, and the seconds spent in the model."""
    texts: list[str] = []
    seconds = 0.0
    for first in range(0, len(audio), size):
        inputs = processor(
            list(audio[first : first + size]),
            sampling_rate=perturb.RATE,
            padding=True,
            return_tensors="pt",
        ).to(model.device)
        start = perf_counter()
        with torch.inference_mode():
            tokens = model(**inputs).logits.argmax(-1).cpu()
        seconds += perf_counter() - start
        texts += [" ".join(text.split()) for text in processor.batch_decode(tokens)]
    return texts, seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; returns 1 where the transcripts are not the stock model's."""
    options = _options(arguments)
    torch.set_num_threads(1)  # so small a model is slower with more
    disable_progress_bar()
    console = Console(width=None if sys.stdout.isatty() else 120)
    model = Wav2Vec2ForCTC.from_pretrained(MODEL).eval()
    processor = Wav2Vec2Processor.from_pretrained(MODEL)
    if torch.cuda.is_available():
        model = model.cuda()
    backend = options.backend or ("cuda" if model.device.type == "cuda" else "export")
    held = recordings.read()
    audio = [samples for _, samples in held]

    stock, alone = transcribe(model, processor, audio, 1)
    plan = plan_buckets(
        [len(samples) / perturb.RATE for samples in audio],
        graphs=options.graphs,
        model=model,
        batch_sizes=(1, options.batch_size),
    )
    start = perf_counter()
    with enable_cuda_graphs(model, plan, backend=backend) as pool:
        ready = perf_counter() - start
        replayed, pooled = transcribe(model, processor, audio, 1)
        padding = pool.stats().padding
        together, _ = transcribe(model, processor, audio, options.batch_size)
        print_recordings(console, plan, held, replayed)
        console.print(plan.table())
        missed = sum(pool.stats().misses.values())
    for split in ("seen", "unseen"):
        said, heard = zip(
            *[(r.text, text) for (r, _), text in zip(held, replayed, strict=True)
              if r.split == split],
            strict=True,
        )  # fmt: skip
        console.print(f"WER, voices {split} in training: {jiwer.wer(list(said), list(heard)):.1%}")
    console.print(
        f"backend {backend}: {plan.captures} programs ready in {ready:.1f} s; "
        f"{1e3 * pooled / len(audio):.1f} ms a recording, without the pool "
        f"{1e3 * alone / len(audio):.1f} ms; {padding:.1%} of padding; {missed} not replayed"
    )
    same = sum(a == b == c for a, b, c in zip(stock, replayed, together, strict=True))
    console.print(
        f"{same} of {len(stock)} transcripts are the stock model's of each recording alone, "
        f"replayed alone and in batches of {options.batch_size}"
    )
    return int(same < len(stock))


def print_recordings(
    console: Console,
    plan: BucketPlan,
    held: Sequence[tuple[Recording, perturb.Floats]],
    texts: Sequence[str],
) -> None:
    """What was said and what was heard, and the bucket that heard it."""
    table = Table("recording", "voice", "said", "heard where it differs", "s", "bucket", "padding")
    for (recording, samples), text in zip(held, texts, strict=True):
        bucket = plan.bucket_for(len(samples))
        frames = plan.geometry.frames(len(samples))
        table.add_row(
            recording.file,
            recording.voice,
            recording.text,
            "" if text == recording.text else text or "(nothing)",
            f"{len(samples) / perturb.RATE:.2f}",
            f"{bucket.samples / perturb.RATE:.2f}" if bucket else "eager",
            f"{bucket.frames / frames - 1:.0%}" if bucket else "",
        )
    console.print(table)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--graphs", type=int, default=6, help="bucket lengths (default: 6)")
    parser.add_argument("--batch-size", type=int, default=4, help="(default: 4)")
    parser.add_argument(
        "--backend",
        choices=("cuda", "compile", "export", "eager"),
        help="(default: cuda where there is a device, else export)",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
