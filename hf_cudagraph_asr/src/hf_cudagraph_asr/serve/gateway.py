"""The deployment Gateway: HTTP, limits, decoding, another try, and everybody's metrics."""

from __future__ import annotations

import asyncio
import copy
import logging
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from hf_cudagraph_asr.serve import exposition, upload
from hf_cudagraph_asr.serve.answer import Answer, Facts, Fault
from hf_cudagraph_asr.serve.counters import GatewayCounts, RecognizerCounts
from hf_cudagraph_asr.serve.refusal import Refusal
from hf_cudagraph_asr.serve.settings import Limits

__all__ = ["Gateway"]

logger = logging.getLogger(__name__)

Waveform = npt.NDArray[np.float32]
Found = TypeVar("Found")

# A query whose Recognizer died is sent once more. Not again: it may be what kills them.
ATTEMPTS = 2

# For the few words that /healthz and /metrics ask of each replica.
ASK_SECONDS = 2.0

DECODERS = 4  # threads; libsndfile and torch leave the interpreter to others meanwhile

_METHODS = {"/transcribe": ("POST",), "/healthz": ("GET", "HEAD"), "/metrics": ("GET", "HEAD")}


class Gateway:
    """One replica of what clients talk to. It holds no model.

    Args:
        recognizers: a handle of the deployment Recognizer.
    """

    def __init__(self, recognizers: DeploymentHandle[Any]) -> None:
        self._recognizers = recognizers
        self._limits = Limits()
        self._facts: Facts | None = None
        self._counts = GatewayCounts(serve.get_replica_context().replica_tag)
        self._decoders = ThreadPoolExecutor(DECODERS, thread_name_prefix="decoder")

    def reconfigure(self, user_config: dict[str, Any] | None) -> None:
        """Take other limits, without a restart.

        Args:
            user_config: of the deployment; see `Limits`.

        Raises:
            ValueError: they are none.
        """
        self._limits = Limits.of(user_config)

    async def counts(self) -> GatewayCounts:
        """What it did so far."""
        return copy.deepcopy(self._counts)  # it is sent from another thread

    async def __call__(self, request: Request) -> Response:
        """Answer a request. An error is JSON too."""
        start = perf_counter()
        path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
        known = path in _METHODS
        status, error = 499, "client_gone"
        try:
            response = await self._route(path, request)
            status, error = response.status_code, ""
        except Refusal as refusal:
            status, error = refusal.status, refusal.error
            response = JSONResponse(refusal.body(), status, refusal.headers)
        except ClientDisconnect:
            # Nobody reads it; Serve wants one all the same.
            response = Response(status_code=400)
        except Exception:  # a client is owed an answer, and the log the reason
            logger.exception("%s failed", path)
            status, error = 500, "internal"
            detail = "the server failed at this request, and its log says why: try again"
            response = JSONResponse({"error": error, "detail": detail}, status)
        finally:
            self._counts.requests[path if known else "other", status, error] += 1
            if path == "/transcribe":
                self._counts.seconds.observe(perf_counter() - start)
        return response

    async def _route(self, path: str, request: Request) -> Response:
        methods = _METHODS.get(path)
        if methods is None:
            raise Refusal(404, "not_found", f"no {path:.80}: there are {', '.join(_METHODS)}")
        if request.method not in methods:
            raise Refusal(
                405,
                "method_not_allowed",
                f"{path} does not take {request.method}: use {methods[0]}",
                {"Allow": ", ".join(methods)},
            )
        if path == "/healthz":
            return await self._health()
        if path == "/metrics":
            return await self._metrics()
        return await self._transcribe(request)

    async def _transcribe(self, request: Request) -> Response:
        limits = self._limits
        headers = request.headers
        upload.check_headers(headers.get("content-type", ""), headers.get("content-length"), limits)
        body = await self._body(request, limits)
        for _ in range(ATTEMPTS):
            facts = await self._known(limits)
            waveform = await asyncio.get_running_loop().run_in_executor(
                self._decoders,
                upload.waveform_of,
                body,
                limits,
                facts.sampling_rate,
                facts.shortest,
            )
            answer = await self._ask(waveform, facts.sampling_rate, limits)
            if isinstance(answer, Answer):
                self._counts.audio_seconds += answer.transcript.seconds
                return JSONResponse(answer.body(facts.sampling_rate))
            if answer.kind == "refused":
                raise Refusal(400, "unsupported_audio", f"the audio {answer.detail}")
            if answer.kind == "failed":
                what = (
                    f"the model failed at this query ({answer.detail}): try again, or send another"
                )
                raise Refusal(500, "failed", what)
            self._facts = None  # the model was exchanged meanwhile
        raise self._later("not_ready", "the model is being exchanged", limits)

    async def _body(self, request: Request, limits: Limits) -> bytes:
        """The body, of which no more is read than is taken."""
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(limits.timeout_s):
                async for part in request.stream():
                    size += len(part)
                    upload.check_size(size, limits, complete=False)
                    parts.append(part)
        except TimeoutError as error:
            raise Refusal(
                408,
                "slow_body",
                f"{size:,} bytes came within {limits.timeout_s:g} s and more were to come: send "
                f"the body at once",
                {"Connection": "close"},
            ) from error
        return b"".join(parts)

    async def _known(self, limits: Limits) -> Facts:
        """What the Recognizers are; asked of one of them until one has answered."""
        if self._facts is None:
            response = self._recognizers.facts.remote()
            try:
                self._facts = await self._within(response, limits.start_timeout_s)
            except (TimeoutError, RayError, DeploymentUnavailableError) as error:
                raise self._later("not_ready", "no model is ready yet", limits) from error
            except BackPressureError as error:
                raise self._overloaded(limits) from error
        return self._facts

    async def _ask(self, waveform: Waveform, rate: int, limits: Limits) -> Answer | Fault:
        """Have a query transcribed, by another Recognizer where the first one dies."""
        deadline = asyncio.get_running_loop().time() + limits.timeout_s
        died: RayError | None = None
        for attempt in range(ATTEMPTS):
            left = deadline - asyncio.get_running_loop().time()
            response = self._recognizers.transcribe.remote(waveform, rate)
            try:
                answer: Answer | Fault = await self._within(response, left)
            except TimeoutError as error:
                what = f"no transcript within {limits.timeout_s:g} s"
                raise self._later("timeout", what, limits) from error
            except BackPressureError as error:
                raise self._overloaded(limits) from error
            except DeploymentUnavailableError as error:
                raise self._later("not_ready", "no model is ready", limits) from error
            except RayTaskError:
                raise  # an error of the code, which another replica would make as well
            except RayError as error:
                logger.warning("a Recognizer died with a query", exc_info=error)
                died = error
                self._counts.retries += attempt + 1 < ATTEMPTS
            else:
                return answer
        raise self._later("replica_died", "the model's replica died twice", limits) from died

    async def _within(self, response: Any, seconds: float) -> Any:
        """What a replica answers; it is told when nobody waits for that any more."""
        try:
            async with asyncio.timeout(max(seconds, 0)):
                return await response
        except (TimeoutError, asyncio.CancelledError):
            response.cancel()
            raise

    def _overloaded(self, limits: Limits) -> Refusal:
        return self._later("overloaded", "more queries wait than are let wait", limits)

    def _later(self, error: str, what: str, limits: Limits) -> Refusal:
        after = limits.retry_after_s
        return Refusal(
            503, error, f"{what}: send the query again in {after} s", {"Retry-After": str(after)}
        )

    async def _health(self) -> Response:
        try:
            found, silent = await self._everyone(self._recognizers, "facts", Facts)
        except TimeoutError as error:
            if self._facts is None:  # none was ever there; and to ask again would start one
                raise self._later("not_ready", "no model is ready", self._limits) from error
            self._facts = None  # one that hangs makes the others no less ready
            found, silent = [await self._known(self._limits)], 1
        if not found:
            raise self._later("not_ready", "no model is ready", self._limits)
        self._facts = found[0]
        replicas = [facts.health() for facts in found]
        return JSONResponse({"status": "ready", "silent": silent, "replicas": replicas})

    async def _metrics(self) -> Response:
        here = serve.get_replica_context()
        gateways = serve.get_deployment_handle(here.deployment, here.app_name)
        try:
            (ours, missed), (theirs, silent) = await asyncio.gather(
                self._everyone(gateways, "counts", GatewayCounts),
                self._everyone(self._recognizers, "counts", RecognizerCounts),
            )
        except TimeoutError as error:
            # Better no page than the counts of some as if they were all.
            what = f"not all replicas answered within {ASK_SECONDS:g} s"
            raise self._later("scrape_failed", what, self._limits) from error
        text = exposition.page(ours, theirs, missed + silent)
        return PlainTextResponse(text, media_type=exposition.CONTENT_TYPE)

    async def _everyone(
        self, handle: DeploymentHandle[Any], method: str, kind: type[Found]
    ) -> tuple[list[Found], int]:
        """What all running replicas of a deployment answer, and how many died over it.

        Raises:
            TimeoutError: one that runs does not answer; or none runs yet.
        """
        try:
            answers = await handle.broadcast(method).results_async(
                timeout_s=ASK_SECONDS, return_exceptions=True
            )
        except DeploymentUnavailableError:
            return [], 0
        found = [answer for answer in answers if isinstance(answer, kind)]
        return found, len(answers) - len(found)
