"""Values of given types out of the content of JSON files."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from weaklabel.errors import WeakLabelError


def typed(kind: Any, value: Any, where: str = "") -> Any:
    """Turn what JSON read into a value of a type: dataclasses, tuples, unions and the like.

    Raises:
        WeakLabelError: it is no such value; the message says where.
        TypeError: a dataclass lacks a field.
    """
    origin, kinds = get_origin(kind) or kind, get_args(kind)
    if origin in (Union, UnionType):
        # None first and dataclasses last, whose errors say most.
        *others, last = sorted(kinds, key=lambda one: (one is not NoneType, is_dataclass(one)))
        for one in others:
            with suppress(WeakLabelError):
                return typed(one, value, where)
        return typed(last, value, where)
    if isinstance(kind, type) and is_dataclass(kind) and isinstance(value, Mapping):
        hints, names = get_type_hints(kind), [one.name for one in fields(kind) if one.init]
        held = [name for name in names if name in value]  # others have defaults, or are missed
        return kind(
            **{name: typed(hints[name], value[name], f"{where}.{name}".strip(".")) for name in held}
        )
    if isinstance(value, list) and origin in (tuple, list, Sequence):
        kinds = kinds or (Any, ...)
        fixed = origin is tuple and kinds[-1] is not ...
        each = kinds if fixed else kinds[:1] * len(value)
        if len(each) == len(value):
            made = [typed(one, value[i], f"{where}[{i}]") for i, one in enumerate(each)]
            return made if origin is list else tuple(made)
    elif isinstance(value, dict) and origin in (dict, Mapping) and kinds:
        return {
            typed(kinds[0], name, where): typed(kinds[1], inner, f"{where}[{name!r}]")
            for name, inner in value.items()
        }
    elif kind is float:
        if type(value) in (int, float) and math.isfinite(value):
            return value
    elif kind is Any or type(value) is kind or (origin is Literal and value in kinds):
        return value
    raise WeakLabelError(f"{where} must be {inspect.formatannotation(kind)}, got {value!r:.80}")
