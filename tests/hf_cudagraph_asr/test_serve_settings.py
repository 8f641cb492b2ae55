"""Settings: from YAML, from `serve run`'s strings, and refused with what was expected."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_cudagraph_asr.serve.settings import Batching, Limits, Settings

limits = st.builds(
    Limits,
    max_bytes=st.integers(1, 2**40),
    max_seconds=st.floats(1e-3, 1e6),
    timeout_s=st.floats(1e-3, 1e6),
    start_timeout_s=st.floats(1e-3, 1e6),
    retry_after_s=st.integers(0, 1000),
)
batching = st.builds(
    Batching,
    max_batch_size=st.none() | st.integers(1, 1000),
    batch_wait_s=st.floats(0, 1e3),
)
settings = st.builds(
    Settings,
    model=st.text(min_size=1),
    plan=st.none() | st.text(min_size=1),
    batch_sizes=st.none()
    | st.sets(st.integers(1, 64), min_size=1).map(lambda sizes: tuple(sorted(sizes))),
    replicas=st.integers(1, 100),
    cpus=st.floats(0, 64),
)


@given(limits | batching | settings)
def test_settings_come_back_from_what_a_yaml_holds(given: Any) -> None:
    assert type(given).of(given.to_dict()) == given


@given(limits)
def test_texts_are_read_as_the_values_they_spell(given: Limits) -> None:
    assert Limits.of({name: str(value) for name, value in given.to_dict().items()}) == given


def test_what_serve_run_passes_are_strings() -> None:
    found = Settings.of({"model": "m", "replicas": "2", "gpus": "0.5", "batch_sizes": "4,1,4"})
    assert found == Settings("m", replicas=2, gpus=0.5, batch_sizes=(1, 4))


def test_nothing_given_leaves_the_defaults() -> None:
    assert Limits.of(None) == Limits.of({}) == Limits()
    assert Batching.of({"max_batch_size": None}) == Batching()


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (Limits, {"max_byte": 1}, "no setting max_byte: expected some of max_bytes, max_seconds"),
        (Limits, {"max_bytes": 0}, "max_bytes is 0, expected a whole number from 1 up"),
        (Limits, {"max_bytes": 1.5}, "expected a whole number"),
        (Limits, {"max_bytes": True}, "max_bytes is True"),
        (Limits, {"max_bytes": None}, "max_bytes is None"),
        (Limits, {"max_seconds": "nan"}, "max_seconds is 'nan', expected a number above 0"),
        (Limits, {"max_seconds": float("inf")}, "max_seconds is inf"),
        (Limits, {"timeout_s": "1e999"}, "timeout_s"),
        (Limits, [("max_bytes", 1)], "settings are names with values"),
        (Batching, {"batch_wait_s": -1}, "expected a number from 0 up"),
        (Batching, {"max_batch_size": []}, "max_batch_size is"),
        (Settings, {}, "model is missing"),
        (Settings, None, "model is missing"),
        (Settings, {"model": ""}, "model is '', expected a text that is not empty"),
        (Settings, {"model": "m", "batch_sizes": "1,x"}, "such as 1,2,4"),
        (Settings, {"model": "m", "batch_sizes": []}, "such as 1,2,4"),
        (Settings, {"model": "m", "replicas": 0}, "replicas is 0"),
    ],
)
def test_what_is_wrong_is_named_with_what_was_expected(kind: Any, given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind.of(given)


def test_batches_are_no_larger_than_what_was_captured() -> None:
    assert Batching().rows((1, 4)) == 4
    assert Batching(max_batch_size=2).rows((1, 4)) == 2
    assert Batching(max_batch_size=64).rows((1, 4)) == 4
    assert Batching(max_batch_size=64).rows(()) == 64
    assert Batching().rows(()) == 8
