"""List the slides without a score, and state how an evaluation counts them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from wsiad.evaluation.cohort import Case

CountedAs = Literal["exclude", "lowest", "highest"]

_LISTED = 20
_WORDS = {
    "exclude": "left out of the figures",
    "lowest": "counted as the lowest score and their lesions as missed (--unscored lowest)",
    "highest": "counted as the highest score and their lesions as missed (--unscored highest)",
}


def score_of_unscored(counted_as: CountedAs) -> float:
    """Return the score that counts for a slide without a score; NaN where it is not ranked."""
    return {"exclude": math.nan, "lowest": -math.inf, "highest": math.inf}[counted_as]


def told(cases: Sequence[Case], counted_as: CountedAs) -> dict[str, Any]:
    """Return the slides without a score as JSON values.

    Parameters
    ----------
    cases : sequence of Case
        All slides of the evaluation.
    counted_as : str
        Treatment of slides without a score.
    """
    some = _unscored(cases)
    return {
        "counted_as": counted_as,
        "slides": len(some),
        "of": len(cases),
        "tumour_slides": sum(case.tumour for case in some),
        "by_status": dict(Counter(case.scored.status for case in some)),
        "each": [
            {
                "slide": case.slide,
                "label": _label(case),
                "status": case.scored.status,
                "reason": case.scored.reason,
            }
            for case in some
        ],
        "text": headline(cases, counted_as),
    }


def headline(cases: Sequence[Case], counted_as: CountedAs) -> str:
    """Return a line with the number of slides without a score and how they are counted.

    The line is empty if all slides have a score.
    """
    some = _unscored(cases)
    if not some:
        return ""
    counts = Counter(case.scored.status for case in some)
    statuses = ", ".join(f"{count} {status}" for status, count in counts.items())
    tumour = [case.slide for case in some if case.tumour]
    told = f"{len(tumour)} of them with tumour"
    if tumour:
        told += f": {_listed(tumour)}"
    have = "slide has" if len(cases) == 1 else "slides has" if len(some) == 1 else "slides have"
    return f"{len(some)} of {len(cases)} {have} no score ({statuses}; {told}), {_WORDS[counted_as]}"


def lines(cases: Sequence[Case], counted_as: CountedAs) -> list[str]:
    """Return lines that list the slides without a score, and why; tumour slides come first."""
    some = _unscored(cases)
    if not some:
        return []
    listed = [
        f"  {case.slide} ({_label(case)}): {case.scored.status}"
        + (f": {case.scored.reason}" if case.scored.reason else "")
        for case in some[:_LISTED]
    ]
    if (more := len(some) - _LISTED) > 0:
        listed.append(f"  and {more} more")
    return [headline(cases, counted_as), *listed]


def _unscored(cases: Sequence[Case]) -> list[Case]:
    return sorted(
        (case for case in cases if not case.has_score),
        key=lambda case: (not case.tumour, case.slide),
    )


def _label(case: Case) -> str:
    return "tumour" if case.tumour else "normal"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")
