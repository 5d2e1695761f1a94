"""Which slides to work on: files, folders and manifests, each with a name of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from wsiad.errors import InputError
from wsiad.files import checked_name
from wsiad.slides.manifest import read_manifest
from wsiad.slides.slide_files import SUFFIXES


@dataclass(frozen=True, slots=True)
class SlideInput:
    """One slide to work on.

    Parameters
    ----------
    name : str
        Its name in every output.
    path : Path
        Its file.
    mpp : float, optional
        µm/px that the manifest states.
    label, split : str
        From the manifest; empty where it says nothing.
    extra : dict
        Further columns of the manifest, such as the centre.
    problem : str
        Why it cannot be worked on, if that is known already; empty else.
    """

    name: str
    path: Path
    mpp: float | None = None
    label: str = ""
    split: str = ""
    extra: dict[str, str] = field(default_factory=dict)
    problem: str = ""


def find_slides(sources: Iterable[Path]) -> list[SlideInput]:
    """List the slides of files, folders (searched in depth) and manifest CSVs.

    Slides of one name would overwrite each other's results; each of them comes back
    with its problem stated, as does a name that is not safe as a folder. In a folder
    with DICOM files, one folder is one slide.

    Raises
    ------
    InputError
        A source does not exist, a folder or manifest holds no slide, or a manifest is
        not valid.
    """
    found: list[SlideInput] = []
    for source in sources:
        if source.is_dir():
            found.extend(_from_folder(source))
        elif source.suffix.lower() == ".csv":
            found.extend(_from_manifest(source))
        elif source.exists():
            found.append(SlideInput(source.stem, source))
        else:
            raise InputError("no such file or folder", subject=str(source))
    if not found:
        raise InputError("no slides were given", remedy="Name slide files, folders or a CSV.")
    unique: dict[Path, SlideInput] = {}
    for slide in found:
        unique.setdefault(slide.path.resolve(), slide)
    names = Counter(slide.name for slide in unique.values())
    return [_checked(slide, clash=names[slide.name] > 1) for slide in unique.values()]


def _checked(slide: SlideInput, *, clash: bool) -> SlideInput:
    try:
        checked_name(slide.name)
    except InputError as error:
        return replace(slide, problem=str(error))
    if clash:
        return replace(
            slide,
            problem=f"another slide is named {slide.name!r} too ({slide.path}). "
            "Rename one, or process them into different folders.",
        )
    return slide


def _from_folder(folder: Path) -> list[SlideInput]:
    slides = []
    dicom_folders = set()
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or path.suffix.lower() not in SUFFIXES or not path.is_file():
            continue
        if path.suffix.lower() == ".dcm":
            if path.parent not in dicom_folders:
                dicom_folders.add(path.parent)
                slides.append(SlideInput(path.parent.resolve().name, path))
            continue
        slides.append(SlideInput(path.stem, path))
    if not slides:
        raise InputError(
            "holds no slides",
            subject=str(folder),
            remedy=f"Looked for files that end in {', '.join(sorted(SUFFIXES))}.",
        )
    return slides


def _from_manifest(manifest: Path) -> list[SlideInput]:
    return [
        SlideInput(row.name or row.path.stem, row.path, row.mpp, row.label, row.split, row.extra)
        for row in read_manifest(manifest)
    ]
