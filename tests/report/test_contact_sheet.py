"""The contact sheet and the table of the regions of all slides."""

from __future__ import annotations

import csv
import json
import shutil

import pytest

from support.browser import needs_browser
from support.builders import stained, write_tiff
from support.report_pages import HOSTILE, Page
from support.runs import score_channel
from wsiad.report.contact_sheet import write_contact_sheet
from wsiad.report.report import write_results_report
from wsiad.report.report_model import Report, SlideEntry
from wsiad.results.folder import Results


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Three slides with two, one and no bright, that is strange, spots."""
    folder = tmp_path_factory.mktemp("sheet")
    spots = {"a&b": [(64, 230), (512, 250)], "c": [(320, 240)], "calm": []}
    (folder / "slides").mkdir()
    for name, places in spots.items():
        image = stained(1024, 1024) // 4 + 20
        for at, red in places:
            image[at : at + 64, at : at + 128, 0] = red
        write_tiff(folder / "slides" / f"{name}.tif", image, mpp=0.5)
    return score_channel(folder, folder / "slides")


@pytest.fixture
def results(scored, tmp_path):
    return shutil.copytree(scored, tmp_path / "out")


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def sheet(results):
    return Page((results / "contact_sheet.html").read_text(encoding="utf-8"))


def test_the_table_holds_every_region_of_every_slide_strongest_first(results):
    found = rows(results / "all_regions.csv")
    assert [(row["slide"], row["rank"]) for row in found] == [
        ("a&b", "1"),
        ("c", "1"),
        ("a&b", "2"),
    ]
    scores = [float(row["max_score"]) for row in found]
    assert scores == sorted(scores, reverse=True)
    for slide in ("a&b", "c", "calm"):
        own = rows(results / slide / "regions.csv")
        assert [{**row, "slide": slide} for row in own] == [r for r in found if r["slide"] == slide]


def test_the_sheet_shows_them_in_that_order_and_links_to_the_slide(results):
    page, report = sheet(results), Page((results / "report.html").read_text(encoding="utf-8"))
    assert [image["alt"] for image in page.all("img")] == [
        "Region 1 of a&b, outlined in the slide",
        "Region 1 of c, outlined in the slide",
        "Region 2 of a&b, outlined in the slide",
    ]
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in page.all("img"))
    articles = [article["id"] for article in report.all("article")]
    ranked = [a["data-search"].split()[0] for a in report.all("tr") if "data-search" in a]
    links = [a["href"] for a in page.all("a") if "#slide-" in a["href"]]
    assert [ranked[articles.index(link.removeprefix("report.html#"))] for link in links] == [
        name for name in ("a&b", "c", "a&b") for _ in range(2)
    ]
    assert "3 of 3 regions on 2 slides, strongest first" in page.text
    assert "contact_sheet.html" in [a["href"] for a in report.all("a")]
    for link in ("report.html", "all_regions.csv"):
        assert link in [a["href"] for a in page.all("a")]
        assert (results / link).exists()


def test_a_report_elsewhere_and_the_sheet_find_each_other(results):
    there = results.parent / "a report.html"
    write_results_report(results, to=there)
    links = [a["href"] for a in Page(there.read_text(encoding="utf-8")).all("a")]
    assert "out/contact_sheet.html" in links
    assert "../a%20report.html" in [a["href"] for a in sheet(results).all("a")]


def test_large_pictures_are_linked_and_text_from_outside_is_escaped(results):
    entries = [SlideEntry(name, "ok", label=HOSTILE) for name in ("a&b", "c")]
    report = Report(HOSTILE, HOSTILE, slides=entries, warnings=[HOSTILE])
    write_contact_sheet(Results(results), report, page=results / "report.html", inline_limit=0)
    page = sheet(results)
    assert page.all("img")[0]["src"] == "a%26b/regions/001.jpg"
    assert "files next to this page" in page.text
    assert page.text.count(HOSTILE) >= 6  # titles, warning and a label each
    assert len(page.all("script")) == 1
    assert not [name for _, attrs in page.elements for name in attrs if name.startswith("on")]


def test_slides_without_a_table_are_named_and_failed_ones_are_not_missed(results):
    for file in ("regions.csv", "regions.json", "evidence.json"):
        (results / "c" / file).unlink()
    write_results_report(results)
    page = sheet(results)
    assert "The regions of 1 slide are not here" in page.text
    assert "wrote no table of them: c." in page.text
    assert {row["slide"] for row in rows(results / "all_regions.csv")} == {"a&b"}


def test_results_without_regions_have_an_empty_table(results):
    for name in ("a&b", "c"):
        shutil.copy(results / "calm" / "regions.csv", results / name / "regions.csv")
        for file in ("lesions.geojson", "regions.json", "evidence.json"):
            shutil.copy(results / "calm" / file, results / name / file)
    write_results_report(results)
    assert rows(results / "all_regions.csv") == []
    assert (results / "all_regions.csv").read_text().startswith("slide,rank,x,y,")
    assert "There are no pictures of regions." in sheet(results).text


@needs_browser
def test_a_sheet_of_paper_holds_twenty_regions(results, browser):
    table, fields = (results / "c" / name for name in ("regions.csv", "regions.json"))
    head, line = table.read_text().splitlines()
    lines = [f"{rank}{line[1:]}" for rank in range(1, 41)]
    table.write_text("\n".join([head, *lines, ""]))
    told = json.loads(fields.read_text())
    told["regions"] = [{**told["regions"][0], "rank": rank} for rank in range(1, 41)]
    fields.write_text(json.dumps(told))
    entries = [SlideEntry(name, "ok") for name in ("a&b", "c")]
    write_contact_sheet(Results(results), Report("x", "y", slides=entries), page=results / "r.html")
    browser.open((results / "contact_sheet.html").as_uri())
    browser.wait("[...document.images].length === 42")
    assert browser.pdf().count(b"/Type /Page\n") == 3
    assert not browser.complaints
