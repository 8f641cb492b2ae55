"""What every label model offers, and models in files.

A model is a frozen configuration; `fit` makes of it a fitted model, frozen too, which turns votes
into weights: P(the transcript is right). A plugin's model needs a `Kind` to be loaded by.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

import narwhals.stable.v2 as nw
import numpy as np
import numpy.typing as npt

from weaklabel.errors import WeakLabelError, WeakLabelWarning
from weaklabel.files import written_beside
from weaklabel.patterns import Patterns
from weaklabel.plugins import Kind, load_registry
from weaklabel.votes import PREFIX

if TYPE_CHECKING:
    from weaklabel.gold import Gold

FORMAT = 1

Frame = TypeVar("Frame")


class Model(Protocol):
    """The configuration of a label model."""

    def fit(self, votes: Any, *, gold: Gold | None = None) -> FittedModel:
        """Fit to a table of votes, or to `Patterns`."""
        ...


class FittedModel(Protocol):
    """A model that turns votes into weights."""

    @property
    def functions(self) -> tuple[str, ...]:
        """The F functions it knows."""
        ...

    def weights(self, votes: npt.NDArray[np.int8]) -> npt.NDArray[np.float64]:
        """P(right), float64 (N,), for votes int8 (N, F) in the order of `functions`."""
        ...

    def label(self, frame: Frame, threshold: float = 0.5) -> Frame:
        """The frame with the columns `weight` and `label`."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """All parameters, as JSON can write them."""
        ...

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a JSON file that `load_model` reads."""
        ...


class Fitted(ABC):
    """What the package's own fitted models share: labels and files.

    A subclass is a frozen dataclass with `functions`, and says its weight twice: with NumPy in
    `weights`, and in `weight` as an expression, so that any engine can label without a join.
    """

    kind: ClassVar[str]
    functions: tuple[str, ...]

    @abstractmethod
    def weight(self) -> nw.Expr:
        """P(right) as an expression over the columns of votes; a null is an abstain."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """All parameters, as JSON can write them."""

    def label(self, frame: Frame, threshold: float = 0.5) -> Frame:
        """Add `weight` and `label` to a table of votes, inside the engine that holds it.

        Args:
            frame: any frame narwhals knows, eager or lazy, with a column `lf:<name>` for every
                function the model was fitted to, in any order. Its rows and their order stay.
            threshold: `label` is 1 where `weight` reaches it, else -1.

        Returns:
            A frame of the same type, with `weight` (Float64, in [0, 1]) and `label` (Int8).

        Raises:
            WeakLabelError: the functions are not those the model knows, or the table has a column
                `weight` or `label` already.
        """
        if not 0 <= threshold <= 1:
            raise WeakLabelError(f"threshold must lie in [0, 1], got {threshold!r}")
        table: Any = nw.from_native(frame)
        columns = table.collect_schema().names()
        check_functions(self.functions, columns)
        if taken := [name for name in ("weight", "label") if name in columns]:
            raise WeakLabelError(
                f"the table has columns {taken} already: drop or rename them, or label the votes"
            )
        labelled = table.with_columns(self.weight().alias("weight"))
        sign = nw.when(nw.col("weight") >= threshold).then(nw.lit(1)).otherwise(nw.lit(-1))
        native: Frame = nw.to_native(labelled.with_columns(label=sign.cast(nw.Int8)))
        return native

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a JSON file that `load_model` reads.

        Returns:
            The path written.
        """
        content = {"weaklabel": "model", "format": FORMAT, "kind": self.kind, **self.to_dict()}
        with written_beside(path) as beside:
            beside.write_text(
                json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
                encoding="utf-8",
            )
        return Path(path)


def load_model(
    path: str | os.PathLike[str], known: Mapping[str, Kind] | None = None
) -> FittedModel:
    """Read a model that `save` wrote.

    Args:
        path: the JSON file.
        known: kinds by name; by default those of all installed plugins.

    Raises:
        FileNotFoundError: there is no such file.
        WeakLabelError: it holds no model, one of a newer format or of a kind that is not known.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise WeakLabelError(f"{path} is no JSON file of a model: {error}") from error
    if not isinstance(content, dict) or content.get("weaklabel") != "model":
        raise WeakLabelError(f"{path} holds no model: give what `weaklabel fit` wrote")
    if content.get("format") != FORMAT:
        raise WeakLabelError(
            f"{path} holds a model of format {content.get('format')!r}, and this version reads"
            f" {FORMAT}: fit it again, or update weaklabel"
        )
    table = load_registry().label_models if known is None else known
    if content.get("kind") not in table:
        raise WeakLabelError(
            f"{path} holds a model of kind {content.get('kind')!r}, and the kinds known are"
            f" {sorted(table)}: install the plugin it came from"
        )
    try:
        fitted: FittedModel = table[content["kind"]].fitted.from_dict(content)
    except (KeyError, TypeError) as error:
        raise WeakLabelError(
            f"{path} holds a broken model, {type(error).__name__}: {error}"
        ) from error
    return fitted


def as_patterns(votes: Any) -> Patterns:
    """Votes as patterns with the functions sorted by name: the order must not matter to a fit.

    Raises:
        WeakLabelError: there are no rows, or `votes` is no table of votes.
    """
    patterns = votes if isinstance(votes, Patterns) else Patterns.count(votes)
    if not patterns.rows:
        raise WeakLabelError("no rows of votes: there is nothing to fit a model to")
    return patterns.ordered()


def check_functions(functions: Iterable[str], columns: Iterable[str]) -> None:
    """Refuse a table whose functions are not the model's."""
    wanted = set(functions)
    found = {name.removeprefix(PREFIX) for name in columns if name.startswith(PREFIX)}
    if lacking := sorted(wanted - found):
        raise WeakLabelError(
            f"the model knows functions that the votes lack: {lacking}; apply them to the queries"
            " too, or fit a model to the functions that are there"
        )
    if extra := sorted(found - wanted):
        raise WeakLabelError(
            f"the votes have functions that the model does not know: {extra}; fit it again with"
            f" them, or drop the columns {[PREFIX + name for name in extra]}"
        )


def check_votes(votes: npt.NDArray[np.int8], functions: tuple[str, ...]) -> None:
    """Refuse an array that cannot be the votes of these functions."""
    if votes.ndim != 2 or votes.shape[1] != len(functions):
        raise WeakLabelError(
            f"weights takes votes (N, {len(functions)}), a column for each of {list(functions)},"
            f" got shape {votes.shape}"
        )
    if not np.isin(votes, (-1, 0, 1)).all():
        raise WeakLabelError("votes must be 1 (accept), 0 (abstain) or -1 (reject)")


def vote_column(name: str) -> nw.Expr:
    """A function's column of votes, where a null is an abstain."""
    return nw.col(PREFIX + name).fill_null(0)


def by_votes(functions: Sequence[str], values: Sequence[float]) -> nw.Expr:
    """A number for every combination of votes, those of the first function changing fastest.

    Args:
        functions: names of m functions.
        values: 3ᵐ of them; of one function for reject, abstain and accept.
    """
    if not functions:
        return nw.lit(values[0])
    *others, last = functions
    third = len(values) // 3
    reject, abstain, accept = (
        by_votes(others, values[i * third : (i + 1) * third]) for i in range(3)
    )
    vote = vote_column(last)
    return (
        nw.when(vote == 1)
        .then(accept)
        .otherwise(nw.when(vote == -1).then(reject).otherwise(abstain))
    )


def logistic_expression(terms: Iterable[nw.Expr], constant: float) -> nw.Expr:
    """1 / (1 + exp(-(constant + terms))), added up from the left as `logistic` is given it."""
    total = nw.lit(constant)
    for term in terms:
        total = total + term
    # Past ±700 exp leaves the range of a double, which some engines take for an error.
    return 1.0 / (1.0 + (-1.0 * total.clip(-700.0, 700.0)).exp())


def logistic(total: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """1 / (1 + exp(-total)), in [0, 1]."""
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(total, -700.0, 700.0))))
