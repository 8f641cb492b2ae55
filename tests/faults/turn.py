"""Calls of a package's functions, counted, and stopped at one of them."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any


class Turn:
    """Context in which the n-th call of a package's functions raises; `calls` counts them.

    With `only`, a qualified name, calls of that function alone.
    """

    def __init__(
        self,
        package: ModuleType,
        number: int = 0,
        error: BaseException | None = None,
        only: str = "",
    ) -> None:
        self.own, self.only = str(Path(*package.__path__)), only
        self.number, self.error, self.calls, self.at = number, error, 0, ""

    def __enter__(self) -> Turn:
        sys.setprofile(self._called)
        return self

    def __exit__(self, *error: object) -> None:
        sys.setprofile(None)

    def _called(self, frame: Any, event: str, argument: Any) -> None:
        code = frame.f_code
        if (
            event == "call"
            and code.co_filename.startswith(self.own)
            and self.only in ("", code.co_qualname)
        ):
            self.calls += 1
            if self.calls == self.number and self.error is not None:
                self.at = code.co_qualname
                raise self.error
