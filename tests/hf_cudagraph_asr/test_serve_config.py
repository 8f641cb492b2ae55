"""The configuration: what the command writes, what is shipped, and Ray's own word on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from hf_cudagraph_asr.cli.serve import serve as command
from hf_cudagraph_asr.serve.application import IMPORT_PATH, configuration
from hf_cudagraph_asr.serve.settings import Batching, Limits, Settings

# Ray Serve's own settings.
pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")

SHIPPED = Path(__file__).parents[2] / "docs/examples/serve.yaml"
SCALED = {"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 16}


@pytest.fixture
def shipped(require: Callable[[object, str], None]) -> Any:
    require(SHIPPED.is_file(), "the package's tests run without its repository")
    return yaml.safe_load(SHIPPED.read_text())


def written(path: Path, **options: Any) -> Any:
    command(device="cpu", config_out=path, **options)
    return yaml.safe_load(path.read_text())


def test_the_shipped_file_is_what_the_code_deploys(shipped: Any) -> None:
    given = Settings.of(shipped["applications"][0]["args"] | {"gpus": 1})
    assert given.dtype == "bfloat16"
    assert shipped == configuration(given, autoscaling=SCALED)


def test_rays_schema_reads_the_shipped_file(shipped: Any) -> None:
    from ray.serve.schema import ServeDeploySchema

    (application,) = ServeDeploySchema.model_validate(shipped).applications
    gateway, recognizer = application.deployments
    assert (gateway.name, recognizer.name) == ("Gateway", "Recognizer")
    assert Limits.of(gateway.user_config) == Limits()
    assert Batching.of(recognizer.user_config) == Batching()
    assert recognizer.autoscaling_config["max_replicas"] == 4
    assert recognizer.ray_actor_options.num_gpus == 1


def test_rays_schema_knows_every_option_of_the_deployments(shipped: Any) -> None:
    from ray.serve.schema import DeploymentSchema

    for deployment in shipped["applications"][0]["deployments"]:
        # It ignores what it does not know.
        assert deployment.keys() <= DeploymentSchema.model_fields.keys()


def test_the_import_path_builds_an_application(shipped: Any) -> None:
    from ray._common.utils import import_attr
    from ray.serve import Application
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary as built

    builder = import_attr(IMPORT_PATH)
    assert isinstance(built(builder, shipped["applications"][0]["args"]), Application)
    assert isinstance(built(builder, {"model": "m", "replicas": "2"}), Application)
    with pytest.raises(ValueError, match="no setting modle: expected some of model, plan"):
        built(builder, {"model": "m", "modle": "n"})


def test_the_command_writes_a_configuration_with_all_its_options(tmp_path: Path) -> None:
    from ray.serve.schema import ServeDeploySchema

    (tmp_path / "model").mkdir()
    (tmp_path / "plan.json").write_text("{}")
    found = written(
        tmp_path / "serve.yaml",
        model=str(tmp_path / "model"),
        plan=tmp_path / "plan.json",
        batch_sizes="1,4",
        port=8123,
        replicas=2,
        max_replicas=6,
        max_batch_size=2,
        batch_wait=0.01,
        max_seconds=12.0,
    )
    ServeDeploySchema.model_validate(found)
    assert found["http_options"] == {"host": "127.0.0.1", "port": 8123}
    (application,) = found["applications"]
    assert application["args"]["model"] == str((tmp_path / "model").resolve())
    assert application["args"]["plan"] == str((tmp_path / "plan.json").resolve())
    assert application["args"]["batch_sizes"] == [1, 4]
    gateway, recognizer = application["deployments"]
    assert gateway["user_config"]["max_seconds"] == 12.0
    assert recognizer["user_config"] == {"max_batch_size": 2, "batch_wait_s": 0.01}
    assert recognizer["autoscaling_config"]["min_replicas"] == 2
    assert recognizer["autoscaling_config"]["max_replicas"] == 6
    assert "num_replicas" not in recognizer


def test_a_name_on_the_hub_stays_a_name(tmp_path: Path) -> None:
    found = written(tmp_path / "serve.yaml", model="facebook/wav2vec2-base-960h")
    (application,) = found["applications"]
    assert application["args"]["model"] == "facebook/wav2vec2-base-960h"
    assert application["deployments"][1]["num_replicas"] == 1


def test_mistakes_are_told_before_ray_starts(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="make one with `hf-cudagraph-asr plan`"):
        written(tmp_path / "serve.yaml", model="m", plan=tmp_path / "none.json")
    with pytest.raises(ValueError, match="--max-replicas 1 is less than --replicas 2"):
        written(tmp_path / "serve.yaml", model="m", replicas=2, max_replicas=1)
    with pytest.raises(ValueError, match="max_seconds is 0"):
        written(tmp_path / "serve.yaml", model="m", max_seconds=0)
    with pytest.raises(FileNotFoundError, match="create it first"):
        written(tmp_path / "none" / "serve.yaml", model="m")
    assert list(tmp_path.iterdir()) == []
