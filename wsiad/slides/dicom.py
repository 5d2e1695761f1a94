"""DICOM files: which of them form a slide, which are not slides, and where their frames are.

The positions of each level's frames are known, so that their bytes can be inspected.
"""

from __future__ import annotations

import functools
import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from wsiad.core.errors import DirectReadError, SlideOpenError
from wsiad.core.files import state
from wsiad.core.geometry import Size

if TYPE_CHECKING:
    from wsiad.slides.tiff_tiles import TiledLevel

_SLIDE_CLASS = "1.2.840.10008.5.1.4.1.1.77.1.6"
_DEFLATED = "1.2.840.10008.1.2.1.99"
_IMAGE_TYPE, _SERIES_UID = 0x00080008, 0x0020000E
_NO_LEVELS = frozenset({"LABEL", "OVERVIEW", "THUMBNAIL"})

_MAGIC_AT = 128
_MAGIC = b"DICM"


@dataclass(frozen=True, slots=True)
class Instance:
    """The facts that a DICOM file states about itself.

    Parameters
    ----------
    series : str
        SeriesInstanceUID of the file; the images of a slide share it.
    is_image : bool
        True for a whole-slide image, not for annotations, a report or a picture of another kind.
    is_level : bool
        True for a level of the slide, not for its label, overview or thumbnail.
    """

    series: str
    is_image: bool
    is_level: bool


def may_be_dicom(path: Path) -> bool:
    """Tell whether a file's name can be that of a DICOM file: ``.dcm``, or a UID without suffix.

    A number after a dot is part of a UID.
    """
    suffix = path.suffix.lower()
    return suffix in ("", ".dcm", ".dicom") or suffix[1:].isdigit()


def is_dicom(path: Path) -> bool:
    """Tell whether a file begins like a DICOM file, whatever its suffix.

    Raises
    ------
    OSError
        The file cannot be read.
    """
    with path.open("rb") as file:
        return file.read(_MAGIC_AT + len(_MAGIC))[_MAGIC_AT:] == _MAGIC


def read_instance(path: Path) -> Instance:
    """Read the facts that a DICOM file states about itself, without its pixels.

    Raises
    ------
    SlideOpenError
        The file is not a DICOM file, or is damaged.
    """
    try:
        return _read_instance(path, state(path))
    except Exception as error:  # whatever pydicom makes of a damaged file
        raise SlideOpenError(
            f"cannot be read as DICOM ({error or type(error).__name__})",
            subject=str(path),
            remedy="Copy it again from its source.",
        ) from error


@functools.lru_cache(maxsize=1 << 16)
def _read_instance(path: Path, _state: tuple[int, int]) -> Instance:
    from pydicom.filereader import read_file_meta_info, read_partial

    if not is_dicom(path):
        raise ValueError("it does not begin as a DICOM file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        meta = read_file_meta_info(path)
        kind = str(meta.get("MediaStorageSOPClassUID", ""))
        if not kind:
            raise ValueError("it states no MediaStorageSOPClassUID")
        # Images of slides are not deflated, and what is may have any size when it is not.
        if kind != _SLIDE_CLASS or str(meta.get("TransferSyntaxUID", "")) == _DEFLATED:
            return Instance("", is_image=False, is_level=False)
        with path.open("rb") as file:
            found: Any = read_partial(
                file,
                stop_when=lambda tag, _vr, _length: tag > _SERIES_UID,
                specific_tags=[_IMAGE_TYPE, _SERIES_UID],
            )
        series = str(found.get("SeriesInstanceUID", ""))
        values = found.get("ImageType") or []
        types = [values] if isinstance(values, str) else [str(value) for value in values]
    if not series:
        raise ValueError("it states no SeriesInstanceUID")
    return Instance(series, is_image=True, is_level=not _NO_LEVELS & set(types[2:3]))


def series_files(path: Path) -> list[Path]:
    """List the files of a DICOM slide, which are those of its series in its folder, sorted.

    Files that cannot be read belong to no series.

    Raises
    ------
    SlideOpenError
        The file itself is not a DICOM file, or is damaged.
    """
    series = read_instance(path).series
    return [other for other in sorted(path.parent.iterdir()) if _is_of(other, series, path)]


def _is_of(other: Path, series: str, path: Path) -> bool:
    if other.name == path.name:
        return True
    if other.name.startswith(".") or not may_be_dicom(other) or not other.is_file():
        return False
    try:
        return bool(series) and read_instance(other).series == series
    except SlideOpenError:
        return False


_CODECS = {
    "1.2.840.10008.1.2.4.50": "jpeg",
    "1.2.840.10008.1.2.4.90": "jpeg2000",
    "1.2.840.10008.1.2.4.91": "jpeg2000",
}
"""Codec of each TransferSyntaxUID."""

_HEAD = [
    "TransferSyntaxUID", "DimensionOrganizationType", "NumberOfFrames", "Rows", "Columns",
    "PhotometricInterpretation", "TotalPixelMatrixColumns", "TotalPixelMatrixRows",
]  # fmt: skip
_PIXELS = struct.pack("<HH2s2xI", 0x7FE0, 0x0010, b"OB", 0xFFFFFFFF)
"""Beginning of pixel data whose frames are coded separately."""
_ITEM = struct.Struct("<HHI")
_FRAGMENT = (0xFFFE, 0xE000)


def read_frames(path: Path, sizes: Sequence[Size]) -> tuple[list[Path], tuple[TiledLevel, ...]]:
    """Find the frames of each level.

    Parameters
    ----------
    path : Path
        A file of the slide.
    sizes : sequence of Size
        Sizes of all levels, pixels.

    Returns
    -------
    files : list of Path
        Files that hold the levels.
    layout : tuple of TiledLevel
        Their frames; frames of unknown position have the length 0.

    Raises
    ------
    DirectReadError
        A level is not in exactly one file with JPEG or JPEG 2000 frames in the order of their
        positions, or the files cannot be read.
    """
    found: dict[Size, list[tuple[Path, TiledLevel]]] = {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for file in series_files(path):
                if read_instance(file).is_level:
                    level = _level(file)
                    found.setdefault(level.size, []).append((file, level))
    except DirectReadError:
        raise
    except Exception as error:  # whatever pydicom makes of a damaged file
        raise DirectReadError(f"its DICOM files cannot be read ({error})") from error
    if any(len(found.get(size, ())) != 1 for size in sizes):
        raise DirectReadError("a level is not one DICOM file")
    levels = [found[size][0] for size in sizes]
    return [file for file, _ in levels], tuple(level for _, level in levels)


def _level(path: Path) -> TiledLevel:
    from pydicom import dcmread

    from wsiad.slides.tiff_tiles import TiledLevel

    with path.open("rb") as file:
        head: Any = dcmread(file, stop_before_pixels=True, specific_tags=_HEAD)
        codec = _CODECS.get(str(head.file_meta.TransferSyntaxUID), "")
        if not codec or head.DimensionOrganizationType != "TILED_FULL":
            raise DirectReadError("frames of another order or coding")
        size = Size(int(head.TotalPixelMatrixColumns), int(head.TotalPixelMatrixRows))
        tile = Size(int(head.Columns), int(head.Rows))
        columns, rows = -(-size.width // tile.width), -(-size.height // tile.height)
        if int(head.NumberOfFrames) != columns * rows:
            raise DirectReadError("another number of frames than its size needs")
        offsets, counts = _frames(file, columns * rows)
    space = "RGB" if head.PhotometricInterpretation == "RGB" else "YCBCR"
    return TiledLevel(
        size=size,
        tile=tile,
        columns=columns,
        rows=rows,
        offsets=offsets,
        counts=counts,
        tables=None,
        colour_space=space,
        codec=codec,
    )


def _frames(file: BinaryIO, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return positions and lengths of frames, bytes; 0 where a frame is not one known fragment."""
    offsets, counts = np.zeros(number, np.int64), np.zeros(number, np.int64)
    if file.read(len(_PIXELS)) != _PIXELS:
        return offsets, counts
    table, at = _item(file)
    if table is None:
        return offsets, counts
    starts = np.frombuffer(file.read(min(table, 4 * number)), "<u4").astype(np.int64)
    base = at + table
    fragments: dict[int, int] = {}
    file.seek(base)
    while len(fragments) <= number:
        length, at = _item(file)
        if length is None:
            break
        fragments[at] = length
        file.seek(length, 1)
    if len(starts) == number:
        ends = np.append(starts[1:], -1)
        for index, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
            at = base + start + _ITEM.size
            length = fragments.get(at, 0)
            if end in (start + _ITEM.size + length, -1):
                offsets[index], counts[index] = at, length
    elif len(fragments) == number:
        offsets[:], counts[:] = list(fragments), list(fragments.values())
    return offsets, counts


def _item(file: BinaryIO) -> tuple[int | None, int]:
    """Return the length of the item that begins here, or ``None``, and its value's position."""
    head = file.read(_ITEM.size)
    if len(head) < _ITEM.size:
        return None, file.tell()
    group, element, length = _ITEM.unpack(head)
    return length if (group, element) == _FRAGMENT else None, file.tell()
