"""The overview of a slide: its geometry by pixel checks, its bounds, and bad names."""

import io
import itertools

import cv2
import numpy as np
import pytest
from PIL import Image

import wsiad
from support.builders import ArraySlide, noise, stained, write_tiff
from wsiad.core.geometry import Mpp, PixelMap, Spacing
from wsiad.pictures import drawing, overview
from wsiad.pictures.drawing import COLOURS, INK, KEPT, OUTLINE, borders, covered, pixel_edges
from wsiad.pictures.overview import MAX_BYTES, Overview, draw, overview_jpeg, slide_picture
from wsiad.stain.profile import reference_profile
from wsiad.store.tile_store import TileStore
from wsiad.tiling.plan import plan_slide
from wsiad.tiling.preparation import Preparation
from wsiad.tiling.stream import EXAMPLE_PX, Example, choose_examples, stream
from wsiad.tissue.quality import Reason


def some(**changes):
    """A slide of 6400 × 4800 level-0 pixels of 0.25 µm, thumbnail of 200 × 150."""
    mask = np.zeros((150, 200), bool)
    mask[30:120, 40:160] = True
    values = {
        "slide": "a",
        "thumbnail": np.full((150, 200, 3), 240, np.uint8),
        "mask": mask,
        "pen": None,
        "placement": PixelMap(0, 0, 32, 32),
        "spacing": Spacing(Mpp(0.25), Mpp(0.25)),
        "mpp": Mpp(0.5),
        "boxes": np.empty((0, 4)),
        "left_out": np.empty((0, 4)),
        "reasons": np.empty(0, np.uint8),
    }
    return Overview(**(values | changes))


def boxes_at(*corners, edge=512.0):
    return np.array([(x, y, edge, edge) for x, y in corners], np.float64).reshape(-1, 4)


# Drawing


@pytest.mark.parametrize("count", [0, 1, 7, 200])
def test_covered_and_borders_by_painting_each_box(count):
    rng = np.random.default_rng(count)
    corner = rng.integers(-30, 120, (count, 2))
    edges = np.concatenate([corner, corner + rng.integers(1, 40, (count, 2))], axis=1)
    expected, rims = np.zeros((2, 80, 100), bool)
    for left, top, right, bottom in edges.tolist():
        for y in range(max(0, top), min(80, bottom)):
            for x in range(max(0, left), min(100, right)):
                expected[y, x] = True
                rims[y, x] |= y in (top, bottom - 1) or x in (left, right - 1)
    np.testing.assert_array_equal(covered(edges, (80, 100)), expected)
    np.testing.assert_array_equal(borders(edges, (80, 100)), rims)


def test_boxes_smaller_than_a_pixel_do_not_vanish_and_neighbours_abut():
    placement = PixelMap(7, 3, 32.7, 32.7)
    small = np.array([(7 + i * 5.0, 3.0, 5.0, 5.0) for i in range(50)])
    edges = pixel_edges(small, placement)
    assert (edges[:, 2] > edges[:, 0]).all()
    assert covered(edges, (1, 8)).all()
    large = np.array([(i * 100.3, 0, 100.3, 100.3) for i in range(50)])
    edges = pixel_edges(large, placement)
    assert (edges[1:, 0] == edges[:-1, 2]).all()


def test_hatches_differ_without_colour():
    shown = []
    for reason in COLOURS:
        picture = np.full((40, 40, 3), 255, np.uint8)
        drawing.hatch(picture, np.ones((40, 40), bool), reason)
        shown.append((picture != 255).any(axis=2)[4:-4, 4:-4])
    for one, other in itertools.combinations(shown, 2):
        assert (one != other).mean() > 0.09
    assert all(0.05 < marks.mean() < 0.8 for marks in shown)


@pytest.mark.parametrize("at_most", [0.3, 1, 1.99, 2, 4.9, 5, 999, 1000, 77_000])
def test_nice_length(at_most):
    steps = [m * 10.0**p for p in range(-3, 7) for m in (1, 2, 5)]
    assert drawing.nice_length(at_most) == pytest.approx(max(s for s in steps if s <= at_most))


@pytest.mark.parametrize(("width", "um_per_px"), [(800, 2.0), (640, 0.9), (300, 31.0)])
def test_the_scale_bar_is_as_long_as_it_says(width, um_per_px):
    picture = drawing.scale_bar(np.full((400, width, 3), 200, np.uint8), um_per_px=um_per_px)
    row = (picture[400 - 14] == INK).all(axis=1)
    length = row.sum() * um_per_px
    nice = drawing.nice_length(width * um_per_px / 4)
    assert length == pytest.approx(nice, abs=um_per_px / 2)


def test_the_font_has_the_units():
    shown = {drawing.font(14).getmask(c).getbbox() is not None for c in "µ²·×…"}
    assert shown == {True}
    absent = bytes(drawing.font(14).getmask("\U000fffff"))
    assert all(bytes(drawing.font(14).getmask(c)) != absent for c in "µ²·×…é中"[:-1])


def test_text_is_cut_to_its_room():
    assert drawing.shortened("short", 14, 200) == "short"
    long = drawing.shortened("x" * 400, 14, 200)
    assert long.endswith("…")
    assert drawing.text_width(long, 14) <= 200 < drawing.text_width("x" + long, 14) + 8
    lines = drawing.wrapped("one two three four five six seven eight nine", 14, 100, lines=3)
    assert len(lines) == 3
    assert all(drawing.text_width(line, 14) <= 100 for line in lines)
    assert " ".join(drawing.wrapped("one two three four", 14, 60, lines=9)) == "one two three four"


# The slide


def test_what_is_left_out_is_hatched_where_it_lies_and_nowhere_else():
    left = boxes_at((1280, 960), (3200, 2560), (5000.4, 777.7))
    for reason in COLOURS:
        plain, placement = slide_picture(some())
        shown, there = slide_picture(
            some(left_out=left, reasons=np.full(3, reason, np.uint8), mask=some().mask)
        )
        assert there == placement
        changed = (plain != shown).any(axis=2)
        y, x = np.nonzero(np.ones(changed.shape, bool))
        level0_x, level0_y = placement.to_level0(x + 0.5, y + 0.5)
        inside = np.zeros(changed.shape, bool)
        for bx, by, w, h in left:
            hit = (level0_x > bx) & (level0_x < bx + w) & (level0_y > by) & (level0_y < by + h)
            inside |= hit.reshape(changed.shape)
        assert not (changed & ~inside).any()
        # The outline of the tissue is drawn on top of it.
        assert (inside & ~changed).mean() < 0.01
        assert (shown[inside] == COLOURS[reason]).all(axis=1).mean() > 0.1


def test_tiles_are_outlined_at_their_edges():
    box = boxes_at((2048, 1536))
    plain, placement = slide_picture(some())
    shown, _ = slide_picture(some(boxes=box))
    changed = (plain != shown).any(axis=2)
    y, x = np.nonzero(changed)
    left, top = placement.from_level0(2048.0, 1536.0)
    right, bottom = placement.from_level0(2048.0 + 512, 1536.0 + 512)
    assert (x.min(), y.min()) == (round(left), round(top))
    assert (x.max() + 1, y.max() + 1) == (round(right), round(bottom))
    assert not changed[y.min() + 2 : y.max() - 1, x.min() + 2 : x.max() - 1].any()


def test_the_tissue_is_outlined():
    picture, placement = slide_picture(some())
    y, x = np.nonzero((picture == OUTLINE).all(axis=2))
    left, top = placement.from_level0(40 * 32.0, 30 * 32.0)
    right, bottom = placement.from_level0(160 * 32.0, 120 * 32.0)
    found = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])
    assert np.abs(found - [left, top, right, bottom]).max() <= 2


def test_what_another_tile_shows_is_not_hatched():
    left, kept = boxes_at((1280, 960)), boxes_at((1536, 960))
    reasons = np.array([Reason.PEN], np.uint8)
    shown, placement = slide_picture(some(boxes=kept, left_out=left, reasons=reasons))
    column, row = (round(v) for v in placement.from_level0(1664.0, 1216.0))
    patch = shown[row - 8 : row + 8, column - 8 : column + 8].reshape(-1, 3)
    assert not (patch == COLOURS[Reason.PEN]).all(axis=1).any()
    column, row = (round(v) for v in placement.from_level0(1408.0, 1216.0))
    patch = shown[row - 8 : row + 8, column - 8 : column + 8].reshape(-1, 3)
    assert (patch == COLOURS[Reason.PEN]).all(axis=1).any()


def test_pen_marks_are_hatched():
    pen = np.zeros((150, 200), bool)
    pen[:20, :20] = True
    plain, placement = slide_picture(some())
    shown, _ = slide_picture(some(pen=pen))
    changed = (plain != shown).any(axis=2)
    column, row = (round(v) for v in placement.from_level0(640.0, 640.0))
    assert changed[:row, :column].all()
    assert changed.sum() == row * column


def test_of_a_hundred_thousand_tiles_the_outline_of_all_is_drawn():
    x, y = np.meshgrid(np.arange(320) * 20.0, np.arange(320) * 15.0)
    boxes = np.stack([x.ravel(), y.ravel(), np.full(x.size, 20.0), np.full(x.size, 15.0)], axis=1)
    picture, _ = slide_picture(some(boxes=boxes))
    # Too small for lines of their own: an outline of all of them.
    centre = picture[200:-200, 200:-200]
    assert not (np.abs(centre.astype(int) - KEPT).max(axis=2) < 90).any()


def test_bytes_are_bounded_and_the_same_again(tmp_path):
    wild = some(
        thumbnail=noise(150, 200),
        examples=[Example(i, noise(144, 144, seed=i), noise(144, 144)) for i in range(12)],
    )
    for shown in (some(), wild):
        data = overview_jpeg(shown)
        assert len(data) <= MAX_BYTES
        assert data == overview_jpeg(shown)
    large = noise(3000, 4000)
    image = Image.open(io.BytesIO(drawing.as_jpeg(large, limit=100_000)))
    assert image.format == "JPEG"
    assert image.width < 4000  # no quality fits: it is made smaller


@pytest.mark.parametrize(
    "name", ["", "x" * 300, "<script>", "切片 1", "a\u202eb", "%s{}{0}", "emoji \U0001f9ec"]
)
def test_any_name_can_be_drawn(name):
    assert draw(some(slide=name)).shape == draw(some()).shape


@pytest.mark.parametrize("shape", [(0, 0), (1, 1), (3, 900), (900, 3), (6000, 5000), (40, 40)])
def test_any_shape_can_be_drawn(shape):
    shown = some(
        thumbnail=np.full((*shape, 3), 200, np.uint8),
        mask=np.ones(shape, bool),
        pen=np.zeros(shape, bool),
        boxes=boxes_at((0, 0)),
        left_out=boxes_at((512, 512)),
        reasons=np.array([Reason.MISSING], np.uint8),
    )
    picture = draw(shown)
    assert picture.shape[0] <= 1000
    assert picture.shape[1] <= 1300


def test_a_panel_says_what_is_on_the_slide(monkeypatch):
    """Every text of the picture, as it is drawn."""
    texts = []
    whole = drawing.ImageDraw.ImageDraw.text

    def spy(self, xy, text, *args, **kwargs):
        texts.append(text)
        return whole(self, xy, text, *args, **kwargs)

    monkeypatch.setattr(drawing.ImageDraw.ImageDraw, "text", spy)
    reasons = np.array([Reason.PEN, Reason.PEN, Reason.SHARPNESS, Reason.MISSING], np.uint8)
    pen = np.zeros((150, 200), bool)
    pen[:50, :50] = True  # 2500 pixels of 8 µm: 0.16 mm²
    draw(
        some(
            slide="slide_7",
            boxes=boxes_at((0, 0), (512, 0)),
            left_out=boxes_at(*[(0, 512.0 * i) for i in range(4)]),
            reasons=reasons,
            pen=pen,
            stain="vahadane",
            fallback="too few pixels of stained tissue",
            examples=[Example(0, noise(32, 32), noise(32, 32))],
        )
    )
    said = "\n".join(texts)
    for text in (
        "slide_7", "0.5 µm/px (level 0: 0.25)", "tissue 36.0 %", "2 tiles used",
        "3 left out by quality", "1 without pixels", "STAIN FALLBACK", "tiles used: 2",
        "pen (max_pen): 2 tiles", "blurred (min_sharpness): 1 tile",
        "no pixels in the file: 1 tile", "pen marks, not tissue: 0.16 mm²", "as scanned",
        "normalised", "200 µm", "too few pixels of",
    ):  # fmt: skip
        assert text in said, text


# Tiles before and after


def prepared(slide, *, method="vahadane", **values):
    options = Preparation.model_validate(
        {"mpp": 0.5, "tile": 32, "stain": {"method": method}, "min_coverage": 0.3,
         "tissue": {"min_area_um2": 0}, **values}
    )  # fmt: skip
    return plan_slide(slide, options, target=reference_profile(method))


def test_examples_are_the_scanned_and_the_normalised_tile():
    slide = ArraySlide(stained(400, 500, glass=40))
    plan = prepared(slide)
    wanted = choose_examples(plan, count=12)
    assert len(wanted) == 12
    assert (plan.coverage[wanted] >= np.median(plan.coverage)).all()
    assert np.ptp(plan.rows[wanted]) >= 0.6 * np.ptp(plan.rows)
    found = {}
    after = {}
    for block in stream(plan, examples=wanted):
        for example in block.examples:
            found[example.index] = example
        for tile, row, column in zip(block.pixels, block.rows, block.columns, strict=True):
            after[int(row), int(column)] = tile
    assert sorted(found) == wanted.tolist()
    for index, example in found.items():
        row, column = int(plan.rows[index]), int(plan.columns[index])
        raw = slide.images[0][row * 32 : row * 32 + 32, column * 32 : column * 32 + 32]
        np.testing.assert_array_equal(example.before, raw)
        np.testing.assert_array_equal(example.after, after[row, column])


def test_large_tiles_are_averaged_down():
    slide = ArraySlide(stained(700, 700))
    plan = prepared(slide, method="none", tile=300)
    (block,) = stream(plan, examples=np.arange(4))
    assert len(block.examples) == 4
    for example, tile in zip(block.examples, block.pixels, strict=True):
        # 300 and 144 px both divide 3,600: each pixel as 12 × 12, of which 25 × 25 are one.
        fine = tile.repeat(12, axis=0).repeat(12, axis=1).reshape(EXAMPLE_PX, 25, EXAMPLE_PX, 25, 3)
        assert np.abs(example.before - fine.mean((1, 3))).max() < 0.501


def test_a_plan_without_tiles_has_no_examples():
    plan = prepared(ArraySlide(stained(20, 20)))
    assert not len(choose_examples(plan, count=12))


def test_the_picture_in_the_store_shows_the_stored_tiles(tmp_path, monkeypatch):
    seen = []
    whole = overview.draw
    monkeypatch.setattr(overview, "draw", lambda shown: seen.append(shown) or whole(shown))
    image = stained(400, 500, glass=40)
    image[96:160, 96:160] = cv2.GaussianBlur(image[96:160, 96:160], (0, 0), 5)
    path = write_tiff(tmp_path / "s.tif", image, mpp=0.5, levels=1)
    wsiad.tile(slides=path, out=tmp_path / "store", mpp=0.5, tile=32, quiet=True,
               quality={"min_sharpness": 300})  # fmt: skip
    (shown,) = seen
    stored = TileStore(tmp_path / "store").slide("s")
    np.testing.assert_array_equal(shown.boxes[:, :2], stored.column("position"))
    assert {tuple(box) for box in shown.left_out[:, :2].tolist()} >= {(96.0, 96.0), (128.0, 128.0)}
    assert (shown.boxes[:, 2:] == 32).all()
    with Image.open(tmp_path / "store" / "overviews" / "s.jpg") as picture:
        assert picture.format == "JPEG"
        assert picture.size == whole(shown).shape[1::-1]
