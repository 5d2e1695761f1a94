"""The mathematics of the stain package: density, lasso, dictionary, Macenko, Reinhard."""

import numpy as np
import pytest
import scipy.optimize
import skimage.color
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import dict_learning

from support.stain_images import HE, angles_deg, noisy, tissue
from wsiad.stain.colours import (
    ColourHistogram,
    from_lab,
    is_glass,
    is_stained,
    optical_density,
    to_lab,
    weighted_quantile,
)
from wsiad.stain.methods import (
    concentrations,
    extreme_stains,
    lab_statistics,
    learn_stains,
    objective,
    transfer,
)

seeds = st.integers(0, 2**32 - 1)


def random_problem(seed):
    rng = np.random.default_rng(seed)
    stains = rng.uniform(0, 1, (2, 3))
    stains /= np.linalg.norm(stains, axis=1, keepdims=True)
    return rng.gamma(1.0, 1.0, (50, 3)), stains, float(rng.choice([0.0, 0.01, 0.1, 1.0]))


def densities(seed=0, **options):
    rgb = tissue(seed=seed, **options).reshape(-1, 3)
    return optical_density(rgb[is_stained(rgb.astype(float))])


def haematoxylin_first(matrix):
    return matrix if matrix[0, 0] > matrix[1, 0] else matrix[::-1]


def test_density_of_glass_black_and_what_is_brighter_than_glass():
    rgb = np.array([[255, 255, 255], [0, 1, 127], [250, 240, 230]], np.uint8)
    density = optical_density(rgb, (250.0, 245.0, 230.0))
    assert np.allclose(density[0], 0)
    assert np.allclose(density[1], np.log([250, 245, 230 / 127]))
    assert np.allclose(density[2], [0, np.log(245 / 240), 0])


@pytest.mark.parametrize(
    ("name", "colour", "stained"),
    [
        ("nucleus", (75, 45, 110), True),
        ("dark nucleus", (60, 30, 80), True),
        ("cytoplasm", (200, 120, 160), True),
        ("collagen", (225, 130, 165), True),
        ("bluish haematoxylin", (90, 70, 150), True),
        ("glass", (243, 243, 243), False),
        ("scan border", (8, 8, 8), False),
        ("clipped channel", (90, 5, 120), False),
        ("grey dust", (120, 121, 119), False),
        ("blue ink", (40, 60, 180), False),
        ("green ink", (30, 140, 70), False),
        ("red ink", (200, 30, 50), False),
        ("brown pigment", (120, 80, 50), False),
    ],
)
def test_which_colours_are_stained(name, colour, stained):
    assert is_stained(np.array([colour], float)) == [stained]


def test_glass_is_bright_and_grey_and_not_filled_in():
    colours = [(243, 243, 243), (229, 226, 232), (255, 255, 255), (180, 180, 180), (245, 220, 235)]
    assert is_glass(np.array(colours, float)).tolist() == [True, True, False, False, False]


@given(seeds)
@settings(max_examples=50, deadline=None)
def test_weighted_quantile_equals_that_of_repeated_values(seed):
    rng = np.random.default_rng(seed)
    values, weights = rng.normal(size=(20, 2)), rng.integers(1, 9, 20)
    share = float(rng.uniform())
    expected = np.quantile(np.repeat(values, weights, axis=0), share, axis=0, method="inverted_cdf")
    assert np.array_equal(weighted_quantile(values, weights.astype(float), share), expected)


@given(seeds)
@settings(max_examples=40, deadline=None)
def test_lasso_equals_nnls_of_the_same_problem(seed):
    density, stains, penalty = random_problem(seed)
    root = np.linalg.cholesky(stains @ stains.T)
    expected = [
        scipy.optimize.nnls(root.T, np.linalg.solve(root, stains @ x - penalty))[0] for x in density
    ]
    assert np.abs(concentrations(density, stains, penalty=penalty) - expected).max() < 1e-6


@given(seeds)
@settings(max_examples=60, deadline=None)
def test_lasso_meets_the_kkt_conditions(seed):
    density, stains, penalty = random_problem(seed)
    amounts = concentrations(density, stains, penalty=penalty)
    slope = (amounts @ stains - density) @ stains.T + penalty
    assert amounts.min() >= 0
    tolerance = 1e-9 / (1 - float(stains[0] @ stains[1]) ** 2)
    assert slope.min() >= -tolerance
    assert np.abs(slope[amounts > 0]).max(initial=0) <= tolerance


@pytest.mark.parametrize("seed", range(3))
def test_dictionary_is_no_worse_than_that_of_scikit_learn(seed):
    density = densities(seed, edge=48)
    code, dictionary, _ = dict_learning(
        density,
        n_components=2,
        alpha=0.1,
        positive_code=True,
        positive_dict=True,
        method="cd",
        max_iter=300,
        tol=1e-10,
        random_state=0,
    )
    theirs = (0.5 * ((density - code @ dictionary) ** 2).sum() + 0.1 * np.abs(code).sum()) / len(
        density
    )
    ones = np.ones(len(density))
    mine = learn_stains(density, ones)
    assert objective(density, ones, mine) <= theirs + 1e-9
    found, expected = haematoxylin_first(mine), haematoxylin_first(dictionary)
    assert angles_deg(found, expected).max() < 0.1


def test_objective_is_what_it_says():
    density = densities(edge=24)
    amounts = concentrations(density, HE, penalty=0.1)
    loss = [
        0.5 * ((x - a @ HE) ** 2).sum() + 0.1 * a.sum()
        for x, a in zip(density, amounts, strict=True)
    ]
    assert objective(density, np.ones(len(density)), HE) == pytest.approx(np.mean(loss))


def test_every_start_leads_to_the_same_dictionary(monkeypatch):
    density = densities(edge=64)
    ones = np.ones(len(density))
    expected = haematoxylin_first(learn_stains(density, ones))
    for seed in range(5):
        start = np.random.default_rng(seed).uniform(0.05, 1, (2, 3))
        monkeypatch.setattr("wsiad.stain.methods._START", start)
        assert angles_deg(haematoxylin_first(learn_stains(density, ones)), expected).max() < 0.01


@pytest.mark.parametrize("estimate", [learn_stains, extreme_stains])
@pytest.mark.parametrize(
    "true",
    [HE, [[0.65, 0.70, 0.29], [0.22, 0.80, 0.56]], [[0.52, 0.80, 0.29], [0.23, 0.93, 0.27]]],
)
def test_known_stains_are_recovered(estimate, true):
    true = true / np.linalg.norm(true, axis=1, keepdims=True)
    density = densities(matrix=true)
    found = haematoxylin_first(estimate(density, np.ones(len(density))))
    assert found.min() >= 0
    assert np.allclose(np.linalg.norm(found, axis=1), 1)
    assert angles_deg(found, true).max() < 2.5


@pytest.mark.parametrize("estimate", [learn_stains, extreme_stains])
def test_weights_count_as_repeated_pixels(estimate):
    density = densities(edge=40)
    weights = np.random.default_rng(0).integers(1, 5, len(density))
    repeated = np.repeat(density, weights, axis=0)
    expected = estimate(repeated, np.ones(len(repeated)))
    assert np.abs(estimate(density, weights.astype(float)) - expected).max() < 2e-3


def test_macenko_equals_its_definition_pixel_by_pixel():
    density = densities(edge=128)
    _, vectors = np.linalg.eigh(np.cov(density, rowvar=False))
    plane = vectors[:, [2, 1]]
    plane[:, 0] *= np.sign(plane[:, 0].sum())
    angle = np.arctan2(density @ plane[:, 1], density @ plane[:, 0])
    ends = np.percentile(angle, [1, 99])
    expected = np.stack([np.cos(ends), np.sin(ends)], axis=1) @ plane.T
    found = extreme_stains(density, np.ones(len(density)))
    assert expected.min() > 0
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert angles_deg(haematoxylin_first(found), haematoxylin_first(expected)).max() < 0.05


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_conversion_to_lab_and_back_equals_scikit_image(dtype):
    rgb = np.random.default_rng(0).integers(0, 256, (5000, 3)).astype(dtype)
    lab = to_lab(rgb)
    assert lab.dtype == dtype
    assert np.abs(lab - skimage.color.rgb2lab(rgb[None] / 255)[0]).max() < 2e-3
    assert np.abs(from_lab(lab) - rgb).max() < 2e-2
    wide = lab * [[1.0, 1.4, 1.4]]
    expected = skimage.color.lab2rgb(wide[None])[0] * 255
    assert np.abs(from_lab(wide) - expected).max() < 2e-2


def test_reinhard_gives_tissue_the_mean_and_deviation_of_the_target():
    rgb = tissue().reshape(-1, 3).astype(float)
    rgb = rgb[is_stained(rgb)]
    ones = np.ones(len(rgb))
    lab = skimage.color.rgb2lab(rgb[None] / 255)[0]
    source = lab_statistics(rgb, ones)
    assert np.allclose(source.mean, lab.mean(axis=0), atol=1e-2)
    assert np.allclose(source.std, lab.std(axis=0), atol=1e-2)
    other = tissue(HE[::-1] * [[0.9], [0.7]], seed=3).reshape(-1, 3).astype(float)
    target = lab_statistics(other[is_stained(other)], np.ones(is_stained(other).sum()))
    expected = (lab - source.mean) / source.std * target.std + target.mean
    in_gamut = skimage.color.lab2rgb(expected[None])[0] * 255
    moved = transfer(rgb.astype(np.float32), source, target)
    inside = (in_gamut > 1).all(axis=1) & (in_gamut < 254).all(axis=1) & (expected[:, 0] < 100)
    assert inside.mean() > 0.5
    assert np.abs(moved - in_gamut)[inside].max() < 0.1


def test_reinhard_leaves_white_white_and_lightness_in_order():
    rgb = tissue().reshape(-1, 3).astype(float)
    source = lab_statistics(rgb[is_stained(rgb)], np.ones(is_stained(rgb).sum()))
    for seed in range(20):
        rng = np.random.default_rng(seed)
        target = type(source)(
            (float(rng.uniform(30, 75)), *rng.uniform(-30, 30, 2).tolist()),
            (float(rng.uniform(6, 30)), *rng.uniform(3, 15, 2).tolist()),
        )
        greys = np.repeat(np.arange(256, dtype=np.float32)[:, None], 3, axis=1)
        moved = transfer(greys, source, target)
        assert np.abs(moved[-1] - 255).max() < 0.1
        assert np.diff(to_lab(moved)[200:, 0]).min() > -0.05


def test_histogram_bins_hold_the_mean_colour_of_their_pixels():
    rgb = noisy((200, 100, 150), sigma=30)
    histogram = ColourHistogram()
    histogram.add(rgb)
    sample = histogram.tissue()
    flat = rgb.reshape(-1, 3)
    _, where, counts = np.unique(flat >> 2, axis=0, return_inverse=True, return_counts=True)
    means = [np.bincount(where.ravel(), flat[:, k]) / counts for k in range(3)]
    order, expected = np.lexsort(sample.rgb.T), np.stack(means, axis=1)
    assert np.allclose(sample.rgb[order], expected[np.lexsort(expected.T)])
    assert sample.pixels == histogram.pixels == 256 * 256
