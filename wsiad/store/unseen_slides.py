"""Slides of a store that could not be looked at: whoever uses the store says which."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from wsiad.slides.slide_table import FAILED, UNUSABLE, read_table
from wsiad.store.tile_task import TileRow

if TYPE_CHECKING:
    from wsiad.store.tile_store import TileStore

_LISTED = 8


def unseen_slides(store: TileStore) -> dict[str, str]:
    """Map the slides of a store that failed or are unusable to status and reason.

    Raises
    ------
    InputError
        The store's table is damaged.
    """
    found = {slide.name: f"{UNUSABLE}: {slide.reason}" for slide in store if slide.reason}
    for row in read_table(store.path / "slides.csv", TileRow):
        # Of these the store has no group at all.
        if row.status in (FAILED, UNUSABLE) and row.slide not in store:
            found[row.slide] = f"{row.status}: {row.reason}"
    return dict(sorted(found.items()))


def unseen_lines(found: Mapping[str, str], store: str) -> list[str]:
    """Say how many slides of a store could not be looked at, which and why; nothing of none."""
    if not found:
        return []
    lines = [f"{len(found)} of the slides of {store} failed or could not be looked at:"]
    lines += [f"  {name}: {why}" for name, why in list(found.items())[:_LISTED]]
    if (more := len(found) - _LISTED) > 0:
        lines.append(f"  and {more} more, see {store}/slides.csv")
    return lines
