"""The QuPath project: what QuPath needs to load it, and what a second run leaves alone."""

from __future__ import annotations

import copy
import json
import urllib.parse
import uuid
from pathlib import Path

import jsonschema
import pytest

import wsiad
from support.builders import stained, write_tiff
from support.runs import make_run, use_channel
from wsiad.core.errors import ExportError
from wsiad.exports.qupath.project import (
    ProjectSlide,
    file_uri,
    packed_colour,
    write_project,
)
from wsiad.heatmaps.heatmap_task import HeatmapRow
from wsiad.results.qupath_project import project_slides

NAMES = ["a b", "it's", 'say "hi"', "<b>&amp;", "Größe µm", "腺癌", "50%20", "a#b?c", "a;b=c+d"]

# What QuPath 0.5 and 0.7 need, and nothing that one of them falls over.
PROJECT_SCHEMA = {
    "type": "object",
    "required": ["version", "createTimestamp", "modifyTimestamp", "uri", "lastID", "images"],
    "additionalProperties": False,
    "properties": {
        "version": {"const": "0.5.1"},
        "createTimestamp": {"type": "integer"},
        "modifyTimestamp": {"type": "integer"},
        "uri": {"type": "string", "pattern": "^file:///[!-~]+/project[.]qpproj$"},
        "lastID": {"type": "integer"},
        "images": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["serverBuilder", "entryID", "imageName", "metadata"],
                "additionalProperties": False,
                "properties": {
                    "serverBuilder": {
                        "type": "object",
                        "required": ["builderType", "uri", "args"],
                        "additionalProperties": False,
                        "properties": {
                            "builderType": {"const": "uri"},
                            "uri": {"type": "string", "pattern": "^file:///([!-~])+$"},
                            "args": {"const": []},
                        },
                    },
                    "entryID": {"type": "integer", "minimum": 1},
                    "randomizedName": {"type": "string"},
                    "imageName": {"type": "string", "minLength": 1},
                    "description": {"type": "string"},
                    "metadata": {"type": "object", "additionalProperties": {"type": "string"}},
                    "tags": {"const": []},
                },
            },
        },
    },
}


def slides(names=("a", "b"), folder="/slides", **metadata):
    return [ProjectSlide(name, Path(folder, f"{name}.svs"), metadata) for name in names]


def write(folder, given, *, made_ms=1_700_000_000_000):
    write_project(folder, given, results=folder.parent, made_ms=made_ms)
    return read(folder)


def read(folder):
    return json.loads((folder / "project.qpproj").read_text(encoding="utf-8"))


def test_hostile_names_make_a_project_that_loads(tmp_path):
    project = write(tmp_path / "q p#", slides(NAMES, folder="/data/my slides", score="1"))
    jsonschema.validate(project, PROJECT_SCHEMA)
    images = project["images"]
    assert [image["entryID"] for image in images] == list(range(1, len(NAMES) + 1))
    assert project["lastID"] == len(NAMES)
    assert len({uuid.UUID(image["randomizedName"]) for image in images}) == len(NAMES)
    for name, image in zip(NAMES, images, strict=True):
        path = urllib.parse.unquote(urllib.parse.urlsplit(image["serverBuilder"]["uri"]).path)
        assert path == f"/data/my slides/{name}.svs"
        assert image["imageName"] == f"{name}.svs"
        assert image["metadata"] == {"wsiad: slide": name, "wsiad: score": "1"}


def test_a_uri_is_absolute_and_keeps_the_name_of_a_link(tmp_path, monkeypatch):
    (tmp_path / "real.svs").touch()
    (tmp_path / "link.svs").symlink_to(tmp_path / "real.svs")
    monkeypatch.chdir(tmp_path)
    assert file_uri(Path("x/../link.svs")) == (tmp_path / "link.svs").as_uri()


def test_classes_have_the_colours_of_the_geojson(tmp_path):
    write(tmp_path / "q", slides())
    classes = json.loads((tmp_path / "q" / "classifiers" / "classes.json").read_text())
    assert classes["pathClasses"][0] == {"name": "Anomaly", "color": -3670016}
    assert packed_colour((255, 255, 255)) == -1
    assert packed_colour((0, 0, 0)) == -16777216


def test_equal_slides_give_equal_bytes_and_nothing_is_written_twice(tmp_path):
    for name in ("one", "two"):
        write_project(
            tmp_path / name / "q", slides(), results=Path("/results"), made_ms=1_700_000_000_000
        )
    one, two = (tmp_path / name / "q" / "project.qpproj" for name in ("one", "two"))
    assert one.read_text().replace("/one/", "/two/") == two.read_text()
    before = one.stat().st_mtime_ns, one.stat().st_ino
    write(one.parent, slides())
    assert (one.stat().st_mtime_ns, one.stat().st_ino) == before
    assert not one.with_name("project.qpproj.backup").exists()


def worked_in(folder):
    """Change a project as people and QuPath do; return what must still be there."""
    project = read(folder)
    project["version"], project["extra"] = "0.7.0", {"a": 1}
    project["modifyTimestamp"] += 5
    first, second = project["images"]
    first |= {"imageName": "Case 7", "description": "seen", "tags": ["done"]}
    first["metadata"] |= {"Grade": "2", "wsiad: score": "old"}
    first["serverBuilder"] = {
        "builderType": "uri", "uri": "file:///moved/a.svs", "args": ["--series", "0"],
        "providerClassName": "x", "metadata": {"name": "a"},
    }  # fmt: skip
    project["images"] = [second, first]
    project["images"].append(
        {
            "serverBuilder": {"builderType": "uri", "uri": "file:///slides/c.svs", "args": []},
            "entryID": 9,
            "imageName": "by hand",
        }
    )
    project["lastID"] = 11
    (folder / "project.qpproj").write_text(json.dumps(project))
    (folder / "data" / "12").mkdir(parents=True)  # of an image that was taken out
    (folder / "data" / "1").mkdir()
    (folder / "data" / "1" / "data.qpdata").write_bytes(b"annotations")
    classes = folder / "classifiers" / "classes.json"
    classes.write_text(json.dumps({"pathClasses": [{"name": "Anomaly", "color": -1}]}))
    return project


def test_what_people_did_survives_a_second_run(tmp_path):
    folder = tmp_path / "q"
    write(folder, slides(score="1", reason="r"))
    theirs = worked_in(folder)
    text = (folder / "project.qpproj").read_text()
    after = write(folder, slides(("a", "b", "c", "d"), score="2"), made_ms=1)
    assert (folder / "project.qpproj.backup").read_text() == text
    expected = copy.deepcopy(theirs)
    second, first, by_hand = expected["images"]
    first["metadata"] = {"wsiad: slide": "a", "wsiad: score": "2", "Grade": "2"}
    second["metadata"] = {"wsiad: slide": "b", "wsiad: score": "2"}
    by_hand["metadata"] = {"wsiad: slide": "c", "wsiad: score": "2"}  # known by its file
    expected["lastID"] = 13  # 12 may not be given again: there is data of it
    new = after["images"].pop()
    assert after == expected
    assert (new["entryID"], new["metadata"]["wsiad: slide"]) == (13, "d")
    assert (folder / "data" / "1" / "data.qpdata").read_bytes() == b"annotations"
    classes = json.loads((folder / "classifiers" / "classes.json").read_text())["pathClasses"]
    assert classes == [
        {"name": "Anomaly", "color": -1},
        {"name": "Not assessed", "color": packed_colour((128, 128, 128))},
    ]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"images": 1}', '{"images": [1]}', "[" * 100_000]
)
def test_what_is_not_a_project_is_left_as_it_is(tmp_path, text):
    folder = tmp_path / "q"
    folder.mkdir()
    (folder / "project.qpproj").write_text(text)
    with pytest.raises(ExportError, match="left as it is"):
        write(folder, slides())
    assert (folder / "project.qpproj").read_text() == text


def row(name, status="ok", score=None, file="/s/x.svs", **values):
    return HeatmapRow(name, status, score_max=score, file=file, **values)


def test_ranks_sort_as_text_and_failures_say_why(tmp_path):
    rows = [row(f"s{n}", score=float(n), regions=n) for n in range(11)]
    rows += [
        row("bad", "failed", file="/s/bad.svs", reason="cannot be decoded", label="tumor"),
        row("nowhere", "failed", file=""),
        row("folder", "failed", file=str(tmp_path)),
    ]
    found = {slide.name: dict(slide.metadata) for slide in project_slides(rows)}
    assert set(found) == {row.slide for row in rows} - {"nowhere", "folder"}
    assert found["bad"] == {"status": "failed", "reason": "cannot be decoded", "label": "tumor"}
    assert found["s10"] == {"rank": "01", "score": "10", "regions": "10", "status": "ok"}
    by_rank = sorted((facts["rank"], name) for name, facts in found.items() if "rank" in facts)
    assert [name for _, name in by_rank] == [f"s{n}" for n in range(10, -1, -1)]


def test_a_dicom_slide_is_opened_by_one_of_its_files(tmp_path):
    for name in ("b.dcm", "a.dcm", "0.txt"):
        (tmp_path / name).touch()
    (slide,) = project_slides([row("d", file=str(tmp_path))])
    assert slide.file == tmp_path / "a.dcm"


@pytest.fixture
def results(tmp_path, monkeypatch):
    use_channel(monkeypatch)
    folder = tmp_path / "slides"
    folder.mkdir()
    for number, name in enumerate(NAMES[:3]):
        write_tiff(folder / f"{name}.tif", stained(144, 144, seed=number), mpp=0.5, levels=1)
    (folder / "text.svs").write_text("no")
    return tmp_path


def test_heatmap_ends_with_a_project(results):
    run, out = make_run(results / "run"), results / "out"
    done = wsiad.heatmap(run=run, slides=results / "slides", out=out, quiet=True)
    assert str(out / "qupath" / "project.qpproj") in done.summary
    project = read(out / "qupath")
    jsonschema.validate(project, PROJECT_SCHEMA)
    facts = {image["imageName"]: image["metadata"] for image in project["images"]}
    assert set(facts) == {f"{name}.tif" for name in NAMES[:3]} | {"text.svs"}
    assert facts["text.svs"]["wsiad: status"] == "failed"
    assert facts["text.svs"]["wsiad: reason"]
    assert sorted(f["wsiad: rank"] for f in facts.values() if "wsiad: rank" in f) == ["1", "2", "3"]
    for image in project["images"]:
        uri = urllib.parse.urlsplit(image["serverBuilder"]["uri"])
        assert Path(urllib.parse.unquote(uri.path)).is_file()
    # As the script does it: from the project's folder to that of the slide.
    for slide in (f["wsiad: slide"] for f in facts.values() if f["wsiad: status"] == "ok"):
        assert (out / "qupath" / ".." / slide / "slide.json").is_file()
    before = (out / "qupath" / "project.qpproj").read_bytes()
    wsiad.heatmap(run=run, slides=results / "slides", out=out, quiet=True)
    assert (out / "qupath" / "project.qpproj").read_bytes() == before


def test_the_last_shard_writes_the_project(results):
    run, out = make_run(results / "run"), results / "out"
    for shard in ("1/2", "2/2"):
        assert not (out / "qupath").exists()
        wsiad.heatmap(run=run, slides=results / "slides", out=out, shard=shard, quiet=True)
    assert len(read(out / "qupath")["images"]) == 4


def test_slides_of_a_store_are_opened_from_their_own_file(results):
    tissue = {"min_area_um2": 0, "smooth_um": 0}
    run = make_run(results / "run", min_coverage=0.5, tissue=tissue)
    wsiad.tile(slides=results / "slides", out=results / "store", mpp=0.5, tile=32, tissue=tissue,
               stain={"method": "none"}, quiet=True)  # fmt: skip
    wsiad.heatmap(run=run, slides=results / "store", out=results / "out", quiet=True)
    images = read(results / "out" / "qupath")["images"]
    assert {image["imageName"] for image in images} == {
        path.name for path in (results / "slides").iterdir()
    }


def test_a_project_that_cannot_be_read_does_not_lose_the_results(results):
    run, out = make_run(results / "run"), results / "out"
    wsiad.heatmap(run=run, slides=results / "slides", out=out, quiet=True)
    (out / "qupath" / "project.qpproj").write_text("{")
    again = wsiad.heatmap(run=run, slides=results / "slides", out=out, quiet=True)
    assert "was not updated" in again.summary
    assert (out / "qupath" / "project.qpproj").read_text() == "{"


def test_without_qupath_there_is_no_project_and_names_of_folders_are_not_slides(results):
    run, out = make_run(results / "run"), results / "out"
    (results / "slides" / "a b.tif").rename(results / "slides" / "qupath.tif")
    done = wsiad.heatmap(
        run=run, slides=results / "slides", out=out, viewers=("napari",), quiet=True
    )
    assert "qupath" in {failed.slide for failed in done.failed}
    assert not (out / "qupath").exists()
    assert not (out / NAMES[1] / "tiles.geojson.gz").exists()
    assert (out / NAMES[1] / "lesions.geojson").exists()
