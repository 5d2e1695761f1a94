"""QuPath's scripts, compiled and run by a real Groovy against stubs of the classes they call."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import shapely
from PIL import Image

from wsiad.core.geometry import Box, SquareMicrons
from wsiad.exports.qupath import write_lesions, write_tiles, write_unassessed
from wsiad.exports.qupath.project import SCRIPTS, write_scripts
from wsiad.heatmaps.regions import Region
from wsiad.heatmaps.score_map import WindowScores

STUBS = Path(__file__).parent / "qupath_stubs"
IMPORT, OVERLAY, MAPS = SCRIPTS
NAME = "it's a 'slide' ä"
BOUNDS = Box(0, 0, 1000, 800)


def groovy():
    """Return the command and its environment, or why there is none."""
    command, java = shutil.which("groovy"), shutil.which("java")
    if command is None or java is None:
        return None, "no groovy (Debian's package groovy) or no java on PATH"
    home = os.environ.get("JAVA_HOME") or str(Path(java).resolve().parent.parent)
    # Without a limit a machine of many cores starts as many compilers and collectors.
    flags = "-Xshare:auto -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Xmx256m -Dfile.encoding=UTF-8"
    return command, {**os.environ, "JAVA_HOME": home, "JAVA_OPTS": flags, "LC_ALL": "C.UTF-8"}


COMMAND, ENVIRONMENT = groovy()
needs_groovy = pytest.mark.skipif(COMMAND is None, reason=str(ENVIRONMENT))


def region(left, top, score, rank):
    return Region(
        polygon=shapely.box(left, top, left + 64, top + 48),
        area=SquareMicrons(768.0),
        max_score=score,
        mean_score=score / 2,
        rank=rank,
    )


def write_slide(results, name, *, spatial=False):
    """Write what the scripts read of a slide: 6 tiles, 2 regions, 1 part not assessed."""
    folder = results / name
    folder.mkdir(parents=True)
    (folder / "slide.json").write_text("{}")
    corners = np.array([[x, y] for y in (0, 32) for x in (0, 32, 64)], float)
    windows = WindowScores(
        np.hstack([corners, np.full((6, 2), 32.0)]), np.arange(6.0), np.arange(94.0, 100.0)
    )
    write_tiles(windows, folder / "tiles.geojson.gz", slide=name, bounds=BOUNDS)
    regions = [region(100, 100, 9.5, 1), region(400, 300, 7.25, 2)]
    write_lesions(
        regions, folder / "lesions.geojson", slide=name, bounds=BOUNDS, percentiles=[99.9, 99.0]
    )
    pen = [("pen", region(600, 600, 0.0, 1))]
    write_unassessed(pen, folder / "not_assessed.geojson", slide=name, bounds=BOUNDS)
    for kind in ("heatmap", "spatial")[: 1 + spatial]:
        Image.new("RGBA", (25, 20)).save(folder / f"{kind}.png")
        place = {"x": -3.5, "y": 12.4, "width": 996.25, "height": 777.7}
        if kind == "spatial":
            place["width"] = 500
        (folder / f"{kind}.json").write_text(json.dumps({"qupath_rectangle": place}))
    return folder


def write_review(results, name, judged):
    """Write the review of a slide as wsiad view does: judgements by number of the region."""
    (results / "slides.csv").write_text("slide\n")
    features = json.loads((results / name / "lesions.geojson").read_text())["features"]
    path = results / "reviews" / f"{name}.geojson"
    path.parent.mkdir(parents=True)
    kept = []
    for number, verdicts in judged.items():
        told = [
            {"reviewer": who, "verdict": verdict, "comment": "why", "time": ""}
            for who, verdict in verdicts.items()
        ]
        one = features[number]
        one["properties"] |= {
            "isLocked": False,
            "metadata": {
                "wsiad judgements": json.dumps(told),
                "ANNOTATION_DESCRIPTION": "; ".join(
                    f"{v} by {w}: why" for w, v in verdicts.items()
                ),
            },
        }
        one["properties"].pop("classification")
        said = set(verdicts.values()) - {""}
        kind = "Disputed" if len(said) > 1 else CLASS_OF.get("".join(said))
        if kind:
            one["properties"]["classification"] = {"name": kind}
        kept.append(one)
    path.write_text(json.dumps({"type": "FeatureCollection", "features": kept}))


CLASS_OF = {"accepted": "Tumor", "rejected": "Normal"}


def ids(folder, *names):
    import gzip

    found = []
    for name in names:
        data = (folder / name).read_bytes()
        text = gzip.decompress(data) if name.endswith(".gz") else data
        found += [feature["id"] for feature in json.loads(text)["features"]]
    return found


DRAWN = {
    "id": "7f1f4a5e-0000-4000-8000-000000000001",
    "properties": {"objectType": "annotation", "classification": {"name": "Tumor"}},
}


FOREIGN = ["seen by Ada", '["accepted", 3]']


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Run all scripts in one Java machine; return the folders and what came of each step."""
    top = tmp_path_factory.mktemp("groovy")
    written, moved = top / "as it's written", top / "moved"
    a = write_slide(written, NAME)
    judged = write_slide(moved, "c/judged")
    write_review(moved, "c/judged", {1: {"Ada": "rejected"}, 0: {"Ada": "accepted", "Bo": ""}})
    disputed = write_slide(top / "second", "d")
    (top / "second" / "qupath").mkdir()
    write_review(top / "second", "d", {0: {"Ada": "accepted", "Bo": "rejected"}, 1: {"Ada": ""}})
    broken = write_slide(top / "third", "e")
    (top / "third" / "qupath").mkdir()
    write_review(top / "third", "e", {})
    (top / "third" / "reviews" / "e.geojson").write_text("{")
    lost = write_slide(top / "fourth", "f")
    (top / "fourth" / "qupath").mkdir()
    write_review(top / "fourth", "f", {0: {"Ada": "accepted"}, 1: {"Ada": "rejected"}})
    review = top / "fourth" / "reviews" / "f.geojson"
    b = write_slide(moved, "b", spatial=True)
    write_scripts(moved / "qupath" / "scripts", written)
    scripts = moved / "qupath" / "scripts"
    (top / "broken.groovy").write_text("def x = [1, 2\n")
    project = str(moved / "qupath")
    lesion = ids(a, "lesions.geojson")[0]
    of_a = {"image": "other name.tif", "metadata": {"wsiad: slide": NAME}}
    steps = {
        # The project has moved, and the slide is only where the results were written.
        "import": {**of_a, "project": project, "script": IMPORT},
        "kept": {"unlock": [lesion], "draw": DRAWN, "script": IMPORT},
        "again": {"script": IMPORT},
        # QuPath 0.5; the results beside the project come first.
        "old": {
            "image": "x", "metadata": {"wsiad: slide": "b"}, "old": True, "project": project,
            "script": IMPORT,
        },
        "without project": {"image": f"{NAME}.svs", "script": IMPORT},
        "nothing": {"image": "unknown.svs", "project": project, "metadata": {}, "script": IMPORT},
        "review": {
            "image": "c.svs", "metadata": {"wsiad: slide": "c/judged"}, "project": project,
            "script": IMPORT,
        },
        "judged in QuPath": {
            "judge": {ids(judged, "lesions.geojson")[1]: "Tumor"}, "script": IMPORT,
        },
        "disputed": {
            "image": "d.svs", "project": str(top / "second" / "qupath"), "script": IMPORT,
        },
        "broken review": {
            "image": "e.svs", "project": str(top / "third" / "qupath"), "script": IMPORT,
        },
        "reviewed": {
            "image": "f.svs", "project": str(top / "fourth" / "qupath"), "script": IMPORT,
        },
        "lost review": {"write": {str(review): "{"}, "script": IMPORT},
        "lost regions": {"write": {str(lost / "lesions.geojson"): "{"}, "script": IMPORT},
        "found review": {
            "write": {
                str(file): file.read_text(encoding="utf-8")
                for file in (review, lost / "lesions.geojson")
            },
            "script": IMPORT,
        },
        "foreign": {
            "note": dict(zip(ids(lost, "lesions.geojson"), FOREIGN, strict=True)), "script": IMPORT,
        },
        "overlay": {**of_a, "viewer": True, "script": OVERLAY},
        "spatial": {"image": "b.tif", "project": project, "viewer": True, "script": OVERLAY},
        "no viewer": {**of_a, "script": OVERLAY},
        "no tiles": {**of_a, "viewer": True, "script": MAPS},
        "tiles": {**of_a, "viewer": True, "script": IMPORT},
        "maps": {"script": MAPS},
        "broken": {"script": top / "broken.groovy"},
    }  # fmt: skip
    todo = [{**step, "script": str(scripts / step["script"])} for step in steps.values()]
    (top / "steps.json").write_text(json.dumps(todo), encoding="utf-8")
    done = subprocess.run(
        [COMMAND, "-cp", str(STUBS), str(STUBS / "run.groovy"), str(top / "steps.json")],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    folders = {"a": a, "b": b, "judged": judged, "disputed": disputed, "broken": broken}
    folders["lost"] = lost
    return folders, dict(zip(steps, json.loads(done.stdout), strict=True))


pytestmark = [needs_groovy, pytest.mark.slow]
ALL = ("tiles.geojson.gz", "lesions.geojson", "not_assessed.geojson")


def test_groovy_accepts_each_script_and_refuses_a_broken_one(ran):
    _, came = ran
    assert [name for name, result in came.items() if "refused" in result] == ["broken"]
    assert [name for name, result in came.items() if result.get("failed")] == ["lost regions"]


def test_the_import_brings_every_object_of_the_open_image(ran):
    folders, came = ran
    assert [o["id"] for o in came["import"]["objects"]] == ids(folders["a"], *ALL)
    assert [o["tile"] for o in came["import"]["objects"]] == [True] * 6 + [False] * 3
    names = [o["name"] for o in came["import"]["objects"][6:]]
    assert names == ["Anomaly", "Anomaly", "Not assessed"]
    assert came["import"]["said"] == f"Imported {folders['a']}"
    assert came["import"]["updates"] == 1


@pytest.mark.parametrize("step", ["kept", "again"])
def test_a_second_import_doubles_nothing_and_leaves_the_work_of_people(ran, step):
    folders, came = ran
    objects = came[step]["objects"]
    assert sorted(o["id"] for o in objects) == sorted([*ids(folders["a"], *ALL), DRAWN["id"]])
    unlocked = [o["id"] for o in objects if not o["tile"] and not o["locked"]]
    assert sorted(unlocked) == sorted([ids(folders["a"], "lesions.geojson")[0], DRAWN["id"]])


def test_results_are_found_beside_the_project_and_without_one(ran):
    folders, came = ran
    assert [o["id"] for o in came["old"]["objects"]] == ids(folders["b"], *ALL)
    assert [o["id"] for o in came["without project"]["objects"]] == ids(folders["a"], *ALL)
    assert came["nothing"]["objects"] == []
    assert came["nothing"]["said"].startswith("No results for [unknown, unknown.svs] in [")


def test_judged_regions_are_imported_with_class_and_comment_in_place_of_their_outlines(ran):
    folders, came = ran
    for step in ("review", "disputed"):
        folder = folders["judged" if step == "review" else "disputed"]
        objects = came[step]["objects"]
        assert sorted(o["id"] for o in objects) == sorted(ids(folder, *ALL))
        assert all(o["locked"] for o in objects if not o["tile"])
        assert came[step]["said"] == f"Imported {folder} and its review"
    first, second = ids(folders["judged"], "lesions.geojson")
    told = {o["id"]: (o["name"], o["description"]) for o in came["review"]["objects"]}
    assert told[first] == ("Tumor", "accepted by Ada: why;  by Bo: why")
    assert told[second] == ("Normal", "rejected by Ada: why")
    first, second = ids(folders["disputed"], "lesions.geojson")
    told = {o["id"]: o["name"] for o in came["disputed"]["objects"]}
    assert (told[first], told[second]) == ("Disputed", None)


def test_a_judgement_in_qupath_is_kept_by_the_next_import(ran):
    folders, came = ran
    objects = came["judged in QuPath"]["objects"]
    assert sorted(o["id"] for o in objects) == sorted(ids(folders["judged"], *ALL))
    assert {o["id"]: o["name"] for o in objects}[
        ids(folders["judged"], "lesions.geojson")[1]
    ] == "Tumor"


def test_a_review_that_cannot_be_read_is_told_and_the_rest_is_imported(ran):
    folders, came = ran
    result = came["broken review"]
    assert [o["id"] for o in result["objects"]] == ids(folders["broken"], *ALL)
    first, last = result["said"].splitlines()
    assert first.startswith("The review cannot be read: ")
    assert last == f"Imported {folders['broken']} WITHOUT its review"


def test_judged_regions_stay_while_their_review_cannot_be_read(ran):
    folders, came = ran
    first, second = ids(folders["lost"], "lesions.geojson")
    last = {step: result.get("said", "").rpartition("\n")[2] for step, result in came.items()}
    assert last["reviewed"] == last["found review"] == f"Imported {folders['lost']} and its review"
    without = "WITHOUT its review; judged regions of an earlier import stay"
    assert last["lost review"] == f"Imported {folders['lost']} {without}"
    for step in ("reviewed", "lost review", "found review"):
        objects = came[step]["objects"]
        assert sorted(o["id"] for o in objects) == sorted(ids(folders["lost"], *ALL))
        told = {o["id"]: (o["name"], o["description"]) for o in objects}
        assert told[first] == ("Tumor", "accepted by Ada: why")
        assert told[second] == ("Normal", "rejected by Ada: why")


def test_nothing_is_removed_where_the_results_cannot_be_read(ran):
    folders, came = ran
    result, before = came["lost regions"], came["lost review"]
    assert result["objects"] == before["objects"]
    assert len(result["objects"]) == len(ids(folders["lost"], *ALL))
    last = result["said"].splitlines()[-1]
    assert last == f"Nothing was imported, and what was there stays: {folders['lost']}"


def test_an_object_with_judgements_of_another_program_is_its_users(ran):
    folders, came = ran
    objects = came["foreign"]["objects"]
    assert came["foreign"]["said"] == f"Imported {folders['lost']} and its review"
    assert sorted(o["id"] for o in objects) == sorted(ids(folders["lost"], *ALL))
    judgements = {o["id"]: o["judgements"] for o in objects}
    assert [judgements[one] for one in ids(folders["lost"], "lesions.geojson")] == FOREIGN


def test_the_overlay_lies_on_the_rectangle_that_is_stated(ran):
    _, came = ran
    # Corners are rounded, not edges; Java rounds halves up.
    assert came["overlay"]["overlays"] == [[[-3, 12, 996, 778, 0, 0, 25, 20]]]
    assert came["overlay"]["said"].startswith("Single windows. Key C")
    assert came["spatial"]["overlays"] == [[[-3, 12, 500, 778, 0, 0, 25, 20]]]
    assert came["spatial"]["said"].startswith("Neighbourhoods. Key C")
    assert came["overlay"]["repaints"] == 1
    assert came["no viewer"]["overlays"] is None
    assert came["no viewer"]["said"] == "There is no viewer or no heatmap"


def test_the_measurement_map_shows_the_upper_percentiles_of_tiles(ran):
    _, came = ran
    assert came["no tiles"]["mapper"] is None
    assert "run wsiad_import.groovy first" in came["no tiles"]["said"]
    assert came["maps"]["mapper"] == {
        "colours": "Inferno",
        "measurement": "wsiad: percentile",
        "objects": 6,
        "low": 95.0,
        "high": 100.0,
        "excludes": True,
    }
    assert came["maps"]["filled"] is True
