"""Settings: from YAML, from `serve run`'s strings, and refused with what was expected."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import served  # noqa: F401 - imports Ray Serve without its warnings
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hf_cudagraph_asr.serve import Batching, Limits, Settings, app

SHIPPED = Path(__file__).parents[2] / "docs/examples/serve.yaml"

some = st.builds(
    Settings,
    model=st.text(min_size=1),
    plan=st.none() | st.text(min_size=1),
    batch_sizes=st.none() | st.lists(st.integers(1, 64), min_size=1).map(tuple),
    max_bytes=st.integers(1, 2**40),
    max_seconds=st.floats(1e-3, 1e6),
    max_batch_size=st.none() | st.integers(1, 1000),
    gpus=st.floats(0, 8),
)


@given(some)
def test_settings_come_back_from_what_a_yaml_holds(found: Settings) -> None:
    assert Settings.of(yaml.safe_load(yaml.safe_dump(found.model_dump(mode="json")))) == found


def test_what_serve_run_passes_are_strings() -> None:
    found = Settings.of({"model": "m", "replicas": "2", "gpus": "0.5", "batch_sizes": "1,4"})
    assert found == Settings(model="m", replicas=2, gpus=0.5, batch_sizes=(1, 4))
    assert Limits.of({"max_seconds": "9", "max_bytes": "10"}) == Limits(max_seconds=9, max_bytes=10)


def test_nothing_given_leaves_the_defaults() -> None:
    assert Limits.of(None) == Limits.of({}) == Limits()
    assert Batching.of({"max_batch_size": None}) == Batching()


def test_a_model_gets_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for there in (False, True):
        monkeypatch.setattr("torch.cuda.is_available", lambda there=there: there)
        assert Settings.of({"model": "m"}).gpus == there
        assert Settings.of({"model": "m", "device": "cpu"}).gpus == 0


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (Limits, {"max_byte": 1}, "no setting max_byte: expected some of max_bytes, max_seconds"),
        (Limits, {"max_bytes": 0}, "max_bytes is 0: Input should be greater than or equal to 1"),
        (Limits, {"max_bytes": 1.5}, "max_bytes is 1.5: Input should be a valid integer"),
        (Limits, {"max_bytes": None}, "max_bytes is None"),
        (Limits, {"max_seconds": "nan"}, "max_seconds is 'nan': Input should be a finite number"),
        (Limits, {"timeout_s": "1e999"}, "timeout_s is '1e999': Input should be a finite number"),
        (Limits, [("max_bytes", 1)], "Input should be a valid dictionary"),
        (Batching, {"batch_wait_s": -1}, "batch_wait_s is -1: .* greater than or equal to 0"),
        (Settings, None, "model is {}: Field required"),
        (Settings, {"model": ""}, "model is '': String should have at least 1 character"),
        (Settings, {"model": "m", "batch_sizes": "1,x"}, r"batch_sizes.1 is 'x': .* integer"),
        (Settings, {"model": "m", "batch_sizes": [0]}, r"batch_sizes.0 is 0: .* equal to 1"),
        (Settings, {"model": "m", "backend": "cud"}, "backend is 'cud': .* 'auto', 'cuda', 'comp"),
        (Settings, {"model": "m", "device": "gpu"}, r"device is 'gpu': .*auto\|cpu\|cuda"),
        (Settings, {"model": "m", "dtype": "int"}, "dtype is 'int': .*'float32', 'bfloat16' or"),
    ],
)
def test_what_is_wrong_is_named_with_what_was_expected(
    kind: Any, values: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        kind.of(values)
    assert "\n" not in str(caught.value)


@pytest.fixture
def shipped(require: Callable[[object, str], None]) -> Any:
    require(SHIPPED.is_file(), "the package's tests run without its repository")
    return yaml.safe_load(SHIPPED.read_text())


@pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")  # Ray Serve's own
def test_the_shipped_configuration_is_that_of_the_defaults_in_rays_schema(shipped: Any) -> None:
    from ray.serve.schema import DeploymentSchema, ServeDeploySchema

    (application,) = ServeDeploySchema.model_validate(shipped).applications
    gateway, recognizer = application.deployments
    assert Limits.of(gateway.user_config) == Limits()
    assert Batching.of(recognizer.user_config) == Batching()
    assert recognizer.ray_actor_options.num_gpus == 1
    for deployment in shipped["applications"][0]["deployments"]:
        # Ray ignores what it does not know.
        assert deployment.keys() <= DeploymentSchema.model_fields.keys()
    settings = Settings.of(application.args)
    assert settings == Settings(model=settings.model, plan=settings.plan)


@pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")
def test_the_import_path_builds_an_application(shipped: Any) -> None:
    from ray._common.utils import import_attr
    from ray.serve import Application

    (application,) = shipped["applications"]
    assert import_attr(application["import_path"]) is app
    assert isinstance(app(application["args"]), Application)
    assert isinstance(app({"model": "m", "replicas": "2", "max_seconds": "9"}), Application)
    with pytest.raises(ValueError, match="no setting modle: expected some of"):
        app({"model": "m", "modle": "n"})


def test_what_the_extra_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        "hf_cudagraph_asr.serve.find_spec",
        lambda name: None if name == "torchaudio" else found(name),
    )
    with pytest.raises(ImportError, match=r'needs torchaudio: pip install "hf-cuda.*\[serve\]"'):
        app({"model": "m"})
