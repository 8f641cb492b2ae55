"""The public API of a package as text: one line a name, with its signature.

`make api` writes it to tests/repository/api/PACKAGE.txt, and test_api.py compares that file with
the code: a change of what users call shows in the diff of a commit.
"""

import argparse
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any


class _Bare(str):
    """An annotation, which a signature shows without quotes."""

    def __repr__(self) -> str:
        return str(self)


def render(package: str) -> str:
    """What `__all__` names, in alphabetical order, each class followed by its public members."""
    module = importlib.import_module(package)
    return "".join(f"{line}\n" for name in sorted(module.__all__) for line in _lines(module, name))


def _lines(module: Any, name: str) -> Iterator[str]:
    thing = getattr(module, name)
    owner = getattr(thing, "__module__", module.__name__).partition(".")[0]
    if owner != module.__name__:
        yield f"{name} of {owner}"
        return
    if not inspect.isclass(thing):
        yield f"{name}{_signature(thing)}" if callable(thing) else f"{name} = {thing!r}"
        return
    bases = ", ".join(base.__name__ for base in thing.__bases__ if base is not object)
    made = "" if issubclass(thing, BaseException) else _signature(thing)
    yield f"class {name}({bases}){made}" if bases else f"class {name}{made}"
    for member, value in sorted(_members(thing, module.__name__).items()):
        kind = f"{type(value).__name__} " if isinstance(value, classmethod | staticmethod) else ""
        function = getattr(value, "__func__", value)
        if isinstance(value, property | cached_property):
            getter = value.fget if isinstance(value, property) else value.func
            yield f"  {member} -> {inspect.signature(getter).return_annotation}"
        else:
            called = inspect.isroutine(function) and not inspect.ismemberdescriptor(function)
            yield f"  {kind}{member}{_signature(function) if called else ''}"


def _members(thing: type, package: str) -> dict[str, object]:
    """Public methods, properties and fields, those of our own bases included."""
    found: dict[str, object] = {}
    for base in reversed(thing.__mro__):
        if base.__module__.partition(".")[0] == package:
            found |= dict.fromkeys(inspect.get_annotations(base)) | dict(vars(base))
    return {name: value for name, value in found.items() if not name.startswith("_")}


def _signature(thing: Callable[..., object]) -> str:
    found = inspect.signature(thing)
    bare = [p.replace(annotation=_bare(p.annotation)) for p in found.parameters.values()]
    text = found.replace(parameters=bare, return_annotation=_bare(found.return_annotation))
    return re.sub(r"<function (\S+) at 0x[0-9a-f]+>", r"\1", str(text))


def _bare(annotation: object) -> object:
    return _Bare(annotation) if isinstance(annotation, str) else annotation


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("packages", nargs="+")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "api")
    asked = parser.parse_args()
    asked.out.mkdir(exist_ok=True)
    for package in asked.packages:
        (asked.out / f"{package}.txt").write_text(render(package), encoding="utf-8")
