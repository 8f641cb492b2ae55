"""Wav2Vec2 on a pool of length-bucketed CUDA graphs, without changing a transcript.

    plan = plan_buckets(durations, graphs=16, model=model)   # the lengths that suit a traffic best
    with enable_cuda_graphs(model, plan) as pool:            # or keep it on; disable_cuda_graphs
        pipeline("automatic-speech-recognition", model=model, ...)("query.wav")
        pool.stats()                                         # hits, and why others were none

The idea is the inference part of SpeechNet (Tang et al., arXiv 2211.11740).
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hf_cudagraph_asr.attach import disable_cuda_graphs as disable_cuda_graphs
    from hf_cudagraph_asr.attach import enable_cuda_graphs as enable_cuda_graphs
    from hf_cudagraph_asr.audio import AudioError as AudioError
    from hf_cudagraph_asr.audio import read_audio as read_audio
    from hf_cudagraph_asr.decoder import WordDecoder as WordDecoder
    from hf_cudagraph_asr.dispatch import Dispatch as Dispatch
    from hf_cudagraph_asr.exact import ExactForward as ExactForward
    from hf_cudagraph_asr.families import UnsupportedModel as UnsupportedModel
    from hf_cudagraph_asr.geometry import Geometry as Geometry
    from hf_cudagraph_asr.observe import PoolStatistics as PoolStatistics
    from hf_cudagraph_asr.observe import PrometheusObserver as PrometheusObserver
    from hf_cudagraph_asr.observe import Served as Served
    from hf_cudagraph_asr.plan import Bucket as Bucket
    from hf_cudagraph_asr.plan import BucketPlan as BucketPlan
    from hf_cudagraph_asr.plan import Cost as Cost
    from hf_cudagraph_asr.plan import LengthSketch as LengthSketch
    from hf_cudagraph_asr.plan import Proposal as Proposal
    from hf_cudagraph_asr.plan import plan_buckets as plan_buckets
    from hf_cudagraph_asr.pool import GraphPool as GraphPool
    from hf_cudagraph_asr.transcriber import Transcriber as Transcriber
    from hf_cudagraph_asr.transcriber import Transcript as Transcript
    from hf_cudagraph_asr.transcriber import Word as Word

    __version__: str

# Imported at first use: a plan needs no torch.
_NAMES = {
    "attach": ("disable_cuda_graphs", "enable_cuda_graphs"),
    "audio": ("AudioError", "read_audio"),
    "decoder": ("WordDecoder",),
    "dispatch": ("Dispatch",),
    "exact": ("ExactForward",),
    "families": ("UnsupportedModel",),
    "geometry": ("Geometry",),
    "observe": ("PoolStatistics", "PrometheusObserver", "Served"),
    "plan": ("Bucket", "BucketPlan", "Cost", "LengthSketch", "Proposal", "plan_buckets"),
    "pool": ("GraphPool",),
    "transcriber": ("Transcriber", "Transcript", "Word"),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("hf-cudagraph-asr")
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME, "__version__"])
