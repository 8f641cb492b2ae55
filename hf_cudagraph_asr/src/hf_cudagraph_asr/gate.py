"""`Gate`: keeps calls out while a backend has the device for itself. No torch."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

__all__ = ["Gate"]

PATIENCE = 30.0
"""Seconds that are waited for calls inside to end. One of them may itself wait for who waits."""


class Gate:
    """Calls pass one by one in any number, and wait while it is shut."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._inside = 0
        self._shut = False

    def enter(self) -> None:
        """Pass, when it is open."""
        with self._changed:
            while self._shut:
                self._changed.wait()
            self._inside += 1

    def leave(self) -> None:
        """Be no longer inside."""
        with self._changed:
            self._inside -= 1
            if self._shut and not self._inside:
                self._changed.notify_all()

    @contextmanager
    def shut(self) -> Iterator[None]:
        """Shut it, wait until nobody is inside, and open it again in the end.

        For one thread at a time.
        """
        until = monotonic() + PATIENCE
        with self._changed:
            self._shut = True
            while self._inside and (left := until - monotonic()) > 0:
                self._changed.wait(left)
        try:
            yield
        finally:
            with self._changed:
                self._shut = False
                self._changed.notify_all()
