"""The stain profile of a slide, a value that is stored with the slide, and the reference stain.

The reference stain is the default target, and the fallback for a slide that has no stain to fit.
It is the mean of three real appearances of haematoxylin and eosin, each fitted by this package:
healthy lymph node of either centre of CAMELYON16 (the 8,835 normal training tiles of
PatchCamelyon with enough tissue, at about 1 µm/px, separated by their ratio of blue to green
density), and skin (OpenSlide's CMU-1-Small-Region, 0.5 µm/px). All are CC0. As it is between
them, it changes each as little as possible. ``benchmarks/stain.py reference`` computes it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from wsiad.core.errors import StainError

WHITE: Final = (255.0, 255.0, 255.0)
"""Colour of empty glass if a slide does not show any."""

StainMethod: TypeAlias = Literal["vahadane", "macenko", "reinhard", "none"]
"""Method by which the stain of a slide is estimated."""

Triple: TypeAlias = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class TwoStains:
    """The stains of a slide as optical densities.

    Parameters
    ----------
    haematoxylin, eosin : tuple of float
        Optical density of R, G and B; unit vectors.
    strength : tuple of float
        99th percentile of the concentration of each over the stained tissue.
    """

    haematoxylin: Triple
    eosin: Triple
    strength: tuple[float, float]

    def __post_init__(self) -> None:
        vectors = [_numbers("stain vector", v, 3) for v in (self.haematoxylin, self.eosin)]
        strength = _numbers("strength", self.strength, 2)
        unit = all(math.isclose(math.hypot(*v), 1.0, abs_tol=1e-3) for v in vectors)
        if not unit or min(map(min, vectors)) < 0 or min(strength) <= 0:
            raise StainError(
                "stain vectors must be non-negative unit vectors of positive strength, "
                f"got {self.haematoxylin}, {self.eosin} and {self.strength}"
            )
        if self.angle_deg < 1e-3:
            raise StainError("both stain vectors are the same")

    @property
    def matrix(self) -> npt.NDArray[np.float64]:
        """Haematoxylin and eosin as unit rows, float64 (2, 3)."""
        rows = np.array([self.haematoxylin, self.eosin])
        unit: npt.NDArray[np.float64] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return unit

    @property
    def angle_deg(self) -> float:
        """Angle between both stain vectors, degrees."""
        cosine = float(np.clip(self.matrix[0] @ self.matrix[1], -1.0, 1.0))
        return math.degrees(math.acos(cosine))


@dataclass(frozen=True, slots=True)
class LabStatistics:
    """Mean and standard deviation of L*, a* and b* over the stained tissue."""

    mean: Triple
    std: Triple

    def __post_init__(self) -> None:
        _numbers("mean of L*a*b*", self.mean, 3)
        if min(_numbers("standard deviation of L*a*b*", self.std, 3)) <= 0:
            raise StainError(f"standard deviations must be positive, got {self.std}")


@dataclass(frozen=True, slots=True)
class FitQuality:
    """Measures of the pixels on which a fit is based.

    Parameters
    ----------
    stained_pixels : int
        Number of pixels of stained tissue.
    stained_share : float
        Their share of all pixels counted.
    flatness : float
        Second over first singular value of their optical densities, near 0 if there is
        only one stain.
    angle_deg : float or None
        Angle between the fitted stain vectors, degrees.
    """

    stained_pixels: int
    stained_share: float
    flatness: float
    angle_deg: float | None = None

    def __post_init__(self) -> None:
        angle = 0.0 if self.angle_deg is None else self.angle_deg
        _numbers("quality", (self.stained_pixels, self.stained_share, self.flatness, angle), 4)


@dataclass(frozen=True, slots=True)
class StainProfile:
    """The stain of a slide.

    Parameters
    ----------
    method : StainMethod
        Method by which it was estimated.
    white : tuple of float
        Colour of empty glass, 0 to 255.
    stains : TwoStains or None
        The stains, with the methods ``vahadane`` and ``macenko``.
    lab : LabStatistics or None
        The statistics, with the method ``reinhard``.
    fallback : str or None
        Reason why the reference's stain replaces the slide's own; ``None`` if it does not.
    quality : FitQuality or None
        Measures of the fit; ``None`` if nothing was fitted.
    """

    method: StainMethod
    white: Triple = WHITE
    stains: TwoStains | None = None
    lab: LabStatistics | None = None
    fallback: str | None = None
    quality: FitQuality | None = None

    def __post_init__(self) -> None:
        checked_method(self.method)
        if not all(1 <= value <= 255 for value in _numbers("white", self.white, 3)):
            raise StainError(f"white must be within 1 and 255, got {self.white}")
        has = {"vahadane": self.stains, "macenko": self.stains, "reinhard": self.lab}
        if self.method != "none" and has[self.method] is None:
            raise StainError(f"a profile of {self.method} lacks its numbers")
        if not isinstance(self.fallback, str | None):
            raise StainError(f"fallback must be a text, got {self.fallback!r}")

    def to_dict(self) -> dict[str, Any]:
        """Return the profile as JSON values that :meth:`from_dict` reads back."""
        # By way of JSON, so that what is stored and what is at hand compare equal.
        values: dict[str, Any] = json.loads(json.dumps(asdict(self), allow_nan=False))
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StainProfile:
        """Make a profile from the values that :meth:`to_dict` returned, even by way of JSON.

        Raises
        ------
        StainError
            The values are not those of a profile.
        """
        try:
            parts = dict(values)
            for key, part in (("stains", TwoStains), ("lab", LabStatistics)):
                if parts.get(key) is not None:
                    parts[key] = part(**{k: tuple(v) for k, v in parts[key].items()})
            if parts.get("quality") is not None:
                parts["quality"] = FitQuality(**parts["quality"])
            if "white" in parts:
                parts["white"] = tuple(parts["white"])
            return cls(**parts)
        except (AttributeError, TypeError, ValueError) as error:
            if isinstance(error, StainError):
                raise
            raise StainError(f"this is not a stain profile ({error})") from error


def checked_method(method: str) -> StainMethod:
    """Return the method if it is known.

    Raises
    ------
    StainError
        The method is unknown.
    """
    for known in get_args(StainMethod):
        if method == known:
            return known
    raise StainError(
        f"unknown stain method {method!r}", remedy=f"Known: {', '.join(get_args(StainMethod))}."
    )


def _numbers(name: str, values: object, count: int) -> tuple[float, ...]:
    if not (
        isinstance(values, tuple)
        and len(values) == count
        and all(isinstance(v, int | float) and math.isfinite(v) for v in values)
    ):
        raise StainError(f"{name} must be {count} finite numbers, got {values!r}")
    return values


_VAHADANE: Final = TwoStains(
    haematoxylin=(0.523, 0.755, 0.395), eosin=(0.248, 0.867, 0.432), strength=(2.73, 1.60)
)
# Macenko's stains lie further apart by definition, hence a reference of its own.
_MACENKO: Final = TwoStains(
    haematoxylin=(0.578, 0.720, 0.385), eosin=(0.058, 0.898, 0.435), strength=(2.54, 1.19)
)
_LAB: Final = LabStatistics(mean=(50.1, 32.2, -20.3), std=(16.9, 8.4, 8.3))


def reference_profile(method: StainMethod = "vahadane") -> StainProfile:
    """Return the reference stain as a profile of a method; its glass is pure white."""
    match method:
        case "vahadane":
            return StainProfile(method, stains=_VAHADANE)
        case "macenko":
            return StainProfile(method, stains=_MACENKO)
        case "reinhard":
            return StainProfile(method, lab=_LAB)
        case "none":
            return StainProfile(method)
