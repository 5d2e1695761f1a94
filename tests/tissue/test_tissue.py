"""Tissue masks with their guards, coverage and quality."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely import box
from shapely.ops import unary_union
from skimage.filters import threshold_otsu

from support.builders import ArraySlide, stained
from wsiad.core.geometry import PixelMap
from wsiad.tissue.artefacts import is_black, is_pen, saturation
from wsiad.tissue.mask import coverage, find_tissue, otsu_threshold, segment
from wsiad.tissue.quality import measure
from wsiad.tissue.tissue_options import TissueOptions

OPTIONS = TissueOptions(min_area_um2=10_000, max_hole_um2=10_000)
GLASS = 243


def field(height=120, width=160, *, colour=None, level=GLASS, seed=0):
    """Glass with a rectangle of tissue in rows 30–90, columns 40–120 (at 8 µm/px)."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), level, float)
    image[30:90, 40:120] = stained(60, 80, seed=seed) if colour is None else colour
    return np.clip(image + rng.normal(0, 1.5, image.shape), 0, 255).astype(np.uint8)


@given(
    counts=st.lists(st.integers(0, 10**6), min_size=2, max_size=256).filter(
        lambda counts: sum(count > 0 for count in counts) > 1
    )
)
@settings(max_examples=200, deadline=None)
def test_the_threshold_is_otsus_as_scikit_image_has_it(counts):
    counts, values = np.array(counts), np.linspace(0, 1, len(counts))
    assert otsu_threshold(counts, values) == threshold_otsu(hist=(counts, values))


def run(image, valid=None, options=OPTIONS):
    valid = np.ones(image.shape[:2], bool) if valid is None else valid
    return segment(image, valid, mpp=8.0, options=options)


def truth():
    mask = np.zeros((120, 160), bool)
    mask[30:90, 40:120] = True
    return mask


def agreement(mask, expected):
    return (mask & expected).sum() / (mask | expected).sum()


def test_tissue_on_glass():
    mask, threshold, pen, *_ = run(field())
    assert agreement(mask, truth()) > 0.95
    assert 0.05 <= threshold <= 0.15
    assert pen < 0.01


def test_pale_tissue():
    assert agreement(run(field(colour=(236, 222, 232)))[0], truth()) > 0.95


def test_yellowish_glass():
    image = field()
    image[~truth()] = np.clip(image[~truth()] * (1.0, 0.985, 0.95), 0, 255)
    assert agreement(run(image)[0], truth()) > 0.95


def test_empty_slide_has_no_tissue():
    assert not run(field(colour=GLASS))[0].any()
    assert not run(np.full((50, 50, 3), 255, np.uint8))[0].any()


def test_all_tissue_slide_is_all_tissue():
    """Otsu alone would split the tissue in two and throw the paler half away."""
    image = cv2.blur(stained(120, 160), (5, 5))
    assert run(image)[0].mean() > 0.98


@pytest.mark.parametrize("ink", [(20, 120, 60), (40, 90, 200), (215, 25, 40), (30, 30, 32)])
def test_pen_is_not_tissue(ink):
    image = field()
    cv2.circle(image, (140, 20), 12, ink, -1)
    image[60:64, :] = ink
    mask, _, share, *_ = run(image)
    assert share > 0.01
    assert not mask[8:32, 128:152].any()
    assert not mask[60:64].any()
    assert agreement(mask, truth()) > 0.75


@pytest.mark.parametrize(
    "colour",
    [
        (180, 110, 170),
        (90, 60, 130),
        (220, 140, 180),
        (200, 80, 100),
        (75, 65, 140),
        (60, 40, 90),
        (240, 220, 232),
        (190, 60, 90),
    ],
)
def test_stained_tissue_is_not_taken_for_pen(colour):
    assert not is_pen(np.array(colour, np.uint8))


def test_black_border_and_missing_pixels_are_not_tissue():
    image, valid = field(), np.ones((120, 160), bool)
    image[:, :20] = 0
    image[100:, :] = (200, 60, 160)
    valid[100:, :] = False
    mask = run(image, valid)[0]
    assert not mask[:, :20].any()
    assert not mask[100:].any()
    assert agreement(mask, truth()) > 0.95


def test_small_pieces_go_and_small_holes_fill():
    image = field()
    image[5:10, 5:10] = (170, 90, 160)  # 25 px = 1600 µm²
    image[55:59, 70:74] = GLASS
    mask = run(image)[0]
    assert not mask[:12, :12].any()
    assert mask[50:65, 65:80].all()
    large_hole = field()
    large_hole[45:75, 60:90] = GLASS
    assert not run(large_hole)[0][50:70, 65:85].any()


def test_mask_of_a_slide_is_placed_and_does_not_depend_on_its_pyramid():
    image = np.kron(field(), np.ones((4, 4, 1), np.uint8))
    flat = find_tissue(ArraySlide(image, mpp=2.0), OPTIONS)
    pyramid = find_tissue(ArraySlide(image, mpp=2.0, levels=3), OPTIONS)
    assert flat.placement == PixelMap(0, 0, 4, 4)
    np.testing.assert_array_equal(flat.mask, pyramid.mask)
    np.testing.assert_array_equal(flat.mask, run(field())[0])


def test_mask_read_in_pieces_equals_the_whole(monkeypatch):
    slide = ArraySlide(np.kron(field(), np.ones((4, 4, 1), np.uint8)), mpp=2.0)
    whole = find_tissue(slide, OPTIONS)
    monkeypatch.setattr("wsiad.tissue.mask._BAND_PX", 16 * 400)
    before = len(slide.reads)
    pieces = find_tissue(slide, OPTIONS)
    assert len(slide.reads) - before > 10
    np.testing.assert_array_equal(pieces.mask, whole.mask)


boxes = st.tuples(st.floats(-20, 120), st.floats(-20, 120), st.floats(0.5, 90), st.floats(0.5, 90))


@given(st.lists(boxes, min_size=1, max_size=5), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_coverage_equals_polygon_area(rectangles, seed):
    mask = np.random.default_rng(seed).random((9, 7)) < 0.5
    place = PixelMap(3.5, -2.0, 11.0, 13.0)
    cells = [
        box(*place.to_level0(float(c), float(r)), *place.to_level0(c + 1.0, r + 1.0))
        for r, c in np.argwhere(mask)
    ]
    tissue = unary_union(cells)
    expected = [
        tissue.intersection(box(x, y, x + w, y + h)).area / (w * h) for x, y, w, h in rectangles
    ]
    got = coverage(mask, place, np.array(rectangles, float))
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_quality_columns():
    sharp = np.tile(stained(64, 64), (1, 1, 1, 1)).reshape(1, 64, 64, 3)
    blurred = cv2.GaussianBlur(sharp[0], (0, 0), 3)[None]
    half_black = sharp.copy()
    half_black[:, :32] = 0
    penned = sharp.copy()
    penned[:, :, :16] = (20, 120, 60)
    got = measure(np.concatenate([sharp, blurred, half_black, penned]))
    assert got["sharpness"][0] > 20 * got["sharpness"][1]
    assert got["black"].tolist() == [0, 0, 0.5, 0]
    assert got["pen"][3] == pytest.approx(0.25, abs=0.02)
    luma = cv2.cvtColor(sharp[0], cv2.COLOR_RGB2GRAY).astype(float)
    laplacian = luma[2:, 1:-1] + luma[:-2, 1:-1] + luma[1:-1, 2:] + luma[1:-1, :-2]
    laplacian -= 4 * luma[1:-1, 1:-1]
    assert got["sharpness"][0] == pytest.approx(laplacian.var(), rel=1e-4)


def test_colours_of_tiles_are_those_of_every_fourth_row():
    tiles = np.random.default_rng(0).integers(0, 256, (3, 30, 21, 3), dtype=np.uint8)
    tiles[1] //= 16
    got, rows = measure(tiles), tiles[:, ::4]
    axes = (1, 2)
    np.testing.assert_allclose(got["saturation"], saturation(rows).mean(axis=axes), atol=1e-5)
    np.testing.assert_allclose(got["pen"], is_pen(rows).mean(axis=axes), rtol=1e-6)
    np.testing.assert_allclose(got["black"], is_black(rows).mean(axis=axes), rtol=1e-6)
    assert got["pen"].min() > 0
    assert got["black"].max() > 0


def test_black():
    assert is_black(np.array([[20, 20, 20], [21, 0, 0]], np.uint8)).tolist() == [True, False]


def test_pen_black_and_saturation_of_every_colour_follow_their_definitions():
    # Every third level of each channel, and the ends: 86³ colours.
    levels = np.append(np.arange(0, 255, 3), 255).astype(np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels), axis=-1)
    r, g, b = (colours[..., channel].astype(int) for channel in range(3))
    high, low = np.maximum(np.maximum(r, g), b), np.minimum(np.minimum(r, g), b)
    spread = high - low
    cold = (g == high) & (6 * (r - b) <= 5 * spread)
    cold |= (b == high) & (r == low) & (4 * (g - r) >= spread)
    pen = cold & (4 * spread > high)
    pen |= (r == high) & (100 * spread > 72 * high) & (high > 130) & (abs(g - b) < 40)
    pen |= (high < 70) & (spread < 18)
    np.testing.assert_array_equal(is_pen(colours), pen)
    np.testing.assert_array_equal(is_pen(colours[:, ::2]), pen[:, ::2])
    np.testing.assert_array_equal(is_black(colours), high <= 20)
    np.testing.assert_allclose(saturation(colours), spread / np.maximum(high, 1), rtol=1e-6)
    assert is_pen(np.empty((0, 5, 3), np.uint8)).shape == (0, 5)


def textured(colour, seed=0):
    """Tissue of one colour, in which cells differ as they do at 8 µm/px."""
    spread = np.random.default_rng(seed).normal(0, 12, (60, 80, 1))
    return np.array(colour) + spread


@pytest.mark.parametrize(
    "colour",
    [
        (185, 45, 55),
        (225, 55, 85),
        (120, 170, 200),
        (70, 160, 200),
        (98, 122, 165),
        (110, 175, 140),
    ],
)
def test_tissue_with_the_colour_of_a_pen_is_tissue(colour):
    found = run(field(colour=textured(colour)))
    assert agreement(found.mask, truth()) > 0.95
    assert found.pen_share < 0.002


@pytest.mark.parametrize("ink", [(40, 90, 200), (215, 25, 40), (20, 120, 60), (30, 30, 32)])
def test_ink_beside_tissue_of_its_colours_is_found(ink):
    image = field(colour=textured((120, 170, 200)))
    cv2.line(image, (10, 10), (100, 18), ink, 5)
    found = run(image)
    assert not found.mask[:26].any()
    assert agreement(found.mask, truth()) > 0.95


TINTS = [(255, 240, 190), (255, 229, 196), (214, 224, 240), (190, 215, 255), (255, 240, 246)]


@pytest.mark.parametrize("fill", [255, 0])
@pytest.mark.parametrize("tint", TINTS)
def test_tinted_glass_beside_filling_is_glass(tint, fill):
    image = np.rint(field() * (np.array(tint) / 255)).astype(np.uint8)
    assert agreement(run(image).mask, truth()) > 0.95
    for width in (1, 3, 20, 200):
        for before, after in ((0, width), (width, 0), (width, width)):
            sides = ((before, after), (before, after), (0, 0))
            mask = run(np.pad(image, sides, constant_values=fill)).mask
            expected = np.pad(truth(), sides[:2])
            assert agreement(mask, expected) > 0.95


def test_filling_within_tissue_is_not_tissue():
    image = field()
    image[50:62, 60:76] = 255
    mask = run(image).mask
    assert not mask[51:61, 61:75].any()
    assert agreement(mask, truth() & (image < 255).any(axis=-1)) > 0.93


def test_white_glass_is_glass_though_it_is_constant():
    image = field()
    image[~truth()] = 255
    assert agreement(run(image).mask, truth()) > 0.95


@pytest.mark.parametrize("width", [2, 3, 40])
def test_filling_that_jpeg_changed_is_not_glass(width):
    image = np.rint(field() * (np.array((255, 246, 229)) / 255)).astype(np.uint8)
    image[:, :width] = (255, 255, 254)
    image[:, width] = (252, 249, 244)
    expected = truth()
    expected[:, : width + 1] = False
    assert agreement(run(image).mask, expected) > 0.95
