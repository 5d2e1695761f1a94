"""What the official CAMELYON16 protocols of FROC do differently: their rules, as values.

``camelyon16-2016`` is the script of the challenge (Ehteshami Bejnordi, January 2016),
by which published numbers were made; ``camelyon16-dataset`` is the one that comes with
the public data set. Each is followed to the letter, oddities included; what they make
of the score is shown by two readings without them (:func:`all_thresholds` and
:func:`conservative`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

ProtocolName = Literal["camelyon16-2016", "camelyon16-dataset"]


@dataclass(frozen=True, slots=True)
class Rules:
    """What the protocols do differently.

    Parameters
    ----------
    coordinate : str
        How a level-0 coordinate becomes a mask pixel: ``"truncate"``, or ``"round"``
        (halves to even).
    single_precision : bool
        Scores of hit lesions are float32 while those of false positives are float64,
        so that equal scores may or may not tie.
    drop_lowest : bool
        The lowest score of all is no threshold. It is 0, and nothing is lost, as soon as
        a lesion is missed or there are isolated tumour cells; else a hit may be lost.
        Without it, every score above 0 is a threshold.
    reading : str
        Sensitivity at f false positives per slide: ``"linear"`` interpolates;
        ``"step-up"`` takes the first point with at least f, which is optimistic where
        the curve jumps; ``"step-down"`` the best point with at most f.
    """

    coordinate: Literal["truncate", "round"]
    single_precision: bool
    drop_lowest: bool
    reading: Literal["linear", "step-up", "step-down"]


PROTOCOLS: dict[ProtocolName, Rules] = {
    "camelyon16-2016": Rules("truncate", True, True, "linear"),
    "camelyon16-dataset": Rules("round", False, False, "step-up"),
}
"""Rules of the official protocols by name."""


def all_thresholds(rules: Rules) -> Rules:
    """Return the rules with every threshold kept, exact ties and linear interpolation."""
    return dataclasses.replace(rules, single_precision=False, drop_lowest=False, reading="linear")


def conservative(rules: Rules) -> Rules:
    """Return the rules with every threshold, exact ties and no sensitivity not reached."""
    return dataclasses.replace(all_thresholds(rules), reading="step-down")
