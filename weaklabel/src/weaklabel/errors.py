"""The package's one exception of its own.

ValueError
└── WeakLabelError   a table, a labeling function, a plugin or a model breaks its contract

Everything else is a TypeError, KeyError, OSError or ImportError with its usual meaning.
"""


class WeakLabelError(ValueError):
    """Something given breaks its contract; the message says what was given, wanted and to do."""
