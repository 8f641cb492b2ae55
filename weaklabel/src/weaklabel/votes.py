"""Votes and the expressions that cast them.

A vote is `ACCEPT` (the transcript is right), `REJECT` (it is wrong) or `ABSTAIN` (the function
looked and kept silent, which is evidence, too). Where a function had nothing to look at there is no
vote: null in a table, `MISSING` in an array.

What a function looks at in a session is said with windows: expressions that are computed the same
on every engine, because their order is total (`timestamp`, ties by `query_id`) and their nulls are
settled here. A query whose `session_id` or `timestamp` is null has no place in a session: every
window is null for it, and it is no other query's neighbor.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, Literal, TypeAlias

import narwhals as nw_main
import narwhals.stable.v2 as nw

Vote: TypeAlias = Literal[-1, 0, 1]

ACCEPT: Final = 1
ABSTAIN: Final = 0
REJECT: Final = -1
#: No vote, for there was no input. Arrays have no null; this value fits no sum of votes.
MISSING: Final = -128

# Columns of votes start with this, and no column of the log does.
PREFIX: Final = "lf:"

SESSION: Final = "session_id"
ORDER: Final = ("timestamp", "query_id")

# The column of `log_length`, in the frames of functions of scope "log".
LOG_LENGTH: Final = "__weaklabel_log_length"

# Words that `normalized` leaves as they are.
_PLAIN: Final = r"^[a-z0-9']+( [a-z0-9']+)*\z"

# The conditions that votes are made of, while somebody listens.
_CONDITIONS: ContextVar[list[tuple[str, Any]] | None] = ContextVar("conditions", default=None)

#: What a labeling function that uses a session window requires.
SESSION_COLUMNS: Final = (SESSION, "timestamp")


def vote(*, accept: Any = None, reject: Any = None) -> nw.Expr:
    """ACCEPT where one condition holds, REJECT where the other does, else ABSTAIN.

    Args:
        accept: boolean expression; null counts as false.
        reject: boolean expression; null counts as false.

    Where both hold the evidence contradicts itself: ABSTAIN.

    Raises:
        TypeError: neither is given, or one is not an expression.
    """
    if accept is None and reject is None:
        raise TypeError("vote() needs accept=, reject=, or both")
    yes = nw.lit(ABSTAIN) if accept is None else _holds("accept", accept)
    no = nw.lit(ABSTAIN) if reject is None else _holds("reject", reject)
    return (yes - no).cast(nw.Int8)


def accept_if(condition: nw.Expr) -> nw.Expr:
    """ACCEPT where the boolean expression holds, else ABSTAIN (null: ABSTAIN)."""
    return vote(accept=condition)


def reject_if(condition: nw.Expr) -> nw.Expr:
    """REJECT where the boolean expression holds, else ABSTAIN (null: ABSTAIN)."""
    return vote(reject=condition)


def next_in_session(column: str) -> nw.Expr:
    """The column's value at the session's next query; null at the last one."""
    return nw.when(_placed()).then(_shifted(column, -1))


def previous_in_session(column: str) -> nw.Expr:
    """The column's value at the session's query before; null at the first one."""
    # Queries without a timestamp sort before the others: the first real one must not see them.
    return nw.when(_placed() & ~_shifted("timestamp", 1).is_null()).then(_shifted(column, 1))


def position_in_session() -> nw.Expr:
    """1 for the session's first query, 2 for its second, and so on."""
    counted = nw.col("timestamp").cum_count().over(SESSION, order_by=ORDER)
    return nw.when(_placed()).then(counted)


def session_length() -> nw.Expr:
    """Number of queries in the session."""
    return nw.when(_placed()).then(nw.col("timestamp").count().over(SESSION))


def occurrences(column: str) -> nw.Expr:
    """Number of times that the row's value of a column occurs in the whole log; null for null.

    A function that uses this looks beyond the session: declare it with `scope="log"`.
    """
    return nw.when(~nw.col(column).is_null()).then(nw.len().over(column))


def log_length() -> nw.Expr:
    """Number of queries in the log, the same in every row.

    For functions of scope "log" alone, as `occurrences` is: their frame has it as a column.
    """
    return nw.col(LOG_LENGTH)


def normalized(column: str | nw.Expr) -> nw.Expr:
    """Lower case, runs of punctuation, symbols and space as one space, none at the ends.

    The nearest that every engine can say to the normalizer "basic" (see `weaklabel.text`).
    """
    text = nw.col(column) if isinstance(column, str) else column
    # Most ASRs write like this already, and to look is cheaper than to rewrite.
    plain = text.str.contains(_PLAIN)
    # Engines lower-case two letters differently: final sigma, and the Turkish dotted capital I.
    changed = nw.when(~plain).then(text).str.to_lowercase()
    changed = changed.str.replace_all("ς", "σ", literal=True)
    changed = changed.str.replace_all("i\u0307", "i", literal=True)
    changed = changed.str.replace_all("[’ʼ]", "'")
    changed = changed.str.replace_all(r"[^\p{L}\p{M}\p{N}']+", " ").str.strip_chars(" ")
    return nw.when(plain).then(text).otherwise(changed)


@contextmanager
def conditions() -> Iterator[list[tuple[str, Any]]]:
    """The conditions, with "accept" or "reject", of all votes that are made in the block.

    An expression does not tell of which type it is before it meets a table: whoever has one can see
    then whether the conditions are boolean there.
    """
    found: list[tuple[str, Any]] = []
    token = _CONDITIONS.set(found)
    try:
        yield found
    finally:
        _CONDITIONS.reset(token)


def _placed() -> nw.Expr:
    return ~(nw.col(SESSION).is_null() | nw.col("timestamp").is_null())


def _shifted(column: str, by: int) -> nw.Expr:
    return nw.col(column).shift(by).over(SESSION, order_by=ORDER)


def _holds(side: str, condition: Any) -> Any:
    # Expressions of narwhals' main namespace work in frames of the stable one as well.
    if not isinstance(condition, nw_main.Expr):
        raise TypeError(
            f"{side}= takes a boolean narwhals expression such as"
            f" nw.col('confidence') > 0.9, not {condition!r}"
        )
    if (conditions := _CONDITIONS.get()) is not None:
        conditions.append((side, condition))
    # 0 or 1, also for null.
    return nw.max_horizontal(condition.cast(nw.Int8), nw.lit(ABSTAIN, nw.Int8))
