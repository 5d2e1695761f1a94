"""Write and delete the files of ``wsiad significance``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from wsiad._version import __version__
from wsiad.conformal.judgement import FalseAlarms, HealthySlides, SlideJudgement
from wsiad.conformal.p_values import (
    FloatArray,
    RegionSignificance,
    benjamini_hochberg,
)
from wsiad.core.errors import InputError
from wsiad.core.files import atomic_file, read_json, write_json, write_text
from wsiad.core.typed_files import TableKind
from wsiad.exports.qupath.objects import add_measurements
from wsiad.results.compared_slides import ComparedFolder, ComparedSlide
from wsiad.results.file_names import (
    OUTLINES,
    REGIONS,
    SIGNIFICANCE,
    SIGNIFICANCE_TABLE,
    WINDOWS_P,
)
from wsiad.results.identity import region_differences
from wsiad.results.region_table import write_regions

STATED = (
    (
        "A healthy slide that could as well have been in the reference has p_slide <= a with a "
        "probability of at most a."
    ),
    (
        "The same holds for the p of a tile drawn at random from such a slide. This is an average "
        "over slides: a single slide may have many tiles with a small p."
    ),
    (
        "Such a slide has a region with p_family_wise <= a with a probability of at most a, and "
        "a significant region with a probability of at most the false-discovery rate."
    ),
    (
        "For the regions of a slide with lesions, q is that of Benjamini and Hochberg: on average "
        "at most that share of the selected regions is false, if regions of a slide depend on each "
        "other only in ways that this rule allows. This is not proved for them."
    ),
    "All rates are averages over references: a reference of few slides may give more alarms.",
    "Nothing of this holds for slides of another scanner, laboratory, tissue or stain.",
)
"""Statements of what the p-values promise and what not; part of every ``significance.json``."""


@dataclass(frozen=True, slots=True)
class SignificanceRow:
    """Row of a slide in ``significance.csv``.

    Parameters
    ----------
    slide, label : str
        Name and label of the slide.
    score : float
        Score of the slide that was compared.
    p_slide : float
        Probability that a healthy slide has at least this score.
    q_slide : float
        `p_slide`, adjusted over the slides of the folder by Benjamini and Hochberg.
    regions, significant_regions : int
        Number of regions, including those left out, and number of significant regions.
    p_family_wise : float or None
        Family-wise p of the slide's strongest region; ``None`` without regions.
    """

    slide: str
    label: str
    score: float
    p_slide: float
    q_slide: float
    regions: int
    significant_regions: int
    p_family_wise: float | None


_TABLE = TableKind(
    SignificanceRow, "slides with p-values", "Run wsiad significance again.", InputError
)


def rows_of(
    judged: Sequence[tuple[ComparedSlide, float, RegionSignificance]],
) -> list[SignificanceRow]:
    """Return the rows of judged slides, in the same order."""
    adjusted = benjamini_hochberg(np.array([p for _, p, _ in judged]))
    return [
        SignificanceRow(
            slide=slide.name,
            label=slide.label,
            score=slide.score,
            p_slide=p,
            q_slide=q,
            regions=slide.n_regions,
            significant_regions=int(regions.significant.sum()),
            p_family_wise=float(regions.p_family_wise.min()) if len(regions.p) else None,
        )
        for (slide, p, regions), q in zip(judged, adjusted.tolist(), strict=True)
    ]


def write_slide(slide: ComparedSlide, judgement: SlideJudgement) -> None:
    """Write the p-values of a slide's windows and regions into its folder.

    Raises
    ------
    ExportError
        The files of the regions are damaged.
    """
    found, folder = judgement.regions, slide.results.folder
    columns = (found.p_family_wise, found.p, found.q, found.significant)
    each = list(zip(*(column.tolist() for column in columns), strict=True))
    regions = [
        replace(region, p_family_wise=family_wise, p=p, q=q, significant=int(significant))
        for region, (family_wise, p, q, significant) in zip(
            slide.results.regions(), each, strict=True
        )
    ]
    add_measurements(
        folder / OUTLINES,
        [
            {
                "wsiad: p (family-wise)": family_wise,
                "wsiad: p": p,
                "wsiad: q": q,
                "wsiad: significant": int(significant),
            }
            for family_wise, p, q, significant in each
        ],
    )
    write_regions(folder / REGIONS, regions)
    _write_array(folder / WINDOWS_P, judgement.tiles)


def _write_array(path: Path, values: FloatArray) -> None:
    with atomic_file(path) as partial, partial.open("wb") as file:
        np.save(file, values, allow_pickle=False)


def forget_other_regions(
    results: Path, was: Mapping[str, Any] | None, now: Mapping[str, Any]
) -> str:
    """Delete an earlier comparison if the regions, or the slide scores, have changed since.

    P-values of regions and windows do not depend on the slide score. If only `top_k` has changed,
    they stay in the slides' folders. P-values of slides stay too if the slides were compared by
    their maximum score.

    Parameters
    ----------
    results : Path
        Results folder.
    was, now : mapping
        Content of ``run.json`` before, if there was one, and now.

    Returns
    -------
    str
        Note for the user; empty if nothing is deleted.
    """
    if was is None or not (results / SIGNIFICANCE).exists():
        return ""
    changed = [told.split()[0] for told in region_differences(was, now)]
    if not changed or (changed == ["top_k"] and _slide_score(results) in ("max", "scan")):
        return ""
    forget(results)
    if changed == ["top_k"]:
        return (
            "p-values of slides for the previous top_k are deleted, those of regions stay: "
            "run wsiad significance"
        )
    return "p-values of the previous regions are deleted: run wsiad significance"


def _slide_score(results: Path) -> str:
    """Return the score by which slides were compared; empty if the file does not state it."""
    try:
        stored = read_json(
            results / SIGNIFICANCE, InputError, remedy="Run wsiad significance again."
        )
        return str(stored.get("slide_score", ""))
    except InputError:
        return ""  # damaged, so nothing in it holds


def forget(results: Path) -> None:
    """Delete the folder's files of an earlier comparison, before slides are changed."""
    for name in (SIGNIFICANCE, SIGNIFICANCE_TABLE):
        (results / name).unlink(missing_ok=True)


def write(
    results: Path,
    rows: Sequence[SignificanceRow],
    *,
    slide_score: str,
    fdr: float,
    healthy: ComparedFolder,
    check: ComparedFolder | None,
    tested: ComparedFolder,
    reference: HealthySlides,
    alarms: Sequence[FalseAlarms],
    warnings: Sequence[str],
    config: Mapping[str, Any],
) -> Path:
    """Write ``significance.csv`` and, last, ``significance.json``; return the latter."""
    write_text(results / SIGNIFICANCE_TABLE, _TABLE.text(rows))
    regions = reference.regions
    path = results / SIGNIFICANCE
    values = {
        "slide_score": slide_score,
        "fdr": fdr,
        "stated": list(STATED),
        "warnings": list(warnings),
        "reference": _told(healthy)
        | {
            "smallest_p": reference.slides.smallest_p,
            "tiles": len(reference.tiles.scores),
            "regions": len(regions.all.scores),
            "slides_with_regions": len(regions.strongest.scores),
        },
        "check": _told(check) if check else None,
        "false_alarms": [{**asdict(one), "rate": one.rate, "text": str(one)} for one in alarms],
        "not_tested": {
            name: {"status": status, "reason": tested.reasons[name]}
            for name, status in sorted(tested.others.items())
        },
        "slides": {row.slide: asdict(row) for row in rows},
        "made_by": {"wsiad": __version__, "config": dict(config)},
    }
    write_json(path, values)
    return path


def _told(folder: ComparedFolder) -> dict[str, Any]:
    names = [slide.name for slide in folder.slides]
    return {"slides": len(names), "names": names, "not_used": folder.others}
