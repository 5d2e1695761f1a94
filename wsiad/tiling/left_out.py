"""Tiles that were planned and are not used, with the position and the reason of each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from wsiad.core.geometry import IntArray
from wsiad.tissue.quality import Reason, Reasons, count_reasons


def _no_places() -> IntArray:
    return np.empty(0, np.int32)


def _no_reasons() -> Reasons:
    return np.empty(0, np.uint8)


@dataclass(frozen=True, slots=True, eq=False)
class LeftOut:
    """Tiles of a grid that are not used; by default none.

    Parameters
    ----------
    rows, columns : ndarray of int32, (N,)
        Positions of the tiles in the grid.
    reasons : ndarray of uint8, (N,)
        Reason for each tile, a :class:`wsiad.tissue.quality.Reason`.
    """

    rows: IntArray = field(default_factory=_no_places)
    columns: IntArray = field(default_factory=_no_places)
    reasons: Reasons = field(default_factory=_no_reasons)

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def without_pixels(
        cls, rows: IntArray, columns: IntArray, damaged: npt.NDArray[np.bool_]
    ) -> LeftOut:
        """Return tiles that lack pixels in a part, missing in the file or damaged."""
        reasons = np.where(damaged, Reason.DAMAGED, Reason.MISSING).astype(np.uint8)
        return cls(rows, columns, reasons)

    @classmethod
    def join(cls, parts: Iterable[LeftOut]) -> LeftOut:
        """Join parts in their order."""
        some = [part for part in parts if len(part)]
        if not some:
            return cls()
        return cls(
            np.concatenate([part.rows for part in some]),
            np.concatenate([part.columns for part in some]),
            np.concatenate([part.reasons for part in some]),
        )

    def in_order(self) -> LeftOut:
        """Return the tiles sorted by row and column, in whatever order they were read."""
        order = np.lexsort((self.columns, self.rows))
        return LeftOut(self.rows[order], self.columns[order], self.reasons[order])

    def count(self, reason: Reason) -> int:
        """Count the tiles with this reason."""
        return int(np.count_nonzero(self.reasons == reason))

    def by_quality(self) -> dict[str, int]:
        """Count the tiles that fail a quality threshold, by its name."""
        return count_reasons(self.reasons)
