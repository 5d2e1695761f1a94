"""report.html: self-contained, escaped, ranked, and honest about what is undefined."""

from __future__ import annotations

import base64
import hashlib
import io
import math
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import shapely
from PIL import Image

from support.browser import needs_browser
from support.report_pages import HOSTILE, Page, picture
from wsiad.core.errors import ExportError
from wsiad.core.geometry import SquareMicrons
from wsiad.heatmaps.regions import Region
from wsiad.report import wording as report_text
from wsiad.report.page import write_report
from wsiad.report.report_model import (
    ColourScale,
    LesionMark,
    RegionEntry,
    Report,
    SlideEntry,
)

POINTS = ("0.25", "0.5", "1", "2", "4", "8")


def slide(name, score, **more):
    return SlideEntry(name, "ok", score_max=score, score_top_k_mean=score, windows=1234, **more)


def froc(score, **more):
    return {
        "score": score,
        "low": score - 0.1,
        "high": score + 0.1,
        "sensitivity_at": {p: score + 0.01 * i for i, p in enumerate(POINTS)},
        "sensitivity_interval_at": {p: [0.111, 0.999] for p in POINTS},
        "lesions": 14,
        "rules": {"hidden": "detail"},
        **more,
    }


def write(folder, report, **options):
    path = folder / "report.html"
    write_report(path, report, **options)
    return Page(path.read_text(encoding="utf-8"))


def report(**more):
    return Report("A run", "wsiad 0.1.0", **more)


def test_slides_are_ranked_and_those_without_a_score_come_last(tmp_path):
    slides = [
        slide("low", 1.0),
        SlideEntry("zz-failed", "failed", "damaged"),
        slide("high", 12.5),
        SlideEntry("empty", "no-tissue", "no tissue was found"),
        slide("not-a-number", math.nan),
        slide("middle", 3.0),
    ]
    page = write(tmp_path, report(slides=slides))
    rows = [a["data-search"].split()[0] for a in page.all("tr") if "data-search" in a]
    assert rows == ["high", "middle", "low", "empty", "not-a-number", "zz-failed"]
    names = [a["id"] for a in page.all("article")]
    assert names == [f"slide-{i}" for i in range(1, 7)]
    links = [a["href"] for a in page.all("a") if a["href"].startswith("#slide-")]
    assert links == [
        "#slide-1",
        *(f"#{name}" for name in names),
    ]  # the strangest one at a glance, then the table
    assert "not finite" in page.text
    assert "nan" not in page.text.replace("not-a-number", "").lower()


def test_the_mean_of_the_highest_scores_can_rank(tmp_path):
    one = SlideEntry("one", "ok", score_max=9, score_top_k_mean=1)
    two = SlideEntry("two", "ok", score_max=2, score_top_k_mean=1.5)
    by_max, by_mean = report(slides=[two, one]), report(slides=[one, two], rank_by="top_k_mean")
    assert [s.name for s in by_max.ranked()] == ["one", "two"]
    assert [s.name for s in by_mean.ranked()] == ["two", "one"]
    assert "the mean of the highest scores in a slide’s heatmap" in write(tmp_path, by_mean).text


def test_no_text_from_outside_becomes_markup(tmp_path):
    bad = SlideEntry(
        HOSTILE,
        HOSTILE,
        HOSTILE,
        label=HOSTILE,
        score_max=1,
        images=[(HOSTILE, picture(tmp_path / "a.png"))],
    )
    hostile = Report(
        HOSTILE,
        HOSTILE,
        run={HOSTILE: HOSTILE},
        calibration={HOSTILE: {HOSTILE: [HOSTILE]}},
        slides=[bad],
        failures=[(HOSTILE, HOSTILE)],
        evaluation={
            HOSTILE: {"value": None, "undefined": HOSTILE},
            "froc": {HOSTILE: froc(0.5, note=HOSTILE) | {"sensitivity_at": {HOSTILE: 0.5}}},
            "counts": {HOSTILE: HOSTILE},
        },
        plots=[(HOSTILE, picture(tmp_path / "b.jpg"))],
        timings={HOSTILE: 1.0},
        config_yaml=HOSTILE,
        notes=[HOSTILE],
        warnings=[HOSTILE],
        colour_scale=ColourScale(HOSTILE, ["#000000", "#ffffff"], [HOSTILE, HOSTILE]),
    )
    page = write(tmp_path, hostile)
    assert len(page.all("script")) == len(page.raw["script"]) == 1
    assert "alert" not in page.raw["script"][0]
    assert {a["alt"] for a in page.all("img")} == {f"{HOSTILE}, {HOSTILE}", HOSTILE}
    attributes = [name for _, attrs in page.elements for name in attrs]
    assert not [name for name in attributes if name.startswith("on") or name == "style"]
    assert page.text.count(HOSTILE) >= 20
    assert "49" not in page.text


def test_the_page_loads_nothing_and_its_policy_lets_only_its_own_script_run(tmp_path):
    slides = [slide("a", 1, images=[("shown", picture(tmp_path / "a.png"))])]
    page = write(tmp_path, report(slides=slides, plots=[("ROC", tmp_path / "a.png")]))
    assert not page.all("link")
    for tag, attrs in page.elements:
        for name in ("src", "href", "action", "data", "srcset"):
            if name in attrs:
                if tag == "a" and attrs[name].startswith("../"):
                    continue  # to the viewer, shown only where it serves the page
                assert attrs[name].startswith(("data:image/png;base64,", "#")), (tag, attrs)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|url\((?!#)", text)
    policy = next(a["content"] for a in page.all("meta") if "http-equiv" in a)
    for tag in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256("".join(page.raw[tag]).encode()).digest())
        assert f"{tag}-src 'sha256-{digest.decode()}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_pictures_are_inlined_byte_for_byte_with_their_size(tmp_path):
    png = picture(tmp_path / "pictures" / "a.png", seed=1, size=(31, 17))
    jpeg = picture(tmp_path / "pictures" / "b.jpg", seed=2)
    disguised = jpeg.rename(jpeg.with_name("c.png"))  # known by content, not by name
    page = write(tmp_path, report(slides=[slide("a", 1, images=[("x", png), ("y", disguised)])]))
    first, second = page.all("img")
    assert (first["width"], first["height"]) == ("31", "17")
    kinds = {"PNG": "image/png", "JPEG": "image/jpeg"}
    for attrs, file in ((first, png), (second, disguised)):
        head, data = attrs["src"].split(",", 1)
        content = base64.b64decode(data, validate=True)
        assert content == file.read_bytes()
        assert head == f"data:{kinds[Image.open(io.BytesIO(content)).format]};base64"
    assert "files next to it" not in page.text


def test_many_pictures_are_linked_relative_to_the_page(tmp_path):
    files = [picture(tmp_path / f"a #1 100%/{name}.png", seed=i) for i, name in enumerate("ab")]
    entry = slide("a", 1, images=[("x", files[0]), ("y", files[1])])
    size = sum(file.stat().st_size for file in files)
    inlined = write(tmp_path, report(slides=[entry]), inline_limit=size)
    assert all(a["src"].startswith("data:") for a in inlined.all("img"))
    linked = write(tmp_path, report(slides=[entry]), inline_limit=size - 1)
    assert [tmp_path / unquote(a["src"]) for a in linked.all("img")] == files
    assert not any(c in a["src"] for a in linked.all("img") for c in "# :")
    assert "files next to it" in linked.text


@pytest.mark.parametrize("name", ["missing.png", "text.png", "drawing.svg", "moving.gif"])
def test_a_picture_that_is_none_is_named_and_the_old_report_stays(tmp_path, name):
    (tmp_path / "report.html").write_text("old")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "drawing.svg").write_text("<svg><script>alert(1)</script></svg>")
    Image.new("RGB", (4, 4)).save(tmp_path / "moving.gif")
    with pytest.raises(ExportError, match=re.escape(str(tmp_path / name))):
        write(tmp_path, report(slides=[slide("a", 1, images=[("x", tmp_path / name)])]))
    assert (tmp_path / "report.html").read_text() == "old"


def test_a_first_look_in_another_folder_is_embedded_where_others_are_linked(tmp_path):
    folder = tmp_path / "new"
    own, first = picture(folder / "a.png"), picture(tmp_path / "old" / "a.png")
    entry = slide("a", 1, images=[("x", own)], first_look=[("y", first)])
    page = write(folder, report(slides=[entry]), inline_limit=0)
    sources = [image["src"] for image in page.all("img")]
    assert sources[0] == "a.png"
    assert sum(source.startswith("data:image/png") for source in sources) == 1


def test_a_link_may_not_leave_the_folder_of_the_report(tmp_path):
    outside = picture(tmp_path / "elsewhere" / "a.png")
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "a.png").symlink_to(outside)
    for file in (outside, folder / "a.png", folder / ".." / "elsewhere" / "a.png"):
        entry = slide("a", 1, images=[("x", file)])
        with pytest.raises(ExportError, match="inline_limit"):
            write(folder, report(slides=[entry]), inline_limit=0)
        write(folder, report(slides=[entry]))
        # Plots, which may lie with the run or the evaluation, are always within the page.
        page = write(folder, report(plots=[("x", file)]), inline_limit=0)
        assert page.all("img")[0]["src"].startswith("data:")


def test_failures_and_warnings_stand_before_everything_else(tmp_path):
    failed = [("bad_1", "no µm/px is known"), ("bad_2", "JPEG data is damaged")]
    page = write(
        tmp_path,
        report(slides=[slide("good", 1)], failures=failed, random_weights=True, warnings=["Mind!"]),
    )
    expected = ["network weights are random", "Mind!", "2 slides failed", "bad_1", "no µm/px"]
    expected += ["bad_2", "JPEG data is damaged", "Slides scored", "good"]
    places = [page.text.index(words) for words in expected]
    assert places == sorted(places)
    calm = write(tmp_path, report(slides=[slide("good", 1)]))
    assert "random" not in calm.text
    assert "failed" not in calm.text
    assert "Read this first" not in calm.text


def test_figures_with_intervals_and_froc_by_protocol(tmp_path):
    evaluation = {
        "slide_auc": {"value": 0.96666, "low": 0.8741, "high": 1.0},
        "tile_auroc": {"value": 0.5, "low": None, "high": None, "interval_undefined": "few slides"},
        "froc": {"camelyon16-2016": froc(0.70512), "camelyon16-dataset": froc(0.4)},
        "counts": {"slides": 129, "tumour": 49},
        "exclusions": {"all": ["test_049"], "froc": []},
        "notes": ["tumour slides on which no tumour is marked: test_114"],
        "slides": [{"slide": "not-listed", "score": 1.0}],
    }
    evaluation["tile_auroc"]["by_share"] = {"value": 0.61, "low": 0.5, "high": 0.7}
    page = write(tmp_path, report(evaluation=evaluation))
    for words in (
        "Slide AUC 0.967 95 % interval 0.874–1.000 1 slide excluded",
        "Tile AUROC 0.500 95 % interval undefined: few slides 1 slide excluded",
        "FROC score 0.705 95 % interval 0.605–0.805 · camelyon16-2016 1 slide excluded",
        "camelyon16-2016 0.705 0.605–0.805 0.705 0.111–0.999 0.715",
        "camelyon16-dataset 0.400",
        "0.25 FP 0.5 FP 1 FP 2 FP 4 FP 8 FP",
        "slides 129 tumour 49",
        "lesions 14",
        "Excluded: test_049",
        "tumour slides on which no tumour is marked: test_114",
        "Tile AUROC, by share 0.610 (0.500–0.700)",
    ):
        assert words in page.text
    for words in ("hidden", "not-listed", "Excluded from FROC"):
        assert words not in page.text


def test_classes_of_lesions_operating_points_groups_and_the_classifier(tmp_path):
    found = froc(0.7)
    points = list(found["sensitivity_at"])
    found["threshold_at"] = dict(zip(points, (9.5, 8.25, 7.125, 6.0, 5.0, None), strict=True))
    found["by_class"] = {
        "macro": {"regions": 3, "hit": 2, "sensitivity_at": dict.fromkeys(points, 2 / 3)},
        "micro": {"regions": 0, "hit": 0, "sensitivity_at": None},
        "itc": {"regions": 5, "hit": 1, "sensitivity_at": None},
    }
    one_sided = {"value": None, "low": None, "high": None, "undefined": "no tumour slide"}
    area = {"value": 0.9, "low": 0.8, "high": 0.95}
    evaluation = {
        "slide_auc": area,
        "froc": {"camelyon16-2016": found},
        "slide_classifier": {"slide_auc": {"value": 0.75, "low": 0.5, "high": 0.9}},
        "group_by": "centre",
        "groups": {
            "<b>UMCU</b>": {
                "slide_auc": area,
                "froc": {"camelyon16-2016": froc(0.31)},
                "counts": {"slides": 20, "tumour_slides": 8},
            },
            "RUMC": {"slide_auc": one_sided, "froc": {"camelyon16-2016": froc(0.42)}},
        },
    }
    page = write(tmp_path, report(evaluation=evaluation))
    for words in (
        "lowest confidence 9.500 8.250 7.125 6.000 5.000 –",
        "macrometastases: 2 of 3 hit 0.667 0.667",
        "isolated tumour cells: 1 of 5 hit – –",
        "Slide AUC, supervised 0.750 95 % interval 0.500–0.900",
        "centre Slides Slide AUC FROC camelyon16-2016",
        "<b>UMCU</b> 20, 8 with tumour 0.900 0.800–0.950 0.310",
        "RUMC – undefined: no tumour slide 0.420",
    ):
        assert words in page.text, words
    assert "micrometastases" not in page.text


def test_slides_that_are_excluded_are_told_where_figures_and_labels_stand(tmp_path):
    figure = {"value": 0.5, "low": 0.4, "high": 0.6}
    evaluation = {
        "slide_auc": figure,
        "tile_auroc": figure,
        "froc": {"camelyon16-2016": froc(0.7)},
        "exclusions": {"all": ["a"], "froc": ["b", "c"]},
    }
    slides = [slide("a", 3.0, label="tumour", excluded="all"), slide("b", 2.0, excluded="froc"),
              slide("d", 1.0)]  # fmt: skip
    page = write(tmp_path, report(slides=slides, evaluation=evaluation))
    for words in (
        "Slide AUC 0.500 95 % interval 0.400–0.600 1 slide excluded",
        "Tile AUROC 0.500 95 % interval 0.400–0.600 3 slides excluded",
        "camelyon16-2016 3 slides excluded",
        "a ok tumour excluded 3.00",
        "b ok excluded from FROC 2.00",
        "d ok – 1.00",
    ):
        assert words in page.text


def test_an_undefined_figure_says_why_and_shows_no_number(tmp_path):
    nothing = dict.fromkeys(POINTS)
    evaluation = {
        "slide_auc": {"value": None, "low": None, "high": None, "undefined": "no healthy slide"},
        "tile_auroc": {"value": math.nan, "low": 0, "high": 1},
        "froc": {
            "camelyon16-2016": {
                "score": None,
                "low": None,
                "high": None,
                "undefined": "no lesion to find",
                "sensitivity_at": nothing,
                "sensitivity_interval_at": nothing,
            }
        },
    }
    page = write(tmp_path, report(evaluation=evaluation))
    assert "Slide AUC undefined: no healthy slide" in page.text
    assert "Tile AUROC undefined: no reason is given" in page.text
    assert page.text.count("undefined: no lesion to find") == 2  # at a glance, and in the table
    assert "95 % interval " not in page.text
    assert "None" not in page.text


def test_without_slides_or_evaluation_the_page_still_holds(tmp_path):
    page = write(tmp_path, report())
    assert "There are no slides." in page.text
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for a in page.all("a") if a["href"][0] == "#"} <= set(ids)
    assert "evaluation" not in ids


def test_the_number_of_a_lesion_stands_at_its_outline(tmp_path):
    """At a corner, not at that of the rectangle around it, which may be far from both sides."""
    shown = picture(tmp_path / "a.png", size=(400, 200))
    long = [
        (0.1, 0.1),
        (0.2, 0.1),
        (0.8, 0.7),
        (0.7, 0.8),
    ]  # from the upper left to the lower right
    marks = [LesionMark(3, "missed", long)]
    write(tmp_path, report(slides=[slide("a", 1, images=[("shown", shown)], marks=marks)]))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    (x, y) = re.search(r'<text x="([\d.]+)" y="([\d.]+)">✗3</text>', page).groups()
    # Farthest to the upper right, px: (320, 140) by 180, before (80, 20) by 60.
    assert (float(x), float(y)) == (320.0, 140.0)


def test_structure_is_accessible(tmp_path):
    scale = ColourScale("Percentile", ["#000004", "#fcffa4"], ["0", "50", "100"])
    page = write(tmp_path, report(slides=[slide("a", 1), slide("b", 2)], colour_scale=scale))
    assert page.all("html") == [{"lang": "en"}]
    assert [len(page.all(tag)) for tag in ("h1", "main", "header", "footer", "nav")] == [1] * 5
    assert all(a.get("scope") in ("col", "row") for a in page.all("th"))
    ids = {attrs["id"] for _, attrs in page.elements if "id" in attrs}
    assert {a["aria-labelledby"] for a in page.all("article")} <= ids
    assert {a["href"][1:] for a in page.all("a") if a["href"][0] == "#"} <= ids
    for region in page.elements:
        if region[1].get("class") == "scroll":  # reachable by keyboard, and named
            assert region[1]["tabindex"] == "0"
            assert region[1]["aria-label"]
    legend = next(a for a in page.all("svg") if a.get("role") == "img")
    assert legend["aria-label"] == "Colour scale: Percentile, from 0 to 100"
    assert [s["offset"] for s in page.all("stop")] == ["0.0%", "100.0%"]


def test_a_colour_that_is_none_is_refused(tmp_path):
    scale = ColourScale("x", ["#000000", 'red" onload="alert(1)'], [])
    with pytest.raises(ExportError, match="#rrggbb"):
        write(tmp_path, report(colour_scale=scale))


def test_bars_reach_from_the_lowest_to_the_highest_score(tmp_path):
    page = write(tmp_path, report(slides=[slide("a", 10), slide("b", 20), slide("c", 15)]))
    widths = [float(a["width"]) for a in page.all("rect") if a.get("class") == "length"]
    assert widths == [100, 52, 4] * 2  # in the list, then with each slide
    alone = write(tmp_path, report(slides=[slide("a", 3.0)]))
    assert [a["width"] for a in alone.all("rect") if a.get("class") == "length"] == ["4.0"] * 2


@pytest.mark.parametrize(
    ("function", "value", "words"),
    [
        (report_text.score, 10.2, "10.20"),
        (report_text.score, 0.00012345, "0.0001234"),
        (report_text.score, -1.5, "−1.500"),
        (report_text.score, 1234.0, "1234"),
        (report_text.score, 0.0, "0.000"),
        (report_text.score, None, "–"),
        (report_text.score, -math.inf, "not finite"),
        (report_text.count, 1234567, "1 234 567"),
        (report_text.count, 0, "0"),
        (report_text.count, None, "–"),
        (report_text.percentile, 99.999, "99.99"),
        (report_text.percentile, 100.0, "100"),
        (report_text.percentile, 0.0, "0.00"),
        (report_text.percentile, None, "–"),
        (report_text.percentile, math.nan, "not finite"),
        (report_text.seconds, 0.04, "0.0 s"),
        (report_text.seconds, 9.96, "10 s"),
        (report_text.seconds, 59.6, "60 s"),
        (report_text.seconds, 59.96, "1 min 00 s"),
        (report_text.seconds, 3599.9, "1 h 00 min"),
        (report_text.seconds, 5025, "1 h 23 min"),
    ],
)
def test_numbers_read_well(function, value, words):
    assert function(value).replace("\u202f", " ") == words


def test_facts_are_laid_flat_and_worded():
    values = {"ended_by": "fitted", "stride": {"px": 48, "whole": True}, "none": None, "k": (1, 2)}
    assert report_text.facts(values | {"tiles": 31422, "seed": 0, "loss": 0.123456}) == [
        ("ended by", "fitted"),
        ("stride · px", "48"),
        ("stride · whole", "yes"),
        ("none", "–"),
        ("k", "1, 2"),
        ("tiles", "31\u202f422"),
        ("seed", "0"),
        ("loss", "0.1235"),
    ]


def regions(folder, *, count=2):
    return [
        RegionEntry(
            Region(
                polygon=shapely.box(0, 0, 9, 9),
                rank=rank,
                area=SquareMicrons(8707.13),
                max_score=5.0 - rank,
                mean_score=0.5,
                percentile=99.97,
                p=0.0125,
            ),
            images=[("field", picture(folder / f"field{rank}.png", seed=rank))],
            tiles=[("healthy", picture(folder / f"tile{rank}.png", seed=10 + rank))],
        )
        for rank in range(1, count + 1)
    ]


def test_strongest_regions_are_shown_with_what_is_known_of_them(tmp_path):
    entry = slide("a", 1, regions=regions(tmp_path), thumbnail=picture(tmp_path / "t.png"))
    page = write(tmp_path, report(slides=[entry, slide("b", 0)]))
    words = "1. Score 4.000 , percentile 99.97, 8 707 µm², p = 0.013"
    assert words in page.text.replace("\u202f", " ").replace("\xa0", " ")
    assert "q =" not in page.text.replace("\xa0", " ")
    assert [a["alt"] for a in page.all("img")] == [
        "",  # the thumbnail says nothing that its row does not
        *("field, region 1 of a", "healthy, region 1 of a"),
        *("field, region 2 of a", "healthy, region 2 of a"),
    ]
    assert not page.all("template")
    large = write(tmp_path, report(slides=[entry]), inline_limit=0)
    assert len(large.all("template")) == len(large.all("noscript")) == 1
    assert [a["src"] for a in large.all("img")] == [
        "t.png", "field1.png", "tile1.png", "field2.png", "tile2.png",
    ]  # fmt: skip


def test_what_was_not_assessed_is_counted_and_flags_stand_apart(tmp_path):
    entry = slide("a", 1, left_out={"pen": 300, "black": 12}, reason="pen marks; few stains")
    page = write(tmp_path, report(slides=[entry, slide("b", 2)]))
    assert "Not assessed 20.2 % of the windows (pen 300, black 12)" in page.text.replace(
        "\u202f", " "
    )
    cells = [a["data-value"] for a in page.all("td") if a.get("data-value", "").startswith("0.2")]
    assert [float(value) for value in cells] == [pytest.approx(312 / (1234 + 312))]
    assert "pen marks few stains" in page.text  # two items of a list
    assert slide("c", 1).left_out_share == 0
    assert SlideEntry("d", "no-tissue").left_out_share is None


def test_p_values_and_hit_lesions_have_columns_where_they_are_known(tmp_path):
    known = slide("a", 1, p=0.013, q=0.04, lesions=3, lesions_hit=2)
    page = write(tmp_path, report(slides=[known, slide("b", 2, lesions=0, lesions_hit=0)]))
    assert "p 0.013 q 0.04 Annotated lesions hit 2 of 3" in page.text
    assert page.text.count("Annotated lesions hit") == 1  # where there is none, none is missed
    values = [a["data-value"] for a in page.all("td") if "data-value" in a]
    assert "0.013" in values
    assert "2" in values
    bare = write(tmp_path, report(slides=[slide("a", 1)]))
    assert "Lesions hit" not in bare.text
    assert bare.text.count(" p ") == 0


def test_versions_are_shown(tmp_path):
    page = write(tmp_path, report(versions={"wsiad": "0.1.0", "numpy": "2.4.6"}))
    assert "Versions wsiad 0.1.0 numpy 2.4.6" in page.text


@needs_browser
def test_a_browser_draws_the_page(tmp_path, browser):
    shown = picture(tmp_path / "a.png", size=(400, 300))
    entry = slide("a", 1, images=[("x", shown)])
    write(tmp_path, report(slides=[entry], failures=[("bad", "damaged")]))
    browser.open((tmp_path / "report.html").as_uri())
    browser.wait("document.images[0].complete && document.images[0].naturalWidth")
    browser.screenshot(tmp_path / "shot.png")
    pixels = np.asarray(Image.open(tmp_path / "shot.png").convert("RGB")).astype(int)
    assert pixels.shape[1] >= 1280 - 20
    assert (pixels.min(axis=2) < 80).mean() > 0.005  # words
    red = (pixels[..., 0] - pixels[..., 1] > 5) & (pixels[..., 0] > 245)
    assert red.mean() > 0.01  # the box of failures: the styles are let through
    assert not browser.complaints


ROWS = "[...document.querySelectorAll('#ranking tbody tr')].filter(r => !r.hidden)"
NAMES = f"{ROWS}.map(r => r.querySelector('th').textContent.trim())"
FOCUS = "document.activeElement"


def press_until(browser, condition, key="Tab", *, most=40):
    for _ in range(most):
        browser.press(key)
        if browser.run(condition):
            return
    raise AssertionError(f"{key} does not lead to {condition}")


@needs_browser
def test_sorting_and_filtering_by_mouse(tmp_path, browser):
    slides = [slide(f"s{i}", float(i), detections=n) for i, n in enumerate([3, 20, 100])]
    slides.append(SlideEntry("void", "no-tissue"))
    write(tmp_path, report(slides=slides))
    browser.open((tmp_path / "report.html").as_uri())
    assert browser.run(NAMES) == ["s2", "s1", "s0", "void"]
    column = "#ranking th:nth-child(8) button"
    assert browser.run(f"document.querySelector('{column}').textContent") == "Detected"
    browser.click(column)
    assert browser.run(NAMES) == ["s2", "s1", "s0", "void"]
    browser.click(column)
    assert browser.run(NAMES) == ["s0", "s1", "s2", "void"]
    assert browser.run(f"document.querySelector('{column}').parentNode.ariaSort") == "ascending"
    browser.click("#filter")
    browser.write("NO-tis")
    assert browser.run(NAMES) == ["void"]
    assert browser.run("document.querySelector('[role=status]').textContent") == "1 of 4 shown"
    assert (
        browser.run("[...document.querySelectorAll('article')].filter(a => !a.hidden).length") == 1
    )
    assert not browser.complaints


@needs_browser
def test_everything_can_be_reached_and_done_by_keyboard(tmp_path, browser):
    slides = [slide(f"s{i}", float(i), thumbnail=picture(tmp_path / "t.png")) for i in range(30)]
    write(tmp_path, report(slides=slides))
    browser.open((tmp_path / "report.html").as_uri())
    browser.press("Tab")
    assert browser.run(f"{FOCUS}.className") == "skip"
    press_until(browser, f"{FOCUS}.id === 'filter'")
    browser.write("s2")
    assert browser.run(f"{NAMES}.length") == 11
    press_until(browser, f"{FOCUS}.textContent === 'Max'")
    assert browser.run(f"{FOCUS}.matches(':focus-visible')")
    browser.press("Enter")
    browser.press("Enter")
    assert browser.run(f"{NAMES}[0]") == "s2"  # lowest first
    press_until(browser, f"{FOCUS}.textContent === 's20'")
    browser.press("Enter")
    browser.wait("location.hash === '#slide-10'")
    top = "document.querySelector('#slide-10').getBoundingClientRect().top"
    browser.wait(f"{top} >= 0 && {top} < innerHeight")
    press_until(browser, f"{FOCUS}.className === 'back'", most=1)  # goes on from the slide
    assert not browser.complaints


@needs_browser
def test_opening_a_slide_of_a_large_report_loads_its_regions(tmp_path, browser):
    slides = [slide("b", 2), slide("a", 1, regions=regions(tmp_path))]
    write(tmp_path, report(slides=slides), inline_limit=0)
    browser.open((tmp_path / "report.html").as_uri())
    assert browser.run("document.images.length") == 0
    browser.click("a[href='#slide-2']")
    browser.wait("document.images.length === 4")
    browser.wait("[...document.images].every(i => i.complete && i.naturalWidth === 40)")
    assert browser.run("document.querySelector('details.late').open")
    # A link to the slide does the same.
    browser.open("about:blank")
    browser.open((tmp_path / "report.html").as_uri() + "#slide-2")
    browser.wait("document.images.length === 4")
    assert not browser.complaints


@needs_browser
def test_five_hundred_slides_open_without_the_pictures_of_their_regions(tmp_path, browser):
    shown = [("x", picture(tmp_path / "a.png"))] * 2
    small, strongest = picture(tmp_path / "t.png"), regions(tmp_path)
    slides = [
        slide(f"s{i:03d}", float(i), images=shown, thumbnail=small, regions=strongest)
        for i in range(500)
    ]
    write(tmp_path, report(slides=slides), inline_limit=0)
    assert (tmp_path / "report.html").stat().st_size < 5_000_000
    browser.open((tmp_path / "report.html").as_uri())
    # The 2000 pictures of regions are not in the page until asked for.
    assert browser.run("document.images.length") == 500 * 3
    browser.click("#ranking th:nth-child(6) button")
    browser.click("#ranking th:nth-child(6) button")
    assert browser.run(NAMES)[:2] == ["s000", "s001"]
    browser.run("location.hash = '#slide-400'")
    browser.wait("Math.abs(document.querySelector('#slide-400').getBoundingClientRect().top) < 60")
    browser.wait("document.images.length === 500 * 3 + 4")
    assert not browser.complaints


@needs_browser
def test_the_policy_stops_what_is_not_ours(tmp_path, browser):
    write(tmp_path, report(slides=[slide("a", 1)]))
    path = tmp_path / "report.html"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("</main>", "<script>document.title = 'taken'</script></main>"))
    browser.open(path.as_uri())
    assert browser.run("document.title") == "A run"
    assert any("Content Security Policy" in words for words in browser.complaints)


@needs_browser
def test_it_prints_every_slide(tmp_path, browser):
    slides = [
        slide(f"s{i}", float(i), images=[("x", picture(tmp_path / "a.png"))]) for i in range(9)
    ]
    write(tmp_path, report(slides=slides))
    browser.open((tmp_path / "report.html").as_uri())
    pages = browser.pdf().count(b"/Type /Page\n")
    assert pages >= 3  # the scrolling table and all articles, not one screen of it


@needs_browser
@pytest.mark.skipif(shutil.which("pdftotext") is None, reason="no pdftotext on PATH")
def test_every_printed_page_of_the_table_has_its_head(tmp_path, browser):
    write(tmp_path, report(slides=[slide(f"s{i:03d}", float(i)) for i in range(120)]))
    browser.open((tmp_path / "report.html").as_uri())
    (tmp_path / "report.pdf").write_bytes(browser.pdf())
    words = subprocess.run(
        ["pdftotext", "-layout", tmp_path / "report.pdf", "-"], capture_output=True, check=True
    )
    pages = [page.split("Pictures")[0] for page in words.stdout.decode().split("\f")]
    of_table = [page for page in pages if page.count(" ok ") > 3]
    assert len(of_table) >= 2
    for page in of_table:
        (head,) = [line.split() for line in page.splitlines() if "Percentile" in line.split()]
        assert head[:5] == ["#", "Slide", "Status", "Max", "Top-k"]


@needs_browser
def test_it_prints_the_configuration_and_folds_it_again(tmp_path, browser):
    config = "\n".join(f"option_{i}: {i}" for i in range(400))
    for name, text in (("short", "a: 1"), ("long", config)):
        write_report(tmp_path / f"{name}.html", report(config_yaml=text, slides=[slide("a", 1)]))
    browser.open((tmp_path / "short.html").as_uri())
    few = browser.pdf().count(b"/Type /Page\n")
    browser.open((tmp_path / "long.html").as_uri())
    assert browser.pdf().count(b"/Type /Page\n") > few + 3
    assert browser.run("document.querySelectorAll('details[open]').length") == 0


@needs_browser
def test_tables_with_all_columns_need_no_scrolling_sideways(tmp_path, browser):
    known = {"label": "tumour", "percentile": 99.97, "p": 0.013, "seconds": 312.0}
    known |= {"lesions": 12, "lesions_hit": 11, "detections": 1000, "left_out": {"pen": 300}}
    known["thumbnail"] = picture(tmp_path / "t.png", size=(144, 108))
    known["score_scan"] = 4.339
    slides = [slide("tumor_001", 1.0, **known), slide("b", 2.0)]
    write(tmp_path, report(slides=slides, evaluation={"froc": {"camelyon16-dataset": froc(0.6)}}))
    try:
        for width in (800, 1280, 1920):
            size = {"height": 900, "deviceScaleFactor": 1, "mobile": False}
            browser.send("Emulation.setDeviceMetricsOverride", width=width, **size)
            browser.open((tmp_path / "report.html").as_uri())
            beyond = browser.run(
                "[document.documentElement, ...document.querySelectorAll('.scroll')]"
                ".map(e => e.scrollWidth - e.clientWidth)"
            )
            assert beyond == [0, 0, 0], width
            shown = browser.run(
                "[...document.querySelectorAll('#ranking th.further')].map(e => e.offsetWidth > 0)"
            )
            assert shown == [width > 1100] * 4
            # What these columns tell stands with each slide, and Relative only where it is needed.
            beside = browser.run(
                "[...document.querySelectorAll('article')].map(e => [...e.querySelectorAll('dt')]"
                ".filter(e => e.offsetWidth > 0).map(e => e.textContent))"
            )
            for terms in beside:
                assert {"Top-k mean", "Windows", "Time"} <= set(terms)
                assert ("Relative" in terms) == (width <= 1100)
    finally:
        browser.send("Emulation.clearDeviceMetricsOverride")


def test_reports_are_equal_for_equal_content(tmp_path):
    one = report(slides=[slide("a", 1), slide("b", 2)])
    write_report(tmp_path / "a.html", one)
    write_report(tmp_path / "b.html", replace(one, slides=one.slides[::-1]))
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert not list(Path(tmp_path).glob(".*"))
