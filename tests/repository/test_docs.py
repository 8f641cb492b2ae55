"""The site: built without a warning, whole, and read without a server or a network."""

import gc
import importlib
import re
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow

#: What a browser fetches by itself, and where an element says so.
FETCHED = {("script", "src"), ("link", "href"), ("img", "src"), ("iframe", "src"), ("use", "href")}


class Markup(HTMLParser):
    """Of a page: its anchors, where its links lead, and what it makes a browser fetch."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: set[str] = set()
        self.fetched: set[str] = set()
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name == "id":
                self.anchors.add(value or "")
            elif (tag, name) == ("a", "href"):
                self.links.add(value or "")
            elif (tag, name) in FETCHED:
                self.fetched.add(value or "")


@contextmanager
def without_garbage() -> Iterator[None]:
    """Look for no garbage: a tree of nodes for each page is all kept until its end."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.fixture(scope="module")
def site(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from sphinx.application import Sphinx
    from sphinx.util.docutils import docutils_namespace, patch_docutils

    folder = tmp_path_factory.mktemp("site")
    # In this process, which has imported all that the documents are about.
    warned = StringIO()
    with warnings.catch_warnings(), without_garbage(), patch_docutils(), docutils_namespace():
        warnings.simplefilter("ignore")  # Python's, of Sphinx and what it imports
        application = Sphinx(
            *(root, root / "docs", folder / "html", folder / "doctrees", "html"),
            status=None,
            warning=warned,
            warningiserror=True,
        )
        application.build()
    assert (application.statuscode, warned.getvalue()) == (0, "")
    return folder / "html"


@pytest.fixture(scope="module")
def markups(site: Path) -> dict[Path, Markup]:
    return {page: Markup(page) for page in site.rglob("*.html")}


def test_every_public_name_is_documented(site: Path, names: tuple[str, ...]) -> None:
    content = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    known = {line.split()[0] for line in zlib.decompress(content).decode().splitlines()}
    for name in names:
        public = importlib.import_module(name).__all__
        assert public
        assert not [f"{name}.{one}" for one in public if f"{name}.{one}" not in known]


def test_no_sentence_about_a_property_is_taken_for_its_type(site: Path) -> None:
    pages = [*site.glob("docs/*/api.html")]
    assert len(pages) == 3
    for page in pages:
        text = page.read_text()
        assert ">property<" in text
        assert 'field-odd">Type<' not in text, page


def test_every_page_of_the_documentation_is_on_the_site(root: Path, site: Path) -> None:
    pages = [*root.glob("*.md"), *root.glob("[!.]*/README.md"), *root.glob("docs/**/*.md")]
    assert len(pages) > 30
    assert not [
        page for page in pages if not (site / page.relative_to(root)).with_suffix(".html").is_file()
    ]


def test_links_lead_somewhere(site: Path, markups: dict[Path, Markup]) -> None:
    broken = []
    for page, markup in markups.items():
        for link in markup.links:
            parts = urlsplit(link)
            if parts.scheme:
                assert parts.scheme in ("https", "mailto"), (page, link)
                assert parts.netloc or parts.path, (page, link)
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            there = target.is_file() and target.is_relative_to(site)
            anchor = unquote(parts.fragment)
            if there and anchor and target.suffix == ".html":
                there = anchor in markups[target].anchors
            if not there:
                broken.append((page.relative_to(site), link))
    assert not broken


def test_no_page_fetches_anything_from_elsewhere(site: Path, markups: dict[Path, Markup]) -> None:
    fetched = {address for markup in markups.values() for address in markup.fetched}
    assert fetched
    assert not [one for one in fetched if urlsplit(one).netloc or urlsplit(one).scheme]
    styles = "".join(style.read_text() for style in site.rglob("*.css"))
    assert not re.findall(r"(?:@import|url\()\s*[\"']?(?:https?:)?//[^)]*", styles)


@pytest.fixture
def show(browser: Browser, site: Path) -> Iterator[Callable[..., Page]]:
    """Opens pages of the site from their files, in one window, as the first call's options want it.

    Afterwards: no error, nothing asked for elsewhere.
    """
    opened: list[Page] = []
    troubles: list[str] = []
    asked: set[str] = set()

    def show(page: str, query: str = "", **options: object) -> Page:
        if not opened:
            opened.append(browser.new_page(**options))
            opened[0].set_default_timeout(20_000)
            opened[0].on("request", lambda request: asked.add(urlsplit(request.url).scheme))
            opened[0].on("pageerror", lambda error: troubles.append(str(error)))
            opened[0].on("console", lambda message: troubles.append(message.text))
        opened[0].goto((site / page).as_uri() + query)
        return opened[0]

    yield show
    for page in opened:
        page.close()
    assert not troubles
    assert asked <= {"file", "data"}


def test_search_works_without_a_server(show: Callable[..., Page]) -> None:
    page = show("search.html", "?q=calibrate")
    page.wait_for_selector("#search-results li a")
    assert "docs/hf_cudagraph_asr/api.html" in page.content()


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_pages_fit_a_phone_and_a_desk(show: Callable[..., Page], width: int, scheme: str) -> None:
    options = {"color_scheme": scheme, "viewport": {"width": width, "height": 800}}
    for name in ("index", "docs/families", "docs/hf_cudagraph_asr/buckets", "docs/weaklabel/api"):
        page = show(f"{name}.html", **options)
        page.wait_for_selector("h1")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        dark = sum(map(int, re.findall(r"\d+", background)[:3])) < 3 * 128
        assert dark == (scheme == "dark"), name
