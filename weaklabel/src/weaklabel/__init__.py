"""From a query log to weighted transcripts, by plugins. In preparation: nothing works yet."""

from typing import TYPE_CHECKING

__all__ = ["__version__"]

__version__: str

# Hidden from type checkers, which would take it for an answer to any name.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> str:
        if name == "__version__":
            from importlib.metadata import version

            return version("weaklabel")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
