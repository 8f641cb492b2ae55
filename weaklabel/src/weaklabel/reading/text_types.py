"""The types of texts: what a CSV's values are, where none loses something by it."""

from __future__ import annotations

import logging
from typing import Final

import polars as pl

from weaklabel.schema import kind_of

_TIME: Final = "%Y-%m-%dT%H:%M:%S%.f%#z"
_TIME_PATTERN: Final = r"^\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)? ?([zZ]|[+-]\d\d:?(\d\d)?)$"
# What most logs write is read faster by its places.
_UTC_PATTERN: Final = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?(Z|\+00:00)$"
_INTEGER: Final = r"^(0|-?[1-9][0-9]{0,18})$"
_NUMBER: Final = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
# "007" and 16 digits and more are names: a float would not keep them. "0.5" is a number.
_NAME: Final = r"^[+-]?(0[0-9]|[0-9]{16})"

_logger = logging.getLogger(__name__)


def typed(raw: pl.LazyFrame) -> pl.LazyFrame:
    """Texts as what all of a column's values are."""
    names = raw.collect_schema().names()
    sample = raw.head(1000).collect()
    # What the first rows rule out needs no look at the others.
    candidates = {
        name: [
            kind for kind in _candidates(name) if sample.select(is_kind(kind, name).all()).item()
        ]
        for name in names
    }
    blank = pl.all_horizontal(pl.all().is_null())
    facts = raw.select(
        blank.sum().alias("blank"),
        *(pl.col(name).count().alias(f"{index}") for index, name in enumerate(names)),
        *_checks(names, candidates),
    )
    found = facts.collect(engine="streaming").row(0, named=True)
    # As a rule the first kind that the first rows are is that of all, and this is the one pass.
    while again := {
        name: candidates[name][1:]
        for index, name in enumerate(names)
        if candidates[name] and not found[f"{index} {candidates[name][0]}"]
    }:
        candidates |= again
        checks = _checks(names, again)
        if checks:
            found |= raw.select(checks).collect(engine="streaming").row(0, named=True)
    casts = []
    for index, name in enumerate(names):
        kinds = candidates[name]
        known = kind_of(name) is not None
        # An unknown column without a value stays text, and so does a name.
        if kinds and (found[f"{index}"] or (known and kinds[0] != "integer")):
            casts.append(_as(kinds[0], name))
    if found["blank"]:
        _logger.warning("%d blank lines of a CSV are no rows", found["blank"])
        raw = raw.filter(~blank)
    return raw.with_columns(casts)


def _checks(names: list[str], candidates: dict[str, list[str]]) -> list[pl.Expr]:
    return [
        is_kind(candidates[name][0], name).all().alias(f"{index} {candidates[name][0]}")
        for index, name in enumerate(names)
        if candidates.get(name)
    ]


def times(frame: pl.LazyFrame, name: str) -> pl.Expr | None:
    """A column of texts as timestamps; None where one of them is none with an offset."""
    values = frame.select(pl.col(name)).filter(pl.col(name).is_not_null())
    for kind in ("utc", "time"):
        holds = is_kind(kind, name).all()
        if values.head(1000).select(holds).collect().item() and (
            values.select(holds).collect(engine="streaming").item()
        ):
            return _as(kind, name)
    return None


def time_from_text(name: str) -> pl.Expr:
    """The column's texts in ISO 8601 with an offset as UTC, to the microsecond; others null."""
    # One spelling for chrono: "T" between, seconds present, no blank before the offset.
    text = pl.col(name).str.replace(r"^(\S{10}) ", "${1}T").str.replace(" ", "", literal=True)
    text = text.str.replace(r"^(\S{10}T\d\d:\d\d)([zZ+-])", "${1}:00${2}")
    text = text.str.replace("z$", "Z")
    return text.str.to_datetime(_TIME, time_unit="us", time_zone="UTC", strict=False)


def _candidates(name: str) -> tuple[str, ...]:
    match kind_of(name):
        case "id":
            return ("integer",)
        case "text":
            return ()
        case "time":
            return ("utc", "time")
        case "share" | "seconds":
            return ("known number",)
        case None:
            return ("integer", "number", "boolean", "utc", "time")


def is_kind(kind: str, name: str) -> pl.Expr:
    """Whether a text is one of a kind; true for null."""
    text = pl.col(name)
    match kind:
        case "integer":
            whole = text.cast(pl.Int64, strict=False).is_not_null()
            holds = text.str.contains(_INTEGER) & whole
        case "number":
            holds = text.str.contains(_NUMBER) & ~text.str.contains(_NAME)
        case "known number":  # NaN and inf as well, for the validation to name
            holds = _as_number(name).is_not_null()
        case "boolean":
            holds = text.is_in(["true", "false"])
        case "utc":
            holds = text.str.contains(_UTC_PATTERN) & _by_places(name).is_not_null()
        case _:
            holds = text.str.contains(_TIME_PATTERN) & time_from_text(name).is_not_null()
    return text.is_null() | holds


def _as(kind: str, name: str) -> pl.Expr:
    match kind:
        case "integer":
            return pl.col(name).cast(pl.Int64)
        case "number":
            return pl.col(name).cast(pl.Float64)
        case "known number":
            return _as_number(name)
        case "boolean":
            return pl.col(name) == "true"
        case "utc":
            return _by_places(name)
        case _:
            return time_from_text(name)


def _by_places(name: str) -> pl.Expr:
    # 2026-01-01T12:00:00.123456Z: the fraction's digits are places 20 to 25, or it has none.
    text = pl.col(name)
    seconds = text.str.slice(0, 19).str.to_datetime(
        "%Y-%m-%dT%H:%M:%S", time_unit="us", strict=False, cache=False
    )
    fraction = text.str.slice(20, 6).cast(pl.Int64, strict=False).fill_null(0)
    return (seconds + pl.duration(microseconds=fraction)).dt.replace_time_zone("UTC")


def _as_number(name: str) -> pl.Expr:
    return pl.col(name).str.strip_chars().cast(pl.Float64, strict=False)
