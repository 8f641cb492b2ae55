"""Fixtures of every test, and Sybil: each example in a document or docstring is a test too."""

import gc
import os
import re
import shutil
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import chdir
from doctest import ELLIPSIS
from pathlib import Path
from typing import Any

# Before a host or numpy is imported: no test loads from a hub.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Nor do threads spin while they wait for a core that another process has, here or in the commands
# that tests start: it makes fits several times as slow, and gains nothing on tiny tensors.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest
from sybil import Sybil
from sybil.document import PythonDocStringDocument
from sybil.parsers.markdown import PythonCodeBlockParser
from sybil.parsers.rest import DocTestParser
from sybil.sybil import SybilCollection

ROOT = Path(__file__).parent
MODEL = ROOT / "docs/examples/tinyworld/model"

Require = Callable[[object, str], None]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that have slow tests: at the end, a process would be alone with one."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Look for no garbage while hosts are imported and tests are found: all of that stays."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_finish() -> None:
    """Keep the hosts and the tests out of garbage collections: one of all of them takes 0.5 s."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Let them go: what holds a library of C until the end is else reported by it as a leak."""
    gc.unfreeze()


def pytest_runtest_setup() -> None:
    """Give torch one thread, if something imported it: a second only waits on tiny tensors."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def require() -> Require:
    """`require(condition, reason)` skips a test, or fails it where REQUIRE_ALL=1 (as in CI)."""

    def check(condition: object, reason: str) -> None:
        if not condition:
            outcome = pytest.fail if os.environ.get("REQUIRE_ALL") == "1" else pytest.skip
            outcome(reason)

    return check


@pytest.fixture(scope="module")
def browser(require: Require) -> Iterator[Any]:
    """Debian's Chromium, of which nothing of its own reaches for the network (playwright)."""
    executable = shutil.which("chromium")
    require(executable, "no chromium on the path")
    from playwright.sync_api import sync_playwright

    flags = ["background-networking", "component-update", "gpu", "quic", "sync"]
    arguments = ["--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in flags)]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def tinyworld_pipe(require: Require) -> Any:
    """The pipeline of docs/examples/tinyworld."""
    require(MODEL.is_dir(), f"{MODEL.relative_to(ROOT)} is missing: make tinyworld")
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(MODEL)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipe(request: pytest.FixtureRequest) -> Any:
    """`pipe` in the examples; a document without that word does not wait for the model."""
    # Of the examples alone: the words or the code around them may say it too.
    example = (
        r"^ *(?:>>>|\.\.\.).*" if request.node.path.suffix == ".py" else r"(?s)^```python.*?^```"
    )
    text = "\n".join(re.findall(example, request.node.example.document.text, re.MULTILINE))
    if re.search(r"\bpipe\b", text):  # not "pipeline"
        return request.getfixturevalue("tinyworld_pipe")
    return None


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder a document's examples run in; `docs/...` can be read there as from the root."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "docs").symlink_to(ROOT / "docs")
    with chdir(folder):
        yield folder


class Docstrings(PythonDocStringDocument):
    """The docstrings of a file, which is not parsed where no line of it begins an example."""

    @classmethod
    def parse(cls, path: str, *parsers: Any, encoding: str = "utf-8") -> Any:
        text = Path(path).read_text(encoding)
        if ">>>" not in text:
            return cls(text, path)
        return super().parse(path, *parsers, encoding=encoding)


FIXTURES = ["scratch", "pipe"]

pytest_collect_file = SybilCollection(
    [
        Sybil(
            [PythonCodeBlockParser(doctest_optionflags=ELLIPSIS)], pattern="*.md", fixtures=FIXTURES
        ),
        Sybil(
            [DocTestParser(ELLIPSIS)],
            pattern="*.py",
            exclude="test_*.py",
            fixtures=FIXTURES,
            document_types={".py": Docstrings},
        ),
    ]
).pytest()
