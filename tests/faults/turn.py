"""Calls of a package's functions, counted, and stopped at one of them."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any


class Turn:
    """Context in which the n-th call of a package's functions raises; `calls` counts them."""

    def __init__(
        self, package: ModuleType, number: int = 0, error: BaseException | None = None
    ) -> None:
        self.own = str(Path(*package.__path__))
        self.number, self.error, self.calls, self.at = number, error, 0, ""

    def __enter__(self) -> Turn:
        sys.setprofile(self._called)
        return self

    def __exit__(self, *error: object) -> None:
        sys.setprofile(None)

    def _called(self, frame: Any, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(self.own):
            self.calls += 1
            if self.calls == self.number and self.error is not None:
                self.at = frame.f_code.co_qualname
                raise self.error
