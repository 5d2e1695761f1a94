"""The inspection of a slide's file, for what OpenSlide does not report: damage, and other pixels.

OpenSlide takes zeros at the end of a tile, which a broken copy leaves, for data. It also ignores
the rest of a tile's data once it has all pixels. If a slide's levels are directories of a TIFF or
DICOM files, the tiles' bytes can be found, and the same damage is found as on the direct path.
Only colours of 8 bits can be used, because OpenSlide turns any pixels into them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tifffile

from wsiad.core.errors import DamagedTileError, DirectReadError, UnusableSlideError
from wsiad.core.geometry import Size
from wsiad.slides.dicom import read_frames
from wsiad.slides.slide import Edges, Slide
from wsiad.slides.tiff_tiles import (
    NOT_A_TIFF,
    TiledLevel,
    check_jpeg2000_size,
    check_whole,
    decode_tile,
    read_layout,
)
from wsiad.slides.tile_cache import cut_by_tile

TIFF_FORMATS = frozenset({"aperio", "generic-tiff", "philips"})
"""Formats whose levels are TIFF directories, and nothing more."""


class TileInspector:
    """Inspector that looks at each tile of a slide once.

    Parameters
    ----------
    files : sequence of Path
        Files that hold the levels; one file can hold them all.
    layout : tuple of TiledLevel
        Tiles of each level.
    """

    def __init__(self, files: Sequence[Path], layout: tuple[TiledLevel, ...]) -> None:
        self._files, self._layout = files, layout
        self._found: dict[tuple[int, int], str] = {}
        """Damage of a tile in words; empty if there is none."""
        self._doubted: set[tuple[int, int]] = set()

    def check(self, level: int, x: int, y: int, size: Size) -> None:
        """Check the tiles that a rectangle touches, in pixels of its level.

        Raises
        ------
        DamagedTileError
            A tile is damaged.
        """
        tiles = self._layout[level]
        new = []
        for row, column, _ in cut_by_tile([(x, y)], size, tiles.tile, tiles.size):
            index = row * tiles.columns + column
            found = self._found.get((level, index))
            if found:
                raise DamagedTileError(found)
            if found is None and tiles.counts[index]:
                new.append(index)
        if not new:
            return
        problem = ""
        with self._files[level].open("rb", buffering=0) as file:
            for index in new:
                self._found[level, index] = found = self._problem(file.fileno(), level, index)
                problem = problem or found
        if problem:
            raise DamagedTileError(problem)

    def listed(self, level: int, x: Edges, y: Edges) -> npt.NDArray[np.bool_]:
        """Tell for which cells of a lattice no tile is missing, in pixels of a level."""
        return self._layout[level].listed(x, y)

    def doubt(self, level: int, x: int, y: int, size: Size) -> bool:
        """Forget the damage of the tiles of a rectangle, once, as a disk can fail for a moment.

        Returns
        -------
        bool
            True if a tile will be inspected again.
        """
        tiles = self._layout[level]
        cuts = cut_by_tile([(x, y)], size, tiles.tile, tiles.size)
        keys = {(level, row * tiles.columns + column) for row, column, _ in cuts}
        again = {key for key in keys - self._doubted if self._found.get(key)}
        for key in again:
            del self._found[key]
        self._doubted |= again
        return bool(again)

    def parts(self, level: int, x: int, y: int, size: Size) -> list[tuple[int, int, Size]]:
        """Cut a rectangle of a level at the edges of the tiles, without parts beyond the level.

        Returns
        -------
        list of (int, int, Size)
            Left, top and size of each part, pixels of the level.
        """
        tiles = self._layout[level]
        return [
            (
                x + cut.asked[1].start,
                y + cut.asked[0].start,
                Size(
                    cut.asked[1].stop - cut.asked[1].start, cut.asked[0].stop - cut.asked[0].start
                ),
            )
            for _, _, cuts in cut_by_tile([(x, y)], size, tiles.tile, tiles.size)
            for cut in cuts
        ]

    def _problem(self, file: int, level: int, index: int) -> str:
        tiles = self._layout[level]
        offset, count = int(tiles.offsets[index]), int(tiles.counts[index])
        if not 0 < offset <= os.fstat(file).st_size - count:
            return "a tile lies outside of the file"
        data = os.pread(file, count, offset)
        if len(data) != count:
            return "a tile cannot be read whole"
        try:
            if tiles.codec == "jpeg":
                decode_tile(data, tiles)
            else:
                check_whole(data, tiles.codec)
            if tiles.codec == "jpeg2000":
                check_jpeg2000_size(data, tiles.tile)
        except DamagedTileError as error:
            return error.problem
        except DirectReadError:
            pass  # of a kind that only OpenSlide knows
        return ""


def find_inspector(
    path: Path, form: str, sizes: Sequence[Size], *, name: str
) -> TileInspector | None:
    """Return the inspector of a slide's tiles, or ``None`` if the tiles cannot be found.

    Parameters
    ----------
    path : Path
        Path of the slide.
    form : str
        Format of the slide, as OpenSlide names it.
    sizes : sequence of Size
        Sizes of all levels, pixels.
    name : str
        Name of the slide, for errors.

    Raises
    ------
    SlideOpenError
        A level's directory lists fewer tiles than its size needs.
    """
    try:
        if form == "dicom":
            return TileInspector(*read_frames(path, sizes))
        if form not in TIFF_FORMATS:
            return None
        layout = read_layout(path, sizes, name=name, padded=form == "philips", any_pixels=True)
        return TileInspector([path] * len(layout), layout)
    except DirectReadError:
        return None


_PALETTE, _UNSIGNED = 3, 1
_MOST_CHANNELS = 4
"""Maximum number of channels: colours and opacity, or the inks of print. More is fluorescence."""


def check_pixels(slide: Slide) -> None:
    """Check that a slide's pixels are colours of 8 bits.

    OpenSlide reduces 16 bits to 8 without knowing which values mean black and white, and turns
    grey into colours.

    Raises
    ------
    UnusableSlideError
        The pixels are of another type, which the error names.
    """
    # What is read directly is in colour of 8 bits; other formats have no other pixels.
    if slide.backend != "openslide" or slide.format not in TIFF_FORMATS:
        return
    if found := pixel_type(slide.path):
        raise wrong_pixels(found, slide.name)


def wrong_pixels(found: str, name: str) -> UnusableSlideError:
    """Make the error of a slide whose type of pixels (:func:`pixel_type`) cannot be used."""
    return UnusableSlideError(
        f"its pixel type cannot be used: {found}, not colours of 8 bits",
        subject=name,
        remedy="Convert it to 8-bit RGB from the scanner's own range, if it is a bright-field "
        "scan at all.",
    )


def pixel_type(path: Path) -> str:
    """Return the type of a TIFF's pixels if they are not colours of 8 bits; empty if they are.

    Parameters
    ----------
    path : Path
        Path of a TIFF; any other file has no such pixels.

    Returns
    -------
    str
        Words such as ``"16-bit pixels"`` or ``"grey 8-bit pixels"``.
    """
    try:
        with tifffile.TiffFile(path) as tiff:
            page = next((page for page in tiff.pages if page.is_tiled), None)
            if page is None:
                return ""
            grey = page.samplesperpixel < 3 and page.photometric != _PALETTE
            bits, kind = int(page.bitspersample), int(page.sampleformat)
            channels = int(page.samplesperpixel)
    except NOT_A_TIFF:
        return ""
    name = {_UNSIGNED: "", 2: "signed ", 3: "floating-point "}.get(kind, "unknown ")
    many = f" of {channels} channels" if channels > _MOST_CHANNELS else ""
    if not grey and not many and bits == 8 and kind == _UNSIGNED:
        return ""
    return f"{'grey ' if grey else ''}{name}{bits}-bit pixels{many}"
