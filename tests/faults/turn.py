"""Calls of a package, counted, grouped by place, and disturbed at one of them."""

from __future__ import annotations

import argparse
import random
import signal
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any


class Turn:
    """Context that counts a package's calls in this thread, and disturbs the n-th.

    Counted are calls of the package's own functions, and its calls of torch's that are in C.

    Args:
        package: whose calls count.
        number: of the call that is disturbed; 0 for none.
        error: raised as that call begins.
        act: run as that call begins, which then goes on.
        only: a qualified name; only calls of this function count then.
        host: part of a path; lines of files with it tell places apart as well.

    Attributes:
        calls: how many there were.
        at: the function of the call that was disturbed.
        places: the calls at each place, which is the function called, and the lines of the package
            and of the host that lead there.
    """

    def __init__(
        self,
        package: ModuleType,
        number: int = 0,
        error: BaseException | None = None,
        *,
        act: Callable[[], object] | None = None,
        only: str = "",
        host: str = "",
    ) -> None:
        own = str(Path(*package.__path__))
        self.own, self.named, self.only = own, (own, host or own), only
        self.number, self.error, self.act = number, error, act
        self.calls, self.at = 0, ""
        self.places: dict[tuple[object, ...], list[int]] = defaultdict(list)

    def __enter__(self) -> Turn:
        sys.setprofile(self._called)
        return self

    def __exit__(self, *error: object) -> None:
        sys.setprofile(None)

    def chosen(
        self, args: argparse.Namespace, rng: random.Random, ends: tuple[int, ...] = (0, -1)
    ) -> list[int]:
        """Choose calls to disturb: by default the first and the last at each place, and more."""
        numbers = range(1, self.calls + 1)
        if args.every:
            return [*numbers]
        if args.calls is not None:
            return sorted(rng.sample(numbers, min(args.calls, self.calls)))
        found = {calls[end] for calls in self.places.values() for end in ends}
        others = [number for number in numbers if number not in found]
        return sorted(found.union(rng.sample(others, min(args.more, len(others)))))

    def _called(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if not code.co_filename.startswith(self.own) or self.only not in ("", code.co_qualname):
            return
        what: CodeType | str = code
        if event == "c_call" and not self.only and _of_torch(argument):
            what = argument.__name__
        elif event != "call":
            return
        self.calls += 1
        if not self.number:
            self.places[what, *self._lines(frame)].append(self.calls)
        elif self.calls == self.number:
            self.at = code.co_qualname if what is code else f"{code.co_qualname}: {what}"
            if self.act is not None:
                self.act()
            if self.error is not None:
                raise self.error

    def _lines(self, frame: FrameType | None) -> list[object]:
        lines: list[object] = []
        while frame is not None:
            if any(name in frame.f_code.co_filename for name in self.named):
                lines.append((frame.f_code, frame.f_lineno))
            frame = frame.f_back
        return lines


def _of_torch(function: Any) -> bool:
    return "torch" in f"{function.__module__} {type(function.__self__).__module__}"


def parser(text: str) -> argparse.ArgumentParser:
    """The options of a command that stops calls; an interrupt from the keyboard ends it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # KeyboardInterrupt is what is injected
    parser = argparse.ArgumentParser(description=text.splitlines()[0])
    parser.add_argument("--every", action="store_true", help="stop at every call; takes hours")
    parser.add_argument("--calls", type=int, help="stop at so many calls, chosen at random")
    parser.add_argument(
        "--more", type=int, default=20, help="calls beside the first and last of each place"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-record", action="store_true", help="leave docs/reliability alone")
    return parser
