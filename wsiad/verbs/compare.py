"""``wsiad compare``: paired differences of two results on the same slides."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsiad._version import __version__
from wsiad.core.config import verb
from wsiad.core.errors import ConfigError, EvaluationError
from wsiad.evaluation.evaluation_inputs import (
    EvaluationOptions,
    cases_of,
    conditions_of,
    evidence_of,
    settings_of,
)
from wsiad.slides.slide_table import SLIDES_TABLE

if TYPE_CHECKING:
    from wsiad.evaluation.comparison import Comparison
    from wsiad.evaluation.submission import ScoredSlide

_LISTED = 8


class CompareConfig(EvaluationOptions):
    """Compare two results, or folders of detections, on the same slides."""

    a: Path
    """First results folder of `wsiad heatmap`, or folder of detections."""
    b: Path
    """Second folder; differences are the second minus the first."""
    out: Path
    """Folder for `comparison.json` and `comparison.md`."""


@dataclass(frozen=True, slots=True, eq=False)
class ComparisonResult:
    """Comparison, and the files that contain it.

    Parameters
    ----------
    comparison : Comparison
        Every figure of both results, and the differences.
    report, table : Path
        Paths of ``comparison.json`` and ``comparison.md``.
    summary : str
        Summary for the terminal.
    """

    comparison: Comparison
    report: Path
    table: Path
    summary: str


@verb(CompareConfig)
def compare(config: CompareConfig) -> ComparisonResult:
    """Compute the paired differences of two results, and write them.

    Raises
    ------
    EvaluationError
        The two results do not have the same slides, or results, ground truth and reference do
        not fit together.
    AnnotationError
        An annotation file is not valid or contradicts the reference.
    """
    from wsiad.core.files import real_path, write_json, write_text
    from wsiad.evaluation import comparison, unscored
    from wsiad.evaluation.figures import left_out, unmarked
    from wsiad.results.evaluated_slides import chosen_score, read_scored
    from wsiad.results.identity import derived_by

    if real_path(config.a) == real_path(config.b):
        raise EvaluationError("is compared with itself", subject=str(config.a))
    folders = {folder: _is_results(folder) for folder in (config.a, config.b)}
    if config.slide_score not in ("auto", "max") and not all(folders.values()):
        raise ConfigError("the slide score of detections is their highest: `max`")
    for folder in (folder for folder, kind in folders.items() if kind):
        derived_by(folder, exclude=config.exclude)
    score = chosen_score(
        config.slide_score if all(folders.values()) else "max", folders, exclude=config.exclude
    )
    config = config.model_copy(update={"slide_score": score})
    scored = [read_scored(config, folder, results=kind) for folder, kind in folders.items()]
    _check_same(config, *scored)
    known = [_completed(one, other) for one, other in (scored, scored[::-1])]
    first, second = (
        evidence_of(config, cases_of(config, found, folder), label=f"evaluate {folder.name}")
        for found, folder in zip(known, folders, strict=True)
    )
    found = comparison.compare(
        first, second, settings_of(config, first, results=all(folders.values()))
    )
    sides = {"a": [slide.case for slide in first], "b": [slide.case for slide in second]}
    lines = {side: unscored.lines(cases, config.unscored) for side, cases in sides.items()}
    excluded = [f"{side}: {said[0]}" for side, said in lines.items() if said]
    listed = [f"{side}: " + "\n".join(said) for side, said in lines.items() if said]
    if excluded and config.unscored == "exclude":
        counts = found.counts
        paired = (
            f"figures cover the slides that both have scored: {counts['slides']} of {len(first)}, "
            f"{counts['tumour_slides']} with tumour"
        )
        excluded.append(paired)
        listed.append(paired)
    # The ground truth of both is one, and a slide that a side could not look at has none there.
    nowhere = sorted({*unmarked(first), *unmarked(second)})
    excluded += nowhere
    listed += nowhere
    if not excluded or config.exclude or config.exclude_from_froc:
        named = left_out(config.exclude, config.exclude_from_froc)
        excluded.append(named)
        listed.append(named)
    said = conditions_of(config, first)
    said += [line for line in conditions_of(config, second) if line not in said]
    more_said = [line for line in said if line not in nowhere]
    table = comparison.as_table(found, str(config.a), str(config.b), listed)
    result = ComparisonResult(
        found,
        config.out / "comparison.json",
        config.out / "comparison.md",
        "\n".join([table, *more_said, f"see {config.out / 'comparison.json'}"]),
    )
    values: dict[str, Any] = {
        "unscored": {side: unscored.told(cases, config.unscored) for side, cases in sides.items()},
        **comparison.as_json(found, str(config.a), str(config.b)),
        "exclusions": {
            "all": sorted(config.exclude),
            "froc": sorted(config.exclude_from_froc),
        },
        "conditions": said,
        "made_by": {"wsiad": __version__, "config": config.model_dump(mode="json")},
    }
    write_json(result.report, values)
    write_text(result.table, comparison.as_markdown(found, str(config.a), str(config.b), excluded))
    return result


def _is_results(folder: Path) -> bool:
    """Tell whether a folder is one of ``wsiad heatmap``; otherwise it should have detections."""
    return (folder / SLIDES_TABLE).exists()


def _check_same(
    config: CompareConfig, a: Mapping[str, ScoredSlide], b: Mapping[str, ScoredSlide]
) -> None:
    """Refuse results on different slides, or on slides of different sizes."""
    excluded = set(config.exclude)
    for here, there, folder in ((a, b, config.b), (b, a, config.a)):
        names = sorted(set(here) - set(there) - excluded)
        if names:
            more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
            raise EvaluationError(
                f"has no results in {folder}, but the other side has some",
                subject=", ".join(names[:_LISTED]) + more,
                remedy="Complete the results, or exclude the slides from both: only the same "
                "slides can be compared.",
            )
    for name in sorted(set(a) & set(b) - excluded):
        sizes = a[name].size, b[name].size
        if None not in sizes and sizes[0] != sizes[1]:
            raise EvaluationError(
                f"is {sizes[0]} on one side and {sizes[1]} on the other",
                subject=name,
                remedy="Compare results of the same files.",
            )


def _completed(
    scored: Mapping[str, ScoredSlide], other: Mapping[str, ScoredSlide]
) -> dict[str, ScoredSlide]:
    """Add the size, scale and bounds that only the other side knows, so that both are equal."""
    return {
        name: dataclasses.replace(
            slide,
            size=slide.size or other[name].size,
            mpp=slide.mpp or other[name].mpp,
            bounds=slide.bounds or other[name].bounds,
        )
        if name in other
        else slide
        for name, slide in scored.items()
    }
