"""A plan as a terminal's table."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from hf_cudagraph_asr.plan.bucket_plan import BucketPlan

__all__ = ["summary", "table"]


def table(plan: BucketPlan) -> Table:
    """Buckets by ascending length; see `BucketPlan.table`."""
    try:
        from rich import box
        from rich.table import Table
    except ImportError as error:
        raise ImportError("a plan's table needs rich: pip install rich") from error

    made = Table(
        box=box.SIMPLE_HEAD,
        title="1 bucket" if len(plan.buckets) == 1 else f"{len(plan.buckets)} buckets",
        caption="\n".join(summary(plan)),
        caption_justify="left",
        show_footer=plan.tail > 0,
    )
    replicated = any(bucket.replicas > 1 for bucket in plan.buckets)
    last = plan.buckets[-1]
    made.add_column("up to", justify="right", footer=f"> {_seconds(plan, last.frames)}")
    made.add_column("frames", justify="right")
    made.add_column("samples", justify="right")
    made.add_column("queries", justify="right", footer=percent(plan.tail))
    made.add_column("padding", justify="right")
    made.add_column(f"cost [{plan.cost.unit}]".replace("[", "\\["), justify="right", footer="eager")
    if replicated:
        made.add_column("replicas", justify="right")
    for bucket in plan.buckets:
        cells = [
            _seconds(plan, bucket.frames) + ("*" if bucket.pinned else ""),
            f"{bucket.frames:,}",
            f"{bucket.samples:,}",
            percent(bucket.share),
            percent(bucket.padding) if bucket.share else "–",
            f"{bucket.cost:,.4g}" if bucket.cost < 1000 else f"{bucket.cost:,.0f}",
        ]
        made.add_row(*cells, *([str(bucket.replicas)] if replicated else []))
    return made


def summary(plan: BucketPlan) -> list[str]:
    """What holds for the whole plan, in lines."""
    rows = ", ".join(map(str, plan.batch_sizes))
    of_all = f"of {plan.traffic.total:,.0f} queries"
    lines = [
        f"padding {percent(plan.padding)}; run eagerly {percent(plan.tail)} {of_all}",
        f"{plan.expected_cost:,.4g} {plan.cost.unit} a query (all eager: {plan.eager_cost:,.4g})",
        f"{plan.captures} graphs at batch size {rows}",
    ]
    if plan.memory is not None:
        lines[-1] += f", {plan.memory / 2**20:,.0f} MiB"
    if len(plan.buckets) < plan.asked:
        why = "gain nothing" if plan.memory is None else "gain nothing, or exceed the memory limit"
        lines.append(f"{plan.asked} were allowed: more than these {why}")
    if any(bucket.pinned for bucket in plan.buckets):
        lines.append("* chunks of long recordings")
    return lines


def percent(share: float) -> str:
    """A share as a per cent, without rounding a few queries to none."""
    if 0 < share < 0.0005:
        return "< 0.1%"
    return f"{share:.1%}"


def _seconds(plan: BucketPlan, frames: int) -> str:
    return f"{plan.geometry.seconds(frames):.2f} s"
