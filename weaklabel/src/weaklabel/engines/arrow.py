"""Row-wise votes on batches of Arrow, for the engines that hand these out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import polars as pl

from weaklabel.engines.rowwise import Meter, RowStep


def votes_schema(work: Any, step: RowStep) -> Any:
    """The Arrow schema of the table of votes, given that of `Plan.work`."""
    import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]

    votes = {function.column for function in step.functions}
    return pa.schema(
        pa.field(name, pa.int8() if inner in votes else work.field(inner).type)
        for inner, name in step.columns
    )


def stepped(batches: Iterable[Any], step: RowStep, meter: Meter | None = None) -> Iterator[Any]:
    """The table of votes of each batch of `Plan.work`; what is kept stays as it came."""
    import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]

    for batch in batches:
        frame = pl.from_arrow(batch)
        assert isinstance(frame, pl.DataFrame)
        voted = step.votes(frame, meter)
        columns = [
            voted[inner].to_arrow() if inner in voted.columns else batch.column(inner)
            for inner, _ in step.columns
        ]
        yield pa.RecordBatch.from_arrays(columns, schema=votes_schema(batch.schema, step))
