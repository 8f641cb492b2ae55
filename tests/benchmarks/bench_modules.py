"""What a reader of a package meets: its size, its imports, and the way of a call through it.

    python tests/benchmarks/bench_modules.py                     a call of an enabled model
    python tests/benchmarks/bench_modules.py --show              also its modules, in order
    python tests/benchmarks/bench_modules.py --house weaklabel   size and imports of any package

The way of a call is that of a warm `model(x)`: the modules of hf_cudagraph_asr whose code runs, and
how often execution changes from one of them to another, returns counted. Code of others in between
(transformers, torch) is transparent: from a module through it to another is one change.

Of the house: files and lines (`*.py`, every line), modules on the longest chain of imports, and
cycles of imports. Imports inside functions count, those under `if TYPE_CHECKING` do not, and
neither do names that a package imports at first use by `__getattr__`.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

# Of a call on the export backend, at most: a call on the eager one also goes through the exact
# forward, where the other replays what was traced of it.
MODULES, CHANGES = 8, 20
# Of hf_cudagraph_asr, at most.
FILES, LINES = 30, 6000


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
