"""Slides are listed as the other verbs name them, and a manifest says the same as what it lists."""

import json
import shutil

import pytest

from support.builders import stained, write_tiff
from wsiad.cli import main
from wsiad.core.errors import ConfigError, InputError
from wsiad.slides.inputs import find_slides
from wsiad.verbs.list_slides import list_slides


@pytest.fixture
def slides(tmp_path):
    folder = tmp_path / "scans"
    for name in ("p1/1.tif", "p2/1.tif", "=x.tif", "plain.tif"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_tiff(folder / name, stained(64, 64), levels=1)
    return folder


def said(sources):
    return {
        (one.name, one.path.resolve(), one.mpp, one.label, one.split, one.extra.get("centre", ""))
        for one in find_slides(sources)
    }


def test_a_written_manifest_says_what_folder_and_manifest_said(slides, tmp_path):
    given = tmp_path / "given.csv"
    given.write_text(
        "slide;mpp;label;split;anomaly type;centre\n"
        "scans/plain.tif;0,25;healthy;Train;;north\n"
        "scans/p1/1.tif;;itc;;;south, west\n"
        "scans/p2/1.tif;;;test;fat necrosis;\n"
    )
    sources = [slides, given]
    out = tmp_path / "all.csv"
    found = list_slides(slides=sources, manifest=out)
    assert [slide.name for slide in found.slides] == ["=x", "plain", "scans/p1/1", "scans/p2/1"]
    assert {slide.label for slide in found.slides} == {"", "itc", "fat necrosis", "normal"}
    assert said([out]) == said(sources)
    assert "'=x" in out.read_text()  # a spreadsheet sees a text


def test_a_file_that_is_no_slide_is_not_listed_as_one(slides, tmp_path, capsys):
    (slides / "notes.txt").write_text("to be scanned again\n")
    (slides / "plain.tif").rename(slides / "plain.scan")
    write_tiff(slides / "unscaled.scan", stained(64, 64), levels=1, mpp=None)
    rows = tmp_path / "rows.csv"
    rows.write_text("slide\nscans/notes.txt\n")
    assert [slide.name for slide in list_slides(slides=slides).slides] == ["=x", "p1/1", "p2/1"]
    named = [slides / name for name in ("notes.txt", "plain.scan", "unscaled.scan")]
    found = list_slides(slides=named)
    assert [row.slide for row in found.failed] == ["notes"]
    assert "is not a slide in any format: it is text" in found.failed[0].reason
    assert not found.unusable
    assert main(["list-slides", str(rows)]) == 1
    assert "1 failed:\n  notes: is not a slide" in capsys.readouterr().err


def test_what_cannot_be_worked_on_is_listed_with_its_reason(slides, tmp_path, capsys):
    write_tiff(slides / "plain.tiff", stained(64, 64), levels=1)
    (slides / "gone.svs").symlink_to(slides / "nowhere.svs")
    out = tmp_path / "all.csv"
    assert main(["list-slides", str(slides), "--manifest", str(out), "--json"]) == 1
    text, errors = capsys.readouterr()
    listed = {(one["name"], bool(one["problem"])) for one in json.loads(text)["slides"]}
    bad = {("plain", True), ("gone", True)}
    assert listed == {("p1/1", False), ("p2/1", False), ("=x", False), *bad}
    assert "3 failed" in errors
    assert "nowhere.svs" in errors
    again = {(slide.name, bool(slide.problem)) for slide in find_slides([out])}
    assert again == listed


def test_programs_read_names_that_a_terminal_must_not_print(slides, tmp_path, capsys):
    names = {"a\x9b31mb", "c\x7fd", "e\U000e0001f", "µ大"}
    for name in names:
        shutil.copy(slides / "plain.tif", slides / f"{name}.tif")
    assert main(["list-slides", str(slides), "--json"]) == 1  # no slide may have such a name
    text = capsys.readouterr().out
    assert text.isascii()
    listed = {one["name"]: one["path"] for one in json.loads(text)["slides"]}
    assert names < listed.keys()
    assert all(listed[name] == str(slides / f"{name}.tif") for name in names)


def test_a_table_that_is_there_stays(slides, tmp_path, capsys):
    out = tmp_path / "mine.csv"
    out.write_text("slide,label\nscans/plain.tif,normal\n")
    with pytest.raises(InputError, match="exists, and may hold what you wrote"):
        list_slides(slides=slides, manifest=out)
    with pytest.raises(ConfigError, match=r"ends in \.csv"):
        list_slides(slides=slides, manifest=tmp_path / "mine.txt")
    assert main(["list-slides", str(slides), str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "4 slides: 1 normal, 3 without a label"
    assert lines[3].split() == ["plain", "normal", str(slides / "plain.tif")]
