"""The hooks: three, and each only collects.

A plugin is a module or object with functions marked `@weaklabel.hookimpl`, named in its
distribution under the entry-point group `weaklabel`:

    [project.entry-points.weaklabel]
    tv = "weaklabel_tv"
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from pluggy import HookimplMarker, HookspecMarker

if TYPE_CHECKING:
    from weaklabel.export import Exporter
    from weaklabel.labeling import LabelingFunction
    from weaklabel.models import Kind

#: The project's name in pluggy, and the entry-point group.
PROJECT: Final = "weaklabel"

hookspec = HookspecMarker(PROJECT)
hookimpl = HookimplMarker(PROJECT)


@hookspec
def weaklabel_labeling_functions(register: Callable[[LabelingFunction], None]) -> None:
    """Call `register` with each labeling function, in the order in which they are to be listed."""


@hookspec
def weaklabel_label_models(register: Callable[[Kind], None]) -> None:
    """Call `register` with each kind of label model, by its `name`."""


@hookspec
def weaklabel_exporters(register: Callable[[Exporter], None]) -> None:
    """Call `register` with each exporter, by its `name`."""
