"""The deployment Recognizer: a model with its pool, and the batches that it computes."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self
from uuid import uuid4
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt
import ray
from fastapi import HTTPException
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from ray.serve import metrics

from hf_cudagraph_asr.batching import Batcher
from hf_cudagraph_asr.observe import METRICS, SECONDS, Served, measurements

if TYPE_CHECKING:
    import torch

    from hf_cudagraph_asr.transcriber import Transcript

logger = logging.getLogger("ray.serve")  # which Serve writes to the replica's log file

MOST_FAILURES = 3  # in a row: a CUDA device may fail for good, as after an illegal access

OURS = {
    "requests": ("Requests for a transcript.", ("status", "error")),
    "request_seconds": ("Seconds of a request for a transcript.", ()),
    "batch_size": ("Queries of a batch.", ()),
    "wait_seconds": ("Seconds of a query from its arrival to the device.", ()),
}

Waveform = npt.NDArray[np.float32]

# A setting of several values, whose text has commas between them.
LIST = BeforeValidator(lambda value: value.split(",") if isinstance(value, str) else value)


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
        target_lang, lexicon, lm, lm_weight: as in `Transcriber.from_pretrained`; each machine has
            the files.
        plan: the file of a plan, which each machine has; None: nothing is captured.
        backend, device, dtype, batch_sizes: as in `Transcriber.from_pretrained`; sizes as "1,4".
        calibrate: times that each captured program is measured at the start, so that batches are
            chosen by milliseconds; 0: by numbers of replays and frames.
        lanes: batches at a time, so that the host makes features and texts of one while another is
            on the device; by default 1 on a CPU, and else one more than a bucket has replicas.
    """

    model: str = Field(min_length=1)
    target_lang: str | None = Field(None, min_length=1)
    lexicon: str | None = Field(None, min_length=1)
    lm: str | None = Field(None, min_length=1)
    lm_weight: float = Field(1.0, ge=0)
    plan: str | None = Field(None, min_length=1)
    backend: Literal["auto", "cuda", "compile", "export", "eager"] = "auto"
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    batch_sizes: Annotated[tuple[Annotated[int, Field(ge=1)], ...] | None, LIST] = None
    calibrate: int = Field(3, ge=0)
    lanes: int | None = Field(None, ge=1)


class Batching(Checked):
    """The `user_config` of Recognizer: it changes without a restart.

    Attributes:
        max_batch_size: most queries of a batch; by default the rows of the largest program, or 8
            where nothing is captured.
        batch_wait_s: seconds that queries wait for others although the device is free.
    """

    max_batch_size: int | None = Field(None, ge=1)
    batch_wait_s: float = Field(0.0, ge=0)


Rounded = Annotated[float, AfterValidator(lambda value: round(value, 4))]


class Word(BaseModel):
    """A word, the seconds of the recording at which it starts and ends, and how sure it is."""

    model_config = ConfigDict(from_attributes=True)

    text: str
    start: Rounded
    end: Rounded
    confidence: Rounded | None = None


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


class Recognizer:
    """One replica. Its constructor waits until all is captured and measured."""

    def __init__(self, settings: ModelSettings) -> None:
        # Here, so that a Gateway, which imports this module, starts without torch.
        from hf_cudagraph_asr.transcriber import Transcriber

        options = settings.model_dump(exclude={"calibrate", "lanes"})
        try:
            _check_gpu(settings.device)
            self._transcriber = Transcriber.from_pretrained(options.pop("model"), **options)
        except Exception as error:
            # Serve reports a traceback, of which the command shows the last line.
            why = " ".join(str(error).split())
            raise RuntimeError(f"{type(error).__name__}: {why}") from error
        pool, device = self._transcriber.pool, self._transcriber.model.device
        replicas = 1
        if pool.plan is not None and pool.backend.captures:
            replicas = max(bucket.replicas for bucket in pool.plan.buckets)
            if settings.calibrate:
                with suppress(ValueError):  # the capture failed, and was logged
                    pool.calibrate(repeats=settings.calibrate)
        lanes = settings.lanes or (1 if device.type == "cpu" else replicas + 1)
        self._lanes = ThreadPoolExecutor(lanes, "lane", _take_a_stream, (device,))
        self._batcher = Batcher(self._compute, pool.price, lanes)
        self._failures = 0
        self._failed: WeakValueDictionary[int, Waveform] = WeakValueDictionary()  # by id, counted
        self._metrics = {name: metric(name) for name in (*METRICS, "batch_size", "wait_seconds")}
        self.reconfigure(None)
        if ray.is_initialized() and ray.get_runtime_context().get_actor_id():  # it is Serve's own
            # A full collection looks at all that torch, transformers and the programs have made,
            # while no query is answered. What is here by now stays as long as the process.
            gc.collect()
            gc.freeze()
            logger.info("%d objects are kept from garbage collections", gc.get_freeze_count())

    def reconfigure(self, user_config: Any) -> None:
        """Take other settings of batching; Serve calls it with the `user_config`."""
        batching = Batching.of(user_config)
        self._batcher.most = self._transcriber.pool.most_rows(batching.max_batch_size)
        self._batcher.wait_s = batching.batch_wait_s

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
        try:
            answer: Transcription = await self._batcher.ask(own, len(own))
        except Exception:  # noqa: BLE001 - it is logged, and the client gets its id
            return failure("failed", f"the model, at {len(own)} samples")
        return answer

    async def _compute(
        self, waveforms: list[Waveform], waits: Sequence[float]
    ) -> list[Transcription]:
        loop, size = asyncio.get_running_loop(), len(waveforms)
        work = partial(self._transcriber.transcribe, waveforms, batch_size=size)
        try:
            found = await loop.run_in_executor(self._lanes, work)
        except Exception as error:
            # A ValueError refuses a query, and says nothing of the device; a batch counts once.
            if not isinstance(error, ValueError) and id(waveforms[0]) not in self._failed:
                self._failures += 1
                self._failed.update((id(waveform), waveform) for waveform in waveforms)
            if size > 1:  # each is tried alone
                logger.exception("the model failed at a batch of %d queries", size)
            raise
        self._failures = 0
        self._count(found, waits)
        return [
            _transcription(one, size, 1000 * wait) for one, wait in zip(found, waits, strict=True)
        ]

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
        words=tuple(map(Word.model_validate, found.words)),
        seconds=found.seconds,
        milliseconds=round(found.milliseconds, 3),
        waited_milliseconds=round(waited, 3),
        batch=batch,
        route=found.dispatch.route,
        reason=None if reason is None else reason.name.lower(),
        bucket=None if bucket is None else bucket.frames,
    )


def _take_a_stream(device: torch.device) -> None:
    """Give this thread a CUDA stream of its own, after what was done on the default one."""
    import torch

    cuda: Any = torch.cuda  # partly without annotations
    if device.type == "cuda":
        stream = cuda.Stream(device)
        stream.wait_stream(cuda.default_stream(device))
        cuda.set_stream(stream)


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
