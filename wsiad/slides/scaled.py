"""A slide at a µm/px: one raster of target pixels over level 0, read piece by piece.

Everything above this module counts in target pixels (integers at the requested µm/px) and in
level-0 pixels (floats). The only rounding, from target to level pixels, is here.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import numpy.typing as npt

from wsiad.core.errors import InputError, ScaleError
from wsiad.core.geometry import Mpp, PixelMap, Size
from wsiad.slides.area_mean import AreaWeights, all_valid, area_mean, area_weights
from wsiad.slides.slide import Level, Region, Slide

SCALE_TOLERANCE = 0.005
"""Relative difference of scales up to which the pixels of a level are used unchanged."""

COARSER_TOLERANCE = 0.02
"""Relative difference up to which a slide that is coarser than requested is read at its own scale:
scanners of one magnification differ by as much, and no detail is invented."""


_REDUCTIONS = (4, 2)
"""Pixels along one that the JPEG decoder makes, with ``decode: scaled``."""


class ScaledSlide:
    """A slide read at a µm/px.

    The source is the coarsest level that is at least as fine as requested, area averaged to the
    exact scale. If a level's scale is within the tolerance (0.5 %) of the requested one, its
    pixels are used unchanged, and :attr:`pixels` states their true scale: resampling by 1.002
    would only alternate sharp and blurred bands. A slide that is coarser than requested by up to
    2 % is read at its own scale.

    Where twice or four times a level's pixels are still fine enough, the JPEG decoder can make
    them out of a half or a quarter of the frequencies. Its pixels are not quite the means
    (docs/performance.md has the differences), so that it is to be asked for.

    Parameters
    ----------
    slide : Slide
        Open slide.
    mpp : Mpp
        Scale at which to read, µm/px.
    allow_upsampling : bool
        True to accept a scale finer than the slide's own.
    decode : {"full", "scaled"}
        ``"scaled"`` to let the JPEG decoder scale down.

    Attributes
    ----------
    pixels : PixelMap
        Map from target pixels to level-0 pixels.
    size : Size
        Number of complete target pixels within the slide's bounds.
    level : int
        Level that is read.
    resampled : bool
        True if pixels are averaged, False if they are used unchanged.
    reduced_by : int
        Pixels of the level along one that the JPEG decoder makes of it: 1, 2 or 4.

    Raises
    ------
    ScaleError
        The slide is coarser than ``mpp`` by more than 2 % and upsampling is not allowed.
    InputError
        The JPEG decoder cannot scale down: the level is too coarse, or its tiles are not JPEG.
    """

    def __init__(
        self,
        slide: Slide,
        mpp: Mpp,
        *,
        allow_upsampling: bool = False,
        decode: Literal["full", "scaled"] = "full",
    ) -> None:
        self.slide, self.mpp = slide, mpp
        factor_x, factor_y = mpp / slide.spacing.x, mpp / slide.spacing.y
        if not allow_upsampling:
            factor_x, factor_y = _own(factor_x), _own(factor_y)
        if min(factor_x, factor_y) < 1 - SCALE_TOLERANCE and not allow_upsampling:
            note = f" ({slide.scale_note})" if slide.scale_note else ""
            raise ScaleError(
                f"has {slide.spacing.mean:.4g} µm/px, coarser than the {mpp:g} µm/px requested"
                f"{note}",
                subject=slide.name,
                remedy="Tile (and train) at a coarser --mpp, or accept invented detail by "
                "--allow-upsampling.",
            )
        self.level = max(
            (
                index
                for index, level in enumerate(slide.levels)
                if level.downsample_x <= factor_x * (1 + SCALE_TOLERANCE)
                and level.downsample_y <= factor_y * (1 + SCALE_TOLERANCE)
            ),
            key=lambda index: slide.levels[index].downsample_x,
            default=0,
        )
        # What is read: the level, or what the decoder makes of it.
        self._number, self._source = self.level, slide.levels[self.level]
        self.reduced_by = 1
        if decode == "scaled":
            self._reduce(min(factor_x, factor_y) * (1 + SCALE_TOLERANCE))
        level = self._source
        self.resampled = not (
            math.isclose(factor_x, level.downsample_x, rel_tol=SCALE_TOLERANCE)
            and math.isclose(factor_y, level.downsample_y, rel_tol=SCALE_TOLERANCE)
        )
        x, y = slide.bounds.x, slide.bounds.y
        if not self.resampled:
            factor_x, factor_y = level.downsample_x, level.downsample_y
            x, y = round(x / factor_x) * factor_x, round(y / factor_y) * factor_y
        self.pixels = PixelMap(x, y, factor_x, factor_y)
        right = min(slide.bounds.right, level.size.width * level.downsample_x)
        bottom = min(slide.bounds.bottom, level.size.height * level.downsample_y)
        # 1e-6 px of slack: 1000 × 0.972 / 0.243 must not lose its last pixel to rounding.
        self.size = Size(
            max(0, math.floor((right - x) / factor_x + 1e-6)),
            max(0, math.floor((bottom - y) / factor_y + 1e-6)),
        )

    def _reduce(self, most: float) -> None:
        """Read pixels that the JPEG decoder makes, of at most so many level-0 pixels each."""
        step = most / max(self._source.downsample_x, self._source.downsample_y)
        self.reduced_by = next((by for by in _REDUCTIONS if by <= step), 1)
        if self.reduced_by == 1:
            own = self.slide.spacing.mean * self._source.downsample_x
            raise InputError(
                f"`decode: scaled` does nothing at {self.mpp:g} µm/px: level {self.level} has "
                f"{own:.4g} µm/px, of which the decoder makes halves and quarters",
                subject=self.slide.name,
                remedy="Leave it out, or pass --decode full.",
            )
        self._number, self._source = self.slide.reduced(self.level, self.reduced_by)

    @property
    def reads_tiles(self) -> bool:
        """True if :meth:`read_tiles` can be used: pixels are the level's own, copied once."""
        return self.slide.reads_tiles and not self.resampled

    def read_tiles(
        self,
        columns: npt.NDArray[np.int32],
        rows: npt.NDArray[np.int32],
        out: npt.NDArray[np.uint8],
    ) -> npt.NDArray[np.bool_]:
        """Read rectangles that do not overlap, like :meth:`read`, into existing memory.

        Use it only if :attr:`reads_tiles` is true.

        Parameters
        ----------
        columns, rows : ndarray of int32, (N,)
            Top-left corners, target pixels; with the shape of ``out`` within :attr:`size`.
        out : ndarray of uint8, (N, H, W, 3)
            Array to fill; meaningless where a rectangle is not complete.

        Returns
        -------
        ndarray of bool, (N,)
            True where the slide has all pixels of a rectangle.

        Raises
        ------
        SlideReadError
            The pixels cannot be decoded.
        """
        if not len(out):
            return np.ones(0, bool)
        left, top = int(columns.min()), int(rows.min())
        width, height = int(columns.max()) - left, int(rows.max()) - top
        self._check(left, top, Size(width + out.shape[2], height + out.shape[1]))
        level = self._source
        x = self.pixels.x / level.downsample_x + columns
        y = self.pixels.y / level.downsample_y + rows
        corners = np.rint(np.stack([x, y], axis=1)).astype(np.int64)
        return self.slide.read_tiles(self._number, corners, out)

    def _check(self, column: int, row: int, size: Size) -> None:
        if (
            column < 0
            or row < 0
            or column + size.width > self.size.width
            or row + size.height > self.size.height
        ):
            raise ValueError(f"({column}, {row}) + {size} is not within {self.size}")

    def damaged(
        self, columns: npt.NDArray[np.int32], rows: npt.NDArray[np.int32], edge: int
    ) -> npt.NDArray[np.bool_]:
        """Tell which squares of target pixels touch parts that were found damaged when read.

        Parameters
        ----------
        columns, rows : ndarray of int32, (N,)
            Top-left corners, target pixels.
        edge : int
            Edge of the squares, target pixels.

        Returns
        -------
        ndarray of bool, (N,)
        """
        level = self._source
        step_x = self.pixels.scale_x / level.downsample_x
        step_y = self.pixels.scale_y / level.downsample_y
        x = self.pixels.x / level.downsample_x + columns * step_x
        y = self.pixels.y / level.downsample_y + rows * step_y
        if not self.resampled:
            x, y = np.rint(x), np.rint(y)
        return self.slide.damaged(
            self._number, np.stack([x, y], axis=1), (edge * step_x, edge * step_y)
        )

    def damage_mask(self, column: int, row: int, size: Size) -> npt.NDArray[np.bool_]:
        """Return a mask (H, W) of the damage found on the read level, for a rectangle."""
        level = self._source
        mask = np.zeros((size.height, size.width), bool)
        for left, top, right, bottom in self.slide.damage_at(self._number):
            x, y = self.pixels.from_level0(
                np.array([left, right]) * level.downsample_x,
                np.array([top, bottom]) * level.downsample_y,
            )
            (x0, y0), (x1, y1) = np.floor([x[0], y[0]]), np.ceil([x[1], y[1]])
            mask[
                max(0, int(y0) - row) : max(0, int(y1) - row),
                max(0, int(x0) - column) : max(0, int(x1) - column),
            ] = True
        return mask

    def read(self, column: int, row: int, size: Size, *, level: int | None = None) -> Region:
        """Read a rectangle of target pixels.

        Parameters
        ----------
        column, row : int
            Top-left corner, target pixels; with ``size`` within :attr:`size`.
        size : Size
            Width and height, target pixels.
        level : int, optional
            Another level to average from, which is finer.

        Returns
        -------
        Region
            Pixels; a pixel is valid only if all source pixels that it averages exist.

        Raises
        ------
        SlideReadError
            The pixels cannot be decoded.
        """
        self._check(column, row, size)
        number = self._number if level is None else level
        if not self.resampled and number == self._number:
            x, y, _, _ = self._steps(number, column, row)
            return self.slide.read_level(number, round(x), round(y), size)
        region, rows, columns = self._areas(number, column, row, size)
        rgb = area_mean(region.rgb, rows, columns)
        if region.valid is None:
            return Region(rgb)
        return Region(rgb, all_valid(region.valid, rows, columns))

    def read_squares(
        self,
        column: int,
        row: int,
        size: Size,
        *,
        corners: npt.NDArray[np.int32],
        edge: int,
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
        """Read squares of a rectangle, as :meth:`read` does, and average no pixel outside of them.

        Use it only if :attr:`resampled` is true.

        Parameters
        ----------
        column, row, size : int, int, Size
            Rectangle as in :meth:`read`, by which the weights are rounded.
        corners : ndarray of int32, (N, 2)
            Top-left corners (x, y) of the squares in the rectangle, target pixels.
        edge : int
            Edge of the squares, target pixels.

        Returns
        -------
        ndarray of uint8, (M, edge, edge, 3)
            RGB pixels of the complete squares.
        ndarray of bool, (N,)
            True where the slide has all pixels of a square.

        Raises
        ------
        SlideReadError
            The pixels cannot be decoded.
        """
        self._check(column, row, size)
        region, rows, columns = self._areas(self._number, column, row, size)
        whole = np.ones(len(corners), bool)
        places = [(slice(y, y + edge), slice(x, x + edge)) for x, y in corners.tolist()]
        if region.valid is not None:
            valid = all_valid(region.valid, rows, columns)
            whole = np.array([valid[place].all() for place in places], bool)
        squares = np.empty((int(whole.sum()), edge, edge, 3), np.uint8)
        complete = (place for place, kept in zip(places, whole, strict=True) if kept)
        for square, (y, x) in zip(squares, complete, strict=True):
            area_mean(
                region.rgb, rows.part(y.start, y.stop), columns.part(x.start, x.stop), out=square
            )
        return squares, whole

    def _areas(
        self, number: int, column: int, row: int, size: Size
    ) -> tuple[Region, AreaWeights, AreaWeights]:
        """Read what a rectangle of target pixels averages of a level, with the weights."""
        first_x, first_y, step_x, step_y = self._steps(number, column, row)
        left, top = math.floor(first_x + 1e-9), math.floor(first_y + 1e-9)
        whole = self._level(number).size
        source = Size(
            min(math.ceil(first_x + size.width * step_x - 1e-9), whole.width) - left,
            min(math.ceil(first_y + size.height * step_y - 1e-9), whole.height) - top,
        )
        region = self.slide.read_level(number, left, top, source)
        rows = area_weights(first_y - top, step_y, size.height, source.height)
        columns = area_weights(first_x - left, step_x, size.width, source.width)
        return region, rows, columns

    def listed(
        self, column: int, row: int, size: Size, *, level: int
    ) -> npt.NDArray[np.bool_] | None:
        """Mark the target pixels of a rectangle that a file lists completely on a level, (H, W).

        The result is ``None`` if the file does not state what it holds.
        """
        x, y, step_x, step_y = self._steps(level, column, row)
        across = x + step_x * np.arange(size.width + 1, dtype=np.float64)
        down = y + step_y * np.arange(size.height + 1, dtype=np.float64)
        return self.slide.listed(level, across, down)

    def _level(self, number: int) -> Level:
        return self._source if number == self._number else self.slide.levels[number]

    def _steps(self, level: int, column: int, row: int) -> tuple[float, float, float, float]:
        """Return x, y, width and height of a target pixel on a level, in pixels of the level."""
        scale = self._level(level)
        step_x = self.pixels.scale_x / scale.downsample_x
        step_y = self.pixels.scale_y / scale.downsample_y
        return (
            self.pixels.x / scale.downsample_x + column * step_x,
            self.pixels.y / scale.downsample_y + row * step_y,
            step_x,
            step_y,
        )


def _own(factor: float) -> float:
    """Return 1, the slide's own scale, if the requested scale is only a little finer."""
    return 1.0 if 1 - COARSER_TOLERANCE <= factor < 1 - SCALE_TOLERANCE else factor
