"""OpenAI's API for transcripts: the fields it takes, the formats it answers in, and its errors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, Literal

from fastapi import HTTPException
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hf_cudagraph_asr.serve.recognizer import Transcription, Word, refusal

# A segment ends at a pause, or before it is too long for two lines of a subtitle.
PAUSE, LONGEST, WIDEST = 0.6, 7.0, 84  # seconds, seconds, characters


class Asked(BaseModel):
    """The fields of a request beside its file. Others that OpenAI has are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    language: str | None = None
    response_format: Literal["json", "text", "verbose_json", "srt", "vtt"] = "json"
    timestamp_granularities: tuple[Literal["word", "segment"], ...] = ()
    temperature: float = Field(0.0, ge=0, le=0)  # nothing is sampled
    stream: Literal["false"] = "false"

    @model_validator(mode="after")
    def _timed(self) -> Asked:
        if self.timestamp_granularities and self.response_format != "verbose_json":
            raise ValueError("timestamp_granularities need response_format=verbose_json")
        return self

    @classmethod
    def of(
        cls, fields: Iterable[tuple[str, str]], models: Sequence[str], language: str | None
    ) -> Asked:
        """Read a form's fields; an HTTPException says which is wrong, and what is expected.

        Those without a value are as if not sent. The language is the model's, where it is known.
        """
        given: dict[str, Any] = {}
        for name, value in fields:
            if (name := name.removesuffix("[]")) == "timestamp_granularities":
                given.setdefault(name, []).append(value)
            elif name in given:
                raise _refusal(400, "invalid_value", f"{name:.60} is given twice", name)
            elif value:
                given[name] = value
        try:
            asked = cls.model_validate(given)
        except ValidationError as error:
            fault = error.errors()[0]
            name = str(fault["loc"][0]) if fault["loc"] else "timestamp_granularities"
            if fault["type"] == "extra_forbidden":
                what = f"{name:.60} is not supported: leave it out"
                what += f"; supported are file, {', '.join(cls.model_fields)}"
                raise _refusal(400, "unsupported_parameter", what, name) from None
            said = fault["msg"].removeprefix("Value error, ")
            what = f"{name} is {given.get(name)!r:.60}: {said}"
            raise _refusal(400, "invalid_value", what, name) from None
        listed(asked.model, models)
        if asked.language is not None and asked.language.lower() != (language or "").lower():
            known = "has not been told its language" if language is None else f"hears {language}"
            what = f"language is {asked.language!r:.60}, and the model {known}: leave it out"
            raise _refusal(400, "invalid_value", what, "language")
        return asked


def listed(model: str, models: Sequence[str]) -> dict[str, Any]:
    """Describe a model by one of its names; an HTTPException says which there are."""
    if model not in models:
        what = f"there is no model {model!r:.60}: ask for {' or '.join(models)}"
        raise _refusal(404, "model_not_found", what, "model")
    return {"id": model, "object": "model", "created": 0, "owned_by": "hf-cudagraph-asr"}


def _refusal(status: int, code: str, detail: str, param: str) -> HTTPException:
    found = refusal(status, code, detail)
    found.detail["param"] = param[:60]  # type: ignore[index]
    return found


def error_of(body: dict[str, Any], status: int) -> dict[str, Any]:
    """Put an error of this server into OpenAI's form."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    code, param = body["error"], body.get("param")
    return {"error": {"message": body["detail"], "type": kind, "param": param, "code": code}}


def answer(found: Transcription, asked: Asked, language: str | None) -> Response:
    """Write a transcript in the format that was asked for."""
    if asked.response_format == "text":
        return PlainTextResponse(f"{found.text}\n")
    if asked.response_format == "json":
        return JSONResponse({"text": found.text})
    cut = segments(found.words)
    if asked.response_format == "srt":
        cues = (f"{at}\n{_cue(words, ',')}" for at, words in enumerate(cut, 1))
        return PlainTextResponse("".join(cues))
    if asked.response_format == "vtt":
        cues = (_cue(words, ".") for words in cut)
        return PlainTextResponse("".join(["WEBVTT\n\n", *cues]), media_type="text/vtt")
    body: dict[str, Any] = {"task": "transcribe", "language": language or "und"}
    body |= {"duration": found.seconds, "text": found.text}
    timed = asked.timestamp_granularities or ("segment",)
    if "segment" in timed:
        body["segments"] = [
            {"id": at, "start": words[0].start, "end": words[-1].end, "text": _line(words)}
            for at, words in enumerate(cut)
        ]
    if "word" in timed:
        body["words"] = [{"word": one.pop("text"), **one} for one in map(dict, found.words)]
    return JSONResponse(body)


def segments(words: Iterable[Word]) -> list[list[Word]]:
    """Cut words at pauses of .6 s, and before a segment exceeds 7 s or 84 characters."""
    found: list[list[Word]] = []
    for word in words:
        if (
            found
            and word.start - found[-1][-1].end < PAUSE
            and word.end - found[-1][0].start <= LONGEST
            and len(_line([*found[-1], word])) <= WIDEST
        ):
            found[-1].append(word)
        else:
            found.append([word])
    return found


def _line(words: Sequence[Word]) -> str:
    return " ".join(word.text for word in words)


def _cue(words: Sequence[Word], point: str) -> str:
    start, end = _clock(words[0].start, point), _clock(words[-1].end, point)
    text = _line(words)
    if point == ".":  # in WebVTT, a token such as <unk> would be markup
        text = escape(text, quote=False)
    return f"{start} --> {end}\n{text}\n\n"


def _clock(seconds: float, point: str) -> str:
    minutes, milliseconds = divmod(round(1000 * seconds), 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{milliseconds // 1000:02}{point}{milliseconds % 1000:03}"
