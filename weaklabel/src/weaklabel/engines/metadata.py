"""What files of votes say of themselves, in their Parquet metadata."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polars as pl

from weaklabel.engines import sources
from weaklabel.engines.faults import gist
from weaklabel.engines.manifest import KEY, Manifest, parameters
from weaklabel.engines.plan import Plan
from weaklabel.errors import WeakLabelError


def about(
    plan: Plan, found: sources.Found, engine: str, given: Mapping[str, Any]
) -> dict[str, Any]:
    """What votes say of themselves: functions, engine, version and log.

    Args:
        plan: whose functions voted.
        found: the log.
        engine: name and version.
        given: `identities` by function name, and anything else that JSON can hold.
    """
    others = dict(given)
    identities = others.pop("identities", {})
    return {
        "functions": [
            {
                "name": function.name,
                "identity": identities.get(
                    function.name, f"local:{function.name}@0#{function.source_hash}"
                ),
                "family": function.family,
                "parameters": parameters(function.parameters),
                "rowwise": function.rowwise,
                "scope": function.scope,
            }
            for function in plan.functions
        ],
        "engine": engine,
        "version": version("weaklabel"),
        "queries": {"path": found.given, "files": len(found.files), "bytes": found.bytes},
        **others,
    }


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a file or folder of votes says of itself; {} where it says nothing.

    Args:
        path: a Parquet file, or a folder or glob of them: their first one then.

    Raises:
        FileNotFoundError: there is nothing.
        WeakLabelError: the file cannot be read, or the folder is a run that has not ended.
    """
    folder = Path(path)
    manifest = Manifest.load(folder) if folder.is_dir() else None
    if manifest is not None and (missing := manifest.missing(folder)):
        raise WeakLabelError(
            f"{folder} lacks {len(missing)} of {manifest.partitions} parts: finish the run"
            " with resume"
        )
    found = sources.find(path)
    if not found.direct:
        return {}
    try:
        text = pl.read_parquet_metadata(Path(found.files[0])).get(KEY, "{}")
    except pl.exceptions.PolarsError as error:
        raise WeakLabelError(
            f"{found.files[0]} is no Parquet file, or was cut short: {gist(error)}; write it again"
        ) from error
    said = json.loads(text)
    if not isinstance(said, dict):
        raise WeakLabelError(f"the metadata of {path} is no object: {text[:100]}")
    return said
