"""The interface of a slide for the rest of the package.

A backend reads integer pixels of a level; everything about µm/px is in
:mod:`wsiad.slides.scaled`. Coordinates of levels are true to level 0. Pyramids halve and drop odd
edges, so the ratio of widths is only near the true downsample, which
:func:`true_downsample` restores.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from wsiad.core.errors import InputError
from wsiad.core.geometry import Box, Size, Spacing

Edges = npt.NDArray[np.float64]
"""Edges of the columns or rows of a lattice."""


@dataclass(frozen=True, slots=True)
class Level:
    """A level of a pyramid.

    Parameters
    ----------
    size : Size
        Width and height of the level, pixels.
    downsample_x, downsample_y : float
        Number of level-0 pixels per pixel of the level.
    """

    size: Size
    downsample_x: float
    downsample_y: float


@dataclass(frozen=True, slots=True)
class Region:
    """Pixels that were read, and their validity.

    Parameters
    ----------
    rgb : ndarray of uint8, (H, W, 3)
        Colour; meaningless where not valid.
    valid : ndarray of bool, (H, W), or None
        True where the slide has pixels; ``None`` if it has them all. Scanners leave out empty
        fields, and nothing replaces them.
    """

    rgb: npt.NDArray[np.uint8]
    valid: npt.NDArray[np.bool_] | None = None


class Slide(ABC):
    """An open slide, to be used in the process and thread that opened it.

    Attributes
    ----------
    name : str
        Name of the slide in every output.
    path : Path
        Path of the file from which it was opened.
    format : str
        Vendor's format, as OpenSlide names it.
    backend : str
        Reader of its pixels: ``"openslide"`` or ``"jpeg-tiff"``.
    fallback : str
        Reason why its tiles are not decoded directly; empty if they are, or if it was not tried.
    levels : tuple of Level
        Levels of the pyramid, level 0 first.
    spacing : Spacing
        Size of a level-0 pixel, µm.
    spacing_source : str
        Place where the spacing was stated.
    scale_note : str
        Both values of the spacing if slide and user contradict each other, and which one is used.
    scale_overridden : bool
        True if the user's spacing is used against the slide's.
    bounds : Box
        Non-empty part in level-0 pixels (``openslide.bounds-*``), or all of level 0.
    skip_damaged : bool
        True if damaged parts are noted and not valid (see :meth:`damaged`), instead of an
        error.
    """

    name: str
    path: Path
    format: str
    backend: str
    fallback: str = ""
    levels: tuple[Level, ...]
    spacing: Spacing
    spacing_source: str
    scale_note: str = ""
    scale_overridden: bool = False
    bounds: Box
    skip_damaged: bool = False

    @property
    def size(self) -> Size:
        """Width and height of level 0, pixels."""
        return self.levels[0].size

    @property
    def read_by(self) -> str:
        """Reader of its pixels, with the reason of a fallback: ``"openslide: grey JPEG"``."""
        return f"{self.backend}: {self.fallback}" if self.fallback else self.backend

    @abstractmethod
    def read_level(self, level: int, x: int, y: int, size: Size) -> Region:
        """Read a rectangle of a level.

        Parameters
        ----------
        level : int
            Index of the level.
        x, y : int
            Top-left corner in pixels of that level.
        size : Size
            Size in pixels of that level; parts beyond the level are returned as not valid.

        Raises
        ------
        SlideReadError
            The pixels cannot be decoded, even with a new handle. With `skip_damaged`, damaged
            pixels are not valid instead.
        """

    def listed(self, level: int, x: Edges, y: Edges) -> npt.NDArray[np.bool_] | None:
        """Tell for which cells of a lattice the file lists all pixels of a level.

        Parameters
        ----------
        level : int
            Index of the level.
        x, y : ndarray of float64, (W + 1,) and (H + 1,)
            Edges of the columns and rows of cells, pixels of that level, rising.

        Returns
        -------
        ndarray of bool, (H, W), or None
            True for cells that are listed completely; ``None`` if the file does not state it.
        """
        del level, x, y
        return None

    reads_tiles: bool = False
    """True if :meth:`read_tiles` copies no pixel twice, and gives each pixel the same colour in
    whatever rectangle it is read."""

    def read_tiles(
        self, level: int, corners: npt.NDArray[np.int64], out: npt.NDArray[np.uint8]
    ) -> npt.NDArray[np.bool_]:
        """Read rectangles of a level that do not overlap into existing memory.

        The decoded pixels can be forgotten afterwards, because they will not be read again.

        Parameters
        ----------
        level : int
            Index of the level.
        corners : ndarray of int64, (N, 2)
            Top-left corners of the rectangles, x and y in pixels of that level.
        out : ndarray of uint8, (N, H, W, 3)
            Array to fill; meaningless where a rectangle is not complete.

        Returns
        -------
        ndarray of bool, (N,)
            True where the slide has all pixels of a rectangle.

        Raises
        ------
        SlideReadError
            The pixels cannot be decoded; see :meth:`read_level`.
        """
        whole, size = np.ones(len(out), bool), Size(out.shape[2], out.shape[1])
        for index, (x, y) in enumerate(corners.tolist()):
            region = self.read_level(level, x, y, size)
            whole[index] = region.valid is None or region.valid.all()
            out[index] = region.rgb
        return whole

    def reduced(self, level: int, by: int) -> tuple[int, Level]:
        """Return a level whose tiles the JPEG decoder makes smaller, out of fewer frequencies.

        Parameters
        ----------
        level : int
            Index of a level of the pyramid.
        by : int
            Pixels of that level along a pixel of the result: 2 or 4.

        Returns
        -------
        int
            Index by which it is read, beyond those of :attr:`levels`.
        Level

        Raises
        ------
        InputError
            The tiles are not JPEG that is decoded directly.
        """
        del level, by
        raise self._not_reduced(f"it is read by {self.read_by}")

    def _not_reduced(self, why: str) -> InputError:
        return InputError(
            f"`decode: scaled` needs JPEG tiles that are decoded directly, but {why}",
            subject=self.name,
            remedy="Pass --decode full.",
        )

    @functools.cached_property
    def _damage(self) -> dict[int, list[tuple[int, int, int, int]]]:
        """Left, top, right and bottom of the damage that was found, by level and in its pixels."""
        return {}

    def damage_at(self, level: int) -> list[tuple[int, int, int, int]]:
        """Return left, top, right and bottom of the damage found on a level, in its pixels."""
        return list(self._damage.get(level, ()))

    def note_damage(self, level: int, x: int, y: int, size: Size) -> None:
        """Note that a rectangle of a level is damaged, in pixels of that level."""
        self._damage.setdefault(level, []).append((x, y, x + size.width, y + size.height))

    def _known_damage(self, level: int, x: int, y: int, size: Size) -> bool:
        """Tell whether a rectangle of a level is within one that was found damaged."""
        return any(
            left <= x and top <= y and x + size.width <= right and y + size.height <= bottom
            for left, top, right, bottom in self._damage.get(level, ())
        )

    def damaged(
        self, level: int, corners: npt.NDArray[np.float64], size: tuple[float, float]
    ) -> npt.NDArray[np.bool_]:
        """Tell which rectangles of a level touch parts that were found damaged when read.

        Parameters
        ----------
        level : int
            Index of the level.
        corners : ndarray of float64, (N, 2)
            Top-left corners, x and y in pixels of that level.
        size : tuple of float
            Width and height of each, pixels of that level.

        Returns
        -------
        ndarray of bool, (N,)
        """
        touched = np.zeros(len(corners), bool)
        x, y = corners[:, 0], corners[:, 1]
        for left, top, right, bottom in self._damage.get(level, ()):
            touched |= (x < right) & (x + size[0] > left) & (y < bottom) & (y + size[1] > top)
        return touched

    @contextmanager
    def reading_ahead(self) -> Iterator[None]:
        """Announce that pixels read in this block will be read again, and can be kept."""
        yield

    @contextmanager
    def reading_once(self) -> Iterator[None]:
        """Announce that no pixel read by :meth:`read_level` in this block will be read again.

        Decoded tiles need then not be kept when all of their pixels were read so. A few pixels at
        the edges of two rectangles may be read for both.
        """
        yield

    def forget(self) -> None:  # noqa: B027 -- not every backend remembers anything
        """Release pixels that are kept; call it when most have been read."""

    def check_unchanged(self) -> None:  # noqa: B027 -- a slide in memory does not change
        """Check that the file is the one that was opened.

        Raises
        ------
        SlideReadError
            The file was written to, replaced, moved or deleted: the pixels that were read may be
            of two slides.
        """

    @abstractmethod
    def close(self) -> None:
        """Close the file."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def true_downsample(level0: int, level: int) -> float:
    """Return level-0 pixels per level pixel along one axis.

    Halving an odd edge drops or adds a pixel. The ratio of the widths is then off by up to a
    pixel of the level at the far edge. If an integer explains the widths, it is the downsample.

    Examples
    --------
    >>> true_downsample(2003, 1001)
    2.0
    >>> true_downsample(1000, 300)
    3.3333333333333335
    """
    ratio = level0 / level
    near = round(ratio)
    if near >= 1 and abs(level0 / near - level) < 1:
        return float(near)
    return ratio
