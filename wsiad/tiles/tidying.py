"""A store kept clear of what runs left that did not end in order."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from wsiad.leftovers import clear_leftovers, discard
from wsiad.tiles.store import GROUPS, OVERVIEWS, TileStore


def parts_folder(store: TileStore, name: str) -> Path:
    """Folder of the parts of a slide that is not whole yet."""
    return store.path / GROUPS / f".{name}.parts"


def clear_store(path: Path) -> None:
    """Clear away what dead runs left in a store, and parts of slides that are whole.

    Parameters
    ----------
    path : Path
        The store's folder.
    """
    store = TileStore(path)
    groups = path / GROUPS
    clear_leftovers(path, groups, path / OVERVIEWS, path / "runs")
    for folder in groups.glob(".*.parts"):
        clear_leftovers(folder)
        if folder.name[1:].removesuffix(".parts") in store:
            discard(folder)
        with contextlib.suppress(OSError):
            folder.rmdir()  # if it is empty


@contextlib.contextmanager
def tidied(path: Path) -> Iterator[None]:
    """Clear a store of leftovers before and after: of earlier runs, and of lost workers."""
    clear_store(path)
    try:
        yield
    finally:
        clear_store(path)
