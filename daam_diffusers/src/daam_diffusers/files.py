"""The package's own file of heat maps: safetensors, with what describes them as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from daam_diffusers.atomic import written_beside

if TYPE_CHECKING:
    from daam_diffusers.maps import HeatMaps

_KEY = "daam_diffusers"
_SELF = "self_attention"  # no layer is called so: their names have dots
_FORMAT = 2  # 1 knew neither frames, calls nor the columns of start and end tokens


def save(maps: HeatMaps, path: str | os.PathLike[str]) -> Path:
    """See `HeatMaps.save`."""
    entries = {x.name: getattr(maps, x.name) for x in fields(maps) if x.name != "probing"}
    tensors = {**entries.pop("probabilities"), _SELF: entries.pop(_SELF)}
    tensors = {name: x.contiguous() for name, x in tensors.items() if x is not None}
    description = json.dumps({"format": _FORMAT, **entries}, default=_plain)
    with written_beside(path, ".safetensors") as beside:
        save_file(tensors, beside, {_KEY: description})
    return Path(path)


def _plain(value: Any) -> dict[str, Any]:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else dict(value)


def load(kind: type[HeatMaps], path: str | os.PathLike[str]) -> HeatMaps:
    """See `HeatMaps.load`, for which `kind` stands."""
    if Path(path).is_dir():
        raise IsADirectoryError(f"{path} is a folder: give the path of a file")
    if not Path(path).is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        is_npz = Path(path).suffix.lower() == ".npz"
        why = "written by to_npz? numpy.load reads it" if is_npz else error
        raise ValueError(f"{path} is not a safetensors file, or not all of one: {why}") from error
    if _KEY not in metadata:
        raise ValueError(f"{path} holds no heat maps: it was not written by HeatMaps.save")
    try:
        described = _read(dict, json.loads(metadata[_KEY]), "the description")
        number = _read(int, described.get("format"), "format")
        if number <= _FORMAT:
            own = {_SELF: tensors.pop(_SELF, None), "probabilities": tensors}
            maps: HeatMaps = _read(kind, {**described, **own}, "")
            _check(maps)
            return maps
    except KeyError as error:
        raise ValueError(f"{path} is damaged: it has no layer {error}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    raise ValueError(
        f"{path} has format {number}, and this version reads up to {_FORMAT}: update daam-diffusers"
    )


def _read(kind: Any, value: Any, name: str) -> Any:
    """Turn what JSON read into the type `kind`: dataclasses, tuples and the like, from within.

    Raises:
        ValueError: it is of another type, negative, or lacks an entry; the message says where.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind) and isinstance(kind, type) and isinstance(value, dict):
        for field in fields(kind):
            required = field.default is MISSING and field.default_factory is MISSING
            if required and field.name not in value:
                raise ValueError(f"{name or 'the description'} has no {field.name!r}")
        hints = {key: hint for key, hint in get_type_hints(kind).items() if key in value}
        names = {key: f"{name}.{key}".strip(".") for key in hints}
        return kind(**{key: _read(hints[key], value[key], names[key]) for key in hints})
    if origin is tuple and isinstance(value, list):
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(kinds) == len(value):
            parts = zip(kinds, value, strict=True)
            return tuple(_read(each, item, f"{name}[{i}]") for i, (each, item) in enumerate(parts))
    if origin is Mapping and isinstance(value, dict):
        return {key: _read(arguments[1], item, f"{name}[{key!r}]") for key, item in value.items()}
    if origin is UnionType:
        return None if value is None else _read(arguments[0], value, name)
    is_number = kind is int and type(value) is int and value >= 0  # a bool is no number
    is_other = kind is not int and isinstance(kind, type) and isinstance(value, kind)
    if is_number or is_other or (origin is Literal and value in arguments):
        return value
    wanted = "a number from 0" if kind is int else getattr(kind, "__name__", str(kind))
    raise ValueError(f"{name} must be {wanted}, got {value!r:.60}")


def _check(maps: HeatMaps) -> None:
    """Check what neither the types of a file's entries say nor HeatMaps itself checks."""
    for token in maps.tokens:
        if maps.prompt.text[token.start : token.end] != token.text:
            raise ValueError(
                f"token {token.text!r} is not what stands at {token.start} to {token.end} of the "
                "prompt"
            )
    spread = {} if maps.self_attention is None else {_SELF: maps.self_attention}
    for rows in spread.values():
        if rows.numel() and not (rows.amin() >= 0 and rows.sum(dim=(1, 2)).amin() > 0):
            raise ValueError(f"{_SELF} must hold shares, got negative ones, or rows of zeros")
    for layer, tensor in {**maps.probabilities, **spread}.items():
        if tensor.dtype != torch.float32 or not tensor.isfinite().all():
            raise ValueError(
                f"probabilities of layer {layer} must be finite float32, got {tensor.dtype}, "
                f"{int(tensor.isnan().sum())} of {tensor.numel()} values NaN"
            )
