"""The decorator that makes a labeling function, and what it makes.

    @labeling_function(requires=["session_id", "timestamp"], family="session")
    def rapid_repetition(within=timedelta(seconds=10)):
        return reject_if(next_in_session("timestamp") - nw.col("timestamp") < within)

A labeling function is an expression over columns of the query log, so that one function runs on
Polars, DuckDB and a Spark cluster. Its arguments are its parameters: each has a default, and can be
set from a command line or a TOML file.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from types import CodeType
from typing import Any, Final, Literal, TypeAlias

import narwhals as nw_main
import narwhals.stable.v2 as nw

from weaklabel.content import typed
from weaklabel.errors import WeakLabelError, ends_run, foreign
from weaklabel.votes import PREFIX

Parameter: TypeAlias = bool | int | float | str | timedelta | tuple[str, ...]
Scope: TypeAlias = Literal["session", "log"]

_NAME = re.compile(r"[A-Za-z_][\w.-]*")
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(ms|s|min|h|d)?")
_SECONDS = {"ms": 0.001, None: 1, "s": 1, "min": 60, "h": 3600, "d": 86400}
_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}

# What a parameter takes, by the type of its default: the first that fits.
_EXPECTED: Final[Mapping[type, str]] = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "a text",
    timedelta: "a duration: seconds, or a number with ms, s, min, h or d",
    tuple: "a list of texts",
}


@dataclass(frozen=True)
class Identity:
    """Identity of a function that cast votes, as tables of votes and models keep it.

    Attributes:
        name: of the function.
        distribution: of the plugin that registered it; "local" where none did.
        version: of the distribution.
        source: SHA-256 of its source text, the first 12 hexadecimal digits.
        parameters: the values of its arguments, as JSON holds them.
    """

    name: str
    distribution: str
    version: str
    source: str
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Identity:
        """Make one of what `dataclasses.asdict` made; other keys are left.

        Raises:
            WeakLabelError, TypeError: see `typed`.
        """
        found: Identity = typed(cls, content, "function")
        return found

    def changes(self, other: Identity) -> list[str]:
        """Differences from `other` in source and parameters, which make it another function."""
        found = []
        if self.source != other.source:
            found.append(f"source {other.source} → {self.source}")
        for name in sorted({*self.parameters, *other.parameters}):
            before, now = other.parameters.get(name), self.parameters.get(name)
            if before != now:
                found.append(f"{name} {before!r} → {now!r}")
        return found


@dataclass(frozen=True)
class LabelingFunction:
    """A named rule that votes on whether a query's transcript is right.

    Args:
        function: what was decorated; calling the labeling function calls it.
        name: its name; its votes are the Int8 column `lf:<name>`.
        requires: columns it reads. `{parameter}` in one stands for a parameter's value.
        nullable: those of them whose null is no lack of input: it is evidence, too, or the function
            knows what to make of it.
        family: functions of one family look at the same thing, and a label model lets them share
            their evidence instead of multiplying it.
        rowwise: it takes one row, a mapping, and returns a vote: the slow kind.
        inputs: for a row-wise function, further entries of its row, by name, as expressions.
        scope: "session" where a query's vote depends on its own session alone; "log" where it
            depends on the whole log, which then cannot be cut in parts.
        optional: applied only where asked for by name.
        parameters: the values its arguments take.
    """

    function: Callable[..., Any]
    name: str
    requires: tuple[str, ...] = ()
    nullable: tuple[str, ...] = ()
    family: str | None = None
    rowwise: bool = False
    inputs: Mapping[str, Any] = field(default_factory=dict)
    scope: Scope = "session"
    optional: bool = False
    parameters: Mapping[str, Parameter] = field(default_factory=dict)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the decorated function, with its own defaults."""
        return self.function(*args, **kwargs)

    @property
    def column(self) -> str:
        """The column of its votes."""
        return f"{PREFIX}{self.name}"

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns it reads, parameters filled in."""
        return tuple(column.format_map(self.parameters) for column in self.requires)

    @property
    def description(self) -> str:
        """The first paragraph of its docstring, on one line."""
        text = inspect.getdoc(self.function) or ""
        return " ".join(text.partition("\n\n")[0].split())

    @property
    def source_hash(self) -> str:
        """SHA-256 of its source text, the first 12 hexadecimal digits.

        The numbers and texts that it takes from a function around it, which may make several of
        one source, are in it. What it calls elsewhere is not. Without a source (a function made in
        a shell), its byte code and constants stand for it.
        """
        function = inspect.unwrap(self.function)
        try:
            source = textwrap.dedent(inspect.getsource(function))
        except (OSError, TypeError):
            source = _compiled(function.__code__)
        around = inspect.getclosurevars(function).nonlocals.items()
        given = [item for item in around if _is_parameter(item[1])]
        text = f"{source}\n{sorted(given)!r}"
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def inputs_needed(self) -> tuple[str, ...]:
        """The columns whose null or NaN means that it has no input, parameters filled in."""
        nullable = {column.format_map(self.parameters) for column in self.nullable}
        return tuple(column for column in self.columns if column not in nullable)

    def identity(self, distribution: str = "local", version: str = "0") -> Identity:
        """The identity that its votes carry."""
        plain = {name: as_json(value) for name, value in self.parameters.items()}
        return Identity(self.name, distribution, version, self.source_hash, plain)

    def with_parameters(self, **values: Any) -> LabelingFunction:
        """The same function with some parameters set.

        Values may be of the parameter's type, or the text or number that a command line or a TOML
        file holds: durations are seconds, or `"10s"`, `"250ms"`, `"5min"`, `"2h"`, `"1d"`; several
        words are a list, or a text with commas.

        Raises:
            WeakLabelError: there is no such parameter, or the value is not of its type.
        """
        changed = dict(self.parameters)
        for name, value in values.items():
            if name not in self.parameters:
                known = ", ".join(self.parameters) or "it has none"
                raise WeakLabelError(
                    f"labeling function {self.name!r} has no parameter {name!r}"
                    f" (its parameters: {known})"
                )
            default = self.parameters[name]
            try:
                changed[name] = _like(default, value)
            except (ValueError, OverflowError):
                wanted = next(text for kind, text in _EXPECTED.items() if isinstance(default, kind))
                raise WeakLabelError(
                    f"parameter {self.name}.{name}: {value!r} given, expected {wanted}"
                ) from None
        return replace(self, parameters=changed)

    def expression(self) -> nw.Expr:
        """The votes as an expression over the query log.

        Raises:
            WeakLabelError: the function raised, or did not return an expression.
            TypeError: it is row-wise and has no expression.
        """
        if self.rowwise:
            raise TypeError(f"labeling function {self.name!r} is row-wise: it has no expression")
        try:
            made = self.function(**self.parameters)
        except BaseException as error:
            if ends_run(error):
                raise
            raise WeakLabelError(
                f"labeling function {self.name!r} raised {foreign(error)}"
            ) from error
        # Expressions of the main namespace work as well where versions agree.
        if not isinstance(made, nw_main.Expr):
            raise WeakLabelError(
                f"labeling function {self.name!r} returned {type(made).__name__}, expected a"
                " narwhals expression (import narwhals.stable.v2 as nw), or declare it with"
                " rowwise=True"
            )
        return made  # type: ignore[return-value]


def labeling_function(
    *,
    name: str | None = None,
    requires: Sequence[str] = (),
    nullable: Sequence[str] = (),
    family: str | None = None,
    rowwise: bool = False,
    inputs: Mapping[str, nw.Expr] | None = None,
    scope: Scope = "session",
    optional: bool = False,
) -> Callable[[Callable[..., Any]], LabelingFunction]:
    """Make a labeling function of a function that returns a narwhals expression.

    The function's arguments are its parameters and have defaults: a number, a text, a bool, a
    `timedelta` or a tuple of texts. With `rowwise=True` the first argument is the row, a mapping of
    the required columns, `query_id` and `inputs`, and a vote is returned (None: ABSTAIN).

    Where one of the required columns is null or NaN the function has no input: its vote is missing
    (null), which says nothing of the transcript, and a row-wise function is not called.

    Args:
        name: by default the function's.
        requires: columns it reads; `"{other}"` is the value of the parameter `other`.
        inputs: row-wise only: further entries of the row, such as
            `{"following": next_in_session("transcript")}`.
        nullable, family, rowwise, scope, optional: see `LabelingFunction`.

    Raises:
        TypeError: the declaration contradicts itself; the message says where.
    """

    def declare(function: Callable[..., Any]) -> LabelingFunction:
        if not inspect.isfunction(function):
            raise TypeError(
                f"@labeling_function marks a function, not {function!r}; its options are given by"
                " name, such as requires=[...]"
            )
        title = function.__name__ if name is None else name
        signature = f"{title}{inspect.signature(function)}"
        if not _NAME.fullmatch(title):
            raise TypeError(
                f"labeling function {title!r}: a name is letters, digits, '_', '.' and '-',"
                " beginning with a letter"
            )
        if isinstance(requires, str):
            raise TypeError(f"{signature}: requires= takes a list of columns: [{requires!r}]")
        if others := sorted(set(nullable) - set(requires)):
            raise TypeError(f"{signature}: nullable= names {others}, which requires= does not")
        if inputs and not rowwise:
            raise TypeError(f"{signature}: inputs= belongs to rowwise=True")
        if scope not in ("session", "log"):
            raise TypeError(f"{signature}: scope= is 'session' or 'log', not {scope!r}")
        parameters = _parameters(function, signature, rowwise)
        try:
            for column in requires:
                column.format_map(parameters)
        except (AttributeError, LookupError, ValueError) as error:
            raise TypeError(
                f"{signature}: requires= holds names of columns, with the name of a parameter in"
                f" braces: {column!r} names no parameter of {list(parameters)} ({error})"
            ) from error
        return LabelingFunction(
            function=function,
            name=title,
            requires=tuple(requires),
            nullable=tuple(nullable),
            family=family,
            rowwise=rowwise,
            inputs=dict(inputs or {}),
            scope=scope,
            optional=optional,
            parameters=parameters,
        )

    return declare


def as_json(value: Parameter) -> Any:
    """A parameter's value as JSON holds it: durations as "10s", several words as a list."""
    if isinstance(value, timedelta):
        return f"{value.total_seconds():g}s"
    return list(value) if isinstance(value, tuple) else value


def _parameters(
    function: Callable[..., Any], signature: str, rowwise: bool
) -> dict[str, Parameter]:
    arguments = list(inspect.signature(function).parameters.values())
    if rowwise:
        if not arguments or arguments[0].default is not inspect.Parameter.empty:
            raise TypeError(f"{signature}: a row-wise function takes the row first")
        arguments = arguments[1:]
    parameters: dict[str, Parameter] = {}
    for argument in arguments:
        if argument.kind not in (argument.POSITIONAL_OR_KEYWORD, argument.KEYWORD_ONLY):
            raise TypeError(f"{signature}: parameters are passed by name: {argument} cannot be")
        value = argument.default
        if value is argument.empty:
            raise TypeError(
                f"{signature}: parameter {argument.name!r} needs a default"
                + ("" if rowwise else " (a function of a row is declared with rowwise=True)")
            )
        if isinstance(value, list):
            value = tuple(value)
        if not _is_parameter(value):
            raise TypeError(
                f"{signature}: the default of {argument.name!r} is a number, a text, a bool, a"
                f" timedelta or a tuple of texts, not {value!r}"
            )
        parameters[argument.name] = value
    return parameters


def _is_parameter(value: Any) -> bool:
    words = isinstance(value, tuple) and all(isinstance(word, str) for word in value)
    return words or isinstance(value, bool | int | float | str | timedelta)


def _compiled(code: CodeType) -> str:
    """A text of what code does, without addresses and orders of sets, which change between runs."""
    constants = [
        _compiled(constant)
        if isinstance(constant, CodeType)
        else repr(sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant)
        for constant in code.co_consts
    ]
    return f"{code.co_code.hex()} {constants} {code.co_names}"


def _like(default: Parameter, value: Any) -> Parameter:
    """`value` as the type of `default`.

    Raises:
        ValueError, OverflowError: it is of another type, or out of range.
    """
    text = isinstance(value, str)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(default, bool):
        made = _BOOLEANS.get(value.lower()) if text else value
        if isinstance(made, bool):
            return made
    elif isinstance(default, int | float):
        if text or number:
            made = int(value) if isinstance(default, int) else float(value)
            if math.isfinite(made) and (text or made == value):
                return made
    elif isinstance(default, timedelta):
        if text and (found := _DURATION.fullmatch(value.strip())):
            return timedelta(seconds=float(found[1]) * _SECONDS[found[2]])
        if number and value >= 0:
            return timedelta(seconds=value)
        if isinstance(value, timedelta):
            return value
    elif isinstance(default, str):
        if text:
            return str(value)
    else:
        words = [word.strip() for word in value.split(",") if word.strip()] if text else value
        if isinstance(words, Sequence) and all(isinstance(word, str) for word in words):
            return tuple(words)
    raise ValueError
