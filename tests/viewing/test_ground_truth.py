"""Ground truth in `wsiad view` without --annotations: that of the last evaluation, stale or not."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import shapely

import wsiad
from support.builders import stained, write_tiff
from support.runs import make_run, use_channel
from wsiad.evaluation.lesion_outlines import TrueLesions
from wsiad.results.evaluated_truth import (
    EvaluatedTruth,
    digests_of_detections,
    evaluation_folder,
)
from wsiad.results.folder import Results
from wsiad.verbs.view import ViewConfig, open_server, viewed_slides

LESION = (512, 320, 1024, 704)  # left, top, right, bottom, level-0 px


def outlines(folder, name, boxes):
    folder.mkdir(exist_ok=True)
    features = [
        {
            "type": "Feature",
            "geometry": json.loads(shapely.to_geojson(shapely.box(*box))),
            "properties": {"classification": {"name": "Tumor"}},
        }
        for box in boxes
    ]
    values = {"type": "FeatureCollection", "wsiad": {"origin": [0, 0]}, "features": features}
    (folder / f"{name}.geojson").write_text(json.dumps(values))


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Results of a slide with a lesion that is found, a healthy one and one without a truth."""
    folder = tmp_path_factory.mktemp("truth")
    slides = folder / "slides"
    slides.mkdir()
    left, top, right, bottom = LESION
    for seed, name in enumerate(["ill", "well", "unknown"]):
        image = stained(900, 1200, seed=seed) // 4 + 20
        if name != "well":
            image[top:bottom, left:right, 0] = 240
        write_tiff(slides / f"{name}.tif", image, mpp=0.5)
    outlines(folder / "xml", "ill", [LESION])
    (folder / "reference.csv").write_text("image,type\nill,tumor\nwell,normal\n")
    with pytest.MonkeyPatch.context() as patch:
        use_channel(patch)
        run = make_run(folder / "run")
        wsiad.heatmap(run=run, slides=slides, out=folder / "out", quiet=True)
    return folder


def evaluated(scored, results, **values):
    shutil.copytree(scored / "out", results)
    wsiad.evaluate(
        results=results,
        reference=scored / "reference.csv",
        annotations=scored / "xml",
        exclude=["unknown"],
        bootstrap=10,
        quiet=True,
        **values,
    )
    return results


def told(results, **values):
    """What the page says of each slide."""
    server = open_server(ViewConfig(results=results, browser=False, **values))
    try:
        listed = json.loads(server.pages.answer("slides.json").body)["slides"]
        return {
            slide["name"]: json.loads(server.pages.answer(f"slide/{place}/info").body)["truth"]
            for place, slide in enumerate(listed, start=1)
        }
    finally:
        server.server_close()


def test_lesions_of_the_evaluation_are_drawn_and_their_source_is_told(scored, tmp_path, capfd):
    results = evaluated(scored, tmp_path / "out")
    capfd.readouterr()
    found = told(results)
    said = capfd.readouterr().err
    assert f"Ground truth: {results / 'truth.json'} of wsiad evaluate" in said
    (ring,) = found["ill"]["rings"]
    drawn, lesion = shapely.Polygon(ring), shapely.box(*LESION)
    # Widened by 37.5 µm, that is 75 px, and rasterised.
    assert drawn.contains(lesion)
    assert shapely.hausdorff_distance(drawn.exterior, lesion.buffer(75).exterior) < 40
    hit = "as camelyon16-2016 counts lesions, 1 of 1 lesion hit at 1 false positive a slide"
    assert found["ill"] == {
        "told": f"ground truth: truth.json, {hit}",
        "problem": "",
        "rings": [ring],
    }
    assert found["well"] == {"told": "no annotated lesion (truth.json)", "problem": "", "rings": []}
    none = "the evaluation has no outlines of this slide"
    assert found["unknown"] == {"told": none, "problem": "", "rings": []}
    assert told(scored / "out")["ill"] is None  # not evaluated
    assert told(results, annotations=scored / "xml")["ill"]["told"] == "ground truth: ill.geojson"


def test_labels_are_those_of_the_evaluation(scored, tmp_path, caplog):
    def labels(results):
        return {slide.name: slide.as_json()["label"] for slide in viewed_slides(results)}

    nothing = {"ill": "", "unknown": "", "well": ""}
    assert labels(scored / "out") == nothing
    results = evaluated(scored, tmp_path / "out")
    assert labels(results) == nothing | {"ill": "tumour", "well": "normal"}
    (results / "evaluation.json").write_text("{")
    assert labels(results) == nothing
    assert "evaluation.json" in caplog.text


def test_hits_are_left_out_where_detections_have_changed_since(scored, tmp_path):
    results = evaluated(scored, tmp_path / "out")
    with (results / "ill" / "detections.csv").open("a") as file:
        file.write("0.25,8,8\n")
    found = told(results)
    assert len(found["ill"]["rings"]) == 1
    assert found["ill"]["told"].endswith("hits are not known")
    assert "changed since the evaluation" in found["ill"]["problem"]
    assert "Run wsiad evaluate again" in found["ill"]["problem"]
    assert found["well"]["problem"] == ""


@pytest.mark.parametrize("noted", [{}, {"well": "sha256:other"}])
def test_hits_are_left_out_where_nothing_was_noted_of_the_detections(scored, tmp_path, noted):
    results = evaluated(scored, tmp_path / "out")
    truth = json.loads((results / "truth.json").read_text())
    (results / "truth.json").write_text(json.dumps(truth | {"detections": noted}))
    found = told(results)["ill"]
    assert len(found["rings"]) == 1
    assert found["told"].endswith("hits are not known")
    assert found["problem"].startswith("It cannot be told if the detections of this slide are")
    assert "Run wsiad evaluate again" in found["problem"]


def test_detections_that_a_slide_got_after_the_evaluation_are_a_change(scored, tmp_path):
    results = tmp_path / "out"
    shutil.copytree(scored / "out", results)
    later = (results / "ill" / "detections.csv").read_bytes()
    (results / "ill" / "detections.csv").unlink()
    then = digests_of_detections(results, ["ill", "well", "elsewhere"])
    assert then["ill"] is None
    assert then.keys() == {"ill", "well"}
    lesions = TrueLesions(
        format=1,
        protocol="camelyon16-2016",
        false_positives=1.0,
        threshold=None,
        slides={"ill": [], "well": [], "unknown": []},
        detections=then,
    )
    truth = EvaluatedTruth(results / "truth.json", lesions)

    def since():
        return {slide.name: truth.detections_since(slide) for slide in Results(results)}

    assert since() == {"ill": "unchanged", "well": "unchanged", "unknown": "unknown"}
    (results / "ill" / "detections.csv").write_bytes(later)
    (results / "well" / "detections.csv").unlink()
    assert since() == {"ill": "changed", "well": "changed", "unknown": "unknown"}


def test_an_evaluation_that_is_gone_is_not_none(scored, tmp_path, caplog):
    beside = tmp_path / "figures"
    results = evaluated(scored, tmp_path / "out", out=beside)
    assert json.loads((beside / "truth.json").read_text())["detections"].keys() == {"ill", "well"}
    beside.rename(tmp_path / "moved")
    found = told(results)
    gone = (
        f"{results}: the last evaluation was in {beside}, which is not there. Put it back, or run "
        "wsiad evaluate again."
    )
    nothing = {"told": "ground truth cannot be read", "problem": gone, "rings": []}
    assert found == dict.fromkeys(("ill", "unknown", "well"), nothing)
    assert gone in caplog.messages
    assert told(results, annotations=scored / "xml")["ill"]["problem"] == ""
    (tmp_path / "moved").rename(beside)
    assert "1 of 1 lesion hit" in told(results)["ill"]["told"]


def test_a_damaged_file_is_a_problem_of_the_truth_alone(scored, tmp_path):
    results = evaluated(scored, tmp_path / "out")
    (results / "truth.json").write_text("{")
    found = told(results)
    assert all("truth.json: cannot be read" in one["problem"] for one in found.values())
    assert not any(one["rings"] for one in found.values())
    assert Results(results).slide("ill").heatmap().scores.shape


@pytest.mark.parametrize("elsewhere", [False, True])
def test_the_last_evaluation_is_found_after_the_results_are_moved(scored, tmp_path, elsewhere):
    beside = tmp_path / "figures" if elsewhere else None
    results = evaluated(scored, tmp_path / "out", out=beside)
    assert evaluation_folder(results).resolve() == (beside or results)
    moved = tmp_path / "moved"
    results.rename(moved)
    assert evaluation_folder(moved).resolve() == (beside or moved)
    assert len(told(moved)["ill"]["rings"]) == 1
    wsiad.export(results=moved, quiet=True)
    assert "Annotated lesions are drawn" in (moved / "report.html").read_text()


def test_outlines_are_numbers_that_json_holds(scored, tmp_path):
    results = evaluated(scored, tmp_path / "out")
    ring = np.asarray(told(results)["ill"]["rings"][0])
    assert ring.ndim == 2
    assert ring.shape[1] == 2
    assert np.isfinite(ring).all()
