"""Errors of this package, and errors of engines as messages that a caller can act on."""

from __future__ import annotations

import errno
import signal
from collections.abc import Iterator
from contextlib import contextmanager


class WeakLabelError(ValueError):
    """Something given breaks its contract; the message says what was given, wanted and to do."""


class WeakLabelWarning(UserWarning):
    """Something was done, and there is a reason not to trust its result."""


_DISK = {
    "no space left on device": errno.ENOSPC,
    "could not allocate disk": errno.ENOSPC,
    "disk quota exceeded": errno.EDQUOT,
    "file too large": errno.EFBIG,
}

# From here on an engine describes its own plan, which does not help the author of a function.
_INNER = (
    "Resolved plan",
    "Candidate functions",
    "LINE ",
    "This error occurred",
    "---",
    "JVM stack",
)
_LONGEST = 500  # characters


def plain_message(error: BaseException) -> str:
    """An engine's message on one line, without its plans and stacks, at most 500 characters."""
    lines: list[str] = []
    for line in str(error).strip().splitlines():
        if line.strip().startswith(_INNER):
            break
        lines.append(line)
    return clipped(" ".join(" ".join(lines).split()) or type(error).__name__)


def clipped(text: str, longest: int = _LONGEST) -> str:
    """The text as files can hold it, and no longer: halves of letters and NUL are escaped."""
    text = text if len(text) <= longest else f"{text[: longest - 1]}…"
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def foreign(value: object) -> str:
    """The repr of what a plugin made, as `clipped`; its type where it has none."""
    try:
        return clipped(repr(value))
    except Exception:  # noqa: BLE001 - it is a plugin's class
        return type(value).__name__


def ends_run(error: BaseException) -> bool:
    """Whether an error that comes out of a plugin's code is not its own: an interrupt or SIGTERM.

    Anything else is, `sys.exit()` included, and is reported with the plugin's name.
    """
    asked = isinstance(error, SystemExit) and error.code == 128 + signal.SIGTERM
    return asked or isinstance(error, KeyboardInterrupt)


def counted(number: int, noun: str) -> str:
    """A number and its noun, which is given in the singular: "2 queries".

    >>> counted(1, "query"), counted(1234, "query")
    ('1 query', '1,234 queries')
    """
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


@contextmanager
def translated(engine: str, given: str, *kinds: type[BaseException]) -> Iterator[None]:
    """Failures of an engine become a WeakLabelError, those of a disk an OSError.

    Args:
        engine: its name, for the message.
        given: the table it works on.
        kinds: the exceptions that it raises.

    Raises:
        OSError: the disk is full, or a limit of file sizes is reached.
        WeakLabelError: anything else of `kinds`.
    """
    try:
        yield
    except WeakLabelError:
        raise
    except BaseException as error:  # as a panic of Polars is
        if not isinstance(error, (*kinds, OSError)):
            raise
        message = plain_message(error)
        for words, number in _DISK.items():
            if words in str(error).lower():
                raise OSError(
                    number, f"the votes could not be written: {message}; make room, then run again"
                ) from error
        if isinstance(error, OSError):
            raise
        raise WeakLabelError(f"{engine} failed on {given}: {message}") from error
