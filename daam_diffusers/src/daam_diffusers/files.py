"""Heat maps on disk: safetensors with provenance, NumPy, COCO run lengths. Nothing is pickled."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from daam_diffusers.atomic import written_beside
from daam_diffusers.families import LayerInfo
from daam_diffusers.prompt import Prompt, Token

if TYPE_CHECKING:
    from daam_diffusers.maps import HeatMaps

_FORMAT = 2  # 1 knew neither frames, calls nor the columns of start and end tokens


def save(maps: HeatMaps, path: str | os.PathLike[str]) -> Path:
    """See `HeatMaps.save`."""
    description = {
        "format": _FORMAT,
        "prompt": asdict(maps.prompt),
        "layers": [asdict(layer) for layer in maps.layers],
        "columns": maps.columns,
        "axes": maps.axes,
        "size": maps.size,
        "image_size": maps.image_size,
        "clamp": maps.clamp,
        "provenance": dict(maps.provenance),
        "frames": maps.frames,
        "calls": dict(maps.calls),
    }
    tensors = {name: tensor.contiguous() for name, tensor in maps.probabilities.items()}
    with written_beside(path) as temporary:
        save_file(tensors, temporary, {"daam_diffusers": json.dumps(description)})
    return Path(path)


def load(path: str | os.PathLike[str]) -> HeatMaps:
    """See `HeatMaps.load`."""
    from daam_diffusers.maps import HeatMaps

    if not Path(path).is_file():
        raise FileNotFoundError(f"no such file: {os.fspath(path)}")
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{os.fspath(path)} is not a safetensors file: {error}") from error
    if "daam_diffusers" not in metadata:
        raise ValueError(
            f"{os.fspath(path)} holds no heat maps: it was not written by HeatMaps.save"
        )
    described = json.loads(metadata["daam_diffusers"])
    if described["format"] > _FORMAT:
        raise ValueError(
            f"{os.fspath(path)} has format {described['format']}, and this version reads up to "
            f"{_FORMAT}; update daam-diffusers"
        )
    prompt = described["prompt"]
    layers = [{**layer, "grid": tuple(layer["grid"])} for layer in described["layers"]]
    return HeatMaps(
        prompt=Prompt(
            prompt["text"],
            tuple(Token(**token) for token in prompt["tokens"]),
            prompt["columns"],
            tuple(prompt["cut"]),
            tuple(prompt.get("start", ())),
            tuple(prompt.get("end", ())),
        ),
        layers=tuple(LayerInfo(**layer) for layer in layers),
        probabilities={layer["name"]: tensors[layer["name"]] for layer in layers},
        columns=tuple(described["columns"]),
        axes=tuple(described["axes"]),
        size=(described["size"][0], described["size"][1]),
        image_size=(described["image_size"][0], described["image_size"][1]),
        clamp=described["clamp"],
        provenance=described["provenance"],
        frames=described.get("frames"),
        calls=described.get("calls", {}),
    )


def to_npz(maps: HeatMaps, path: str | os.PathLike[str]) -> Path:
    """See `HeatMaps.to_npz`."""
    pairs = list(maps.by_word())
    values = np.stack([found.values.numpy() for _, found in pairs]) if pairs else np.zeros((0,))
    with written_beside(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            values=values,
            words=np.array([word.text for word, _ in pairs], dtype=np.str_),
            spans=np.array([(word.start, word.end) for word, _ in pairs], dtype=np.int64),
            prompt=np.array(maps.prompt.text),
            axes=np.array(maps.axes, dtype=np.str_),
            provenance=np.array(json.dumps(dict(maps.provenance))),
        )
    return Path(path)


def to_coco_rle(
    maps: HeatMaps, threshold: float, size: tuple[int, int] | None
) -> list[dict[str, Any]]:
    """See `HeatMaps.to_coco_rle`."""
    try:
        from pycocotools import mask as coco
    except ImportError as error:
        raise ImportError(
            'COCO run lengths need pycocotools: pip install "daam-diffusers[coco]"'
        ) from error
    seen: dict[str, int] = {}
    annotations: list[dict[str, Any]] = []
    for number, (word, found) in enumerate(maps.by_word(), start=1):
        key = word.text.casefold()
        occurrence = seen.get(key, 0)
        seen[key] = occurrence + 1
        mask = found.mask(threshold, size).numpy()
        encoded = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        annotations.append(
            {
                "id": number,
                "word": word.text,
                "occurrence": occurrence,
                "segmentation": {
                    "size": [int(n) for n in encoded["size"]],
                    "counts": encoded["counts"].decode("ascii"),
                },
                "area": int(coco.area(encoded)),
                "bbox": [float(n) for n in coco.toBbox(encoded)],
            }
        )
    return annotations
