"""The package's one exception of its own.

RuntimeError
└── TraceError   a pipeline cannot be traced, or a trace holds nothing that could be shown

Everything else is a ValueError, TypeError, KeyError or ImportError with its usual meaning.
"""


class TraceError(RuntimeError):
    """A pipeline cannot be traced, or what was traced does not make a heat map."""
