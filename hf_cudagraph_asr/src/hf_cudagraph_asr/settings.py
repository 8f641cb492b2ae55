"""What of a model's configuration decides on its forward, read again when it changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["ConfigView", "Settings"]


@dataclass(frozen=True, slots=True)
class Settings:
    """A configuration's word on a call that says nothing of its own.

    Attributes:
        output_attentions: they are asked for.
        output_hidden_states: they are asked for.
        return_dict: an output object instead of a tuple.
        attention: the attention implementation.
    """

    output_attentions: bool
    output_hidden_states: bool
    return_dict: bool
    attention: str | None


class ConfigView:
    """The settings of a model's configuration, as they are now.

    The host's configurations compute each attribute in Python. Whether anything changed at all is
    one comparison of dictionaries, and said before every replay.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._seen = self._look()

    def read(self) -> Settings:
        """What holds now."""
        config, live, before, settings = self._seen
        if self._model.config is not config or live != before:
            self._seen = self._look()
            settings = self._seen[3]
        return settings

    def _look(self) -> tuple[Any, dict[str, Any], dict[str, Any], Settings]:
        config = self._model.config
        live = vars(config)
        # Copied first: a change while the attributes are read is then seen the next time.
        before = dict(live)
        return (
            config,
            live,
            before,
            Settings(
                bool(getattr(config, "output_attentions", False)),
                bool(getattr(config, "output_hidden_states", False)),
                bool(getattr(config, "return_dict", True)),
                config._attn_implementation,
            ),
        )
