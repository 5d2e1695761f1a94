"""Guards: which tiles are too bad to be used, by thresholds on their quality columns."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from wsiad.tissue.tissue_options import QualityThresholds

Reasons = npt.NDArray[np.uint8]
"""A :class:`Reason` for each tile."""


class Reason(IntEnum):
    """Why a tile is not used; the numbers are those of a store's ``left_out_reason``.

    In the order in which a tile that fails several thresholds is given its one reason,
    so that counts add up: what lies over the tissue comes before what it does to the
    tissue's look.
    """

    USABLE = 0
    MISSING = 1
    """The slide has no pixels for a part of it."""
    BLACK = 2
    PEN = 3
    SATURATION = 4
    SHARPNESS = 5
    DAMAGED = 6
    """A part of it is damaged in the file, and damage is passed over."""

    @property
    def word(self) -> str:
        """As counts name it: that of the quality column, ``"missing"`` or ``"damaged"``."""
        return self.name.lower()


QUALITY_REASONS = (Reason.BLACK, Reason.PEN, Reason.SATURATION, Reason.SHARPNESS)
"""Those that thresholds give."""


def judge(columns: Mapping[str, npt.NDArray[np.float32]], thresholds: QualityThresholds) -> Reasons:
    """Judge tiles by their quality.

    Parameters
    ----------
    columns : mapping of str to ndarray of float32, (N,)
        Those of :func:`wsiad.tissue.quality.measure`.
    thresholds : QualityThresholds
        A tile that lies exactly on a threshold passes it.

    Returns
    -------
    ndarray of uint8, (N,)
        The first :class:`Reason` that applies, 0 where none does.

    Notes
    -----
    A threshold is compared as the float32 that the columns are, so that tiles are
    judged the same when they are cut and when they are read from a store.
    """
    reasons = np.zeros(len(columns["sharpness"]), np.uint8)
    limits = (
        (Reason.BLACK, thresholds.max_black, np.greater),
        (Reason.PEN, thresholds.max_pen, np.greater),
        (Reason.SATURATION, thresholds.min_saturation, np.less),
        (Reason.SHARPNESS, thresholds.min_sharpness, np.less),
    )
    for reason, limit, fails in limits:
        if limit is not None:
            failed = fails(columns[reason.word], np.float32(limit))
            reasons[failed & (reasons == Reason.USABLE)] = reason
    return reasons


def count_reasons(reasons: Reasons) -> dict[str, int]:
    """Count the tiles that fail by reason, in the order of the reasons; zeros are left in."""
    counts = np.bincount(reasons, minlength=len(Reason))
    return {reason.word: int(counts[reason]) for reason in QUALITY_REASONS}


def in_words(counts: Mapping[str, int]) -> str:
    """Word counts by reason for people; empty where all are zero.

    Examples
    --------
    >>> in_words({"black": 0, "pen": 3, "sharpness": 12})
    'sharpness 12, pen 3'
    """
    found = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{word} {count:,}" for word, count in found if count)
