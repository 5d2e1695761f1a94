"""Colour statistics of the tissue and their transfer (Reinhard)."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from wsiad.stain.density import MAX_LIGHTNESS, Weights
from wsiad.stain.lab import from_lab, to_lab
from wsiad.stain.profile import LabStatistics

_WHITE_LIGHTNESS: Final = 100.0


def lab_statistics(rgb: npt.NDArray[np.float64], weights: Weights) -> LabStatistics:
    """Return mean and standard deviation of L*, a* and b*.

    Parameters
    ----------
    rgb : ndarray of float64, (n, 3)
        Colours of stained tissue relative to white glass, 0 to 255.
    weights : ndarray of float64, (n,)
        Pixels of each colour.

    Raises
    ------
    StainError
        All colours are the same.
    """
    lab = to_lab(rgb)
    mean = np.average(lab, axis=0, weights=weights)
    std = np.sqrt(np.average((lab - mean) ** 2, axis=0, weights=weights))
    return LabStatistics(
        (float(mean[0]), float(mean[1]), float(mean[2])),
        (float(std[0]), float(std[1]), float(std[2])),
    )


def transfer(
    rgb: npt.NDArray[np.float32], source: LabStatistics, target: LabStatistics
) -> npt.NDArray[np.float32]:
    """Give colours the mean and standard deviation of the target's tissue.

    Exactly that up to L* = 80, that is for all colours that :func:`lab_statistics`
    was told of. From there on lightness goes linearly on to white, and what is done to
    a* and b* fades to nothing: glass stays glass.

    Parameters
    ----------
    rgb : ndarray of float32, (n, 3)
        Colours relative to white glass, 0 to 255.
    source, target : LabStatistics
        Of the slide and of what it shall look like.

    Returns
    -------
    ndarray of float32, (n, 3)
        0 to 255, not rounded.

    References
    ----------
    E. Reinhard et al., "Color transfer between images", IEEE Comput. Graph. Appl.
    21(5), 2001; in CIE L*a*b* as is usual for histology, not in their lαβ.
    """
    lab = to_lab(rgb)
    scale = np.divide(target.std, source.std)
    shift = np.array(target.mean) - scale * source.mean
    moved = lab * scale.astype(np.float32) + shift.astype(np.float32)
    pale = (lab[:, :1] - MAX_LIGHTNESS) / (_WHITE_LIGHTNESS - MAX_LIGHTNESS)
    pale = np.clip(pale, 0.0, 1.0, out=pale)
    knee = min(float(MAX_LIGHTNESS * scale[0] + shift[0]), _WHITE_LIGHTNESS)
    ramp = knee + pale * (_WHITE_LIGHTNESS - knee)
    moved[:, :1] = np.where(pale > 0, ramp, moved[:, :1])
    moved[:, 1:] += pale * (lab[:, 1:] - moved[:, 1:])
    return from_lab(moved)
