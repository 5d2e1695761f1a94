"""Results of verbs that work on slides in turn; and that of filling a store, with its record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic

from wsiad.core.labels import is_healthy
from wsiad.core.packages import versions
from wsiad.core.terminal import counted
from wsiad.slides.slide_table import (
    REPORT,
    R,
    SlideRow,
    away,
    backends,
    failures,
    outcome,
    partly_damaged,
    partly_masked,
    unusable,
)
from wsiad.store.tile_task import TileRow

if TYPE_CHECKING:
    from wsiad.store.slide_preview import Preview


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchResult(Generic[R]):
    """The result of work on slides, at which the verb can look first.

    Parameters
    ----------
    rows : tuple of SlideRow
        The slides (or imported sources) of this call, in order of their names.
    preview : Preview or None
        What a look at the slides found, with ``dry_run``; there are no rows then.
    """

    rows: tuple[R, ...]
    preview: Preview | None = None

    @property
    def exit_code(self) -> int:
        """Exit code of the command where no slide failed: 1 if one will fail."""
        return self.preview.exit_code if self.preview else 0

    @property
    def failed(self) -> tuple[SlideRow, ...]:
        """Rows of the slides that failed: they are not in the output."""
        return tuple(failures(self.rows))

    @property
    def unusable(self) -> tuple[SlideRow, ...]:
        """Rows of the slides that could not be looked at; they may have tissue."""
        return tuple(unusable(self.rows))


@dataclass(frozen=True, slots=True)
class TileResult(BatchResult[TileRow]):
    """The result of tiling.

    Parameters
    ----------
    store : Path
    rows, preview
        See :class:`BatchResult`.
    """

    store: Path

    @property
    def summary(self) -> str:
        """Lines on what was made, where to look, and slides of which parts were left out."""
        if self.preview:
            return self.preview.summary
        tiles = sum(row.tiles for row in self.rows)
        seen = f"; see {self.store / REPORT}" if (self.store / REPORT).exists() else ""
        lines = [
            f"{self.store}: {outcome(self.rows, 'stored')}: {counted(tiles, 'tile', ',')}{seen}"
        ]
        if names := [row.slide for row in partly_damaged(self.rows)]:
            lines.append(f"damaged parts were left out of {listed(names)}")
        if names := [row.slide for row in partly_masked(self.rows)]:
            lines.append(f"more tissue than was found may be on {listed(names)}; see their reasons")
        if names := [row.slide for row in away(self.rows)]:
            lines.append(f"the tiles stay in use, though the files are away, of {listed(names)}")
        return "\n".join(lines)

    @property
    def following(self) -> str | None:
        """Command that comes next in place of the verb's own; ``None`` if that one fits.

        It is empty if there are no tiles. Tiles of slides that are all labelled anomalous are no
        healthy ones to learn from.
        """
        labels = {row.label for row in self.rows if row.tiles}
        if not labels:
            return ""
        if any(not label or is_healthy(label) for label in labels):
            return None
        return "wsiad train STORE --out runs/probe --detector linear-probe --anomalies {out}"


def listed(names: Sequence[str], *, most: int = 3) -> str:
    """Return the first names and how many there are in all.

    Examples
    --------
    >>> listed(["a", "b", "c"], most=2)
    '3 slides (a, b …)'
    """
    number = counted(len(names), "slide")
    return f"{number} ({', '.join(names[:most])}{' …' if len(names) > most else ''})"


def tiling_record(rows: list[TileRow], seconds: float, *, new: Sequence[TileRow]) -> dict[str, Any]:
    """Return the record in a store's ``run.json`` of the call that filled it.

    Parameters
    ----------
    rows : list of TileRow
        Slides of the call.
    seconds : float
        Time that it took.
    new : sequence of TileRow
        Slides on which it worked; the others were complete before.
    """
    from wsiad.tissue.quality import QUALITY_REASONS

    tiles, damaged = sum(row.tiles for row in rows), sum(row.damaged for row in rows)
    by_reason = {
        reason.word: sum(getattr(row, f"unusable_{reason.word}") for row in rows)
        for reason in QUALITY_REASONS
    }
    return {
        "versions": versions(),
        "seconds": round(seconds, 3),
        "slides": len(rows),
        "failed": len(failures(rows)),
        "tiles": tiles,
        "missing": sum(row.missing for row in rows),
        **({"damaged": damaged} if damaged else {}),
        "unusable": by_reason,
        "tiles_per_second": round(sum(row.tiles for row in new) / seconds, 1) if seconds else None,
        "backends": backends(rows),
    } | ({"slides_unusable": len(some)} if (some := unusable(rows)) else {})
