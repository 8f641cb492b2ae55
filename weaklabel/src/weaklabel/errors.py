"""What an engine raises, raised again as what a caller can act on."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager


class WeakLabelError(ValueError):
    """Something given breaks its contract; the message says what was given, wanted and to do."""


_DISK = {
    "no space left on device": errno.ENOSPC,
    "could not allocate disk": errno.ENOSPC,
    "disk quota exceeded": errno.EDQUOT,
    "file too large": errno.EFBIG,
}

# Where an engine begins to tell of its own plan, which says nothing to who wrote a function.
_INNER = (
    "Resolved plan",
    "Candidate functions",
    "LINE ",
    "This error occurred",
    "---",
    "JVM stack",
)
_LONGEST = 500  # characters


def gist(error: BaseException) -> str:
    """What an engine's error says, on one line and without its own plans and stacks."""
    lines: list[str] = []
    for line in str(error).strip().splitlines():
        if line.strip().startswith(_INNER):
            break
        lines.append(line)
    text = " ".join(" ".join(lines).split()) or type(error).__name__
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


@contextmanager
def translated(engine: str, given: str, *kinds: type[Exception]) -> Iterator[None]:
    """Failures of an engine become a WeakLabelError, those of a disk an OSError.

    Args:
        engine: its name, for the message.
        given: what it works on.
        kinds: the exceptions that it raises.

    Raises:
        OSError: the disk is full, or a limit of file sizes is reached.
        WeakLabelError: anything else of `kinds`.
    """
    try:
        yield
    except WeakLabelError:
        raise
    except Exception as error:
        if not isinstance(error, (*kinds, OSError)):
            raise
        for words, number in _DISK.items():
            if words in str(error).lower():
                raise OSError(
                    number,
                    f"the votes could not be written: {gist(error)}; make room, then run again",
                ) from error
        if isinstance(error, OSError):
            raise
        raise WeakLabelError(f"{engine} failed on {given}: {gist(error)}") from error
