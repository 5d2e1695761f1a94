"""Sphinx's configuration of the documentation site: `make docs` builds it in `build/docs`.

The documents are plain Markdown that reads the same in the repository. What a site needs beyond
them is made here while it is built: the tables of contents, which follow the index
(docs/README.md), and the reference pages, which follow the code (`reference_pages.py`).
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).parent
DOCS = HERE.parent
sys.path[:0] = [str(HERE), str(DOCS.parent)]

from reference_pages import PAGES  # noqa: E402

import wsiad  # noqa: E402  (of this checkout)

project = "wsiad"
author = "the authors of wsiad"
version = release = wsiad.__version__
root_doc = "README"
exclude_patterns = ["site", "pictures"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
highlight_language = "none"
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 4

suppress_warnings = ["ref.python"]  # words of a shape, such as (N, size, size, 3), are names too
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings have types with shapes and units
napoleon_google_docstring = False
napoleon_use_rtype = False

# Nothing is loaded from other machines: fonts are the reader's, scripts are copied.
html_theme = "furo"
html_title = f"wsiad {version}"
html_static_path = ["static"]
html_css_files = ["site.css"]
templates_path = ["templates"]
html_additional_pages = {"index": "to_first_page.html"}
html_show_copyright = html_show_sphinx = html_show_sourcelink = html_copy_source = False

SECTION = re.compile(r"^## (?P<title>.+)\n(?P<text>(?:(?!^## ).*\n?)*)", re.MULTILINE)
LISTED = re.compile(r"\]\(((?:[\w-]+/)*[\w-]+)\.md\)")
ROW = re.compile(r"^\|.*", re.MULTILINE)
OUTSIDE = re.compile(r"\[([^\]]*)\]\(((?:\.\./)+[^)#]*)(?:#[^)]*)?\)")


def contents(index: str) -> str:
    """Return the tables of contents of the site: the documents that each section lists."""
    found: dict[str, str] = {}
    for section in SECTION.finditer(index):
        if not section["text"].lstrip().startswith("- "):
            continue  # the table "I want to …" points into the others
        for name in LISTED.findall(section["text"]):
            found.setdefault(name, section["title"])
    titles = dict.fromkeys(found.values())
    return "\n".join(
        "```{toctree}\n:hidden:\n:caption: " + title + "\n\n"
        + "\n".join(name for name, where in found.items() if where == title) + "\n```\n"
        for title in titles
    )  # fmt: skip


def names_of_outside(text: str, document: Path) -> str:
    """Replace links to folders and documents outside of docs/, which are no pages, by their names.

    Other files outside of it are copied into the site, and links download them.
    """

    def shown(link: re.Match[str]) -> str:
        there = (document.parent / link[2]).resolve()
        if there.is_relative_to(DOCS) or not (there.is_dir() or there.suffix == ".md"):
            return link[0]
        return f"`{there.relative_to(DOCS.parent)}`"

    return OUTSIDE.sub(shown, text)


def whole_figures(text: str) -> str:
    """Keep a figure and its spread on one line of a cell."""
    return ROW.sub(lambda row: row[0].replace(" ± ", "\u00a0±\u00a0"), text)


def complete(_app: Sphinx, name: str, source: list[str]) -> None:
    """Complete a document with what is made for the site."""
    source[0] = whole_figures(names_of_outside(source[0], DOCS / f"{name}.md"))
    if name == root_doc:
        source[0] += "\n" + contents(source[0])
    elif name in PAGES:
        source[0] += "\n" + PAGES[name]()


def setup(app: Sphinx) -> dict[str, bool]:
    """Register :func:`complete`."""
    app.connect("source-read", complete)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
