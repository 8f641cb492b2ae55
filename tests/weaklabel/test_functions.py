"""The built-in functions on rows written by hand: each threshold from both sides."""

from datetime import timedelta

import pytest

from weaklabel import functions
from weaklabel.labeling import LabelingFunction
from weaklabel.testing import assert_votes

NAN, INF = float("nan"), float("inf")


def said(text, at, **more):
    return {"transcript": text, "timestamp": at, **more}


def test_session_position_accepts_the_last_query_of_each_session():
    rows = [{"session_id": "s"}, {"session_id": "s"}, {"session_id": "t"}, {"session_id": None}]
    assert_votes(functions.session_position, list(zip(rows, [0, 1, 1, None], strict=True)))
    last_two = functions.session_position.with_parameters(last=2)
    assert_votes(last_two, list(zip([{}, {}, {}], [0, 1, 1], strict=True)))
    none = functions.session_position.with_parameters(last=0)
    assert_votes(none, [({}, 0), ({}, 0)])


def test_session_position_breaks_ties_by_query_id_and_leaves_out_who_has_no_time():
    assert_votes(
        functions.session_position,
        [
            ({"query_id": 7, "timestamp": 5}, 1),
            ({"query_id": 3, "timestamp": 5}, 0),
            ({"query_id": 9, "timestamp": None}, None),
        ],
    )


@pytest.mark.parametrize(
    ("confidence", "vote"),
    [
        *[(0.9, 1), (0.8999, 0), (1.0, 1), (0.5, 0), (0.4999, -1), (0.0, -1)],
        *[(None, None), (NAN, None)],
        # No confidence: nothing is said of what breaks the log's contract.
        *[(1.5, 0), (95.0, 0), (INF, 0)],
    ],
)
def test_asr_confidence_accepts_from_high_on_and_rejects_below_low(confidence, vote):
    assert_votes(functions.asr_confidence, [({"confidence": confidence}, vote)])


def test_asr_confidence_says_nothing_where_its_thresholds_cross():
    crossed = functions.asr_confidence.with_parameters(high=0.3, low=0.6)
    assert_votes(
        crossed,
        [({"confidence": 0.7}, 1), ({"confidence": 0.4}, 0), ({"confidence": 0.2}, -1)],
    )


def test_rapid_repetition_rejects_what_is_followed_within_seconds():
    assert_votes(
        functions.rapid_repetition,
        [
            ({"timestamp": 0}, 0),  # 10 s is not within
            ({"timestamp": 10}, -1),
            ({"timestamp": 19.999}, -1),  # at the same time
            ({"timestamp": 19.999}, 0),
            ({"timestamp": 21, "session_id": "t"}, 0),
            ({"timestamp": 22, "session_id": None}, None),
            ({"timestamp": 23, "session_id": None}, None),
        ],
    )
    longer = functions.rapid_repetition.with_parameters(within="2min")
    assert_votes(longer, [({"timestamp": 0}, -1), ({"timestamp": 119}, 0)])
    never = functions.rapid_repetition.with_parameters(within=0)
    assert_votes(never, [({"timestamp": 0}, 0), ({"timestamp": 0}, 0)])


@pytest.mark.parametrize(
    ("seconds", "vote"),
    [(60.0, 1), (59.9, 0), (5.0, 0), (4.9, -1), (0.0, -1), (1e9, 1), (None, None), (NAN, None)],
)
def test_dwell_accepts_who_stayed_and_rejects_who_left_at_once(seconds, vote):
    assert_votes(functions.dwell, [({"dwell": seconds}, vote)])


def test_dwell_takes_its_thresholds():
    patient = functions.dwell.with_parameters(long=600, short=30)
    cases = [(600.0, 1), (599.0, 0), (30.0, 0), (29.0, -1)]
    assert_votes(patient, [({"dwell": seconds}, vote) for seconds, vote in cases])


def test_follow_up_action_goes_by_what_the_user_did_next():
    cases = [("play", 1), ("select", 1), ("back", -1), ("cancel", -1)]
    cases += [("none", 0), ("PLAY", 0), ("", 0), (None, None)]
    assert_votes(functions.follow_up_action, [({"action": what}, vote) for what, vote in cases])


def test_follow_up_action_takes_its_words():
    mine = functions.follow_up_action.with_parameters(accepted="buy, play", rejected=["play", "no"])
    cases = [("buy", 1), ("no", -1), ("select", 0), ("play", 0)]  # in both: contradiction
    assert_votes(mine, [({"action": what}, vote) for what, vote in cases])
    none = functions.follow_up_action.with_parameters(rejected="")
    assert_votes(none, [({"action": "back"}, 0), ({"action": ""}, 0), ({"action": "play"}, 1)])


@pytest.mark.parametrize(
    ("this", "following", "vote"),
    [
        ("play jazz", "play jazz", -1),
        ("play jazz", "Play: jazz!", -1),
        ("jazz", "play jazz now", -1),
        ("play jazz now", "play jazz", -1),
        ("play", "display", 0),
        ("play jazz", "play rock", 0),
        ("play jazz now", "play now", 0),
        ("", "play", 0),
        ("...", "play", 0),
        ("", "", 0),
        ("play", "?", 0),
        (None, "play", None),
        ("play", None, 0),
        ("电影", "电影", -1),
        ("don’t stop", "don't stop", -1),
    ],
)
def test_rephrasing_rejects_what_is_repeated_extended_or_cut_short(this, following, vote):
    silent = [None if text is None else 0 for text in (this, following)]
    rows = [said(this, 0), said(following, 59)]
    assert_votes(functions.rephrasing, list(zip(rows, [vote, silent[1]], strict=True)))
    late = [said(this, 0), said(following, 60)]
    assert_votes(functions.rephrasing, list(zip(late, silent, strict=True)))
    others = [said(this, 0), said(following, 1, session_id="t")]
    assert_votes(functions.rephrasing, list(zip(others, silent, strict=True)))


def test_rephrasing_takes_its_time():
    longer = functions.rephrasing.with_parameters(within=timedelta(minutes=5))
    assert_votes(longer, [(said("play", 0), -1), (said("play", 299), 0)])


@pytest.mark.parametrize(
    ("this", "following", "vote"),
    [
        ("jazz", "Jazz.", -1),
        ("jazz", "jabz", -1),  # 3 of 4 letters: from 0.75 on
        ("jazz", "jobz", 0),
        ("the blue harbour", "the new harbour", -1),  # 12 of 16
        ("the blue harbour", "the hew arbor", 0),
        ("", "", 0),
        ("!", "?", 0),
        (None, "jazz", None),
        ("jazz", None, 0),
    ],
)
def test_rephrasing_edit_distance_rejects_what_is_said_nearly_again(this, following, vote):
    function = functions.rephrasing_edit_distance
    silent = [None if text is None else 0 for text in (this, following)]
    rows = [said(this, 0), said(following, 59)]
    assert_votes(function, list(zip(rows, [vote, silent[1]], strict=True)))
    late = [said(this, 0), said(following, 60)]
    assert_votes(function, list(zip(late, silent, strict=True)))


def test_rephrasing_edit_distance_takes_its_parameters_and_needs_times():
    strict = functions.rephrasing_edit_distance.with_parameters(similarity=1, within="5s")
    assert_votes(
        strict,
        [(said("jazz", 0), 0), (said("jabz", 1), -1), (said("jabz", 5), 0), (said("x", 9), 0)],
    )
    assert_votes(
        functions.rephrasing_edit_distance,
        [
            (said("jazz", None), None),
            (said("jazz", 3), 0),
            (said("jazz", 4, session_id=None), None),
        ],
    )


def said_by_many(*texts):
    return [{"transcript": text, "session_id": str(n)} for n, text in enumerate(texts)]


def test_rarity_counts_the_whole_log():
    texts = ["play", "play", "play", "stop", "stop", "once", None, None, None, "Play"]
    third = functions.rarity.with_parameters(common=0.3, enough=10)
    votes = [1, 1, 1, 0, 0, -1, None, None, None, -1]
    assert_votes(third, list(zip(said_by_many(*texts), votes, strict=True)))
    twice = functions.rarity.with_parameters(rare=2, common=0.2, enough=10)
    votes = [1, 1, 1, -1, -1, -1, None, None, None, -1]
    assert_votes(twice, list(zip(said_by_many(*texts), votes, strict=True)))


def test_rarity_says_nothing_of_what_is_not_common_in_a_small_log():
    texts = ["play", "play", "play", "stop", "stop", "once"]
    small = functions.rarity.with_parameters(common=0.5, enough=7)
    votes = [1, 1, 1, None, None, None]
    assert_votes(small, list(zip(said_by_many(*texts), votes, strict=True)))
    # One of one is every query, and yet no sign of being common.
    assert_votes(functions.rarity, [({"transcript": "play"}, None)])
    assert_votes(functions.rarity, [({"transcript": "play"}, 1)] * 2)


AGREEMENT = [
    ("play it", "play it", 1),
    ("Play it!", "play  it", 1),
    ("play it", "play that", -1),
    ("play", "", -1),
    ("", "", 1),
    ("...", "", 1),
    (None, "play", None),
    ("play", None, None),
    (None, None, None),
]


@pytest.mark.parametrize(("first", "second", "vote"), AGREEMENT)
def test_second_asr_agreement_goes_by_equal_words(first, second, vote):
    row = {"transcript": first, "second_transcript": second}
    assert_votes(functions.second_asr_agreement, [(row, vote)])
    lenient = functions.second_asr_agreement.with_parameters(reject=False)
    assert_votes(lenient, [(row, vote if vote is None else max(vote, 0))])


@pytest.mark.parametrize("name", ["second_asr_agreement", "second_asr_wer"])
def test_the_second_asrs_column_can_be_named(name):
    function = getattr(functions, name).with_parameters(other="kaldi")
    assert function.columns == ("transcript", "kaldi")
    assert_votes(
        function,
        [({"transcript": "a", "kaldi": "a"}, 1), ({"transcript": "a", "kaldi": "b"}, -1)],
    )


@pytest.mark.parametrize("column", ["query_id", "session_id", "transcript"])
def test_the_second_asrs_column_may_be_one_that_every_log_has(column):
    function = functions.second_asr_agreement.with_parameters(other=column)
    rows = [{"query_id": "a", "session_id": "a", "transcript": "a"}]
    rows += [{"query_id": "b", "session_id": "b", "transcript": "b"}]
    assert_votes(function, [(row, 1) for row in rows])


@pytest.mark.parametrize(
    ("first", "second", "vote"),
    [
        ("Play it!", "play it", 1),
        ("play it now", "play it", 0),  # 1 of 3
        ("play it", "play that", -1),  # 1 of 2: from 0.5 on
        ("play", "play it", -1),  # over the longer one
        ("play it", "", -1),
        ("", "", 1),
        (None, "play", None),
        ("play", None, None),
    ],
)
def test_second_asr_wer_goes_by_the_share_of_words_that_differ(first, second, vote):
    row = {"transcript": first, "second_transcript": second}
    assert_votes(functions.second_asr_wer, [(row, vote)])


def test_second_asr_wer_takes_its_thresholds_and_says_nothing_where_they_cross():
    row = {"transcript": "a b c d", "second_transcript": "a b c x"}  # 0.25
    for accept, reject, vote in [
        (0.25, 0.5, 1),
        (0.24, 0.26, 0),
        (0.0, 0.25, -1),
        (0.25, 0.25, 0),
        (0.5, 0.1, 0),
    ]:
        function = functions.second_asr_wer.with_parameters(accept=accept, reject=reject)
        assert_votes(function, [(row, vote)])


def test_every_built_in_function_is_registered_and_documents_its_parameters():
    registered = []
    functions.weaklabel_labeling_functions(registered.append)
    assert registered == [
        value for value in vars(functions).values() if isinstance(value, LabelingFunction)
    ]
    for function in registered:
        documented = function.function.__doc__.partition("Args:")[2]
        assert all(f" {name}: " in documented for name in function.parameters), function.name
