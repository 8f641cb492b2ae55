"""What a declaration must hold, and parameters typed by their defaults."""

import json
import os
import subprocess
import sys
from dataclasses import FrozenInstanceError, asdict
from datetime import timedelta
from functools import partial, wraps

import narwhals as nw_main
import narwhals.stable.v2 as nw
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weaklabel import ABSTAIN, WeakLabelError, accept_if, labeling_function, vote
from weaklabel.functions import rapid_repetition, second_asr_agreement
from weaklabel.labeling import Identity


@labeling_function(requires=["confidence", "{other}"], family="asr")
def sure(
    least: float = 0.5,
    times: int = 2,
    other: str = "dwell",
    strict: bool = False,
    within: timedelta = timedelta(seconds=1),
    words: tuple[str, ...] = ("a", "b"),
):
    """Accept what is
    sure.

    And more.
    """
    return accept_if(nw.col("confidence") > least)


def test_a_declaration_holds_what_was_declared():
    assert (sure.name, sure.family, sure.column) == ("sure", "asr", "lf:sure")
    assert sure.columns == ("confidence", "dwell")
    assert sure.with_parameters(other="x").columns == ("confidence", "x")
    assert sure.description == "Accept what is sure."
    assert list(sure.parameters) == ["least", "times", "other", "strict", "within", "words"]
    with pytest.raises(FrozenInstanceError):
        sure.name = "other"


def test_a_decorated_function_stays_callable():
    @labeling_function()
    def plain():
        return accept_if(nw.col("x") > 0)

    assert plain.name == "plain"
    frame = nw.from_native(pl.DataFrame({"x": [1, -1, None]}))
    assert frame.select(v=plain())["v"].to_list() == [1, 0, 0]


def test_parameters_reach_the_expression():
    frame = nw.from_native(pl.DataFrame({"confidence": [0.4, 0.6]}))
    loose = sure.with_parameters(least="0.3")
    assert frame.select(v=sure.expression())["v"].to_list() == [0, 1]
    assert frame.select(v=loose.expression())["v"].to_list() == [1, 1]


@pytest.mark.parametrize(
    ("name", "given_", "expected"),
    [
        ("least", "0.25", 0.25),
        ("least", 1, 1.0),
        ("times", "3", 3),
        ("times", 3.0, 3),
        ("strict", "true", True),
        ("strict", "No", False),
        ("strict", True, True),
        ("within", 90, timedelta(seconds=90)),
        ("within", "250ms", timedelta(milliseconds=250)),
        ("within", "1.5 min", timedelta(seconds=90)),
        ("within", "2h", timedelta(hours=2)),
        ("within", timedelta(days=1), timedelta(days=1)),
        ("words", "x, y", ("x", "y")),
        ("within", 1e-6, timedelta(microseconds=1)),
        ("within", 0.0, timedelta(0)),
        ("words", ["x"], ("x",)),
        ("words", ["", "a, b"], ("", "a, b")),
        ("words", "", ()),
        ("words", "a,,b,", ("a", "b")),
        ("words", [], ()),
        ("other", "", ""),
    ],
)
def test_a_value_is_read_as_the_type_of_the_default(name, given_, expected):
    value = sure.with_parameters(**{name: given_}).parameters[name]
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("name", "given_", "expected"),
    [
        ("least", "much", "a finite number"),
        ("least", "nan", "a finite number"),
        ("least", True, "a finite number"),
        ("times", 1.5, "a whole number"),
        ("times", float("inf"), "a whole number"),
        ("strict", 1, "true or false"),
        ("within", "10 parsecs", "a duration"),
        ("within", "-3s", "a duration"),
        ("within", "9" * 30, "a duration"),
        ("within", 1e300, "a duration"),
        ("within", -1, "a duration"),
        ("within", float("nan"), "a duration"),
        ("within", True, "a duration"),
        ("words", [1], "a list of texts"),
        ("words", 1, "a list of texts"),
        ("other", 3, "a text"),
    ],
)
def test_a_value_that_does_not_fit_names_function_parameter_and_type(name, given_, expected):
    with pytest.raises(WeakLabelError, match=rf"parameter sure\.{name}: .* expected {expected}"):
        sure.with_parameters(**{name: given_})


def test_an_unknown_parameter_names_those_there_are():
    with pytest.raises(WeakLabelError, match=r"no parameter 'lest'.*least, times"):
        sure.with_parameters(lest=1)


@given(st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=9999)))
def test_durations_in_seconds_read_back_to_the_microsecond(duration):
    set_ = rapid_repetition.with_parameters(within=f"{duration.total_seconds():.6f}s")
    assert abs(set_.parameters["within"] - duration) <= timedelta(microseconds=1)


def no_default(x):
    return x


def positional(x=1, /):
    return x


def any_(**x):
    return x


def complex_(x=1j):
    return x


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (no_default, {}, "'x' needs a default .*rowwise=True"),
        (positional, {}, "passed by name"),
        (any_, {}, "passed by name"),
        (complex_, {}, "the default of 'x'"),
        (no_default, {"name": "a b"}, "a name is letters"),
        (no_default, {"name": "lf:x"}, "a name is letters"),
        (no_default, {"requires": "timestamp"}, r"takes a list of columns: \['timestamp'\]"),
        (no_default, {"inputs": {"a": nw.col("a")}}, "inputs= belongs to rowwise=True"),
        (no_default, {"scope": "world"}, "scope= is"),
        (lambda: 1, {"name": "f", "requires": ["{y}"]}, "names no parameter"),
        (lambda: 1, {"name": "f", "rowwise": True}, "takes the row first"),
        (lambda x=1: 1, {"name": "f", "requires": ["{x"]}, "a parameter in braces"),
        (lambda x=1: 1, {"name": "f", "requires": ["{}"]}, "names no parameter"),
        (lambda x=1: 1, {"name": "f", "requires": ["{x.real.much}"]}, "names no parameter"),
        (lambda: 1, {"name": "f", "requires": [1]}, "names of columns"),
        (["transcript"], {}, r"not \['transcript'\]; its options are given by name"),
        (sure, {}, "marks a function, not LabelingFunction"),
        (partial(no_default, x=1), {}, "marks a function"),
    ],
)
def test_a_declaration_that_contradicts_itself_is_refused(function, options, message):
    with pytest.raises(TypeError, match=message):
        labeling_function(**options)(function)


def test_a_function_that_raises_or_returns_no_expression_is_named():
    @labeling_function()
    def raises():
        return 1 // 0

    @labeling_function()
    def returns():
        return 1

    with pytest.raises(WeakLabelError, match="'raises' raised ZeroDivisionError"):
        raises.expression()
    with pytest.raises(WeakLabelError, match="'returns' returned int"):
        returns.expression()


def test_a_rowwise_function_has_no_expression():
    @labeling_function(rowwise=True, requires=["transcript"])
    def long(row, letters: int = 3):
        return 1 if len(row["transcript"]) > letters else ABSTAIN

    assert long({"transcript": "abcd"}) == 1
    with pytest.raises(TypeError, match="row-wise"):
        long.expression()


def test_columns_whose_null_is_data_are_not_needed():
    @labeling_function(requires=["confidence", "{other}", "dwell"], nullable=["{other}"])
    def some(other: str = "action"):
        return accept_if(nw.col(other).is_null())

    assert some.inputs_needed == ("confidence", "dwell")
    assert some.with_parameters(other="dwell").inputs_needed == ("confidence",)
    with pytest.raises(TypeError, match=r"nullable= names \['x'\], which requires= does not"):
        labeling_function(requires=["y"], nullable=["x"])(some.function)


def test_the_source_hash_changes_with_the_source_and_not_with_the_name():
    def made(body):
        scope = {}
        exec(compile(f"def f():\n    return {body}", "<made>", "exec"), scope)
        return labeling_function()(scope["f"])

    assert made("1").source_hash == made("1").source_hash != made("2").source_hash
    assert len(sure.source_hash) == 12


def test_the_source_hash_tells_functions_of_one_source_apart():
    def says(word):
        @labeling_function(name=f"says_{word}", requires=["transcript"])
        def function():
            return accept_if(nw.col("transcript") == word)

        return function

    assert says("play").source_hash == says("play").source_hash != says("stop").source_hash


def test_the_source_hash_holds_the_decorators_and_sees_through_wrappers():
    def counted(function):
        @wraps(function)
        def wrapper(*args, **kwargs):
            return function(*args, **kwargs)

        return wrapper

    @labeling_function()
    @counted
    def one():
        return accept_if(nw.col("x") == 1)

    @labeling_function()
    @counted
    def two():
        return accept_if(nw.col("x") == 2)

    assert one.source_hash != two.source_hash


def test_an_identity_says_what_makes_it_another_function():
    known = sure.identity("acme-functions", "1.0")
    assert Identity.from_dict({**asdict(known), "family": "asr"}) == known
    assert json.loads(json.dumps(asdict(known)))["parameters"]["within"] == "1s"
    assert sure.with_parameters(words=["a", "b"]).identity().changes(known) == []
    other = sure.with_parameters(words=["b"], within="2min").identity("acme-functions", "2.0")
    assert other.source == known.source
    assert other.changes(known) == ["within '1s' → '120s'", "words ['a', 'b'] → ['b']"]

    @labeling_function(name="sure")
    def another():
        return accept_if(nw.col("confidence") > 0)

    assert another.identity().changes(known)[0].startswith(f"source {known.source} → ")


def test_the_source_hash_of_a_function_without_a_source_is_the_same_in_every_process():
    probe = (
        "from weaklabel import labeling_function\n"
        "@labeling_function(rowwise=True)\n"
        "def f(row, least: int = 2):\n"
        "    words = sorted(row['transcript'].split(), key=lambda word: len(word))\n"
        "    return 1 if words[0] in {'play', 'stop', 'next', 'louder'} else 0\n"
        "print(f.source_hash)"
    )
    hashes = {
        subprocess.run(
            [sys.executable, "-c", f"exec(compile({probe!r}, '<shell>', 'exec'))"],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(hashes) == 1


def test_expressions_of_either_narwhals_namespace_are_taken():
    @labeling_function()
    def main():
        return accept_if(nw_main.col("x") > 0)

    frame = nw.from_native(pl.DataFrame({"x": [1, -1]}))
    assert frame.select(v=main.expression())["v"].to_list() == [1, 0]


def test_contradicting_evidence_and_nulls_abstain():
    frame = nw.from_native(
        pl.DataFrame(
            {
                "a": [True, True, False, False, None, None],
                "r": [True, False, True, None, True, None],
            }
        )
    )
    both = frame.select(v=vote(accept=nw.col("a"), reject=nw.col("r")))
    assert both["v"].to_list() == [0, 1, -1, 0, -1, 0]
    assert both.schema["v"] == nw.Int8


def test_a_vote_needs_conditions():
    with pytest.raises(TypeError, match="accept=, reject="):
        vote()
    with pytest.raises(TypeError, match="boolean narwhals expression"):
        accept_if(True)


def test_agreement_need_not_reject():
    frame = nw.from_native(
        pl.DataFrame(
            {"transcript": ["Play It!", "a", None], "second_transcript": ["play it", "b", "c"]}
        )
    )
    only = second_asr_agreement.with_parameters(reject="false")
    assert frame.select(v=second_asr_agreement.expression())["v"].to_list() == [1, -1, 0]
    assert frame.select(v=only.expression())["v"].to_list() == [1, 0, 0]
