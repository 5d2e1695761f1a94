"""The backend that reads through OpenSlide: every format, and the reference for faster paths."""

from __future__ import annotations

import functools
import logging
import re
from pathlib import Path
from typing import NoReturn

import cv2
import numpy as np
import numpy.typing as npt
import openslide

from wsiad.core.errors import DamagedTileError, SlideOpenError, SlideReadError
from wsiad.core.geometry import Box, Size
from wsiad.slides.inspection import TileInspector, find_inspector, pixel_type, wrong_pixels
from wsiad.slides.levels import find_levels
from wsiad.slides.reader import ReaderCrash, ReadSlide
from wsiad.slides.scale import find_scale
from wsiad.slides.slide import Edges, Region, Slide
from wsiad.slides.slide_files import slide_state, stub_problem
from wsiad.slides.tiff_tiles import TiledLevel, compression_name

logger = logging.getLogger(__name__)

LONGEST_EDGE_PX = 2_000_000
"""Longest edge that is accepted: half a metre at 0.25 µm/px. Memory and time grow with the size
that a file claims, however little it holds."""

_OPAQUE = 128
"""Alpha from which a pixel exists; OpenSlide blends with transparency at field edges."""

_SMALLEST_PX = 256
"""Edge down to which a part that cannot be decoded is divided, if damage is skipped and the tiles
of the file are not known."""


class OpenSlideBackend(Slide):
    """A slide opened by OpenSlide; see :func:`wsiad.slides.opening.open_slide`."""

    backend = "openslide"

    def __init__(
        self,
        path: Path,
        *,
        name: str,
        manifest_mpp: float | None,
        fallback_mpp: float | None,
        override_mpp: bool = False,
    ) -> None:
        self.path, self.name = path, name
        self._handle = _open(path, name)
        self._state = slide_state(path)
        self._told = False
        try:
            self._describe(manifest_mpp, fallback_mpp, override=override_mpp)
        except BaseException:
            self._handle.close()
            raise

    def _describe(
        self, manifest_mpp: float | None, fallback_mpp: float | None, *, override: bool
    ) -> None:
        properties = dict(self._handle.properties)
        self.format = properties.get(openslide.PROPERTY_NAME_VENDOR, "unknown")
        self._reported = self._handle.level_downsamples
        sizes = [Size(*size) for size in self._handle.level_dimensions]
        _check_edges(sizes[0], self.name)
        self.levels = find_levels(
            sizes,
            reported=self._reported,
            tiles=[_tile_size(properties, number) for number in range(len(sizes))],
            picture=lambda number: self._picture(number, sizes[number]),
        )
        # Of a plain TIFF, OpenSlide calls the tiles that are there its bounds: what is missing
        # beside them would not be part of the slide, and nobody would hear of it.
        plain = self.format == "generic-tiff"
        self.bounds = _bounds({} if plain else properties, sizes[0])
        scale = find_scale(
            properties,
            slide=self.name,
            manifest_mpp=manifest_mpp,
            fallback_mpp=fallback_mpp,
            override=override,
        )
        self.spacing, self.spacing_source = scale.spacing, scale.source
        self.scale_note, self.scale_overridden = scale.note, scale.overridden

    @functools.cached_property
    def _inspector(self) -> TileInspector | None:
        """Return the inspector of the tiles that OpenSlide decodes, if they can be found."""
        sizes = [level.size for level in self.levels]
        return find_inspector(self.path, self.format, sizes, name=self.name)

    def inspect(self, layout: tuple[TiledLevel, ...]) -> None:
        """Inspect the bytes of tiles at known positions before OpenSlide decodes them."""
        self._inspector = TileInspector([self.path] * len(layout), layout)

    def listed(self, level: int, x: Edges, y: Edges) -> npt.NDArray[np.bool_] | None:
        """Tell which cells the file lists tiles for; see :meth:`Slide.listed`."""
        # What is missing on a level of an Aperio slide, OpenSlide fills from a finer one; of a
        # DICOM slide it is only known where frames lie.
        if self.format not in ("generic-tiff", "philips") or self._inspector is None:
            return None
        return self._inspector.listed(level, x, y)

    def read_level(self, level: int, x: int, y: int, size: Size) -> Region:
        """Read a rectangle of a level; see :meth:`Slide.read_level`.

        OpenSlide accepts integer level-0 positions and divides them by its own ratio of the
        sizes. Multiplying by the same ratio keeps the shift of the result within half a level-0
        pixel, and at zero if the ratio is an integer.
        """
        if not self.skip_damaged:
            return self._read_checked(level, x, y, size)
        if self._known_damage(level, x, y, size):
            return _nothing(size)
        try:
            return self._read_checked(level, x, y, size)
        except DamagedTileError as error:
            logger.debug("%s", error)
            return self._read_around(level, x, y, size)

    def _read_checked(self, level: int, x: int, y: int, size: Size) -> Region:
        if x < 0 or y < 0:
            return self._read_before(level, x, y, size)
        if self._inspector is not None:
            self._inspect(self._inspector, level, x=x, y=y, size=size)
        ratio = self._reported[level]
        at = (round(x * ratio), round(y * ratio))
        try:
            rgba = self._read(at, level, size)
        except openslide.OpenSlideError as error:
            # Where damage is passed over, there may be thousands: the first says what they are.
            level_of_log = logging.DEBUG if self._told else logging.WARNING
            logger.log(level_of_log, "%s: read error at %s (%s); reopening", self.name, at, error)
            self._told = self.skip_damaged
            rgba = self._read_again(level, x, y, size)
        valid = rgba[..., 3] >= _OPAQUE
        return Region(np.ascontiguousarray(rgba[..., :3]), None if valid.all() else valid)

    def _read_before(self, level: int, x: int, y: int, size: Size) -> Region:
        """Read a rectangle that begins before the level does.

        OpenSlide rounds negative positions towards zero. If its ratio is not an integer, this
        shifts all pixels by one. Therefore only the part within the level is requested.
        """
        left, top = max(0, -x), max(0, -y)
        part = Size(size.width - left, size.height - top)
        found = _nothing(size)
        if part.width > 0 and part.height > 0:
            region = self._read_checked(level, max(x, 0), max(y, 0), part)
            found.rgb[top:, left:] = region.rgb
            assert found.valid is not None
            found.valid[top:, left:] = True if region.valid is None else region.valid
        return found

    def _inspect(self, inspector: TileInspector, level: int, x: int, y: int, size: Size) -> None:
        """Inspect the tiles of a rectangle; if damaged, once more through a new handle."""
        try:
            inspector.check(level, x, y, size)
        except DamagedTileError as error:
            if not inspector.doubt(level, x, y, size):
                raise self.damage(level, x, y=y, size=size, problem=error.problem) from error
            self.check_unchanged()
            self._reopen()
            try:
                inspector.check(level, x, y, size)
            except DamagedTileError as still:
                raise self.damage(level, x, y=y, size=size, problem=still.problem) from still
        except OSError as error:
            self.check_unchanged()  # it may be gone
            raise SlideReadError(
                f"cannot be read: {error.strerror}",
                subject=self.name,
                remedy="Check its disk, and run again.",
            ) from error

    def _picture(self, level: int, size: Size) -> npt.NDArray[np.uint8] | None:
        """Return a level in grey, missing pixels white; ``None`` if it cannot be decoded."""
        try:
            rgba = self._read((0, 0), level, size)
        except openslide.OpenSlideError as error:
            logger.warning("%s: level %d cannot be examined (%s)", self.name, level, error)
            self._reopen()
            return None
        grey: npt.NDArray[np.uint8] = cv2.cvtColor(rgba, cv2.COLOR_RGBA2GRAY)
        grey[rgba[..., 3] < _OPAQUE] = 255
        return grey

    def _read_around(self, level: int, x: int, y: int, size: Size) -> Region:
        """Read the intact parts of a rectangle with damage; note the damaged parts."""
        if self._inspector is not None:
            parts = self._inspector.parts(level, x, y, size)
        else:
            parts = _quarters(x, y, size)
        region = _nothing(size)
        if parts == [(x, y, size)]:
            self.note_damage(level, x, y, size)
            return region
        assert region.valid is not None
        for left, top, part in parts:
            seen = self.read_level(level, left, top, part)
            window = np.s_[top - y : top - y + part.height, left - x : left - x + part.width]
            region.rgb[window] = seen.rgb
            region.valid[window] = True if seen.valid is None else seen.valid
        return region

    def damage(self, level: int, x: int, y: int, size: Size, problem: str) -> DamagedTileError:
        """Make the error of a damaged rectangle, whose position is in pixels of its level."""
        scale = self.levels[level]
        at = (round(x * scale.downsample_x), round(y * scale.downsample_y))
        return DamagedTileError(
            f"level {level} cannot be decoded at level-0 position {at} "
            f"({size.width} × {size.height} px): {problem}",
            subject=self.name,
            remedy="Copy the slide again from its source; it is damaged or truncated. Or leave "
            "the damaged parts out: --damaged-tiles skip.",
        )

    def _read_again(self, level: int, x: int, y: int, size: Size) -> np.ndarray:
        """Read through a new handle, because OpenSlide fails all reads after the first error."""
        ratio = self._reported[level]
        at = (round(x * ratio), round(y * ratio))
        self.check_unchanged()
        self._reopen()
        try:
            return self._read(at, level, size)
        except openslide.OpenSlideError as error:
            self.check_unchanged()
            self._reopen()
            raise self.damage(level, x, y=y, size=size, problem=str(error)) from error

    def _reopen(self) -> None:
        self._handle.close()
        self._handle = _open(self.path, self.name)

    def check_unchanged(self) -> None:
        """Check that the file is the one that was opened; see :meth:`Slide.check_unchanged`."""
        try:
            problem = "" if slide_state(self.path) == self._state else "changed while it was read"
        except OSError as error:
            problem = f"cannot be read any more: {error.strerror}"
        if problem:
            raise SlideReadError(
                problem,
                subject=self.name,
                remedy="Wait until it is copied completely and no longer moved, and run again.",
            )

    def exact(self, level: int) -> bool:
        """Tell whether pixels are the level's own, not interpolated between them."""
        return float(self._reported[level]).is_integer()

    def _read(self, at: tuple[int, int], level: int, size: Size) -> np.ndarray:
        return self._handle.read_rgba(at, level, (size.width, size.height))

    def close(self) -> None:
        """Close the file."""
        self._handle.close()


def _check_edges(size: Size, name: str) -> None:
    if max(size.width, size.height) > LONGEST_EDGE_PX:
        raise SlideOpenError(
            f"claims {size.width:,} × {size.height:,} px, but no slide has an edge of more than "
            f"{LONGEST_EDGE_PX:,} px",
            subject=name,
            remedy="Copy the slide again from its source; it is damaged.",
        )


def _tile_size(properties: dict[str, str], level: int) -> Size | None:
    keys = (f"openslide.level[{level}].tile-{edge}" for edge in ("width", "height"))
    try:
        width, height = (int(properties[key]) for key in keys)
    except (KeyError, ValueError):
        return None
    return Size(width, height) if width > 0 and height > 0 else None


def _nothing(size: Size) -> Region:
    """Return a rectangle without a valid pixel."""
    shape = (size.height, size.width)
    return Region(np.zeros((*shape, 3), np.uint8), np.zeros(shape, bool))


def _quarters(x: int, y: int, size: Size) -> list[tuple[int, int, Size]]:
    """Divide a rectangle in two along each edge that is long enough."""

    def halves(first: int, length: int) -> list[tuple[int, int]]:
        if length <= _SMALLEST_PX:
            return [(first, length)]
        return [(first, length // 2), (first + length // 2, length - length // 2)]

    across, down = halves(x, size.width), halves(y, size.height)
    return [(left, top, Size(width, height)) for top, height in down for left, width in across]


def _open(path: Path, name: str) -> ReadSlide:
    if not path.exists():
        raise SlideOpenError("no such file", subject=name, remedy=f"Looked for {path}.")
    try:
        try:
            return ReadSlide(path)
        except ReaderCrash as error:
            # The system may have ended it, of all processes, when memory was short.
            logger.warning("%s: %s; opening it again", name, error)
            return ReadSlide(path)
    except (openslide.OpenSlideError, OSError) as error:
        _refuse(path, name, error)


def _refuse(path: Path, name: str, error: Exception) -> NoReturn:
    """Raise the error for a file that cannot be opened: a stub, or OpenSlide's reason."""
    try:
        stub = stub_problem(path)
    except OSError as unreadable:
        raise SlideOpenError(
            f"cannot be read: {unreadable.strerror}", subject=name, remedy=f"Looked for {path}."
        ) from error
    if stub is not None:
        raise SlideOpenError(stub[0], subject=name, remedy=stub[1]) from error
    if isinstance(error, openslide.OpenSlideUnsupportedFormatError):
        raise SlideOpenError(
            "is not a slide in any format that OpenSlide reads",
            subject=name,
            remedy="Check that its suffix is right and the copy complete (a truncated TIFF has "
            "lost its directory), or convert it to a pyramidal TIFF.",
        ) from error
    if found := pixel_type(path):
        raise wrong_pixels(found, name) from error
    if coding := re.search(r"Unsupported TIFF compression: (\d+)", str(error)):
        raise SlideOpenError(
            f"its tiles are coded in a way that OpenSlide cannot decode: "
            f"{compression_name(int(coding[1]))}",
            subject=name,
            remedy="Convert it to a pyramidal TIFF with JPEG tiles.",
        ) from error
    raise SlideOpenError(
        f"cannot be opened: {error}",
        subject=name,
        remedy="Copy the slide again from its source; it is damaged or truncated.",
    ) from error


def _bounds(properties: dict[str, str], size: Size) -> Box:
    keys = ("x", "y", "width", "height")
    try:
        x, y, w, h = (float(properties[f"openslide.bounds-{key}"]) for key in keys)
    except (KeyError, ValueError):
        return Box(0, 0, size.width, size.height)
    x, y = max(0.0, x), max(0.0, y)
    w, h = min(w, size.width - x), min(h, size.height - y)
    return Box(x, y, w, h) if w > 0 and h > 0 else Box(0, 0, size.width, size.height)
