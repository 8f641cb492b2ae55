"""What a reader of a package meets: its size, its imports, and the way of a call through it.

    python tests/benchmarks/bench_modules.py                     a call of an enabled model
    python tests/benchmarks/bench_modules.py --show              also its modules, in order
    python tests/benchmarks/bench_modules.py --house weaklabel   size and imports of any package
    python tests/benchmarks/bench_modules.py --row               from a query log to training data

The way of a call is that of a warm `model(x)`: the modules of hf_cudagraph_asr whose code runs, and
how often execution changes from one of them to another, returns counted. Code of others in between
(transformers, torch) is transparent: from a module through it to another is one change.

Of the house: files and lines (`*.py`, every line), modules on the longest chain of imports, and
cycles of imports. Imports inside functions count, those under `if TYPE_CHECKING` do not, and
neither do names that a package imports at first use by `__getattr__`.

The way of a row is that through `weaklabel apply`, `fit`, `label` and `export`: the modules of
weaklabel whose functions run, those of the command line and of the discovery of plugins counted
apart, for they see no row. Beside it, how often a command opens each table that it reads.
"""

from __future__ import annotations

import argparse
import ast
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pkgutil import walk_packages
from types import FrameType
from typing import Any
from unittest import mock

# Of a call on the export backend, at most: a call on the eager one also goes through the exact
# forward, where the other replays what was traced of it.
MODULES, CHANGES = 8, 20
# Of hf_cudagraph_asr, at most.
FILES, LINES = 36, 7200
# Of weaklabel, from `apply` to `export`, at most.
ROW_MODULES = 25


# --- the way of a call


@dataclass(frozen=True)
class Way:
    """The modules of a package that a call goes through.

    Attributes:
        sequence: names of the modules in the order they run, none followed by itself.
    """

    sequence: tuple[str, ...]

    @property
    def modules(self) -> int:
        """How many different ones there are."""
        return len(set(self.sequence))

    @property
    def changes(self) -> int:
        """How often one follows another."""
        return max(len(self.sequence) - 1, 0)


def way_of(call: Callable[[], object], root: Path) -> Way:
    """The way of one call through the modules under a folder."""
    stack: list[str | None] = []
    sequence: list[str] = []

    def profile(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            path = Path(frame.f_code.co_filename)
            stack.append(_name(path, root) if path.is_relative_to(root) else None)
        elif event == "return" and stack:
            stack.pop()
        else:
            return
        module = stack[-1] if stack else None
        if module is not None and sequence[-1:] != [module]:
            sequence.append(module)

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    return Way(tuple(sequence))


def ways() -> dict[str, Way]:
    """The way of a warm call with each backend that needs no GPU, with and without a mask."""
    import torch
    import transformers

    import hf_cudagraph_asr
    from hf_cudagraph_asr import enable_cuda_graphs, plan_buckets

    config = transformers.Wav2Vec2Config(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        conv_dim=(16, 16),
        conv_stride=(5, 4),
        conv_kernel=(10, 8),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        vocab_size=20,
    )
    torch.manual_seed(0)
    model = transformers.Wav2Vec2ForCTC(config).eval()
    plan = plan_buckets([1.0, 1.5, 2.0], graphs=2, model=model)
    values = torch.randn(1, 20_000)
    options: dict[str, dict[str, Any]] = {
        "": {},
        ", mask": {"attention_mask": torch.ones(1, 20_000, dtype=torch.long)},
    }
    found = {}
    root = Path(hf_cudagraph_asr.__file__).parent
    for backend in ("eager", "export"):
        with torch.inference_mode(), enable_cuda_graphs(model, plan, backend=backend) as pool:
            for name, kwargs in options.items():
                for _ in range(2):
                    model(values, **kwargs)
                found[backend + name] = way_of(lambda kwargs=kwargs: model(values, **kwargs), root)
            assert pool.stats().hits == pool.stats().calls, pool.stats().misses
    return found


# --- the way of a row


@dataclass(frozen=True)
class RowWay:
    """The modules that a row of a query log goes through, from votes to training data.

    Attributes:
        modules: of each command, the modules whose functions run.
        opened: of each command, how often it opens each table, by the file's name.
    """

    modules: dict[str, set[str]]
    opened: dict[str, Counter[str]]

    def of_row(self) -> set[str]:
        """The modules of all commands, without those that see no row."""
        every: set[str] = set().union(*self.modules.values())
        return {name for name in every if name.split(".")[0] not in ("", "cli", "plugins")}


def row_way() -> RowWay:
    """The way of the rows of a small log through four commands, in a folder of their own."""
    import polars as pl

    import weaklabel
    from weaklabel import cli, tables
    from weaklabel.testing import synthetic_query_log

    root = Path(weaklabel.__file__).parent
    for module in walk_packages([str(root)], "weaklabel."):  # an import is no call
        import_module(module.name)
    modules: dict[str, set[str]] = {}
    opened: dict[str, Counter[str]] = {}
    scan = tables.scan

    def counted(path: Any, *args: Any, **kwargs: Any) -> Any:
        opened[command][Path(path).name] += 1
        return scan(path, *args, **kwargs)

    def profile(frame: FrameType, event: str, _: object) -> None:
        path = Path(frame.f_code.co_filename)
        registers = frame.f_code.co_name.startswith("weaklabel_")  # a hook, called of every plugin
        if event == "call" and not registers and path.is_relative_to(root):
            modules[command].add(_name(path, root))

    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        for module in list(sys.modules.values()):
            if getattr(module, "scan", None) is scan:  # where it was imported by its name
                stack.enter_context(mock.patch.object(module, "scan", counted))
        os.chdir(folder)
        synthetic_query_log(500, seed=1).drop_nulls("transcript").with_columns(
            audio=pl.lit("a.wav"), duration=pl.lit(1.5)
        ).write_parquet("log.parquet")
        for line in (
            "apply log.parquet --out votes.parquet --no-progress",
            "fit votes.parquet --out model.json",
            "label votes.parquet --model model.json --out labels.parquet",
            "export labels.parquet --queries log.parquet --out data --format nemo --no-check-audio",
        ):
            command = line.split()[0]
            modules[command], opened[command] = set(), Counter()
            sys.setprofile(profile)
            try:
                code = cli.main(line.split())
            finally:
                sys.setprofile(None)
            assert code == 0, line
        os.chdir(before)
    return RowWay(modules, opened)


def print_row(show: bool) -> bool:
    """Print the way of a row; whether it is as short as it is to be."""
    way = row_way()
    for command, modules in way.modules.items():
        opened = ", ".join(f"{name} {n}×" for name, n in sorted(way.opened[command].items()))
        print(f"{command}: {len(modules)} modules, opens {opened}")
        if show:
            print(f"  {', '.join(sorted(modules))}")
    row = way.of_row()
    every: set[str] = set().union(*way.modules.values())
    once = all(n == 1 for tables in way.opened.values() for n in tables.values())
    met = len(row) <= ROW_MODULES and once
    print(
        f"a row goes through {len(row)} modules, at most {ROW_MODULES}, and {len(every)} with the"
        f" command line and plugins; each table opened once a command: {once}"
        f" ({'met' if met else 'MISSED'})"
    )
    if show:
        print(f"  {', '.join(sorted(row))}")
    return met


# --- the house


@dataclass(frozen=True)
class House:
    """Size and imports of a package.

    Attributes:
        files: modules.
        lines: of all of them, every line.
        chain: modules on the longest chain of imports, from the one that imports the rest.
        cycles: groups of modules that import each other, directly or through others.
    """

    files: int
    lines: int
    chain: tuple[str, ...]
    cycles: tuple[tuple[str, ...], ...]


def house(package: str) -> House:
    """The figures of an importable package, from its source alone."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"no package {package!r}: install it, or correct the name")
    root = Path(spec.origin).parent
    texts = {
        f"{package}.{_name(path, root)}".removesuffix("."): path.read_text(encoding="utf-8")
        for path in sorted(root.rglob("*.py"))
    }
    imports = {
        name: {found for found in _imported(name, text, texts) if found != name}
        for name, text in texts.items()
    }
    return House(
        files=len(texts),
        lines=sum(len(text.splitlines()) for text in texts.values()),
        chain=_longest(imports),
        cycles=_cycles(imports),
    )


def _name(path: Path, root: Path) -> str:
    """`plan.cost` for plan/cost.py, `plan` for plan/__init__.py, nothing for the package's own."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(name: str, text: str, known: Mapping[str, str]) -> Iterator[str]:
    is_package = any(other.startswith(f"{name}.") for other in known)
    for node in _run(ast.parse(text)):
        if isinstance(node, ast.Import):
            targets = [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = name.split(".")
                above = parents[: len(parents) - node.level + is_package]
                base = ".".join([*above, *filter(None, [base])])
            targets = [(base, alias.name) for alias in node.names]
        else:
            continue
        for base, attribute in targets:
            # A submodule where there is one, else something that the module itself defines.
            submodule = f"{base}.{attribute}"
            if submodule in known or base in known:
                yield submodule if submodule in known else base


def _run(tree: ast.AST) -> Iterator[ast.AST]:
    """Every statement below, but for what only a type checker reads."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                yield from (other, *_run(other))
        else:
            yield node
            yield from _run(node)


def _reached(imports: Mapping[str, set[str]], start: str) -> set[str]:
    """All modules that are imported below one; itself only where there is a cycle."""
    found: set[str] = set()
    waiting = list(imports[start])
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting.extend(imports[name])
    return found


def _cycles(imports: Mapping[str, set[str]]) -> tuple[tuple[str, ...], ...]:
    reached = {name: _reached(imports, name) for name in imports}
    groups = {
        tuple(sorted(other for other in reached[name] if name in reached[other]))
        for name in imports
        if name in reached[name]
    }
    return tuple(sorted(groups))


def _longest(imports: Mapping[str, set[str]]) -> tuple[str, ...]:
    """The longest chain; of modules in a cycle, each is passed once at most."""
    reached = {name: _reached(imports, name) for name in imports}

    @cache
    def below(name: str) -> tuple[str, ...]:
        # Not back into the cycle that a module is part of.
        further = [below(other) for other in imports[name] if name not in reached[other]]
        return (name, *max(further, key=len, default=()))

    return max(map(below, sorted(imports)), key=len)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--show", action="store_true", help="print the modules in order")
    parser.add_argument("--house", nargs="+", metavar="PACKAGE", default=[])
    parser.add_argument("--row", action="store_true", help="the way of a row through weaklabel")
    arguments = parser.parse_args()
    for package in arguments.house:
        found = house(package)
        cycles = "; ".join(" ↔ ".join(cycle) for cycle in found.cycles)
        print(
            f"{package}: {found.files} files, {found.lines:,} lines, longest import chain "
            f"{len(found.chain)}, {len(found.cycles)} cycles"
        )
        if arguments.show:
            print(f"  chain: {' → '.join(found.chain)}\n  cycles: {cycles or 'none'}")
    if arguments.row:
        return int(not print_row(arguments.show))
    if arguments.house:
        return 0
    missed = False
    for name, way in ways().items():
        verdict = ""
        if name.startswith("export"):
            met = way.modules <= MODULES and way.changes <= CHANGES
            missed |= not met
            verdict = f", at most {MODULES} and {CHANGES}: {'met' if met else 'MISSED'}"
        print(f"{name}: {way.modules} modules, {way.changes} changes of module{verdict}")
        if arguments.show:
            print(f"  {' → '.join(way.sequence)}")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
