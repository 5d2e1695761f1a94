"""Which slides to work on: files, folders and manifests, each with a name of its own."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from wsiad.errors import InputError
from wsiad.files import checked_name

SUFFIXES = frozenset(
    {".bif", ".btf", ".czi", ".dcm", ".mrxs", ".ndpi", ".scn", ".svs", ".svslide"}
    | {".tif", ".tiff", ".vms", ".vmu", ".zvi"}
)
"""Suffixes by which slides are found in a folder; a file that is named is always tried."""

COLUMNS = frozenset({"slide", "mpp", "label", "split"})


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
    try:
        with manifest.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot be read as CSV: {error}", subject=str(manifest)) from error
    if "slide" not in columns:
        raise InputError(
            f"has no column `slide` (its columns: {', '.join(columns) or 'none'})",
            subject=str(manifest),
            remedy="A manifest has `slide` and optionally `mpp`, `label`, `split`.",
        )
    if not rows:
        raise InputError("lists no slides", subject=str(manifest))
    return [_from_row(row, manifest, number) for number, row in enumerate(rows, start=2)]


def _from_row(row: dict[str, str], manifest: Path, number: int) -> SlideInput:
    where = f"{manifest}, line {number}"
    if None in row or None in row.values():
        raise InputError("does not have as many fields as the header", subject=where)
    text = row["slide"].strip()
    if not text:
        raise InputError("`slide` is empty", subject=where)
    mpp = None
    if stated := row.get("mpp", "").strip():
        try:
            mpp = float(stated)
        except ValueError:
            mpp = math.nan
        if not (math.isfinite(mpp) and mpp > 0):
            raise InputError(f"`mpp` is {stated!r}, not µm/px above 0", subject=where)
    path = manifest.parent / text
    return SlideInput(
        path.stem,
        path,
        mpp,
        row.get("label", "").strip().lower(),
        row.get("split", "").strip().lower(),
        {key: value.strip() for key, value in row.items() if key not in COLUMNS},
    )
