"""Which input lengths to capture for a traffic: plans, their cost, and new ones for what was seen.

Nothing here imports torch.
"""

from hf_cudagraph_asr.plan.bucket_plan import Bucket, BucketPlan, rows_of, whole
from hf_cudagraph_asr.plan.concurrency import pools_memory, replicas
from hf_cudagraph_asr.plan.cost import EAGER, Cost, CostLike
from hf_cudagraph_asr.plan.plan import plan_buckets
from hf_cudagraph_asr.plan.plan_table import percent
from hf_cudagraph_asr.plan.replan import Proposal, propose
from hf_cudagraph_asr.plan.sketch import EXACT, LONGEST, LengthSketch
from hf_cudagraph_asr.plan.traffic import Chunking, Traffic, finite

__all__ = [
    "EAGER",
    "EXACT",
    "LONGEST",
    "Bucket",
    "BucketPlan",
    "Chunking",
    "Cost",
    "CostLike",
    "LengthSketch",
    "Proposal",
    "Traffic",
    "finite",
    "percent",
    "plan_buckets",
    "pools_memory",
    "propose",
    "replicas",
    "rows_of",
    "whole",
]
