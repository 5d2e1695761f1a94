"""The kind of a path (slides, a store, a run, results, …), for errors that explain a mix-up."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from wsiad.core.errors import InputError, WsiadError
from wsiad.core.terminal import first_of
from wsiad.slides.slide_files import SUFFIXES

ABSENT: Final = "there is nothing"
SLIDES: Final = "a folder of slides"
SLIDE: Final = "a slide"
STORE: Final = "a tile store"
RUN: Final = "a run"
INTERRUPTED: Final = "a run that is not complete"
RESULTS: Final = "a results folder"
EVALUATION: Final = "an evaluation"
SCORES: Final = "scores of tiles"
EXPORTED: Final = "an export of tiles"
EXPORTED_IMAGES: Final = "exported images of tiles"
SEARCH: Final = "a search of wsiad tune"
NETWORK: Final = "a network of wsiad pretrain"
SUGGESTED: Final = "a folder of wsiad suggest"

SLIDE_RECORD: Final = "slide.json"
"""Name of the file that is in the folder of every slide's results."""

_MOST_ENTRIES = 2_000
_MOST_INSIDE = 20
_MARKS = (
    (STORE, ("slides.zarr",)),
    (RUN, ("run.json", "detector.json")),
    (INTERRUPTED, ("detector.json",)),
    (SEARCH, ("trials.csv",)),
    (RESULTS, ("run.json", "slides.csv")),
    (RESULTS, ("slides.csv", "evaluation.json")),
    (EXPORTED_IMAGES, ("export.json", "tiles.csv")),
    (EXPORTED, ("export.json",)),
    (NETWORK, ("pretrain.json",)),
    (SUGGESTED, ("suggestions.json",)),
    (SCORES, ("scores.csv",)),
    (EVALUATION, ("evaluation.json",)),
    (EVALUATION, ("comparison.json",)),
    (INTERRUPTED, ("config.yaml", "metrics.csv")),
    (INTERRUPTED, ("config.yaml", "checkpoint.safetensors")),
)
"""Names that a folder of each kind holds, the most certain kinds first."""

_KNOWN = frozenset({*(kind for kind, _ in _MARKS), SLIDES, SLIDE})

_GOOD_ENOUGH = frozenset({(RUN, INTERRUPTED), (SLIDES, SLIDE)})
"""Pairs (wanted, found) about which another check can say more."""


def what_is(path: Path) -> str:
    """Return the kind of a path as a phrase; a folder is recognised by the files in it.

    Nothing is opened, and only the first entries of a large folder are examined.
    """
    try:
        if path.is_dir():
            return _folder(path)
        if path.is_symlink() and not path.exists():
            return "a link to nothing"
        if not path.exists():
            return ABSENT
    except OSError:
        return "not readable"
    if path.suffix.lower() in SUFFIXES:
        return SLIDE
    return f"a {path.suffix.lower()} file" if path.suffix else "a file"


def _folder(path: Path) -> str:
    for kind, names in _MARKS:
        if all((path / name).exists() for name in names):
            return kind
    # Of folders in it only the first few: slides may lie one below.
    with os.scandir(path) as entries:
        first = list(itertools.islice(entries, _MOST_ENTRIES))
    if not first:
        return "an empty folder"
    if any(_is_slide(entry) for entry in first):
        return SLIDES
    for entry in first[:20]:
        if (
            entry.is_dir()
            and not entry.name.startswith(".")
            and not (path / entry.name / SLIDE_RECORD).is_file()  # maps of a slide
        ):
            with os.scandir(entry) as inner:
                if any(_is_slide(one) for one in itertools.islice(inner, _MOST_ENTRIES)):
                    return SLIDES
    return "a folder of other things"


def folders_in(path: Path, kinds: Collection[str]) -> list[Path]:
    """Return the folders of some kinds that a folder holds, of its first ones by name."""
    try:
        with os.scandir(path) as entries:
            first = list(itertools.islice(entries, _MOST_ENTRIES))
        names = sorted(e.name for e in first if not e.name.startswith(".") and e.is_dir())
    except OSError:
        return []
    return [path / name for name in names[:_MOST_INSIDE] if what_is(path / name) in kinds]


def pass_one_of(paths: Sequence[Path]) -> str:
    """Return the advice to pass one of some paths, as a sentence."""
    if len(paths) == 1:
        return f"Pass {paths[0]}."
    return f"Pass one of those in it: {first_of([str(path) for path in paths])}."


def _is_slide(entry: os.DirEntry[str]) -> bool:
    # Results that are not whole yet hold pictures of scores, and no table.
    if entry.name.startswith(".") or entry.name.endswith(
        ("heatmap.ome.tif", "_likelihood_map.tif")
    ):
        return False
    return os.path.splitext(entry.name)[1].lower() in SUFFIXES and entry.is_file()  # noqa: PTH122


def refuse_other(
    path: Path,
    wanted: str,
    error: type[WsiadError],
    *,
    remedy: str,
    beside: Iterable[Path] = (),
) -> None:
    """Refuse a path that is known to be of another kind than the wanted one.

    A path of unknown kind is left to its reader, which can say better what is wrong with it.

    Parameters
    ----------
    path : Path
    wanted : str
        Kind that is wanted, one of the constants of this module.
    error : type
        Type of the error.
    remedy : str
        Sentence that says how a path of that kind is made.
    beside : iterable of Path
        Paths in the other places of the command, of which one may be the missing one.

    Raises
    ------
    WsiadError
        The path is of another kind; the ``error`` names it, and says if two paths were swapped.
    """
    found = what_is(path)
    if found == wanted or (wanted, found) in _GOOD_ENOUGH:
        return
    swapped = next((other for other in beside if what_is(other) == wanted), None)
    if swapped is not None:
        remedy = f"{swapped} is {wanted}: are the two swapped?"
    elif wanted != SLIDES and (inside := folders_in(path, [wanted])):
        number = "one" if len(inside) == 1 else f"{len(inside)} of them"
        raise error(
            f"is not {wanted}, but holds {number}",
            subject=str(path),
            remedy=pass_one_of(inside),
        )
    elif found not in _KNOWN and (wanted == SLIDES or not path.is_file()):
        return  # a file may list slides; it is never one of the other kinds
    raise error(f"is not {wanted}, but {found}", subject=str(path), remedy=remedy)


def check_coordinates_folder(folder: Path) -> None:
    """Check that a folder can hold coordinates or outlines of slides, which may lie beside them.

    Raises
    ------
    InputError
        It is no folder, or is known to be of another kind.
    """
    remedy = "Pass a folder of HDF5 files of coordinates, or of outlines, named as the slides."
    found = what_is(folder)
    if not folder.is_dir() or (found in _KNOWN and found not in (EXPORTED, SLIDES)):
        raise InputError(
            f"is not a folder of coordinates or outlines, but {found}",
            subject=str(folder),
            remedy=remedy,
        )


@contextlib.contextmanager
def other_kinds_named(
    paths: Iterable[Path],
    wanted: str,
    error: type[WsiadError],
    *,
    remedy: str,
    beside: Iterable[Path] = (),
) -> Iterator[None]:
    """Report that paths are of another kind if the block refuses them for any reason.

    This serves for paths that can hold several kinds, such as results next to slides. The
    parameters are those of :func:`refuse_other`.

    Raises
    ------
    WsiadError
        An ``error``, or the error that the block raised.
    """
    try:
        yield
    except WsiadError:
        for path in paths:
            refuse_other(path, wanted, error, remedy=remedy, beside=beside)
        raise
