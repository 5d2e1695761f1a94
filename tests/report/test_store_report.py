"""report.html of a tile store: complete, escaped, and its pictures beside it."""

from __future__ import annotations

import re
from urllib.parse import unquote

import numpy as np
import pytest

import wsiad
from support.builders import stained, write_tiff
from support.report_pages import HOSTILE, Page, picture
from wsiad.core.errors import ExportError
from wsiad.report.store_report import StoreReport, TiledSlide, write_store_page

REASONS = ("black", "pen", "saturation", "sharpness")


def write(folder, slides, **more):
    path = folder / "report.html"
    facts = {"Tile": "96 px at 1 µm/px", "Stain": "none"}
    values = {"reasons": REASONS, "facts": facts} | more
    write_store_page(path, StoreReport("Tiles", "wsiad 0", slides, **values))
    return Page(path.read_text(encoding="utf-8"))


def test_counts_of_every_slide_and_their_sums(tmp_path):
    slides = [
        TiledSlide("a", "ok", tiles=1200, unusable={"pen": 30, "sharpness": 70},
                   missing=3, tissue_share=0.25),
        TiledSlide("b", "no-tissue", tissue_share=0.0),
        TiledSlide("c", "unusable", unusable={"pen": 100}, tissue_share=0.5, label="normal"),
    ]  # fmt: skip
    page = write(tmp_path, slides)
    assert "Not stored: pen 130 9.3 % of the tiles with tissue" in page.text
    assert "Not stored: sharpness 70 5.0 %" in page.text
    assert "Not stored: black" not in page.text
    assert "a ok – 25.0 % 1 200 0 30 0 70 3" in page.text
    assert "c unusable normal 50.0 % 0 0 100 0 0 0" in page.text
    assert "0 failed · 1 unusable · 1 without tissue" in page.text
    kept = write(tmp_path, [TiledSlide("a", "ok", tiles=100, unusable={"pen": 30})], kept=True)
    assert "Stored, marked unusable: pen 30 30.0 %" in kept.text


def test_failures_come_first_with_their_reasons(tmp_path):
    page = write(tmp_path, [TiledSlide("a", "ok"), TiledSlide("z", "failed", "it is truncated")])
    assert "✕ 1 slide failed" in page.text
    assert page.text.index("it is truncated") < page.text.index("Slides in the store")
    assert [a["data-search"].split()[0] for a in page.all("tr") if "data-search" in a] == ["a"]


def test_text_from_outside_does_no_harm(tmp_path):
    slides = [
        TiledSlide(HOSTILE, "ok", HOSTILE, HOSTILE, tiles=1),
        TiledSlide(HOSTILE, "failed", HOSTILE),
    ]
    page = write(tmp_path, slides, facts={"Tile": HOSTILE, HOSTILE: HOSTILE})
    assert len(page.all("script")) == 1
    assert not page.all("img")
    assert not any("onerror" in attrs for _, attrs in page.elements)
    assert HOSTILE in page.text
    (policy,) = (a["content"] for a in page.all("meta") if a.get("http-equiv"))
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_pictures_are_linked_by_paths_that_lead_to_them_and_loaded_late(tmp_path):
    name = "50 % #1 & <b>'\""
    path = picture(tmp_path / "overviews" / f"{name}.jpg", size=(40, 30))
    page = write(tmp_path, [TiledSlide(name, "ok", overview=path), TiledSlide("old", "ok")])
    (image,) = page.all("img")
    assert (tmp_path / unquote(image["src"])).samefile(path)
    assert (image["loading"], image["width"], image["height"]) == ("lazy", "40", "30")
    assert "There is no overview" in page.text
    assert len((tmp_path / "report.html").read_bytes()) < 40_000


def test_a_picture_that_is_none(tmp_path):
    path = tmp_path / "overviews" / "a.jpg"
    path.parent.mkdir()
    path.write_text("text")
    with pytest.raises(ExportError, match="is not a PNG or JPEG"):
        write(tmp_path, [TiledSlide("a", "ok", overview=path)])
    assert not (tmp_path / "report.html").exists()


def test_the_report_of_a_run(tmp_path):
    """Good, empty and damaged slides, one with a name that markup has to escape."""
    folder = tmp_path / "slides"
    folder.mkdir()
    write_tiff(folder / "a <b>&'.tif", stained(200, 260, glass=16), mpp=0.5, levels=1)
    write_tiff(folder / "glass.tif", np.full((100, 100, 3), 243, np.uint8), mpp=0.5, levels=1)
    (folder / "text.svs").write_text("no slide")
    result = wsiad.tile(slides=folder, out=tmp_path / "store", mpp=0.5, tile=32, quiet=True,
                        tissue={"min_area_um2": 0}, quality={"min_sharpness": 1e6})  # fmt: skip
    page = Page((tmp_path / "store" / "report.html").read_text(encoding="utf-8"))
    sources = [unquote(image["src"]) for image in page.all("img")]
    assert sources == ["overviews/a <b>&'.jpg", "overviews/glass.jpg"]
    assert all((tmp_path / "store" / source).exists() for source in sources)
    assert result.rows[0].unusable_sharpness > 0
    assert f"sharpness {result.rows[0].unusable_sharpness}" in page.text
    assert "not a slide in any format" in page.text
    assert re.search(r"min sharpness 1", page.text)
