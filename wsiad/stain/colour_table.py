"""The colour table: a slide's whole normalisation as one look-up per pixel."""

from __future__ import annotations

from typing import Final, Self

import numpy as np
import numpy.typing as npt

from wsiad.core.errors import StainError
from wsiad.stain.concentration import PENALTY
from wsiad.stain.density import optical_density
from wsiad.stain.lookup import ENTRIES, NO_MAP, Entries, StainMap, map_in_place
from wsiad.stain.profile import LabStatistics, StainProfile, Triple, TwoStains
from wsiad.stain.reinhard import transfer

Pixels = npt.NDArray[np.uint8]
"""RGB pixels, uint8 (..., 3)."""

_LEVELS: Final = np.arange(256, dtype=np.uint8)
_SLAB_BLUES: Final = 4


class ColourTable:
    """A map from each of the 256³ colours to another, or none at all.

    One table serves a slide and may be used by several threads at once. It takes up to
    64 MB: colours are worked out when they first occur.

    Examples
    --------
    >>> table = ColourTable.identity()
    >>> tiles = np.zeros((2, 8, 8, 3), np.uint8)
    >>> table.apply(tiles) is tiles
    True
    """

    def __init__(self, entries: Entries | None, formula: StainMap = NO_MAP) -> None:
        self._entries, self._formula = entries, formula

    @classmethod
    def identity(cls) -> Self:
        """Return the map of each colour to itself; it holds no table."""
        return cls(None)

    @classmethod
    def between(cls, profile: StainProfile, target: StainProfile) -> Self:
        """Return the map from a slide's stain to the target's.

        With two stains, a colour's concentrations are scaled by the ratio of the
        strengths and shown in the target's stains; glass becomes pure white. Values
        are rounded to the nearest integer (StainTools cuts them off).

        Parameters
        ----------
        profile : StainProfile
            Of the slide.
        target : StainProfile
            What the slide shall look like.

        Raises
        ------
        StainError
            The target was estimated with another method.
        """
        if profile.method == "none":
            return cls.identity()
        if profile.method != target.method:
            raise StainError(
                f"a slide's stain by {profile.method} cannot be brought to a target's by "
                f"{target.method}",
                remedy="Estimate slide and target with the same method.",
            )
        if profile.stains is not None and target.stains is not None:
            formula = _stain_map(profile.white, profile.stains, target.stains)
            return cls(np.zeros(ENTRIES, np.uint32), formula)
        assert profile.lab is not None
        assert target.lab is not None
        return cls(_lab_entries(profile.white, profile.lab, target.lab))

    @property
    def is_identity(self) -> bool:
        """Whether every colour stays as it is."""
        return self._entries is None

    def apply(self, rgb: Pixels, *, out: Pixels | None = None) -> Pixels:
        """Map pixels.

        Parameters
        ----------
        rgb : ndarray of uint8, (..., 3)
            Pixels.
        out : ndarray of uint8, (..., 3), C-contiguous, optional
            Where to put the result; may be ``rgb`` itself.

        Returns
        -------
        ndarray of uint8, (..., 3)
            A new array, ``out``, or, with the identity and no ``out``, ``rgb`` itself.

        Raises
        ------
        StainError
            These are no RGB pixels, or ``out`` does not fit them.
        """
        if rgb.dtype != np.uint8 or rgb.ndim < 1 or rgb.shape[-1] != 3:
            raise StainError(f"expected uint8 (..., 3) pixels, got {rgb.dtype} {rgb.shape}")
        if out is not None and (
            out.dtype != np.uint8 or out.shape != rgb.shape or not out.flags.c_contiguous
        ):
            raise StainError(f"out must be a C-contiguous uint8 array of shape {rgb.shape}")
        if self._entries is None and out is None:
            return rgb
        if out is None:
            out = np.empty(rgb.shape, np.uint8)
        if out is not rgb:
            np.copyto(out, rgb)
        if self._entries is not None:
            map_in_place(self._entries, self._formula, out)
        return out


def _stain_map(white: Triple, source: TwoStains, target: TwoStains) -> StainMap:
    density = optical_density(np.column_stack([_LEVELS] * 3), white)
    scale = np.divide(target.strength, source.strength)
    return StainMap(
        np.ascontiguousarray(source.matrix[:, :, None] * density.T),
        PENALTY,
        float(source.matrix[0] @ source.matrix[1]),
        -(scale[:, None] * target.matrix),
    )


def _lab_entries(white: Triple, source: LabStatistics, target: LabStatistics) -> Entries:
    balanced = np.minimum(_LEVELS[:, None] * np.divide(255.0, white), 255.0)
    rgba = np.full((256, 256, 256, 4), 255, np.uint8)
    rgb = np.empty((_SLAB_BLUES, 256, 256, 3), np.float32)
    rgb[..., 0], rgb[..., 1] = balanced[:, 0], balanced[:, 1, None]
    for blue in range(0, 256, _SLAB_BLUES):
        blues = slice(blue, blue + _SLAB_BLUES)
        rgb[..., 2] = balanced[blues, 2, None, None]
        moved = transfer(rgb.reshape(-1, 3), source, target).reshape(rgb.shape)
        rgba[blues, ..., :3] = np.rint(moved, out=moved)
    return rgba.reshape(-1).view(np.uint32)
