"""The package's own exceptions and warning.

Everything else is a ValueError, TypeError, KeyError or ImportError with its usual meaning.
"""


class TraceError(RuntimeError):
    """A pipeline cannot be traced, or what was traced does not make a heat map."""


class UnknownPromptError(KeyError, ValueError):
    """A word was looked up in maps of embeddings, and what these mean was not said.

    A KeyError, as `"dog" in maps` is False; a ValueError, as `heat_maps(prompt=...)` is missing.
    """


class TraceWarning(UserWarning):
    """Maps can be made, but not quite of what was asked for; e.g. words were cut."""
