"""The package's exceptions and warning of its own.

RuntimeError
└── TraceError   a pipeline cannot be traced, or a trace holds nothing that could be shown

KeyError, ValueError
└── UnknownPromptError  a word is looked up in maps of embeddings whose prompt is not known

UserWarning
└── TraceWarning  maps can be made, but not quite of what was asked for

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
