"""The colour table against the formula that it stands for, and its handling of arrays."""

import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import skimage.color

from support.stain_images import GLASS, HE, noisy, tissue
from wsiad.core.errors import StainError
from wsiad.stain.colour_table import ColourTable
from wsiad.stain.colours import ColourHistogram
from wsiad.stain.fit import fit_stains
from wsiad.stain.profile import LabStatistics, StainProfile, TwoStains, reference_profile

CLOSE = [[0.55, 0.71, 0.44], [0.49, 0.73, 0.476]]  # 5° apart


def two_stains(matrix, strength):
    rows = np.asarray(matrix) / np.linalg.norm(matrix, axis=1, keepdims=True)
    return TwoStains(tuple(rows[0].tolist()), tuple(rows[1].tolist()), strength)


PROFILES = {
    "own": StainProfile("vahadane", GLASS, two_stains(HE, (2.0, 1.2))),
    "pale": StainProfile("macenko", (255.0, 250.0, 231.5), two_stains(HE, (0.4, 0.5))),
    "close": StainProfile("vahadane", (255.0,) * 3, two_stains(CLOSE, (2.7, 1.9))),
    "orthogonal": StainProfile("vahadane", GLASS, two_stains([[1, 0, 0], [0, 1, 0]], (1.0, 2.0))),
}


@pytest.fixture(scope="module")
def tables():
    return {
        name: ColourTable.between(profile, reference_profile(profile.method))
        for name, profile in PROFILES.items()
    }


def normalised(rgb, profile, target):
    """The definition, pixel by pixel and active set by active set, in float64."""
    density = np.maximum(-np.log(np.maximum(rgb, 1) / np.array(profile.white)), 0)
    stains, penalty = profile.stains.matrix, 0.01
    best, amounts = np.full(len(rgb), np.inf), np.zeros((len(rgb), 2))
    for active in ([], [0], [1], [0, 1]):
        candidate = np.zeros((len(rgb), 2))
        if active:
            part = stains[active]
            candidate[:, active] = (density @ part.T - penalty) @ np.linalg.inv(part @ part.T)
        loss = 0.5 * ((density - candidate @ stains) ** 2).sum(1) + penalty * candidate.sum(1)
        better = (candidate.min(axis=1) >= 0) & (loss < best)
        best[better], amounts[better] = loss[better], candidate[better]
    scaled = amounts * np.divide(target.stains.strength, profile.stains.strength)
    return 255 * np.exp(-scaled @ target.stains.matrix)


@pytest.mark.parametrize("name", PROFILES)
def test_table_is_the_rounded_formula(tables, name):
    profile = PROFILES[name]
    rng = np.random.default_rng(0)
    corners = np.array(np.meshgrid(*[[0, 1, 2, 128, 254, 255]] * 3)).reshape(3, -1).T
    rgb = np.concatenate([rng.integers(0, 256, (20000, 3)), corners]).astype(np.uint8)
    expected = normalised(rgb, profile, reference_profile(profile.method))
    assert np.abs(tables[name].apply(rgb) - expected).max() < 0.5 + 1e-6


def test_reinhard_table_is_the_rounded_formula():
    source = LabStatistics((55.0, 25.0, -12.0), (15.0, 9.0, 8.0))
    profile = StainProfile("reinhard", (250.0, 245.0, 240.0), lab=source)
    target = reference_profile("reinhard")
    table = ColourTable.between(profile, target)
    rgb = np.random.default_rng(0).integers(0, 256, (20000, 3), dtype=np.uint8)
    lab = skimage.color.rgb2lab(np.minimum(rgb / profile.white, 1)[None])[0]
    moved = (lab - source.mean) / source.std * target.lab.std + target.lab.mean
    expected = skimage.color.lab2rgb(moved[None])[0] * 255
    shown = (lab[:, 0] < 80) & (expected.min(axis=1) > 0) & (expected.max(axis=1) < 255)
    assert shown.sum() > 5000
    assert np.abs(table.apply(rgb) - expected)[shown].max() < 0.51
    assert table.apply(np.array([250, 245, 240], np.uint8)).tolist() == [255, 255, 255]
    assert table.apply(np.array([255, 255, 255], np.uint8)).tolist() == [255, 255, 255]


@pytest.mark.parametrize("name", PROFILES)
def test_glass_becomes_white_and_nothing_brighter_darker(tables, name):
    white = np.ceil(PROFILES[name].white).astype(int)
    assert tables[name].apply(white.astype(np.uint8)).tolist() == [255, 255, 255]
    assert tables[name].apply(np.full(3, 255, np.uint8)).tolist() == [255, 255, 255]
    shades = np.exp(-np.linspace(0, 4, 200)[:, None] * [0.45, 0.8, 0.4]) * white
    mapped = tables[name].apply(shades.round().astype(np.uint8)).astype(int)
    assert np.diff(mapped.sum(axis=1)).max() <= 3  # the darker the darker, but for rounding


def test_slides_without_a_stain_stay_as_they_look():
    pink = noisy((220, 130, 169), sigma=4)
    histogram = ColourHistogram()
    histogram.add(pink)
    profile = fit_stains(histogram)
    assert profile.fallback
    mapped = ColourTable.between(profile, reference_profile()).apply(pink)
    assert np.abs(mapped.mean(axis=(0, 1)) - pink.mean(axis=(0, 1))).max() < 15


def test_target_itself_is_only_projected_onto_its_stains():
    image = tissue(glass=0.0)
    histogram = ColourHistogram()
    histogram.add(image)
    profile = fit_stains(histogram)
    mapped = ColourTable.between(profile, profile).apply(image)
    assert np.abs(mapped.astype(int) - image).mean() < 2


def test_every_layout_and_size_gives_the_same_pixels(tables):
    table = tables["own"]
    tiles = tissue(edge=256).reshape(4, 128, 128, 3)
    expected = table.apply(tiles)
    assert expected.shape == tiles.shape
    assert expected.dtype == np.uint8
    assert not np.array_equal(expected, tiles)
    assert np.array_equal(table.apply(np.asfortranarray(tiles)), expected)
    assert np.array_equal(table.apply(tiles[:, ::-1, ::2]), expected[:, ::-1, ::2])
    assert np.array_equal(
        table.apply(tiles.reshape(-1, 3)[:32771]), expected.reshape(-1, 3)[:32771]
    )
    assert np.array_equal(table.apply(tiles[0, 0, 0]), expected[0, 0, 0])
    assert table.apply(tiles[:0]).shape == (0, 128, 128, 3)
    read_only = tiles.copy()
    read_only.flags.writeable = False
    assert np.array_equal(table.apply(read_only), expected)


@pytest.mark.parametrize("pixels", range(14))
@pytest.mark.parametrize("offset", range(4))
def test_parts_of_any_length_anywhere_in_memory(tables, pixels, offset):
    values = np.random.default_rng(pixels).integers(0, 256, 64, dtype=np.uint8)
    before, part = values.copy(), slice(offset, offset + 3 * pixels)
    expected = [tables["own"].apply(pixel) for pixel in values[part].reshape(-1, 3)]
    tables["own"].apply(values[part].reshape(-1, 3), out=values[part].reshape(-1, 3))
    assert values[part].reshape(-1, 3).tolist() == [pixel.tolist() for pixel in expected]
    outside = np.r_[:offset, part.stop : 64]
    assert np.array_equal(values[outside], before[outside])


def test_colours_are_the_same_known_or_not_alone_or_among_others():
    colours = np.arange(1, 1 << 24, 37, dtype=np.uint32).view(np.uint8).reshape(-1, 4)[:, :3]
    table = ColourTable.between(PROFILES["own"], reference_profile())
    fresh = table.apply(colours)
    assert np.array_equal(table.apply(colours), fresh)
    assert np.array_equal([table.apply(colour) for colour in colours[::999]], fresh[::999])


def test_out_may_be_the_input_itself(tables):
    tiles = tissue()
    expected = tables["own"].apply(tiles)
    assert tables["own"].apply(tiles, out=tiles) is tiles
    assert np.array_equal(tiles, expected)


def test_pixels_are_mapped_in_bounded_memory(tables):
    pixels = np.zeros((4_000_000, 3), np.uint8)
    out = np.empty_like(pixels)
    tracemalloc.start()
    tables["own"].apply(pixels, out=out)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


def test_threads_may_share_a_table(tables):
    images = [tissue(seed=seed) for seed in range(8)]
    expected = [tables["own"].apply(image) for image in images]
    gate = threading.Barrier(4)

    def work(image):
        gate.wait(timeout=30)
        return [tables["own"].apply(image) for _ in range(5)]

    with ThreadPoolExecutor(4) as pool:
        for image, results in zip(expected, pool.map(work, images), strict=True):
            assert all(np.array_equal(image, result) for result in results)


def test_same_profiles_same_table():
    tile = tissue()
    first, second = (ColourTable.between(PROFILES["own"], reference_profile()) for _ in range(2))
    assert np.array_equal(first.apply(tile), second.apply(tile))


def test_method_none_costs_nothing():
    table = ColourTable.between(reference_profile("none"), reference_profile())
    tiles = tissue()
    assert table.is_identity
    assert table.apply(tiles) is tiles
    out = np.zeros_like(tiles)
    assert np.array_equal(table.apply(tiles, out=out), tiles)
    assert out is not tiles


def test_target_of_another_method_is_refused():
    with pytest.raises(StainError, match=r"vahadane.*reinhard.*same method"):
        ColourTable.between(PROFILES["own"], reference_profile("reinhard"))


@pytest.mark.parametrize("method", ["vahadane", "none"])
def test_what_are_no_pixels_is_refused(tables, method):
    table = tables["own"] if method == "vahadane" else ColourTable.identity()
    pixels = np.zeros((4, 4, 3), np.uint8)
    for bad in (pixels.astype(float), pixels[..., :2], np.uint8(3)):
        with pytest.raises(StainError, match="expected uint8"):
            table.apply(np.asarray(bad))
    for out in (pixels[:2], pixels.astype(float), np.zeros((4, 8, 3), np.uint8)[:, ::2]):
        with pytest.raises(StainError, match="out must be"):
            table.apply(pixels, out=out)
