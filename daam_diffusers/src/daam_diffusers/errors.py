"""The package's exception and warning of its own.

RuntimeError
└── TraceError   a pipeline cannot be traced, or a trace holds nothing that could be shown

UserWarning
└── TraceWarning  maps can be made, but not quite of what was asked for

Everything else is a ValueError, TypeError, KeyError or ImportError with its usual meaning.
"""


class TraceError(RuntimeError):
    """A pipeline cannot be traced, or what was traced does not make a heat map."""


class TraceWarning(UserWarning):
    """Maps can be made, but not quite of what was asked for; e.g. words were cut."""
