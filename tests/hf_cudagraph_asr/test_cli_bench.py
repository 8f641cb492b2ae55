"""`hf-cudagraph-asr bench`, and the measuring behind it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import CASES, plan_for
from tiny_recognizer import RATE, save_recognizer

from hf_cudagraph_asr import BucketPlan
from hf_cudagraph_asr.cli import main
from hf_cudagraph_asr.cli.bench import Result, contending, lines, replay, results

LENGTHS = [310, 700, 299, 650, 840, 100, 512, 300]  # samples; the last bucket holds about 700


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_recognizer(tmp_path_factory.mktemp("recognizer"))


@pytest.fixture(scope="module")
def plan() -> BucketPlan:
    return plan_for(CASES["wav2vec2-group"].build(), (300, 700), batch_sizes=(1,), rate=RATE)


def measured(model: Any, plan: BucketPlan, *backends: str) -> list[Result]:
    with contending(model, plan, backends) as contenders:
        replay(contenders, LENGTHS[:1])
        return results(contenders, *replay(contenders, LENGTHS))


def test_every_contender_answers_every_query(plan: BucketPlan) -> None:
    model = CASES["wav2vec2-group"].build()
    own, attributes = {n: t.data_ptr() for n, t in model.state_dict().items()}, dict(vars(model))
    found = measured(model, plan, "eager", "eager+mask", "export")
    stock, bare, *eager, export = found
    assert [one.name for one in found] == ["stock", "no mask", "eager", "eager+mask", "export"]
    for one in found:
        assert 0 < one.p50 <= one.p95 <= one.p99
        assert one.same_frames == 1  # float32: not a token is another
    assert stock.over_stock == bare.over_no_mask == 1
    assert export.misses == {"longer than the last bucket": 1}
    assert export.start_seconds > 0
    assert export.memory > 0
    # What was computed, beside what the queries of both replays asked for.
    served = [length for length in [LENGTHS[0], *LENGTHS] if plan.bucket_for(length)]
    filled = sum(plan.geometry.frames(length) for length in served)
    computed = sum(b.frames for length in served if (b := plan.bucket_for(length)))
    assert export.padding == pytest.approx(computed / filled - 1)
    for one in (stock, bare, *eager):
        assert (one.padding, one.misses) == (0, {})
    # The model itself was not enabled, and each pool is gone.
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == own
    assert vars(model) == attributes


def test_a_backend_that_does_not_exist_is_refused(plan: BucketPlan) -> None:
    model = CASES["wav2vec2-group"].build()
    for name in ("tensorrt", "eager+maskless"):
        with (
            pytest.raises(ValueError, match="no backend"),
            contending(model, plan, ["eager", name]),
        ):
            pass
    assert "forward" not in vars(model)


def slow(own: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        time.sleep(seconds)
        return own(*args, **kwargs)

    return forward


def test_a_slower_model_is_said_to_be_slower(plan: BucketPlan) -> None:
    model = CASES["wav2vec2-group"].build()
    model.forward = slow(model.forward, 0.1)
    stock, bare, eager = measured(model, plan, "eager")
    assert min(stock.p50, bare.p50) >= 100
    # Takes a few milliseconds, on a busy machine too.
    assert min(eager.over_stock, eager.over_no_mask) > 1.5
    assert eager.p50 < 70


def test_other_tokens_are_counted(plan: BucketPlan) -> None:
    model = CASES["wav2vec2-group"].build()
    own = model.forward

    def backwards(*args: Any, **kwargs: Any) -> Any:
        output = own(*args, **kwargs)
        if kwargs.get("attention_mask") is None:
            output.logits = -output.logits
        return output

    model.forward = backwards
    found = {one.name: one.same_frames for one in measured(model, plan, "eager")}
    assert found == {"stock": 1, "no mask": 0, "eager": 1}


def test_figures_are_of_the_queries(plan: BucketPlan) -> None:
    with contending(CASES["wav2vec2-group"].build(), plan, []) as contenders:
        milliseconds = np.random.default_rng(0).permutation(np.arange(1.0, 102.0))
        taken = np.stack([milliseconds, milliseconds / 2])
        stock, bare = results(contenders, taken, np.array([1.0, 0.25]))
    assert (stock.p50, stock.p95, stock.p99) == (51, 96, 100)
    assert (stock.over_no_mask, bare.over_stock, bare.same_frames) == (0.5, 2, 0.25)
    shown = list(lines([stock, bare]))
    assert len({len(line) for line in shown}) == 1
    assert len(shown[0]) < 80
    assert "25%" in shown[2]


# --- the command


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: BucketPlan) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    plan.save("plan.json")
    return tmp_path


def bench(*arguments: object) -> int:
    return main(["bench", *map(str, arguments), "--out", "bench.json", "--device", "cpu"])


def test_a_model_and_a_plan_are_measured(
    here: Path, folder: Path, plan: BucketPlan, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--queries", 6, "--backends", "eager, eager+mask", "--dtype", "bfloat16"]
    assert bench("--model", folder, "--plan", "plan.json", *options) == 0
    shown = capsys.readouterr().out
    for word in ("no mask", "eager+mask", "p99", "bench.json"):
        assert word in shown
    found = json.loads((here / "bench.json").read_text())
    assert found["queries"] == 6
    assert found["dtype"] == "bfloat16"
    assert found["captured_frames"] == [bucket.frames for bucket in plan.buckets]
    assert set(found["versions"]) == {"torch", "transformers"}
    assert [one["name"] for one in found["results"]][2:] == ["eager", "eager+mask"]
    assert sorted(os.listdir()) == ["bench.json", "plan.json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backends", "tensorrt"], "no backend 'tensorrt'"),
        (["--model", "nowhere"], "'nowhere'"),
        (["--plan", "missing.json"], "missing.json"),
        (["--plan", "bench.json", "--out", "bench.json"], "would be replaced"),
        (["--out", "MODEL/config.json"], "would be replaced"),
        (["--queries", "0"], "--queries"),
        (["--dtype", "int4"], "no dtype 'int4'"),
        (["--out", "nowhere/b.json"], "no folder nowhere"),
        (["--out", "plan.json/b.json"], "plan.json is a file"),
        (["--model"], "--model"),
    ],
)
def test_a_mistake_is_a_message_and_exit_code_2(
    here: Path,
    folder: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    defaults = ["--model", str(folder), "--plan", "plan.json", "--out", "bench.json"]
    given = [argument.replace("MODEL", str(folder)) for argument in arguments]
    assert main(["bench", *defaults, "--device", "cpu", *given]) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert "Traceback" not in shown.err
    assert os.listdir() == ["plan.json"]


def test_a_plan_for_another_geometry_is_refused(
    here: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = CASES["wav2vec2-group"].build(conv_stride=(5, 2, 4))
    plan_for(model, (300,), rate=RATE).save("plan.json")
    assert bench("--model", folder, "--plan", "plan.json") == 2
    assert "this plan is for" in capsys.readouterr().err
