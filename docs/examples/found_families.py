"""A label model that looks for families itself: a plugin of weaklabel in one file.

    weaklabel fit votes.parquet --functions docs/examples/found_families.py \
        --model found-families --out model.json

Functions that are found to depend on each other beyond what is right or wrong are put into one
family with all that depend on them, and the label model is fitted again. What is written is an
ordinary label model: `weaklabel label` and `report` need no plugin for it.

It is an example and not weaklabel's own, because it did not beat families that are declared by
those who wrote the functions: whether functions share the truth, or something else such as a user's
mood, votes alone cannot say.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import weaklabel
from weaklabel import Gold, Kind, LabelModel, Patterns, WeakLabelWarning
from weaklabel.label_model import FittedLabelModel
from weaklabel.models import as_patterns

LEAST = 3  # families and functions alone; with fewer the classes are not determined


@dataclass(frozen=True)
class FoundFamilies:
    """LabelModel with declared families, and those that are found.

    Args:
        strength: functions are put together from this strength of dependence on, in [0, 1).
    """

    handles_missing: ClassVar[bool] = True

    strength: float = 0.1

    def fit(self, votes: Any, *, gold: Gold | None = None) -> FittedLabelModel:
        """Fit to `Patterns`, or to a table of votes whose functions declare no family."""
        patterns = as_patterns(votes)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", WeakLabelWarning)
            first = LabelModel().fit(patterns, gold=gold)
        return LabelModel().fit(self.with_families(patterns, first), gold=gold)

    def with_families(self, patterns: Patterns, model: FittedLabelModel) -> Patterns:
        """The patterns, with the families that are declared and found."""
        family = {
            name: declared or f"alone {name}"
            for name, declared in zip(patterns.functions, patterns.families, strict=True)
        }
        for pair in sorted(model.dependence, key=lambda pair: -pair.strength):
            one, other = family[pair.first], family[pair.second]
            if not pair.significant or pair.strength < self.strength or one == other:
                continue
            if len(set(family.values())) == LEAST:
                break
            family = {name: one if held == other else held for name, held in family.items()}
        return replace(patterns, families=tuple(family[name] for name in patterns.functions))


@weaklabel.hookimpl
def weaklabel_label_models(register: Callable[[Kind], None]) -> None:
    """Register the model."""
    register(Kind("found-families", FoundFamilies, FittedLabelModel))
