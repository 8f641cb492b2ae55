"""Where a call goes, and why. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal

from hf_cudagraph_asr.packing import Replay
from hf_cudagraph_asr.plan import Bucket

__all__ = ["Dispatch", "Reason", "Route"]

Route = Literal["bucket", "exact", "host"]


class Reason(Enum):
    """Why a call was not replayed. A fixed set, so that counts of them stay small."""

    TRAINING = "training mode"
    LABELS = "labels were given"
    GRADIENTS = "gradients are wanted: call it under torch.no_grad() or torch.inference_mode()"
    OUTPUTS = "hidden states or attentions were asked for"
    ARGUMENTS = "arguments other than input_values and attention_mask"
    INPUT = "input_values are no (rows, samples) tensor in the model's dtype on its device"
    SHORT = "shorter than the receptive field"
    MASK = "attention_mask is not ones followed by zeros in each row of input_values"
    AUTOCAST = "autocast is on, and not as captured"
    LONG = "longer than the last bucket"
    ROWS = "more rows than the largest batch size planned, and one eager run costs less"
    CHANGED = "weights or modules were exchanged since the capture: call pool.rebuild()"
    FAILED = "the capture failed"
    UNSUPPORTED = "no length-exact forward for this model"
    REFUSED = "the length-exact forward refused the input"
    CLOSED = "the pool is disabled"


@dataclass(frozen=True, slots=True)
class Dispatch:
    """What becomes of a call.

    Attributes:
        route: "bucket": captured programs. "exact": the length-exact forward, as it is. "host":
            the model's own forward.
        reason: why not a bucket; None where one serves it, or where nothing was to be captured.
        detail: more of the reason, for people; often empty.
        replays: the programs run for it, that of the longest row first: one, unless a batch is
            split.
        padding: frames computed in vain over frames asked for; 0 without a bucket.
        cost: of all replays, in the unit of the plan's cost, or in milliseconds after
            `GraphPool.calibrate`; None without a bucket.
    """

    route: Route
    reason: Reason | None = None
    detail: str = ""
    replays: tuple[Replay, ...] = ()
    padding: float = 0.0
    cost: float | None = None

    @property
    def bucket(self) -> Bucket | None:
        """That of the longest row, or None."""
        return self.replays[0].bucket if self.replays else None

    @property
    def batch_size(self) -> int:
        """Rows of the program that runs the longest row; 0 without a bucket."""
        return self.replays[0].batch_size if self.replays else 0

    def __str__(self) -> str:
        if self.replays:
            parts = ", then ".join(
                f"bucket of {replay.bucket.frames} frames, {replay.batch_size} rows"
                for replay in self.replays
            )
            return f"{parts}, {self.padding:.0%} padding"
        name = {"exact": "the exact forward", "host": "the model's own forward"}[self.route]
        why = "" if self.reason is None else f", because: {self.reason.value}"
        return name + why + (f" ({self.detail})" if self.detail else "")
