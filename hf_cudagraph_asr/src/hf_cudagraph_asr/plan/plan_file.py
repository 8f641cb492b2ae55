"""A plan as JSON: what it was made of, beside figures that are reckoned again when it is read."""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_cudagraph_asr.geometry import Geometry
from hf_cudagraph_asr.plan.cost import Cost
from hf_cudagraph_asr.plan.traffic import Traffic

if TYPE_CHECKING:
    from hf_cudagraph_asr.plan.bucket_plan import BucketPlan

__all__ = ["load", "save"]

KIND, FORMAT = "hf_cudagraph_asr plan", 1

FilePath = str | os.PathLike[str]


def save(plan: BucketPlan, path: FilePath) -> None:
    """Write a plan; see `BucketPlan.save`."""
    content = {
        "kind": KIND,
        "format": FORMAT,
        "geometry": asdict(plan.geometry),
        "batch_sizes": plan.batch_sizes,
        "asked": plan.asked,
        "buckets": [
            {name: getattr(bucket, name) for name in ("frames", "replicas", "pinned")}
            for bucket in plan.buckets
        ],
        # For people; nothing reads it back.
        "summary": {
            "samples": [bucket.samples for bucket in plan.buckets],
            "share": [bucket.share for bucket in plan.buckets],
            "tail": plan.tail,
            "padding": plan.padding,
            "expected_cost": plan.expected_cost,
            "eager_cost": plan.eager_cost,
            "memory": plan.memory,
        },
        "cost": asdict(plan.cost),
        "traffic": asdict(plan.traffic),
    }
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"no folder {target.parent} to write {target.name} in: create it")
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder: give the path of a file")
    # Not tempfile: what it makes is readable by its owner alone, and the rename would keep that.
    beside = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        text = json.dumps(content, allow_nan=False, indent=1)
        beside.write_text(text + "\n", encoding="utf-8")
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


def load(path: FilePath) -> BucketPlan:
    """Read a plan; see `BucketPlan.load`."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise ValueError(f"{path} is no plan: it does not say that it is a {KIND!r}")
    if content.get("format") != FORMAT:
        raise ValueError(
            f"{path} is a plan of format {content.get('format')!r}, and this version reads "
            f"{FORMAT}: plan again, or read it with the version that wrote it"
        )
    try:
        return _plan(content)
    except KeyError as error:
        raise ValueError(f"{path} is a damaged plan: {error.args[0]!r} is missing") from error
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{path} is a damaged plan: {error}") from error


def _plan(content: dict[str, Any]) -> BucketPlan:
    from hf_cudagraph_asr.plan.bucket_plan import BucketPlan

    geometry, cost, traffic = (_object(content, name) for name in ("geometry", "cost", "traffic"))
    buckets = content["buckets"]
    if not (isinstance(buckets, list) and all(isinstance(bucket, dict) for bucket in buckets)):
        raise ValueError(f"buckets must be a list of objects, not {buckets!r:.60}")
    lengths = _tuple([bucket["frames"] for bucket in buckets], "the buckets' frames", int)
    if any(a >= b for a, b in pairwise(lengths)):
        raise ValueError(f"the buckets' frames must ascend: {list(lengths)}")
    return BucketPlan.of(
        lengths,
        Traffic(_tuple(traffic["frames"], "frames", int), _tuple(traffic["counts"], "counts")),
        geometry=Geometry(
            _tuple(geometry["kernels"], "kernels", int),
            _tuple(geometry["strides"], "strides", int),
            geometry["sampling_rate"],
        ),
        batch_sizes=_tuple(content["batch_sizes"], "batch_sizes", int),
        cost=Cost(
            _tuple(cost["frames"], "frames", int),
            _tuple(cost["replay"], "replay"),
            _tuple(cost["eager"], "eager"),
            str(cost["unit"]),
            None if cost["memory"] is None else _tuple(cost["memory"], "memory"),
            *_tuple([cost["graph_memory"]], "graph_memory"),
        ),
        replicas=[bucket["replicas"] for bucket in buckets],
        pinned=[bucket["frames"] for bucket in buckets if bucket["pinned"]],
        asked=content["asked"],
    )


def _object(content: dict[str, Any], name: str) -> dict[str, Any]:
    value = content[name]
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be an object, not {value!r:.60}")
    return value


def _tuple(value: Any, name: str, kind: type = float) -> tuple[Any, ...]:
    kinds = (int,) if kind is int else (int, float)
    if not isinstance(value, list) or not all(
        isinstance(item, kinds) and not isinstance(item, bool) for item in value
    ):
        raise ValueError(f"{name} must be a list of numbers, not {value!r:.60}")
    return tuple(value)
