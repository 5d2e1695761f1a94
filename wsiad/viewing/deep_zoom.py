"""Cut the deep-zoom tiles of a slide for the page.

OpenSlide's generator cuts the tiles, so that every format that can be scored can also be shown.
A handle is used by one thread at a time, and only a few handles are kept open.
"""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

import openslide
from openslide.deepzoom import DeepZoomGenerator
from PIL import Image

from wsiad.core.errors import SlideOpenError, SlideReadError
from wsiad.slides.reader import ReadSlide

TILE_SIZE, OVERLAP = 254, 1
"""Edge and overlap of the deep-zoom tiles, pixels; with both overlaps a tile is 256 px wide."""

_QUALITY = 85
_OPEN = 8


class Pictures:
    """Slide with the interface that OpenSlide's generator needs, read in a separate process.

    Parameters
    ----------
    file : Path
        File of the slide.

    Raises
    ------
    openslide.OpenSlideError
        The slide cannot be opened.
    """

    def __init__(self, file: Path) -> None:
        self._slide = ReadSlide(file)
        self.properties, self.dimensions = self._slide.properties, self._slide.dimensions
        self.level_dimensions = self._slide.level_dimensions
        self.level_downsamples = self._slide.level_downsamples
        self.level_count = len(self.level_dimensions)

    def get_best_level_for_downsample(self, downsample: float) -> int:
        """Return the coarsest level that is at least as fine as a downsample."""
        fine = [n for n, own in enumerate(self.level_downsamples) if own <= downsample]
        return max(fine, default=0)

    def read_region(
        self, location: tuple[int, int], level: int, size: tuple[int, int]
    ) -> Image.Image:
        """Read a region as RGBA, with the slide's colour profile."""
        picture = Image.fromarray(self._slide.read_rgba(location, level, size), "RGBA")
        if self._slide.profile is not None:
            picture.info["icc_profile"] = self._slide.profile
        return picture

    def close(self) -> None:
        """Close the file."""
        self._slide.close()


@dataclass
class _Handle:
    """Open slide and its generator, for one thread at a time."""

    slide: Pictures
    generator: DeepZoomGenerator
    lock: threading.Lock = field(default_factory=threading.Lock)


class DeepZoom:
    """Deep-zoom tiles of slides, in pixels of level 0 (not of their bounds)."""

    def __init__(self) -> None:
        self._open: OrderedDict[Path, _Handle] = OrderedDict()
        self._lock = threading.Lock()

    def tile(self, file: Path, level: int, column: int, row: int) -> bytes | None:
        """Return a tile as JPEG; ``None`` where the pyramid has none.

        Raises
        ------
        SlideOpenError
            The slide cannot be opened.
        SlideReadError
            The tile cannot be decoded, even with a new handle.
        """
        for last in (False, True):
            handle = self._handle(file)
            try:
                with handle.lock:
                    return _jpeg(handle.generator, level, column, row)
            except openslide.OpenSlideError as error:
                # The first error latches: the handle would fail for ever.
                self._forget(file, handle)
                if last:
                    raise SlideReadError(
                        f"tile {column}, {row} of level {level} cannot be decoded: {error}",
                        subject=file.name,
                        remedy="Copy the slide again from its source; it is damaged.",
                    ) from error
        raise AssertionError("unreachable")

    def _handle(self, file: Path) -> _Handle:
        with self._lock:
            if file not in self._open:
                self._open[file] = _open(file)
            self._open.move_to_end(file)
            handle = self._open[file]
            # Dropped, not closed: another thread may be reading. It closes when none is.
            while len(self._open) > _OPEN:
                self._open.popitem(last=False)
            return handle

    def _forget(self, file: Path, handle: _Handle) -> None:
        with self._lock:
            if self._open.get(file) is handle:
                del self._open[file]


def _open(file: Path) -> _Handle:
    try:
        slide = Pictures(file)
    except (openslide.OpenSlideError, OSError) as error:
        raise SlideOpenError(
            f"cannot be opened: {error}", subject=file.name, remedy="Copy it again."
        ) from error
    return _Handle(slide, DeepZoomGenerator(slide, TILE_SIZE, OVERLAP, limit_bounds=False))


def _jpeg(generator: DeepZoomGenerator, level: int, column: int, row: int) -> bytes | None:
    if not 0 <= level < generator.level_count:
        return None
    columns, rows = generator.level_tiles[level]
    if not (0 <= column < columns and 0 <= row < rows):
        return None
    buffer = io.BytesIO()
    generator.get_tile(level, (column, row)).save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()
