"""``wsiad evaluate``: figures of results, or of detections, against ground truth."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import pydantic

from wsiad._version import __version__
from wsiad.core.config import verb
from wsiad.core.files import check_folder
from wsiad.core.terminal import counted
from wsiad.evaluation.evaluation_inputs import (
    EvaluationOptions,
    cases_of,
    conditions_of,
    evidence_of,
    settings_of,
)

if TYPE_CHECKING:
    from wsiad.evaluation.figures import Figures


class EvaluateConfig(EvaluationOptions):
    """Compute slide AUC, FROC and tile AUROC of results or detections against ground truth."""

    results: Path | None = None
    """Results folder of `wsiad heatmap`; an alternative to `detections`."""
    detections: Path | None = None
    """Folder of CSV files, one per slide: confidence, x, y in level-0 pixels."""
    out: Path | None = None
    """Folder for figures and plots; by default the results folder."""
    group_by: str | None = None
    """Column, such as `center`, by whose groups every figure is also computed."""
    groups: Path | None = None
    """CSV with that column, such as the manifest; by default the reference."""
    slide_classifier: Literal["none", "forest"] = "none"
    """`forest` adds the slide AUC of a random forest on 31 features of the heatmaps. It is
    supervised: it learns from the reference, cross-validated by slide."""
    feature_quantiles: Annotated[tuple[float, ...], pydantic.Field(min_length=2, max_length=2)] = (
        0.999,
        0.99,
    )
    """High and low healthy quantile above which the forest measures regions; by default 0.999
    and 0.99."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if (self.results is None) == (self.detections is None):
            raise ValueError("set either `results` or `detections`")
        if self.out is None and self.results is None:
            raise ValueError("`detections` need an `out` folder")
        if self.detections is not None and self.slide_score not in ("auto", "max"):
            raise ValueError("the slide score of `detections` is their highest: `max`")
        if self.detections is not None and self.slide_classifier != "none":
            raise ValueError("`detections` come without heatmaps for a `slide_classifier`")
        if self.groups is not None and self.group_by is None:
            raise ValueError("`groups` needs the name of the column, `group_by`")
        high, low = self.feature_quantiles
        if not 0 < low <= high <= 1:
            raise ValueError("`feature_quantiles` must be the high one, then the low one, 0 to 1")
        return self


@dataclass(frozen=True, slots=True, eq=False)
class EvaluationResult:
    """Figures of an evaluation, and the files that contain them.

    Parameters
    ----------
    figures : Figures
        Slide AUC, tile AUROC, FROC by protocol, and counts.
    report, lesions, roc_plot, froc_plot : Path
        Paths of ``evaluation.json``, ``lesions.csv``, ``roc.png`` and ``froc.png``.
    summary : str
        Summary for the terminal.
    """

    figures: Figures
    report: Path
    lesions: Path
    roc_plot: Path
    froc_plot: Path
    summary: str


@verb(EvaluateConfig)
def evaluate(config: EvaluateConfig) -> EvaluationResult:
    """Compute slide AUC, FROC and tile AUROC, and write them with their plots.

    Raises
    ------
    EvaluationError
        Results, ground truth and reference do not fit together, or one of them is not valid. A
        slide of the reference without results is an error too, unless it is excluded by name.
        Slides without a score are left out, which the summary states first.
    AnnotationError
        An annotation file is not valid or contradicts the reference.
    """
    from wsiad.core.files import write_json
    from wsiad.evaluation import figures as report
    from wsiad.evaluation import unscored
    from wsiad.evaluation.lesion_outlines import write_outlines
    from wsiad.evaluation.lesion_table import write_lesions
    from wsiad.evaluation.plots import plot_froc, plot_roc
    from wsiad.evaluation.truth import read_groups, read_reference
    from wsiad.results import file_names as names
    from wsiad.results.evaluated_slides import chosen_score, classify_heatmaps, read_scored
    from wsiad.results.evaluated_truth import digests_of_detections
    from wsiad.results.identity import derived_by

    start = time.monotonic()
    source = config.detections or config.results
    assert source is not None
    is_results = config.results is not None
    if config.out is None and source.is_dir():
        check_folder(source, tried=True)
    derived = None
    if config.results is not None:
        derived = derived_by(config.results, exclude=config.exclude)
    folders = [] if config.results is None else [config.results]
    score = chosen_score(
        config.slide_score, folders, exclude=config.exclude, beside=[config.reference]
    )
    config = config.model_copy(update={"slide_score": score})
    scored = read_scored(config, source, results=is_results)
    groups: dict[str, str] = {}
    if config.group_by is not None:
        groups = read_groups(config.groups or config.reference, config.group_by, slides=scored)
    slides = evidence_of(config, cases_of(config, scored, source), label="evaluate")
    settings = settings_of(config, slides, results=is_results)
    figures = report.compute(slides, settings)
    more: dict[str, Any] = {}
    if config.slide_classifier != "none" and config.results is not None:
        more["slide_classifier"] = classify_heatmaps(
            config.results, slides, quantiles=config.feature_quantiles, seed=config.seed
        )
    if config.group_by is not None:
        by_group = report.compute_groups(slides, groups, settings)
        more |= {"group_by": config.group_by, "groups": report.groups_json(by_group)}
    out = config.out or source
    cases = [slide.case for slide in slides]
    left_out = report.left_out(config.exclude, config.exclude_from_froc)
    unmarked = report.unmarked(slides)
    told = [line for line in (unscored.headline(cases, config.unscored), *unmarked) if line]
    caption = report.left_out(config.exclude, config.exclude_from_froc, "; ".join(told))
    first = [*unscored.lines(cases, config.unscored), *unmarked]
    if not first or config.exclude or config.exclude_from_froc:
        first.append(left_out)
    said = conditions_of(config, slides)
    more_said = [line for line in said if line not in unmarked]
    result = EvaluationResult(
        figures=figures,
        report=out / names.EVALUATION,
        lesions=out / names.LESION_TABLE,
        roc_plot=out / names.ROC,
        froc_plot=out / names.FROC,
        summary="\n".join([*first, *_summary(figures, more, more_said, out / names.EVALUATION)]),
    )
    plot_roc(
        result.roc_plot,
        *report.slide_scores(slides),
        figures.slide_auc,
        resamples=config.bootstrap,
        seed=config.seed,
        caption=caption,
    )
    plot_froc(result.froc_plot, figures.froc, caption=caption)
    lesions = report.lesions(slides, config.protocols)
    write_lesions(result.lesions, lesions)
    first_protocol = config.protocols[0]
    write_outlines(
        out / names.TRUTH,
        first_protocol,
        lesions[first_protocol],
        figures.froc[first_protocol].thresholds,
        detections=(
            digests_of_detections(config.results, (one.slide for one in lesions[first_protocol]))
            if config.results is not None and (config.results / names.FACTS).exists()
            else {}
        ),
    )
    values = report.as_json(
        figures,
        slides,
        exclude=config.exclude,
        exclude_from_froc=config.exclude_from_froc,
        counted_as=config.unscored,
        reference=read_reference(config.reference),
    )
    made_by = {"wsiad": __version__, "config": config.model_dump(mode="json")}
    if derived:
        made_by["derived"] = derived
    write_json(result.report, {**values, "conditions": said, **more, "made_by": made_by})
    if config.results is not None:
        _complete_report(config.results, out, seconds=time.monotonic() - start)
    return result


def _complete_report(results: Path, out: Path, *, seconds: float) -> None:
    """Add the figures to the report of the results, if ``wsiad heatmap`` wrote one."""
    from wsiad.report.report import write_results_report
    from wsiad.results.file_names import FACTS

    if (results / FACTS).exists():
        write_results_report(results, evaluation=out, seconds={"evaluate": seconds})


def _summary(
    figures: Figures, more: dict[str, Any], said: list[str], report: Path
) -> Iterator[str]:
    """Yield the figures and their conditions, line by line."""
    named = {
        "slide AUC": str(figures.slide_auc),
        **{f"FROC {name}": str(froc.score) for name, froc in figures.froc.items()},
        "tile AUROC": str(figures.tile_auroc),
    }
    if figures.tile_auroc_neighbourhoods:
        named["tile AUROC, neighbourhoods"] = str(figures.tile_auroc_neighbourhoods)
    if "slide_classifier" in more:
        area = more["slide_classifier"]["slide_auc"]
        named["slide AUC, forest"] = f"{_plain(area)}; supervised, cross-validated by slide"
    for name, group in more.get("groups", {}).items():
        froc = next(iter(group["froc"].values()))
        named[f"{more['group_by']} {name}"] = (
            f"{counted(group['counts']['slides'], 'slide')}{_lacking(group['counts'])}: "
            f"slide AUC {_plain(group['slide_auc'])}, FROC {_plain(froc, 'score')}"
        )
    width = max(map(len, named))
    yield from (f"{name:<{width}}  {said}" for name, said in named.items())
    yield from said
    yield f"see {report}"


def _lacking(counts: dict[str, Any]) -> str:
    """Return a note on the slides of a group without a score; empty if there are none."""
    count = counts["slides_without_score"]
    return f" ({count} more without a score)" if count else ""


def _plain(figure: dict[str, Any], key: str = "value") -> str:
    value = figure[key]
    return f"{value:.3f}" if value is not None else f"not defined ({figure['undefined']})"
