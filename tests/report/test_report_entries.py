"""What of a slide's folder comes into the report."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from support.builders import stained, write_tiff
from support.runs import score_channel
from wsiad.core.errors import EvaluationError, ExportError, InputError
from wsiad.heatmaps.heatmap_task import HeatmapRow
from wsiad.report.remarks import evaluation_warnings
from wsiad.report.report import slide_entry, with_findings, write_results_report
from wsiad.report.report_model import SlideEntry
from wsiad.results.folder import Results
from wsiad.results.region_table import write_regions
from wsiad.results.slide_results import SlideResults


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Results of one slide with two bright, that is strange, spots."""
    folder = tmp_path_factory.mktemp("results")
    image = stained(1024, 1024) // 4 + 20
    image[64:128, 64:128, 0] = 250
    image[512:576, 640:768, 0] = 200
    write_tiff(folder / "s.tif", image, mpp=0.5)
    return score_channel(folder, folder / "s.tif")


@pytest.fixture
def slide(results):
    table = (results / "s" / "regions.csv").read_text()
    yield results / "s"
    (results / "s" / "evidence.json").unlink(missing_ok=True)
    (results / "s" / "regions.csv").write_text(table)


def entry(results, **more):
    row = HeatmapRow("s", "ok", tiles=10, **more)
    return slide_entry(SlideResults(results, results / "s", row), None)


def test_the_strongest_regions_are_shown_in_the_slide(results):
    found = entry(results)
    assert found.regions_found is None  # this row says nothing of them
    assert found.thumbnail == results / "s" / "thumbnail.jpg"
    assert max(Image.open(found.thumbnail).size) <= 240
    assert [entry.region.rank for entry in found.regions] == [1, 2]
    first, second = found.regions
    assert first.region.max_score > second.region.max_score > 100
    assert (first.region.area_um2, second.region.area_um2) == (64 * 64 / 4, 64 * 128 / 4)
    assert (first.region.p, first.region.q) == (None, None)
    ((window, _),) = first.tiles  # a detector without features shows nothing beside it
    assert window.startswith("Strangest window of the region")
    ((caption, file),) = first.images
    assert caption == "Outlined in the slide, 300 µm across; the bar is 50 µm"
    red = np.asarray(Image.open(file))[..., 0].astype(int)
    column, row = 96 * 320 / 600, 96 * 320 / 600  # the field cannot lie beyond the edge
    assert red[round(row) - 8 : round(row) + 8, round(column) - 8 : round(column) + 8].mean() > 230
    assert red[200:, 200:].mean() < 90


def test_evidence_and_p_values_come_in_where_they_are(results, slide):
    (slide / "evidence").mkdir(exist_ok=True)
    for name in ("001.jpg", "h.jpg", "d.png"):
        Image.new("RGB", (8, 8)).save(slide / "evidence" / name)
    told = {
        "rank": 1,
        "x": 0,
        "y": 0,
        "width": 32,
        "height": 32,
        "score": 1,
        "percentile": 99,
        "area_um2": 1,
        "mpp": 0.5,
        "tile": "evidence/001.jpg",
        "difference": "evidence/d.png",
        "nearest": [{"slide": "n1", "x": 1, "y": 2, "distance": 0.25, "tile": "evidence/h.jpg"}],
    }
    (slide / "evidence.json").write_text(json.dumps({"format": 1, "regions": [told]}))
    judged = [
        replace(row, p=p, q=q)
        for row, (p, q) in zip(
            Results(results).slide("s").regions(), [(0.01, 0.02), (0.2, 0.2)], strict=True
        )
    ]
    write_regions(slide / "regions.csv", judged)
    first, second = entry(results).regions
    assert [caption for caption, _ in first.tiles] == [
        "Strangest window of the region, 0.5 µm/px",
        "Healthy tile 1: n1, distance 0.25",
        "Difference from the reconstruction",
    ]
    p_values = [(entry.region.p, entry.region.q) for entry in (first, second)]
    assert p_values == [(0.01, 0.02), (0.2, 0.2)]
    assert first.region.max_score > 100  # of the region itself, not of its evidence
    write_results_report(results)
    page = (results / "report.html").read_text(encoding="utf-8")
    assert "p&nbsp;=&nbsp;0.01, q&nbsp;=&nbsp;0.02" in page
    assert page.count("<h4>Strongest regions: 2 of 2</h4>") == 1
    assert "<dt>numpy</dt>" in page  # versions
    assert "<dt>train</dt>" in page  # timing by stage: that of the run, and those of the folder
    assert "<dt>heatmap</dt>" in page
    assert "<dt>heatmap, sum over slides</dt>" in page
    (slide / "evidence.json").write_text("{")
    with pytest.raises(ExportError, match=r"evidence\.json: is damaged"):
        write_results_report(results)


def test_a_name_that_leads_out_of_the_results_is_refused(results):
    (results.parent / "secret").mkdir()
    for name in ("../secret", "..", str(results.parent / "secret")):
        with pytest.raises(InputError, match="cannot be used as a name"):
            Results(results).of(HeatmapRow(name, "ok"))


def test_what_was_found_of_a_slide_stands_with_it():
    plain = SlideEntry("s", "ok", label="of the manifest")
    known = {
        "slide": "s",
        "label": "tumour",
        "froc": {
            "first": {"lesions": 3, "lesions_hit": 3, "lesions_hit_at": {"0.5": 1, "1": 2}},
            "second": {"lesions": 9},
        },
    }
    found = with_findings(plain, evaluated=known, compared={"p_slide": 0.05, "q_slide": 0.1})
    assert (found.label, found.lesions, found.lesions_hit) == ("tumour", 3, 2)
    assert (found.p, found.q) == (0.05, 0.1)
    # An earlier version did not state how many are hit at an operating point.
    known["froc"]["first"].pop("lesions_hit_at")
    assert with_findings(plain, evaluated=known, compared=None).lesions_hit is None
    assert with_findings(plain, evaluated=None, compared=None) == plain
    # Excluded from FROC: of its lesions nothing is known.
    assert with_findings(plain, evaluated=known | {"froc": {}}, compared=None).lesions is None


def test_evaluation_completes_the_report(results):
    def evaluated(name):
        froc = {"camelyon16-2016": {"lesions": 2, "lesions_hit_at": {"1": 1}}}
        slides = [{"slide": name, "label": "tumour", "froc": froc}]
        values = {"slides": slides, "exclusions": {"all": ["gone"], "froc": []}}
        (results / "evaluation.json").write_text(json.dumps(values))
        write_results_report(results)
        return (results / "report.html").read_text(encoding="utf-8")

    page = evaluated("s")
    assert '<span class="chip">tumour</span>' in page
    assert ">1 of 2</td>" in page
    assert "since the evaluation" not in page
    slides = [{"slide": "s", "label": "tumour"}]
    values = {"slides": [], "excluded": slides, "exclusions": {"all": ["s"], "froc": []}}
    (results / "evaluation.json").write_text(json.dumps(values))
    write_results_report(results)
    page = (results / "report.html").read_text(encoding="utf-8")
    assert '<span class="chip">tumour</span> <span class="small">excluded</span>' in page
    try:
        page = evaluated("another")
    finally:
        (results / "evaluation.json").unlink()
    assert "1 slide was scored after the evaluation and is in none of its figures (s)" in page
    assert ">1 of 2</td>" not in page


def test_changed_detections_are_told_beside_other_reasons_to_evaluate_again():
    evaluated = {
        "unscored": {"text": "1 slide has no score"},
        "made_by": {"derived": {"detection_limit": 5}},
        "slides": [{"slide": name} for name in "abcd"],
    }
    rows = [HeatmapRow(name, "ok") for name in "abcd"]
    since = {"a": "changed", "b": "unchanged", "c": "unknown", "d": "changed"}
    said = list(
        evaluation_warnings(evaluated, rows, {"derived": {"detection_limit": 5}}, since=since)
    )
    end = "Run wsiad evaluate again."
    assert said == [
        "Evaluation: 1 slide has no score.",
        f"The detections of 2 slides have changed since the evaluation (a, d). {end}",
        f"It cannot be told if the detections of 1 slide are those that were evaluated (c). {end}",
    ]
    more = list(
        evaluation_warnings(evaluated, rows, {"derived": {"detection_limit": 6}}, since=since)
    )
    assert [more[0], *more[2:]] == said
    assert "derived again since the evaluation (detection_limit" in more[1]


def test_figures_of_an_evaluation_that_is_gone_are_missed(results, tmp_path):
    kept = (results / "timings.json").read_text()
    (tmp_path / "figures").mkdir()
    where = {"seconds": {}, "evaluation": str(tmp_path / "figures")}
    told = f"The last evaluation was in {tmp_path / 'figures'}, "
    try:
        (results / "timings.json").write_text(json.dumps(where))
        for gone in ("where evaluation.json is missing", "which is not there"):
            if gone == "which is not there":
                (tmp_path / "figures").rmdir()
            write_results_report(results)
            page = (results / "report.html").read_text(encoding="utf-8")
            assert f"{told}{gone}. Put it back, or run wsiad evaluate again." in page
            assert json.loads((results / "timings.json").read_text()) == where  # may come back
        (tmp_path / "figures").mkdir()
        judged = {"slides": [{"slide": "s", "label": "tumour"}]}
        (tmp_path / "figures" / "evaluation.json").write_text(json.dumps(judged))
        write_results_report(results)
        page = (results / "report.html").read_text(encoding="utf-8")
        assert "The last evaluation was in" not in page
        assert '<span class="chip">tumour</span>' in page
    finally:
        (results / "timings.json").write_text(kept)


def test_annotated_lesions_are_drawn_where_they_are(results):
    lesion = {
        "number": 4,
        "kind": "micro",
        "found": True,
        "score": 0.75,
        "outline": [[64, 64], [128, 64], [128, 128], [64, 128]],  # the first bright spot
    }
    missed = {**lesion, "number": 5, "found": False, "score": None}
    cells = {**missed, "number": 6, "kind": "itc"}
    digest = hashlib.sha256((results / "s" / "detections.csv").read_bytes()).hexdigest()
    truth = {
        "format": 1,
        "protocol": "camelyon16-2016",
        "false_positives": 1.0,
        "threshold": 0.625,
        "slides": {"s": [lesion, missed, cells]},
        "detections": {"s": f"sha256:{digest}"},
    }
    froc = {"camelyon16-2016": {"lesions": 2, "lesions_hit_at": {"1": 1}}}
    judged = {"slides": [{"slide": "s", "label": "tumour", "froc": froc}]}
    (results / "evaluation.json").write_text(json.dumps(judged))
    (results / "truth.json").write_text(json.dumps(truth))
    try:
        write_results_report(results)
        page = (results / "report.html").read_text(encoding="utf-8")
        assert "since the evaluation" not in page
        assert "It cannot be told" not in page
        other = {"detections": {"s": "sha256:other"}}
        (results / "truth.json").write_text(json.dumps(truth | other))
        write_results_report(results)
        stale = (results / "report.html").read_text(encoding="utf-8")
        assert "The detections of 1 slide have changed since the evaluation (s)." in stale
        # Hits are of other detections than those that the page shows.
        assert stale.count(">?4</text>") == stale.count(">?5</text>") == 2
        assert stale.count('class="unknown" d=') == 4
        assert stale.count('class="cells" d=') == 2
        assert "<dd>not known, detections changed</dd>" in stale
        assert '<td class="number" data-value="">not known</td>' in stale
        assert "✓4" not in stale
        for nothing_noted in ({}, {"other": "sha256:other"}):
            (results / "truth.json").write_text(json.dumps(truth | {"detections": nothing_noted}))
            write_results_report(results)
            page_then = (results / "report.html").read_text(encoding="utf-8")
            assert "the detections of 1 slide are those that were evaluated (s)." in page_then
            assert "have changed since the evaluation (s)" not in page_then
            assert page_then.count(">?4</text>") == 2
            assert "<dd>not known</dd>" in page_then
        (results / "truth.json").write_text(json.dumps(truth | {"format": 2}))
        with pytest.raises(EvaluationError, match=r"truth\.json.*damaged"):
            write_results_report(results)
    finally:
        (results / "evaluation.json").unlink()
        (results / "truth.json").unlink()
    with Image.open(results / "s" / "overlay.png") as overlay:
        (width, height), pixels = overlay.size, np.asarray(overlay.convert("RGB")).astype(int)
    # The slide has 1024 px; the corner of the lesion is at a sixteenth of it.
    corner = f'd="M{width / 16:.1f},{height / 16:.1f} {width / 8:.1f},{height / 16:.1f} '
    assert page.count(f'class="found" {corner}') == 2  # on the slide and on its heatmap
    assert page.count(f'class="missed" {corner}') == page.count(f'class="cells" {corner}') == 2
    assert page.count(">✓4</text>") == page.count(">✗5</text>") == 2
    assert "? dash and dot" not in page
    within = pixels[height // 16 + 9 : height // 8 - 9, width // 16 + 9 : width // 8 - 9]
    assert (within[..., 0] - within[..., 2]).mean() > 60  # the spot is there: it glows
    assert (
        "at 1 false positive a slide on average, that is with a confidence of at least 0.625"
        in (page)
    )
    assert ">1 of 2</td>" in page


def test_few_healthy_windows_are_told(results):
    path = results.parent / "run" / "calibration.json"
    before = path.read_text()
    words = "based on only 56 healthy windows of 1 slide, so percentiles above 98.2 % are uncertain"
    try:
        for windows, slides, told in ((1000, 2, False), (1000, 1, True), (56, 1, True)):
            counts = {"n_windows": windows, "n_slides": slides}
            path.write_text(json.dumps(json.loads(before) | counts))
            write_results_report(results)
            page = (results / "report.html").read_text(encoding="utf-8")
            first = page[: page.index("At a glance")]
            assert ("Percentiles and colours are based on" in page) == told
            assert ("Read this first" in first) == told
            assert (words in first) == (windows == 56)
            assert ("how slides differ from each other is not known" in first) == told
    finally:
        path.write_text(before)


def test_windows_left_out_are_counted_by_reason(results, slide):
    path = slide / "left_out.npy"
    before = path.read_bytes()
    assert entry(results).left_out == {}
    table = np.zeros(5, np.load(path).dtype)
    table["reason"] = ["pen", "black", "pen", "missing", "pen"]
    np.save(path, table)
    found = entry(results)
    assert found.left_out == {"pen": 3, "black": 1, "missing": 1}
    assert found.left_out_share == pytest.approx(5 / 15)
    for damaged in (b"", b"no array"):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="is damaged"):
            entry(results)
    np.save(path, np.zeros(3))
    with pytest.raises(InputError, match="is damaged"):
        entry(results)
    path.write_bytes(before)


def test_results_of_before_there_were_such_files_have_a_report(results, tmp_path):
    (tmp_path / "s").mkdir()
    found = entry(tmp_path)
    assert (found.thumbnail, list(found.regions), found.left_out, found.images) == (
        None,
        [],
        {},
        [],
    )
