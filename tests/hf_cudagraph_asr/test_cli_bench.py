"""`hf-cudagraph-asr bench`, and the measuring behind it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from tiny_models import CASES, plan_for
from tiny_recogniser import RATE, save_recogniser

from hf_cudagraph_asr.bench import STOCK, STOCK_NO_MASK, benchmark, lognormal, random_model
from hf_cudagraph_asr.bench_report import Latency, Report
from hf_cudagraph_asr.cli import main
from hf_cudagraph_asr.plan import BucketPlan

SECONDS = [0.31, 0.7, 0.299, 0.65, 0.84, 0.1, 0.512, 0.3]


@pytest.fixture(scope="module")
def model() -> Any:
    return CASES["wav2vec2-group"].build()


@pytest.fixture(scope="module")
def plan(model: Any) -> BucketPlan:
    return plan_for(model, (300, 700), batch_sizes=(1,), rate=RATE)


@pytest.fixture(scope="module")
def report(model: Any, plan: BucketPlan) -> Report:
    return benchmark(model, SECONDS, plan, backends=["eager", "export", "export+mask"])


def test_everything_answers_every_query(report: Report) -> None:
    names = [contender.name for contender in report.contenders]
    assert names == [STOCK, STOCK_NO_MASK, "eager", "export", "export+mask"]
    assert report.queries == len(SECONDS)
    assert report.seconds == pytest.approx(sum(SECONDS))
    for contender in report.contenders:
        latency = contender.latency
        assert 0 < latency.p50 <= latency.p95 <= latency.p99
        assert contender.same_frames == 1  # float32: not a token is another
    assert report.contenders[0].speedup == 1


def test_padding_and_misses_are_those_of_the_plan(report: Report, plan: BucketPlan) -> None:
    stock, _, eager, export, masked = report.contenders
    lengths = [round(seconds * RATE) for seconds in SECONDS]
    held = [length for length in lengths if plan.bucket_for(length) is not None]
    filled = sum(plan.geometry.frames(length) for length in held)
    computed = sum(bucket.frames for length in held if (bucket := plan.bucket_for(length)))
    for contender in (export, masked):
        assert contender.padding == pytest.approx(computed / filled - 1)
        assert contender.misses == {"longer than the last bucket": 1}
        assert [bucket.frames for bucket in contender.buckets] == [b.frames for b in plan.buckets]
        # .3, .299 and .1 s go into the first; .84 s into none.
        assert [bucket.queries for bucket in contender.buckets] == [3, 4]
        assert contender.start_seconds > 0
        assert contender.memory > 0
    for contender in (stock, eager):
        assert (contender.padding, contender.buckets) == (0, ())
        assert not contender.misses


def test_the_model_stays_as_it_is(model: Any, plan: BucketPlan) -> None:
    before = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    hooks = dict(vars(model))
    with pytest.raises(ValueError, match="no backend 'tensorrt'"):
        benchmark(model, SECONDS, plan, backends=["eager", "tensorrt"])
    benchmark(model, SECONDS[:1], plan)
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == before
    assert vars(model) == hooks


def slow(own: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        time.sleep(seconds)
        return own(*args, **kwargs)

    return forward


def test_who_is_slower_is_said_to_be_slower(plan: BucketPlan) -> None:
    model = CASES["wav2vec2-group"].build()
    model.forward = slow(model.forward, 0.15)
    stock, plain, eager = benchmark(model, SECONDS[:4], plan).contenders
    for contender in (stock, plain):
        assert contender.latency.p50 >= 150
    # Takes a few milliseconds, on a busy machine too.
    assert eager.speedup > 1.5
    assert eager.latency.p50 < 100


def test_other_tokens_are_counted(plan: BucketPlan) -> None:
    model = CASES["wav2vec2-group"].build()
    own = model.forward

    def backwards(*args: Any, **kwargs: Any) -> Any:
        output = own(*args, **kwargs)
        if kwargs.get("attention_mask") is None:
            output.logits = -output.logits
        return output

    model.forward = backwards
    found = {c.name: c.same_frames for c in benchmark(model, SECONDS, plan).contenders}
    assert found[STOCK] == found["eager"] == 1
    assert found[STOCK_NO_MASK] == 0


@pytest.mark.parametrize("durations", [[], [0.01], [float("nan")]])
def test_durations_that_cannot_be_replayed_are_refused(
    model: Any, plan: BucketPlan, durations: list[float]
) -> None:
    with pytest.raises(ValueError, match="expected"):
        benchmark(model, durations, plan)


def test_quantiles_are_of_the_queries() -> None:
    milliseconds = np.random.default_rng(0).permutation(np.arange(1.0, 102.0))
    assert Latency.of(milliseconds) == Latency(51.0, 51.0, 96.0, 100.0)


def test_a_lognormal_traffic_is_one() -> None:
    seconds = lognormal(50_000)
    assert np.median(seconds) == pytest.approx(1.8, rel=0.01)
    assert np.log(seconds).std() == pytest.approx(0.5, rel=0.02)
    assert seconds.min() >= 0.1
    np.testing.assert_array_equal(lognormal(100, seed=3), lognormal(100, seed=3))
    assert not np.array_equal(lognormal(100, seed=3), lognormal(100, seed=4))


@pytest.mark.parametrize(("name", "millions"), [("base", 94.4), ("large", 315.5), ("tiny", 0.1)])
def test_random_models_have_the_size_of_their_names(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = random_model(name)
    found = sum(weight.numel() for weight in model.parameters()) / 1e6
    assert found == pytest.approx(millions, abs=0.06)
    assert not model.training


# --- the command


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


def bench(*arguments: object) -> int:
    return main(["bench", *map(str, arguments), "--out", "bench.json", "--device", "cpu"])


def test_random_weights_are_measured(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--queries", 6, "--graphs", 2, "--backends", "eager,eager+mask"]
    assert bench("--model", "tiny", *options) == 0
    shown = capsys.readouterr().out
    for word in ("stock, no mask", "eager+mask", "p99", "× stock", "6 queries"):
        assert word in shown
    assert "…" not in shown
    found = json.loads((here / "bench.json").read_text())
    assert found["queries"] == 6
    assert found["seconds"] == pytest.approx(lognormal(6).sum(), abs=6 / 16_000)
    assert len(found["frames"]) == 2
    assert set(found["versions"]) == {"torch", "transformers", "python"}
    assert [c["name"] for c in found["contenders"]][2:] == ["eager", "eager+mask"]
    for contender in found["contenders"]:
        assert contender["latency"]["p50"] > 0
    assert os.listdir() == ["bench.json"]


def test_a_model_of_ones_own_a_log_and_a_plan(here: Path, plan: BucketPlan) -> None:
    folder = save_recogniser(here / "model")
    plan.save(here / "plan.json")
    pl.DataFrame({"length": [0.3, 0.3, 0.6]}).write_csv("log.csv")
    log = ["--durations", "log.csv", "--column", "length", "--plan", "plan.json"]
    options = ["--queries", 20, "--dtype", "bfloat16", "--backends", "export"]
    assert bench("--model", folder, *log, *options) == 0
    found = json.loads((here / "bench.json").read_text())
    assert found["dtype"] == "bfloat16"
    assert found["frames"] == [bucket.frames for bucket in plan.buckets]
    export = found["contenders"][2]
    assert sum(bucket["queries"] for bucket in export["buckets"]) == 20
    assert 6 <= found["seconds"] <= 12
    # No frame is added: both lengths are a bucket's.
    assert export["padding"] == pytest.approx(0, abs=0.2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "tiny", "--backends", "tensorrt"], "no backend 'tensorrt'"),
        (["--model", "tiny", "--backends", ""], "no backend ''"),
        (["--model", "nowhere"], "'nowhere'"),
        (["--model", "tiny", "--plan", "missing.json"], "missing.json"),
        (["--model", "tiny", "--durations", "missing.csv"], "no file or folder missing.csv"),
        (["--model", "tiny", "--durations", "log.csv", "--column", "x"], "log.csv has no 'x'"),
        (["--model", "tiny", "--plan", "plan.json", "--backends", "export"], "this plan is for"),
        (["--model", "tiny", "--queries", "0"], "--queries"),
        (["--model", "tiny", "--dtype", "int4"], "no dtype 'int4'"),
        (["--model", "tiny", "--out", "nowhere/b.json"], "no folder nowhere"),
        ([], "Missing option '--model'"),
    ],
)
def test_a_mistake_is_a_message_and_exit_code_2(
    here: Path,
    plan: BucketPlan,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plan.save(here / "plan.json")
    (here / "log.csv").write_text("duration\n1.0\n")
    defaults = ["--out", "bench.json", "--device", "cpu", "--queries", "2"]
    assert main(["bench", *defaults, *arguments]) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert "Traceback" not in shown.err
    assert sorted(os.listdir()) == ["log.csv", "plan.json"]
