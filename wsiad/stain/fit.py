"""The fit of a stain profile to the colours of a slide, with a fallback if none can be fitted."""

from __future__ import annotations

from typing import Final

import numpy as np

from wsiad.core.errors import StainError
from wsiad.stain.colours import (
    ColourHistogram,
    ColourSample,
    is_glass,
    is_stained,
    optical_density,
    weighted_quantile,
)
from wsiad.stain.methods import Stains, concentrations, extreme_stains, lab_statistics, learn_stains
from wsiad.stain.profile import (
    WHITE,
    FitQuality,
    LabStatistics,
    StainMethod,
    StainProfile,
    Triple,
    TwoStains,
    checked_method,
    reference_profile,
)

MIN_STAINED_PIXELS: Final = 2000
"""Minimum number of pixels of stained tissue from which a stain is estimated."""
MIN_GLASS_SHARE: Final = 0.01
"""Share of the pixels that must be glass for its colour to be used."""
MIN_FLATNESS: Final = 0.03
"""Second over first singular value of the densities, below which there is only one stain."""
MIN_ANGLE_DEG: Final = 5.0
"""Angle between the stains, degrees, below which their concentrations are mere noise."""
MIN_RED_DIFFERENCE: Final = 0.03
"""Minimum by which haematoxylin must absorb more red than eosin, to distinguish the two."""
MIN_STRENGTH: Final = 0.4
"""99th percentile of a concentration, below which the stain is practically absent."""
MIN_LAB_STD: Final = (5.0, 2.0, 2.0)
"""Standard deviations of L*, a* and b* below which all tissue has one colour."""
STRENGTH_QUANTILE: Final = 0.99


def fit_stains(histogram: ColourHistogram, *, method: StainMethod = "vahadane") -> StainProfile:
    """Estimate the stain of a slide; fall back on the reference's stain where there is none.

    Parameters
    ----------
    histogram : ColourHistogram
        Colours of the slide, counted at or near the µm/px at which it will be normalised.
    method : StainMethod
        Method of the estimate.

    Returns
    -------
    StainProfile
        The profile. If the slide shows too little tissue, only one stain, or nothing that could
        be haematoxylin and eosin, ``fallback`` states why, and the stain is the reference's.

    Raises
    ------
    StainError
        The method is unknown.
    """
    if checked_method(method) == "none":
        return StainProfile("none")
    white = glass_colour(histogram)
    tissue = stained_tissue(histogram, white)
    flatness = _flatness(tissue)
    reason: str | None = None
    try:
        _check_tissue(tissue, flatness)
        stains, lab = _estimate(tissue, method)
    except StainError as error:
        reason = error.problem
        reference = reference_profile(method)
        stains, lab = reference.stains, reference.lab
    quality = FitQuality(
        stained_pixels=tissue.pixels,
        stained_share=tissue.pixels / max(histogram.pixels, 1),
        flatness=flatness,
        angle_deg=stains.angle_deg if stains and not reason else None,
    )
    return StainProfile(
        method=method, white=white, stains=stains, lab=lab, fallback=reason, quality=quality
    )


def glass_colour(histogram: ColourHistogram) -> Triple:
    """Return the median colour of the glass, or pure white if too little glass is seen."""
    everything = histogram.all()
    glass = everything.where(is_glass(everything.rgb))
    if glass.pixels < max(MIN_GLASS_SHARE * everything.pixels, 1):
        return WHITE
    red, green, blue = weighted_quantile(glass.rgb, glass.weights, 0.5)
    return float(red), float(green), float(blue)


def stained_tissue(histogram: ColourHistogram, white: Triple) -> ColourSample:
    """Return the colours of stained tissue relative to the glass."""
    tissue = histogram.tissue()
    balanced = ColourSample(np.minimum(tissue.rgb * (255.0 / np.array(white)), 255), tissue.weights)
    return balanced.where(is_stained(balanced.rgb))


def _flatness(tissue: ColourSample) -> float:
    if not tissue.pixels:
        return 0.0
    density = optical_density(tissue.rgb)
    moments = np.linalg.eigvalsh((density.T * tissue.weights) @ density)
    return float(np.sqrt(max(moments[1], 0.0) / moments[2]))


def _check_tissue(tissue: ColourSample, flatness: float) -> None:
    if tissue.pixels < MIN_STAINED_PIXELS:
        raise StainError(
            f"only {tissue.pixels} pixels of stained tissue (at least {MIN_STAINED_PIXELS} needed)"
        )
    if flatness < MIN_FLATNESS:
        raise StainError(
            f"the tissue has one colour only (flatness {flatness:.3f}, "
            f"at least {MIN_FLATNESS} needed)"
        )


def _estimate(
    tissue: ColourSample, method: StainMethod
) -> tuple[TwoStains | None, LabStatistics | None]:
    if method == "reinhard":
        return None, _lab(tissue)
    estimate = learn_stains if method == "vahadane" else extreme_stains
    matrix = estimate(optical_density(tissue.rgb), tissue.weights)
    # Haematoxylin is blue and eosin pink: it is the first that takes the red away.
    return _two_stains(matrix if matrix[0, 0] >= matrix[1, 0] else matrix[::-1], tissue), None


def _two_stains(matrix: Stains, tissue: ColourSample) -> TwoStains:
    angle = float(np.degrees(np.arccos(np.clip(matrix[0] @ matrix[1], -1.0, 1.0))))
    if angle < MIN_ANGLE_DEG:
        raise StainError(f"the stains are {angle:.1f}° apart (at least {MIN_ANGLE_DEG:g}° needed)")
    difference = matrix[0, 0] - matrix[1, 0]
    if difference < MIN_RED_DIFFERENCE:
        raise StainError(
            f"haematoxylin and eosin cannot be told apart (their red densities differ by "
            f"{difference:.3f}, at least {MIN_RED_DIFFERENCE} needed)"
        )
    amounts = concentrations(optical_density(tissue.rgb), matrix)
    strength = weighted_quantile(amounts, tissue.weights, STRENGTH_QUANTILE)
    if strength.min() < MIN_STRENGTH:
        raise StainError(
            f"a stain is all but absent (99th percentiles {strength[0]:.2f} and "
            f"{strength[1]:.2f}, at least {MIN_STRENGTH} needed)"
        )
    rows = [(float(r), float(g), float(b)) for r, g, b in matrix]
    return TwoStains(rows[0], rows[1], (float(strength[0]), float(strength[1])))


def _lab(tissue: ColourSample) -> LabStatistics:
    lab = lab_statistics(tissue.rgb, tissue.weights)
    if any(std < least for std, least in zip(lab.std, MIN_LAB_STD, strict=True)):
        found = ", ".join(f"{std:.1f}" for std in lab.std)
        raise StainError(
            f"the tissue has one colour only (standard deviations of L*a*b* {found}, "
            f"at least {MIN_LAB_STD} needed)"
        )
    return lab
