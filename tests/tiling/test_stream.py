"""The grid, the plan and the stream: positions, order, missing pixels, memory."""

import threading
from contextlib import closing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.builders import ArraySlide, noise, stained
from support.prepared_slides import prepared
from wsiad.core.errors import SlideReadError
from wsiad.core.geometry import Box, Grid, PixelMap, Size
from wsiad.tiling.plan import select
from wsiad.tiling.preparation import Preparation
from wsiad.tiling.stream import blocks, choose_examples, stream
from wsiad.tissue.mask import TissueMask
from wsiad.tissue.tissue_options import QualityThresholds


@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 64), st.integers(1, 64))
@settings(max_examples=60, deadline=None)
def test_grid_holds_every_whole_tile_and_no_other(width, height, tile, stride):
    stride = min(stride, tile)
    grid = Grid.cover(Size(width, height), tile=tile, stride=stride, pixels=PixelMap(0, 0, 1, 1))
    starts = [x for x in range(0, width, stride) if x + tile <= width]
    assert grid.columns == len(starts)
    assert grid.rows == len([y for y in range(0, height, stride) if y + tile <= height])


def test_stride_that_leaves_gaps_is_refused():
    with pytest.raises(ValueError, match="stride"):
        Grid.cover(Size(9, 9), tile=3, stride=4, pixels=PixelMap(0, 0, 1, 1))
    with pytest.raises(ValueError, match="leaves gaps"):
        Preparation(mpp=0.5, tile=32, stride=33)


def test_boxes_are_in_level0_pixels():
    grid = Grid.cover(Size(100, 80), tile=20, stride=10, pixels=PixelMap(5.5, 7, 1.6, 2))
    rows, columns = np.array([0, 3], np.int32), np.array([0, 2], np.int32)
    np.testing.assert_allclose(
        grid.boxes(rows, columns), [[5.5, 7, 32, 40], [5.5 + 20 * 1.6, 7 + 30 * 2, 32, 40]]
    )


def test_tiles_are_the_pixels_under_their_boxes():
    image = stained(300, 420)
    plan = prepared(ArraySlide(image), stride=20)
    seen = set()
    for block in stream(plan, quality=True):
        boxes = plan.grid.boxes(block.rows, block.columns).astype(int)
        for (x, y, w, h), tile in zip(boxes, block.pixels, strict=True):
            np.testing.assert_array_equal(tile, image[y : y + h, x : x + w])
            seen.add((x, y))
        assert set(block.quality) == {"sharpness", "saturation", "pen", "black"}
    expected = {(x, y) for y in range(0, 300 - 31, 20) for x in range(0, 420 - 31, 20)}
    assert seen == expected


def test_positions_are_exact_when_resampled_and_offset_by_bounds():
    """A gradient tells from the pixel value alone where a tile was read."""
    y, x = np.mgrid[:700, :900].astype(np.float64)
    image = np.stack([x / 4, y / 4, np.full_like(x, 40)], axis=-1).round().astype(np.uint8)
    slide = ArraySlide(image, mpp=0.25, bounds=Box(101.25, 57.5, 700, 600))
    plan = prepared(slide, mpp=0.61, tile=32, stride=24, min_coverage=0)
    assert plan.scaled.resampled
    count = 0
    for block in stream(plan):
        boxes = plan.grid.boxes(block.rows, block.columns)
        centre = boxes[:, :2] + boxes[:, 2:] / 2
        mean = block.pixels.reshape(len(block), -1, 3).mean(axis=1)
        # Pixel p of the gradient has its centre at level-0 p + 0.5 and the value p / 4.
        np.testing.assert_allclose(mean[:, 0] * 4, centre[:, 0] - 0.5, atol=0.5)
        np.testing.assert_allclose(mean[:, 1] * 4, centre[:, 1] - 0.5, atol=0.5)
        count += len(block)
    assert count > 20


def test_tiles_with_missing_pixels_are_left_out_and_counted():
    image, valid = stained(256, 256), np.ones((256, 256), bool)
    valid[70, 130] = False
    plan = prepared(ArraySlide(image, valid=valid), min_coverage=0.01)
    found = list(stream(plan))
    assert sum(block.missing for block in found) == 1
    positions = {tuple(p) for b in found for p in zip(b.rows, b.columns, strict=True)}
    assert len(positions) == 63
    assert (2, 4) not in positions


def test_coverage_selects_tiles():
    mask = np.zeros((8, 8), bool)
    mask[:, :4] = True
    tissue = TissueMask(mask, noise(8, 8), PixelMap(0, 0, 16, 16), 0.1, 0.0)
    grid = Grid.cover(Size(128, 128), tile=48, stride=16, pixels=PixelMap(0, 0, 1, 1))
    for least, columns in ((1.0, {0, 1}), (0.6, {0, 1, 2}), (0.5, {0, 1, 2}), (0.0, {0, 1, 2, 3})):
        rows, found, share = select(grid, tissue, min_coverage=least)
        assert set(found.tolist()) == columns
        assert (share >= least).all()
        assert (np.diff(rows) >= 0).all()


def test_reads_are_bounded_whatever_the_slide_and_the_scale():
    slide = ArraySlide(np.zeros((4096, 6000, 3), np.uint8) + 150, mpp=0.25)
    slide.images[0][..., 1] = 60
    for mpp, tile in ((0.25, 256), (0.5, 256), (2.0, 96)):
        plan = prepared(slide, mpp=mpp, tile=tile)
        slide.reads.clear()
        total = sum(len(block) for block in stream(plan))
        assert total == len(plan) > 0
        edge = max(2048, tile * mpp / 0.25) + 2
        assert all(size.width <= edge and size.height <= edge for *_, size in slide.reads)


def test_blocks_hold_every_tile_once():
    plan = prepared(ArraySlide(stained(900, 2300)), tile=64, stride=40, mpp=0.5)
    chosen = np.concatenate(blocks(plan))
    assert sorted(chosen.tolist()) == list(range(len(plan)))
    assert len(blocks(plan)) == 3  # 25 tiles of 64 px at 40 px fit into 1024 px


def test_the_same_slide_gives_the_same_stream():
    slide = ArraySlide(stained(400, 400, glass=40))
    a, b = (list(stream(prepared(slide, stain={"method": "vahadane"}))) for _ in range(2))
    for left, right in zip(a, b, strict=True):
        np.testing.assert_array_equal(left.pixels, right.pixels)


@pytest.mark.parametrize("stride", [64, 48, 8])
def test_every_tile_is_what_was_read_in_the_targets_stains(stride):
    """Whether tiles overlap or not, and however they are then coloured."""
    image, valid = stained(420, 500, glass=60), np.ones((420, 500), bool)
    valid[200:210, 300] = False
    slide = ArraySlide(image, valid=valid)
    plan = prepared(slide, tile=64, stride=stride, stain={"method": "vahadane"}, min_coverage=0)
    assert not plan.table.is_identity
    before, chosen = image.copy(), choose_examples(plan, count=3)
    count = 0
    for block in stream(plan, quality=True, examples=chosen):
        for tile, row, column in zip(block.pixels, block.rows, block.columns, strict=True):
            y, x = row * stride, column * stride
            expected = plan.table.apply(image[y : y + 64, x : x + 64])
            np.testing.assert_array_equal(tile, expected)
        for example in block.examples:
            y, x = plan.rows[example.index] * stride, plan.columns[example.index] * stride
            np.testing.assert_array_equal(example.before, image[y : y + 64, x : x + 64])
            np.testing.assert_array_equal(example.after, plan.table.apply(example.before))
        count += len(block)
    assert 0 < count < len(plan)
    np.testing.assert_array_equal(image, before)


@pytest.fixture(params=[1, 2])
def cores(request, monkeypatch):
    """A process with so many cores; blocks are small, so that there are many."""
    monkeypatch.setattr("wsiad.tiling.stream.usable_cores", lambda: request.param)
    monkeypatch.setattr("wsiad.tiling.stream._BLOCK_PX", 128)
    return request.param


@pytest.mark.parametrize("stride", [64, 48, 8])
@pytest.mark.parametrize("part", [(0, None), (7, 40)])
def test_a_stream_that_is_made_ahead_is_the_stream(cores, stride, part):
    image, valid = stained(420, 500, glass=60), np.ones((420, 500), bool)
    valid[200:210, 300] = False
    slide = ArraySlide(image, valid=valid)
    plan = prepared(slide, tile=64, stride=stride, stain={"method": "vahadane"}, min_coverage=0)
    options = {
        "quality": True, "guard": QualityThresholds(min_sharpness=27_000),
        "examples": choose_examples(plan, count=3), "first": part[0], "stop": part[1],
    }  # fmt: skip
    expected = list(stream(plan, **options))
    for got, block in zip(stream(plan, ahead=True, **options), expected, strict=True):
        for name in ("pixels", "rows", "columns", "coverage"):
            np.testing.assert_array_equal(getattr(got, name), getattr(block, name))
        for name, values in block.quality.items():
            np.testing.assert_array_equal(got.quality[name], values)
        np.testing.assert_array_equal(got.left_out.rows, block.left_out.rows)
        np.testing.assert_array_equal(got.left_out.reasons, block.left_out.reasons)
        for one, other in zip(got.examples, block.examples, strict=True):
            assert one.index == other.index
            np.testing.assert_array_equal(one.after, other.after)


def test_an_error_of_a_stream_made_ahead_is_the_slides_and_leaves_no_thread(cores, monkeypatch):
    slide = ArraySlide(stained(420, 500))
    plan, whole, before = prepared(slide), slide.read_level, threading.active_count()
    reads = []

    def read_level(*place):
        reads.append(place)
        if len(reads) == 5:
            raise SlideReadError("cannot be read there", subject="s")
        return whole(*place)

    monkeypatch.setattr(slide, "read_level", read_level)
    seen = []
    with pytest.raises(SlideReadError, match="s: cannot be read there"):
        seen.extend(len(block) for block in stream(plan, ahead=True))
    assert len(seen) == 4  # what comes before it is not lost
    assert threading.active_count() == before


def test_who_leaves_a_stream_made_ahead_ends_its_threads(cores, monkeypatch):
    monkeypatch.setattr("wsiad.tiling.stream._AHEAD_BYTES", 1)
    plan, before = prepared(ArraySlide(stained(420, 500))), threading.active_count()
    with closing(stream(plan, ahead=True)) as made:
        next(made)
        assert threading.active_count() == before + 2 * (cores > 1)
    assert threading.active_count() == before


def test_stains_do_not_depend_on_the_tiles():
    """`tile` and `heatmap` cut other tiles of a slide and must colour it alike."""
    slide = ArraySlide(stained(600, 600, glass=60))
    vahadane = {"stain": {"method": "vahadane"}}
    one = prepared(slide, tile=96, **vahadane)
    other = prepared(slide, tile=64, stride=16, min_coverage=0.9, **vahadane)
    assert one.stain == other.stain
    assert one.stain.fallback is None


def test_slide_smaller_than_a_tile():
    plan = prepared(ArraySlide(stained(20, 300)), tile=32)
    assert len(plan) == 0
    assert list(stream(plan)) == []
