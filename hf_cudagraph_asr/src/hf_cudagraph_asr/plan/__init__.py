"""Plans of the input lengths to capture for a traffic. Nothing here imports torch."""

from hf_cudagraph_asr.plan.cost import Cost
from hf_cudagraph_asr.plan.plan import Bucket, BucketPlan, plan_buckets
from hf_cudagraph_asr.plan.replan import Proposal, propose
from hf_cudagraph_asr.plan.traffic import LengthSketch, Traffic, chunks_of, rows_of, whole

__all__ = [
    "Bucket",
    "BucketPlan",
    "Cost",
    "LengthSketch",
    "Proposal",
    "Traffic",
    "chunks_of",
    "plan_buckets",
    "propose",
    "rows_of",
    "whole",
]
