"""Which words drew which pixels: DAAM heat maps for diffusers pipelines.

    with trace(pipe) as tracer:
        image = pipe("a red car beside a dog").images[0]
    tracer.heat_maps()["dog"].overlay(image)

The method is DAAM (Tang et al., "What the DAAM", arXiv 2210.04885): attention probabilities of a
prompt's words, averaged over denoising steps, layers and heads. Processors are wrapped, never
re-implemented: the traced output equals the untraced one bit for bit. `docs/families.md` lists the
denoisers that can be traced; `register_family` adds one.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from daam_diffusers.errors import TraceError as TraceError
    from daam_diffusers.errors import TraceWarning as TraceWarning
    from daam_diffusers.errors import UnknownPromptError as UnknownPromptError
    from daam_diffusers.families import Encoder as Encoder
    from daam_diffusers.families import Family as Family
    from daam_diffusers.families import LayerInfo as LayerInfo
    from daam_diffusers.families import Text as Text
    from daam_diffusers.families import register_family as register_family
    from daam_diffusers.heat_map import HeatMap as HeatMap
    from daam_diffusers.maps import HeatMaps as HeatMaps
    from daam_diffusers.processor import TracingProcessor as TracingProcessor
    from daam_diffusers.prompt import Prompt as Prompt
    from daam_diffusers.prompt import Token as Token
    from daam_diffusers.prompt import Word as Word
    from daam_diffusers.tracer import Tracer as Tracer
    from daam_diffusers.tracer import trace as trace

    __version__: str

# By module; imported at first use: torch and diffusers take seconds, and `--help` needs neither.
_NAMES = {
    "errors": ("TraceError", "TraceWarning", "UnknownPromptError"),
    "families": ("Encoder", "Family", "LayerInfo", "Text", "register_family"),
    "heat_map": ("HeatMap",),
    "maps": ("HeatMaps",),
    "processor": ("TracingProcessor",),
    "prompt": ("Prompt", "Token", "Word"),
    "tracer": ("Tracer", "trace"),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}
__all__ = [*_HOME]


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("daam-diffusers")
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME, "__version__"])
