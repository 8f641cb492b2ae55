"""The deployment Gateway: HTTP, limits, decoding, and another try where a Recognizer dies."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hmac import compare_digest
from importlib.metadata import version
from time import perf_counter
from typing import Annotated, Any, cast

import numpy as np
import numpy.typing as npt
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, Field
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.context import _get_global_client
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hf_cudagraph_asr import audio
from hf_cudagraph_asr.serve import openai
from hf_cudagraph_asr.serve.recognizer import LIST, Checked, Transcription, failure, metric, refusal

DECODERS = 4  # threads; libsndfile and torch leave the interpreter to others meanwhile
LINGER = 5.0  # seconds that the rest of a refused body is taken for its client to read why
ATTEMPTS = 2  # a query whose Recognizer died is sent once more; not again: it may be what kills

# The body's schema for /openapi.json: FastAPI has no word for "the body itself, or a form".
_FILE = {"type": "string", "format": "binary"}
_FORM = {"type": "object", "required": ["file"], "properties": {"file": _FILE}}
_AUDIO = [f"audio/{kind}" for kind in ("wav", "flac", "mpeg", "ogg", "mp4", "webm")]
_KINDS = {**dict.fromkeys(_AUDIO, _FILE), "multipart/form-data": _FORM}
_BODY = {"required": True, "content": {kind: {"schema": schema} for kind, schema in _KINDS.items()}}
_FIELDS = {"file": _FILE, **openai.Asked.model_json_schema()["properties"]}
_OPENAI_FORM = {"type": "object", "required": ["file", "model"], "properties": _FIELDS}
_OPENAI_BODY = {"required": True, "content": {"multipart/form-data": {"schema": _OPENAI_FORM}}}

BEARER = HTTPBearer(auto_error=False, description="The server's key, where it has one.")
API_KEY = "HF_CUDAGRAPH_ASR_API_KEY"
"""An environment variable: the key, where no setting says it."""

TRANSCRIBING = ("/transcribe", "/v1/audio/transcriptions")  # what the metrics count

Waveform = npt.NDArray[np.float32]


class Limits(Checked):
    """The `user_config` of Gateway: it changes without a restart.

    Attributes:
        max_bytes: of a request's body.
        max_seconds: of audio, by the file's header.
        timeout_s: seconds for the body to arrive, and again for the transcript.
        start_timeout_s: seconds that a request waits for the first Recognizer. Where
            `min_replicas` is 0 it also starts one: give it the time a start takes then.
        retry_after_s: seconds after which a client refused with 503 should try again.
        names: by which clients of OpenAI's API may ask for the model, as "base,whisper-1"; by
            default its folder's name, or its name on the hub.
        language: of the model, as clients of OpenAI's API may name it, such as "en"; by default
            they may name none.
        api_key: which clients send as a bearer token; by default the environment variable
            HF_CUDAGRAPH_ASR_API_KEY, and without one whoever can connect is answered.
    """

    max_bytes: int = Field(16 * 2**20, ge=1)
    max_seconds: float = Field(30.0, gt=0)
    timeout_s: float = Field(30.0, gt=0)
    start_timeout_s: float = Field(2.0, gt=0)
    retry_after_s: int = Field(1, ge=0)
    names: Annotated[tuple[Annotated[str, Field(min_length=1)], ...] | None, LIST] = Field(
        None, min_length=1
    )
    language: str | None = Field(None, min_length=1)
    # An empty variable is a mistake, and not to leave the server open.
    api_key: str | None = Field(
        default_factory=lambda: os.environ.get(API_KEY), pattern="^[!-~]+$", validate_default=True
    )


class Error(BaseModel):
    """Why there is no transcript."""

    error: str = Field(description="a word for programs")
    detail: str = Field(description="what was given, what was expected, what to do")


class Health(BaseModel):
    """Recognizers that answer, and those that should."""

    ready: int
    expected: int


class Guard:
    """Middleware that bounds the size and the time of every body, whoever parses it.

    It also counts the requests for transcripts, and answers an exception with its id in the log.
    """

    def __init__(self, app: ASGIApp, gateway: Callable[[], Gateway]) -> None:
        self._app, self._gateway = app, gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        gateway, start = self._gateway(), perf_counter()
        limits = gateway.limits
        deadline = asyncio.get_running_loop().time() + limits.timeout_s
        promised = dict(scope["headers"]).get(b"content-length", b"")
        size, complete, status = 0, False, 499  # 499: the client left

        async def bounded_receive() -> Message:
            nonlocal size, complete
            if complete:  # what may still come is that the client leaves
                return await receive()
            if promised.isdigit():
                _check_size(float(promised), limits)
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError as error:
                what = f"{size:,} bytes came within {limits.timeout_s:g} s and more were to come"
                detail = f"{what}: send the body at once"
                raise refusal(408, "slow_body", detail, Connection="close") from error
            size += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            _check_size(size, limits)
            return message

        async def noted_send(message: Message) -> None:
            nonlocal size, status
            status = message.get("status", status)
            if status in (401, 413) and not complete and message["type"] == "http.response.body":
                # A connection that closes while a client sends takes what it has not read with it.
                await send({**message, "more_body": True})
                message, most = {"type": "http.response.body"}, 4 * limits.max_bytes
                with suppress(TimeoutError):
                    async with asyncio.timeout(LINGER):
                        while size <= most and (rest := await receive()).get("more_body"):
                            size += len(rest["body"])
            await send(message)

        state = scope.setdefault("state", {})
        try:
            await self._app(scope, bounded_receive, noted_send)
        except ClientDisconnect:
            await Response(status_code=499)(scope, receive, noted_send)  # Serve waits for one
        except Exception:  # noqa: BLE001 - it is logged, and the client gets its id
            answer = failure("internal", scope["path"])
            state["error"] = "internal"
            await _refused(scope["path"], answer)(scope, receive, noted_send)
        finally:
            if getattr(scope.get("route"), "path", None) in TRANSCRIBING:
                labels = {"status": str(status), "error": state.get("error", "none")}
                gateway.requests.inc(1, labels)
                gateway.seconds.observe(perf_counter() - start)


def _check_size(size: float, limits: Limits) -> None:
    if size > limits.max_bytes:
        what = f"the body has {size:,.0f} bytes or more, at most {limits.max_bytes:,} are taken"
        detail = f"{what}: send FLAC, fewer channels, or a shorter recording"
        # What is left of the body is not kept, so nothing can follow on this connection.
        raise refusal(413, "too_large", detail, Connection="close")


async def uploaded(request: Request) -> bytes:
    """Read the file of a request: the body itself, or the field `file` of a form."""
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given == "multipart/form-data":
        return (await form_of(request))[0]
    # curl --data-binary calls whatever it sends a form.
    untyped = ("", "application/octet-stream", "application/x-www-form-urlencoded")
    if given in untyped or given.startswith(("audio/", "video/")):
        return await request.body()
    what = f"the body is {given:.60}, expected {', '.join(_KINDS)}"
    detail = f"{what}: send the file itself, as curl --data-binary @query.wav does"
    raise refusal(415, "unsupported_type", detail)


async def form_of(request: Request) -> tuple[bytes, list[tuple[str, str]]]:
    """Read the file of a form, and its other fields."""
    async with request.form(max_files=1, max_fields=32) as form:
        file = form.get("file")
        if isinstance(file, UploadFile):
            fields = [(name, one) for name, one in form.multi_items() if isinstance(one, str)]
            return await file.read(), fields
    detail = "the form has no file in its field `file`: send it as curl -F file=@query.wav does"
    raise refusal(400, "bad_request", detail)


def decoded(body: bytes, limits: Limits, rate: int) -> Waveform:
    """Decode an upload to (T,) float32, unless its header says that this would be too much."""
    try:
        return audio.decoded(body, rate, limits.max_seconds, limits.timeout_s)
    except audio.TooLong as error:
        raise refusal(413, "too_long", str(error)) from error
    except audio.AudioError as error:
        raise refusal(400, "undecodable", str(error)) from error


class Gateway:
    """One replica of what clients talk to. It holds no model, and names the recognizers'."""

    def __init__(self, recognizers: DeploymentHandle[Any], model: str = "hf-cudagraph-asr") -> None:
        self.requests, self.seconds = metric("requests"), metric("request_seconds")
        self._recognizers, self._model = recognizers, model
        self._rate: int | None = None
        self._decoders = ThreadPoolExecutor(DECODERS, thread_name_prefix="decoder")
        self.reconfigure(None)

    def reconfigure(self, user_config: Any) -> None:
        """Take other limits; Serve calls it with the `user_config`."""
        self.limits = Limits.of(user_config)

    @property
    def names(self) -> Sequence[str]:
        """By which clients may ask for the model."""
        return self.limits.names or (self._model,)

    async def transcribe(self, body: bytes) -> Transcription:
        """Transcribe an upload; an HTTPException says why not, or why not now."""
        limits, loop = self.limits, asyncio.get_running_loop()
        if self._rate is None:
            self._rate = await self._ask("sampling_rate", limits.start_timeout_s, "not_ready")
        rate = self._rate
        waveform = await loop.run_in_executor(self._decoders, decoded, body, limits, rate)
        answer = await self._ask("transcribe", limits.timeout_s, "timeout", waveform, rate)
        if isinstance(answer, HTTPException):
            if answer.status_code == 503:  # the model has another rate now
                self._rate = None
            raise answer
        return cast(Transcription, answer)

    async def health(self) -> Health:
        """Count the Recognizers; an HTTPException says that none is ready."""
        # Not serve.status(): it lacks how many there should be.
        client: Any = _get_global_client()
        details = await asyncio.to_thread(client.get_serve_details)
        application = details["applications"][self._recognizers.app_name]
        found = application["deployments"][self._recognizers.deployment_name]
        ready = [one["state"] for one in found["replicas"]].count("RUNNING")
        expected = found["target_num_replicas"]
        if not ready:
            raise self._later("not_ready", f"no model of {expected} is ready")
        return Health(ready=ready, expected=expected)

    async def _ask(self, method: str, seconds: float, late: str, *args: Any) -> Any:
        """Call a Recognizer, and another one where the first dies."""
        deadline = asyncio.get_running_loop().time() + seconds
        for _ in range(ATTEMPTS):
            response = getattr(self._recognizers, method).remote(*args)
            try:
                async with asyncio.timeout_at(deadline):
                    return await response
            except TimeoutError as error:
                response.cancel()
                raise self._later(late, f"no model answered within {seconds:g} s") from error
            except asyncio.CancelledError:  # the client left
                response.cancel()
                raise
            except BackPressureError as error:
                raise self._later("overloaded", "the queue is full") from error
            except DeploymentUnavailableError as error:
                raise self._later("not_ready", "no model is ready") from error
            except RayTaskError:
                raise  # an error of the code, which another replica would make as well
            except RayError as error:
                died = error
        raise self._later("replica_died", "the model's replica died, and so did the next") from died

    def _later(self, error: str, what: str) -> HTTPException:
        after = str(self.limits.retry_after_s)
        detail = f"{what}: send the request again in {after} s"
        return refusal(503, error, detail, Retry_After=after)


def api(gateway: Callable[[], Gateway]) -> FastAPI:
    """Make the HTTP API of the Gateway that is returned, at each request."""
    name = "hf-cudagraph-asr"
    app = FastAPI(title=name, version=version(name), redoc_url=None, redirect_slashes=False)
    app.add_middleware(Guard, gateway=gateway)
    app.add_exception_handler(StarletteHTTPException, _answer_error)
    app.add_exception_handler(RequestValidationError, _answer_error)
    errors: Any = {status: {"model": Error} for status in (400, 401, 408, 413, 415, 500, 503)}

    async def authorized(
        given: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)],
    ) -> None:
        key, sent = gateway().limits.api_key, "" if given is None else given.credentials
        if key is not None and not compare_digest(key.encode(), sent.encode()):
            detail = f"{'another' if sent else 'no'} key came, expected that of this server"
            detail = f"{detail}: send the header Authorization: Bearer KEY"
            headers = {"WWW_Authenticate": "Bearer", "Connection": "close"}  # the body is not kept
            raise refusal(401, "invalid_api_key", detail, **headers)

    with_key: Any = {"dependencies": [Depends(authorized)]}

    @app.post("/transcribe", responses=errors, openapi_extra={"requestBody": _BODY}, **with_key)
    async def transcribe(request: Request) -> Transcription:
        """Transcribe an audio file: the body itself, or the field `file` of a form."""
        return await gateway().transcribe(await uploaded(request))

    @app.post(
        TRANSCRIBING[1], responses=errors, openapi_extra={"requestBody": _OPENAI_BODY}, **with_key
    )
    async def openai_transcribe(request: Request) -> Response:
        """Transcribe as OpenAI's API does; errors have its form, too."""
        body, fields = await form_of(request)
        found, language = gateway(), gateway().limits.language
        asked = openai.Asked.of(fields, found.names, language)
        return openai.answer(await found.transcribe(body), asked, language)

    @app.get("/v1/models", **with_key)
    async def openai_models() -> dict[str, Any]:
        """List the names of the model, as OpenAI's API does."""
        names = gateway().names
        return {"object": "list", "data": [openai.listed(name, names) for name in names]}

    @app.get("/v1/models/{name:path}", **with_key)  # a name on the hub has a slash
    async def openai_model(name: str) -> dict[str, Any]:
        """Describe the model by one of its names, as OpenAI's API does."""
        return openai.listed(name, gateway().names)

    @app.get("/healthz", responses={503: errors[503]})
    @app.head("/healthz", include_in_schema=False)
    async def healthz() -> Health:
        """Say whether a model is ready."""
        return await gateway().health()

    return app


def ingress() -> FastAPI:
    """Make the HTTP API of the Gateway that is this replica of Serve."""
    return api(lambda: cast(Gateway, serve.get_replica_context().servable_object))


async def _answer_error(request: Request, error: Exception) -> Response:
    """Answer with the same JSON whoever refuses, FastAPI included."""
    if isinstance(error, RequestValidationError):
        faults = "; ".join(f"{fault['loc'][-1]}: {fault['msg']}" for fault in error.errors())
        error = refusal(422, "invalid_request", faults)
    assert isinstance(error, StarletteHTTPException)
    body: Any = error.detail
    if error.status_code in (404, 405) and not isinstance(body, dict):
        word = {404: "not_found", 405: "method_not_allowed"}[error.status_code]
        asked = f"{request.method} {request.url.path:.80}"
        there = f"there are POST {' and '.join(TRANSCRIBING)}, GET /v1/models, /healthz and /docs"
        body = {"error": word, "detail": f"no {asked}: {there}"}
    elif not isinstance(body, dict):
        detail = f"{body}: send one file, as curl -F file=@query.wav does"
        body = {"error": "bad_request", "detail": detail}
    request.state.error = body["error"]
    return _refused(request.url.path, HTTPException(error.status_code, body, error.headers))


def _refused(path: str, error: HTTPException) -> Response:
    body: Any = error.detail
    if "/v1/" in path:
        body = openai.error_of(body, error.status_code)
    return JSONResponse(body, error.status_code, error.headers)
