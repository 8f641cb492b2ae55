"""`apply`: votes for a frame."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import narwhals.stable.v2 as nw
import polars as pl

from weaklabel.engines import polars_engine
from weaklabel.engines.metadata import read_metadata
from weaklabel.engines.plan import WRONG, Plan
from weaklabel.engines.rowwise import Meter
from weaklabel.engines.runs import apply_files
from weaklabel.engines.tallies import Summary, Tally
from weaklabel.errors import WeakLabelError
from weaklabel.labeling import LabelingFunction

__all__ = ["Summary", "Tally", "apply", "apply_files", "read_metadata"]

_logger = logging.getLogger(__name__)


def apply(functions: Iterable[LabelingFunction], queries: Any, *, keep: Sequence[str] = ()) -> Any:
    """The votes of labeling functions on a query log that is a frame.

    Args:
        functions: what to apply, each with a name of its own.
        queries: a frame: Polars, eager or lazy; a DuckDB relation; a PySpark frame; pandas or
            pyarrow (through Polars). Other frames that narwhals knows work where no function is
            row-wise.
        keep: columns of the log to keep beside the votes.

    Returns:
        A frame of the same kind: `query_id`, the kept columns, and an Int8 column `lf:<name>` for
        each function, in the functions' order; null votes are abstains. Eager frames keep the order
        of their rows; engines such as DuckDB and Spark promise none. A lazy frame is still lazy: a
        vote that is none (see Raises) is found when it is computed, and is a 2 there, which
        `Patterns.count` refuses; row-wise functions raise at that point. On a DuckDB relation,
        row-wise functions are computed here and now, and the votes held in memory.

    Raises:
        WeakLabelError: columns are missing; two functions share a name; a function raises, cannot
            be computed, or votes something else than 1, 0, -1 or null. In an eager frame the
            queries are named.
        TypeError: `queries` is no frame.
    """
    plan = Plan.of(functions, keep)
    frame = nw.from_native(queries)
    if plan.rowwise:
        _logger.info(
            "row-wise functions call Python for every query: %s",
            ", ".join(function.name for function in plan.rowwise),
        )
    if isinstance(frame, nw.DataFrame):
        return _eager(frame, plan)
    match frame.implementation:
        case nw.Implementation.POLARS:
            return polars_engine.votes(frame.to_native(), plan)
        case nw.Implementation.DUCKDB:
            from weaklabel.engines import duckdb_engine

            return duckdb_engine.votes(frame.to_native(), plan)
        case nw.Implementation.PYSPARK | nw.Implementation.PYSPARK_CONNECT:
            from weaklabel.engines import spark_engine

            return spark_engine.votes(frame.to_native(), plan)
        case other if plan.rowwise:
            names = ", ".join(function.name for function in plan.rowwise)
            raise WeakLabelError(
                f"row-wise functions ({names}) do not run on {other.name.lower()}: collect the"
                " frame to Polars first, or leave them out"
            )
        case _:
            plan.check_columns(frame.collect_schema().names())
            return plan.finished(plan.work(plan.set_aside(frame))).to_native()


def _eager(frame: nw.DataFrame[Any], plan: Plan) -> Any:
    plan.check_columns(frame.columns)
    log = frame.select(*plan.required).to_polars().lazy()
    meter = Meter()
    with polars_engine.first_cause(meter):
        found = polars_engine.votes(log, plan, meter).collect()
    meter.check()
    wrong = [f.name for f in plan.functions if (found[f.column] == WRONG).any()]
    if wrong:
        plan.complain(nw.from_native(polars_engine.prepared(log, plan)), wrong)
    if frame.implementation is nw.Implementation.POLARS:
        return found
    made = nw.DataFrame.from_arrow(
        found.to_arrow(compat_level=pl.CompatLevel.oldest()), backend=frame.implementation
    )
    native = made.to_native()
    index = nw.maybe_get_index(frame)
    if index is not None:  # pandas: so that the votes can be joined to the log
        native.index = index
    return native
