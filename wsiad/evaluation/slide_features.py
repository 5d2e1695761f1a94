"""Features of a slide's heatmap: how many regions stand out, how large, of what shape.

Wang et al. (arXiv:1606.05718, 2016) gave a random forest 28 geometric features of their
tumour probability maps; which ones is not published in full. These are the 31 of the open
reimplementation of their method by Vekariya (2017), by definition. Pure arithmetic.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

HIGH, LOW = 0.9, 0.5
"""Thresholds on a tumour probability: at least the first, more than the second."""

_STATISTICS = ("max", "mean", "variance", "skewness", "kurtosis")
_SHAPES = (
    ("area", "high"),
    ("perimeter", "high"),
    ("eccentricity", "high"),
    ("extent", "low"),
    ("solidity", "high"),
)

NAMES = (
    "regions high",
    "area high / tissue",
    "area of largest region low",
    "longest axis of largest region low",
    "pixels high",
    "mean of region means high",
    *(f"{shape} {level} {name}" for shape, level in _SHAPES for name in _STATISTICS),
)
"""Names of the 31 features; high and low say by which threshold regions are found."""


def slide_features(values: Floats, *, high: float = HIGH, low: float = LOW) -> Floats:
    """Measure the regions of a heatmap that stand out.

    Parameters
    ----------
    values : ndarray of float64, (H, W)
        From 0 (healthy) to 1, such as a tumour probability or a percentile among healthy
        tissue; NaN where there is no tissue.
    high, low : float
        Regions are the connected pixels (8-connectivity) of at least `high`, and of more
        than `low`.

    Returns
    -------
    ndarray of float64, (31,)
        In the order of :data:`NAMES`, lengths and areas in heatmap pixels. All are 0 where
        no pixel reaches `high`. Variance is that of the population, kurtosis is excess
        kurtosis; both and skewness are 0 for a single region. Not rounded.
    """
    features = np.zeros(len(NAMES))
    strong, weak = _regions(values, values >= high), _regions(values, values > low)
    if not strong:
        return features
    largest = max(weak, key=lambda region: region.area)
    pixels = float(np.count_nonzero(values >= high))
    features[:6] = (
        len(strong),
        pixels / np.count_nonzero(np.isfinite(values)),
        largest.area,
        largest.axis_major_length,
        pixels,
        np.mean([region.intensity_mean for region in strong]),
    )
    for index, (shape, level) in enumerate(_SHAPES):
        regions = strong if level == "high" else weak
        measured = np.array([float(getattr(region, shape)) for region in regions])
        features[6 + 5 * index : 11 + 5 * index] = _statistics(measured)
    return features


def _regions(values: Floats, mask: npt.NDArray[np.bool_]) -> list[Any]:
    from skimage import measure

    labels = measure.label(mask, connectivity=2)
    return list(measure.regionprops(labels, intensity_image=np.where(mask, values, 0.0)))


def _statistics(values: Floats) -> tuple[float, ...]:
    """Maximum, mean, population variance, skewness and excess kurtosis; shapeless ones are 0."""
    mean, variance = float(values.mean()), float(values.var())
    away = values - mean
    if variance <= (1e-9 * max(1.0, abs(mean))) ** 2:
        return float(values.max()), mean, 0.0, 0.0, 0.0
    skewness = float((away**3).mean()) / variance**1.5
    kurtosis = float((away**4).mean()) / variance**2 - 3
    return float(values.max()), mean, variance, skewness, kurtosis
