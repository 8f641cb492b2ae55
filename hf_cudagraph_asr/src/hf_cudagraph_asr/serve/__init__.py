"""A Ray Serve application: `POST /transcribe`, and OpenAI's API beside it (extra `serve`).

serve run hf_cudagraph_asr.serve:app model=facebook/wav2vec2-base-960h plan=plan.json

HTTP ──▶ Gateway                       ──▶ Recognizer, one of several, a pool each
         limits, decoding, resampling,     arrivals batched by cost, one batch on
         another try                       the device and one on the host
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import Field
from ray import serve

from hf_cudagraph_asr.serve.application import Gateway, Limits, api, ingress
from hf_cudagraph_asr.serve.recognizer import Batching, ModelSettings, Recognizer

__all__ = ["Batching", "Gateway", "Limits", "ModelSettings", "Recognizer", "Settings", "api", "app"]

# A Gateway waits more than it works, and itself refuses what is too much for the model.
GATEWAY_ONGOING = 512


def _gpus(settings: dict[str, Any]) -> float:
    if settings.get("device") == "cpu":
        return 0.0
    import torch

    return float(torch.cuda.is_available())


class Settings(ModelSettings, Batching, Limits):
    """All settings. A configuration's `deployments` have the last word on all but the model's.

    Attributes:
        replicas: Recognizers; a pool each.
        gateways: replicas of Gateway.
        cpus: logical CPUs of a Recognizer. Ray also gives it so many threads.
        gpus: GPUs of a Recognizer; a part such as 0.5 lets some share one. By default 1 where
            there is one and `device` is not "cpu".
        max_ongoing: requests sent to a Recognizer at a time: those on the device, and those from
            which the next batches are chosen.
        max_queued: requests that wait in a Gateway for a Recognizer with room; more are refused.
    """

    replicas: int = Field(1, ge=1)
    gateways: int = Field(1, ge=1)
    cpus: float = Field(1.0, ge=0)
    gpus: float = Field(default_factory=_gpus, ge=0)
    max_ongoing: int = Field(64, ge=1)
    max_queued: int = Field(128, ge=1)


def app(args: Mapping[str, Any]) -> serve.Application:
    """Build the application; the `import_path` of a Serve configuration.

    Args:
        args: `Settings` by name. Values may be strings, as `serve run` passes them.

    Raises:
        ValueError: a setting is unknown, missing, or not what it should be.
        ImportError: a part of the extra is missing.
    """
    missing = [name for name in ("python_multipart", "torchaudio") if find_spec(name) is None]
    if missing:
        names = " and ".join(missing)
        raise ImportError(f'serving needs {names}: pip install "hf-cudagraph-asr[serve]"')
    settings = Settings.of(args)

    def part(kind: type[ModelSettings | Batching | Limits]) -> dict[str, Any]:
        return settings.model_dump(mode="json", include={*kind.model_fields})

    gateway = serve.deployment(
        name="Gateway",
        num_replicas=settings.gateways,
        max_ongoing_requests=GATEWAY_ONGOING,
        max_queued_requests=GATEWAY_ONGOING,
        ray_actor_options={"num_cpus": 0},
        user_config=part(Limits),
    )(serve.ingress(ingress)(Gateway))
    recognizer = serve.deployment(
        name="Recognizer",
        num_replicas=settings.replicas,
        max_ongoing_requests=settings.max_ongoing,
        max_queued_requests=settings.max_queued,
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
        user_config=part(Batching),
        max_constructor_retry_count=1,  # why a model does not start is soon known
    )(Recognizer)
    # A folder's name alone: where it lies is not for clients.
    name = Path(settings.model).name if Path(settings.model).is_absolute() else settings.model
    return gateway.bind(recognizer.bind(ModelSettings.of(part(ModelSettings))), name)
