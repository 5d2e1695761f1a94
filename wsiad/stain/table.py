"""The colour table: a slide's whole normalisation as one look-up per pixel."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Final, Self

import cv2
import numpy as np
import numpy.typing as npt

from wsiad.errors import StainError
from wsiad.stain.concentration import PENALTY, active_set
from wsiad.stain.density import optical_density
from wsiad.stain.profile import LabStatistics, StainProfile, Triple, TwoStains
from wsiad.stain.reinhard import transfer

Pixels = npt.NDArray[np.uint8]
"""RGB pixels, uint8 (..., 3)."""

_Slab = npt.NDArray[np.float64] | npt.NDArray[np.float32]
"""Mapped colours of one blue, some greens and all reds, (greens, 256, 3), not rounded."""

_LEVELS: Final = np.arange(256, dtype=np.uint8)
# Index, pixels and result of so many pixels stay in a core's own cache.
_BLOCK_PX: Final = 1 << 15
_SLAB_GREENS: Final = 64
# All slabs of the table in its order: blue changes slowest, red fastest.
_SLABS: Final = tuple(
    (blue, slice(green, green + _SLAB_GREENS))
    for blue, green in itertools.product(range(256), range(0, 256, _SLAB_GREENS))
)


class ColourTable:
    """A map from each of the 256³ colours to another, or none at all.

    One table serves a slide; it takes 64 MB and may be used by several threads at once.

    Examples
    --------
    >>> table = ColourTable.identity()
    >>> tiles = np.zeros((2, 8, 8, 3), np.uint8)
    >>> table.apply(tiles) is tiles
    True
    """

    def __init__(self, rgba: npt.NDArray[np.uint32] | None) -> None:
        self._rgba = rgba

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
            return cls._of_slabs(_stain_slabs(profile.white, profile.stains, target.stains))
        assert profile.lab is not None
        assert target.lab is not None
        return cls._of_slabs(_lab_slabs(profile.white, profile.lab, target.lab))

    @classmethod
    def _of_slabs(cls, slabs: Iterator[_Slab]) -> Self:
        rgba = np.full((len(_SLABS), _SLAB_GREENS, 256, 4), 255, np.uint8)
        for entries, slab in zip(rgba, slabs, strict=True):
            np.rint(slab, out=slab)
            entries[..., :3] = slab
        return cls(rgba.reshape(-1).view("<u4"))

    @property
    def is_identity(self) -> bool:
        """Whether every colour stays as it is."""
        return self._rgba is None

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
        if self._rgba is None:
            if out is None:
                return rgb
            np.copyto(out, rgb)
            return out
        if out is None:
            out = np.empty(rgb.shape, np.uint8)
        _look_up(self._rgba, np.ascontiguousarray(rgb).reshape(-1, 3), out.reshape(-1, 3))
        return out


def _look_up(table: npt.NDArray[np.uint32], pixels: Pixels, out: Pixels) -> None:
    """Map C-contiguous pixels, (n, 3), block by block."""
    size = min(_BLOCK_PX, len(pixels))
    rgba, mapped = np.empty((size, 4), np.uint8), np.empty(size, "<u4")
    index = np.empty(size, np.intp)
    for start in range(0, len(pixels), size or 1):
        block = pixels[start : start + size]
        n = len(block)
        cv2.cvtColor(block[None], cv2.COLOR_RGB2RGBA, dst=rgba[None, :n])
        np.bitwise_and(rgba[:n].view("<u4")[:, 0], 0xFFFFFF, out=index[:n])
        # No index is out of range; unlike "raise", "wrap" does not buffer the output.
        table.take(index[:n], out=mapped[:n], mode="wrap")
        cv2.cvtColor(
            mapped[:n].view(np.uint8).reshape(1, n, 4),
            cv2.COLOR_RGBA2RGB,
            dst=out[None, start : start + n],
        )


def _stain_slabs(white: Triple, source: TwoStains, target: TwoStains) -> Iterator[_Slab]:
    """Yield the slabs of a map between two pairs of stains.

    The product of a stain vector with a density is a sum over its channels, so three
    columns of 256 densities make the whole cube.
    """
    density = optical_density(np.column_stack([_LEVELS] * 3), white)
    first, second = source.matrix[:, :, None] * density.T
    red_green_first = first[1][:, None] + first[0] - PENALTY
    red_green_second = second[1][:, None] + second[0] - PENALTY
    cosine = float(source.matrix[0] @ source.matrix[1])
    scale = np.divide(target.strength, source.strength)
    exponents = -(scale[:, None] * target.matrix)
    slab = np.empty((_SLAB_GREENS, 256, 3))
    for blue, greens in _SLABS:
        amounts = active_set(
            red_green_first[greens] + first[2, blue],
            red_green_second[greens] + second[2, blue],
            cosine=cosine,
        )
        for channel, (of_first, of_second) in enumerate(exponents.T):
            exponent = of_first * amounts[0]
            exponent += of_second * amounts[1]
            np.exp(exponent, out=exponent)
            np.multiply(exponent, 255.0, out=slab[..., channel])
        yield slab


def _lab_slabs(white: Triple, source: LabStatistics, target: LabStatistics) -> Iterator[_Slab]:
    """Yield the slabs of a map between two statistics of L*a*b*."""
    balanced = np.minimum(_LEVELS[:, None] * np.divide(255.0, white), 255.0)
    rgb = np.empty((_SLAB_GREENS, 256, 3), np.float32)
    rgb[..., 0] = balanced[:, 0]
    for blue, greens in _SLABS:
        rgb[..., 1] = balanced[greens, 1, None]
        rgb[..., 2] = balanced[blue, 2]
        yield transfer(rgb.reshape(-1, 3), source, target).reshape(rgb.shape)
