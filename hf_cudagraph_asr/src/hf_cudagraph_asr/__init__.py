"""Wav2Vec2 on a pool of length-bucketed CUDA graphs. In preparation: there are no graphs yet.

    plan = plan_buckets(durations, graphs=16)    # the input lengths that suit a traffic best
    with enable_cuda_graphs(model, plan):        # batches get the logits of single queries
        ...

The idea is the inference part of SpeechNet (Tang et al., arXiv 2211.11740).
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hf_cudagraph_asr.attach import disable_cuda_graphs as disable_cuda_graphs
    from hf_cudagraph_asr.attach import enable_cuda_graphs as enable_cuda_graphs
    from hf_cudagraph_asr.bucket_plan import Bucket as Bucket
    from hf_cudagraph_asr.bucket_plan import BucketPlan as BucketPlan
    from hf_cudagraph_asr.cost import Cost as Cost
    from hf_cudagraph_asr.dispatch import Dispatch as Dispatch
    from hf_cudagraph_asr.families import UnsupportedModel as UnsupportedModel
    from hf_cudagraph_asr.geometry import Geometry as Geometry
    from hf_cudagraph_asr.padding import ExactForward as ExactForward
    from hf_cudagraph_asr.plan import plan_buckets as plan_buckets
    from hf_cudagraph_asr.pool import GraphPool as GraphPool
    from hf_cudagraph_asr.statistics import PoolStatistics as PoolStatistics

    __version__: str

# Imported at first use: a plan needs no torch.
_HOME = {
    "Bucket": "bucket_plan",
    "BucketPlan": "bucket_plan",
    "Cost": "cost",
    "Dispatch": "dispatch",
    "ExactForward": "padding",
    "Geometry": "geometry",
    "GraphPool": "pool",
    "PoolStatistics": "statistics",
    "UnsupportedModel": "families",
    "disable_cuda_graphs": "attach",
    "enable_cuda_graphs": "attach",
    "plan_buckets": "plan",
}
__all__ = [*_HOME]


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("hf-cudagraph-asr")
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME, "__version__"])
