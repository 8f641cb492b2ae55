"""Which words drew which pixels: DAAM heat maps for diffusers pipelines.

    with trace(pipe) as tracer:
        image = pipe("a red car beside a dog").images[0]
    tracer.heat_maps()["dog"].overlay(image)

The method is DAAM (Tang et al., "What the DAAM", arXiv 2210.04885): cross-attention probabilities
of a prompt's words, averaged over denoising steps, layers and heads. Processors are wrapped, never
re-implemented: the traced output equals the untraced one bit for bit.
"""

from daam_diffusers.errors import TraceError
from daam_diffusers.families import LayerInfo
from daam_diffusers.heat_map import HeatMap
from daam_diffusers.maps import HeatMaps
from daam_diffusers.processor import TracingProcessor
from daam_diffusers.prompt import Prompt, Token, Word
from daam_diffusers.tracer import Tracer, trace

__all__ = [
    "HeatMap",
    "HeatMaps",
    "LayerInfo",
    "Prompt",
    "Token",
    "TraceError",
    "Tracer",
    "TracingProcessor",
    "Word",
    "trace",
]


def __getattr__(name: str) -> str:
    if name == "__version__":
        from importlib.metadata import version

        return version("daam-diffusers")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
