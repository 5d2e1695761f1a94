from __future__ import annotations

import matplotlib
import numpy as np
import pytest

from wsiad.core.errors import ConfigError
from wsiad.pictures.colour_scale import HEALTHY_LEVELS, ColourScale


def test_the_ends_and_the_middle():
    scale = ColourScale.from_healthy([2.0, 3.0, 6.0, 8.0])
    scores = np.array([2.0, 3.0, 4.5, 6.0, 8.0, 10.0])
    np.testing.assert_allclose(scale.unit(scores), [0, 0.25, 0.375, 0.5, 0.75, 1])


def test_scores_beyond_the_ends_are_clipped_and_nan_stays():
    scale = ColourScale((0.0, 1.0))
    unit = scale.unit(np.array([-np.inf, -3, 0.25, 7, np.inf, np.nan], np.float32))
    np.testing.assert_array_equal(unit, np.float32([0, 0, 0.25, 1, 1, np.nan]))


@pytest.mark.parametrize("name", ["inferno", "viridis", "magma", "plasma", "cividis"])
def test_colours_are_those_of_the_map(name):
    scale = ColourScale((0.0, 1.0), name)
    scores = np.linspace(0, 1, 256)
    expected = matplotlib.colormaps[name](np.arange(256), bytes=True)[:, :3]
    np.testing.assert_array_equal(scale.rgba(scores)[:, :3], expected)


def test_unscored_is_clear_and_everything_scored_is_not():
    rgba = ColourScale((0.0, 1.0)).rgba(np.array([[np.nan, -5.0], [0.0, 1.0]], np.float32))
    assert rgba.dtype == np.uint8
    assert rgba.shape == (2, 2, 4)
    assert rgba[0, 0].tolist() == [0, 0, 0, 0]
    assert (rgba[..., 3] > 0).tolist() == [[False, True], [True, True]]


def test_opacity_grows_with_strangeness():
    alpha = ColourScale((0.0, 1.0)).rgba(np.linspace(0, 1, 300))[:, 3].astype(int)
    assert (np.diff(alpha) >= 0).all()
    assert alpha[-1] > 200


def test_a_healthy_slide_is_calm_whatever_its_own_maximum():
    """All but the strangest 1 % stay faint; on a scale of its own a slide would glow."""
    healthy = np.random.default_rng(0).gamma(4, size=100_000)
    scale = ColourScale.from_healthy(np.quantile(healthy, HEALTHY_LEVELS).tolist())
    slide = np.random.default_rng(1).gamma(4, size=(100, 100))
    alpha = scale.rgba(slide)[..., 3] / 255
    assert alpha.mean() < 0.15
    assert np.quantile(alpha, 0.98) < 0.4
    assert (alpha > 0.8).mean() == pytest.approx(0.01, abs=0.004)
    assert scale.rgba(np.array([scale.high]))[0, 3] / 255 > 0.8


def test_the_legend_is_the_scale():
    scale = ColourScale((1.0, 2.0, 4.0), "viridis")
    legend = scale.legend()
    assert (legend["map"], legend["low"], legend["high"]) == ("viridis", 1.0, 4.0)
    for step in legend["steps"]:
        assert step["rgba"] == scale.rgba(np.array(step["score"])).tolist()
    assert [step["score"] for step in legend["steps"]] == [1.0, 2.0, 4.0]


@pytest.mark.parametrize(
    "bad",
    [((1.0, 1.0),), ((2.0, 1.0),), ((np.nan, 1.0),), ((0.0, np.inf),), ((1.0,),), ((0, 1), "jet")],
)
def test_senseless_scales_are_refused(bad):
    with pytest.raises(ConfigError):
        ColourScale(*bad)


def test_equal_healthy_scores_still_give_a_scale():
    scale = ColourScale.from_healthy([1.0, 1.0, 1.0, 1.0])
    assert scale.unit(np.array([0.9, 1.0, 1.1])).tolist() == [0, 0, 1]


@pytest.mark.parametrize("bad", [[1.0, 2.0], [1.0, 3.0, 2.0, 4.0]])
def test_healthy_quantiles_must_be_the_levels_and_rise(bad):
    with pytest.raises(ConfigError, match="healthy quantiles"):
        ColourScale.from_healthy(bad)


def test_the_legend_has_percentiles_where_they_are_known():
    legend = ColourScale.from_healthy([1.0, 2.0, 3.0, 5.0]).legend()
    assert [step["percentile"] for step in legend["steps"]] == [50, 90, 99, 99.9, None]
    assert [step["percentile"] for step in ColourScale((0.0, 1.0)).legend()["steps"]] == [None] * 2


@pytest.mark.parametrize("name", ["inferno", "viridis", "magma", "plasma", "cividis"])
def test_equal_steps_look_equal(name):
    """Lightness (CIE L*) rises all along the map, and by about as much everywhere."""
    rgb = ColourScale((0.0, 1.0), name).rgba(np.linspace(0, 1, 65))[:, :3] / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    lightness = np.where(luminance > 0.008856, 116 * np.cbrt(luminance) - 16, 903.3 * luminance)
    steps = np.diff(lightness)
    assert (steps > 0).all()
    assert steps.max() < 3 * np.median(steps)
