"""Discovery of plugins through pluggy and entry points.

Plugins are found by the entry-point group `weaklabel` and loaded one by one, so that a broken one
is named with its distribution and the others work on. The order is: distribution (this one first),
entry point, registration. What this package brings itself comes by the same hooks.
"""

from __future__ import annotations

import difflib
import hashlib
import logging
import os
import runpy
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from pluggy import HookImpl, HookimplMarker, HookspecMarker, PluginManager, PluginValidationError

from weaklabel.errors import WeakLabelError, ends_run
from weaklabel.labeling import Identity, LabelingFunction

if TYPE_CHECKING:
    import polars as pl

    from weaklabel.text import Normalizer

#: The project's name in pluggy, and the entry-point group.
PROJECT: Final = "weaklabel"
FUNCTIONS: Final = "weaklabel_labeling_functions"

ALLOWED: Final = "WEAKLABEL_PLUGINS"
STRICT: Final = "WEAKLABEL_STRICT"

#: Seconds after which a plugin that is still at work is named.
PATIENCE: float = 5.0

Stage: TypeAlias = Literal["import", "hooks", "registration", "name"]

logger = logging.getLogger(__name__)
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


@hookspec
def weaklabel_normalizers(register: Callable[[Normalizer], None]) -> None:
    """Call `register` with each `weaklabel.Normalizer`, by its `name`."""


@dataclass(frozen=True)
class Kind:
    """A kind of model, by which `weaklabel fit --model` and `load_model` find it.

    Attributes:
        name: what files and the command line call it.
        model: makes a configuration, from its options.
        fitted: has a class method `from_dict`, which makes a fitted model of what its `to_dict`
            returned.
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


#: Every hook: which items it accepts, and how an error calls them.
HOOKS: Final[Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    FUNCTIONS: (
        lambda item: isinstance(item, LabelingFunction),
        "a function decorated with @labeling_function",
    ),
    "weaklabel_label_models": (lambda item: isinstance(item, Kind), "a weaklabel.Kind"),
    "weaklabel_exporters": (lambda item: isinstance(item, Exporter), "a weaklabel.Exporter"),
    # By what it has, not by its class: the module of that class registers its own through here.
    "weaklabel_normalizers": (
        lambda item: callable(item) and isinstance(getattr(item, "name", None), str),
        "a weaklabel.Normalizer",
    ),
}


@dataclass(frozen=True)
class Plugin:
    """A source of functions, models, exporters and normalizers.

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
    """A fault of a plugin.

    Args:
        plugin: whose.
        stage: "import" (nothing of it is used), "hooks" (a misspelled or unusable hook), the
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
    """All that plugins registered, by name, in order.

    Args:
        origins: the plugin of each item, by `(hook, name)`.
        faults: what is wrong.
    """

    plugins: tuple[Plugin, ...] = ()
    labeling_functions: Mapping[str, LabelingFunction] = field(default_factory=dict)
    label_models: Mapping[str, Kind] = field(default_factory=dict)
    exporters: Mapping[str, Exporter] = field(default_factory=dict)
    normalizers: Mapping[str, Normalizer] = field(default_factory=dict)
    origins: Mapping[tuple[str, str], Plugin] = field(default_factory=dict)
    faults: tuple[Fault, ...] = ()

    def identity(self, function: LabelingFunction) -> Identity:
        """The identity that votes of a registered function carry."""
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
            known_name("labeling function", name, self.labeling_functions)
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


def known_name(what: str, name: str, known: Iterable[str]) -> str:
    """`name`, if it is known.

    Raises:
        WeakLabelError: it is not; the message names what is near, and all there are.
    """
    names = list(known)
    if name not in names:
        there = ", ".join(names) or f"none: do {ALLOWED}, -p or a fault keep them out?"
        raise WeakLabelError(f"no {what} {name!r}{did_you_mean(name, names)}: there are {there}")
    return name


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ " (did you mean ...?)", where a known word is near; else nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


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
) -> Registry:
    """Load the plugins that are installed.

    A plugin that takes longer than five seconds is named by a warning, while it goes on.

    Args:
        allowed: names of entry points or distributions; nothing else is loaded. By default what
            the variable WEAKLABEL_PLUGINS lists (an empty one: nothing), or everything where it is
            not set. All that comes with this package is the distribution `weaklabel`; its labeling
            functions alone are `builtin`.
        blocked: names of entry points or distributions that are not loaded.
        file: a Python file with labeling functions, `weaklabel_lfs.py` say. Its functions are
            registered as they stand, unless it has hooks. Its faults are errors: it was asked for.

    Faults are logged as warnings, with their traceback at level DEBUG. Where the variable
    WEAKLABEL_STRICT is 1 they are an error.

    Raises:
        WeakLabelError: there are faults, and they are an error; or `file` does not load, holds no
            labeling function or takes a name that is taken; or a name in `allowed` or `blocked` is
            nothing installed.
    """
    if allowed is None and ALLOWED in os.environ:
        allowed = [name for part in os.environ[ALLOWED].split(",") if (name := part.strip())]
    loader = Loader()
    found = _installed()
    words = {plugin: {plugin.name, plugin.distribution, str(plugin)} for plugin, _ in found}
    known = set().union(*words.values())
    for name in [*(allowed or ()), *blocked]:
        if name not in known:
            raise WeakLabelError(
                f"no plugin {name!r} is installed{did_you_mean(name, sorted(known))}: there are"
                f" {', '.join(map(str, words)) or 'none'}"
            )
    for plugin, entry_point in found:
        wanted = allowed is None or not words[plugin].isdisjoint(allowed)
        if wanted and words[plugin].isdisjoint(blocked):
            loader.load(plugin, entry_point)
    named = None if file is None else loader.load_file(Path(file))
    registry = loader.collect()
    if wrong := [fault.message for fault in registry.faults if fault.plugin is named]:
        raise WeakLabelError(f"{file}: {'; '.join(wrong)}")
    if registry.faults and os.environ.get(STRICT, "") not in ("", "0"):
        raise WeakLabelError("; ".join(map(str, registry.faults)))
    for fault in registry.faults:
        logger.warning("%s", fault)
        logger.debug("%s", fault.details)
    return registry


def _installed() -> list[tuple[Plugin, EntryPoint]]:
    found = []
    # Read once a distribution. `dist` is None only for entry points made by hand.
    about = cache(lambda dist: ("unknown", "0") if dist is None else (dist.name, dist.version))
    for entry_point in entry_points(group=PROJECT):
        name, version = about(entry_point.dist)
        found.append((Plugin(entry_point.name, name, version, entry_point.value), entry_point))
    return sorted(found, key=lambda pair: (pair[0].distribution != PROJECT, str(pair[0])))


class Loader:
    """Loads plugins one after the other, then collects what they register, in a `Registry`."""

    def __init__(self) -> None:
        self.manager = PluginManager(PROJECT)
        self.manager.add_hookspecs(sys.modules[__name__])
        self.plugins: dict[str, Plugin] = {}
        self.faults: list[Fault] = []

    def fault(self, plugin: Plugin, stage: Stage, message: str, details: str = "") -> None:
        """Note what is wrong with a plugin, on one line."""
        self.faults.append(Fault(plugin, stage, " ".join(message.split()), details))

    @contextmanager
    def guarded(self, plugin: Plugin, stage: Stage, doing: str) -> Iterator[None]:
        """Run a plugin's own code: note what it raises, and name it when it does not end."""
        where = f"plugin {plugin.name!r} of {plugin.distribution} {plugin.version}"
        message = f"{where} has been {doing} for {PATIENCE:g} s; -p no:{plugin.name} leaves it out"
        timer = threading.Timer(PATIENCE, logger.warning, ("%s", message))
        timer.daemon = True
        timer.start()
        try:
            yield
        except BaseException as error:
            if ends_run(error):
                raise
            details = "".join(traceback.format_exception(error))
            self.fault(plugin, stage, f"{type(error).__name__}: {error}", details)
        finally:
            timer.cancel()

    def load(self, plugin: Plugin, entry_point: EntryPoint) -> None:
        """Import what an entry point names, and register it."""
        with self.guarded(plugin, "import", "importing"):
            module = entry_point.load()
            self.register(plugin, module)

    def load_file(self, path: Path) -> Plugin:
        """Run a file of labeling functions, and register it."""
        if path.suffix != ".py":
            raise WeakLabelError(f"{path} is not a Python file: give one that ends in .py")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        plugin = Plugin(path.stem, path.name, digest, str(path))
        with self.guarded(plugin, "import", "importing"):
            # Under a name that no other module has; no byte code of an older version is run.
            scope = runpy.run_path(os.path.abspath(path), run_name=f"weaklabel_file_{digest}")
            module = SimpleNamespace(**scope)
            if not any(self.manager.parse_hookimpl_opts(module, name) for name in scope):
                _give_hook(module)
            self.register(plugin, module)
        return plugin

    def register(self, plugin: Plugin, module: object) -> None:
        """Register a plugin whose module is there, and look at its hooks."""
        name = str(plugin)
        try:
            self.manager.register(module, name=name)
        except (PluginValidationError, ValueError) as error:
            # The second: one object under two names. pluggy keeps what it found invalid.
            if isinstance(error, PluginValidationError):
                self.manager.unregister(name=name)
            self.fault(plugin, "hooks", str(error))
            return
        self.plugins[name] = plugin
        callers = self.manager.get_hookcallers(module) or []
        if not callers:
            self.fault(
                plugin,
                "hooks",
                f"{plugin.location} has no hook: mark a function {' or '.join(HOOKS)} with"
                " @weaklabel.hookimpl; in a file of functions, @labeling_function is enough",
            )
        for caller in callers:
            implemented = [impl for impl in caller.get_hookimpls() if impl.plugin is module]
            if not caller.has_spec() and not all(impl.optionalhook for impl in implemented):
                problem = f"there is no hook {caller.name!r}{did_you_mean(caller.name, HOOKS)}"
                self.fault(plugin, "hooks", problem)

    def collect(self) -> Registry:
        """Call all hooks, each implementation alone, so that it cannot disturb the others."""
        items: dict[str, dict[str, Any]] = {}
        origins: dict[tuple[str, str], Plugin] = {}
        for hook in HOOKS:
            items[hook] = {}
            taken: dict[str, Plugin] = {}
            implementations = getattr(self.manager.hook, hook).get_hookimpls()
            # In the order of registration, not the other way around as pluggy calls them.
            for impl in sorted(implementations, key=lambda i: (not i.tryfirst, i.trylast)):
                plugin = self.plugins[impl.plugin_name]
                for item in self.registered(hook, impl, plugin):
                    # Letter case tells no columns apart in DuckDB and Spark.
                    if first := taken.get(item.name.casefold()):
                        problem = f"{item.name!r} is taken by {first}: rename it"
                        self.fault(plugin, "name", problem)
                        continue
                    taken[item.name.casefold()] = plugin
                    items[hook][item.name] = item
                    origins[hook, item.name] = plugin
        return Registry(
            plugins=tuple(self.plugins.values()),
            **{hook.removeprefix(f"{PROJECT}_"): found for hook, found in items.items()},
            origins=origins,
            faults=tuple(self.faults),
        )

    def registered(self, hook: str, implementation: HookImpl, plugin: Plugin) -> list[Any]:
        """Items that one implementation registers; none where it raised."""
        if implementation.wrapper or implementation.hookwrapper:
            self.fault(plugin, "hooks", f"{hook} only collects: it cannot be wrapped")
            return []
        items: list[Any] = []
        returned = faulty = object()
        with self.guarded(plugin, "registration", f"in its hook {hook}"):
            # Without the argument, as pluggy allows, it registers nothing.
            returned = implementation.function(*[items.append][: len(implementation.argnames)])
        if returned is faulty:
            return []
        if returned is not None:
            problem = f"{hook} returned {type(returned).__name__}, which is not used"
            self.fault(plugin, "registration", f"{problem}: call register(...) with each item")
        accepts, expected = HOOKS[hook]
        for item in items:
            if not accepts(item):
                self.fault(plugin, "name", f"{hook}: {item!r} is not {expected}")
        return [item for item in items if accepts(item)]


def _give_hook(module: SimpleNamespace) -> None:
    """Make a plain file of labeling functions a plugin that registers what it defines."""
    # Each once, and not those that it imported as they stand.
    own = {
        id(value): value
        for value in vars(module).values()
        if isinstance(value, LabelingFunction) and not _imported(value)
    }

    @hookimpl
    def weaklabel_labeling_functions(register: Callable[[LabelingFunction], None]) -> None:
        for function in own.values():
            register(function)

    if own:
        setattr(module, FUNCTIONS, weaklabel_labeling_functions)


def _imported(function: LabelingFunction) -> bool:
    home = sys.modules.get(function.function.__module__)
    return home is not None and any(value is function for value in vars(home).values())
