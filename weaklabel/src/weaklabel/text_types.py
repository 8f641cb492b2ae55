"""The types of texts: what a CSV's values are, where none loses something by it."""

from __future__ import annotations

import logging
from typing import Final

import polars as pl

from weaklabel.schema import kind_of

_TIME: Final = "%Y-%m-%dT%H:%M:%S%.f%#z"
_TIME_PATTERN: Final = r"^\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)? ?([zZ]|[+-]\d\d:?(\d\d)?)$"
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
    checks = [
        is_kind(kind, name).all().alias(f"{index} {kind}")
        for index, name in enumerate(names)
        for kind in candidates[name]
    ]
    counts = [pl.col(name).count().alias(f"{index}") for index, name in enumerate(names)]
    blank = pl.all_horizontal(pl.all().is_null())
    aggregated = raw.select(*checks, *counts, blank.sum().alias("blank"))
    found = aggregated.collect(engine="streaming").row(0, named=True)
    casts = []
    for index, name in enumerate(names):
        kinds = [kind for kind in candidates[name] if found[f"{index} {kind}"]]
        known = kind_of(name) is not None
        if kinds and (found[f"{index}"] or (known and kinds[0] != "integer")):
            casts.append(_as(kinds[0], name))
    if found["blank"]:
        _logger.warning("%d blank lines of a CSV are no rows", found["blank"])
        raw = raw.filter(~blank)
    return raw.with_columns(casts)


def all_times(frame: pl.LazyFrame, name: str) -> bool:
    """Whether every text of a column is a timestamp with an offset."""
    values = frame.select(pl.col(name)).filter(pl.col(name).is_not_null())
    if not values.head(1000).select(is_kind("time", name).all()).collect().item():
        return False
    return bool(values.select(is_kind("time", name).all()).collect(engine="streaming").item())


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
            return ("time",)
        case "share" | "seconds":
            return ("known number",)
        case None:
            return ("integer", "number", "boolean", "time")


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
        case _:
            return time_from_text(name)


def _as_number(name: str) -> pl.Expr:
    return pl.col(name).str.strip_chars().cast(pl.Float64, strict=False)
