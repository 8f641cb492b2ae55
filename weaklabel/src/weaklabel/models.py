"""The interface of label models, and models in files.

A model is a frozen configuration; `fit` makes of it a fitted model, frozen too, which turns votes
into weights: P(the transcript is right). A plugin's model needs a `Kind` to be loaded by.

A missing input is null in a table and `MISSING` in an array of votes. Models that know what to make
of it say so with `handles_missing = True`, the configuration and the fitted model alike; to all
others it is given as an abstain.
"""

from __future__ import annotations

import inspect
import json
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from numbers import Real
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Final,
    Protocol,
    Self,
    TypeVar,
)

import narwhals.stable.v2 as nw
import numpy as np
import numpy.typing as npt
import polars as pl

from weaklabel.content import typed
from weaklabel.errors import WeakLabelError, WeakLabelWarning
from weaklabel.files import written_beside
from weaklabel.labeling import Identity, LabelingFunction
from weaklabel.patterns import Patterns, check_votes, identity_of, no_vote, vote_columns
from weaklabel.plugins import Kind, load_registry
from weaklabel.votes import MISSING, PREFIX

if TYPE_CHECKING:
    from weaklabel.gold import Gold

FORMAT: Final = 2  # of models; those of 1 take a missing input for an abstain

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

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a JSON file that `load_model` reads."""
        ...


class Fitted(ABC):
    """Base of the package's own fitted models: weights, labels and files.

    A subclass is a frozen dataclass with `functions` and `identities`, whose other fields are text,
    numbers, booleans and None, and tuples, lists, dicts by text and dataclasses of such. It says
    its weight in `weight`, as an expression, so that any engine can label without a join.
    """

    kind: ClassVar[str]
    handles_missing: ClassVar[bool] = False
    functions: tuple[str, ...]
    identities: tuple[Identity | None, ...] = ()

    def __post_init__(self) -> None:
        if len(set(self.functions)) != len(self.functions) or not self.functions:
            raise WeakLabelError(f"functions must be different names, got {self.functions!r}")
        if self.identities and len(self.identities) != len(self.functions):
            raise WeakLabelError(
                f"identities must be none or {len(self.functions)}, one a function, got"
                f" {len(self.identities)}"
            )

    @abstractmethod
    def weight(self) -> nw.Expr:
        """P(right) as an expression over the columns of votes; see `vote_column`."""

    def weights(self, votes: npt.NDArray[np.int8]) -> npt.NDArray[np.float64]:
        """P(right), float64 (N,), for votes int8 (N, F) in the order of `functions`.

        Where a function had no input the vote is `MISSING`.
        """
        votes = np.asarray(votes)
        check_votes(votes, self.functions)
        names = [PREFIX + name for name in self.functions]
        # Said, since Polars guesses the orientation of a square array by its layout in memory.
        table = pl.DataFrame(votes.astype(np.int8), names, orient="row").with_columns(
            pl.all().replace(MISSING, None)
        )
        # Not `select`: a weight that no vote changes would be one row.
        return nw.from_native(table).with_columns(weight=self.weight())["weight"].to_numpy()

    def to_dict(self) -> dict[str, Any]:
        """All parameters, as JSON can write them."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Make one of what `to_dict` returned and JSON read; other keys are left.

        Raises:
            WeakLabelError: a field without a default is absent, or holds what its type does not.
        """
        found: Self = typed(cls, content)
        return found

    def label(
        self,
        frame: Frame,
        threshold: float = 0.5,
        functions: Iterable[LabelingFunction] | None = None,
    ) -> Frame:
        """Add `weight` and `label` to a table of votes, inside the engine that holds it.

        Args:
            frame: any frame narwhals knows, eager or lazy, with a column `lf:<name>` for every
                function the model was fitted to, in any order. Its rows and their order stay.
            threshold: `label` is 1 where `weight` reaches it, else -1.
            functions: those that voted, to be compared with the model's: a frame does not say which
                ones they were, as a file does.

        Returns:
            A frame of the same type, with `weight` (Float64, in [0, 1]) and `label` (Int8). In a
            lazy frame both are null where a vote is none of 1, 0, -1 and null, and `label` is where
            `weight` is NaN.

        Raises:
            WeakLabelError: the functions are not those the model knows, the table has a column
                `weight` or `label` already, or an eager frame has votes that are none, or would
                have weights that are NaN.

        A NaN counts as null.
        """
        if not 0 <= threshold <= 1:
            raise WeakLabelError(f"threshold must lie in [0, 1], got {threshold!r}")
        table: Any = nw.from_native(frame)
        votes = vote_columns(table)
        schema = table.collect_schema()
        check_functions(self.functions, votes)
        if functions is not None:
            check_identities(self, {one.name: one.identity() for one in functions})
        if taken := [name for name in ("weight", "label") if name in schema]:
            raise WeakLabelError(
                f"the table has columns {taken} already: drop or rename them, or label the votes"
            )
        floats = [nw.col(name) for name in votes if schema[name].is_float()]
        if floats:
            table = table.with_columns(*(nw.when(~vote.is_nan()).then(vote) for vote in floats))
        valid = [_is_vote(name) for name in self.functions]
        weight = nw.when(nw.all_horizontal(*valid, ignore_nulls=False)).then(self.weight())
        labeled = weighed(table, weight, threshold)
        if isinstance(labeled, nw.DataFrame) and labeled["label"].null_count():
            for name in self.functions:
                if not table.select(_is_vote(name).all()).item():
                    raise no_vote(name, table.filter(~_is_vote(name))[PREFIX + name].to_list())
            raise no_weight(self)
        native: Frame = nw.to_native(labeled)
        return native

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a JSON file that `load_model` reads.

        Returns:
            The path written.

        Raises:
            WeakLabelError: a field holds what would not come back from the file as it is.
        """
        identities = [None if one is None else asdict(one) for one in self.identities]
        content = {"weaklabel": "model", "format": FORMAT, "kind": self.kind, **self.to_dict()}
        content["identities"] = identities
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
        # A `from_dict` of their own may make what has no plain equality, such as arrays.
        if inspect.getattr_static(self, "from_dict") is vars(Fitted)["from_dict"]:
            made = self.from_dict(json.loads(text))
            for name in (one.name for one in fields(self)):  # type: ignore[arg-type]
                if getattr(made, name) != getattr(self, name):
                    raise WeakLabelError(
                        f"a model of kind {self.kind!r} cannot be saved: of {name},"
                        f" {getattr(self, name)!r}, a file would give {getattr(made, name)!r}; give"
                        " the field the type of what it holds, or write a to_dict and from_dict"
                    )
        with written_beside(path) as beside:
            beside.write_text(text + "\n", encoding="utf-8")
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
        WeakLabelError: it is a folder, holds no model, a broken one, or one of another format or of
            a kind that is not known.
    """
    if Path(path).is_dir():
        raise WeakLabelError(f"{path} is a folder: give the JSON file that `weaklabel fit` wrote")
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise WeakLabelError(f"{path} is no JSON file of a model: {error}") from error
    if not isinstance(content, dict) or content.get("weaklabel") != "model":
        raise WeakLabelError(f"{path} holds no model: give what `weaklabel fit` wrote")
    if content.get("format") != FORMAT:
        raise WeakLabelError(
            f"{path} holds a model of format {content.get('format')!r}, and this version reads"
            f" {FORMAT}: apply the functions and fit it again, or update weaklabel"
        )
    table = load_registry().label_models if known is None else known
    if not isinstance(content.get("kind"), str) or content["kind"] not in table:
        raise WeakLabelError(
            f"{path} holds a model of kind {content.get('kind')!r}, and the kinds known are"
            f" {sorted(table)}: install the plugin it came from"
        )
    try:
        fitted: FittedModel = table[content["kind"]].fitted.from_dict(content)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        kind = "" if isinstance(error, WeakLabelError) else f"{type(error).__name__}: "
        raise WeakLabelError(
            f"{path} holds a broken model: {kind}{error}; fit it again, or undo the edit"
        ) from error
    return fitted


def identities_of(content: Mapping[str, Any]) -> tuple[Identity | None, ...]:
    """The identities that `Fitted.save` wrote, for a `from_dict` of one's own."""
    return tuple(None if entry is None else identity_of(entry) for entry in content["identities"])


# Fitting and weighing any model, plugins' included


def fit(model: Model, patterns: Patterns, gold: Gold | None = None) -> FittedModel:
    """Fit a model of any kind; one that does not handle missing inputs gets abstains for them."""
    if not getattr(model, "handles_missing", False):
        patterns = patterns.without_missing()
        if gold is not None:
            gold = gold.without_missing()
    return model.fit(patterns, gold=gold)


def weights(fitted: FittedModel, votes: npt.NDArray[np.int8]) -> npt.NDArray[np.float64]:
    """P(right) by a fitted model of any kind, in [0, 1]: float64 (N,), for votes int8 (N, F).

    A model that does not handle missing inputs gets abstains for them.

    Raises:
        WeakLabelError: the votes are not those of its functions, or a weight is NaN.
    """
    if not getattr(fitted, "handles_missing", False):
        votes = np.where(np.asarray(votes) == MISSING, np.int8(0), votes)
    found = np.clip(fitted.weights(votes), 0.0, 1.0)
    if np.isnan(found).any():
        raise no_weight(fitted)
    return found


def no_weight(fitted: FittedModel) -> WeakLabelError:
    """The error of a model whose weights are NaN."""
    kind = getattr(fitted, "kind", type(fitted).__name__)
    return WeakLabelError(
        f"the model, of kind {kind!r}, has weights that are NaN: fit it again, or ask its author"
    )


def check_numbers(model: Any, *names: str) -> None:
    """Refuse options of a frozen model that are no numbers, as true is; NumPy's become Python's."""
    for name in names:
        value = getattr(model, name)
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        if not is_number:
            raise WeakLabelError(f"{name} must be a number, got {value!r}")
        if not isinstance(value, int):  # of which some are too large for a float
            object.__setattr__(model, name, float(value))


def check_prior(model: Any) -> None:
    """Refuse a P(right) that leaves one of the classes impossible, or is no number."""
    check_numbers(model, "prior")
    if not 0 < model.prior < 1:
        raise WeakLabelError(f"prior must lie between 0 and 1, got {model.prior!r}")


def check_identities(
    fitted: FittedModel,
    seen: Mapping[str, Identity | None],
    *,
    allow_changed: bool = False,
) -> None:
    """Refuse votes of other functions than the model's, though they have the same names.

    Args:
        fitted: the model; a plugin's without `identities` is taken as it is.
        seen: the votes' functions by name; what has no identity on either side is not compared.
        allow_changed: warn instead.

    Raises:
        WeakLabelError: a function has another source or other parameters.

    Warns:
        WeakLabelWarning: one of the same source comes in another version.
    """
    changed, versions = [], []
    identities: tuple[Identity | None, ...] = getattr(fitted, "identities", None) or ()
    for name, before in zip(fitted.functions, identities, strict=False):
        now = seen.get(name)
        if before is None or now is None:
            continue
        if changes := now.changes(before):
            changed.append(f"{name} ({', '.join(changes)})")
        elif "local" in (now.distribution, before.distribution):  # read from no distribution
            continue
        elif (now.distribution, now.version) != (before.distribution, before.version):
            versions.append(
                f"{name} ({before.distribution} {before.version} →"
                f" {now.distribution} {now.version})"
            )
    if changed:
        message = f"these functions are not those that the model knows: {'; '.join(changed)}"
        if not allow_changed:
            raise WeakLabelError(
                f"{message}. Apply the model's functions, fit a model to these votes, or go on"
                " with --allow-changed (allow_changed=True)"
            )
        warnings.warn(message, WeakLabelWarning, stacklevel=3)
    if versions:
        warnings.warn(
            f"functions of the same source come in another version: {'; '.join(versions)}",
            WeakLabelWarning,
            stacklevel=3,
        )


# For models of one's own


def as_patterns(votes: Any, *, missing: bool = False) -> Patterns:
    """Votes as patterns with the functions sorted by name: the order must not matter to a fit.

    Args:
        votes: a frame, or patterns.
        missing: keep missing inputs; by default they become abstains.

    Raises:
        WeakLabelError: there are no rows, or `votes` is no table of votes.
    """
    patterns = votes if isinstance(votes, Patterns) else Patterns.count(votes)
    if not patterns.rows:
        raise WeakLabelError("no rows of votes: there is nothing to fit a model to")
    return (patterns if missing else patterns.without_missing()).ordered()


def weighed(table: Any, weight: nw.Expr, threshold: float) -> Any:
    """A narwhals frame with a weight, and the label that it has by a threshold."""
    sign = nw.when(nw.col("weight") >= threshold).then(nw.lit(1)).otherwise(nw.lit(-1))
    # A NaN would reach any threshold.
    known = ~nw.col("weight").is_null() & ~nw.col("weight").is_nan()
    sign = nw.when(known).then(sign).cast(nw.Int8)
    return table.with_columns(weight.alias("weight")).with_columns(sign.alias("label"))


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


def _is_vote(name: str) -> nw.Expr:
    vote = nw.col(PREFIX + name)
    return vote.is_null() | (vote == 0) | (vote == 1) | (vote == -1)


def vote_column(name: str) -> nw.Expr:
    """A function's column of votes, where a missing input is an abstain."""
    return nw.col(PREFIX + name).fill_null(0)


def by_vote(name: str, reject: float, abstain: float, accept: float, missing: float) -> nw.Expr:
    """A number for each vote of a function, and one for a missing input."""
    vote = nw.col(PREFIX + name)
    silent = nw.when(vote.is_null()).then(missing).otherwise(abstain)
    return (
        nw.when(vote == 1)
        .then(accept)
        .otherwise(nw.when(vote == -1).then(reject).otherwise(silent))
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
