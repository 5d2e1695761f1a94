"""Thresholds on quality: what is dropped, kept, trained on and not assessed, and no more."""

import csv
import json
import shutil

import cv2
import numpy as np
import openslide
import pytest
import zarr
from safetensors.numpy import load_file

import wsiad
from support.builders import stained, write_tiff
from support.runs import make_run, use_channel
from support.scored_slides import read_heatmap
from support.stores import content
from wsiad.core.config import build
from wsiad.core.errors import ConfigError, InputError, StoreMismatchError
from wsiad.store.tile_store import GROUPS, TileStore
from wsiad.tiling.preparation import Preparation
from wsiad.tissue.quality import Reason, count_reasons, judge, measure
from wsiad.tissue.tissue_options import QualityThresholds
from wsiad.verbs.tile import TileConfig

TISSUE = {"min_area_um2": 0, "smooth_um": 0, "remove_pen": False, "saturation_min": 0,
          "saturation_max": 0}  # fmt: skip
PLAIN = {"mpp": 0.5, "tile": 32, "stain": {"method": "none"}, "tissue": TISSUE, "quiet": True,
         "min_coverage": 0.01}  # fmt: skip
GAUSSIAN = {"detector": "gaussian", "weights": "random", "options": {"places": 4}, "quiet": True}
LIMITS = {"min_sharpness": 400, "max_pen": 0.2, "max_black": 0.3, "min_saturation": 0.1}


def spoilt(height=320, width=416, *, seed=0):
    """Tissue with a blurred, a green, a black and a pale corner, and one of two faults."""
    image = stained(height, width, seed=seed)
    image[:96, :128] = cv2.GaussianBlur(image[:96, :128], (0, 0), 4)
    image[-96:, :80] = (20, 140, 60)
    image[-70::2, -90:] = 3  # every other row: the mask, at 8 µm/px, does not see black
    pale = image[:64, -96:].astype(float) * 0.06 + 235
    image[:64, -96:] = np.rint(pale)
    image[128:160, 128:144] = (20, 140, 60)  # pen and black on one tile
    image[128:160:2, 144:160] = 3
    return image


@pytest.fixture
def slide(tmp_path):
    (tmp_path / "slides").mkdir()
    path = tmp_path / "slides" / "s.tif"
    return write_tiff(path, spoilt(), mpp=0.5, levels=1)


def tile(slides, out, **values):
    return wsiad.tile(slides=slides, out=out, **{**PLAIN, **values})


def by_hand(image, limits, edge=32):
    """Tiles (row, column) by their reason, measured and compared one by one."""
    found = {}
    for row in range(image.shape[0] // edge):
        for column in range(image.shape[1] // edge):
            part = image[row * edge : row * edge + edge, column * edge : column * edge + edge]
            values = {name: float(v[0]) for name, v in measure(part[None]).items()}
            if values["black"] > limits.get("max_black", 2):
                found[row, column] = "black"
            elif values["pen"] > limits.get("max_pen", 2):
                found[row, column] = "pen"
            elif values["saturation"] < limits.get("min_saturation", -1):
                found[row, column] = "saturation"
            elif values["sharpness"] < limits.get("min_sharpness", -1):
                found[row, column] = "sharpness"
    return found


@pytest.mark.parametrize("shape", [(1, 1), (2, 9), (3, 3), (4, 1026), (3, 1027), (5, 4200)])
def test_sharpness_is_the_variance_of_the_laplacian_however_wide(shape):
    y, x = np.indices(shape)
    for luma in ((x + y) % 2 * 255, np.random.default_rng(0).integers(0, 256, shape)):
        sharp = measure(np.repeat(luma[None, ..., None], 3, axis=3).astype(np.uint8))["sharpness"]
        around = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:]
        expected = (around - 4 * luma[1:-1, 1:-1]).var() if around.size else 0
        assert sharp[0] == pytest.approx(expected)


def left_out_of(stored):
    left = stored.left_out
    return {
        (int(r), int(c)): Reason(why).word
        for r, c, why in zip(left.rows, left.columns, left.reasons, strict=True)
    }


# Thresholds


def test_judge_is_what_the_documentation_says():
    rng = np.random.default_rng(0)
    columns = {name: rng.random(400).astype(np.float32).round(1) for name in
               ("sharpness", "saturation", "pen", "black")}  # fmt: skip
    limits = {"min_sharpness": 0.3, "min_saturation": 0.2, "max_pen": 0.8, "max_black": 0.9}
    for some in ({}, {"max_pen": 0.8}, limits):
        reasons = judge(columns, QualityThresholds(**some))
        for index, reason in enumerate(reasons):
            at = {name: round(float(values[index]), 1) for name, values in columns.items()}
            expected = ""
            if "min_sharpness" in some and at["sharpness"] < 0.3:
                expected = "sharpness"
            if "min_saturation" in some and at["saturation"] < 0.2:
                expected = "saturation"
            if "max_pen" in some and at["pen"] > 0.8:
                expected = "pen"
            if "max_black" in some and at["black"] > 0.9:
                expected = "black"
            assert Reason(reason).word == (expected or "usable")
        assert sum(count_reasons(reasons).values()) == np.count_nonzero(reasons)


@pytest.mark.parametrize(
    ("quality", "message"),
    [
        ({"min_sharpnes": 1}, "did you mean|unknown key"),
        ({"max_pen": 1.5}, "quality.max_pen"),
        ({"min_sharpness": -1}, "quality.min_sharpness"),
        ({"min_saturation": float("nan")}, "quality.min_saturation"),
        ({"action": "delete"}, "quality.action"),
    ],
)
def test_thresholds_that_make_no_sense(quality, message):
    with pytest.raises(ConfigError, match=message):
        build(TileConfig, {"slides": "a", "out": "b", "mpp": 1, "tile": 32, "quality": quality})


def test_a_store_without_thresholds_is_what_it_was():
    """The digest of the version before there were thresholds."""
    plain = Preparation(mpp=0.5, tile=256)
    before = "sha256:d0bbfbc22fbd1d02ec62a188e63067c9587490980b317e647533c65affaed989"
    assert plain.digest({"a": 1}) == before
    assert Preparation(mpp=0.5, tile=256, quality={"action": "keep"}).digest({"a": 1}) == before
    assert Preparation(mpp=0.5, tile=256, quality={"max_pen": 1}).digest({"a": 1}) != before


# wsiad tile


def test_no_threshold_drops_nothing(slide, tmp_path):
    (row,) = tile(slide, tmp_path / "store").rows
    stored = TileStore(tmp_path / "store").slide("s")
    assert row.tiles == len(stored) == 130
    assert row.unusable == 0
    root = zarr.open_group(tmp_path / "store" / GROUPS, mode="r")
    assert "quality" not in root.attrs["wsiad"]["preparation"]
    assert set(root["s"].array_keys()) == {
        "tiles", "position", "lattice", "coverage", "sharpness", "saturation", "pen", "black",
        "mask",
    }  # fmt: skip
    assert "unusable" not in stored.facts


@pytest.mark.parametrize("limits", [LIMITS, {"max_pen": 0.2}, {"min_sharpness": 400}])
def test_what_fails_is_dropped_counted_and_placed(slide, tmp_path, limits):
    expected = by_hand(spoilt(), limits)
    assert 4 < len(expected) < 60
    (row,) = tile(slide, tmp_path / "store", quality=limits).rows
    stored = TileStore(tmp_path / "store").slide("s")
    assert left_out_of(stored) == expected
    kept = {tuple(place) for place in stored.column("lattice").tolist()}
    assert kept.isdisjoint(expected)
    assert len(kept) + len(expected) == 130
    words = list(expected.values())
    counts = {word: words.count(word) for word in ("black", "pen", "saturation", "sharpness")}
    assert stored.facts["unusable"] == counts
    assert row.unusable == len(expected)
    assert {w: getattr(row, f"unusable_{w}") for w in counts} == counts
    assert "not stored: " in row.reason
    run = json.loads((tmp_path / "store" / "run.json").read_text())
    assert run["unusable"] == counts
    with (tmp_path / "store" / "slides.csv").open() as file:
        (line,) = csv.DictReader(file)
    assert {w: int(line[f"unusable_{w}"]) for w in counts} == counts


def test_drop_is_keep_without_what_is_not_usable(slide, tmp_path):
    tile(slide, tmp_path / "drop", quality=LIMITS, stain={"method": "vahadane"})
    (row,) = tile(slide, tmp_path / "keep", quality={**LIMITS, "action": "keep"},
                  stain={"method": "vahadane"}).rows  # fmt: skip
    drop, keep = (TileStore(tmp_path / name).slide("s") for name in ("drop", "keep"))
    usable = keep.column("usable")
    assert usable.dtype == bool
    assert len(keep) == 130
    assert 0 < usable.sum() == len(drop) < 130
    np.testing.assert_array_equal(keep.tiles(0, 130)[usable], drop.tiles(0, len(drop)))
    for name in ("position", "lattice", "coverage", "sharpness", "saturation", "pen", "black"):
        np.testing.assert_array_equal(keep.column(name)[usable], drop.column(name))
    assert "usable" not in drop.group
    assert keep.facts["unusable"] == drop.facts["unusable"]
    places = {tuple(place) for place in keep.column("lattice")[~usable].tolist()}
    assert places == set(left_out_of(drop))
    assert "marked unusable" in row.reason
    assert not len(keep.left_out)


def test_a_slide_of_which_nothing_is_usable_says_so(slide, tmp_path):
    (row,) = tile(slide, tmp_path / "store", quality={"min_sharpness": 1e6}).rows
    assert (row.status, row.tiles, row.unusable_sharpness) == ("unusable", 0, 130)
    assert (tmp_path / "store" / "overviews" / "s.jpg").exists()
    with pytest.raises(InputError, match="no healthy slide"):
        wsiad.train(store=tmp_path / "store", out=tmp_path / "run", **GAUSSIAN)


def test_the_same_bytes_again_and_when_resumed(slide, tmp_path):
    for name in ("a", "b"):
        tile(slide, tmp_path / name, quality=LIMITS)
    a, b = (content(tmp_path / name) for name in ("a", "b"))
    names = {n for n in a if n.startswith((GROUPS, "overviews")) or n == "report.html"}
    assert {"overviews/s.jpg", "report.html"} < names
    assert {n: a[n] for n in names} == {n: b[n] for n in names}
    tile(slide, tmp_path / "a", quality=LIMITS)
    again = content(tmp_path / "a")
    assert {n: again[n] for n in names} == {n: b[n] for n in names}
    shutil.rmtree(tmp_path / "a" / GROUPS / "s")
    tile(slide, tmp_path / "a", quality=LIMITS)
    again = content(tmp_path / "a")
    assert {n: again[n] for n in names} == {n: b[n] for n in names}


def test_other_thresholds_are_another_store(slide, tmp_path):
    tile(slide, tmp_path / "store", quality={"max_pen": 0.2})
    with pytest.raises(StoreMismatchError, match=r"quality\.max_pen is 0\.2 in the store and 0\.3"):
        tile(slide, tmp_path / "store", quality={"max_pen": 0.3})
    with pytest.raises(StoreMismatchError, match=r"quality\.max_pen is 0\.2 in the store and None"):
        tile(slide, tmp_path / "store")


def test_a_store_of_before_there_were_thresholds(slide, tmp_path):
    """No overviews, no columns of counts in its table: it opens, resumes and trains."""
    tile(slide, tmp_path / "store")
    shutil.rmtree(tmp_path / "store" / "overviews")
    (tmp_path / "store" / "report.html").unlink()
    path = tmp_path / "store" / "slides.csv"
    with path.open() as file:
        rows = list(csv.DictReader(file))
    old = [name for name in rows[0] if not name.startswith(("unusable", "missing"))]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, old, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    result = tile(slide, tmp_path / "store")
    assert not result.failed
    assert result.rows[0].tiles == 130
    assert "There is no overview" in (tmp_path / "store" / "report.html").read_text()
    wsiad.train(store=tmp_path / "store", out=tmp_path / "run", **GAUSSIAN)


def test_pen_that_the_mask_leaves_out_is_remembered(slide, tmp_path):
    tile(slide, tmp_path / "with", tissue=TISSUE | {"remove_pen": True, "mpp": 4})
    pen = TileStore(tmp_path / "with").slide("s").column("pen_mask")
    mask = TileStore(tmp_path / "with").slide("s").column("mask")
    assert pen.shape == mask.shape
    assert pen[30:, :10].mean() > 0.9  # the green corner, at 8 pixels a pixel
    assert not (pen & mask).any()
    assert not pen[:8, 30:].any()


def test_the_border_of_a_scan_is_no_pen_mark(tmp_path):
    """Black and the grey of its edge have the colour of black ink."""
    image = stained(400, 400)
    image[:, :120] = 2
    image[:, 120:126] = np.linspace(2, 150, 6)[None, :, None]
    path = write_tiff(tmp_path / "s.tif", image, mpp=0.5, levels=1)
    tile(path, tmp_path / "store", tissue=TISSUE | {"remove_pen": True, "mpp": 4})
    assert "pen_mask" not in TileStore(tmp_path / "store").slide("s").group


# wsiad train


def train(store, out, **values):
    """Weights and record of a run."""
    wsiad.train(store=store, out=out, **GAUSSIAN, **values)
    weights = load_file(next(out.glob("*.safetensors")))
    return weights, json.loads((out / "run.json").read_text())


def test_training_honours_the_mark_and_its_own_thresholds(slide, tmp_path):
    """Dropped, kept and marked, or chosen when training: the same tiles, the same detector."""
    write_tiff(slide.with_name("t.tif"), spoilt(seed=1), mpp=0.5, levels=1)
    slides = slide.parent
    tile(slides, tmp_path / "drop", quality=LIMITS)
    tile(slides, tmp_path / "keep", quality={**LIMITS, "action": "keep"})
    tile(slides, tmp_path / "all")
    drop, _ = train(tmp_path / "drop", tmp_path / "r1")
    keep, record = train(tmp_path / "keep", tmp_path / "r2")
    chosen, _ = train(tmp_path / "all", tmp_path / "r3", quality=LIMITS)
    everything, plain = train(tmp_path / "all", tmp_path / "r4")
    # Who kept the tiles can change their mind without tiling again.
    lax = {"min_sharpness": 0, "max_pen": 1, "max_black": 1, "min_saturation": 0}
    again, _ = train(tmp_path / "keep", tmp_path / "r5", quality=lax)
    for name, values in drop.items():
        np.testing.assert_array_equal(values, keep[name])
        np.testing.assert_array_equal(values, chosen[name])
        np.testing.assert_array_equal(everything[name], again[name])
    assert any(not np.array_equal(values, everything[name]) for name, values in drop.items())
    counts = TileStore(tmp_path / "keep").slide("s").facts["unusable"]
    more = TileStore(tmp_path / "keep").slide("t").facts["unusable"]
    assert record["notes"]["tiles_not_used"] == {k: counts[k] + more[k] for k in counts}
    assert record["notes"]["thresholds"] == LIMITS
    assert "thresholds" not in plain["notes"]
    prepared = json.loads((tmp_path / "r3" / "preparation.json").read_text())["preparation"]
    assert prepared["quality"] == LIMITS | {"action": "drop"}
    prepared = json.loads((tmp_path / "r4" / "preparation.json").read_text())["preparation"]
    assert "quality" not in prepared


def test_thresholds_that_no_tile_passes(slide, tmp_path):
    tile(slide, tmp_path / "store")
    with pytest.raises(InputError, match=r"no tile of its healthy slides passes.*sharpness 130"):
        train(tmp_path / "store", tmp_path / "run", quality={"min_sharpness": 1e6})


def test_a_run_of_before_there_were_thresholds_is_still_complete(slide, tmp_path):
    tile(slide, tmp_path / "store")
    train(tmp_path / "store", tmp_path / "run")
    path = tmp_path / "run" / "config.yaml"
    lines = path.read_text().splitlines()
    start = lines.index("quality:")
    end = next(i for i in range(start + 1, len(lines)) if not lines[i].startswith(" "))
    path.write_text("\n".join(lines[:start] + lines[end:]) + "\n")
    again = wsiad.train(store=tmp_path / "store", out=tmp_path / "run", **GAUSSIAN)
    assert "complete already" in again.summary


# wsiad heatmap


@pytest.fixture
def score(monkeypatch, tmp_path):
    use_channel(monkeypatch)

    def run(slides, out, *, thresholds=None, **values):
        folder = tmp_path / f"run-{out}"
        if not folder.exists():
            make_run(folder, tissue=TISSUE, **({"quality": thresholds} if thresholds else {}))
        return wsiad.heatmap(run=folder, slides=slides, out=tmp_path / out, quiet=True, **values)

    return run


def test_windows_that_fail_are_shown_as_not_assessed_and_the_others_as_ever(slide, tmp_path, score):
    expected = by_hand(spoilt(), LIMITS)
    (whole,) = score(slide, "whole").rows
    (row,) = score(slide, "some", thresholds=LIMITS).rows
    assert whole.unusable == 0
    assert row.unusable == len(expected)
    assert row.tiles + row.unusable == whole.tiles == 130
    assert "not assessed" in row.reason
    (all_scores, place), (scores, there) = (read_heatmap(tmp_path / n / "s") for n in
                                            ("whole", "some"))  # fmt: skip
    assert place == there
    missing = np.zeros(all_scores.shape, bool)
    for cell in expected:
        missing[cell] = True
    np.testing.assert_array_equal(np.isnan(scores), missing)
    np.testing.assert_array_equal(scores[~missing], all_scores[~missing])
    table = np.load(tmp_path / "some" / "s" / "left_out.npy")
    found = {(int(w["y"] // 32), int(w["x"] // 32)): str(w["reason"]) for w in table}
    assert found == expected
    assert set(table["width"]) == set(table["height"]) == {32.0}
    page = (tmp_path / "some" / "report.html").read_text()
    assert f"{len(expected)} windows of 1 slide were not assessed" in page
    assert "not assessed" not in (tmp_path / "whole" / "report.html").read_text()
    with (tmp_path / "some" / "slides.csv").open() as file:
        assert next(csv.DictReader(file))["unusable"] == str(len(expected))


def test_qupath_is_told_what_was_not_assessed(slide, tmp_path, score):
    import shapely
    from shapely.geometry import shape

    from support.geojson_rules import check_collection
    from wsiad.core.geometry import Box

    expected = by_hand(spoilt(), LIMITS)
    score(slide, "out", thresholds=LIMITS)
    collection = json.loads((tmp_path / "out" / "s" / "not_assessed.geojson").read_text())
    check_collection(collection, bounds=Box(0, 0, 416, 320))
    for reason in ("black", "pen", "saturation", "sharpness"):
        marked = [f for f in collection["features"]
                  if f["properties"]["name"] == f"not assessed: {reason}"]  # fmt: skip
        area = shapely.union_all([shape(f["geometry"]) for f in marked])
        boxes = [shapely.box(c * 32, r * 32, c * 32 + 32, r * 32 + 32)
                 for (r, c), why in expected.items() if why == reason]  # fmt: skip
        truth = shapely.union_all(boxes)
        # Outlined on the mask's pixels of 16 level-0 pixels, of which 32 is a multiple.
        assert area.symmetric_difference(truth).area == pytest.approx(0, abs=1e-6)
        assert all(f["properties"]["classification"]["name"] == "Not assessed" for f in marked)


def test_thresholds_of_the_call_win_over_those_of_the_run(slide, tmp_path, score):
    (row,) = score(slide, "out", thresholds={"max_pen": 0.2}, quality={"min_sharpness": 400}).rows
    expected = by_hand(spoilt(), {"max_pen": 0.2, "min_sharpness": 400})
    assert row.unusable == len(expected)
    with pytest.raises(InputError, match="of other options"):
        score(slide, "out", thresholds={"max_pen": 0.2}, quality={"min_sharpness": 401})


@pytest.mark.parametrize("action", ["drop", "keep"])
def test_a_store_gives_what_its_slide_gives(slide, tmp_path, score, action):
    tile(slide, tmp_path / "store", quality={**LIMITS, "action": action})
    (direct,) = score(slide, "direct", thresholds=LIMITS).rows
    (stored,) = score(tmp_path / "store", "stored", thresholds=LIMITS).rows
    assert (stored.tiles, stored.unusable) == (direct.tiles, direct.unusable)
    a, b = (read_heatmap(tmp_path / name / "s")[0] for name in ("direct", "stored"))
    np.testing.assert_array_equal(a, b)
    one, other = (np.sort(np.load(tmp_path / name / "s" / "left_out.npy"), order=["y", "x"])
                  for name in ("direct", "stored"))  # fmt: skip
    np.testing.assert_array_equal(one, other)
    # What is not in the store is not assessed, whatever the run's thresholds are.
    (lax,) = score(tmp_path / "store", "lax").rows
    assert lax.unusable == (direct.unusable if action == "drop" else 0)
    assert lax.tiles + lax.unusable == 130


def test_windows_within_a_usable_tile_are_assessed_though_another_around_them_fails(
    tmp_path, score
):
    """Tiles that overlap: what one shows is not lost with its neighbour."""
    image = stained(128, 256)
    image[:, 64:100] = (20, 140, 60)
    path = write_tiff(tmp_path / "s.tif", image, mpp=0.5, levels=1)
    tile(path, tmp_path / "store", tile=64, stride=32, quality={"max_pen": 0.55})
    slide = TileStore(tmp_path / "store").slide("s")
    assert left_out_of(slide) == {(r, 2): "pen" for r in range(3)}
    (row,) = score(tmp_path / "store", "out", thresholds={"max_pen": 0.55}).rows
    table = np.load(tmp_path / "out" / "s" / "left_out.npy")
    # Windows of 32 px in column 2 lie within the usable tiles of column 1, those in
    # column 3 within those of column 3.
    assert len(table) == row.unusable == 0
    tile(path, tmp_path / "strict", tile=64, stride=32, quality={"max_pen": 0.05})
    assert set(left_out_of(TileStore(tmp_path / "strict").slide("s"))) == {
        (r, c) for r in range(3) for c in (1, 2, 3)
    }
    (row,) = score(tmp_path / "strict", "strict-out", thresholds={"max_pen": 0.05}).rows
    table = np.load(tmp_path / "strict-out" / "s" / "left_out.npy")
    assert {(int(w["y"]), int(w["x"])) for w in table} == {
        (y, x) for y in range(0, 128, 32) for x in (64, 96)
    }
    assert row.unusable == 8


def test_a_slide_of_which_nothing_was_assessed_is_not_negative(slide, tmp_path, score):
    (row,) = score(slide, "out", thresholds={"min_sharpness": 1e6}).rows
    assert (row.status, row.score_max, row.unusable) == ("unusable", None, 130)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "1 slide was not assessed at all" in page
    (tmp_path / "reference.csv").write_text("image,type\ns.tif,tumor\n")
    (tmp_path / "masks").mkdir()
    cv2.imwrite(str(tmp_path / "masks" / "s.png"), np.full((10, 13), 255, np.uint8))
    found = wsiad.evaluate(results=tmp_path / "out", reference=tmp_path / "reference.csv",
                           masks=tmp_path / "masks", out=tmp_path / "evaluated")  # fmt: skip
    assert found.figures.slide_auc.value is None
    assert found.summary.startswith(
        "1 of 1 slide has no score (1 unusable; 1 of them with tumour: s), left out of the figures"
    )
    assert "fail the quality thresholds" in found.summary


def test_pen_marks_on_the_slide_are_said_to_hide_it(slide, tmp_path, score, monkeypatch):
    """Without any threshold: the mask leaves pen out, so its windows are never planned."""
    folder = make_run(tmp_path / "pen", tissue=TISSUE | {"remove_pen": True, "mpp": 4},
                      min_coverage=0.5)  # fmt: skip
    (row,) = wsiad.heatmap(run=folder, slides=slide, out=tmp_path / "out", quiet=True).rows
    assert "pen marks hide" in row.reason
    found = json.loads((tmp_path / "out" / "s" / "not_assessed.geojson").read_text())["features"]
    assert {f["properties"]["name"] for f in found} == {"not assessed: pen"}
    overlay = cv2.imread(str(tmp_path / "out" / "s" / "overlay.png"))
    height = openslide.OpenSlide(slide).dimensions[1]
    per_px = overlay.shape[0] * 8 / height  # the picture of so small a slide is enlarged
    rows, columns = slice(int(32 * per_px), int(40 * per_px)), slice(0, int(8 * per_px))
    patch = overlay[rows, columns, ::-1].reshape(-1, 3)  # within the green corner
    assert (patch == (190, 70, 0)).all(axis=1).any()


def test_results_of_before_there_were_thresholds_are_taken_up(slide, tmp_path, score, monkeypatch):
    first = score(slide, "out")
    path = tmp_path / "out" / "s" / "slide.json"
    facts = json.loads(path.read_text())
    del facts["row"]["unusable"]
    path.write_text(json.dumps(facts))
    (tmp_path / "out" / "s" / "overview.jpg").unlink()
    table = tmp_path / "out" / "slides.csv"
    with table.open() as file:
        rows = list(csv.DictReader(file))
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(
            file, [n for n in rows[0] if n != "unusable"], extrasaction="ignore"
        )
        writer.writeheader()
        writer.writerows(rows)
    monkeypatch.setattr("wsiad.results.scoring.score_slide", None)
    again = wsiad.heatmap(run=tmp_path / "run-out", slides=slide, out=tmp_path / "out", quiet=True)
    assert again.rows == first.rows
