"""A plugin's tests: what each function votes, and that it keeps the contract."""

import pytest

from weaklabel.testing import assert_votes, check_labeling_function
from weaklabel_tv import channel_tuned, speaking_rate, unfinished


@pytest.mark.parametrize("function", [speaking_rate, channel_tuned, unfinished])
def test_the_contract(function):
    check_labeling_function(function)


def test_speaking_rate():
    assert_votes(
        speaking_rate,
        [
            ({"transcript": "play the news", "duration": 1.2}, 0),
            ({"transcript": "play the news", "duration": 0.2}, -1),
            ({"transcript": "play", "duration": 9.0}, -1),
            ({"transcript": None, "duration": 1.0}, 0),
        ],
    )


def test_channel_tuned():
    assert_votes(
        channel_tuned,
        [
            ({"transcript": "Channel nine", "action": "play"}, 1),
            ({"transcript": "channel nine", "action": "back"}, -1),
            ({"transcript": "louder", "action": "back"}, 0),
        ],
    )


def test_unfinished():
    assert_votes(
        unfinished,
        [({"transcript": "turn to the"}, -1), ({"transcript": "the news"}, 0)],
    )
