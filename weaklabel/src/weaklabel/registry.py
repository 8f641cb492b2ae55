"""What plugins registered: labeling functions, label models and exporters, by name, in order.

`weaklabel.plugins` fills it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from weaklabel.errors import WeakLabelError
from weaklabel.labeling import LabelingFunction

if TYPE_CHECKING:
    from weaklabel.export import Exporter
    from weaklabel.models import Kind

Stage: TypeAlias = Literal["import", "hooks", "registration", "name"]

FUNCTIONS: Final = "weaklabel_labeling_functions"


@dataclass(frozen=True)
class Plugin:
    """Where functions, models and exporters come from.

    Args:
        name: the entry point's, or the file's.
        distribution: the installed distribution's name, or the file's.
        version: the distribution's, or the beginning of the file's SHA-256.
        location: the module, or the path.
    """

    name: str
    distribution: str
    version: str
    location: str

    def __str__(self) -> str:
        return f"{self.distribution}:{self.name}"


@dataclass(frozen=True)
class Fault:
    """What is wrong with a plugin.

    Args:
        plugin: whose.
        stage: "import" (nothing of it is used), "hooks" (a misspelt or unusable hook), the
            "registration" (it raised: nothing of that hook is used), or a "name" that was taken
            or an object that cannot be registered (that one is not used).
        message: one line.
        details: the traceback; empty where nothing was raised.
    """

    plugin: Plugin
    stage: Stage
    message: str
    details: str = ""

    def __str__(self) -> str:
        return (
            f"plugin {self.plugin.name!r} of {self.plugin.distribution} {self.plugin.version}"
            f" ({self.stage}): {self.message}"
        )


@dataclass(frozen=True)
class Registry:
    """What the plugins registered, by name, in order.

    Args:
        plugins: those loaded.
        labeling_functions: by name.
        label_models: by kind.
        exporters: by name.
        origins: the plugin of each, by `(hook, name)`.
        faults: what is wrong.
    """

    plugins: tuple[Plugin, ...] = ()
    labeling_functions: Mapping[str, LabelingFunction] = field(default_factory=dict)
    label_models: Mapping[str, Kind] = field(default_factory=dict)
    exporters: Mapping[str, Exporter] = field(default_factory=dict)
    origins: Mapping[tuple[str, str], Plugin] = field(default_factory=dict)
    faults: tuple[Fault, ...] = ()

    def identity(self, function: LabelingFunction) -> str:
        """`distribution:name@version#hash`, the hash being of its source and parameters."""
        origin = self.origins[FUNCTIONS, function.name]
        return f"{origin.distribution}:{function.name}@{origin.version}#{function.source_hash}"

    def select(
        self,
        names: Iterable[str] | None = None,
        *,
        columns: Iterable[str] | None = None,
        parameters: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> tuple[LabelingFunction, ...]:
        """Functions by name, with their parameters set.

        Args:
            names: which; by default every function that is not optional and whose columns are
                there.
            columns: the query log's; by default all that may be asked for.
            parameters: values by function and parameter, as
                `LabelingFunction.with_parameters` takes them.

        Raises:
            WeakLabelError: no function has such a name, or a value does not fit.
        """
        settings = dict(parameters or {})
        for name in [*(names or ()), *settings]:
            if name not in self.labeling_functions:
                raise WeakLabelError(
                    f"no labeling function {name!r}{did_you_mean(name, self.labeling_functions)}:"
                    f" there are {', '.join(self.labeling_functions) or 'none'}"
                )
        tuned = {
            name: function.with_parameters(**settings.get(name, {}))
            for name, function in self.labeling_functions.items()
        }
        if names is not None:
            return tuple(tuned[name] for name in dict.fromkeys(names))
        there = None if columns is None else set(columns)
        return tuple(
            function
            for function in tuned.values()
            if not function.optional and (there is None or there.issuperset(function.columns))
        )


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ " (did you mean ...?)", where a known word is near; else nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
