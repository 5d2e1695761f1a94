"""The site is built of all documents without a warning, and no link of it leads nowhere."""

from __future__ import annotations

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

import wsiad
from support.browser import needs_browser
from wsiad.detectors import registry
from wsiad.verbs import VERBS

ROOT = Path(__file__).parents[2]


class Page(HTMLParser):
    """Anchors of a page, and what it links to or loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = {key: value or "" for key, value in attrs}
        self.anchors |= {values[key] for key in ("id", "name") if key in values}
        if tag == "a" and "href" in values:
            self.links.add(values["href"])
        self.loaded |= {values[key] for key in ("src", "srcset", "data") if key in values}
        if tag == "link" and "href" in values:
            self.loaded.add(values["href"])


def faults(folder: Path) -> list[str]:
    """Links of the pages of a folder that lead nowhere, and what is loaded from elsewhere."""
    pages = {path: Page(path.read_text("utf-8")) for path in folder.rglob("*.html")}
    found = []
    for path, page in pages.items():
        for link in page.links | page.loaded:
            if link.startswith(("http:", "https:", "//")):
                if link in page.loaded:
                    found.append(f"{path.name} loads {link}")
                continue
            if link.startswith(("data:", "mailto:", "javascript:")):
                continue
            name, _, anchor = link.partition("#")
            target = (path.parent / unquote(name.partition("?")[0])).resolve() if name else path
            lacks = target in pages and unquote(anchor) not in {"", *pages[target].anchors}
            if lacks or not target.exists():
                found.append(f"{path.name} links to {link}")
    return found


def test_faults_are_found(tmp_path):
    (tmp_path / "a.html").write_text(
        '<h1 id="here">a</h1><a href="#here"></a><a href="#gone"></a><a href="b.html#there"></a>'
        '<a href="c.html"></a><a href="https://example.org"></a><img src="//example.org/x.png">'
        '<script src="https://example.org/x.js"></script><link href="b.html">'
    )
    (tmp_path / "b.html").write_text('<p id="other"></p><a href="a.html#here"></a>')
    assert sorted(faults(tmp_path)) == [
        "a.html links to #gone",
        "a.html links to b.html#there",
        "a.html links to c.html",
        "a.html loads //example.org/x.png",
        "a.html loads https://example.org/x.js",
    ]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-c", "docs/site"]
    done = subprocess.run(  # each warning is a line, and an error at the end
        [*command, "-d", str(folder / "cache"), "docs", str(folder / "pages")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.stderr == ""
    assert done.returncode == 0
    return folder / "pages"


@pytest.mark.slow
def test_the_site_is_whole(site):
    assert faults(site) == []


@pytest.mark.slow
def test_every_verb_detector_and_public_name_has_its_section(site):
    pages = {
        name: Page((site / f"{name}.html").read_text("utf-8"))
        for name in ("commands", "detector-options", "python")
    }
    assert {f"wsiad-{verb}" for verb in VERBS} <= pages["commands"].anchors
    assert set(registry.own_names()) <= pages["detector-options"].anchors
    public = {f"wsiad.{name}" for name in wsiad.__all__} - {"wsiad.__version__"}
    assert public <= pages["python"].anchors


@pytest.mark.slow
def test_nothing_of_the_machine_that_builds_it_is_in_a_page(site):
    assert [p.name for p in site.rglob("*.html") if str(ROOT) in p.read_text("utf-8")] == []


@pytest.mark.slow
@needs_browser
def test_pages_have_room_for_tables_and_code(site, browser):
    beyond = (
        "[document.documentElement, ...document.querySelectorAll('pre, .table-wrapper')]"
        ".filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.textContent.slice(0, 80))"
    )
    page = "document.documentElement.scrollWidth - innerWidth"
    for name in ("architecture", "benchmarks", "encoders", "results-format"):  # the widest
        for width in (800, 1280, 1920):
            size = {"height": 900, "deviceScaleFactor": 1, "mobile": False}
            browser.send("Emulation.setDeviceMetricsOverride", width=width, **size)
            browser.open((site / f"{name}.html").as_uri())
            assert browser.run(page) <= 0, (name, width)
            if width > 800:
                assert browser.run(beyond) == [], (name, width)
    assert not browser.complaints
