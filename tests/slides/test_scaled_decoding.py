"""JPEG tiles that the decoder makes smaller (`decode: scaled`), against means of complete ones."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

import wsiad
from support.builders import stained
from support.jpeg2000_slides import write_jpeg2000
from support.tiff_slides import TILE, empty_tiles, smooth, write_jpeg
from wsiad.core.errors import InputError, SlideReadError, StoreMismatchError
from wsiad.core.geometry import Mpp, Size
from wsiad.runs.compatibility import preparation_of, store_slides
from wsiad.slides.opening import open_slide
from wsiad.slides.scaled import ScaledSlide
from wsiad.store.tile_store import TileStore
from wsiad.tiling.preparation import Preparation
from wsiad.tissue.tissue_options import QualityOptions

SHARED = Path(__file__).parents[3] / "shared"


def whole(slide, mpp, *, decode):
    """All pixels at a scale, and the slide that made them."""
    scaled = ScaledSlide(slide, Mpp(mpp), decode=decode)
    return scaled.read(0, 0, scaled.size).rgb.astype(np.int16), scaled


@pytest.mark.parametrize(
    ("mpp", "by", "resampled"), [(1.0, 2, False), (1.1, 2, True), (2.0, 4, False), (2.3, 4, True)]
)
@pytest.mark.parametrize("subsampling", ["444", "420"])
def test_pixels_come_near_to_the_mean_and_lie_where_it_lies(
    tmp_path, subsampling, mpp, by, resampled
):
    image = cv2.GaussianBlur(smooth(331, 460), None, by)
    path = write_jpeg(tmp_path / "a.tif", image, levels=1, subsampling=subsampling)
    with open_slide(path) as slide:
        mean, exact = whole(slide, mpp, decode="full")
        near, scaled = whole(slide, mpp, decode="scaled")
        assert (exact.reduced_by, scaled.reduced_by) == (1, by)
        assert (scaled.resampled, scaled.level) == (resampled, 0)
        assert scaled.pixels == exact.pixels
        common = tuple(slice(0, n) for n in np.minimum(mean.shape, near.shape)[:2])
        error = np.abs(near[common] - mean[common]).mean()
        assert 0 < error < 1
        # Half of a pixel beside its place, the picture differs by several times as much.
        for shift in ((0.5, 0), (0, 0.5), (-0.5, 0), (0, -0.5)):
            move = np.float32([[1, 0, shift[0]], [0, 1, shift[1]]])
            moved = cv2.warpAffine(
                near[common].astype(np.float32),
                move,
                near[common].shape[1::-1],
                borderMode=cv2.BORDER_REPLICATE,
            )
            assert np.abs(moved - mean[common]).mean() > 2 * error


@pytest.mark.skipif(not SHARED.exists(), reason="needs a real slide of the shared data")
@pytest.mark.parametrize(("mpp", "by"), [(0.998, 2), (1.996, 4)])
def test_error_on_a_real_slide_is_a_tenth_of_a_grey_level(mpp, by):
    with open_slide(SHARED / "data/slides/cmu-1-small-region.svs") as slide:
        mean, _ = whole(slide, mpp, decode="full")
        near, scaled = whole(slide, mpp, decode="scaled")
        common = tuple(slice(0, n) for n in np.minimum(mean.shape, near.shape)[:2])
        difference = near[common] - mean[common]
    assert scaled.reduced_by == by
    assert 0.05 < np.abs(difference).mean() < 0.2
    assert np.abs(difference.mean((0, 1))).max() < 0.1


def test_parts_are_those_of_the_whole(tmp_path):
    path = write_jpeg(tmp_path / "a.tif", smooth(300, 420), levels=1)
    with open_slide(path) as slide:
        scaled = ScaledSlide(slide, Mpp(1.0), decode="scaled")
        image = scaled.read(0, 0, scaled.size).rgb
        assert scaled.size == Size(210, 150)
        np.testing.assert_array_equal(scaled.read(33, 17, Size(100, 90)).rgb, image[17:107, 33:133])
        assert scaled.reads_tiles
        tiles = np.empty((2, 40, 40, 3), np.uint8)
        columns, rows = np.array([5, 45], np.int32), np.array([100, 7], np.int32)
        assert scaled.read_tiles(columns, rows, tiles).all()
        for tile, x, y in zip(tiles, columns, rows, strict=True):
            np.testing.assert_array_equal(tile, image[y : y + 40, x : x + 40])


def test_where_it_does_nothing_it_is_refused(tmp_path):
    image = smooth(256, 320)
    pyramid = write_jpeg(tmp_path / "a.tif", image)
    jpeg2000 = write_jpeg2000(tmp_path / "b.svs", image, levels=1)
    progressive = write_jpeg(tmp_path / "c.tif", image, levels=1, progressive=True)
    for path, mpp, reason in (
        (pyramid, 1.0, "does nothing at 1 µm/px: level 1 has 1 µm/px"),
        (pyramid, 0.9, "does nothing at 0.9 µm/px: level 0 has 0.5 µm/px"),
        (
            jpeg2000,
            1.0,
            "needs JPEG tiles that are decoded directly, but those of level 0 are jpeg2000",
        ),
        (
            progressive,
            1.0,
            "needs JPEG tiles that are decoded directly, but it is read by openslide: prog",
        ),
    ):
        with (
            open_slide(path) as slide,
            pytest.raises(InputError, match=f"^{slide.name}: `decode: scaled` {reason}") as told,
        ):
            ScaledSlide(slide, Mpp(mpp), decode="scaled")
        assert "--decode full" in str(told.value)
        assert "\n" not in str(told.value)


def test_damage_and_missing_tiles_stay_what_they_are(tmp_path):
    path = write_jpeg(tmp_path / "a.tif", smooth(256, 320), levels=1)
    empty_tiles(path, 0, [1])
    with open_slide(path) as slide:
        scaled = ScaledSlide(slide, Mpp(1.0), decode="scaled")
        valid = scaled.read(0, 0, scaled.size).valid
        assert (~valid).sum() == (TILE // 2) ** 2
        assert not valid[: TILE // 2, TILE // 2 : TILE].any()
        offset, count = (slide._layout[0].offsets[6], slide._layout[0].counts[6])
    with path.open("r+b") as file:
        file.seek(int(offset) + int(count) // 2)
        file.write(b"\xff" * 40)
    with open_slide(path) as slide:
        scaled = ScaledSlide(slide, Mpp(1.0), decode="scaled")
        with pytest.raises(SlideReadError, match=r"level 0 .* position \(64, 64\) \(64 × 64 px\)"):
            scaled.read(0, 0, scaled.size)
    with open_slide(path, skip_damaged=True) as slide:
        scaled = ScaledSlide(slide, Mpp(1.0), decode="scaled")
        valid = scaled.read(0, 0, scaled.size).valid
        assert (~valid).sum() == 2 * (TILE // 2) ** 2
        places = np.array([0, 32, 64], np.int32)
        assert scaled.damaged(places, places, 32).tolist() == [False, True, False]


def test_store_and_run_say_so_and_keep_to_it(tmp_path):
    path = write_jpeg(tmp_path / "a.tif", stained(512, 640, glass=64), levels=1)
    options = {"slides": path, "mpp": 1.0, "tile": 32, "quiet": True}
    wsiad.tile(**options, out=tmp_path / "scaled", decode="scaled")
    wsiad.tile(**options, out=tmp_path / "full")
    scaled, full = TileStore(tmp_path / "scaled"), TileStore(tmp_path / "full")
    assert (scaled.preparation.decode, full.preparation.decode) == ("scaled", "full")
    assert scaled.digest != full.digest
    (one,), (other,) = scaled, full
    assert len(one) == len(other) > 20
    assert one.facts["read"] == other.facts["read"] | {"reduced_by": 2, "resampled": True}
    assert "decode" not in json.loads(json.dumps(full.preparation.as_json()))
    # A heatmap repeats the preparation of its run.
    kept = preparation_of(scaled, QualityOptions())["preparation"]
    assert Preparation.model_validate(kept).decode == "scaled"
    with pytest.raises(StoreMismatchError, match=r"decode.*full in the store, scaled in the run"):
        store_slides(tmp_path / "full", scaled.preparation, scaled.target)
    with pytest.raises(StoreMismatchError, match="decode is 'scaled' in the store and 'full'"):
        wsiad.tile(**options, out=tmp_path / "scaled")


def test_a_slide_that_is_refused_does_not_stop_the_others(tmp_path):
    (tmp_path / "slides").mkdir()
    image = stained(512, 640, glass=64)
    write_jpeg(tmp_path / "slides/flat.tif", image, levels=1)
    write_jpeg(tmp_path / "slides/pyramid.tif", image)
    result = wsiad.tile(
        slides=tmp_path / "slides", out=tmp_path / "store", mpp=1.0, tile=32, quiet=True,
        decode="scaled",
    )  # fmt: skip
    flat, pyramid = sorted(result.rows, key=lambda row: row.slide)
    assert (flat.status, pyramid.status) == ("ok", "failed")
    assert "`decode: scaled` does nothing at 1 µm/px" in pyramid.reason
