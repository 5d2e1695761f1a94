"""Write a QuPath project of all slides, without losing the work of its users.

The project file is one that QuPath 0.5 and 0.7 load, with absolute, percent-encoded URIs and both
time stamps. It states only where images are; QuPath writes the data of images itself.

The project comes with scripts in Groovy: they import the results, show the heatmap as an overlay
and colour the tiles. They were written from QuPath's documentation and source (0.5 to 0.7) and have
not been run in it.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsiad.core.errors import ExportError
from wsiad.core.files import MOST_FACTS, parse_json, read_text, write_json, write_text
from wsiad.exports.qupath.objects import (
    CLASS_COLOUR,
    CLASS_NAME,
    UNASSESSED_COLOUR,
    UNASSESSED_NAME,
)

logger = logging.getLogger(__name__)

SCRIPTS = ("wsiad_import.groovy", "wsiad_overlay.groovy", "wsiad_measurement_map.groovy")

_SOURCES = Path(__file__).parent / "groovy"
_USES_RESULTS = SCRIPTS[:2]
_MARK = "// wsiad script "
_NOTE = "\n// Replaced when slides are scored again, unless it was changed: wsiad, docs/qupath.md\n"


def script(name: str, results: Path) -> str:
    """Return the text of a script.

    Parameters
    ----------
    name : str
        Name of the script, one of `SCRIPTS`.
    results : Path
        Results folder, with one folder for each slide. Scripts look for it next to the project's
        folder first, so that both can be moved together.

    Returns
    -------
    str
        Groovy code. Its first line has a digest of the other lines, by which
        :func:`write_scripts` recognises a script that nobody has changed.

    Raises
    ------
    ExportError
        The folder's name cannot be written into a script.
    """
    folder = str(results).replace("\\", "\\\\").replace("'", "\\'")
    if not folder.isprintable():
        raise ExportError("the folder's name cannot be written into a script", subject=folder)
    text = (_SOURCES / name).read_text(encoding="utf-8")
    if name in _USES_RESULTS:
        text += (_SOURCES / "results.groovy").read_text(encoding="utf-8")
    text = text.replace("@ANOMALY@", CLASS_NAME).replace("@UNASSESSED@", UNASSESSED_NAME)
    return _marked(_NOTE + text.replace("@RESULTS@", folder))


def write_scripts(folder: Path, results: Path) -> None:
    """Write all scripts into a folder; a script that a user has changed is left as it is."""
    for name in SCRIPTS:
        path, text = folder / name, script(name, results)
        there = _text(path) if path.exists() else None
        if there == text:
            continue
        if there is not None and not _is_ours(there):
            logger.warning("%s was changed by hand, so it is left as it is", path)
            continue
        write_text(path, text)


def _marked(text: str) -> str:
    return f"{_MARK}{hashlib.sha256(text.encode()).hexdigest()[:16]}{text}"


def _is_ours(text: str) -> bool:
    head, line, rest = text.partition("\n")
    return head.startswith(_MARK) and _marked(line + rest) == text


PROJECT = "project.qpproj"

PREFIX = "wsiad: "
"""Prefix of the keys of an image's metadata that wsiad writes."""

_KEY = f"{PREFIX}slide"
_VERSION = "0.5.1"  # of QuPath, whose project this is
_CLASSES = ((CLASS_NAME, CLASS_COLOUR), (UNASSESSED_NAME, UNASSESSED_COLOUR))
_NAMESPACE = uuid.UUID("b0c0a7d2-5a0f-5f6c-9d53-6a3f0d1c7e03")


@dataclass(frozen=True, slots=True)
class ProjectSlide:
    """Slide as an image of the project.

    Parameters
    ----------
    name : str
        Name of the slide's folder of results.
    file : Path
        File that QuPath opens.
    metadata : mapping of str to str
        Metadata of the image; keys are without the prefix.
    """

    name: str
    file: Path
    metadata: Mapping[str, str] = field(default_factory=dict)


def write_project(
    folder: Path, slides: Sequence[ProjectSlide], *, results: Path, made_ms: int
) -> None:
    """Write a project into a folder, or update the existing one.

    In an existing project, only metadata whose key begins with `PREFIX` is changed, and missing
    images are added. Images that are known (by that metadata, else by their file) stay, with
    their identifiers, names, descriptions, files and other metadata. Classes stay too, and
    QuPath's own data is not touched. The file before the change is kept as
    ``project.qpproj.backup``, as QuPath does. If nothing changes, nothing is written.

    Parameters
    ----------
    folder : Path
        Folder of the project.
    slides : sequence of ProjectSlide
        Slides, in the order in which new images are added.
    results : Path
        Results folder, with one folder for each slide.
    made_ms : int
        Time stamp of a new project, ms since 1970; it is an argument so that equal results give
        equal projects.

    Raises
    ------
    ExportError
        The existing project file cannot be read; it is left as it is.
    """
    path = folder / PROJECT
    old = _read(path, "images") if path.exists() else None
    new = copy.deepcopy(old) if old else _empty(path, made_ms)
    _merge(new, slides, taken=_data_numbers(folder / "data"))
    new["modifyTimestamp"] = max(new.get("modifyTimestamp") or 0, made_ms)
    _write_classes(folder / "classifiers" / "classes.json")
    write_scripts(folder / "scripts", results)
    if new == old:
        return
    if old is not None:
        write_text(path.with_name(f"{PROJECT}.backup"), read_text(path))
    write_json(path, new)


def _text(path: Path) -> str:
    try:
        return read_text(path, most=MOST_FACTS)
    except ValueError:
        return ""  # none that wsiad wrote


def file_uri(path: Path) -> str:
    """Return the absolute file URI of a path; a link keeps its own name."""
    return Path(os.path.abspath(path)).as_uri()  # noqa: PTH100  # resolve() would follow it


def packed_colour(rgb: Iterable[int]) -> int:
    """Return a colour as QuPath stores it: opaque ARGB as a signed number of 32 bits."""
    red, green, blue = rgb
    return (255 << 24 | red << 16 | green << 8 | blue) - (1 << 32)


def _empty(path: Path, made_ms: int) -> dict[str, Any]:
    return {
        "version": _VERSION,
        "createTimestamp": made_ms,
        "modifyTimestamp": made_ms,
        "uri": file_uri(path),
        "lastID": 0,
        "images": [],
    }


def _read(path: Path, key: str) -> dict[str, Any]:
    """Read JSON whose list of objects is named ``key``."""
    try:
        found = parse_json(read_text(path))
        if isinstance(found, dict) and all(isinstance(item, dict) for item in found[key]):
            return found
        problem = f"it has no list {key!r} of objects"
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"{type(error).__name__}: {error}"
    raise ExportError(
        f"cannot be read, so it is left as it is ({problem})",
        subject=str(path),
        remedy="Move it away, so that a new one is written.",
    )


def _data_numbers(data: Path) -> list[int]:
    """Return the numbers of images for which QuPath has data, including removed images."""
    return [int(p.name) for p in data.iterdir() if p.name.isdecimal()] if data.is_dir() else []


def _merge(project: dict[str, Any], slides: Sequence[ProjectSlide], *, taken: list[int]) -> None:
    images = project["images"]
    by_name = {_metadata(image).get(_KEY): image for image in images}
    by_file = {_uri(image): image for image in images if _KEY not in _metadata(image)}
    numbers = (image.get("entryID") for image in images)
    last = max([0, *taken, *(n for n in (*numbers, project.get("lastID")) if isinstance(n, int))])
    for slide in slides:
        image = by_name.get(slide.name) or by_file.pop(file_uri(slide.file), None)
        if image is None:
            last += 1
            image = _new_image(slide, last)
            images.append(image)
        theirs = {k: v for k, v in _metadata(image).items() if not k.startswith(PREFIX)}
        ours = {f"{PREFIX}{key}": value for key, value in slide.metadata.items()}
        image["metadata"] = {_KEY: slide.name, **ours, **theirs}
    project["lastID"] = last


def _metadata(image: Mapping[str, Any]) -> dict[str, Any]:
    found = image.get("metadata")
    return found if isinstance(found, dict) else {}


def _uri(image: Mapping[str, Any]) -> object:
    builder = image.get("serverBuilder")
    uri = builder.get("uri") if isinstance(builder, dict) else None
    return uri if isinstance(uri, str) else None


def _new_image(slide: ProjectSlide, number: int) -> dict[str, Any]:
    return {
        "serverBuilder": {"builderType": "uri", "uri": file_uri(slide.file), "args": []},
        "entryID": number,
        "randomizedName": str(uuid.uuid5(_NAMESPACE, slide.name)),
        "imageName": slide.file.name,
        "description": "",
        "metadata": {},
        "tags": [],
    }


def _write_classes(path: Path) -> None:
    """Write the classes of wsiad, or add the missing ones to those of the user."""
    found = _read(path, "pathClasses") if path.exists() else {"pathClasses": []}
    names = {item.get("name") for item in found["pathClasses"]}
    missing = [
        {"name": name, "color": packed_colour(rgb)} for name, rgb in _CLASSES if name not in names
    ]
    if missing:
        write_json(path, {**found, "pathClasses": [*found["pathClasses"], *missing]})
