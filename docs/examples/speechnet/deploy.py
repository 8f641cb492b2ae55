"""The best student behind a pool: its speed beside the third parties', and the load it holds."""

from __future__ import annotations

import asyncio
import json
import time
import warnings
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from tqdm.auto import tqdm
from transformers import Wav2Vec2ForCTC

import recognizer
from hf_cudagraph_asr import BucketPlan, enable_cuda_graphs, plan_buckets
from speechnet import decode, evaluate, settings, third_party, train
from speechnet.settings import Size
from speechnet.train import Run
from speechnet.waves import Waves

GRAPHS, ROWS = 6, (1, 4)  # lengths and batch sizes to capture
TIMED = 100  # test queries that every recognizer transcribes
RATES = (10, 20, 40, 60, 80, 100, 120, 139, 160, 200, 250, 320, 400, 600, 800, 1200)  # a second
DAY = 10.0  # seconds that a day is replayed in
LIMIT = 0.1  # seconds that 99% of the answers may take at most

Wave = npt.NDArray[np.float32]


def deploy(
    size: Size,
    timed: int = TIMED,
    rates: tuple[int, ...] = RATES,
    day: float = DAY,
    graphs: int = GRAPHS,
) -> dict[str, Any]:
    """Measure the best student and write `deploy.json`.

    Args:
        size: whose student, log and test recordings.
        timed: recordings that every recognizer transcribes.
        rates, day: as `load` takes them.
        graphs: lengths to capture.

    Returns:
        What it wrote.
    """
    torch.set_num_threads(1)
    run = best(size)
    folder = run.folder
    log = pl.read_parquet(settings.results(size) / f"log-{run.third}.parquet")
    model, _ = train.loaded(folder)
    backend = "cuda" if torch.cuda.is_available() else "export"
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    plan = plan_buckets(log["duration"], graphs=graphs, model=model, batch_sizes=ROWS)
    waves = Waves(size, "test")
    chosen = waves.ids[:: max(1, len(waves.ids) // timed)]
    result = {
        "student": run.name,
        **train.provenance(),
        "threads": torch.get_num_threads(),
        "backend": backend,
        "buckets": [bucket.frames for bucket in plan.buckets],
        "planned_padding": round(sum(b.share * b.padding for b in plan.buckets), 4),
        "speed": speed(contenders(folder, model, plan, backend), waves, chosen),
        "load": {},
    }
    path = settings.work(size) / "plan.json"
    plan.save(path)
    clock = log["timestamp"].dt.epoch("ms").to_numpy() / 1000 % settings.DAY
    for name, served in (("eager", None), (backend, path)):
        ask = serve(folder, served, name)
        result["load"][name] = load(ask, clock, waves, rates, day)
    train.write_json(settings.results(size) / "deploy.json", result)
    return result


def best(size: Size) -> Run:
    """The first seed of the student that learned from labels and has the fewest errors.

    Raises:
        FileNotFoundError: nothing was evaluated yet, or the student's weights are not here.
    """
    path = settings.results(size) / "scores.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: run the step evaluate first.")
    found = [
        row
        for row in json.loads(path.read_text())["students"]
        if row["student"] != "gold" and not row["noise"]
    ]
    first = min(found, key=lambda row: row["modes"][evaluate.MODE]["wer"][0])
    run = Run(size, first["third"], first["student"], first["seeds"][0])
    if not (run.folder / "model.safetensors").exists():
        raise FileNotFoundError(f"{run.folder} holds no weights: run the step train here.")
    return run


def contenders(
    folder: Path, model: Wav2Vec2ForCTC, plan: BucketPlan, backend: str
) -> dict[str, Callable[[Wave], str]]:
    """Functions from a waveform (T,) to its text: third parties, and the student three times."""
    stock, processor = train.loaded(folder)
    stock = stock.to(model.device)
    decoders = decode.decoders()
    words = decoders[evaluate.MODE]
    pool = enable_cuda_graphs(model, plan, backend=backend, batch_sizes=(1,))

    @torch.inference_mode()
    def captured(wave: Wave) -> torch.Tensor:
        inputs = processor(wave, sampling_rate=settings.RATE, return_tensors="pt").input_values
        logits, _ = pool.call(inputs.to(model.device))
        return logits[0].float().log_softmax(-1).cpu()

    def of(source: str) -> Callable[[Wave], str]:
        recognize = third_party.recognizer(source)
        return lambda wave: str(recognize(wave)[0].text)

    return {
        **{source: of(source) for source in settings.SOURCES},
        "student, eager": lambda wave: words(recognizer.log_probabilities(stock, processor, wave)),
        f"student, {backend}": lambda wave: words(captured(wave)),
        f"student, {backend}, greedy": lambda wave: decoders["greedy"](captured(wave)),
    }


def speed(
    contestants: Mapping[str, Callable[[Wave], str]], waves: Waves, chosen: list[str]
) -> dict[str, dict[str, float]]:
    """Time all on the same recordings, one after another on one thread, in turns.

    Returns:
        Of each: the real-time factor in processor time; milliseconds by the clock that 50, 95 and
        99% take at most; hours of one core for a million queries.
    """
    names = list(contestants)
    for contestant in contestants.values():  # what is lazy is done before
        contestant(waves[chosen[0]])
    wall, cpu = (np.zeros((len(names), len(chosen))) for _ in range(2))
    for number, name in enumerate(tqdm(chosen, "speed")):
        for turn in range(len(names)):
            at = (number + turn) % len(names)
            start, began = time.perf_counter(), time.process_time()
            contestants[names[at]](waves[name])
            wall[at, number] = time.perf_counter() - start
            cpu[at, number] = time.process_time() - began
    audio = float(waves.samples(chosen).sum()) / settings.RATE
    return {
        name: {
            "real_time_factor": round(cpu[at].sum() / audio, 5),
            **{f"p{q}_ms": round(1e3 * float(np.quantile(wall[at], q / 100)), 2) for q in _SHARES},
            "core_hours_per_million": round(cpu[at].mean() * 1e6 / 3600, 2),
        }
        for at, name in enumerate(names)
    }


_SHARES = (50, 95, 99)


def serve(folder: Path, plan: Path | None, backend: str) -> Callable[[Wave], Awaitable[Any]]:
    """Start a `Recognizer`, the part of the server that batches arrivals, and return its call.

    On a CPU it lives in this process. A GPU is given to it by Ray, as in the server.
    """
    with warnings.catch_warnings(action="ignore"):  # of Ray Serve's own settings
        import ray

        from hf_cudagraph_asr.serve import ModelSettings, Recognizer
    gpu = torch.cuda.is_available()
    chosen = ModelSettings(
        model=str(folder),
        plan=None if plan is None else str(plan),
        backend=backend,  # type: ignore[arg-type]
        device="cuda" if gpu else "cpu",
    )
    if gpu:
        ray.init(ignore_reinit_error=True, include_dashboard=False)
        actor = ray.remote(num_gpus=0.5)(Recognizer).remote(chosen)
        return lambda wave: actor.transcribe.remote(wave, settings.RATE)
    replica = Recognizer(chosen)
    return lambda wave: replica.transcribe(wave, settings.RATE)


def load(
    ask: Callable[[Wave], Awaitable[Any]],
    clock: npt.NDArray[np.float64],
    waves: Waves,
    rates: tuple[int, ...] = RATES,
    day: float = DAY,
) -> list[dict[str, float]]:
    """Replay the log's day at rising rates, until the answers are late at two of them.

    Nobody waits for an answer before the next query comes, and a late start counts as waiting.

    Args:
        ask: transcribes a waveform.
        clock: (Q,) times of day in the log, seconds.
        waves: what is asked, in turn.
        rates: queries a second, the mean over the day.
        day: seconds that it is replayed in.

    Returns:
        Of each rate: the busiest tenth of the day's own rate, queries, answered a second, and
        milliseconds that 50, 95 and 99% take at most.
    """
    found: list[dict[str, float]] = []
    with asyncio.Runner() as runner:
        for rate in tqdm(rates, "load"):
            at = arrivals(clock, rate, day)
            taken = runner.run(_replay(ask, at, waves))
            found.append(
                {
                    "rate": rate,
                    "busiest": np.histogram(at, 10, (0, day))[0].max() / (day / 10),
                    "queries": len(at),
                    "answered": round(len(at) / float((at + taken).max()), 1),
                    **{
                        f"p{q}_ms": round(1e3 * float(np.quantile(taken, q / 100)), 2)
                        for q in _SHARES
                    },
                }
            )
            if [row["p99_ms"] > 1000 * LIMIT for row in found[-2:]] == [True, True]:
                break
    return found


def arrivals(clock: npt.NDArray[np.float64], rate: float, day: float) -> npt.NDArray[np.float64]:
    """Times at which queries come, ascending, (N,) seconds: a day of the log squeezed into `day`.

    Queries are drawn from the log's hours, so that the evening is as busy beside the night as
    there, and at each moment they come independently of one another.

    Args:
        clock: (Q,) times of day in the log, seconds.
        rate: queries a second, the mean over the day.
        day: seconds.
    """
    rng = np.random.default_rng(settings.SEED)
    drawn = np.quantile(clock, rng.random(round(rate * day)))
    return np.asarray(np.sort(drawn) / settings.DAY * day)


async def _replay(
    ask: Callable[[Wave], Awaitable[Any]], at: npt.NDArray[np.float64], waves: Waves
) -> npt.NDArray[np.float64]:
    """Seconds from each arrival to its answer, (N,)."""
    recordings = [waves[name] for name in waves.ids]
    start = time.perf_counter() + 0.05

    async def query(number: int) -> float:
        due = start + float(at[number])
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        answer = await ask(recordings[number % len(recordings)])
        if isinstance(answer, Exception):
            raise answer
        return time.perf_counter() - due

    return np.array(await asyncio.gather(*(query(number) for number in range(len(at)))))
