"""Discovery of plugins through pluggy and entry points.

Plugins are found by the entry-point group `weaklabel` and loaded one by one, so that a broken one
is named with its distribution and the others work on. The order is: distribution (this one first),
entry point, registration.
"""

from __future__ import annotations

import difflib
import hashlib
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from pluggy import HookImpl, HookimplMarker, HookspecMarker, PluginManager, PluginValidationError

from weaklabel.errors import WeakLabelError
from weaklabel.labeling import Identity, LabelingFunction

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


@dataclass(frozen=True)
class Kind:
    """A kind of model, by which `weaklabel fit --model` and `load_model` find it.

    Attributes:
        name: what files and the command line call it.
        model: makes a configuration, from its options.
        from_dict: makes a fitted model of what its `to_dict` returned.
    """

    name: str
    model: type[Any]
    fitted: type[Any]


@dataclass(frozen=True)
class Exporter:
    """A format of training data, known by its name.

    Args:
        name: what `--format` calls it.
        description: what it writes, in a sentence.
        required: columns that it wants besides `query_id`, `transcript` and `weight`.
        write: gets the rows and an empty folder to write them in, which takes its final name once
            `write` is back. `query_id` is unique; `transcript` has no null; `weight` is Float64 in
            [0, 1]; required columns have no null; `audio` is an absolute path or a URL; `duration`
            is Float64 and greater than 0. The same rows are to give the same bytes.
    """

    name: str
    description: str
    required: tuple[str, ...]
    write: Callable[[pl.DataFrame, Path], None]


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

    def identity(self, function: LabelingFunction) -> Identity:
        """What the votes of a registered function say of it."""
        origin = self.origins[FUNCTIONS, function.name]
        return function.identity(origin.distribution, origin.version)

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


if TYPE_CHECKING:
    import polars as pl

logger = logging.getLogger(__name__)

ALLOWED: Final = "WEAKLABEL_PLUGINS"
STRICT: Final = "WEAKLABEL_STRICT"


def load_labeling_functions(
    names: Iterable[str] | None = None, *, columns: Iterable[str] | None = None
) -> tuple[LabelingFunction, ...]:
    """The functions of all installed plugins: `load_registry().select(...)`.

    >>> [function.name for function in load_labeling_functions(columns=["confidence", "dwell"])]
    ['asr_confidence', 'dwell']
    """
    return load_registry().select(names, columns=columns)


def load_registry(
    *,
    allowed: Sequence[str] | None = None,
    blocked: Sequence[str] = (),
    file: str | os.PathLike[str] | None = None,
    strict: bool | None = None,
) -> Registry:
    """Load the plugins that are installed.

    Args:
        allowed: names of entry points or distributions; nothing else is loaded. By default what
            the variable WEAKLABEL_PLUGINS lists (an empty one: nothing), or everything where it is
            not set. The built-in functions are the entry point `builtin`.
        blocked: names of entry points or distributions that are not loaded.
        file: a Python file with labeling functions, `weaklabel_lfs.py` say. Its functions are
            registered as they stand, unless it has hooks. Its faults are errors: it was asked for.
        strict: faults are an error. By default where the variable WEAKLABEL_STRICT is 1.

    Faults that are no errors are logged as warnings, with their traceback at level DEBUG.

    Raises:
        WeakLabelError: strict, and there are faults; or `file` does not load, holds no labeling
            function or takes a name that is taken; or a name in `allowed` or `blocked` is nothing
            installed.
    """
    if allowed is None and ALLOWED in os.environ:
        allowed = [name for part in os.environ[ALLOWED].split(",") if (name := part.strip())]
    if strict is None:
        strict = os.environ.get(STRICT, "") not in ("", "0")
    loader = Loader()
    found = _installed()
    _check_names([*(allowed or ()), *blocked], found)
    for plugin, entry_point in found:
        names = {plugin.name, plugin.distribution, str(plugin)}
        if names.isdisjoint(blocked) and (allowed is None or not names.isdisjoint(allowed)):
            loader.load(plugin, entry_point)
    named = None if file is None else loader.load_file(Path(file))
    registry = loader.collect()
    if wrong := [fault.message for fault in registry.faults if fault.plugin is named]:
        raise WeakLabelError(f"{file}: {'; '.join(wrong)}")
    if strict and registry.faults:
        raise WeakLabelError("; ".join(map(str, registry.faults)))
    for fault in registry.faults:
        logger.warning("%s", fault)
        logger.debug("%s", fault.details)
    return registry


def _installed() -> list[tuple[Plugin, EntryPoint]]:
    found = []
    for entry_point in entry_points(group=PROJECT):
        # `dist` is None only for entry points made by hand.
        name, version = "unknown", "0"
        if entry_point.dist is not None:
            name, version = entry_point.dist.name, entry_point.dist.version
        found.append((Plugin(entry_point.name, name, version, entry_point.value), entry_point))
    # An editable install can be found twice on the path: once is enough.
    unique = {(plugin.distribution, plugin.name): (plugin, entry) for plugin, entry in found}
    return sorted(
        unique.values(),
        key=lambda pair: (pair[0].distribution != PROJECT, pair[0].distribution, pair[0].name),
    )


def _check_names(names: Sequence[str], found: Sequence[tuple[Plugin, EntryPoint]]) -> None:
    known = {word for plugin, _ in found for word in (plugin.name, plugin.distribution)}
    known |= {str(plugin) for plugin, _ in found}
    for name in names:
        if name not in known:
            plugins = ", ".join(str(plugin) for plugin, _ in found) or "none"
            raise WeakLabelError(
                f"no plugin {name!r} is installed{did_you_mean(name, known)}: there are {plugins}"
            )


@dataclass(frozen=True)
class _Hook:
    """A hook, and what its `register` takes."""

    name: str
    what: str
    key: Callable[[Any], str]
    accepts: Callable[[Any], bool]


HOOKS: Final = (
    _Hook(
        FUNCTIONS,
        "a function decorated with @labeling_function",
        lambda item: item.name,
        lambda item: isinstance(item, LabelingFunction),
    ),
    _Hook(
        "weaklabel_label_models",
        "a weaklabel.Kind",
        lambda item: item.name,
        lambda item: isinstance(item, Kind),
    ),
    _Hook(
        "weaklabel_exporters",
        "a weaklabel.Exporter",
        lambda item: item.name,
        lambda item: isinstance(item, Exporter),
    ),
)


class Loader:
    """Loads plugins one after the other, then collects what they register, in a `Registry`."""

    def __init__(self) -> None:
        self.manager = PluginManager(PROJECT)
        self.manager.add_hookspecs(sys.modules[__name__])
        self.plugins: dict[str, Plugin] = {}
        self.faults: list[Fault] = []

    def fault(self, plugin: Plugin, stage: Stage, message: str, cause: object = None) -> None:
        """Note what is wrong, with the traceback of what was raised."""
        details = ""
        if isinstance(cause, BaseException):
            details = "".join(traceback.format_exception(cause))
        self.faults.append(Fault(plugin, stage, " ".join(message.split()), details))

    def load(self, plugin: Plugin, entry_point: EntryPoint) -> None:
        """Import what an entry point names, and register it."""
        try:
            module = entry_point.load()
        # A plugin may raise anything while it is imported, even SystemExit; it is reported.
        except (Exception, SystemExit) as error:  # noqa: BLE001
            self.fault(plugin, "import", f"{type(error).__name__}: {error}", error)
            return
        self.register(plugin, module)

    def load_file(self, path: Path) -> Plugin:
        """Run a file of labeling functions, and register it."""
        if path.suffix != ".py":
            raise WeakLabelError(f"{path} is not a Python file: give one that ends in .py")
        try:
            source = path.read_bytes()
        except OSError as error:
            raise WeakLabelError(
                f"cannot read the labeling functions in {path}: {error.strerror}"
            ) from error
        digest = hashlib.sha256(source).hexdigest()[:12]
        plugin = Plugin(path.stem, path.name, digest, str(path))
        # Of a name that no other module has, and run from what was read: no byte code of an older
        # version, and none left behind.
        module = ModuleType(f"weaklabel_file_{digest}")
        module.__file__ = os.path.abspath(path)
        sys.modules[module.__name__] = module  # while it runs, for dataclasses look there
        try:
            exec(compile(source, module.__file__, "exec"), vars(module))
        except (Exception, SystemExit) as error:
            raise WeakLabelError(
                f"{path} does not load: {type(error).__name__}: {error}"
            ) from error
        finally:
            # Not later: what cannot be imported on a cluster's workers is sent to them whole.
            del sys.modules[module.__name__]
        if not any(self.manager.parse_hookimpl_opts(module, name) for name in dir(module)):
            _give_hook(module, path)
        self.register(plugin, module)
        return plugin

    def register(self, plugin: Plugin, module: object) -> None:
        """Register a plugin whose module is there, and look at its hooks."""
        name = str(plugin)
        try:
            self.manager.register(module, name=name)
        except PluginValidationError as error:
            # pluggy keeps a plugin whose hooks it refused.
            self.manager.unregister(name=name)
            self.fault(plugin, "hooks", str(error), error)
            return
        except ValueError as error:  # the same object under two names
            self.fault(plugin, "hooks", f"{error}", error)
            return
        self.plugins[name] = plugin
        specified = [hook.name for hook in HOOKS]
        callers = self.manager.get_hookcallers(module) or []
        if not callers:
            self.fault(
                plugin,
                "hooks",
                f"{plugin.location} has no hook: mark a function {' or '.join(specified)} with"
                " @weaklabel.hookimpl",
            )
        for caller in callers:
            implemented = [impl for impl in caller.get_hookimpls() if impl.plugin is module]
            if not caller.has_spec() and not all(impl.optionalhook for impl in implemented):
                self.fault(
                    plugin,
                    "hooks",
                    f"there is no hook {caller.name!r}{did_you_mean(caller.name, specified)}",
                )

    def collect(self) -> Registry:
        """Call all hooks."""
        kinds: dict[str, dict[str, Any]] = {}
        origins: dict[tuple[str, str], Plugin] = {}
        for hook in HOOKS:
            items = kinds[hook.name] = {}
            taken: dict[str, object] = {}
            for implementation in self.implementations(hook.name):
                plugin = self.plugins[implementation.plugin_name]
                registered = self.registered(hook, implementation, plugin)
                for item in registered:
                    name = hook.key(item)
                    # Letter case tells no columns apart in DuckDB and Spark.
                    if first := taken.get(name.casefold()):
                        self.fault(plugin, "name", f"{name!r} is taken by {first}: rename it")
                        continue
                    taken[name.casefold()] = plugin
                    items[name] = item
                    origins[hook.name, name] = plugin
        functions, models, exporters = (kinds[hook.name] for hook in HOOKS)
        return Registry(
            plugins=tuple(self.plugins.values()),
            labeling_functions=functions,
            label_models=models,
            exporters=exporters,
            origins=origins,
            faults=tuple(self.faults),
        )

    def implementations(self, hook: str) -> list[HookImpl]:
        """In the order of registration, after those marked `tryfirst`, before `trylast`."""
        found = getattr(self.manager.hook, hook).get_hookimpls()
        return sorted(found, key=lambda impl: (not impl.tryfirst, impl.trylast))

    def registered(self, hook: _Hook, implementation: HookImpl, plugin: Plugin) -> list[Any]:
        """What one implementation registers: called alone, so that it cannot disturb others."""
        if implementation.wrapper or implementation.hookwrapper:
            self.fault(plugin, "hooks", f"{hook.name} only collects: it cannot be wrapped")
            return []
        items: list[Any] = []
        try:
            known = {"register": items.append}
            returned = implementation.function(*(known[name] for name in implementation.argnames))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - as above
            self.fault(
                plugin, "registration", f"{hook.name}: {type(error).__name__}: {error}", error
            )
            return []
        if returned is not None:
            self.fault(
                plugin,
                "registration",
                f"{hook.name} returned {type(returned).__name__}, which is not used: call"
                " register(...) with each item",
            )
        for item in items:
            if not hook.accepts(item):
                self.fault(plugin, "name", f"{hook.name}: {item!r} is not {hook.what}")
        return [item for item in items if hook.accepts(item)]


def _give_hook(module: ModuleType, path: Path) -> None:
    """Make a plain file of labeling functions a plugin that registers what it defines."""
    # Each once, and not those that it imported as they stand.
    own = {
        id(value): value
        for value in vars(module).values()
        if isinstance(value, LabelingFunction) and not _imported(value)
    }
    if not own:
        raise WeakLabelError(f"{path} defines no labeling function: mark one @labeling_function")

    @hookimpl
    def weaklabel_labeling_functions(register: Callable[[LabelingFunction], None]) -> None:
        for function in own.values():
            register(function)

    vars(module)["weaklabel_labeling_functions"] = weaklabel_labeling_functions


def _imported(function: LabelingFunction) -> bool:
    home = sys.modules.get(function.function.__module__)
    return home is not None and any(value is function for value in vars(home).values())
