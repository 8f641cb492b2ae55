"""The application, and the same as a configuration in Serve's own format."""

from __future__ import annotations

from typing import Any

from hf_cudagraph_asr.serve.settings import Batching, Limits, Settings

__all__ = ["GATEWAY", "IMPORT_PATH", "NAME", "RECOGNIZER", "build", "configuration"]

NAME = "hf-cudagraph-asr"
IMPORT_PATH = "hf_cudagraph_asr.serve:app"
GATEWAY, RECOGNIZER = "Gateway", "Recognizer"

# A Gateway waits more than it works, and turns away itself what is too much for the model.
GATEWAY_ONGOING = 512


def build(
    settings: Settings,
    limits: Limits | None = None,
    batching: Batching | None = None,
    autoscaling: dict[str, Any] | None = None,
) -> Any:
    """The application.

    Args:
        settings: its arguments.
        limits: of Gateway.
        batching: of Recognizer.
        autoscaling: Serve's `autoscaling_config` for Recognizer, in the place of
            `settings.replicas`.

    Returns:
        A `ray.serve.Application`.

    Raises:
        ImportError: the extra is missing.
    """
    try:
        from ray import serve
    except ImportError as error:
        raise ImportError(
            'serving needs Ray Serve: pip install "hf-cudagraph-asr[serve]"'
        ) from error

    from hf_cudagraph_asr.serve.gateway import Gateway
    from hf_cudagraph_asr.serve.recognizer import Recognizer

    options = {
        entry.pop("name"): entry for entry in _deployments(settings, limits, batching, autoscaling)
    }
    gateway = serve.deployment(name=GATEWAY, **options[GATEWAY])(Gateway)
    recognizer = serve.deployment(name=RECOGNIZER, **options[RECOGNIZER])(Recognizer)
    return gateway.bind(recognizer.bind(settings.of_model))


def configuration(
    settings: Settings,
    limits: Limits | None = None,
    batching: Batching | None = None,
    autoscaling: dict[str, Any] | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
) -> dict[str, Any]:
    """What `serve deploy` and `serve run` take: the same application, with all that can be set.

    Args:
        settings, limits, batching, autoscaling: as in `build`.
        host, port: where the proxy of each machine listens.
    """
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": host, "port": port},
        "applications": [
            {
                "name": NAME,
                "route_prefix": "/",
                "import_path": IMPORT_PATH,
                "args": settings.of_model.to_dict(),
                "deployments": _deployments(settings, limits, batching, autoscaling),
            }
        ],
    }


def _deployments(
    settings: Settings,
    limits: Limits | None,
    batching: Batching | None,
    autoscaling: dict[str, Any] | None,
) -> list[dict[str, Any]]:
    """What Serve's schema says of each deployment; `serve.deployment` takes the same."""
    scale: dict[str, Any] = {"num_replicas": settings.replicas}
    if autoscaling is not None:
        scale = {"autoscaling_config": autoscaling}
    return [
        {
            "name": GATEWAY,
            "num_replicas": settings.gateways,
            "max_ongoing_requests": GATEWAY_ONGOING,
            "max_queued_requests": GATEWAY_ONGOING,
            "ray_actor_options": {"num_cpus": 0},
            "user_config": (limits or Limits()).to_dict(),
        },
        {
            "name": RECOGNIZER,
            **scale,
            "max_ongoing_requests": settings.max_ongoing,
            "max_queued_requests": settings.max_queued,
            "ray_actor_options": {"num_cpus": settings.cpus, "num_gpus": settings.gpus},
            "user_config": (batching or Batching()).to_dict(),
        },
    ]
