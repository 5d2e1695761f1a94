"""Regions, detections and scores of slides from neighbourhoods: `scales_um`."""

import csv
import json
import shutil

import cv2
import numpy as np
import pytest
import tifffile

import wsiad
from support.builders import stained, write_tiff
from support.runs import make_run, use_channel
from wsiad.core.errors import ConfigError, EvaluationError, ExportError, InputError
from wsiad.core.geometry import SquareMicrons
from wsiad.heatmaps.scale_space import SpatialCalibration
from wsiad.results.qupath_project import project_slides
from wsiad.runs.calibration import Calibration, colour_scale
from wsiad.runs.healthy_maps import HealthyMap, HealthyMaps
from wsiad.runs.run import RunFolder
from wsiad.verbs.view import viewed_slides

WINDOW_UM = 16.0
SCALES = (32.0, 64.0)


@pytest.fixture(autouse=True)
def _channel(monkeypatch):
    use_channel(monkeypatch)


@pytest.fixture
def run(tmp_path):
    """A run whose healthy windows have scores of 0 to 130, independent of each other."""
    run = make_run(tmp_path / "run")
    folder = RunFolder(run)
    rng = np.random.default_rng(0)
    scores = [(130 * rng.random((14, 20))).astype(np.float32) for _ in range(6)]
    folder.write_calibration(Calibration.of(np.concatenate(scores), n_slides=6))
    maps = [HealthyMap(f"h{i}", s, (WINDOW_UM, WINDOW_UM)) for i, s in enumerate(scores)]
    folder.write_healthy_maps(HealthyMaps(tuple(maps), SquareMicrons(WINDOW_UM**2)))
    record = json.loads((run / "run.json").read_text())
    record["notes"]["healthy_maps"] = 6
    (run / "run.json").write_text(json.dumps(record))
    return run


def keep_maps(run, number):
    folder = RunFolder(run)
    maps = folder.healthy_maps().maps[:number]
    folder.write_healthy_maps(HealthyMaps(maps, SquareMicrons(WINDOW_UM**2)))
    state_maps(run, number)


def state_maps(run, number):
    record = json.loads((run / "run.json").read_text())
    record["notes"]["healthy_maps"] = number
    (run / "run.json").write_text(json.dumps(record))


def image(*, lesion):
    """Windows of independent reds from 0 to 130; a lesion of five by five has the upper half."""
    rng = np.random.default_rng(1)
    reds = 130 * rng.random((10, 14))
    if lesion:
        reds[3:8, 5:10] = 75 + 55 * rng.random((5, 5))
    pixels = stained(320, 448)
    pixels[..., 0] = np.kron(reds, np.ones((32, 32)))
    return pixels


@pytest.fixture
def slides(tmp_path):
    (tmp_path / "slides").mkdir()
    for name in ("healthy", "tumour"):
        write_tiff(tmp_path / "slides" / f"{name}.tif", image(lesion=name == "tumour"),
                   mpp=0.5, levels=1)  # fmt: skip
    return tmp_path / "slides"


def heatmap(run, slides, out, **values):
    wsiad.heatmap(run=run, slides=slides, out=out, quiet=True, **values)
    return out


def rows_of(out):
    with (out / "slides.csv").open() as file:
        return {row["slide"]: row for row in csv.DictReader(file)}


def test_a_lesion_without_an_unusual_window_stands_out(run, slides, tmp_path):
    alone = heatmap(run, slides, tmp_path / "alone", scales_um=0)
    together = heatmap(run, slides, tmp_path / "together", scales_um=SCALES, region_quantile=0.99)
    assert rows_of(alone)["tumour"]["regions"] == "0"
    assert rows_of(alone)["tumour"]["score_scan"] == ""
    scans = {name: float(row["score_scan"]) for name, row in rows_of(together).items()}
    assert scans["tumour"] > 1.5 * scans["healthy"]
    regions = wsiad.Results(together).slide("tumour").regions()
    assert len(regions) >= 1
    lesion = (5 * 32, 3 * 32, 10 * 32, 8 * 32)
    x, y = regions[0].centre
    assert lesion[0] < x < lesion[2]
    assert lesion[1] < y < lesion[3]
    assert regions[0].scale_um in SCALES
    assert regions[0].max_score == pytest.approx(scans["tumour"])


def test_the_map_is_that_of_its_calibration(run, slides, tmp_path):
    out = heatmap(run, slides, tmp_path / "out", scales_um=SCALES)
    stored = json.loads((out / "scales.json").read_text())
    spatial = SpatialCalibration.from_json(stored)
    assert [float(scale.radius) for scale in spatial.scales] == list(SCALES)
    calibration = RunFolder(run).calibration()
    scores = wsiad.Results(out).slide("tumour").heatmap()
    expected = spatial.map(scores, calibration).heatmap.scores
    written = tifffile.imread(out / "tumour" / "spatial.ome.tif")
    np.testing.assert_array_equal(written, expected)
    assert wsiad.Results(out).slide("tumour").score("scan") == np.nanmax(expected)
    assert (out / "tumour" / "spatial.png").exists()


def content(path):
    """A file's content; whole numbers in JSON equal the same floats."""
    return json.loads(path.read_text()) if path.suffix == ".json" else path.read_bytes()


def differing(one, two):
    names = {p.relative_to(d) for d in (one, two) for p in d.rglob("*") if p.is_file()}
    return {
        str(name)
        for name in names
        if name.name != "slide.json"
        and not (
            (one / name).exists()
            and (two / name).exists()
            and content(one / name) == content(two / name)
        )
    }


def test_export_derives_other_scales_without_the_run(run, slides, tmp_path):
    asked = heatmap(run, slides, tmp_path / "asked", scales_um=SCALES, evidence_regions=0)
    out = heatmap(run, slides, tmp_path / "out", scales_um=0, evidence_regions=0)
    before = tmp_path / "before"
    shutil.copytree(out, before)
    shutil.rmtree(run)
    summary = wsiad.export(results=out, scales_um=SCALES, quiet=True).summary
    assert "scales_um [0.0] (now [32.0, 64.0])" in summary
    for name in ("healthy", "tumour"):
        assert differing(out / name, asked / name) == set()
    assert (out / "scales.json").read_bytes() == (asked / "scales.json").read_bytes()
    wsiad.export(results=out, scales_um=[0], quiet=True)
    for name in ("healthy", "tumour"):
        assert differing(out / name, before / name) == set()
    assert not (out / "scales.json").exists()
    assert rows_of(out)["tumour"]["score_scan"] == ""


def test_a_large_place_is_one_detection(run, slides, tmp_path):
    out = heatmap(run, slides, tmp_path / "out", scales_um=[64], suppression_radius_um=1,
                  detection_quantile=0.01)  # fmt: skip
    found = np.loadtxt(out / "tumour" / "detections.csv", delimiter=",", skiprows=1, ndmin=2)
    x, y = found[:, 1], found[:, 2]
    away = np.hypot(x[:, None] - x, y[:, None] - y) * 0.5
    assert len(found) > 1
    assert away[~np.eye(len(found), dtype=bool)].min() > 1.5 * 64


def test_slides_are_ranked_and_compared_by_the_scan_score(run, slides, tmp_path):
    reference = tmp_path / "reference.csv"
    reference.write_text("image,type\nhealthy,normal\ntumour,tumor\n")
    out = heatmap(run, slides, tmp_path / "out", scales_um=0)
    with pytest.raises(EvaluationError, match=r"score_scan of healthy is '', not a number.*export"):
        wsiad.evaluate(results=out, reference=reference, slide_score="scan", quiet=True)
    wsiad.export(results=out, scales_um=SCALES, quiet=True)
    found = wsiad.evaluate(results=out, reference=reference, slide_score="scan", quiet=True)
    assert found.figures.slide_auc.value == 1
    other = tmp_path / "healthy"
    other.mkdir()
    write_tiff(other / "h.tif", image(lesion=False)[:, ::-1], mpp=0.5, levels=1)
    healthy = heatmap(run, other, tmp_path / "reference", scales_um=SCALES)
    compared = wsiad.significance(results=out, healthy=healthy, quiet=True)
    assert "by score_scan" in compared.summary
    assert json.loads(compared.report.read_text())["slide_score"] == "scan"
    rows = wsiad.significance(results=out, healthy=healthy, slide_score="scan", quiet=True).rows
    assert rows == compared.rows
    assert {row.slide: row.p_slide for row in rows}["tumour"] == 0.5  # the smallest of one slide
    wsiad.export(results=healthy, scales_um=[64], quiet=True)
    differ = r"scales_um is \[64\.0\] and not \[32\.0, 64\.0\].*alike with wsiad export"
    with pytest.raises(InputError, match=differ):
        wsiad.significance(results=out, healthy=healthy, slide_score="scan", quiet=True)
    with pytest.raises(InputError, match=rf"{differ}.*Or pass those of the healthy slides"):
        heatmap(run, slides, tmp_path / "third", scales_um=SCALES, healthy=healthy)
    heatmap(run, slides, tmp_path / "third", scales_um=64, healthy=healthy)  # as the error says
    wsiad.export(results=healthy, scales_um=SCALES, quiet=True)
    assert wsiad.significance(results=out, healthy=healthy, quiet=True).rows == compared.rows


def outline(path, x0, y0, x1, y1):
    ring = [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]
    path.write_text(json.dumps({
        "type": "FeatureCollection",
        "features": [{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]},
                      "properties": {"classification": {"name": "Tumor"}}}],
    }))  # fmt: skip


def test_tile_auroc_by_the_map_of_neighbourhoods_at_the_centres_of_windows(run, slides, tmp_path):
    reference = tmp_path / "reference.csv"
    reference.write_text("image,type\nhealthy,normal\ntumour,tumor\n")
    (tmp_path / "truth").mkdir()
    outline(tmp_path / "truth" / "tumour.geojson", 5 * 32, 3 * 32, 10 * 32, 8 * 32)
    out = heatmap(run, slides, tmp_path / "out", scales_um=SCALES)

    def evaluate():
        return wsiad.evaluate(
            results=out, reference=reference, annotations=tmp_path / "truth", quiet=True
        )

    found = evaluate()
    lesion, others = [], []
    for name in ("healthy", "tumour"):
        values = tifffile.imread(out / name / "spatial.ome.tif")
        inside = np.zeros(values.shape, bool)
        inside[3:8, 5:10] = name == "tumour"
        lesion.append(values[inside])
        others.append(values[~inside])
    positive, negative = np.concatenate(lesion), np.concatenate(others)
    area = np.mean(np.sign(positive[:, None] - negative) / 2 + 0.5)
    assert len(positive) == 25
    assert len(negative) == 2 * 140 - 25
    assert found.figures.tile_auroc_neighbourhoods.value == pytest.approx(area, abs=1e-12)
    assert found.figures.tile_auroc_neighbourhoods.value > found.figures.tile_auroc.value
    assert f"tile AUROC, neighbourhoods  {area:.3f}" in found.summary
    told = json.loads((out / "evaluation.json").read_text())
    assert told["tile_auroc_neighbourhoods"]["value"] == pytest.approx(area, abs=1e-12)
    assert "Tile AUROC, neighbourhoods" in (out / "report.html").read_text()
    (out / "healthy" / "spatial.ome.tif").unlink()
    missing = evaluate().figures.tile_auroc_neighbourhoods
    assert missing.undefined == "some slides have no map of neighbourhoods"
    (out / "tumour" / "spatial.ome.tif").write_bytes(b"II*")
    with pytest.raises(EvaluationError, match=r"spatial\.ome\.tif: is damaged.*wsiad export"):
        evaluate()
    wsiad.export(results=out, scales_um=0, quiet=True)
    assert evaluate().figures.tile_auroc_neighbourhoods is None
    assert "tile_auroc_neighbourhoods" not in json.loads((out / "evaluation.json").read_text())


def test_tile_aurocs_by_neighbourhoods_are_compared(run, slides, tmp_path):
    reference = tmp_path / "reference.csv"
    reference.write_text("image,type\nhealthy,normal\ntumour,tumor\n")
    (tmp_path / "truth").mkdir()
    outline(tmp_path / "truth" / "tumour.geojson", 5 * 32, 3 * 32, 10 * 32, 8 * 32)
    given = {"reference": reference, "annotations": tmp_path / "truth", "quiet": True}
    a = heatmap(run, slides, tmp_path / "a", scales_um=SCALES)
    b = heatmap(run, slides, tmp_path / "b", scales_um=SCALES[:1])

    def compare():
        return wsiad.compare(a=a, b=b, out=tmp_path / "out", **given)

    found = compare()
    one, other = (
        wsiad.evaluate(results=path, **given).figures.tile_auroc_neighbourhoods.value
        for path in (a, b)
    )
    difference = found.comparison.tile_auroc_neighbourhoods
    assert (difference.a, difference.b) == pytest.approx((one, other), abs=1e-12)
    assert difference.estimate.value == pytest.approx(other - one, abs=1e-12)
    assert one != other
    assert "tile AUROC, neighbourhoods" in found.summary
    told = json.loads(found.report.read_text())["tile_auroc_neighbourhoods"]
    assert told["difference"] == pytest.approx(other - one, abs=1e-12)
    (b / "healthy" / "spatial.ome.tif").unlink()
    missing = compare().comparison.tile_auroc_neighbourhoods.estimate
    assert missing.undefined == "some slides have no map of neighbourhoods on one side"
    for path in (a, b):
        wsiad.export(results=path, scales_um=0, quiet=True)
    assert compare().comparison.tile_auroc_neighbourhoods is None
    assert "tile_auroc_neighbourhoods" not in json.loads(found.report.read_text())


@pytest.mark.parametrize("damage", ["gone", "cut off"])
@pytest.mark.parametrize(
    "given", [{"scales_um": SCALES}, {"scales_um": 32, "mean_of": "scores"}, {"scales_um": 0}]
)
def test_without_the_record_of_results_those_of_slides_say_the_scales(
    run, slides, tmp_path, damage, given
):
    out = heatmap(run, slides, tmp_path / "out", evidence_regions=0, **given)
    record, usual = out / "run.json", heatmap(run, slides, tmp_path / "usual", evidence_regions=0)
    before = json.loads(record.read_text())["derived"]
    by_default = json.loads((usual / "run.json").read_text())["derived"]
    assert before != by_default
    tables = {path: path.read_bytes() for path in out.glob("*/*.csv")}

    def spoil():
        record.unlink() if damage == "gone" else record.write_text('{"digest": ')

    spoil()
    heatmap(run, slides, out, evidence_regions=0)
    assert json.loads(record.read_text())["derived"] == before
    assert {path: path.read_bytes() for path in out.glob("*/*.csv")} == tables
    # Slides that differ say nothing.
    spoil()
    said = out / "healthy" / "slide.json"
    values = json.loads(said.read_text())
    said.write_text(json.dumps({**values, "derived": {**before, "scales_um": [48.0]}}))
    heatmap(run, slides, out, evidence_regions=0)
    assert json.loads(record.read_text())["derived"] == by_default


def test_regions_are_drawn_over_the_map_that_they_come_from(run, slides, tmp_path):
    out = heatmap(run, slides, tmp_path / "out", scales_um=SCALES, region_quantile=0.999)
    alone = heatmap(run, slides, tmp_path / "alone", scales_um=0)
    assert [wsiad.Results(out).slide("healthy").regions()] == [[]]
    with_map, plain = (cv2.imread(str(out / "healthy" / name)).astype(int)
                       for name in ("overlay.png", "overlay_plain.png"))  # fmt: skip
    windows = cv2.imread(str(alone / "healthy" / "overlay_plain.png"))
    np.testing.assert_array_equal(plain, windows)
    values = tifffile.imread(out / "healthy" / "spatial.ome.tif")
    scale = colour_scale(SpatialCalibration.from_json(
        json.loads((out / "scales.json").read_text())).calibration)  # fmt: skip
    step = with_map.shape[0] // values.shape[0]
    # Where the map is high, the overlay has the colour of the map and not of the window.
    row, column = np.unravel_index(np.argmax(values), values.shape)
    at = with_map[row * step + step // 2, column * step + step // 2, ::-1]
    *colour, alpha = scale.rgba(values[row : row + 1, column : column + 1])[0, 0].astype(float)
    grey = (at - np.array(colour) * alpha / 255) / (1 - alpha / 255)
    assert grey.min() > 120  # half of the slide's own grey, and 128
    assert np.ptp(grey) < 2 / (1 - alpha / 255)
    page = (out / "report.html").read_text()
    assert "Neighbourhoods of windows over the tissue; regions outlined" in page
    assert "Share of healthy neighbourhoods with a lower score" in page
    assert "Neighbourhoods of windows over" not in (alone / "report.html").read_text()


@pytest.fixture
def healthy(run, tmp_path):
    """Results of three healthy slides."""
    folder = tmp_path / "more"
    folder.mkdir()
    for seed in range(3):
        reds = 130 * np.random.default_rng(10 + seed).random((10, 14))
        pixels = stained(320, 448)
        pixels[..., 0] = np.kron(reds, np.ones((32, 32)))
        write_tiff(folder / f"n{seed}.tif", pixels, mpp=0.5, levels=1)
    return heatmap(run, folder, tmp_path / "healthy", scales_um=0)


def test_results_of_healthy_slides_standardise_scales(run, slides, healthy, tmp_path, caplog):
    keep_maps(run, 1)
    out = heatmap(run, slides, tmp_path / "out")
    assert rows_of(out)["tumour"]["score_scan"] == ""
    summary = wsiad.export(results=out, scales_from=healthy, quiet=True).summary
    assert "scales_um [0.0] (now [100.0, 200.0])" in summary
    assert "standardised_by the run (now 3 healthy slides, " in summary
    maps = [wsiad.Results(healthy).slide(f"n{i}").heatmap() for i in range(3)]
    calibration = RunFolder(run).calibration()
    window = SquareMicrons(WINDOW_UM**2)
    expected = SpatialCalibration.of(
        maps, calibration=calibration, scales_um=(100, 200), window=window
    )
    stored = json.loads((out / "scales.json").read_text())
    assert stored == json.loads(json.dumps(expected.to_json()))
    assert stored["n_slides"] == 3
    record = json.loads((out / "run.json").read_text())
    assert record["standardised_by"]["slides"] == ["n0", "n1", "n2"]
    assert "single_windows_because" not in record
    page = (out / "report.html").read_text()
    assert "3 healthy slides" in page
    assert "regions come from single windows" not in page.lower()
    # They stay until other slides or the run take their place.
    assert "derived again" not in wsiad.export(results=out, quiet=True).summary
    other = wsiad.export(results=out, scales_um=SCALES, quiet=True).summary
    assert "scales_um [100.0" in other
    assert json.loads((out / "scales.json").read_text())["n_slides"] == 3
    wsiad.export(results=out, scales_um=0, quiet=True)
    assert "standardised_by" not in json.loads((out / "run.json").read_text())["derived"]
    wsiad.export(results=out, scales_um=SCALES, quiet=True)
    assert "standardised_by" in json.loads((out / "run.json").read_text())["derived"]
    caplog.clear()
    heatmap(run, slides, out)
    assert "standardised by the run's own slides again" in caplog.text
    caplog.clear()
    heatmap(run, slides, out)
    assert "standardised by the run's own" not in caplog.text
    assert "standardised_by" not in json.loads((out / "run.json").read_text())
    assert len(HealthyMaps.read(out / "healthy_maps.safetensors")) == 1


def test_results_that_other_slides_standardise_are_compared_with_their_like(
    run, slides, healthy, tmp_path
):
    out = heatmap(run, slides, tmp_path / "out")
    others = heatmap(run, tmp_path / "more" / "n0.tif", tmp_path / "others", scales_um=0)
    wsiad.export(results=out, scales_from=healthy, quiet=True)
    with pytest.raises(InputError, match="standardised_by is the run and not 3 healthy slides"):
        wsiad.significance(
            results=out, healthy=heatmap(run, slides, tmp_path / "by_run"), quiet=True
        )
    # A slide that standardises scales cannot be compared by them: its own scores are among those.
    with pytest.raises(InputError, match=r"n0 of .*healthy: is also in .*others"):
        wsiad.export(results=others, scales_from=healthy, quiet=True)
    apart = tmp_path / "apart"
    apart.mkdir()
    write_tiff(apart / "h.tif", image(lesion=False)[:, ::-1], mpp=0.5, levels=1)
    reference = heatmap(run, apart, tmp_path / "reference", scales_um=0)
    wsiad.export(results=reference, scales_from=healthy, quiet=True)
    found = wsiad.significance(results=out, healthy=reference, quiet=True)
    assert {row.slide: row.p_slide for row in found.rows}["tumour"] == 0.5


def test_healthy_slides_that_cannot_standardise_scales(run, slides, healthy, tmp_path):
    out = heatmap(run, slides, tmp_path / "out")
    fine = heatmap(run, tmp_path / "more", tmp_path / "fine", stride=16)
    with pytest.raises(InputError, match="fine: holds results of another run or of other options"):
        wsiad.export(results=out, scales_from=fine, quiet=True)
    with pytest.raises(InputError, match="nowhere"):
        wsiad.export(results=out, scales_from=tmp_path / "nowhere", quiet=True)
    single = heatmap(run, slides, tmp_path / "single", scales_um=0)
    before = (single / "run.json").read_bytes()
    alone = heatmap(run, tmp_path / "more" / "n1.tif", tmp_path / "alone")
    for given, values, why in (
        (alone, {}, "slides are too few"),
        (healthy, {"scales_um": 0}, "`scales_um` is 0"),
    ):
        with pytest.raises(InputError, match=rf"{given}: standardises nothing: .*{why}"):
            wsiad.export(results=single, scales_from=given, quiet=True, **values)
    assert (single / "run.json").read_bytes() == before
    wsiad.export(results=single, scales_from=alone, scales_um=(100, 200), quiet=True)
    record = json.loads((run / "run.json").read_text())
    print_of = wsiad.Results(healthy).slide("n1").fingerprint()
    record["slides"] = {"fit": {"n1": print_of}}
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"n1 of .*was used for the run"):
        wsiad.export(results=out, scales_from=healthy, quiet=True)


def test_a_percentile_is_no_score_to_compare_slides_by(run, slides, tmp_path):
    out = heatmap(run, slides, tmp_path / "out")
    with pytest.raises(ConfigError, match="slide_score"):
        wsiad.significance(results=out, healthy=tmp_path, slide_score="percentile", quiet=True)


def test_a_run_without_maps_says_so(slides, tmp_path):
    run = make_run(tmp_path / "old")
    with pytest.raises(InputError, match=r"no maps of healthy slides.*--scales-um"):
        heatmap(run, slides, tmp_path / "out", scales_um=SCALES)
    out = heatmap(run, slides, tmp_path / "out")
    with pytest.raises(InputError, match="no maps of healthy slides"):
        wsiad.export(results=out, scales_um=SCALES, quiet=True)


@pytest.mark.parametrize("scales", [[], [-1], [5, 5]])
def test_scales_that_make_no_sense(run, slides, tmp_path, scales):
    with pytest.raises(ConfigError, match="scales"):
        heatmap(run, slides, tmp_path / "out", scales_um=scales)


def test_few_healthy_slides_are_warned_of(run, slides, tmp_path, caplog):
    keep_maps(run, 2)
    heatmap(run, slides, tmp_path / "out", scales_um=0)
    assert "standardised by" not in caplog.text
    wsiad.export(results=tmp_path / "out", scales_um=SCALES, quiet=True)
    assert "standardised by 2 healthy slides" in caplog.text


def test_neighbourhoods_are_looked_at_by_default(run, slides, tmp_path):
    out = heatmap(run, slides, tmp_path / "out")
    stated = heatmap(run, slides, tmp_path / "stated", scales_um=[100, 200])
    for name in ("healthy", "tumour"):
        assert differing(out / name, stated / name) == set()
    record = json.loads((out / "run.json").read_text())
    assert record["derived"]["scales_um"] == [100, 200]
    assert "single_windows_because" not in record
    assert "scales_um: auto" in (out / "config.yaml").read_text()


def test_a_method_that_learnt_from_labels_averages_scores(run, slides, tmp_path):
    record = json.loads((run / "run.json").read_text())
    record["notes"]["anomalies"] = {"tiles": 3, "types": ["tumor"], "slides": ["a"]}
    (run / "run.json").write_text(json.dumps(record))
    out = heatmap(run, slides, tmp_path / "out")
    calibration = RunFolder(run).calibration()

    def facts():
        return json.loads((out / "run.json").read_text())

    def expected(mean_of):
        maps = RunFolder(run).healthy_maps()
        spatial = SpatialCalibration.of(
            maps.maps, calibration=calibration, scales_um=(100, 200), window=maps.window,
            mean_of=mean_of,
        )  # fmt: skip
        return spatial.map(wsiad.Results(out).slide("tumour").heatmap(), calibration).heatmap.scores

    def written():
        return tifffile.imread(out / "tumour" / "spatial.ome.tif")

    assert facts()["derived"]["mean_of"] == "scores"
    np.testing.assert_array_equal(written(), expected("scores"))
    assert "averaged by the scores of the windows" in (out / "report.html").read_text()
    summary = wsiad.export(results=out, mean_of="percentiles", quiet=True).summary
    assert "mean_of scores (now percentiles)" in summary
    assert "mean_of" not in facts()["derived"]
    np.testing.assert_array_equal(written(), expected("percentiles"))
    assert "averaged by the scores of the windows" not in (out / "report.html").read_text()
    # The choice stays when others change, also while nothing is averaged.
    wsiad.export(results=out, scales_um=(100, 200), quiet=True)
    assert "mean_of" not in facts()["derived"]
    wsiad.export(results=out, scales_um=0, quiet=True)
    assert "mean_of" not in facts()["derived"]
    assert facts()["mean_of"] == "percentiles"
    wsiad.export(results=out, scales_um="auto", quiet=True)
    assert "mean_of" not in {**facts(), **facts()["derived"]}
    np.testing.assert_array_equal(written(), expected("percentiles"))
    wsiad.export(results=out, scales_um=0, mean_of="auto", quiet=True)
    wsiad.export(results=out, scales_um="auto", quiet=True)
    assert facts()["derived"]["mean_of"] == "scores"
    np.testing.assert_array_equal(written(), expected("scores"))


def test_means_that_were_asked_for_outlast_single_windows(run, slides, tmp_path):
    def averaged(out):
        return json.loads((out / "run.json").read_text())["derived"].get("mean_of", "percentiles")

    stated = heatmap(run, slides, tmp_path / "stated", scales_um=(100, 200), mean_of="scores")
    expected = (stated / "tumour" / "spatial.ome.tif").read_bytes()
    by_export = heatmap(run, slides, tmp_path / "export", mean_of="scores")
    wsiad.export(results=by_export, scales_um=0, quiet=True)
    wsiad.export(results=by_export, region_quantile=0.98, quiet=True)
    wsiad.export(results=by_export, region_quantile=0.99, scales_um=(100, 200), quiet=True)
    by_heatmap = heatmap(run, slides, tmp_path / "heatmap", mean_of="scores")
    heatmap(run, slides, by_heatmap, scales_um=0)
    heatmap(run, slides, by_heatmap)
    wsiad.export(results=by_heatmap, scales_um=(100, 200), quiet=True)
    for out in (by_export, by_heatmap):
        assert averaged(out) == "scores"
        assert (out / "tumour" / "spatial.ome.tif").read_bytes() == expected
    heatmap(run, slides, by_heatmap, scales_um=(100,))  # another call says all that differs
    assert averaged(by_heatmap) == "percentiles"


def test_means_that_were_asked_for_wait_for_healthy_slides(run, slides, tmp_path):
    keep_maps(run, 1)
    out = heatmap(run, slides, tmp_path / "out", mean_of="scores")
    record = json.loads((out / "run.json").read_text())
    assert (record["mean_of"], record["derived"].get("scales_um")) == ("scores", None)
    wsiad.export(results=out, scales_um=(100, 200), quiet=True)
    assert json.loads((out / "run.json").read_text())["derived"]["mean_of"] == "scores"
    (out / "run.json").write_text(json.dumps({**record, "mean_of": "ranks"}))
    with pytest.raises(InputError, match=r"run\.json: is damaged: mean_of is 'ranks'"):
        wsiad.export(results=out, scales_um=(100, 200), quiet=True)


def test_scored_again_results_keep_their_neighbourhoods(run, slides, tmp_path, caplog):
    out = heatmap(run, slides, tmp_path / "out")
    wsiad.export(results=out, scales_um=(100, 150), mean_of="scores", quiet=True)
    before = (out / "tumour" / "spatial.ome.tif").read_bytes()
    heatmap(run, [slides / "healthy.tif"], out)
    heatmap(run, slides, out)
    derived = json.loads((out / "run.json").read_text())["derived"]
    assert (derived["scales_um"], derived["mean_of"]) == ([100, 150], "scores")
    assert (out / "tumour" / "spatial.ome.tif").read_bytes() == before
    assert "derived again" not in caplog.text
    heatmap(run, slides, out, scales_um=(100,))
    told = (
        "derived again, with other options: scales_um [100.0, 150.0] (now [100.0]), mean_of scores"
    )
    assert told in caplog.text
    assert (out / "tumour" / "spatial.ome.tif").read_bytes() != before


def test_scored_again_results_of_single_windows_stay_those(run, slides, tmp_path, caplog):
    out = heatmap(run, [slides / "healthy.tif"], tmp_path / "out", scales_um=0)
    heatmap(run, slides, out)
    assert "scales_um" not in json.loads((out / "run.json").read_text())["derived"]
    assert {row["score_scan"] for row in rows_of(out).values()} == {""}
    assert "derived again" not in caplog.text
    with pytest.raises(ConfigError, match="does nothing where `scales_um` is 0"):
        heatmap(run, slides, out, mean_of="scores")
    heatmap(run, slides, out, scales_um="auto")  # said or not
    assert "scales_um" not in json.loads((out / "run.json").read_text())["derived"]
    wsiad.export(results=out, scales_um="auto", quiet=True)
    assert json.loads((out / "run.json").read_text())["derived"]["scales_um"] == [100, 200]


@pytest.mark.parametrize("maps", [6, 1])
def test_single_windows_of_an_export_stay_where_the_results_are_scored_again(
    run, slides, tmp_path, caplog, maps
):
    """Also where the run keeps too few maps for neighbourhoods, unless radii are stated."""
    keep_maps(run, maps)
    out = heatmap(run, [slides / "healthy.tif"], tmp_path / "out")
    wsiad.export(results=out, scales_um=0, quiet=True)
    before = (out / "healthy" / "slide.json").read_bytes()
    caplog.clear()
    heatmap(run, slides, out)
    record = json.loads((out / "run.json").read_text())
    assert "scales_um" not in record["derived"]
    assert "single_windows_because" not in record
    assert {row["score_scan"] for row in rows_of(out).values()} == {""}
    assert (out / "healthy" / "slide.json").read_bytes() == before
    assert "derived again" not in caplog.text
    heatmap(run, slides, out, scales_um=SCALES)  # unless others are stated
    stated = heatmap(run, slides, tmp_path / "stated", scales_um=SCALES)
    assert differing(out / "tumour", stated / "tumour") == set()


def test_scored_again_results_keep_radii_where_another_mean_is_set(run, slides, tmp_path):
    out = heatmap(run, slides, tmp_path / "out", scales_um=SCALES)
    heatmap(run, slides, out, mean_of="scores")
    derived = json.loads((out / "run.json").read_text())["derived"]
    assert (derived["scales_um"], derived["mean_of"]) == (list(SCALES), "scores")
    wanted = heatmap(run, slides, tmp_path / "wanted", scales_um=SCALES, mean_of="scores")
    assert differing(out / "tumour", wanted / "tumour") == set()


def test_results_that_do_not_say_what_taught_ask_the_run(run, slides, tmp_path):
    out = heatmap(run, slides, tmp_path / "out", scales_um=0)
    facts = json.loads((out / "run.json").read_text())
    del facts["labelled"]  # as results of before
    (out / "run.json").write_text(json.dumps(facts))
    record = json.loads((run / "run.json").read_text())
    record["notes"]["anomalies"] = {"tiles": 3, "types": ["tumor"], "slides": ["a"]}
    (run / "run.json").write_text(json.dumps(record))

    def mean_of():
        derived = json.loads((out / "run.json").read_text())["derived"]
        return derived.get("mean_of", "percentiles")

    wsiad.export(results=out, scales_um=(100,), quiet=True)
    assert mean_of() == "scores"
    wsiad.export(results=out, scales_um=0, mean_of="auto", quiet=True)
    run.rename(tmp_path / "gone")
    summary = wsiad.export(results=out, scales_um=(100,), quiet=True).summary
    assert mean_of() == "percentiles"
    assert "do not say whether their method learnt from labels" in summary


def test_means_of_single_windows_are_refused(run, slides, tmp_path):
    with pytest.raises(ConfigError, match="does nothing where `scales_um` is 0"):
        heatmap(run, slides, tmp_path / "out", scales_um=0, mean_of="scores")
    out = heatmap(run, slides, tmp_path / "out", scales_um=0)
    with pytest.raises(ConfigError, match="does nothing where `scales_um` is 0"):
        wsiad.export(results=out, mean_of="scores", quiet=True)


def test_why_there_are_no_neighbourhoods_is_told_unless_nobody_wants_them(
    run, slides, tmp_path, caplog
):
    keep_maps(run, 1)
    out = heatmap(run, slides, tmp_path / "out")
    why = "regions come from single windows: the run keeps the map of 1 healthy slide"
    record = json.loads((out / "run.json").read_text())
    assert record["single_windows_because"].startswith(why)
    assert "scales_um" not in record["derived"]
    assert caplog.text.count(why) == 1
    assert why.capitalize() in (out / "report.html").read_text()
    heatmap(run, slides, out)  # the same command again changes nothing
    assert json.loads((out / "run.json").read_text()) == record
    wsiad.export(results=out, top_k=3, quiet=True)  # other options leave it
    assert why.capitalize() in (out / "report.html").read_text()
    assert why in wsiad.export(results=out, scales_um="auto", quiet=True).summary
    wsiad.export(results=out, scales_um=0, quiet=True)
    assert "single_windows_because" not in json.loads((out / "run.json").read_text())
    assert "single windows:" not in (out / "report.html").read_text()
    wsiad.export(results=out, scales_um=SCALES, quiet=True)  # one slide does, if somebody says so
    assert rows_of(out)["tumour"]["score_scan"] != ""


def test_healthy_slides_too_small_for_the_usual_radii_leave_single_windows(run, slides, tmp_path):
    folder = RunFolder(run)
    scores = [np.full((1, 1), value, np.float32) for value in (20, 20)]
    maps = [HealthyMap(f"h{i}", s, (WINDOW_UM, WINDOW_UM)) for i, s in enumerate(scores)]
    folder.write_healthy_maps(HealthyMaps(tuple(maps), SquareMicrons(WINDOW_UM**2)))
    state_maps(run, 2)
    out = heatmap(run, slides, tmp_path / "out")
    reason = json.loads((out / "run.json").read_text())["single_windows_because"]
    assert "too few or too small for a radius of 100 µm" in reason


def test_healthy_windows_of_one_score_leave_single_windows(run, slides, tmp_path):
    folder = RunFolder(run)
    scores = [np.full((14, 20), 20, np.float32) for _ in range(6)]
    folder.write_calibration(Calibration.of(np.concatenate(scores), n_slides=6))
    maps = [HealthyMap(f"h{i}", s, (WINDOW_UM, WINDOW_UM)) for i, s in enumerate(scores)]
    folder.write_healthy_maps(HealthyMaps(tuple(maps), SquareMicrons(WINDOW_UM**2)))
    with pytest.raises(InputError, match=r"healthy windows have one score.*--scales-um 0"):
        heatmap(run, slides, tmp_path / "stated", scales_um=SCALES)
    out = heatmap(run, slides, tmp_path / "out")
    reason = json.loads((out / "run.json").read_text())["single_windows_because"]
    assert "all its healthy windows have one score" in reason
    # By the map of neighbourhoods, 0 everywhere, the lesion had no region.
    assert int(rows_of(out)["tumour"]["regions"]) > 0
    assert float(rows_of(out)["tumour"]["score_max"]) > 75


def test_results_without_stated_scales_stay_those_of_single_windows(run, slides, tmp_path):
    out = heatmap(run, slides, tmp_path / "out", scales_um=0)
    before = tmp_path / "before"
    shutil.copytree(out, before)
    summary = wsiad.export(results=out, quiet=True).summary
    assert "derived again" not in summary
    assert differing(out / "tumour", before / "tumour") == set()
    assert "derived again: scales_um" in wsiad.export(
        results=out, scales_um="auto", quiet=True
    ).summary  # fmt: skip


def test_slides_are_ranked_by_the_scan_score_where_all_have_one(run, slides, tmp_path, caplog):
    reference = tmp_path / "reference.csv"
    reference.write_text("image,type\nhealthy,normal\ntumour,tumor\n")
    scanned = heatmap(run, slides, tmp_path / "scanned", scales_um=SCALES)
    alone = heatmap(run, slides, tmp_path / "alone", scales_um=0)
    scans = {name: float(row["score_scan"]) for name, row in rows_of(scanned).items()}
    highest = {name: float(row["score_max"]) for name, row in rows_of(alone).items()}
    for out, scores, kind in ((scanned, scans, "scan"), (alone, highest, "max")):
        found = wsiad.evaluate(results=out, reference=reference, quiet=True)
        assert f"({kind})" in found.summary
        told = json.loads((out / "evaluation.json").read_text())
        assert told["made_by"]["config"]["slide_score"] == kind
        assert {s["slide"]: s["score"] for s in told["slides"]} == pytest.approx(scores)
        page = (out / "report.html").read_text()
        assert ("Ranked by the scan score" in page) == (kind == "scan")
        first = max(scores, key=scores.get)
        assert page.index(f">{first}</a>") == min(page.index(f">{name}</a>") for name in scores)
        shown = viewed_slides(out)
        assert [s.name for s in shown] == sorted(scores, key=scores.get, reverse=True)
        assert shown[0].as_json()["score"] == pytest.approx(scores[first])
        ranks = {s.name: s.metadata for s in project_slides(wsiad.Results(out).slides)}
        assert ranks[first]["rank"] == "1"
    compared = wsiad.compare(
        a=scanned, b=alone, out=tmp_path / "both", reference=reference, quiet=True
    )
    assert "slides are ranked by their highest score (max)" in compared.summary
    assert "has no scan score, so all slides are ranked by their highest score" in caplog.text


def test_the_report_and_qupath_state_the_unit_of_regions(run, slides, tmp_path):
    out = heatmap(run, slides, tmp_path / "out", scales_um=0, region_quantile=0.99)
    page = (out / "report.html").read_text()
    assert "eighbourhood" not in page
    assert ">Scan<" not in page
    wsiad.export(results=out, scales_um=SCALES, region_quantile=0.99, quiet=True)
    page = (out / "report.html").read_text()
    assert ">Scan<" in page
    assert f'data-value="{float(rows_of(out)["tumour"]["score_scan"]):.9g}"' in page
    assert "neighbourhoods of windows with radii of 32, 64 µm" in page
    region = wsiad.Results(out).slide("tumour").regions()[0]
    assert f"Neighbourhood of radius {region.scale_um:g}&nbsp;µm" in page
    shape = json.loads((out / "tumour" / "lesions.geojson").read_text())["features"][0]
    assert shape["properties"]["measurements"]["wsiad: neighbourhood µm"] == region.scale_um


def test_an_evaluation_of_other_scales_is_warned_of(run, slides, tmp_path):
    reference = tmp_path / "reference.csv"
    reference.write_text("image,type\nhealthy,normal\ntumour,tumor\n")
    out = heatmap(run, slides, tmp_path / "out", scales_um=SCALES)
    wsiad.evaluate(results=out, reference=reference, slide_score="scan", quiet=True)
    assert "derived again since the evaluation" not in (out / "report.html").read_text()
    wsiad.export(results=out, scales_um=[0], quiet=True)
    page = (out / "report.html").read_text()
    assert "derived again since the evaluation (scales_um" in page


def test_a_table_and_outlines_of_different_scales_are_not_joined(run, slides, tmp_path):
    options = {"region_quantile": 0.9, "region_limit": 1}
    out = heatmap(run, slides, tmp_path / "out", scales_um=0, **options)
    assert len(wsiad.Results(out).slide("tumour").regions()) == 1
    old = (out / "tumour" / "lesions.geojson").read_bytes()
    wsiad.export(results=out, scales_um=SCALES, quiet=True, **options)
    assert len(wsiad.Results(out).slide("tumour").regions()) == 1
    (out / "tumour" / "lesions.geojson").write_bytes(old)  # as if the export had been killed
    with pytest.raises(ExportError, match=r"holds other regions than regions\.csv.*wsiad export"):
        wsiad.Results(out).slide("tumour").regions()


def test_a_radius_longer_than_all_healthy_tissue_is_refused(run, slides, tmp_path):
    keep_maps(run, 1)
    with pytest.raises(InputError, match=r"run: .*radius of 100000 µm.*--scales-um"):
        heatmap(run, slides, tmp_path / "out", scales_um=[32, 100_000])
