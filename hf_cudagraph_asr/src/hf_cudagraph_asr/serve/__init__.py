"""A Ray Serve application that answers `POST /transcribe` (extra `serve`).

    serve run hf_cudagraph_asr.serve:app model=facebook/wav2vec2-base-960h plan=plan.json

    HTTP ──▶ Gateway                          ──▶ Recognizer, one of several, a pool each
             limits, decoding, resampling,        arrivals batched by length, one batch
             another try, metrics of all          on the device at a time

What decides is free of Ray: `settings`, `backlog`, `batcher`, `upload`, `counters`, `exposition`.
"""

from __future__ import annotations

from typing import Any

__all__ = ["app"]


def app(args: dict[str, Any]) -> Any:
    """The application, for the `import_path` of a Serve configuration.

    Args:
        args: what `hf_cudagraph_asr.serve.settings.Settings` holds: `model`, and what else is
            not to be its default. Values may be strings, as `serve run` passes them.

    Returns:
        A `ray.serve.Application` of the deployments Gateway and Recognizer.

    Raises:
        ValueError: an argument is unknown, missing, or of the wrong kind.
        ImportError: the extra is missing.
    """
    from hf_cudagraph_asr.serve.application import build
    from hf_cudagraph_asr.serve.settings import Settings

    return build(Settings.of(args))
