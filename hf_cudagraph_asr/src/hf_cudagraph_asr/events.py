"""What a pool tells those who watch it: one frozen event a call. No torch."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from hf_cudagraph_asr.dispatch import Dispatch

__all__ = ["Observer", "Observers", "Served"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Served:
    """A call that was answered.

    It holds numbers only: neither tensors nor the model, so it may be kept or sent elsewhere.

    Attributes:
        dispatch: where the call went, and why.
        lengths: samples of each row, in order; empty where the model's own forward answered a
            call whose lengths are not known.
        seconds: from the request as read to its output, by the host's clock. On a device that
            works on its own, the time to hand it the work.
    """

    dispatch: Dispatch
    lengths: tuple[int, ...]
    seconds: float

    @property
    def filled(self) -> int:
        """Frames that were asked of buckets; 0 without one."""
        # The ratio is of small whole numbers, so rounding brings them back exactly.
        return round(self._computed / (1 + self.dispatch.padding))

    @property
    def added(self) -> int:
        """Frames that buckets computed in vain, unused rows included; 0 without one."""
        return self._computed - self.filled

    @property
    def _computed(self) -> int:
        return sum(replay.bucket.frames * replay.batch_size for replay in self.dispatch.replays)


class Observer(Protocol):
    """Whatever takes an event: a function, or an object with `__call__`.

    It is called in the thread of the query, after its answer is there and before that thread gets
    it, so what it does is time of the query; several threads may call it at the same time.
    """

    def __call__(self, event: Served, /) -> object:
        """Hear of a call; what it returns is dropped."""


class Observers:
    """Observers, none of whom can fail a query or keep the others from hearing of it.

    What an observer raises is logged with its traceback, the first time for each observer and
    type of exception: a fault that every query repeats would otherwise fill the log. What is no
    `Exception` (`KeyboardInterrupt`, `SystemExit`) goes through.

    Args:
        observers: called in this order. Without any, this is false, and no event need be made.

    Raises:
        TypeError: one of them cannot be called.
    """

    def __init__(self, observers: Iterable[Observer] = ()) -> None:
        self._observers = tuple(observers)
        for observer in self._observers:
            if not callable(observer):
                raise TypeError(
                    f"an observer is called with each event; {observer!r:.80} cannot be called"
                )
        # Adding to a set is atomic; at worst two threads log the same fault.
        self._logged: set[tuple[int, type[Exception]]] = set()

    def __bool__(self) -> bool:
        return bool(self._observers)

    def notify(self, event: Served) -> None:
        """Call them all."""
        for at, observer in enumerate(self._observers):
            try:
                observer(event)
            except Exception as error:
                fault = at, type(error)
                if fault not in self._logged:
                    self._logged.add(fault)
                    logger.exception(
                        "the observer %r failed; its next %s are not logged",
                        observer,
                        type(error).__name__,
                    )
