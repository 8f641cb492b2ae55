"""The site: the repository's Markdown as it stands, and the packages' docstrings (`make docs`)."""

import re
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx import addnodes
from sphinx.application import Sphinx

project = "daam_diffusers, hf_cudagraph_asr, weaklabel"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
# The source folder is the repository's root, so that links mean what they mean on a Git host.
root_doc = "docs/index"
include_patterns = ["*.md", "*/README.md", "*/CHANGELOG.md", "docs/**.md"]
exclude_patterns = [".*", "build", "dist", "out", "runs", "tests", "*/src"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4

nitpicky = True
# Backticks of docstrings and types of annotations are links where the site has what they name.
default_role = "py:obj"
nitpick_ignore_regex = [("py:(obj|class)", "(?s).*")]
suppress_warnings = ["ref.python"]  # A short name that two packages have becomes no link.
autodoc_member_order = "bysource"
napoleon_custom_sections = [("Attributes", "params_style"), "Returns"]

html_theme = "furo"
html_title = "Documentation"
html_show_copyright = False
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_show_search_summary = False  # It fetches pages, which browsers refuse of files.
html_math_renderer = "mathml"


def mathml(self: Any, node: nodes.Element) -> None:
    """Write a formula as MathML, which browsers draw themselves; MathJax would come from a CDN."""
    block = isinstance(node, nodes.math_block)
    self.body.append(tex2mathml(node.astext(), as_block=block))
    raise nodes.SkipNode


def as_rest(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Make reStructuredText of a docstring's text: indented blocks are code, marks are text."""
    # Or napoleon makes a type of the first line's `type: text`; the reader sees no escaped space.
    written = ["\\ "] if what == "property" else []
    literal = False
    for line in lines:
        indented = line.startswith("    ")
        if indented and len(written) > 1 and not written[-1] and written[-2][:1].strip():
            written += ["::", ""]
            literal = True
        literal = literal and (indented or not line)
        if not literal and not line.lstrip().startswith((">>>", "...")):
            parts = re.split(r"(`[^`]*`)", line)
            parts[::2] = [re.sub(r"[*|]|(?<=\w)_(?!\w)", r"\\\g<0>", part) for part in parts[::2]]
            line = "".join(parts)
        written.append(line)
    lines[:] = written


def without_folders(app: Sphinx, document: nodes.document) -> None:
    """Leave links to folders, which no page shows, as text."""
    for link in list(document.findall(addnodes.pending_xref)):
        if link["reftype"] == "myst":
            target = Path(app.srcdir, link["refdoc"]).parent / link["reftarget"]
            if target.is_dir():
                link.replace_self(link.children)


def front_page(app: Sphinx, failed: Exception | None) -> None:
    """Send whoever opens the folder to the index, whose source lies in docs/."""
    page = '<!DOCTYPE html><meta http-equiv="refresh" content="0; url=docs/index.html">\n'
    Path(app.outdir, "index.html").write_text(page)


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer("mathml", (mathml, None), (mathml, None))
    app.connect("autodoc-process-docstring", as_rest, priority=400)  # before napoleon
    app.connect("doctree-read", without_folders)
    app.connect("build-finished", front_page)
