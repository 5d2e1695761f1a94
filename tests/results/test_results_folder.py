"""`wsiad.Results`: what it reads of a results folder, and how it answers for what is not there."""

from __future__ import annotations

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

import wsiad
from support.builders import stained, write_tiff
from support.runs import make_run, score_channel
from wsiad.core.errors import EvaluationError, ExportError, InputError, WsiadError
from wsiad.core.files import MOST_FACTS
from wsiad.core.geometry import Box, PixelMap, Size
from wsiad.results import file_names as names
from wsiad.results.evaluated_slides import scored_slides
from wsiad.results.folder import Results

WINDOW = np.dtype([(n, "f8") for n in ("x", "y", "width", "height", "score", "percentile")])
LEFT_OUT = np.dtype([*((n, "f8") for n in ("x", "y", "width", "height")), ("reason", "U10")])
HEAD = "slide,status,reason,score_max,score_top_k_mean,tiles,regions,mpp_x,mpp_y,width,height"
REGIONS = (
    "rank,x,y,width,height,centre_x,centre_y,area_um2,max_score,mean_score,percentile,"
    "p_family_wise,p,q,significant\n"
    "1,100,50,200,100,200,100,1250,7.5,6.25,99.5,0.5,0.25,0.125,1\n"
    "2,0,0,10,20,5,10,3.5,2.5,2.5,98,,,,\n"
)
SCORES = np.arange(12, dtype=np.float32).reshape(3, 4)
SCORES[0, 0] = np.nan


def rectangle(x, y, width, height):
    return {"x": x, "y": y, "width": width, "height": height}


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def feature(name, *points):
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [[*points, points[0]]]},
        "properties": {"name": name, "measurements": {"wsiad: p": 0.5}},
    }


@pytest.fixture
def folder(tmp_path):
    """Results of a scored slide, of one without tissue and of one that failed; each by hand."""
    out = tmp_path / "results"
    write(out / "run.json", json.dumps({"digest": "d", "run": "/runs/x", "detector": "knn"}))
    write(
        out / "slides.csv",
        f"{HEAD}\na/1,ok,,10.5,9.25,2,2,0.25,0.5,4000,3000\n"
        "b,no-tissue,nothing there,,,0,,0.25,0.25,100,100\nc,failed,no slide,,,0,,,,,\n",
    )
    slide = out / "a/1"
    record = {"digest": "d", "fingerprint": "f", "row": {"score_max": 10.5000000001}}
    write(slide / "slide.json", json.dumps(record))
    placement = {
        "bounds": rectangle(100, 40, 3000, 2000),
        "level0_rectangle": rectangle(100, 40, 400.8, 320),
        "image_size": {"width": 2, "height": 2},
        "heatmap_pixels_per_image_pixel": 2,
        "slide_size": {"width": 4000, "height": 3000},
        "level0_um_per_px": {"x": 0.25, "y": 0.5},
        "colour_scale": {"steps": [{"score": 1, "percentile": 50, "rgba": [0, 0, 0, 9]}]},
    }
    write(slide / "heatmap.json", json.dumps(placement))
    tifffile.imwrite(slide / "heatmap.ome.tif", SCORES)
    np.save(slide / "windows.npy", np.array([(1, 2, 3, 4, 5, 6), (7, 8, 9, 1, 2, 3)], WINDOW))
    np.save(slide / "left_out.npy", np.array([(1, 2, 3, 4, "pen")], LEFT_OUT))
    write(slide / "regions.csv", REGIONS)
    write(slide / "detections.csv", "confidence,x,y\n0.9,10,20\n0.5,30,40\n")
    shapes = [
        feature("wsiad 1", [0, 0], [10, 0], [10, 5]),
        feature("wsiad 2", [20, 0], [30, 0], [30, 5]),
    ]
    outlines = {"type": "FeatureCollection", "features": shapes}
    write(slide / "lesions.geojson", json.dumps(outlines))
    stated = outlines | {"wsiad": {"origin": [1, 2]}}
    write(slide / "not_assessed.geojson", json.dumps(stated))
    (out / "b").mkdir()
    return out


@pytest.fixture
def slide(folder):
    return Results(str(folder)).slide("a/1")


def test_rows_are_those_of_the_table(folder):
    results = wsiad.Results(folder)
    assert len(results) == len(results.slides) == 3
    assert [row.slide for row in results.slides] == ["a/1", "b", "c"]
    assert [one.name for one in results] == ["a/1", "b", "c"]
    row = results.slides[0]
    assert (row.score_max, row.score_top_k_mean, row.tiles, row.width) == (10.5, 9.25, 2, 4000)
    assert results.slides[-1].score_max is None
    assert [row.slide for row in results.slides[1:]] == ["b", "c"]
    assert results.facts["detector"] == "knn"
    assert "a/1" in results
    assert "../a" not in results
    assert results.evaluation() is None
    assert results.significance() is None


def test_a_slides_files_are_read_to_their_numbers(slide, folder):
    assert slide.facts()["fingerprint"] == "f"
    heatmap = slide.heatmap()
    np.testing.assert_array_equal(heatmap.scores, SCORES)
    # The picture has 2 × 2 pixels of 2 × 2 heatmap pixels each, and reaches beyond the map.
    assert heatmap.placement == PixelMap(100, 40, 100.2, 80)
    assert (heatmap.slide, heatmap.slide_size) == ("a/1", Size(4000, 3000))
    assert heatmap.bounds == Box(100, 40, 3000, 2000)
    assert (heatmap.spacing.x, heatmap.spacing.y) == (0.25, 0.5)
    windows = slide.windows()
    assert windows["score"].tolist() == [5, 2]
    assert windows["percentile"].tolist() == [6, 3]
    assert not windows.flags.writeable
    assert slide.left_out().tolist() == [(1, 2, 3, 4, "pen")]
    first, second = slide.regions()
    assert (first.rank, first.x, first.height, first.area_um2) == (1, 100, 100, 1250)
    assert (first.max_score, first.percentile, first.p, first.q) == (7.5, 99.5, 0.25, 0.125)
    assert (second.p_family_wise, second.p, second.significant) == (None, None, None)
    assert list(first.polygon.exterior.coords)[:3] == [(100, 40), (110, 40), (110, 45)]
    assert slide.region_scores().tolist() == [7.5, 2.5]
    found = slide.detections()
    assert found.confidence.tolist() == [0.9, 0.5]
    assert (found.x.tolist(), found.y.tolist()) == ([10, 30], [20, 40])
    # The first file counts from the bounds, as older ones do; the second says from where.
    (shape, _), (other, _) = slide.outlines(), slide.not_assessed()
    assert shape.rings == [[(100, 40), (110, 40), (110, 45), (100, 40)]]
    assert other.rings == [[(1, 2), (11, 2), (11, 7), (1, 2)]]
    assert (shape.name, shape.measurements) == ("wsiad 1", {"wsiad: p": 0.5})
    assert slide.fields() == slide.evidence() == ()
    assert slide.file(names.WINDOWS) == folder / "a/1/windows.npy"
    assert slide.file(names.THUMBNAIL) is None


@pytest.mark.parametrize(
    "what", ["heatmap", "scores", "windows", "regions", "detections", "outlines"]
)
def test_what_was_not_scored_is_not_without_findings(folder, what):
    results = Results(folder)
    for name, why in (("b", "no tissue was found on it \\(nothing there"), ("c", "it failed")):
        with pytest.raises(InputError, match=rf"{name} of .*results: was not scored: {why}"):
            getattr(results.slide(name), what)()


@pytest.mark.parametrize(
    ("file", "content", "reads", "error"),
    [
        ("slide.json", "{", "facts", InputError),
        ("slide.json", '{"digest": 3}', "facts", InputError),
        ("slide.json", " " * MOST_FACTS + "{}", "facts", InputError),
        ("heatmap.json", "{}", "heatmap", InputError),
        ("heatmap.json", '{"bounds": {"x": 0, "y": NaN}}', "bounds", InputError),
        ("heatmap.ome.tif", "II*\0", "heatmap", InputError),
        ("windows.npy", "\x93NUMPY", "windows", InputError),
        ("left_out.npy", "", "left_out", InputError),
        ("regions.csv", "rank\n1\n", "regions", ExportError),
        ("regions.csv", REGIONS.replace("0.125", "nan"), "regions", ExportError),
        ("detections.csv", "confidence,x,y\n0.9,10\n", "detections", EvaluationError),
        ("detections.csv", "confidence,x,y\n0.9,10,3000\n", "detections", EvaluationError),
        ("lesions.geojson", '{"type": "FeatureCollection"}', "outlines", InputError),
        ("not_assessed.geojson", "[]", "not_assessed", InputError),
        ("regions.json", '{"format": 2}', "fields", ExportError),
        ("evidence.json", "{", "evidence", ExportError),
    ],
)
def test_damage_is_one_line_that_names_the_file(slide, folder, file, content, reads, error):
    (folder / "a/1" / file).write_text(content, encoding="latin-1")
    with pytest.raises(error) as caught:
        getattr(slide, reads)()
    assert file in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_of_two_heatmaps_are_not_taken_for_one(slide, folder):
    tifffile.imwrite(folder / "a/1/heatmap.ome.tif", np.ones((5, 4), np.float32))
    with pytest.raises(InputError, match=r"heatmap\.json: belongs to another heatmap"):
        slide.heatmap()
    tifffile.imwrite(folder / "a/1/heatmap.ome.tif", np.full((3, 4), np.nan, np.float32))
    with pytest.raises(InputError, match=r"heatmap\.ome\.tif: holds no score"):
        slide.heatmap()


@pytest.mark.parametrize("file", ["heatmap.json", "heatmap.ome.tif", "windows.npy", "regions.csv",
                                  "detections.csv", "left_out.npy", "lesions.geojson",
                                  "not_assessed.geojson"])  # fmt: skip
def test_a_file_that_is_gone_is_an_error(slide, folder, file):
    (folder / "a/1" / file).unlink()
    reads = {"heatmap.json": "heatmap", "heatmap.ome.tif": "heatmap", "lesions.geojson": "outlines"}
    with pytest.raises(WsiadError, match=file.replace(".", r"\.")):
        getattr(slide, reads.get(file, file.partition(".")[0]))()


def test_names_that_lead_out_of_the_folder_are_refused(folder):
    table = (folder / "slides.csv").read_text()
    (folder.parent / "secret").mkdir()
    results = Results(folder)
    for name in ("../secret", str(folder.parent / "secret"), "..", ""):
        with pytest.raises(InputError, match="holds no slide"):
            results.slide(name)
    write(folder / "slides.csv", table.replace("a/1,ok", "../secret,ok"))
    results = Results(folder)
    with pytest.raises(InputError, match="cannot be used as a name"):
        results.slide("../secret")
    with pytest.raises(InputError, match="cannot be used as a name"):
        list(results)
    # Of such a name a slide fails: it has a row, and nothing else.
    write(folder / "slides.csv", table.replace("a/1,ok", "../secret,failed"))
    failed = next(iter(Results(folder)))
    assert failed.folder.parent == folder
    assert not failed.folder.exists()
    assert failed.facts() is None


def test_what_holds_no_results_is_refused(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for path, said in (
        (tmp_path / "empty", r"does not hold results: it has no slides\.csv. Make one"),
        (tmp_path / "none", "there is no such folder"),
        (tmp_path / "file", "is not a results folder, but a file"),
        (make_run(tmp_path / "run"), "is not a results folder, but a run"),
        ("", "the path of the results is empty"),
    ):
        with pytest.raises(InputError, match=said):
            Results(path)
    write(folder / "slides.csv", "no table")
    results = Results(folder)
    with pytest.raises(InputError, match=r"slides\.csv: is not a table of slides"):
        len(results)
    assert repr(results).endswith("its slides.csv cannot be read)")
    assert "is not a table" in results._repr_html_()


def test_a_folder_that_is_being_written_has_the_slides_that_are_done(folder):
    (folder / "slides.csv").unlink()
    begun = Results(folder)
    assert len(begun) == 0
    assert list(begun) == []
    assert begun
    assert repr(begun) == f"Results({str(folder)!r}, 0 slides)"
    write(folder / "slides.csv", f"{HEAD}\nb,ok,,1,1,1,0,0.5,0.5,9,9\n")
    (folder / ".slides.csv.lock").touch()
    (slide,) = Results(folder)
    assert slide.name == "b"
    with pytest.raises(InputError, match=r"heatmap\.ome\.tif"):
        slide.heatmap()
    (folder / "run.json").unlink()
    with pytest.raises(InputError, match="does not hold results"):
        _ = Results(folder).facts


def test_500_slides_are_shown_in_a_line_and_20_rows(folder):
    rows = [f'<b>s{n:03},ok,"a ""&"" b",{n}.5,1,5,0,0.5,0.5,9,9' for n in range(500)]
    write(folder / "slides.csv", "\n".join([HEAD, *rows]) + "\n")
    results = Results(folder)
    assert repr(results) == f"Results({str(folder)!r}, 500 slides: 500 ok)"
    assert repr(results.slides) == "ResultRows(500 slides: 500 ok)"
    assert repr(results.slide("<b>s007")) == "SlideResults('<b>s007': ok, score 7.5, 0 regions)"
    page = results._repr_html_()
    assert page.count("<tr>") == 1 + 20
    assert "and 480 more" in page
    assert "&lt;b&gt;s019" in page
    assert "<b>" not in page
    assert "a &quot;&amp;&quot; b" in page
    assert "more" not in results.slides[:20]._repr_html_()


def test_a_slide_is_shown_with_its_picture(slide, folder):
    assert "<img" not in slide._repr_html_()
    Image.new("RGB", (8, 8)).save(folder / "a/1/thumbnail.jpg")
    assert slide._repr_html_().count('<img src="data:image/jpeg;base64,') == 1
    assert "nothing there" in Results(folder).slide("b")._repr_html_()


def test_rows_become_a_data_frame(folder):
    pytest.importorskip("pandas")
    frame = Results(folder).slides.to_frame()
    assert list(frame["slide"]) == ["a/1", "b", "c"]
    assert frame["score_max"].dtype == "float64"
    assert frame["width"].dtype == "Int64"
    assert frame["regions"].isna().tolist() == [False, True, True]
    assert frame.loc[0, "score_top_k_mean"] == 9.25
    assert list(frame.columns)[:3] == ["slide", "status", "reason"]
    assert len(Results(folder).slides[:0].to_frame()) == 0


def test_without_pandas_a_data_frame_is_a_clear_error(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InputError, match="need pandas, which is not installed"):
        Results(folder).slides.to_frame()


def test_the_path_may_be_a_text_everywhere(tmp_path):
    path = make_run(tmp_path / "run")
    run = wsiad.RunFolder(str(path))
    assert run == wsiad.RunFolder(path)
    assert repr(run) == f"RunFolder({str(path)!r}, channel, complete)"
    assert wsiad.RunFolder.open(str(path)).record().detector == "channel"
    (tmp_path / "none").mkdir()
    none = str(tmp_path / "none")
    assert repr(wsiad.RunFolder(none)) == f"RunFolder({none!r}, not complete)"
    with pytest.raises(WsiadError, match="is not a run, but holds one"):
        wsiad.RunFolder(tmp_path)
    (path / "run.json").write_text("{")
    assert repr(run) == f"RunFolder({str(path)!r}, its run.json cannot be read)"
    with pytest.raises(WsiadError, match="is empty"):
        wsiad.RunFolder("")
    assert wsiad.Detector.__name__ == "Detector"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Results of ``wsiad heatmap`` at a scale that is no whole number of level-0 pixels."""
    folder = tmp_path_factory.mktemp("made")
    image = stained(700, 900, seed=1) // 4 + 20
    image[320:384, 512:640, 0] = 240
    write_tiff(folder / "s.tif", image, mpp=0.37)
    return score_channel(folder, folder / "s.tif")


def test_what_heatmap_wrote_is_read_to_the_last_bit(made):
    slide = Results(made).slide("s")
    heatmap = slide.heatmap()
    group = zarr.open_group(made / "s/heatmap.ome.zarr", mode="r")
    stated = group.attrs["wsiad"]
    place = heatmap.placement
    assert (place.x, place.y) == (stated["level0_x"], stated["level0_y"])
    assert place.scale_x == stated["level0_px_per_pixel_x"]
    assert place.scale_y == stated["level0_px_per_pixel_y"]
    assert place.scale_x % 1
    np.testing.assert_array_equal(heatmap.scores, group["0"][:])
    assert heatmap.spacing.x == stated["level0_um_per_px_x"]
    assert (heatmap.slide_size.width, heatmap.slide_size.height) == (900, 700)
    np.testing.assert_array_equal(slide.windows(), np.load(made / "s/windows.npy"))
    with (made / "s/regions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [repr(region.max_score) for region in slide.regions()] == [
        row["max_score"] for row in rows
    ]
    assert [shape.name for shape in slide.outlines()][:1] == ["wsiad 1"]
    assert len(slide.detections()) == slide.row.detections
    assert slide.fields()[0].image.is_file()
    assert slide.evidence()[0].tile.is_file()
    assert slide.facts()["row"]["score_max"] == pytest.approx(np.nanmax(heatmap.scores))


def test_a_map_whose_file_states_another_place_is_refused(made, monkeypatch):
    slide = Results(made).slide("s")
    text = (made / "s/heatmap.json").read_text()
    values = json.loads(text)
    values["level0_rectangle"]["x"] += 1
    try:
        (made / "s/heatmap.json").write_text(json.dumps(values))
        with pytest.raises(InputError, match="belongs to another heatmap"):
            slide.heatmap()
    finally:
        (made / "s/heatmap.json").write_text(text)


def test_reading_results_imports_nothing_heavy():
    code = (
        "import sys, wsiad; wsiad.Results; print(*(m for m in"
        " ('torch', 'scipy', 'skimage', 'matplotlib', 'zarr') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_a_score_has_all_its_digits(folder, slide):
    assert slide.row.score_max == 10.5
    assert slide.score() == 10.5000000001
    assert slide.score("top_k_mean") == 9.25  # of which the record says nothing
    assert wsiad.Results(folder).slide("b").score() is None
    assert scored_slides(folder, score="max")["a/1"].score == 10.5000000001
    table = folder / "slides.csv"
    table.write_text(table.read_text().replace("10.5,", "11.5,"))
    assert wsiad.Results(folder).slide("a/1").score() == 11.5
