"""A store kept clear of what runs left that did not end in order."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from wsiad.core.ownership import clear_leftovers, discard
from wsiad.store.tile_store import OVERVIEWS, TileStore


def parts_folder(store: TileStore, name: str) -> Path:
    """Folder of the parts of a slide that is not whole yet."""
    group = store.folder(name)
    return group.with_name(f".{group.name}.parts")


def clear_store(path: Path) -> None:
    """Clear away what dead runs left in a store, and parts of slides that are whole.

    Parameters
    ----------
    path : Path
        The store's folder.
    """
    store = TileStore(path)
    overviews = path / OVERVIEWS
    groups = store.folders()
    pictures = [overviews / folder.relative_to(groups[0]) for folder in groups]
    clear_leftovers(path, *groups, *pictures, path / "runs")
    for parts in [parts for folder in groups for parts in folder.glob(".*.parts")]:
        clear_leftovers(parts)
        group = parts.with_name(parts.name[1:].removesuffix(".parts"))
        if group.relative_to(groups[0]).as_posix() in store:
            discard(parts)
        with contextlib.suppress(OSError):
            parts.rmdir()  # if it is empty


@contextlib.contextmanager
def tidied(path: Path) -> Iterator[None]:
    """Clear a store of leftovers before and after: of earlier runs, and of lost workers."""
    clear_store(path)
    try:
        yield
    finally:
        clear_store(path)
