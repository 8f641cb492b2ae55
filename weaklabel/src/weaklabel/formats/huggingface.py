"""Hugging Face datasets: a folder for `load_dataset`, with Parquet and a dataset card.

    data = load_dataset("folder", split="train")
    data = data.cast_column("audio", Audio(sampling_rate=16_000))  # decoded when a row is read

`audio` is a column of strings, so that no audio is copied and whatever reads Parquet reads it.
"""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl

from weaklabel.errors import WeakLabelError

REQUIRED = ("audio",)
PARQUET = "data/train-00000-of-00001.parquet"
_FIRST = ("query_id", "audio", "transcript", "weight", "label")

_CARD = """\
---
task_categories:
- automatic-speech-recognition
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*.parquet
dataset_info:
  features:
{features}
---

# Weighted transcripts

{rows} queries with transcripts weighted by labeling functions, without human labels; written by
weaklabel. `weight` is the estimated probability that `transcript` is right, here {low:.3f} to
{high:.3f}; multiply each example's loss by it, or keep the examples above a threshold.

`audio` holds paths. To have them decoded:

```python
from datasets import Audio, load_dataset

data = load_dataset("path/of/this/folder", split="train")
data = data.cast_column("audio", Audio(sampling_rate=16_000))
```
"""

_TYPES = {
    pl.String: "string",
    pl.Boolean: "bool",
    pl.Int8: "int8",
    pl.Int16: "int16",
    pl.Int32: "int32",
    pl.Int64: "int64",
    pl.UInt8: "uint8",
    pl.UInt16: "uint16",
    pl.UInt32: "uint32",
    pl.UInt64: "uint64",
    pl.Float32: "float32",
    pl.Float64: "float64",
    pl.Date: "date32",
}


def write(rows: pl.DataFrame, folder: Path) -> None:
    """Write data/train-00000-of-00001.parquet and README.md, every column of the rows included.

    Raises:
        WeakLabelError: a column's type has no counterpart among the features of datasets.
    """
    first = [name for name in _FIRST if name in rows.columns]
    rows = rows.select(*first, pl.exclude(first)).with_columns(
        pl.selectors.by_dtype(pl.Categorical, pl.Enum).cast(pl.String)
    )
    # Without these the strings would be `large_string`, which does not cast to Audio.
    features = "\n".join(
        f"  - name: {json.dumps(name)}\n    dtype: {_type(name, kind)}"
        for name, kind in rows.schema.items()
    )
    weights = rows["weight"].to_list()
    card = _CARD.format(features=features, rows=rows.height, low=min(weights), high=max(weights))
    (folder / "data").mkdir()
    rows.write_parquet(folder / PARQUET)
    (folder / "README.md").write_bytes(card.encode())


def _type(name: str, kind: pl.DataType) -> str:
    if isinstance(kind, pl.Datetime):
        zone = f", tz={kind.time_zone}" if kind.time_zone else ""
        return f"timestamp[{kind.time_unit}{zone}]"
    if isinstance(kind, pl.Duration):
        return f"duration[{kind.time_unit}]"
    try:
        return _TYPES[type(kind)]
    except KeyError:
        raise WeakLabelError(
            f"column {name!r} is {kind}, which has no feature of its own: drop it, or turn it into"
            " strings"
        ) from None
