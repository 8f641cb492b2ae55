"""The deployment Recognizer: a model with its pool, and the batches that it computes."""

from __future__ import annotations

import asyncio
import logging
import math
from bisect import bisect_left
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import ray
from fastapi import HTTPException
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from ray.serve import metrics

from hf_cudagraph_asr.observe import METRICS, SECONDS, Served, measurements

if TYPE_CHECKING:
    from hf_cudagraph_asr.transcriber import Transcript

__all__ = ["Batching", "Checked", "ModelSettings", "Recognizer", "Transcription"]

logger = logging.getLogger("ray.serve")  # which Serve writes to the replica's log file

EAGER_ROWS = 8  # queries of a batch where nothing is captured
STEP = 1.25  # lengths batched together beyond the buckets: at most a quarter of a row is padding
MOST_FAILURES = 3  # in a row: a CUDA device may fail for good, as after an illegal access

OURS = {
    "requests": ("Requests for a transcript.", ("status", "error")),
    "request_seconds": ("Seconds of a request for a transcript.", ()),
    "batch_size": ("Queries of a batch.", ()),
    "wait_seconds": ("Seconds of a query from its arrival to the device.", ()),
}

Waveform = npt.NDArray[np.float32]


class Checked(BaseModel):
    """Settings whose names and values are checked; a value may be its text, as in key=value."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def of(cls, given: Any) -> Self:
        """Read settings by name; a ValueError says which are unknown or wrong."""
        try:
            return cls.model_validate({} if given is None else given)
        except ValidationError as error:
            faults = [
                f"no setting {fault['loc'][0]}: expected some of {', '.join(cls.model_fields)}"
                if fault["type"] == "extra_forbidden"
                else f"{'.'.join(map(str, fault['loc']))} is {fault['input']!r:.60}: {fault['msg']}"
                for fault in error.errors()
                if fault["type"] != "default_factory_not_called"  # for want of the others
            ]
            raise ValueError("; ".join(faults)) from None


class ModelSettings(Checked):
    """Settings of the model. A change of one starts the Recognizers anew.

    Attributes:
        model: a folder that each machine has, or a model's name on the hub.
        plan: the file of a plan, which each machine has; None: nothing is captured.
        backend, device, dtype, batch_sizes: as in `Transcriber.from_pretrained`; sizes as "1,4".
    """

    model: str = Field(min_length=1)
    plan: str | None = Field(None, min_length=1)
    backend: Literal["auto", "cuda", "compile", "export", "eager"] = "auto"
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    batch_sizes: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...] | None,
        BeforeValidator(lambda value: value.split(",") if isinstance(value, str) else value),
    ] = None


class Batching(Checked):
    """The `user_config` of Recognizer: it changes without a restart.

    Attributes:
        max_batch_size: most queries of a batch; by default the rows of the largest program, or 8
            where nothing is captured.
        batch_wait_s: seconds that queries wait for others although the device is free.
    """

    max_batch_size: int | None = Field(None, ge=1)
    batch_wait_s: float = Field(0.0, ge=0)


class Word(BaseModel):
    """A word, and the seconds from the beginning of the recording at which it starts and ends."""

    text: str
    start: float
    end: float


class Transcription(BaseModel):
    """The answer to a recording; `route`, `reason` and `bucket` are labels of the metrics too."""

    text: str
    words: tuple[Word, ...]
    seconds: float = Field(description="of audio")
    milliseconds: float = Field(description="of the model, for the whole batch")
    waited_milliseconds: float = Field(description="from the arrival at the model to the device")
    batch: int = Field(description="recordings that went through the model together")
    route: str = Field(description="bucket, exact or host")
    reason: str | None = Field(description="why it was not a bucket, where one was to be")
    bucket: int | None = Field(description="frames of the captured length")


def refusal(status: int, error: str, detail: str, **headers: str) -> HTTPException:
    """Make the exception that ends a request; its headers are written with _ for -."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return HTTPException(status, {"error": error, "detail": detail}, named)


def failure(error: str, what: str) -> HTTPException:
    """Log the exception being handled; make one for the client that holds only its id."""
    name = uuid4().hex[:12]
    logger.exception("failure %s: %s", name, what)
    return refusal(500, error, f"the server failed; its log says why under {name}: try again")


def metric(name: str) -> Any:
    """Make one of the metrics, which Ray exports with the replica's own labels beside its own."""
    about, labels = {**METRICS, **OURS}[name]
    tags: Any = labels  # Ray annotates a tuple of one
    bounds = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0] if name == "batch_size" else [*SECONDS]
    if name == "batch_size" or name.endswith("_seconds"):
        return metrics.Histogram(f"hf_cudagraph_asr_{name}", about, bounds, tags)
    return metrics.Counter(f"hf_cudagraph_asr_{name}", about, tags)


@dataclass(eq=False)
class Query:
    """A waveform, (T,) float32, that waits for the device.

    `answer` is cancelled with the client's request, and then the query is not computed.
    """

    waveform: Waveform
    length_class: int
    answer: asyncio.Future[Transcription | HTTPException] = field(default_factory=asyncio.Future)
    arrived: float = field(default_factory=perf_counter)

    def settle(self, answer: Transcription | HTTPException) -> None:
        """Answer, unless the client left."""
        if not self.answer.done():
            self.answer.set_result(answer)


class Recognizer:
    """One replica. It is ready when all is captured, which its constructor waits for.

    One batch at a time is on the device. Arrivals wait meanwhile, so batches grow with the load.
    """

    def __init__(self, settings: ModelSettings) -> None:
        # Here, so that a Gateway, which imports this module, starts without torch.
        from hf_cudagraph_asr.transcriber import Transcriber

        options = settings.model_dump()
        try:
            _check_gpu(settings.device)
            self._transcriber = Transcriber.from_pretrained(options.pop("model"), **options)
        except Exception as error:
            # Serve reports a traceback, of which the command shows the last line.
            why = " ".join(str(error).split())
            raise RuntimeError(f"{type(error).__name__}: {why}") from error
        pool = self._transcriber.pool
        plan = pool.plan if pool.backend.captures else None
        self._buckets = [] if plan is None else [bucket.samples for bucket in plan.buckets]
        self._rows: tuple[int, ...] = () if plan is None else tuple(pool.batch_sizes)
        self._device = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._waiting: list[Query] = []
        self._working: asyncio.Task[None] | None = None
        self._failures = 0
        self._metrics = {name: metric(name) for name in (*METRICS, "batch_size", "wait_seconds")}
        self.reconfigure(None)

    def reconfigure(self, user_config: Any) -> None:
        """Take other settings of batching; Serve calls it with the `user_config`."""
        self._batching = Batching.of(user_config)
        asked = self._batching.max_batch_size
        self._most = min([*self._rows[-1:], *([asked] if asked else [])], default=EAGER_ROWS)

    def check_health(self) -> None:
        """Raise where Serve, which asks every few seconds, should replace this replica."""
        if self._failures >= MOST_FAILURES:
            raise RuntimeError(f"the model failed {self._failures} times in a row: see the log")

    async def sampling_rate(self) -> int:
        """Return the samples a second that the model takes."""
        return self._transcriber.sampling_rate

    async def transcribe(
        self, waveform: Waveform, sampling_rate: int
    ) -> Transcription | HTTPException:
        """Transcribe a query, (T,) float32, in a batch with others; or say what to answer."""
        if sampling_rate != self._transcriber.sampling_rate:
            detail = "the model is being exchanged: send the request again in 1 s"
            return refusal(503, "not_ready", detail, Retry_After="1")
        # Before it joins a batch, which would be refused as a whole.
        if (fault := self._transcriber.fault(waveform)) is not None:
            return refusal(400, "unsupported_audio", f"the audio {fault}")
        # A copy: what Ray hands over lies in shared memory, which is not writable.
        own = np.array(waveform, dtype=np.float32)
        query = Query(own, length_class(len(own), self._buckets))
        self._waiting.append(query)
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work())
        return await query.answer

    async def _work(self) -> None:
        """Compute batch after batch, until nothing waits."""
        await asyncio.sleep(self._batching.batch_wait_s)
        while waiting := [query for query in self._waiting if not query.answer.done()]:
            captured = waiting[0].length_class < len(self._buckets)
            batch = choose(waiting, self._most, self._rows if captured else ())
            self._waiting = [query for query in waiting if query not in batch]
            if not await self._compute(batch) and len(batch) > 1:
                # Retry one by one, so that one bad query does not fail the batch.
                for query in batch:
                    await self._compute([query])
        self._waiting = []

    async def _compute(self, batch: list[Query]) -> bool:
        """Answer a batch. Where the model fails, answer a single query only, and return False."""
        start, loop = perf_counter(), asyncio.get_running_loop()
        waveforms = [query.waveform for query in batch]
        try:
            found = await loop.run_in_executor(
                self._device, self._transcriber.transcribe, waveforms
            )
        except Exception as error:  # noqa: BLE001 - it is logged, and the client gets its id
            answer = failure("failed", f"the model, at {len(batch)} queries")
            # A ValueError refuses a query, and says nothing of the device.
            self._failures += not isinstance(error, ValueError)
            if len(batch) == 1:
                batch[0].settle(answer)
            return False
        self._failures = 0
        waits = [start - query.arrived for query in batch]
        for query, transcript, wait in zip(batch, found, waits, strict=True):
            query.settle(_transcription(transcript, len(batch), 1000 * wait))
        self._count(found, waits)
        return True

    def _count(self, found: Sequence[Transcript], waits: Sequence[float]) -> None:
        """Count a batch, and each call of the model by what became of it."""
        self._metrics["batch_size"].observe(len(waits))
        for wait in waits:
            self._metrics["wait_seconds"].observe(wait)
        for dispatch in {id(one.dispatch): one.dispatch for one in found}.values():
            rows = [one for one in found if one.dispatch is dispatch]
            samples = (round(one.seconds * self._transcriber.sampling_rate) for one in rows)
            event = Served(dispatch, tuple(samples), rows[0].milliseconds / 1000)
            for name, values, amount in measurements(event):
                labels = dict(zip(METRICS[name][1], values, strict=True))
                if name == "call_seconds":
                    self._metrics[name].observe(amount, labels)
                elif amount:  # Ray refuses to add nothing
                    self._metrics[name].inc(amount, labels)


def _transcription(found: Transcript, batch: int, waited: float) -> Transcription:
    # The name of the reason: its detail may be an exception's text, which is not for clients.
    reason, bucket = found.dispatch.reason, found.bucket
    return Transcription(
        text=found.text,
        words=tuple(
            Word(text=word.text, start=round(word.start, 4), end=round(word.end, 4))
            for word in found.words
        ),
        seconds=found.seconds,
        milliseconds=round(found.milliseconds, 3),
        waited_milliseconds=round(waited, 3),
        batch=batch,
        route=found.dispatch.route,
        reason=None if reason is None else reason.name.lower(),
        bucket=None if bucket is None else bucket.frames,
    )


def length_class(samples: int, buckets: Sequence[int]) -> int:
    """Number the lengths that are batched together; longer is never less.

    A query shares a class with those of its bucket (`buckets`: samples, ascending); longer ones,
    and all where there are no buckets, with those of similar length.
    """
    at = bisect_left(buckets, samples)
    if at < len(buckets):
        return at
    longest = buckets[-1] if buckets else 1
    return len(buckets) + math.ceil(math.log(samples / longest, STEP))


def choose(waiting: Sequence[Query], most: int, rows: Sequence[int]) -> list[Query]:
    """Choose at most so many of the waiting queries: the oldest, and others of its class.

    Rows that a captured program (`rows`, ascending) has anyway are filled with shorter queries,
    which cost nothing there. The oldest is always taken, so none waits for ever.
    """
    longest = waiting[0].length_class
    batch = [query for query in waiting if query.length_class == longest][:most]
    room = min(next((size for size in rows if size >= len(batch)), len(batch)), most)
    shorter = [query for query in waiting if query.length_class < longest]
    return batch + shorter[: room - len(batch)]


def _check_gpu(device: str) -> None:
    """Refuse a GPU that was not given to this replica: Ray hides none, and all would share it."""
    import torch

    if device == "cpu" or not torch.cuda.is_available():
        return
    if not ray.get_runtime_context().get_accelerator_ids()["GPU"]:
        raise ValueError(
            "this machine has a GPU and the Recognizer has none of it (num_gpus is 0), so all "
            "replicas would share the first: set gpus=1, a part such as gpus=0.5, or device=cpu"
        )
