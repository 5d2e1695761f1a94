"""The slides to work on, from files, folders and manifests, each with a name of its own."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from wsiad.core.errors import InputError, SlideOpenError
from wsiad.core.files import checked_slide_name, real_path
from wsiad.slides.dicom import is_dicom, may_be_dicom, read_instance
from wsiad.slides.manifest import ManifestRow, read_manifest
from wsiad.slides.slide_files import SUFFIXES
from wsiad.slides.slide_folder import FolderSlide, folder_slides

logger = logging.getLogger(__name__)

_MANIFESTS = frozenset({".csv", ".tsv"})
_SAME_MPP = 1e-3


@dataclass(frozen=True, slots=True)
class SlideInput:
    """A slide to work on.

    Parameters
    ----------
    name : str
        Name of the slide in every output.
    path : Path
        Path of its file.
    mpp : float, optional
        µm/px that the manifest states.
    label, split : str
        Values of the manifest; empty if it states none.
    extra : dict
        Further columns of the manifest, such as the centre.
    problem : str
        Reason why the slide cannot be worked on, if it is known already; otherwise empty.
    unusable : bool
        True if the problem is that the slide could not be looked at.
    """

    name: str
    path: Path
    mpp: float | None = None
    label: str = ""
    split: str = ""
    extra: dict[str, str] = field(default_factory=dict)
    problem: str = ""
    unusable: bool = False


@dataclass(frozen=True, slots=True)
class _Found:
    """A slide as one of the sources lists it, with the source and its statements."""

    slide: SlideInput
    source: str
    rank: int
    root: Path | None = None
    named: bool = False


_FROM_MANIFEST, _FROM_FILE, _FROM_FOLDER = range(3)


def find_slides(sources: Iterable[Path]) -> list[SlideInput]:
    """List the slides of files, folders (searched in depth) and manifest CSVs.

    Several sources can name the same slide, by its file, a link to it or another of its files.
    It is then one slide, to which the statements of all sources apply. The order of the sources
    does not matter.

    Slides of one name are named by their paths relative to the folder or manifest, such as
    ``patient1/1``. If they still share a name (a folder with ``x.svs`` and ``x.tif``), they
    would overwrite each other's results: each is returned with its problem. The same holds for
    a name that is not safe as a folder, and for a file that cannot be read.

    Raises
    ------
    InputError
        A source does not exist, a folder or manifest holds no slide, a manifest is not valid, or
        two sources (or rows) contradict each other about a slide.
    """
    found: list[_Found] = []
    for source in sources:
        if source.is_dir():
            found.extend(_from_folder(source))
        elif source.suffix.lower() in _MANIFESTS and source.exists():
            found.extend(_from_row(row, source.parent) for row in read_manifest(source))
        elif source.exists():
            found.append(_of_file(source))
        elif source.is_symlink():
            raise InputError(
                f"is a link to {source.readlink()}, which does not exist", subject=str(source)
            )
        else:
            raise InputError(
                "there is no such file or folder", subject=str(source), remedy="Check the path."
            )
    if not found:
        raise InputError("no slides were given", remedy="Pass slide files, folders or a CSV.")
    same: dict[object, list[_Found]] = {}
    for one in found:
        same.setdefault(_identity(one.slide.path), []).append(one)
    merged = [_merged(sorted(group, key=lambda one: one.rank)) for group in same.values()]
    slides = _named_apart(merged)
    names = Counter(slide.name for slide in slides)
    return [_checked(slide, names) for slide in slides]


def _identity(path: Path) -> object:
    """Return a value that is equal for all files of a slide, and for links to them."""
    try:
        if may_be_dicom(path) and path.is_file() and is_dicom(path):
            instance = read_instance(path)
            if instance.is_image:
                return path.parent.resolve(), instance.series
    except (OSError, SlideOpenError):
        pass  # it is told of when the slide is opened
    with contextlib.suppress(OSError):
        found = path.stat()
        if found.st_nlink > 1:
            return found.st_dev, found.st_ino
    return real_path(path)


def _merged(group: Sequence[_Found]) -> _Found:
    """Combine everything that the sources state about a slide.

    Raises
    ------
    InputError
        The statements contradict each other.
    """
    first = group[0]
    if len(group) == 1:
        return first

    differences: list[str] = []

    def said(what: str, values: Iterable[Any]) -> Any:
        stated = [(one, v) for one, v in zip(group, values, strict=True) if v not in (None, "")]
        for one, value in stated[1:]:
            if not _alike(value, stated[0][1]):
                differences.append(
                    f"its `{what}` is {stated[0][1]!r} by {stated[0][0].source}, and {value!r} "
                    f"by {one.source}"
                )
        return stated[0][1] if stated else None

    name = said("name", [one.slide.name if one.named else "" for one in group])
    others = dict.fromkeys(
        str(one.slide.path) for one in group if one.slide.path.name != first.slide.path.name
    )
    if others and not name:
        logger.warning(
            "%s is one slide with %s, and is used once, as %s",
            first.slide.path,
            ", ".join(others),
            first.slide.name,
        )
    keys = dict.fromkeys(key for one in group for key in one.slide.extra)
    slide = replace(
        first.slide,
        name=name or first.slide.name,
        mpp=said("mpp", [one.slide.mpp for one in group]),
        label=said("label", [one.slide.label for one in group]) or "",
        split=said("split", [one.slide.split for one in group]) or "",
        extra={key: said(key, [one.slide.extra.get(key) for one in group]) or "" for key in keys},
    )
    if differences:
        raise InputError(
            f"is named twice: {'; '.join(differences)}",
            subject=str(first.slide.path),
            remedy="Correct one of them, or leave it out.",
        )
    return replace(first, slide=slide, root=next((one.root for one in group if one.root), None))


def _alike(value: object, other: object) -> bool:
    if isinstance(value, float) and isinstance(other, float):
        return math.isclose(value, other, rel_tol=_SAME_MPP)
    return value == other


def _named_apart(found: Sequence[_Found]) -> list[SlideInput]:
    """Distinguish slides of one name by their paths, relative to the folder that was searched."""
    names = Counter(one.slide.name for one in found)
    named = {place: one.slide.name for place, one in enumerate(found)}
    for name, count in names.items():
        places = [n for n, one in enumerate(found) if one.slide.name == name and not one.named]
        if count == 1 or not places:
            continue
        paths = [_path_of_name(found[place].slide) for place in places]
        roots = [found[place].root for place in places]
        apart = [_relative(path, root) for path, root in zip(paths, roots, strict=True)]
        if None in apart or len(set(apart)) < len(apart):
            common = Path(os.path.commonpath([path.parent for path in paths]))
            apart = [_relative(path, common) for path in paths]
        named.update({n: text or name for n, text in zip(places, apart, strict=True)})
    return [replace(one.slide, name=named[place]) for place, one in enumerate(found)]


def _path_of_name(slide: SlideInput) -> Path:
    """Return the path that gives a slide's name: its file, or a DICOM slide's folder."""
    path = slide.path.absolute()
    return path.with_name(slide.name) if slide.name == path.stem else path.parent


def _relative(path: Path, root: Path | None) -> str | None:
    """Return a path relative to a folder; ``None`` if it is not in the folder."""
    if root is None or ".." in path.parts[len(root.absolute().parts) :]:
        return None
    try:
        return path.relative_to(root.absolute()).as_posix()
    except ValueError:
        return None


def _checked(slide: SlideInput, names: Mapping[str, int]) -> SlideInput:
    where = str(slide.path.absolute())
    if (shown := _as_text(where)) != where:
        problem = f"its path is not UTF-8 ({shown}), and no table can name it. Rename it."
        path = Path(_as_text(str(slide.path)))
        return replace(slide, name=_as_text(slide.name), path=path, problem=problem)
    try:
        checked_slide_name(slide.name)
    except InputError as error:
        return replace(slide, problem=str(error))
    remedy = "Set a `name` for each in a manifest."
    if names[slide.name] > 1:
        problem = f"another slide has the name {slide.name!r} ({slide.path}). {remedy}"
        return replace(slide, problem=problem)
    for folder in Path(slide.name).parents:
        if folder.as_posix() in names:
            problem = f"its results would be among those of the slide {folder.as_posix()!r}"
            return replace(slide, problem=f"{problem}. {remedy}")
    return slide


def _as_text(name: str) -> str:
    """Return a name with bytes that are not UTF-8 escaped."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _from_folder(folder: Path) -> list[_Found]:
    try:
        slides = folder_slides(folder)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", subject=str(folder)) from error
    if not slides:
        raise InputError(
            "holds no slides",
            subject=str(folder),
            remedy=f"Looked for files that end in {', '.join(sorted(SUFFIXES))}.",
        )
    return [_Found(_input(slide), f"the folder {folder}", _FROM_FOLDER, folder) for slide in slides]


def _input(slide: FolderSlide) -> SlideInput:
    return SlideInput(slide.name, slide.path, problem=slide.problem)


def _of_file(path: Path) -> _Found:
    problem = ""
    try:
        if may_be_dicom(path) and is_dicom(path) and not read_instance(path).is_image:
            problem = "is DICOM, but not an image of a slide: annotations, a report or another kind"
    except (OSError, SlideOpenError):
        pass  # opening it says what is wrong
    return _Found(SlideInput(path.stem, path, problem=problem), str(path), _FROM_FILE)


def _from_row(row: ManifestRow, root: Path) -> _Found:
    path, name, problem = row.path, row.name or row.path.stem, ""
    try:
        is_folder = path.is_dir()
    except OSError as error:  # a name that is too long, a folder that may not be entered
        is_folder, problem = False, f"cannot be read: {error.strerror}"
    if is_folder:
        try:
            slides = folder_slides(path)
        except OSError as error:
            slides, problem = [], f"its folder cannot be read: {error.strerror}"
        if len(slides) == 1:
            path, problem = slides[0].path, slides[0].problem
            name = row.name or slides[0].name
        else:
            problem = problem or f"its folder holds {len(slides)} slides, not one: name a file"
    elif not problem and path.is_symlink() and not path.exists():
        problem = f"is a link to {path.readlink()}, which does not exist"
    slide = SlideInput(
        name=name,
        path=path,
        mpp=row.mpp,
        label=row.label,
        split=row.split,
        extra=row.extra,
        problem=problem,
    )
    return _Found(slide, row.where, _FROM_MANIFEST, root, named=bool(row.name))
