"""`hf-cudagraph-asr serve`: whatever can be checked is refused before Ray starts, in one line."""

from __future__ import annotations

import shutil
import socket
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import served  # noqa: F401 - imports Ray Serve without its warnings
from tiny_models import plan_for
from tiny_recognizer import RATE, save_recognizer
from transformers import AutoConfig

from hf_cudagraph_asr import plan_buckets
from hf_cudagraph_asr.cli import main
from hf_cudagraph_asr.cli.serve import NAME
from hf_cudagraph_asr.serve import ModelSettings, Recognizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, the same without some of its parts, and plans."""
    root = tmp_path_factory.mktemp("models")
    found = save_recognizer(root / "model")
    config = AutoConfig.from_pretrained(found)
    plan_for(config, (400, 900), (1,), RATE).save(root / "plan.json")
    plan_buckets([1.0, 2.0], graphs=1).save(root / "geometry.json")
    (root / "broken.json").write_text("{")
    shutil.copytree(found, root / "no-config").joinpath("config.json").unlink()
    return root


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What Ray would have been started with; here it never does."""
    calls: list[Any] = []

    def init(**options: Any) -> None:
        calls.append(options)
        raise RuntimeError("not in this test")

    monkeypatch.setattr("ray.init", init)
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"):
        monkeypatch.setenv(name, "0")  # which the command sets, and which is to be undone
    return calls


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--model nowhere/to/be", "nowhere/to/be is no folder of a model"),
        ("--model plan.json", "plan.json is no folder of a model"),
        ("--model no-config", "AutoConfig found nothing to load in "),
        ("--plan none.json", "No such file or directory: none.json"),
        ("--plan broken.json", "broken.json"),
        ("--plan geometry.json", "kernels"),
        ("--backend cud", "backend is 'cud': Input should be 'auto', 'cuda', 'compile', 'export'"),
        ("--backend cuda --device cpu", "the cuda backend needs a CUDA device, not the CPU"),
        ("--backend cuda", "GPUs on device auto are too many, torch sees 0"),
        ("--device cuda:7", "GPUs on device cuda:7 are too many, torch sees 0"),
        ("--device gpu", "device is 'gpu'"),
        ("--dtype int8", "dtype is 'int8': Input should be 'auto', 'float32', 'bfloat16' or"),
        ("--set batch_sizes=1,x", "batch_sizes.1 is 'x': Input should be a valid integer"),
        ("--replicas 2 --gpus 1", "2 x 1 GPUs on device auto are too many, torch sees 0"),
        ("--set max_second=9", "no setting max_second: expected some of max_bytes"),
        ("--set max_seconds=0", "max_seconds is '0': Input should be greater than 0"),
        ("--api-key s\u00e9same", "api_key is 's\u00e9same': String should match pattern"),
        ("--log-level loud", "'loud' is not one of 'debug', 'info', 'warning', 'error'"),
        ("--set max_seconds", "--set max_seconds: expected NAME=VALUE"),
    ],
)
def test_a_mistake_is_one_line_before_ray_starts(
    folder: Path,
    started: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: str,
    message: str,
) -> None:
    monkeypatch.chdir(folder)
    if "--model" not in options:
        options = f"--model model {options}"
    assert main(["serve", *options.split(), "--port", str(free_port())]) == 2
    output, error = capsys.readouterr()
    assert message in error
    assert error.startswith("hf-cudagraph-asr: error: ")
    assert (output, error.count("\n")) == ("", 1)
    assert not started


def test_a_port_in_use_is_named(
    folder: Path, started: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", "--model", str(folder / "model"), "--port", str(port)]) == 2
    error = capsys.readouterr().err
    assert f"127.0.0.1:{port} cannot be listened at (Address already in use)" in error
    assert main(["serve", "--model", str(folder / "model"), "--host", "256.0.0.1"]) == 2
    assert "256.0.0.1:8000 cannot be listened at" in capsys.readouterr().err
    assert not started


def test_without_the_extra_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], started: list[Any]
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "hf_cudagraph_asr.serve", None)
    assert main(["serve", "--model", "m", "--port", str(free_port())]) == 2
    assert 'pip install "hf-cudagraph-asr[serve]"' in capsys.readouterr().err


def test_what_is_right_is_given_to_ray_and_a_ray_that_does_not_start_is_no_traceback(
    folder: Path, started: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    options = f"--model {folder / 'model'} --plan {folder / 'plan.json'} --backend export"
    assert main(["serve", *options.split(), "--port", str(free_port())]) == 2
    assert "Ray did not start: not in this test" in capsys.readouterr().err
    assert started[0]["include_dashboard"] is False


def test_the_key_and_the_log_level_are_given_to_serve(
    folder: Path, started: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def run(application: Any, **options: Any) -> None:
        given.update(options, limits=application._bound_deployment._deployment_config.user_config)
        raise RuntimeError("not in this test")

    monkeypatch.setattr("ray.init", lambda **_: None)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    monkeypatch.setattr("ray.serve.start", lambda **options: given.update(started=options))
    monkeypatch.setattr("ray.serve.run", run)
    monkeypatch.setattr(
        "ray.serve.status",
        lambda: SimpleNamespace(applications={NAME: SimpleNamespace(deployments={})}),
    )
    command = ["serve", "--model", str(folder / "model"), "--port", str(free_port())]
    monkeypatch.setenv("HF_CUDAGRAPH_ASR_API_KEY", "of-the-environment")
    for options, key in (["--api-key", "sesame"], "sesame"), ([], "of-the-environment"):
        assert main([*command, "--log-level", "debug", *options]) == 2
        assert given["limits"]["api_key"] == key
    assert given["logging_config"] == {"log_level": "DEBUG"}
    assert given["started"]["logging_config"] == {"log_level": "DEBUG"}
    monkeypatch.setenv("HF_CUDAGRAPH_ASR_API_KEY", "")
    given.clear()
    assert main(command) == 2
    assert not given  # refused, not left open


def test_of_a_replica_that_does_not_start_the_own_error_is_the_last_line(
    folder: Path,
    started: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    try:
        Recognizer(ModelSettings(model="nobody/nothing", device="cpu"))
    except RuntimeError:
        # What Serve 2.60 reports: this traceback, after that of its own way there.
        message = f"The deployment failed to start. Error:\n\x1b[36m{traceback.format_exc()}"
    failed = SimpleNamespace(status="DEPLOY_FAILED", message=message)
    waiting = SimpleNamespace(status="UPDATING", message="")
    application = SimpleNamespace(deployments={"Gateway": waiting, "Recognizer": failed})

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("Deploying application failed: Failed to update the deployments")

    monkeypatch.setattr("ray.init", lambda **_: None)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    monkeypatch.setattr("ray.serve.start", lambda **_: None)
    monkeypatch.setattr("ray.serve.run", fails)
    status = SimpleNamespace(applications={"hf-cudagraph-asr": application})
    monkeypatch.setattr("ray.serve.status", lambda: status)
    assert main(["serve", "--model", "nobody/nothing", "--port", str(free_port())]) == 2
    error = capsys.readouterr().err
    assert error.startswith(
        "hf-cudagraph-asr: error: the application did not start: OSError: AutoProcessor found "
        "nothing to load in 'nobody/nothing', expected a model's folder or its name on the hub: "
    )
    assert error.count("\n") == 1


def test_help_promises_the_texts_in_float32(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--help"]) == 0
    assert "In float32" in " ".join(capsys.readouterr().out.split())
