"""ASAP: a map whose ratios are whole as ASAP divides, and annotations that read back."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
import tifffile
from scipy import ndimage

from support.builders import make_heatmap
from wsiad.annotations import Role, read_annotations
from wsiad.core.errors import ExportError
from wsiad.core.geometry import PixelMap, Size
from wsiad.exports.asap import UNSCORED, whole_step, write_annotations, write_likelihood_map
from wsiad.heatmaps.outline_simplification import default_tolerance, simplify
from wsiad.heatmaps.regions import find_regions
from wsiad.pictures.colour_scale import ColourScale

SCALE = ColourScale.from_healthy([0.0, 0.25, 0.5, 0.75])  # upper end at 1


def heatmap_of(scores, *, pitch=(64.0, 64.0), corner=(0.0, 0.0), size=None):
    return make_heatmap(scores, PixelMap(*corner, *pitch), slide="a b", size=size)


def accepted_scale(slide, image):
    """What ASAP makes of a map's dimensions, both in whole numbers; None where it refuses."""
    x, y = slide.width // image[1], slide.height // image[0]
    return x if x == y else None


@pytest.mark.parametrize("seed", range(200))
def test_a_step_is_one_that_asap_takes_and_the_largest(seed):
    rng = np.random.default_rng(seed)
    slide = Size(*(int(v) for v in rng.integers(20, 120_000, 2)))
    most = float(rng.uniform(1, 2500))
    step = whole_step(slide, most=most)
    assert 1 <= step <= most
    taken = [
        s
        for s in range(1, int(most) + 1)
        if s <= min(slide.width, slide.height)
        and accepted_scale(slide, (slide.height // s, slide.width // s)) == s
    ]
    assert step == max(taken)
    assert step >= min(int(most), int(min(slide.width, slide.height) ** 0.5))


@pytest.mark.parametrize(
    ("pitch", "corner"),
    [((64.0, 64.0), (0.0, 0.0)), ((61.7, 58.3), (33.4, 91.8)), ((130.3, 127.1), (-20.0, 5.5))],
)
def test_a_map_lies_where_the_heatmap_does(tmp_path, pitch, corner):
    """Edges of what is scored 1 are within half a step of where the heatmap has them."""
    scores = np.zeros((40, 50), np.float32)
    scores[10:17, 20:33] = 1
    heatmap = heatmap_of(scores, pitch=pitch, corner=corner, size=Size(9001, 8003))
    path = tmp_path / "a b_likelihood_map.tif"
    step = write_likelihood_map(heatmap, path, scale=SCALE)
    image = tifffile.imread(path)
    assert accepted_scale(heatmap.slide_size, image.shape) == step
    assert step > min(pitch) / 2
    for axis, (first, last) in enumerate([(20, 33), (10, 17)]):
        marked = np.flatnonzero((image == 1).any(axis=axis))
        wanted = np.array([first, last]) * pitch[axis] + corner[axis]
        found = np.array([marked[0], marked[-1] + 1]) * step
        assert np.abs(found - wanted).max() <= step / 2


def test_every_level_states_the_ends_of_the_colours_and_not_of_its_pixels(tmp_path):
    """ASAP takes 0 and 255 where a map states none, and relative colours show nothing then."""
    scores = np.full((900, 700), 0.25, np.float32)  # 0.25 of the scale at most
    path = tmp_path / "a b_likelihood_map.tif"
    write_likelihood_map(heatmap_of(scores), path, scale=SCALE)
    with tifffile.TiffFile(path) as tiff:
        assert len(tiff.pages) == 2
        for page in tiff.pages:
            low, high = page.tags["SMinSampleValue"], page.tags["SMaxSampleValue"]
            assert (low.code, high.code) == (340, 341)
            assert low.dtype == high.dtype == tifffile.DATATYPE.FLOAT
            assert (low.value, high.value) == (0.0, 1.0)
            assert page.asarray().max() < 1


def test_where_the_pitch_is_a_whole_step_pixels_are_the_same(tmp_path):
    scores = np.random.default_rng(0).random((70, 90)).astype(np.float32)
    scores[5:9, 3:8] = np.nan
    heatmap = heatmap_of(scores)
    path = tmp_path / "s_likelihood_map.tif"
    assert write_likelihood_map(heatmap, path, scale=SCALE) == 64
    expected = np.where(np.isnan(scores), UNSCORED, np.clip(scores, 0, 1))
    np.testing.assert_allclose(tifffile.imread(path), expected, atol=1e-6)


def test_a_large_map_is_a_pyramid_of_tiles(tmp_path):
    scores = np.random.default_rng(0).random((700, 1300)).astype(np.float32)
    for name in "ab":
        write_likelihood_map(
            heatmap_of(scores, pitch=(16.0, 16.0)), tmp_path / f"{name}_likelihood_map.tif",
            scale=SCALE,
        )  # fmt: skip
    one, two = (tmp_path / f"{name}_likelihood_map.tif" for name in "ab")
    assert one.read_bytes() == two.read_bytes()
    with tifffile.TiffFile(one) as tiff:
        assert [page.shape for page in tiff.pages] == [(700, 1300), (350, 650), (175, 325)]
        for level, page in enumerate(tiff.pages):
            assert page.is_tiled
            assert (page.tilewidth, page.tilelength) == (512, 512)
            assert page.compression == tifffile.COMPRESSION.LZW
            assert (page.dtype, page.sampleformat) == (np.float32, 3)
            assert page.predictor == 1
            assert page.subfiletype == int(level > 0)
        centimetre = tiff.pages[0].tags["XResolution"].value
        assert centimetre[0] / centimetre[1] == pytest.approx(1e4 / (16 * 0.25))
        assert 0 <= tiff.pages[0].asarray().min() <= tiff.pages[0].asarray().max() <= 1


def test_asap_finds_it_by_its_name_only(tmp_path):
    with pytest.raises(ExportError):
        write_likelihood_map(heatmap_of(np.ones((3, 3))), tmp_path / "a.tif", scale=SCALE)
    with pytest.raises(ExportError):
        write_annotations([], tmp_path / "a.txt")
    assert not list(tmp_path.iterdir())


def regions_of(scores, *, tolerance=None):
    heatmap = heatmap_of(scores, pitch=(61.7, 58.3), corner=(33.4, 91.8))
    found = find_regions(heatmap, threshold=0.5, limit=10_000).kept
    wanted = default_tolerance(heatmap) if tolerance is None else tolerance
    return [
        simplify(r, tolerance=wanted, spacing=heatmap.spacing, bounds=heatmap.bounds)
        for r in found
    ]  # fmt: skip


def rings():
    """Rings within rings, and an island beside another in the innermost hole."""
    y, x = np.mgrid[:60, :60]
    radius = np.hypot(x - 30, y - 30)
    scores = ((radius < 28) & (radius > 22)) | ((radius < 17) & (radius > 12))
    scores[28:33, 24:28] = scores[29:32, 32:35] = True
    return scores.astype(np.float32)


@pytest.mark.parametrize("tolerance", [0.0, None])
@pytest.mark.parametrize(
    "scores",
    [
        rings(),
        np.random.default_rng(0).random((30, 30)),
        ndimage.gaussian_filter(np.random.default_rng(1).normal(size=(80, 80)), 2) * 5 + 0.5,
    ],
    ids=["rings", "noise", "blobs"],
)
def test_annotations_read_back_to_the_same_area(tmp_path, scores, tolerance):
    regions = regions_of(scores, tolerance=tolerance)
    path = tmp_path / "annotations.xml"
    write_annotations(regions, path, percentiles=[99.5] * len(regions))
    back = read_annotations(path)
    assert not back.ignored
    wanted = shapely.union_all([region.polygon for region in regions])
    assert shapely.symmetric_difference(back.tumour(), wanted).area < 1e-4 * wanted.area
    assert len(back.with_role(Role.TUMOUR)) == len(regions)
    assert all(not outline.holes for outline in back.outlines)
    first = back.outlines[0]
    assert first.group == "Anomaly"
    assert first.name == f"wsiad 1: score {regions[0].max_score:.6g}, percentile 99.5"


def test_no_regions_are_a_file_without_annotations(tmp_path):
    write_annotations([], tmp_path / "annotations.xml")
    assert not read_annotations(tmp_path / "annotations.xml").outlines
    with pytest.raises(ExportError, match="1 percentile for"):
        write_annotations([], tmp_path / "b.xml", percentiles=[1.0])
