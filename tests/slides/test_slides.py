"""Reading at µm/px: against brute-force area averaging, and through real containers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.broken_slides import corrupt_tiff, truncated
from support.builders import ArraySlide, noise, stained, write_scn, write_tiff
from wsiad.core.errors import ScaleError, SlideOpenError, SlideReadError
from wsiad.core.geometry import Box, Size
from wsiad.slides.area_mean import all_valid, area_mean, area_weights
from wsiad.slides.opening import open_slide
from wsiad.slides.scaled import ScaledSlide
from wsiad.slides.slide import true_downsample


def brute_area(image, first, step, count):
    """Mean over [first + i·step, first + (i + 1)·step) along axis 0, by fine subdivision."""
    fine = 1000
    big = np.repeat(image.astype(np.float64), fine, axis=0)
    return np.stack(
        [
            big[round((first + i * step) * fine) : round((first + (i + 1) * step) * fine)].mean(0)
            for i in range(count)
        ]
    )


def dense(axis, length):
    """Weights as a matrix, and none of them beyond the source."""
    first, weights = axis
    matrix = np.zeros((len(first), length + weights.shape[1]), np.float32)
    for row, begin, own in zip(matrix, first, weights, strict=True):
        row[begin : begin + len(own)] = own
    assert not matrix[:, length:].any()
    return matrix[:, :length]


@given(
    first=st.integers(0, 3000).map(lambda v: v / 1000),
    step=st.integers(700, 5000).map(lambda v: v / 1000),
    count=st.integers(1, 5),
)
@settings(max_examples=40, deadline=None)
def test_area_weights_equal_fine_subdivision(first, step, count):
    length = int(np.ceil(first + step * count))
    image = np.random.default_rng(0).integers(0, 256, (length, 4)).astype(np.uint8)
    got = dense(area_weights(first, step, count, length), length) @ image.astype(np.float32)
    np.testing.assert_allclose(got, brute_area(image, first, step, count), atol=1e-2)


@given(
    first=st.tuples(*[st.integers(0, 2000).map(lambda v: v / 1000)] * 2),
    step=st.tuples(*[st.integers(700, 9000).map(lambda v: v / 1000)] * 2),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
@settings(max_examples=60, deadline=None)
def test_area_mean_is_the_rounded_mean_of_areas(first, step, size):
    lengths = [int(np.ceil(f + s * n)) for f, s, n in zip(first, step, size, strict=True)]
    image = np.random.default_rng(0).integers(0, 256, (*lengths, 3)).astype(np.uint8)
    axes = [area_weights(f, s, n, m) for f, s, n, m in zip(first, step, size, lengths, strict=True)]
    rows, columns = (dense(a, n).astype(float) for a, n in zip(axes, lengths, strict=True))
    expected = np.einsum("yh,xw,hwc->yxc", rows, columns, image)
    assert np.abs(area_mean(image, *axes) - expected).max() < 0.5 + 1e-3
    valid = np.random.default_rng(1).random(lengths) > 0.05
    touched = np.einsum("yh,xw,hw->yx", rows > 1e-4, columns > 1e-4, ~valid)
    np.testing.assert_array_equal(all_valid(valid, *axes), touched == 0)


def in_turn(image, rows, columns):
    """Means in float32, whose terms are added one after the other, rows first."""
    reach = max(rows.weights.shape[1], columns.weights.shape[1])
    image = np.pad(image, [(0, reach), (0, reach), (0, 0)]).astype(np.float32)
    for first, weights in (rows, columns):
        total = weights[:, :1, None] * image[first]
        for tap in range(1, weights.shape[1]):
            total = total + weights[:, tap, None, None] * image[first + tap]
        image = total.swapaxes(0, 1)
    return np.rint(image).astype(np.uint8)


@pytest.mark.parametrize("step", [0.9, 1, 1.0288, 1.5, 1.98, 2, 2.0576, 2.5, 3, 3.7, 4.1])
def test_area_mean_is_the_same_to_the_bit_for_any_number_of_pixels(step):
    size, other = 71, 1 + step / 2
    image = np.random.default_rng(7).integers(0, 256, (400, 340, 3)).astype(np.uint8)
    rows = area_weights(0.37, other, size, 400)
    columns = area_weights(340 - step * size, step, size, 340)  # to the very last pixel
    np.testing.assert_array_equal(area_mean(image, rows, columns), in_turn(image, rows, columns))


def test_area_mean_of_whole_blocks_rounds_halves_to_even():
    image = noise(12, 20)
    rows, columns = area_weights(0, 2, 6, 12), area_weights(0, 4, 5, 20)
    expected = np.rint(image.reshape(6, 2, 5, 4, 3).mean(axis=(1, 3)))
    np.testing.assert_array_equal(area_mean(image, rows, columns), expected)
    np.testing.assert_array_equal(area_mean(image[:, ::-1], rows, columns), expected[:, ::-1])


def test_area_weights_sum_to_one_at_the_last_pixel():
    weights = dense(area_weights(0.1 + 0.2, 3.3, 3, 11), 11)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)
    assert (weights >= 0).all()


@pytest.mark.parametrize(
    ("level0", "level", "expected"),
    [(2003, 1001, 2), (2003, 1002, 2), (100_001, 12_500, 8), (1000, 300, 1000 / 300), (97, 97, 1)],
)
def test_true_downsample(level0, level, expected):
    assert true_downsample(level0, level) == pytest.approx(expected, abs=1e-12)


def test_same_scale_takes_pixels_untouched():
    image = noise(100, 120)
    scaled = ScaledSlide(ArraySlide(image, mpp=0.499), 0.5)
    assert not scaled.resampled
    assert (scaled.pixels.scale_x, scaled.size) == (1, Size(120, 100))
    np.testing.assert_array_equal(scaled.read(7, 9, Size(30, 20)).rgb, image[9:29, 7:37])


def test_level_is_the_coarsest_that_is_fine_enough():
    slide = ArraySlide(noise(512, 512), mpp=0.25, levels=4)
    for mpp, level in ((0.25, 0), (0.4, 0), (0.5, 1), (0.972, 1), (1.0, 2), (1.9, 2), (5, 3)):
        assert ScaledSlide(slide, mpp).level == level


def test_pieces_equal_the_whole():
    """Rounding happens once: a piece is the same pixels wherever its read begins."""
    slide = ArraySlide(noise(300, 400), mpp=0.25, levels=2)
    scaled = ScaledSlide(slide, 0.61)
    whole = scaled.read(0, 0, scaled.size).rgb
    piece = scaled.read(31, 17, Size(40, 50)).rgb
    difference = np.abs(whole[17:67, 31:71].astype(int) - piece)
    assert difference.max() <= 1  # float32 sums in another order, then one rounding
    assert (difference > 0).mean() < 1e-3


def test_resampled_pixels_average_exactly_what_they_cover():
    image = noise(60, 60)
    slide = ArraySlide(image, mpp=0.25, bounds=Box(5.5, 3.25, 50, 50))
    scaled = ScaledSlide(slide, 0.4)
    got = scaled.read(2, 1, Size(3, 4)).rgb
    step = 0.4 / 0.25
    across = brute_area(image.transpose(1, 0, 2), 5.5 + 2 * step, step, 3)
    expected = brute_area(across.transpose(1, 0, 2), 3.25 + 1 * step, step, 4)
    assert np.abs(got - expected).max() <= 0.51


@pytest.mark.parametrize("mpp", [0.23, 0.29])
def test_tiles_of_different_scanners_have_equal_physical_size(mpp):
    scaled = ScaledSlide(ArraySlide(noise(800, 800), mpp=mpp, levels=2), 0.5)
    assert scaled.pixels.scale_x * mpp == pytest.approx(0.5, rel=0.01)


def test_anisotropic_spacing():
    scaled = ScaledSlide(ArraySlide(noise(200, 400), mpp=0.25, mpp_y=0.5), 1.0)
    assert (scaled.pixels.scale_x, scaled.pixels.scale_y) == (4, 2)
    assert scaled.size == Size(100, 100)


def test_finer_than_the_slide_is_refused_unless_allowed():
    slide = ArraySlide(noise(64, 64), mpp=0.5)
    with pytest.raises(ScaleError, match=r"array: has 0\.5 µm/px.*--allow-upsampling"):
        ScaledSlide(slide, 0.25)
    assert ScaledSlide(slide, 0.25, allow_upsampling=True).size == Size(128, 128)


def test_missing_pixels_stay_missing_after_resampling():
    valid = np.ones((100, 100), bool)
    valid[41, 60] = False
    scaled = ScaledSlide(ArraySlide(noise(100, 100), mpp=0.5, valid=valid), 1.25)
    region = scaled.read(0, 0, scaled.size)
    expected = np.ones((40, 40), bool)
    expected[16, 24] = False
    np.testing.assert_array_equal(region.valid, expected)


@pytest.mark.parametrize("mpp", [0.52, 0.7, 0.99, 1.37, 1.9])
@pytest.mark.parametrize("holes", [[], [(41, 60), (99, 30)]], ids=["whole", "with-holes"])
def test_squares_have_the_pixels_of_their_rectangle(mpp, holes):
    valid = np.ones((200, 260), bool)
    valid[tuple(np.array(holes, int).reshape(-1, 2).T)] = False
    slide = ArraySlide(noise(200, 260), mpp=0.5, valid=valid)
    scaled = ScaledSlide(slide, mpp)
    size = Size(scaled.size.width - 3, scaled.size.height - 2)
    region = scaled.read(3, 2, size)
    y, x = np.mgrid[0 : size.height - 11 : 12, 0 : size.width - 11 : 12].reshape(2, -1)
    y, x = np.r_[y, size.height - 12], np.r_[x, size.width - 12]  # the last corner, too
    corners = np.stack([x, y], axis=1).astype(np.int32)
    squares, whole = scaled.read_squares(3, 2, size, corners=corners, edge=12)
    places = [np.s_[row : row + 12, column : column + 12] for column, row in corners]
    expected = [region.valid is None or region.valid[place].all() for place in places]
    assert whole.tolist() == expected
    assert (sum(expected) < len(places)) == bool(holes)
    for square, place in zip(
        squares, (p for p, kept in zip(places, whole, strict=True) if kept), strict=True
    ):
        np.testing.assert_array_equal(square, region.rgb[place])


def test_read_outside_is_an_error():
    scaled = ScaledSlide(ArraySlide(noise(50, 50)), 0.5)
    with pytest.raises(ValueError, match="not within"):
        scaled.read(40, 0, Size(11, 5))


def test_openslide_reads_what_was_written(tmp_path):
    image = noise(301, 403)
    slide = open_slide(write_tiff(tmp_path / "a.tif", image, mpp=0.25))
    with slide:
        assert slide.name == "a"
        assert slide.format == "generic-tiff"
        assert slide.size == Size(403, 301)
        assert slide.spacing.x == pytest.approx(0.25)
        assert [level.downsample_x for level in slide.levels] == [1, 2, 4]
        region = slide.read_level(0, 100, 33, Size(64, 50))
        np.testing.assert_array_equal(region.rgb, image[33:83, 100:164])
        assert region.valid is None
        beyond = slide.read_level(0, 390, 0, Size(20, 10))
        assert beyond.valid[:, :13].all()
        assert not beyond.valid[:, 13:].any()


def test_levels_of_odd_pyramids_are_read_within_half_a_level0_pixel(tmp_path):
    """A bright line keeps its place at every level, far from the origin too."""
    image = np.zeros((64, 4001, 3), np.uint8)
    image[:, 3840:3856] = 255
    path = write_tiff(tmp_path / "line.tif", image, mpp=0.25, levels=4, tile=16)
    with open_slide(path) as slide:
        for index, level in enumerate(slide.levels):
            x = int(3800 // level.downsample_x)
            row = slide.read_level(index, x, 2, Size(int(120 / level.downsample_x), 1)).rgb[0, :, 0]
            weight = row.astype(float)
            centre = ((x + np.arange(len(row)) + 0.5) * weight).sum() / weight.sum()
            assert centre * level.downsample_x == pytest.approx(3848, abs=0.5)


def test_bounds_of_a_leica_slide(tmp_path):
    y, x = np.mgrid[:517, :701]
    image = np.stack([x // 4, y // 4, np.full_like(x, 90)], axis=-1).astype(np.uint8)
    path = write_scn(
        tmp_path / "b.scn", image, mpp=0.5, offset_px=(333, 211), collection_px=(2000, 3000)
    )
    with open_slide(path) as slide:
        assert slide.bounds == Box(333, 211, 701, 517)
        scaled = ScaledSlide(slide, 1.0)
        assert (scaled.pixels.x, scaled.pixels.y) == (333, 211)
        assert scaled.size == Size(350, 258)
        got = scaled.read(0, 0, scaled.size).rgb.astype(int)
        expected = image[:516, :700].reshape(258, 2, 350, 2, 3).mean(axis=(1, 3))
        assert np.abs(got - expected).mean() < 2  # JPEG


def test_text_renamed_to_svs(tmp_path):
    path = tmp_path / "note.svs"
    path.write_text("not a slide")
    with pytest.raises(SlideOpenError, match="note: is not a slide in any format"):
        open_slide(path)


def test_no_such_file(tmp_path):
    with pytest.raises(SlideOpenError, match="no such file"):
        open_slide(tmp_path / "none.svs")


def test_corrupt_tile_is_an_error_and_does_not_poison_the_slide(tmp_path):
    with open_slide(corrupt_tiff(tmp_path, stained(400, 400))) as slide:
        with pytest.raises(SlideReadError, match="corrupt: level 0 cannot be decoded"):
            slide.read_level(0, 0, 0, Size(400, 400))
        assert slide.read_level(0, 0, 0, Size(64, 64)).valid is None


def test_truncated_slide(tmp_path):
    whole = write_tiff(tmp_path / "whole.tif", noise(600, 600), mpp=0.5, levels=1)
    with pytest.raises((SlideOpenError, SlideReadError), match="truncated"):
        with open_slide(truncated(tmp_path / "cut.tif", whole, 0.6)) as slide:
            slide.read_level(0, 0, 0, slide.size)
