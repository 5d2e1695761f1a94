"""Compare a results folder with held-out healthy slides, and add p-values to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from wsiad.core.config import QuietOptions
from wsiad.core.errors import InputError, RunError
from wsiad.core.files import real_path
from wsiad.evaluation.submission import StoredScore
from wsiad.heatmaps.heatmap_task import usual_score
from wsiad.slides.slide_table import OK, SlideRow

if TYPE_CHECKING:
    from wsiad.conformal.judgement import FalseAlarms, HealthySlides
    from wsiad.results.compared_slides import ComparedFolder
    from wsiad.results.significance_files import SignificanceRow

Level = Annotated[float, Field(gt=0, lt=1)]


class SignificanceConfig(QuietOptions):
    """Add p-values to the slides, regions and tiles of results, from held-out healthy slides."""

    ORDER = (..., "quiet")

    results: Path
    """Results folder of `wsiad heatmap`; the p-values are added to it."""
    healthy: Path
    """Results folder of healthy slides that were not used for the run, scored by the same run
    with the same options."""
    check: Path | None = None
    """Results folder of further healthy slides, on which false alarms are counted."""
    fdr: Level = 0.1
    """False-discovery rate to keep over the regions of a slide."""
    slide_score: Literal["auto", "max", "top_k_mean", "scan"] = "auto"
    """Score of a slide: its highest heatmap pixel, the mean of its highest (`top_k_mean`), or its
    highest mean over a neighbourhood (`scan`). `auto`: `scan` if all slides have it, else `max`."""
    levels: Annotated[tuple[Level, ...], Field(min_length=1)] = (0.01, 0.05, 0.1)
    """Levels of p at which false alarms are counted on the slides of `check`; by default 0.01,
    0.05 and 0.1."""

    @model_validator(mode="after")
    def _folders_differ(self) -> Self:
        folders = [real_path(path) for path in (self.results, self.healthy, self.check) if path]
        if len(set(folders)) < len(folders):
            raise ValueError("`results`, `healthy` and `check` must be different folders")
        return self


@dataclass(frozen=True, slots=True)
class SignificanceResult:
    """Result of the comparison with healthy slides.

    Parameters
    ----------
    rows : tuple of SignificanceRow
        Rows of the slides that have a heatmap, in order of their names.
    false_alarms : tuple of FalseAlarms
        False alarms on the slides of `check`; empty without them.
    warnings : tuple of str
        Warnings that no reader should miss.
    report : Path
        Path of ``significance.json``.
    summary : str
        Summary for the terminal.
    """

    rows: tuple[SignificanceRow, ...]
    false_alarms: tuple[FalseAlarms, ...]
    warnings: tuple[str, ...]
    report: Path
    summary: str


def compare(config: SignificanceConfig) -> SignificanceResult:
    """Add p-values to results, without updating their report and QuPath project.

    Raises
    ------
    InputError
        A folder has no results or those of another run or other options, or the healthy slides
        cannot be compared; see :func:`check_folders`.
    ExportError
        Results of a slide are damaged.
    """
    from wsiad.results import significance_files as files
    from wsiad.results import significance_text as text
    from wsiad.results.compared_slides import read_folder

    score = _chosen_score(config)
    tested = read_folder(config.results, score=score)
    healthy = read_folder(config.healthy, score=score)
    check = read_folder(config.check, score=score) if config.check else None
    learnt_from = check_folders(tested, healthy, check)
    reference = _reference(healthy)
    alarms = _false_alarms(config, check, reference, n_healthy=len(healthy.slides))
    files.forget(config.results)
    rows = _judge(config, tested, reference)
    warnings = text.warnings(
        tested, healthy, check, learnt_from=learnt_from, alarms=alarms, fdr=config.fdr
    )
    report = files.write(
        config.results,
        rows,
        slide_score=score,
        fdr=config.fdr,
        healthy=healthy,
        check=check,
        tested=tested,
        reference=reference,
        alarms=alarms,
        warnings=warnings,
        config=config.model_copy(update={"slide_score": score}).model_dump(mode="json"),
    )
    summary = text.summary(
        rows, report, n_healthy=len(healthy.slides), fdr=config.fdr, slide_score=score
    )
    lines = [
        *text.not_tested(tested),
        summary,
        *text.alarm_table(alarms),
        *(f"WARNING: {one}" for one in warnings),
    ]
    return SignificanceResult(
        rows=tuple(rows),
        false_alarms=tuple(alarms),
        warnings=tuple(warnings),
        report=report,
        summary="\n".join(lines),
    )


def _chosen_score(config: SignificanceConfig) -> StoredScore:
    """Return the score by which slides are compared."""
    from wsiad.results.folder import Results

    if config.slide_score != "auto":
        return config.slide_score
    folders = [path for path in (config.results, config.healthy, config.check) if path]
    return usual_score(row for path in folders for row in Results(path).slides)


def check_reference(healthy: Path, facts: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Refuse healthy slides with which results cannot be compared, before hours of scoring.

    Parameters
    ----------
    healthy : Path
        Results folder of the healthy slides.
    facts : mapping
        Future content of ``run.json`` of the results.
    asked : mapping
        Run and options of the results, see :func:`wsiad.results.identity.asked_values`.

    Raises
    ------
    InputError
        The folder contains no results, or those of another run or other options.
    """
    from wsiad.results.compared_slides import read_folder
    from wsiad.results.identity import ALIKE_BY_EXPORT, difference, region_differences

    there = read_folder(healthy).facts
    told = region_differences(there, facts, slide_score="max")  # top_k is not asked for
    remedy = f"{ALIKE_BY_EXPORT} Or pass those of the healthy slides here."
    if there["digest"] != facts["digest"]:
        told.insert(0, difference(healthy, there, asked))
        remedy = "Score the healthy slides with the same run and options."
    if told:
        raise InputError(
            f"holds results of another run or of other options: {', '.join(told)}",
            subject=str(healthy),
            remedy=remedy,
        )


def add_significance(results: Path, healthy: Path, rows: Iterable[SlideRow], *, quiet: bool) -> str:
    """Compare results, if there are any, with those of healthy slides, and return the summary.

    Raises
    ------
    InputError
        The slides cannot be compared, see :func:`compare`.
    """
    if not any(row.status == OK for row in rows):
        return ""
    found = compare(SignificanceConfig(results=results, healthy=healthy, quiet=quiet))
    return f"\n{found.summary}"


def check_folders(
    tested: ComparedFolder, healthy: ComparedFolder, check: ComparedFolder | None
) -> dict[str, str] | None:
    """Check that slides can be compared with healthy ones.

    Returns
    -------
    dict of str to str, or None
        Use of slides by the run, by fingerprint; ``None`` if the run does not state it.

    Raises
    ------
    InputError
        They cannot be compared; the error names the slide or the difference.
    """
    learnt_from = slides_of_run(tested)
    for folder in [healthy, *([check] if check else [])]:
        folder.check_same_run(tested)
        folder.check_healthy(learnt_from or {})
    healthy.check_apart(tested)
    if check:
        check.check_apart(healthy)
    return learnt_from


def slides_of_run(folder: ComparedFolder) -> dict[str, str] | None:
    """Return the use of slides by the run of results, by fingerprint; ``None`` if it is unknown."""
    from wsiad.runs.run import RunFolder

    try:
        record = RunFolder.open(Path(folder.facts.get("run", ""))).record()
        return record.slides_by_fingerprint or None
    except RunError:  # it may have been moved since: a warning says that nobody could check
        return None


def _reference(healthy: ComparedFolder) -> HealthySlides:
    from wsiad.conformal.judgement import HealthySlides

    return HealthySlides.of([slide.scores() for slide in healthy.slides])


def _false_alarms(
    config: SignificanceConfig,
    check: ComparedFolder | None,
    reference: HealthySlides,
    *,
    n_healthy: int,
) -> list[FalseAlarms]:
    from wsiad.conformal.judgement import false_alarms

    if check is None:
        return []
    return false_alarms(
        (reference.judge(slide.scores(), fdr=config.fdr) for slide in check.slides),
        levels=config.levels,
        fdr=config.fdr,
        reference=n_healthy,
    )


def _judge(
    config: SignificanceConfig, tested: ComparedFolder, reference: HealthySlides
) -> list[SignificanceRow]:
    """Compute the p-values of each slide and write them into its folder."""
    from wsiad.core.terminal import Progress
    from wsiad.results.significance_files import rows_of, write_slide

    judgements = []
    total = len(tested.slides)
    with Progress("significance", total=total, unit="slide", quiet=config.quiet) as progress:
        for slide in tested.slides:
            judgement = reference.judge(slide.scores(), fdr=config.fdr)
            write_slide(slide, judgement)
            judgements.append((slide, judgement.p, judgement.regions))
            progress.update()
    if not judgements:
        raise tested.no_slides()
    return rows_of(judgements)
