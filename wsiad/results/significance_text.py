"""Texts about p-values: warnings, false alarms, slides not tested and the summary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from wsiad.conformal.judgement import FalseAlarms, Kind
from wsiad.conformal.p_values import slides_needed
from wsiad.core.terminal import by_number, counted
from wsiad.results.compared_slides import ComparedFolder
from wsiad.slides.slide_table import FAILED, UNUSABLE

if TYPE_CHECKING:
    from pathlib import Path

    from wsiad.results.significance_files import SignificanceRow

_USUAL_LEVEL = 0.05
_RARE = 0.01
_SHORT: dict[Kind, str] = {
    "slides": "slides, by their p",
    "tiles": "tiles, by their p",
    "family-wise regions": "slides, by family-wise p of a region",
    "significant regions": "slides, by a significant region",
}


def warnings(
    tested: ComparedFolder,
    healthy: ComparedFolder,
    check: ComparedFolder | None,
    *,
    learnt_from: Mapping[str, str] | None,
    alarms: Sequence[FalseAlarms],
    fdr: float,
) -> list[str]:
    """Return warnings about everything that weakens the p-values."""
    found = []
    count = len(healthy.slides)
    for level, what in ((_USUAL_LEVEL, "a p of"), (fdr, "a significant region at")):
        if count < slides_needed(level):
            found.append(
                f"No p-value from {counted(count, 'healthy slide')} is below "
                f"{1 / (count + 1):.3g}: {what} "
                f"{level:g} needs at least {slides_needed(level)} of them."
            )
    if learnt_from is None:
        found.append(
            "The run does not state which slides it was trained on, so it could not be checked "
            "that the healthy slides are new to it."
        )
    seen = sorted(s.name for s in tested.slides if s.fingerprint in (learnt_from or {}))
    if seen:
        found.append(f"The run was trained on slides that are tested: {', '.join(seen)}.")
    for folder, what in ((healthy, "reference"), (check, "check")):
        others = (folder.others if folder else {}).items()
        for status, did in ((FAILED, "failed"), (UNUSABLE, "could not be looked at")):
            if names := sorted(name for name, one in others if one == status):
                found.append(
                    f"{counted(len(names), 'healthy slide')} of the {what} {did} "
                    f"({', '.join(names)}). If "
                    "the reason is their appearance, the others are not like new slides."
                )
    return [*found, *_alarm_warnings(alarms, count)]


def _alarm_warnings(alarms: Sequence[FalseAlarms], reference: int) -> Iterator[str]:
    """Yield warnings about rates that were not as stated, and their meaning."""
    for verdict, means in (
        ("more than stated", "are not like those of the reference"),
        ("fewer than stated", "are calmer than those of the reference"),
    ):
        found = [one for one in alarms if one.verdict == verdict]
        if not found:
            continue
        chance = min((one.chance for one in found if one.chance is not None), default=None)
        why = f"the slides of the check {means}"
        if chance is None:
            few = by_number(reference, "is", "are")
            why += f", or {counted(reference, 'slide')} {few} too few for a reference"
        elif chance >= _RARE:
            why = f"that may be chance (probability {chance:.2g}); more healthy slides would tell"
        rates = "; ".join(one.words for one in found)
        yield (
            f"There are {verdict.split()[0]} false alarms than stated on the "
            f"{counted(found[0].slides, 'healthy slide')} of the check ({rates}): {why}."
        )


def alarm_table(alarms: Sequence[FalseAlarms]) -> list[str]:
    """Return the measured rates as the lines of a table."""
    if not alarms:
        return []
    width = max(map(len, _SHORT.values()))
    head = f"false alarms on {counted(alarms[0].slides, 'healthy slide')}"
    return [
        f"{head:<{width + 2}}  stated  measured (95 %)",
        *(
            f"  {_SHORT[one.kind]:<{width}}  {one.level:<6g}  "
            f"{one.rate:.3f} ({one.low:.3f} to {one.high:.3f})"
            for one in alarms
        ),
    ]


def not_tested(tested: ComparedFolder) -> list[str]:
    """Return lines that list the slides without a score and so without a p-value, and why."""
    if not tested.others:
        return []
    have = by_number(len(tested.others), "has", "have")
    slides = counted(len(tested.others) + len(tested.slides), "slide")
    lines = [f"{len(tested.others)} of {slides} {have} no score and therefore no p-value:"]
    for name, status in sorted(tested.others.items()):
        reason = tested.reasons[name]
        lines.append(f"  {name}: {status}" + (f": {reason}" if reason else ""))
    return lines


def summary(
    rows: Sequence[SignificanceRow], path: Path, *, n_healthy: int, fdr: float, slide_score: str
) -> str:
    """Return the summary of a comparison in one line."""
    usual = sum(row.p_slide <= _USUAL_LEVEL for row in rows)
    regions = sum(row.significant_regions for row in rows)
    holders = sum(row.significant_regions > 0 for row in rows)
    return (
        f"{counted(len(rows), 'slide')} against {counted(n_healthy, 'healthy one')}: {usual} "
        "with p <= "
        f"{_USUAL_LEVEL:g} by score_{slide_score}; {counted(regions, 'significant region')} on "
        f"{counted(holders, 'slide')} at a false-discovery rate of {fdr:g}; see {path}"
    )
