"""Calls of a package, counted, grouped by place, and disturbed at one of them."""

from __future__ import annotations

import argparse
import itertools
import random
import signal
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
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
        dropped: whether Python itself dropped the error, as it does when a generator is closed.
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
        self.calls, self.at, self.dropped = 0, "", False
        self._hook = self._called  # held here too: the interpreter once called it when freed
        self.places: dict[tuple[object, ...], list[int]] = defaultdict(list)

    def __enter__(self) -> Turn:
        sys.unraisablehook = self._dropped
        sys.setprofile(self._hook)
        return self

    def __exit__(self, *error: object) -> None:
        sys.setprofile(None)
        sys.unraisablehook = sys.__unraisablehook__

    def faults(
        self,
        args: argparse.Namespace,
        rng: random.Random,
        kinds: Sequence[Any],
        seen: set[Any] | None = None,
    ) -> list[tuple[int, Any]]:
        """Choose what to do at which calls, from the calls that were counted.

        Args:
            args: of the command.
            rng: chooses calls beside those of places.
            kinds: of faults. Each comes once at each place, at its first and last call by turns;
                with `--kinds`, so many of them.
            seen: places to leave out, and these are added.
        """
        seen = set() if seen is None else seen
        new, some = [place for place in self.places if place not in seen], args.more
        if args.every or args.calls is not None:
            new, some = [], self.calls if args.every else args.calls
        seen.update(self.places)
        ends = [(self.places[place][0], self.places[place][-1]) for place in new]
        chosen: set[tuple[int, int]] = set()
        for at, calls in enumerate(ends):
            for i in range(at, at + (args.kinds or len(kinds))):
                chosen.add((calls[i % 2], i % len(kinds)))
        numbers = rng.sample(range(1, self.calls + 1), min(some, self.calls))
        chosen |= set(itertools.product(numbers, range(len(kinds))))
        return [(number, kinds[i]) for number, i in sorted(chosen)]

    def _dropped(self, what: Any) -> None:
        self.dropped = what.exc_value is self.error

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
        "--more", type=int, default=5, help="calls at random beside those of places"
    )
    parser.add_argument(
        "--kinds", type=int, help="kinds of faults at each place, by turns; default: all"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-record", action="store_true", help="leave docs/reliability alone")
    return parser
