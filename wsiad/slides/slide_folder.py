"""The slides of a folder: links are followed once, and files that are not slides are reported."""

from __future__ import annotations

import logging
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from wsiad.core.errors import SlideOpenError
from wsiad.core.terminal import counted, first_of
from wsiad.slides.dicom import is_dicom, may_be_dicom, read_instance
from wsiad.slides.folder_kinds import SLIDE_RECORD
from wsiad.slides.slide_files import SUFFIXES

logger = logging.getLogger(__name__)

_DICOM = ".dcm"
_OME = (".ome.tif", ".ome.tiff")
_DERIVED = re.compile(r"(?P<slide>.+?)_(likelihood_map|mask|evaluation_mask)", re.IGNORECASE)
_PLACEMENT = "level0_px_per_pixel_x"


@dataclass(frozen=True, slots=True)
class FolderSlide:
    """A slide of a folder.

    Parameters
    ----------
    path : Path
        Path of its file.
    name : str
        Name of the file, or of a DICOM slide's folder.
    problem : str
        Reason why it cannot be worked on; empty if none is known.
    """

    path: Path
    name: str
    problem: str = ""


def folder_slides(folder: Path) -> list[FolderSlide]:
    """List the slides of a folder, searched in depth, in order of their paths.

    Hidden entries are ignored. A file that was perhaps meant as a slide and cannot be read is
    listed with its problem, or reported. Maps and masks of slides, such as wsiad's own results,
    are reported and left out.

    Raises
    ------
    OSError
        The folder itself cannot be read.
    """
    slides: list[FolderSlide] = []
    derived: list[Path] = []
    series: dict[Path, list[Path]] = {}
    files = sorted(_files(folder))
    there = {path.parent / path.stem for path in files if path.suffix.lower() in SUFFIXES}
    for path in files:
        suffix = path.suffix.lower()
        if suffix in SUFFIXES and (problem := _unreadable(path)):
            slides.append(FolderSlide(path, path.stem, problem))
        elif suffix == _DICOM or (may_be_dicom(path) and _begins_as_dicom(path)):
            series.setdefault(path.parent, []).append(path)
        elif suffix not in SUFFIXES:
            if not suffix and path.is_symlink() and not path.exists():
                logger.warning("%s: is a link to nothing", path)
        elif _is_derived(path, there):
            derived.append(path)
        else:
            slides.append(FolderSlide(path, path.stem))
    for parent, paths in series.items():
        slides.extend(_dicom_slides(parent, paths))
    if derived:
        _tell(folder, "results or masks of slides, not slides", derived)
    return sorted(slides, key=lambda slide: slide.path)


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files in a folder, each once; real folders come before linked ones."""
    seen = {_identity(folder)}
    here, linked = [folder], list[Path]()
    while here or linked:
        if here:
            current = here.pop()
        elif (identity := _identity(current := linked.pop())) in seen:
            continue
        else:
            seen.add(identity)
        try:
            entries = sorted(os.scandir(current), key=lambda entry: entry.name)
        except OSError as error:
            if current == folder:
                raise
            logger.warning("%s: cannot be searched for slides: %s", current, error.strerror)
            continue
        for entry in entries:
            path = current / entry.name
            if entry.name.startswith("."):
                continue
            if not _is_folder(entry):
                yield path
            elif path.suffix.lower() == ".zarr":
                continue  # pictures in pieces: very many files, none of them a slide
            elif entry.is_symlink():
                linked.insert(0, path)
            elif (identity := _identity(path)) not in seen:
                seen.add(identity)
                here.append(path)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _identity(folder: Path) -> tuple[int, int]:
    found = folder.stat()
    return found.st_dev, found.st_ino


def _unreadable(path: Path) -> str:
    """Return why a file cannot be read; empty if it can."""
    try:
        kind = path.stat().st_mode
    except OSError as error:
        if path.is_symlink():
            return f"is a link to {path.readlink()}, which does not exist"
        return f"cannot be read: {error.strerror}"
    if not stat.S_ISREG(kind):
        return "is not a file"
    return "" if os.access(path, os.R_OK) else "cannot be read: its permissions do not allow it"


def _begins_as_dicom(path: Path) -> bool:
    try:
        return path.is_file() and is_dicom(path)
    except OSError:
        return False


def _dicom_slides(folder: Path, paths: Sequence[Path]) -> Iterator[FolderSlide]:
    """Yield each series of a folder as one slide, and files that cannot be read."""
    levels: dict[str, list[Path]] = {}
    others: set[str] = set()
    no_images, damaged = [], {}
    for path in paths:
        try:
            instance = read_instance(path)
        except SlideOpenError as error:
            damaged[path] = error.problem
            continue
        if not instance.is_image:
            no_images.append(path)
        elif instance.is_level:
            levels.setdefault(instance.series, []).append(path)
        else:
            others.add(instance.series)
    if no_images:
        _tell(folder, "DICOM, but not images of slides", no_images)
    if missing := len(others - set(levels)):
        logger.warning(
            "%s: DICOM series with a label or overview, but no slide: %d", folder, missing
        )
    alone = folder.resolve().name
    if not levels and damaged:
        first = next(iter(damaged))
        yield FolderSlide(first, alone or first.stem)  # opening it says what is wrong
        return
    for found in levels.values():
        name = alone if len(levels) == 1 and alone else found[0].stem
        yield FolderSlide(found[0], name)
    for path, problem in damaged.items():
        yield FolderSlide(path, path.stem, problem)


def _is_derived(path: Path, there: set[Path]) -> bool:
    """Tell whether a file is a map or mask of a slide, by its content or its neighbours."""
    name = path.name.lower()
    if name.endswith(_OME):
        return (path.parent / SLIDE_RECORD).is_file() or _describes_a_heatmap(path)
    found = _DERIVED.fullmatch(path.stem)
    if found is None or path.suffix.lower() not in (".tif", ".tiff"):
        return False
    if (path.parent / SLIDE_RECORD).is_file() or path.parent / found["slide"] in there:
        return True
    return found[2].lower() == "likelihood_map" and _is_one_channel_of_floats(path)


def _describes_a_heatmap(path: Path) -> bool:
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            return _PLACEMENT in file.pages.first.description
    except Exception:  # whatever a damaged file makes of it: opening it says what is wrong
        return False


def _is_one_channel_of_floats(path: Path) -> bool:
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages.first
            return page.samplesperpixel == 1 and page.dtype is not None and page.dtype.kind == "f"
    except Exception:
        return False


def _tell(folder: Path, what: str, paths: Sequence[Path]) -> None:
    names = first_of([str(path.relative_to(folder)) for path in paths])
    logger.warning("%s: %s left out: %s: %s", folder, counted(len(paths), "file"), what, names)
