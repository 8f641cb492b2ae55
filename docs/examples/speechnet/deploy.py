"""The best student behind a pool: its speed beside the third parties', and the load it holds."""

from __future__ import annotations

import asyncio
import time
import warnings
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm.auto import tqdm
from transformers import Wav2Vec2ForCTC

import recognizer
from hf_cudagraph_asr import BucketPlan, enable_cuda_graphs, plan_buckets
from speechnet import decode, evaluate, files, settings, third_party, train
from speechnet.settings import Size
from speechnet.train import Run
from speechnet.waves import Waves

RATES = (10, 20, 40, 60, 80, 100, 120, 139, 160, 200, 250, 320, 400, 600, 800, 1200)  # a second
# How much is measured: queries timed, lengths captured, and the rates and the day of `load`.
WHOLE = (100, 6, RATES, 10.0)
BRIEF = (8, 1, (5, 20), 1.0)  # of smoke, which only shows that all works
ROWS = (1, 4)  # batch sizes to capture
LIMIT = 100  # milliseconds that 99% of the answers may take at most

Wave = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
Ask = Callable[[Wave], Awaitable[Any]]


def deploy(size: Size) -> dict[str, Any]:
    """Measure the best student, write `deploy.json` and return it."""
    torch.set_num_threads(1)
    count, graphs, rates, day = BRIEF if size.name == "smoke" else WHOLE
    run = best(size)
    log = files.read(size, f"log-{run.third}")
    device, backend = ("cuda", "cuda") if torch.cuda.is_available() else ("cpu", "export")
    model = train.loaded(run.folder)[0].to(device)
    plan = plan_buckets(log["duration"], graphs=graphs, model=model, batch_sizes=ROWS)
    path = settings.work(size) / "plan.json"
    plan.save(path)
    recordings = list(Waves(size, "test").values())
    timed = recordings[:: max(1, len(recordings) // count)]
    result = {
        "student": run.folder.name,
        **train.provenance(),
        "threads": torch.get_num_threads(),
        "backend": backend,
        "buckets": [bucket.frames for bucket in plan.buckets],
        "planned_padding": round(sum(b.share * b.padding for b in plan.buckets), 4),
        "speed": speed(contenders(run.folder, model, plan, backend), timed),
        "load": {},
    }
    clock = log["timestamp"].dt.epoch("ms").to_numpy() / 1000 % settings.DAY
    for name, served in (("eager", None), (backend, path)):
        ask = serve(run.folder, served, name)
        result["load"][name] = load(ask, clock, recordings, rates, day)
    files.write_json(result, settings.results(size) / "deploy.json")
    return result


def best(size: Size) -> Run:
    """The first seed of the student that learned from labels and has the fewest errors.

    Raises:
        FileNotFoundError: nothing was evaluated yet, or the student's weights are not here.
    """
    found = files.read(size, "scores.json")["students"]
    labeled = [row for row in found if row["student"] != "gold" and not row["noise"]]
    first = min(labeled, key=lambda row: row["modes"][evaluate.MODE]["wer"][0])
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

    sphinx, whisper = (third_party.recognizer(source, nbest=1) for source in settings.SOURCES)
    return {
        "pocketsphinx": lambda wave: sphinx(wave)[0].text,
        "whisper": lambda wave: whisper(wave)[0].text,
        "student, eager": lambda wave: words(recognizer.log_probabilities(stock, processor, wave)),
        f"student, {backend}": lambda wave: words(captured(wave)),
        f"student, {backend}, greedy": lambda wave: decoders["greedy"](captured(wave)),
    }


def speed(
    contestants: Mapping[str, Callable[[Wave], str]], recordings: Sequence[Wave]
) -> dict[str, dict[str, float]]:
    """Time all on the same recordings, one after another on one thread, in turns.

    Returns:
        Of each: the real-time factor in processor time; milliseconds by the clock that 50, 95 and
        99% take at most; hours of one core for a million queries.
    """
    for contestant in contestants.values():  # what is lazy is done before
        contestant(recordings[0])
    names = deque(contestants)
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for wave in tqdm(recordings, "speed"):
        for name in names:
            start, began = time.perf_counter(), time.process_time()
            contestants[name](wave)
            spent[name].append((time.perf_counter() - start, time.process_time() - began))
        names.rotate(-1)
    audio = sum(map(len, recordings)) / settings.RATE
    found = {}
    for name, times in spent.items():
        wall, cpu = np.array(times).T
        found[name] = {
            "real_time_factor": round(cpu.sum() / audio, 5),
            **_milliseconds(wall),
            "core_hours_per_million": round(cpu.mean() * 1e6 / 3600, 2),
        }
    return found


def serve(folder: Path, plan: Path | None, backend: str) -> Ask:
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
    ask: Ask, clock: Floats, recordings: Sequence[Wave], rates: Sequence[int], day: float
) -> list[dict[str, float]]:
    """Replay the log's day at rising rates, until the answers are late at two of them.

    Nobody waits for an answer before the next query comes, and a late start counts as waiting.

    Args:
        ask: transcribes a waveform.
        clock: (Q,) times of day in the log, seconds.
        recordings: what is asked, in turn.
        rates: queries a second, the mean over the day.
        day: seconds that it is replayed in.

    Returns:
        Of each rate: the busiest tenth of the day's own rate, queries, answered a second from the
        day's begin until it ends and all is answered, and milliseconds that 50, 95 and 99% take at
        most.
    """
    found: list[dict[str, float]] = []
    with asyncio.Runner() as runner:
        for rate in tqdm(rates, "load"):
            at = arrivals(clock, rate, day)
            taken = runner.run(_replay(ask, at, recordings))
            found.append({
                "rate": rate,
                "busiest": np.histogram(at, 10, (0, day))[0].max() / (day / 10),
                "queries": len(at),
                "answered": round(len(at) / max(day, float((at + taken).max())), 1),
                **_milliseconds(taken),
            })  # fmt: skip
            if [row["p99_ms"] > LIMIT for row in found[-2:]] == [True, True]:
                break
    return found


def _milliseconds(seconds: Floats) -> dict[str, float]:
    shares = (50, 95, 99)
    times = 1e3 * np.quantile(seconds, np.array(shares) / 100)
    return {f"p{q}_ms": round(float(at), 2) for q, at in zip(shares, times, strict=True)}


def arrivals(clock: Floats, rate: float, day: float) -> Floats:
    """Times at which queries come, ascending, (N,) seconds: a day of the log squeezed into `day`.

    Queries are drawn from the log's hours (`clock`), so that the evening is as busy beside the
    night as there, and at each moment they come independently of one another.
    """
    rng = np.random.default_rng(settings.SEED)
    drawn = np.quantile(clock, rng.random(round(rate * day)))
    return np.asarray(np.sort(drawn) / settings.DAY * day)


async def _replay(ask: Ask, at: Floats, recordings: Sequence[Wave]) -> Floats:
    """Seconds from each arrival to its answer, (N,)."""
    start = time.perf_counter() + 0.05

    async def query(number: int) -> float:
        due = start + float(at[number])
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        answer = await ask(recordings[number % len(recordings)])
        if isinstance(answer, Exception):
            raise answer
        return time.perf_counter() - due

    return np.array(await asyncio.gather(*(query(number) for number in range(len(at)))))
