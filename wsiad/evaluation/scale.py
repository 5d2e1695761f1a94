"""How large the pixels of evaluation masks are, by each protocol."""

from __future__ import annotations

import math

from wsiad.core.errors import EvaluationError
from wsiad.core.units import Mpp
from wsiad.evaluation.protocols import ProtocolName

SCRIPT_MPP = Mpp(0.243)
"""µm per level-0 pixel that the 2016 script takes for every slide."""

LEVEL5_DOWNSAMPLE = 32
"""Level-0 pixels per mask pixel in both scripts."""

_SAME_SCANNER = 0.1


def mask_downsample(mpp: Mpp | None) -> int:
    """Return the power of two whose mask pixels come nearest to those of CAMELYON16.

    It is 32, level 5, for both scanners of CAMELYON16, and where nothing is known (which
    :func:`protocol_mpp` refuses where it matters); on a
    slide of 0.97 µm/px it is 8, so that the 75 µm and 275 µm of the protocols still span
    several pixels.
    """
    if mpp is None:
        return LEVEL5_DOWNSAMPLE
    return 1 << max(0, round(math.log2(SCRIPT_MPP * LEVEL5_DOWNSAMPLE / mpp)))


def protocol_mpp(
    protocol: ProtocolName, *, given: float | None, known: Mpp | None, slide: str | None = None
) -> tuple[Mpp, str]:
    """µm per level-0 pixel that a protocol reckons with, and where it comes from.

    What the user gives holds for all; where nothing is known, nothing is assumed. Else
    ``camelyon16-dataset`` goes by the slide, and ``camelyon16-2016`` by its constant, as
    long as the slide is within 10 % of it, which both scanners of CAMELYON16 are; on other
    slides the constant would mean nothing.

    Parameters
    ----------
    protocol : str
        Name of the protocol.
    given : float or None
        The user's value.
    known : Mpp or None
        The slide's own.
    slide : str, optional
        Its name, for the error.

    Raises
    ------
    EvaluationError
        Neither is known.
    """
    if given is not None:
        return Mpp(given), "given"
    if known is None:
        raise EvaluationError(
            "no µm/px is known, by which tumour becomes lesions",
            subject=slide,
            remedy=f"Give --spacing-um; it is {SCRIPT_MPP} for CAMELYON16.",
        )
    if protocol == "camelyon16-2016" and abs(known / SCRIPT_MPP - 1) <= _SAME_SCANNER:
        return SCRIPT_MPP, "the 2016 script's 0.243 µm/px"
    return known, "the slide's own"
