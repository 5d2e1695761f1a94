"""The folder of an export of tiles: its record, its table, and the slides whose images it holds.

The folder may come from anywhere: no name in it leads out of it, and its sizes are bounded.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsiad.core.config import differences
from wsiad.core.errors import InputError
from wsiad.core.files import checked_slide_name, new_file, read_json, write_json, write_text
from wsiad.core.labels import NORMAL
from wsiad.core.ownership import refuse_foreign
from wsiad.core.typed_files import TableKind
from wsiad.slides.inputs import SlideInput

if TYPE_CHECKING:
    from wsiad.exports.tile_images import TileFile

logger = logging.getLogger(__name__)

EXPORT, TABLE = "export.json", "tiles.csv"

_IMAGES, _COORDINATES = ("png", "jpeg"), ("clam", "trident")
_SAME_MPP = 1e-3
_LISTED = 8
_AGAIN = "Run the same wsiad export-tiles again, which completes it."
_ANEW = "Run wsiad export-tiles again, into another folder."
_ELSEWHERE = "Set another --out, or delete this one."


@dataclass(frozen=True, slots=True)
class TileFileRow:
    """Row of the table of image files.

    Parameters
    ----------
    slide : str
        Name of the slide.
    file : str
        Path of the image in the folder.
    index : int
        Index of the tile in its slide.
    x, y, width, height : float or None
        Area of the tile, level-0 pixels; ``None`` where it is not known.
    label : str
        Label of the slide; empty if it has none.
    """

    slide: str
    file: str
    index: int
    x: float | None
    y: float | None
    width: float | None
    height: float | None
    label: str


_KIND = TableKind(TileFileRow, noun="image files", remedy=_AGAIN, error=InputError, digits=9)


def holds_images(fmt: str) -> bool:
    """Tell whether a format of export is image files, which a table lists."""
    return fmt in _IMAGES


def table_rows(slide: str, files: Iterable[TileFile], *, label: str) -> Iterator[TileFileRow]:
    """Yield the rows of a slide's image files."""
    for tile in files:
        x, y, width, height = tile.box or (None,) * 4
        yield TileFileRow(
            slide=slide,
            file=f"{slide}/{tile.file}",
            index=tile.index,
            x=x,
            y=y,
            width=width,
            height=height,
            label=label,
        )


def write_table(folder: Path, rows: Sequence[TileFileRow]) -> None:
    """Write the table of all image files of an export."""
    write_text(folder / TABLE, _KIND.text(rows))


def claim(folder: Path, facts: dict[str, Any]) -> dict[str, str]:
    """Return the slides that an equal export has completed; refuse any other folder.

    Parameters
    ----------
    folder : Path
        Folder to write to.
    facts : dict
        Options and store of the export.

    Returns
    -------
    dict of str
        Fingerprints of the completed slides, by name.

    Raises
    ------
    InputError
        The folder contains another export or something else.
    """
    path = folder / EXPORT
    if not path.exists():
        refuse_foreign(folder, InputError, what="an export", marks=[EXPORT])
        # Before the first slide, so that an export that was cut off can go on. Another process
        # may begin one of other options in the same moment: one of the two is refused below.
        with contextlib.suppress(FileExistsError), new_file(path) as partial:
            write_json(partial, {**facts, "slides": {}})
    # Exports of before do not state µm/px, which the store's digest decides.
    there = {"mpp": facts["mpp"], **read_json(path, InputError, remedy=_ELSEWHERE)}
    slides = _slides(there)
    if told := differences(there, {**facts, "slides": there.get("slides")}):
        raise InputError(
            f"holds an export of another store, or with other options: {', '.join(told)}",
            subject=str(folder),
            remedy=_ELSEWHERE,
        )
    return slides


def keep(folder: Path, facts: dict[str, Any], slides: dict[str, str]) -> None:
    """Record the completed slides of an export."""
    write_json(folder / EXPORT, {**facts, "slides": slides})


def left_behind(folder: Path, names: Iterable[str], *, suffix: str = "") -> list[str]:
    """Return a line on what earlier calls wrote of slides that are left out now; none if nothing.

    Parameters
    ----------
    folder : Path
        Folder of the export.
    names : iterable of str
        Names of the slides that are left out.
    suffix : str
        Suffix of a slide's file; empty where it has a folder.
    """
    found = []
    for name in sorted(set(names)):
        with contextlib.suppress(InputError, OSError):  # a name that no file has
            path = folder / f"{checked_slide_name(name)}{suffix}"
            # A folder without files of its own has those of slides such as name/1.
            if path.is_file() if suffix else any(one.is_file() for one in path.iterdir()):
                found.append(f"{name}{suffix}")
    if not found:
        return []
    more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    line = f"{folder}: still holds what an earlier call wrote of slides that are left out now: "
    return [f"{line}{', '.join(found[:_LISTED])}{more}. Delete it: it may be of another file."]


def _slides(facts: dict[str, Any]) -> dict[str, str]:
    known = facts.get("slides")
    return {name: str(value) for name, value in known.items()} if isinstance(known, dict) else {}


def _has_images(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _check_mpp(folder: Path, found: object, mpp: float | None) -> None:
    """Check that µm/px are those that an export states, if it states any."""
    if mpp is None or found is None:
        return
    if not isinstance(found, float | int) or not math.isclose(found, mpp, rel_tol=_SAME_MPP):
        raise InputError(
            f"states {found!r} µm/px of its tiles, and --mpp is {mpp:g}",
            subject=str(folder / EXPORT),
            remedy="Correct --mpp. If the file is wrong, pass the folders of images beside it.",
        )


def exported_slides(
    folder: Path, *, label: str, mpp: float | None = None
) -> list[SlideInput] | None:
    """Return the slides whose images ``wsiad export-tiles`` wrote into a folder.

    Slides without tiles are named and left out. A label of a slide is taken over where it holds
    for each of its tiles.

    Parameters
    ----------
    folder : Path
    label : str
        Label that the tiles should have; empty for that of their slide.
    mpp : float, optional
        µm/px that the user states of them; not checked if it is left out.

    Returns
    -------
    list of SlideInput or None
        Folders of the slides' images, in order of their names; ``None`` if the folder is not that
        of an export. A slide of another label than the given one has a problem.

    Raises
    ------
    InputError
        The export is one of coordinates, of an unknown format or of another µm/px, holds no tiles,
        is not complete or damaged, or a name leads out of it.
    """
    if not (folder / EXPORT).is_file():
        return None
    facts = read_json(folder / EXPORT, InputError, keys=["format", "slides"], remedy=_ANEW)
    fmt = facts["format"]
    if fmt in _COORDINATES:
        raise InputError(
            "holds coordinates of tiles, and no pixels",
            subject=str(folder),
            remedy="Pass it to wsiad tile as --coords, with the slides that they are of.",
        )
    if not holds_images(fmt):
        raise InputError(
            f"is not a record of wsiad export-tiles: its format is {fmt!r}, and not "
            f"{', '.join((*_IMAGES, *_COORDINATES))}",
            subject=str(folder / EXPORT),
            remedy="If the images beside it are tiles, move this file away. If it is damaged: "
            f"{_ANEW[:1].lower()}{_ANEW[1:]}",
        )
    _check_mpp(folder, facts.get("mpp"), mpp)
    if not (folder / TABLE).is_file():
        raise InputError(
            f"is an export that is not complete: it has no {TABLE}",
            subject=str(folder),
            remedy=_AGAIN,
        )
    names = _slides(facts)
    labels: dict[str, str] = {}
    listed: dict[str, set[str]] = {}
    for row in _KIND.read(folder / TABLE):
        if row.slide not in names:
            raise InputError(
                f"lists {row.slide!r}, which {EXPORT} does not",
                subject=str(folder / TABLE),
                remedy=_AGAIN,
            )
        # Tiles with a place are of a slide, which with tumour holds healthy tiles too.
        labels[row.slide] = row.label if row.x is None or row.label == NORMAL else ""
        listed.setdefault(row.slide, set()).add(row.file.removeprefix(f"{row.slide}/"))
    empty = [name for name in sorted(names) if name not in labels]
    if unlisted := [name for name in empty if _has_images(folder / checked_slide_name(name))]:
        raise InputError(
            f"is an export that is not complete: its {TABLE} lists no image of {unlisted[0]}",
            subject=str(folder),
            remedy=_AGAIN,
        )
    if not labels:
        raise InputError("holds no tiles", subject=str(folder))
    if empty:
        logger.warning("%s: slides without tiles are left out: %s", folder, ", ".join(empty))
    found = []
    for name, own in sorted(labels.items()):
        problem = ""
        if label and own and label != own:
            problem = f"its label is {own!r} in the export, and --label is {label!r}. Leave it out."
        path = folder / checked_slide_name(name)
        if not path.is_dir():
            problem = f"its folder is not in the export. {_AGAIN}"
        elif gone := len(listed[name] - {entry.name for entry in path.iterdir()}):
            logger.warning(
                "%s: %d of %d images that %s lists are gone, and the others are taken. %s",
                path,
                gone,
                len(listed[name]),
                TABLE,
                _AGAIN,
            )
        found.append(SlideInput(name, path, label=label or own, problem=problem))
    return found
