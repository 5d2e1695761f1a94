"""What a lossy codec did to pixels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt


class PixelError:
    """The difference of coded pixels to what they were, over any number of tiles."""

    def __init__(self) -> None:
        # Counts of the absolute differences 0 to 255: exact, whatever the number of tiles.
        self._counts = np.zeros(256, np.int64)

    def add(self, before: npt.NDArray[np.uint8], after: npt.NDArray[np.uint8]) -> None:
        """Add tiles, uint8 of one shape."""
        difference = np.maximum(before, after) - np.minimum(before, after)
        self._counts += np.bincount(difference.ravel(), minlength=256)

    def values(self) -> dict[str, Any]:
        """Return the error as JSON values.

        Returns
        -------
        dict
            ``max_abs`` and ``mean_abs`` in grey levels of 0 to 255 over all channels, and
            ``psnr_db``, 10 · log10(255² / mean squared error); ``None`` where nothing
            differs, or nothing was added.
        """
        total = int(self._counts.sum())
        if not total:
            return {"max_abs": None, "mean_abs": None, "psnr_db": None}
        levels = np.arange(256)
        mean_square = float(self._counts @ levels**2) / total
        return {
            "max_abs": int(levels[self._counts > 0].max()),
            "mean_abs": round(float(self._counts @ levels) / total, 4),
            "psnr_db": round(10 * math.log10(255**2 / mean_square), 2) if mean_square else None,
        }
