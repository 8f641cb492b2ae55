"""Session windows against plain loops; the normalized text against the normalizer it stands for."""

from collections import Counter
from datetime import UTC, datetime, timedelta

import narwhals.stable.v2 as nw
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weaklabel import (
    WeakLabelError,
    apply,
    labeling_function,
    next_in_session,
    normalized,
    occurrences,
    position_in_session,
    previous_in_session,
    session_length,
    vote,
)
from weaklabel.text import find_normalizer

START = datetime(2026, 3, 1, tzinfo=UTC)

# Few sessions and times, so that ties and nulls meet.
rows = st.lists(
    st.tuples(
        st.sampled_from(["s", "t", None]),
        st.one_of(st.none(), st.integers(0, 4)),
        st.sampled_from(["a", "b", None]),
    ),
    max_size=12,
)


def log(rows, ids=None):
    return pl.DataFrame(
        {
            "query_id": ids or list(range(len(rows))),
            "session_id": [session for session, _, _ in rows],
            "timestamp": [None if t is None else START + timedelta(seconds=t) for _, t, _ in rows],
            "transcript": [text for _, _, text in rows],
        },
        schema={
            "query_id": pl.Int64,
            "session_id": pl.String,
            "timestamp": pl.Datetime("us", "UTC"),
            "transcript": pl.String,
        },
    )


@given(rows, st.randoms())
def test_windows_equal_a_loop_over_sessions(rows, random):
    ids = list(range(len(rows)))
    random.shuffle(ids)
    expected = dict.fromkeys(ids, (None, None, None, None))
    sessions = {}
    for query, (session, time, text) in zip(ids, rows, strict=True):
        if session is not None and time is not None:
            sessions.setdefault(session, []).append((time, query, text))
    for session in sessions.values():
        session.sort(key=lambda row: row[:2])
        for place, (_, query, _) in enumerate(session):
            expected[query] = (
                session[place + 1][2] if place + 1 < len(session) else None,
                session[place - 1][2] if place else None,
                place + 1,
                len(session),
            )
    seen = nw.from_native(log(rows, ids)).select(
        "query_id",
        following=next_in_session("transcript"),
        previous=previous_in_session("transcript"),
        position=position_in_session(),
        length=session_length(),
    )
    assert {row[0]: row[1:] for row in seen.iter_rows()} == expected


@given(rows)
def test_occurrences_count_the_whole_log(rows):
    counts = Counter(text for _, _, text in rows)
    seen = nw.from_native(log(rows)).select(n=occurrences("transcript"))["n"].to_list()
    assert seen == [None if text is None else counts[text] for _, _, text in rows]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Play -- IT!  ", "play it"),
        ("don't", "don't"),
        ("don’t", "don't"),
        ("ΣΑΣ", "σασ"),
        ("İstanbul", "istanbul"),
        ("...", ""),
        ("", ""),
        ("Ärger im 3. Stock", "ärger im 3 stock"),
        ("नमस्ते, दुनिया", "नमस्ते दुनिया"),
        ("مرحبا 🎬 بالعالم", "مرحبا بالعالم"),
        (None, None),
    ],
)
def test_text_is_normalized(text, expected):
    frame = nw.from_native(pl.DataFrame({"x": [text]}, schema={"x": pl.String}))
    assert frame.select(y=normalized("x"))["y"].to_list() == [expected]


# Where both rules mean the same: no compatibility forms, no apostrophes at the end of words.
@given(st.text(alphabet="abcÀé Σ.,-!?1 2\t'", max_size=12))
def test_the_expression_agrees_with_the_normalizer(text):
    frame = nw.from_native(pl.DataFrame({"x": [text]}))
    mine = frame.select(y=normalized("x"))["y"].to_list()[0]
    words = [word.strip("'") for word in mine.split()]
    basic = find_normalizer("basic")(text).replace("ς", "σ")
    assert " ".join(filter(None, words)) == basic


@pytest.mark.parametrize("values", [[1, 0, -1, None], [0.5, None], ["play", None]])
@pytest.mark.parametrize("lazy", [False, True])
def test_a_condition_must_be_true_or_false(values, lazy):
    @labeling_function(requires=["x"])
    def odd():
        """Forget to compare."""
        return vote(accept=nw.col("x"), reject=nw.col("x").is_null())

    table = pl.DataFrame({"query_id": list(range(len(values))), "x": values})
    with pytest.raises(WeakLabelError, match="'odd' gives accept a condition that is"):
        apply([odd], table.lazy() if lazy else table)
