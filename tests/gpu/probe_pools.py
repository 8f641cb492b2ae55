"""Probes of pools: what callers of an enabled model wait for."""

from __future__ import annotations

import copy
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from probing import Probe
from speech import LONGEST, in_samples, traffic

from hf_cudagraph_asr import (
    BucketPlan,
    ExactForward,
    Transcriber,
    enable_cuda_graphs,
    plan_buckets,
)
from hf_cudagraph_asr.cli.bench import Contender, contending, replay, results

BF16, FP32 = torch.bfloat16, torch.float32


def backend(probe: Probe) -> str:
    """What is probed; on a CPU, what starts at once."""
    return "cuda" if probe.on_gpu else "eager"


def smoke(probe: Probe) -> None:
    """Replays against the stock model alone, in each dtype: one row, and a batch.

    Decides what the README may claim: "worst" in float32 is to be 1e-5 at most with TensorFloat32
    off, else the number is said. Where "why" is a failed capture, read the reason: the probes of
    programs still count, as they capture by themselves.
    """
    for dtype in (FP32, BF16):
        model = probe.model(dtype)
        full = copy.deepcopy(model).float()
        plan = plan_buckets([1.0, 2.0, 5.0], graphs=3, model=model, batch_sizes=(1, 4))
        lengths = (7_000, 15_999, 31_000, 79_000)
        rows = [torch.randn(length, device=probe.device).to(dtype) for length in lengths]
        values = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)  # (4, 79000)
        mask = (torch.arange(values.shape[1]) < torch.tensor(lengths)[:, None]).long()
        start = time.perf_counter()
        pool = enable_cuda_graphs(model, plan, backend=backend(probe))
        seconds = time.perf_counter() - start
        worst = own = 0.0
        together = model(values, attention_mask=mask.to(probe.device)).logits
        for row, batched in zip(rows, together, strict=True):
            alone = type(model).forward(model, row[None]).logits[0].float()
            truth = full(row.float()[None]).logits[0]
            scale = float(truth.abs().max())
            for found in (model(row[None]).logits[0], batched):
                worst = max(worst, float((found[: len(alone)] - alone).abs().max()) / scale)
            own = max(own, float((alone - truth).abs().max()) / scale)
        stats = pool.stats()
        probe.say(
            "smoke",
            dtype=str(dtype),
            why=str(pool.explain(31_000)),
            worst=worst,
            own_error=own,
            hits=stats.hits,
            misses={reason.name: count for reason, count in stats.misses.items()},
            memory_mib=stats.memory / 2**20,
            start_s=seconds,
        )
        pool.close()


def latency(probe: Probe) -> None:
    """Samples on the host to tokens on the host, one query after the other.

    Decides whether copies and argmax belong into the graph: if "pinned" takes 50 µs less than the
    pool at the median. The default of torch, cuDNN's attention, is a figure of its own: it plans
    each length of the stock model once, so the second of two passes is its steady state.
    """
    for dtype, queries in ((BF16, 150), (FP32, 100)):
        _latency(probe, probe.geometry, dtype, queries, cudnn=False)
    _latency(probe, probe.geometry, BF16, 25, cudnn=True)


def latency_large(probe: Probe) -> None:
    """The same for a larger model.

    Decides the same where arithmetic weighs more.
    """
    _latency(probe, probe.large, BF16, 100, cudnn=False)


def _latency(probe: Probe, geometry: str, dtype: torch.dtype, queries: int, *, cudnn: bool) -> None:
    torch.backends.cuda.enable_cudnn_sdp(cudnn)
    try:
        model = probe.model(dtype, geometry)
        planned = np.append(traffic(10_000, seed=1), LONGEST)
        plan = plan_buckets(planned, graphs=16 if probe.on_gpu else 4, model=model)
        lengths = in_samples(traffic(queries if probe.on_gpu else 4))
        with contending(model, plan, [backend(probe)]) as contenders:
            if probe.on_gpu:
                contenders.append(Contender("pinned", _pinned(model, plan, dtype)))
            replay(contenders, [max(lengths), *lengths[:5]])
            for run in ("first", "again") if cudnn else ("only",):
                for found in results(contenders, *replay(contenders, lengths)):
                    probe.say(
                        "latency",
                        geometry=geometry,
                        dtype=str(dtype),
                        cudnn_attention=cudnn,
                        run=run,
                        queries=len(lengths),
                        **vars(found),
                    )
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)


def _pinned(
    model: Any, plan: BucketPlan, dtype: torch.dtype
) -> Callable[[torch.Tensor], torch.Tensor]:
    """A prototype: copy in, cast, forward, argmax and copy out in one graph a bucket."""
    exact = ExactForward(model)
    pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()
    programs: dict[int, tuple[Any, torch.Tensor, torch.Tensor, torch.Tensor]] = {}
    held: list[object] = []
    for bucket in reversed(plan.buckets):
        host = torch.zeros(1, bucket.samples).pin_memory()
        size = torch.full((1,), bucket.samples - 1).pin_memory()
        tokens = torch.zeros(1, bucket.frames, dtype=torch.int64).pin_memory()
        values, lengths = (
            torch.zeros_like(host, device="cuda"),
            torch.zeros_like(size, device="cuda"),
        )

        def run(
            host: torch.Tensor = host,
            size: torch.Tensor = size,
            tokens: torch.Tensor = tokens,
            values: torch.Tensor = values,
            lengths: torch.Tensor = lengths,
        ) -> None:
            values.copy_(host, non_blocking=True)
            lengths.copy_(size, non_blocking=True)
            logits, _ = exact(values.to(dtype), lengths)
            tokens.copy_(logits.argmax(dim=-1), non_blocking=True)

        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(2):
                run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            run()
        graph.replay()
        torch.cuda.synchronize()
        programs[bucket.frames] = graph, host, size, tokens
        held += [values, lengths]
    done = torch.cuda.Event()

    def call(samples: torch.Tensor, held: object = held) -> torch.Tensor:
        count = samples.shape[1]
        bucket = plan.bucket_for(count)
        assert bucket is not None
        graph, host, size, tokens = programs[bucket.frames]
        host[:, :count].copy_(samples)
        size[0] = count
        graph.replay()
        done.record()
        done.synchronize()
        return tokens[:, : plan.geometry.frames(count)].clone()

    return call


def swap(probe: Probe) -> None:
    """What calls wait for while a pool takes another plan under traffic.

    Decides whether swaps need care: if the longest call "during" takes more than 100 ms.
    """
    model = probe.model(BF16)
    planned = np.append(traffic(5_000), LONGEST)
    plans = [plan_buckets(planned, graphs=n, model=model, batch_sizes=(1, 4)) for n in (4, 8)]
    values = torch.randn(1, 30_000, device=probe.device).to(BF16)
    stop = threading.Event()
    taken: list[tuple[float, float]] = []  # begin, seconds

    def ask() -> None:
        with torch.no_grad(), probe.stream():
            while not stop.is_set():
                start = time.perf_counter()
                model(values).logits.argmax(dim=-1).cpu()
                taken.append((start, time.perf_counter() - start))

    with enable_cuda_graphs(model, plans[0], backend=backend(probe)) as pool:
        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            time.sleep(1)
            begin = time.perf_counter()
            pool.swap(plans[1])
            end = time.perf_counter()
            time.sleep(0.5)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        misses = {reason.name: count for reason, count in pool.stats().misses.items()}
    before = [seconds for start, seconds in taken if start + seconds < begin]
    during = [seconds for start, seconds in taken if start <= end and start + seconds >= begin]
    probe.say(
        "swap",
        seconds=end - begin,
        graphs=plans[1].captures,
        calls={"before": len(before), "during": len(during)},
        p50_before_ms=1e3 * statistics.median(before or [0.0]),
        longest_ms={"before": 1e3 * max(before, default=0), "during": 1e3 * max(during, default=0)},
        misses=misses,
    )


def serving(probe: Probe) -> None:
    """Waveforms to texts through a `Transcriber`, from one thread and from two.

    Decides how many queries a second one process carries, and whether a second thread helps.
    """
    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ"]
    with tempfile.TemporaryDirectory() as folder:
        words = Path(folder) / "words.json"
        words.write_text(json.dumps({letter: i for i, letter in enumerate(letters)}))
        tokenizer = transformers.Wav2Vec2CTCTokenizer(str(words))
    extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=False)
    processor = transformers.Wav2Vec2Processor(extractor, tokenizer)
    model = probe.model(BF16)
    plan = plan_buckets([1.0, 2.0, 3.0], graphs=3, model=model, batch_sizes=(1, 2, 4, 8))
    generator = np.random.default_rng(0)
    found = {}
    with enable_cuda_graphs(model, plan, backend=backend(probe)) as pool:
        asr = Transcriber(model, processor, pool)
        for rows in (1, 8) if probe.on_gpu else (1, 2):
            samples = generator.uniform(16_400, 31_600, rows).astype(int).tolist()
            batch = [generator.normal(0, 0.1, count).astype(np.float32) for count in samples]
            asr.transcribe(batch)
            for threads in (1, 2):
                times = 40 if probe.on_gpu else 2

                def work(_: int, batch: Any = batch, times: int = times) -> None:
                    with probe.stream():
                        for _ in range(times):
                            asr.transcribe(batch)

                with ThreadPoolExecutor(threads) as executor:
                    start = time.perf_counter()
                    list(executor.map(work, range(threads)))
                    taken = time.perf_counter() - start
                queries = rows * threads * times
                found[f"{rows} rows, {threads} threads"] = round(queries / taken)
        hits, calls = pool.stats().hits, pool.stats().calls
    probe.say("serving", queries_a_second=found, hits=hits, calls=calls)


def compiled(probe: Probe) -> None:
    """The forward as torch.compile compiles it, inside the graphs of two lengths.

    Decides whether that should be the default on a GPU: by "wall_us" beside `latency`, against
    what "start_s" costs.
    """
    model = probe.folded(BF16)
    plan = plan_buckets([1.8, 5.0], graphs=2, model=model)
    start = time.perf_counter()
    with enable_cuda_graphs(model, plan, backend="compile" if probe.on_gpu else "eager") as pool:
        seconds = time.perf_counter() - start
        found = {}
        for bucket in plan.buckets:
            values = torch.randn(1, bucket.samples - 321, device=probe.device).to(BF16)
            alone = type(model).forward(model, values).logits
            away = float((model(values).logits - alone).abs().max() / alone.abs().max())
            us = probe.wall_us(lambda values=values: model(values))
            found[bucket.frames] = {"wall_us": us, "away": away}
        why = str(pool.explain(28_000))
    probe.say("compiled", why=why, start_s=seconds, frames=found)
