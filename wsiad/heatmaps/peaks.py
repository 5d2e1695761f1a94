"""Make detections from a heatmap, by non-maximum suppression or from connected regions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from wsiad.core.errors import ConfigError
from wsiad.core.geometry import Microns
from wsiad.heatmaps.score_map import Heatmap

Suppression = Literal["disc", "square", "regions-max", "regions-mean"]

DEFAULT_RADIUS = Microns(187.0)
"""Radius of suppression: six pixels of 128 level-0 pixels at 0.243 µm/px (Liu et al.)."""

_FIRST_CHUNK = 1024


@dataclass(frozen=True, slots=True)
class Detection:
    """Point on a slide that is taken to be abnormal.

    Parameters
    ----------
    x, y : float
        Position in level-0 pixels, always on the slide.
    score : float
        Anomaly score at this point.
    """

    x: float
    y: float
    score: float


def find_peaks(
    heatmap: Heatmap,
    *,
    threshold: float,
    radius: Microns = DEFAULT_RADIUS,
    suppression: Suppression = "disc",
    limit: int | None = None,
    reach: npt.NDArray[np.floating] | None = None,
) -> list[Detection]:
    """Report the strongest pixel of a heatmap, suppress its surroundings, and repeat.

    Parameters
    ----------
    heatmap : Heatmap
        Anomaly scores; NaN pixels are not candidates.
    threshold : float
        Lower limit of the score; only scores above it, not equal to it, are reported.
    radius : Microns
        Radius of the suppression, µm.
    suppression : {"disc", "square", "regions-max", "regions-mean"}
        ``"disc"`` suppresses every pixel whose centre is at most `radius` away, as Liu et al.
        describe it. ``"square"`` suppresses pixels from ``-r`` to ``r - 1`` in rows and columns,
        where ``r`` is the radius in whole pixels; it is the asymmetric window of NCRF, with
        which published figures were computed. ``"regions-max"`` and ``"regions-mean"`` report
        one detection for each connected region above the threshold, as in Wang et al.; see
        :func:`find_region_peaks`. They ignore the radius.
    limit : int, optional
        Maximum number of detections.
    reach : ndarray of float, (H, W), optional
        Radius of the suppression around each pixel, µm, where it is larger than `radius`.

    Returns
    -------
    list of Detection
        Detections, strongest first; of equal scores the first in row-major order. The position
        is the centre of the part of the pixel that is on the slide. Pixels completely off the
        slide are not candidates.

    Raises
    ------
    ConfigError
        Threshold or radius is not a valid number, the limit is below 1, or the suppression has
        an unknown name.

    References
    ----------
    Liu et al., "Detecting Cancer Metastases on Gigapixel Pathology Images",
    arXiv:1703.02442, 2017. Li & Ping, "Cancer Metastasis Detection With Neural
    Conditional Random Field", MIDL 2018 (NCRF). Wang et al., "Deep Learning for
    Identifying Metastatic Breast Cancer", arXiv:1606.05718, 2016.
    """
    _check(threshold, radius, suppression=suppression, limit=limit)
    if suppression in ("regions-max", "regions-mean"):
        mean = suppression == "regions-mean"
        return find_region_peaks(heatmap, threshold=threshold, mean=mean, limit=limit)

    @functools.cache
    def stamp(length: float) -> _Stamp:
        return _stamp(heatmap, Microns(length), suppression=suppression)

    def around(row: int, column: int) -> _Stamp:
        wider = 0.0 if reach is None else float(reach[row, column])
        return stamp(max(float(radius), wider))

    x, y = _visible_centres(heatmap)
    on_slide = ~np.isnan(y)[:, None] & ~np.isnan(x)
    candidates = np.flatnonzero((heatmap.scores > threshold) & on_slide)
    strength = heatmap.scores.ravel()[candidates]
    # A stable sort keeps row-major order among equal scores.
    candidates = candidates[np.argsort(-strength, kind="stable")]
    peaks = _suppress(candidates, heatmap.scores.shape, stamp_at=around, limit=limit)
    rows, columns = np.divmod(np.asarray(peaks, np.int64), heatmap.size.width)
    return [
        Detection(x=float(x[column]), y=float(y[row]), score=float(heatmap.scores[row, column]))
        for row, column in zip(rows, columns, strict=True)
    ]


def find_region_peaks(
    heatmap: Heatmap, *, threshold: float, mean: bool, limit: int | None = None
) -> list[Detection]:
    """Report the centre of each connected region above a threshold.

    Parameters
    ----------
    heatmap : Heatmap
        Anomaly scores; NaN pixels are in no region.
    threshold : float
        Lower limit of the score; only pixels above it count. Pixels that share an edge or a
        corner are connected.
    mean : bool
        True where a region's score is the mean of its pixels; otherwise it is their maximum.
    limit : int, optional
        Maximum number of detections.

    Returns
    -------
    list of Detection
        Detections, strongest first; of equal scores the upper first. The position is the pixel
        of the region that is nearest to the region's centroid (of equally near ones the first
        in row-major order). The centroid itself can be outside the region, as for a crescent.
    """
    from scipy import ndimage

    x, y = _visible_centres(heatmap)
    above = (heatmap.scores > threshold) & ~np.isnan(y)[:, None] & ~np.isnan(x)
    labels, count = ndimage.label(above, np.ones((3, 3)))
    rows, columns = np.nonzero(above)
    if not count:
        return []
    region = labels[rows, columns] - 1
    scores = heatmap.scores[rows, columns].astype(np.float64)
    sizes = np.bincount(region)
    if mean:
        strength = np.bincount(region, scores) / sizes
    else:
        strength = np.full(count, -np.inf)
        np.maximum.at(strength, region, scores)
    width, height = heatmap.pixel_um
    away = sum(
        (edge * (place - (np.bincount(region, place) / sizes)[region])) ** 2
        for edge, place in ((width, columns), (height, rows))
    )
    # Rounded, so that pixels equally far away stay so whatever the sums round to.
    order = np.lexsort((np.arange(len(region)), np.round(away, 6), region))
    centre = order[np.searchsorted(region[order], np.arange(count))]
    ranked = np.argsort(-strength, kind="stable")[:limit]
    return [
        Detection(float(x[columns[i]]), float(y[rows[i]]), score=float(strength[number]))
        for number, i in zip(ranked.tolist(), centre[ranked].tolist(), strict=True)
    ]


@dataclass(frozen=True, slots=True)
class _Stamp:
    """Mask of the pixels to suppress around a peak, which is at ``(row, column)`` of the mask."""

    mask: npt.NDArray[np.bool_]
    row: int
    column: int


def _stamp(heatmap: Heatmap, radius: Microns, *, suppression: Suppression) -> _Stamp:
    width, height = heatmap.pixel_um
    # No reach beyond the map is of use; it also bounds the stamp's memory.
    if suppression == "square":
        across = min(max(1, round(radius / width)), heatmap.size.width)
        down = min(max(1, round(radius / height)), heatmap.size.height)
        return _Stamp(np.ones((2 * down, 2 * across), np.bool_), down, across)
    # The tiny allowance keeps a radius of whole pixels whole after division.
    across = min(int(radius / width * (1 + 1e-9)), heatmap.size.width)
    down = min(int(radius / height * (1 + 1e-9)), heatmap.size.height)
    dx = np.arange(-across, across + 1) * width
    dy = np.arange(-down, down + 1)[:, None] * height
    return _Stamp(dx**2 + dy**2 <= (radius * (1 + 1e-9)) ** 2, down, across)


def _suppress(
    candidates: npt.NDArray[np.intp],
    shape: tuple[int, ...],
    *,
    stamp_at: Callable[[int, int], _Stamp],
    limit: int | None,
) -> list[int]:
    """Return the candidates (flat, strongest first) that no earlier peak suppresses."""
    width = shape[1]
    suppressed = np.zeros(shape, np.bool_)
    flat = suppressed.ravel()
    peaks: list[int] = []
    start, chunk = 0, _FIRST_CHUNK
    while start < len(candidates):
        # Most of a later chunk is suppressed already: drop that at once.
        alive = candidates[start : start + chunk]
        for place in alive[~flat[alive]].tolist():
            if flat[place]:
                continue
            if limit is not None and len(peaks) >= limit:
                return peaks
            peaks.append(place)
            row, column = divmod(place, width)
            stamp = stamp_at(row, column)
            top, left = max(0, row - stamp.row), max(0, column - stamp.column)
            under = suppressed[
                top : row - stamp.row + stamp.mask.shape[0],
                left : column - stamp.column + stamp.mask.shape[1],
            ]
            from_row, from_column = top - row + stamp.row, left - column + stamp.column
            under |= stamp.mask[
                from_row : from_row + under.shape[0], from_column : from_column + under.shape[1]
            ]
        start, chunk = start + chunk, chunk * 2
    return peaks


def _visible_centres(
    heatmap: Heatmap,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the centres of columns and rows, level-0 pixels; NaN off the slide.

    They are the centres of the parts that are on the slide.
    """
    x, y = heatmap.placement.to_level0(
        np.arange(heatmap.size.width + 1.0), np.arange(heatmap.size.height + 1.0)
    )
    return _centres(x, heatmap.slide_size.width), _centres(y, heatmap.slide_size.height)


def _centres(edges: npt.NDArray[np.float64], end: int) -> npt.NDArray[np.float64]:
    cut = np.clip(edges, 0, end)
    return np.where(np.diff(cut) > 0, (cut[:-1] + cut[1:]) / 2, np.nan)


def _check(
    threshold: float, radius: Microns, *, suppression: Suppression, limit: int | None
) -> None:
    if not np.isfinite(threshold):
        raise ConfigError(f"a detection threshold of {threshold} is not a finite number")
    if not (np.isfinite(radius) and radius > 0):
        raise ConfigError(f"a suppression radius of {radius} µm is not a positive length")
    if suppression not in get_args(Suppression):
        raise ConfigError(
            f"no suppression is named {suppression!r}",
            remedy=f"Choose one of {', '.join(get_args(Suppression))}.",
        )
    if limit is not None and limit < 1:
        raise ConfigError(
            f"a limit of {limit} detections leaves none", remedy="Set a limit of 1 or more."
        )
