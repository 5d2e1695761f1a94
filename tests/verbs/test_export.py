"""`wsiad export`: what is derived anew equals what scoring again would have made."""

from __future__ import annotations

import errno
import filecmp
import json
import shutil

import numpy as np
import pytest

import wsiad
from support.builders import stained, write_tiff
from support.runs import make_run, use_channel
from wsiad.core.errors import ConfigError, InputError
from wsiad.core.packages import Distribution, Plugin, PluginFault
from wsiad.exports import export_format
from wsiad.exports.export_format import ExportFormat
from wsiad.results import deriving
from wsiad.results.identity import derived_by
from wsiad.runs.calibration import Calibration
from wsiad.runs.run import RunFolder

REGIONS = {"region_quantile": 0.9, "region_min_um2": 300.0}
DETECTIONS = {"detection_limit": 3, "suppression_radius_um": 40.0}


@pytest.fixture(autouse=True)
def _channel(monkeypatch):
    use_channel(monkeypatch)


@pytest.fixture
def slide(tmp_path):
    """Tissue with spots that are stranger than the rest, the last a little."""
    image = stained(320, 448)
    image[..., 0] = 80 + image[..., 0] // 16
    for x, y, red in [(64, 64, 150), (288, 96, 190), (192, 224, 230), (352, 256, 124)]:
        image[y : y + 64, x : x + 64, 0] = red
    return write_tiff(tmp_path / "s.tif", image, mpp=0.5, levels=2)


def score(tmp_path, slide, name, **values):
    run = tmp_path / "run"
    if not run.exists():
        make_run(run)
        healthy = np.linspace(0, 130, 1001, dtype=np.float32)
        RunFolder(run).write_calibration(Calibration.of(healthy, n_slides=3))
    wsiad.heatmap(run=run, slides=slide, out=tmp_path / name, quiet=True, **values)
    return tmp_path / name


def differing(one, two, *, but=()):
    """Files of a slide that are not in both folders, or differ; its record is compared by value."""
    names = {p.relative_to(d).as_posix() for d in (one, two) for p in d.rglob("*") if p.is_file()}
    found = {
        name
        for name in names - {"slide.json"}
        if not ((one / name).exists() and (two / name).exists())
        or not filecmp.cmp(one / name, two / name, shallow=False)
    }
    records = [json.loads((folder / "slide.json").read_text()) for folder in (one, two)]
    for record in records:
        record["row"].pop("seconds")
        record.pop("lacking", None)
    if records[0] != records[1]:
        found.add("slide.json")
    return found - set(but)


@pytest.mark.parametrize("given", [REGIONS, DETECTIONS, {**REGIONS, **DETECTIONS, "top_k": 3}])
def test_derived_anew_equals_scored_again(tmp_path, slide, given):
    asked = score(tmp_path, slide, "asked", **given)
    out = score(tmp_path, slide, "out")
    assert differing(out / "s", asked / "s")
    shutil.rmtree(tmp_path / "run")  # the detector is not needed
    (row,) = wsiad.export(results=out, quiet=True, **given).rows
    lacking = {name for name in differing(out / "s", asked / "s") if "evidence" not in name}
    assert lacking <= {"slide.json"}  # the run has the evidence of regions that were not shown
    assert lacking or "region_quantile" not in given
    expected = wsiad.Results(asked).slides[0]
    for column in ("score_max", "score_top_k_mean", "regions", "detections", "tiles"):
        assert getattr(row, column) == pytest.approx(getattr(expected, column))
    assert len(wsiad.Results(out).slide("s").regions()) == row.regions > 0


def test_what_export_could_not_show_is_said_and_added_by_heatmap(tmp_path, slide):
    asked = score(tmp_path, slide, "asked", **REGIONS)
    out = score(tmp_path, slide, "out", region_quantile=0.9999)
    known = json.loads((out / "s" / "evidence.json").read_text())["regions"]
    moved = slide.rename(tmp_path / "away.tif")
    (row,) = wsiad.export(results=out, quiet=True, **REGIONS).rows
    assert "regions are not shown in the slide: its file is not available" in row.reason
    assert len(known) < row.regions
    assert "without healthy tiles" in row.reason
    assert not (out / "s" / "regions.json").exists()
    there = json.loads((out / "s" / "evidence.json").read_text())["regions"]
    assert [e["x"] for e in there] == [e["x"] for e in known]  # kept, and no other's shown
    moved.rename(slide)
    score(tmp_path, slide, "out", **REGIONS)
    assert not differing(out / "s", asked / "s")
    assert wsiad.Results(out).slides[0].reason == wsiad.Results(asked).slides[0].reason


def test_heatmap_derives_what_is_not_derived_and_scores_nothing(tmp_path, slide, monkeypatch):
    asked = score(tmp_path, slide, "asked", **REGIONS, evidence_neighbours=1)
    out = score(tmp_path, slide, "out")
    before = (out / "s" / "windows.npy").stat().st_mtime_ns
    monkeypatch.setattr("wsiad.heatmaps.windows.score_windows", None)
    score(tmp_path, slide, "out", **REGIONS, evidence_neighbours=1)
    assert not differing(out / "s", asked / "s")
    assert (out / "s" / "windows.npy").stat().st_mtime_ns == before
    with pytest.raises(InputError, match=r"of other options: stride None \(now 16\)\. Set"):
        score(tmp_path, slide, "out", stride=16)


def test_a_slide_without_tissue_is_exported_and_not_called_scored(tmp_path, slide):
    glass = np.full((200, 200, 3), 243, np.uint8)
    blank = write_tiff(tmp_path / "blank.tif", glass, mpp=0.5, levels=1)
    out = score(tmp_path, [slide, blank], "out")
    assert "2 of 2 slides with results exported" in wsiad.export(results=out, quiet=True).summary


def test_a_format_more_changes_nothing_else(tmp_path, slide):
    asked = score(tmp_path, slide, "asked", viewers=("asap", "napari"))
    out = score(tmp_path, slide, "out", viewers=())
    files = [p for p in (out / "s").rglob("*") if p.is_file() and p.name != "slide.json"]
    times = {path: path.stat().st_mtime_ns for path in files}
    result = wsiad.export(results=out, format=["asap", "ome-zarr", "geojson"], quiet=True)
    assert not result.failed
    assert not differing(out / "s", asked / "s")
    assert {path: path.stat().st_mtime_ns for path in files} == times
    wsiad.export(results=out, format=["qupath"], quiet=True)
    assert (out / "s" / "tiles.geojson.gz").exists()
    assert (out / "qupath" / "project.qpproj").exists()
    wsiad.export(results=out, quiet=True, **REGIONS)  # those that are there follow
    again = score(tmp_path, slide, "regions", **REGIONS)
    assert not {name for name in differing(out / "s", again / "s") if "evidence" not in name} - {
        "slide.json"
    }
    with pytest.raises(ConfigError, match="did you mean 'asap'"):
        wsiad.export(results=out, format="asop", quiet=True)


def test_an_export_that_was_killed_is_noticed_and_goes_on(tmp_path, slide, monkeypatch):
    asked = score(tmp_path, slide, "asked", **DETECTIONS)
    out = score(tmp_path, slide, "out")
    (tmp_path / "reference.csv").write_text("slide,label\ns,normal\n")

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(deriving, "put_in_place", killed)
        with pytest.raises(KeyboardInterrupt):
            wsiad.export(results=out, quiet=True, **DETECTIONS)
    with pytest.raises(InputError, match="not derived with the options of the other slides"):
        wsiad.evaluate(results=out, reference=tmp_path / "reference.csv", quiet=True)
    assert derived_by(out, exclude=["s"])["detection_limit"] == DETECTIONS["detection_limit"]
    wsiad.export(results=out, quiet=True)  # as the folder is to be by now
    assert not differing(out / "s", asked / "s")
    assert not [p.name for p in out.iterdir() if p.name.endswith(".partial")]
    wsiad.evaluate(results=out, reference=tmp_path / "reference.csv", quiet=True)


def test_an_evaluation_of_earlier_detections_is_named_in_the_report(tmp_path, slide):
    out = score(tmp_path, slide, "out")
    (tmp_path / "reference.csv").write_text("slide,label\ns,normal\n")
    reference = tmp_path / "reference.csv"
    wsiad.evaluate(results=out, reference=reference, slide_score="top_k_mean", quiet=True)
    wsiad.export(results=out, quiet=True, **REGIONS)  # no figure depends on regions
    assert "derived again since" not in (out / "report.html").read_text()
    wsiad.export(results=out, top_k=3, quiet=True)
    assert "since the evaluation (top_k 10 (now 3))" in (out / "report.html").read_text()
    wsiad.evaluate(results=out, reference=reference, quiet=True)
    wsiad.export(results=out, top_k=4, quiet=True)  # nor does the maximum score on top_k
    assert "derived again since" not in (out / "report.html").read_text()
    said = "derived again since the evaluation (detection_limit 1000 (now 3)"
    assert said not in (out / "report.html").read_text()
    wsiad.export(results=out, detection_limit=3, quiet=True)
    assert said in (out / "report.html").read_text()


@pytest.mark.parametrize("changed", [{"detection_limit": 3}, {"evidence_neighbours": 2}])
def test_p_values_stay_with_regions_that_are_not_derived_again_though_killed(
    tmp_path, slide, monkeypatch, changed
):
    out = score(tmp_path, slide, "out")
    healthy = write_tiff(tmp_path / "h.tif", stained(300, 300, seed=3), mpp=0.5, levels=1)
    wsiad.significance(results=out, healthy=score(tmp_path, healthy, "healthy"), quiet=True)
    names = ("regions.csv", "windows_p.npy")
    before = [(out / "s" / name).read_bytes() for name in names]
    asked = score(tmp_path, slide, "asked", **changed)

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(deriving, "put_in_place", killed)
        with pytest.raises(KeyboardInterrupt):
            score(tmp_path, slide, "out", **changed)
    score(tmp_path, slide, "out", **changed)
    assert [(out / "s" / name).read_bytes() for name in names] == before
    assert (out / "significance.json").exists()
    there, wanted = (json.loads((f / "s" / "slide.json").read_text()) for f in (out, asked))
    assert there["derived"] == wanted["derived"]
    assert not there["lacking"]
    detections = [(folder / "s" / "detections.csv").read_bytes() for folder in (out, asked)]
    assert detections[0] == detections[1]


def test_p_values_stay_with_their_regions(tmp_path, slide):
    out = score(tmp_path, slide, "out")
    healthy = write_tiff(tmp_path / "h.tif", stained(300, 300, seed=3), mpp=0.5, levels=1)
    wsiad.significance(results=out, healthy=score(tmp_path, healthy, "healthy"), quiet=True)
    table = (out / "s" / "regions.csv").read_bytes()
    score(tmp_path, slide, "out", detection_limit=5)
    wsiad.export(results=out, detection_limit=3, quiet=True)
    assert (out / "s" / "regions.csv").read_bytes() == table
    assert (out / "significance.json").exists()
    result = wsiad.export(results=out, quiet=True, **REGIONS)
    assert "p-values of the previous regions are deleted" in result.summary
    assert not (out / "significance.json").exists()
    assert {row.p for row in wsiad.Results(out).slide("s").regions()} == {None}
    assert not (out / "s" / "windows_p.npy").exists()
    with pytest.raises(InputError, match=r"region_quantile is 0.999 and not 0.9"):
        wsiad.significance(results=out, healthy=tmp_path / "healthy", quiet=True)
    wsiad.export(results=out, quiet=True, region_quantile=0.999, region_min_um2=0)
    wsiad.significance(results=out, healthy=tmp_path / "healthy", quiet=True)
    score(tmp_path, slide, "out", **REGIONS)  # heatmap derives other regions, and says so too
    assert not (out / "significance.json").exists()


def test_p_values_stay_where_heatmap_adds_missing_evidence_and_views(tmp_path, slide):
    asked = score(tmp_path, slide, "asked", **REGIONS)
    out = score(tmp_path, slide, "out", region_quantile=0.9999)
    healthy = write_tiff(tmp_path / "h.tif", stained(300, 300, seed=3), mpp=0.5, levels=1)
    made = score(tmp_path, healthy, "healthy", **REGIONS)
    moved = slide.rename(tmp_path / "away.tif")
    wsiad.export(results=out, quiet=True, **REGIONS)
    wsiad.significance(results=out, healthy=made, quiet=True)
    names = ("regions.csv", "lesions.geojson", "windows_p.npy")
    before = [(out / "s" / name).read_bytes() for name in names]
    moved.rename(slide)
    score(tmp_path, slide, "out", **REGIONS)
    assert (out / "s" / "regions.json").exists()
    assert not differing(out / "s", asked / "s", but=names)
    assert [(out / "s" / name).read_bytes() for name in names] == before
    assert None not in {row.p for row in wsiad.Results(out).slide("s").regions()}


@pytest.mark.parametrize("slide_score", ["max", "top_k_mean"])
def test_p_values_of_regions_do_not_depend_on_the_slide_score(tmp_path, slide, slide_score):
    out = score(tmp_path, slide, "out")
    healthy = write_tiff(tmp_path / "h.tif", stained(300, 300, seed=3), mpp=0.5, levels=1)
    made = score(tmp_path, healthy, "healthy")
    wsiad.significance(results=out, healthy=made, slide_score=slide_score, quiet=True)
    table = (out / "s" / "regions.csv").read_bytes()
    assert (out / "s" / "windows_p.npy").exists()
    assert {row.p for row in wsiad.Results(out).slide("s").regions()} != {None}
    result = wsiad.export(results=out, top_k=3, quiet=True)
    assert (out / "s" / "regions.csv").read_bytes() == table
    assert (out / "s" / "windows_p.npy").exists()
    of_slides = "p-values of slides for the previous top_k are deleted, those of regions stay"
    assert (of_slides in result.summary) == (slide_score != "max")
    assert (out / "significance.json").exists() == (slide_score == "max")


def test_evidence_that_an_export_dropped_is_named_with_what_adds_it(tmp_path, slide):
    out = score(tmp_path, slide, "out", **REGIONS)
    asked = score(tmp_path, slide, "asked", **REGIONS)
    said = "missing on 1 slide (s): run wsiad heatmap with the same region options to add them"
    assert said not in wsiad.export(results=out, format="asap", quiet=True).summary
    assert said not in wsiad.export(results=out, quiet=True, region_quantile=0.9999).summary
    assert said in wsiad.export(results=out, quiet=True, **REGIONS).summary
    assert said in wsiad.export(results=out, quiet=True).summary
    score(tmp_path, slide, "out", **REGIONS)
    assert not differing(out / "s", asked / "s")
    assert said not in wsiad.export(results=out, quiet=True).summary


def test_results_that_cannot_be_derived_anew_are_refused_in_one_line(tmp_path, slide):
    out = score(tmp_path, slide, "out")
    facts = json.loads((out / "run.json").read_text())
    old = {key: value for key, value in facts.items() if key not in ("derived", "scored")}
    (out / "run.json").write_text(json.dumps(old))
    for again in (
        lambda: wsiad.export(results=out, format="asap", quiet=True),
        lambda: score(tmp_path, slide, "out"),
    ):
        with pytest.raises(InputError, match=r"of an earlier version.*into another --out") as error:
            again()
        assert "\n" not in str(error.value)
    (out / "run.json").write_text(json.dumps({**facts, "scored": {"stride": "far"}}))
    with pytest.raises(InputError, match=r"run\.json: is damaged: stride"):
        wsiad.export(results=out, format="asap", quiet=True)


@pytest.mark.parametrize("name", ["windows.npy", "heatmap.ome.tif", "overlay_plain.png"])
def test_a_slide_whose_scores_are_damaged_fails_alone(tmp_path, slide, name):
    other = write_tiff(tmp_path / "t.tif", stained(200, 200, seed=2), mpp=0.5, levels=1)
    out = score(tmp_path, [slide, other], "out")
    (out / "s" / name).write_bytes((out / "s" / name).read_bytes()[:100])
    before = (out / "s" / "regions.csv").read_bytes()
    result = wsiad.export(results=out, quiet=True, **REGIONS)
    assert [row.slide for row in result.failed] == ["s"]
    assert name in result.failed[0].reason
    assert (out / "s" / "regions.csv").read_bytes() == before
    rows = {row.slide: row.status for row in wsiad.Results(out).slides}
    assert rows == {"s": "failed", "t": "ok"}


def test_an_export_that_failed_is_tried_again(tmp_path, slide, monkeypatch):
    asked = score(tmp_path, slide, "asked", **REGIONS)
    out = score(tmp_path, slide, "out")

    def full(*args, **values):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(deriving, "write_regions", full)
        (row,) = wsiad.export(results=out, quiet=True, **REGIONS).failed
    assert "the disk is full" in row.reason
    (row,) = wsiad.export(results=out, quiet=True).rows
    assert row.status == "ok"
    assert row.regions == wsiad.Results(asked).slides[0].regions
    # Results of another file of the same name, which heatmap refuses, are not taken up again.
    write_tiff(slide, stained(200, 200, seed=9), mpp=0.5, levels=1)
    score(tmp_path, slide, "out", **REGIONS)
    assert wsiad.Results(out).slides[0].status == "failed"
    said = r"no slide with results \(1 failed; .*: failed: has results from another file of this"
    with pytest.raises(InputError, match=said):
        wsiad.export(results=out, quiet=True)


def test_a_slide_whose_results_are_gone_fails(tmp_path, slide):
    out = score(tmp_path, slide, "out")
    (out / "s" / "slide.json").unlink()
    assert [row.slide for row in wsiad.export(results=out, quiet=True, **REGIONS).failed] == ["s"]


class Points(ExportFormat):
    name = "points"
    summary = "detections as NumPy"
    shows_regions = True

    def files(self, slide):
        return ("points.npy",)

    def write(self, folder, findings):
        np.save(folder / "points.npy", [(d.x, d.y) for d in findings.detections])


NUMBER = 7


class Asap(Points):
    name = "asap"


def test_formats_of_other_packages(tmp_path, slide, monkeypatch, caplog):
    other = Distribution("other", "1.0")
    points = [
        Plugin("points", f"{__name__}:Points", other),
        Plugin("broken", "no_such_module:Broken", other),
        Plugin("number", f"{__name__}:NUMBER", other),
        Plugin("asap", f"{__name__}:Asap", other),
    ]
    damaged = PluginFault("", other, "its entry points cannot be read (TypeError)")
    monkeypatch.setattr(export_format, "claimed", lambda group: (points, [damaged]))
    export_format.formats.cache_clear()
    try:
        assert set(export_format.formats()) == {"asap", "ome-zarr", "points", "qupath"}
        for said in (
            "No module named 'no_such_module'",
            "not a class derived",
            "the name asap is taken",
            "plug-in other 1.0: its entry points cannot be read",
        ):
            assert said in caplog.text
        out = score(tmp_path, slide, "out", suppression_radius_um=20)
        wsiad.export(results=out, format="points", quiet=True)
        detections = wsiad.Results(out).slides[0].detections
        assert len(np.load(out / "s" / "points.npy")) == detections > 3
        wsiad.export(results=out, detection_limit=3, quiet=True)
        assert len(np.load(out / "s" / "points.npy")) == 3
    finally:
        export_format.formats.cache_clear()
