"""DICOM files: which of them are one slide, and which are no slide."""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsiad.core.errors import SlideOpenError
from wsiad.core.files import state

_SLIDE_CLASS = "1.2.840.10008.5.1.4.1.1.77.1.6"
_DEFLATED = "1.2.840.10008.1.2.1.99"
_IMAGE_TYPE, _SERIES_UID = 0x00080008, 0x0020000E
_NO_LEVELS = frozenset({"LABEL", "OVERVIEW", "THUMBNAIL"})

_MAGIC_AT = 128
_MAGIC = b"DICM"


@dataclass(frozen=True, slots=True)
class Instance:
    """What a DICOM file says of itself.

    Parameters
    ----------
    series : str
        Its SeriesInstanceUID; the images of a slide have the same.
    is_image : bool
        It is a whole-slide image, not annotations, a report or a picture of another kind.
    is_level : bool
        It is a level of the slide, not its label, overview or thumbnail.
    """

    series: str
    is_image: bool
    is_level: bool


def may_be_dicom(path: Path) -> bool:
    """Tell whether a file's name is one that DICOM files have: ``.dcm``, or no suffix but a UID's.

    A number behind a dot is part of a UID.
    """
    suffix = path.suffix.lower()
    return suffix in ("", ".dcm", ".dicom") or suffix[1:].isdigit()


def is_dicom(path: Path) -> bool:
    """Tell whether a file begins as DICOM files do, whatever its suffix.

    Raises
    ------
    OSError
        It cannot be read.
    """
    with path.open("rb") as file:
        return file.read(_MAGIC_AT + len(_MAGIC))[_MAGIC_AT:] == _MAGIC


def read_instance(path: Path) -> Instance:
    """Read what a DICOM file says of itself; its pixels are not read.

    Raises
    ------
    SlideOpenError
        It is no DICOM file, or damaged.
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
    """List the files of a DICOM slide: those of its folder that are of its series, sorted.

    Files that cannot be read belong to no series.

    Raises
    ------
    SlideOpenError
        The file itself is no DICOM file, or damaged.
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
