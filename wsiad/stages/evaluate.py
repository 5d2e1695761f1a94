"""Evaluate results, or somebody else's detections, against ground truth."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pydantic

from wsiad._version import __version__
from wsiad.config import verb
from wsiad.stages.evaluation_input import (
    EvaluationOptions,
    cases_of,
    evidence_of,
    read_scored,
    why_no_tiles,
    why_no_truth,
)

if TYPE_CHECKING:
    from wsiad.evaluation.report import Figures


class EvaluateConfig(EvaluationOptions):
    """Config of ``wsiad evaluate``."""

    results: Path | None = None
    """Results folder of `wsiad heatmap`; or else `detections`."""
    detections: Path | None = None
    """Folder of CSV files, one a slide: confidence, x, y in level-0 pixels."""
    out: Path | None = None
    """Where figures and plots go; by default the results folder."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if (self.results is None) == (self.detections is None):
            raise ValueError("give either `results` or `detections`")
        if self.out is None and self.results is None:
            raise ValueError("`detections` need an `out` folder")
        if self.detections is not None and self.slide_score != "max":
            raise ValueError("the slide score of `detections` is their highest: `max`")
        return self


@dataclass(frozen=True, slots=True, eq=False)
class EvaluationResult:
    """Figures of an evaluation and the files that hold them.

    Parameters
    ----------
    figures : Figures
        Slide AUC, tile AUROC, FROC by protocol, and counts.
    report, lesions, roc_plot, froc_plot : Path
        ``evaluation.json``, ``lesions.csv``, ``roc.png`` and ``froc.png``.
    summary : str
        For people.
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
        Results, ground truth and reference do not fit together, or one of them is not
        valid; nothing is left out that was not excluded by name.
    AnnotationError
        An annotation file is not valid or contradicts the reference.
    """
    from wsiad.evaluation import report
    from wsiad.evaluation.lesion_table import write_lesions
    from wsiad.evaluation.plots import plot_froc, plot_roc
    from wsiad.files import write_json

    start = time.monotonic()
    source = config.detections or config.results
    assert source is not None
    is_results = config.results is not None
    scored = read_scored(config, source, results=is_results)
    slides = evidence_of(config, cases_of(config, scored, source), label="evaluate")
    figures = report.compute(
        slides,
        protocols=config.protocols,
        resamples=config.bootstrap,
        seed=config.seed,
        no_truth=why_no_truth(config, slides),
        no_tiles=why_no_tiles(config, results=is_results),
    )
    out = config.out or source
    left_out = report.left_out(config.exclude, config.exclude_from_froc)
    result = EvaluationResult(
        figures,
        out / "evaluation.json",
        out / "lesions.csv",
        out / "roc.png",
        out / "froc.png",
        _summary(figures, left_out, out / "evaluation.json"),
    )
    plot_roc(
        result.roc_plot,
        *report.slide_scores(slides),
        figures.slide_auc,
        resamples=config.bootstrap,
        seed=config.seed,
        caption=left_out,
    )
    plot_froc(result.froc_plot, figures.froc, caption=left_out)
    write_lesions(result.lesions, report.lesions(slides, config.protocols))
    values = report.as_json(
        figures, slides, exclude=config.exclude, exclude_from_froc=config.exclude_from_froc
    )
    made_by = {"wsiad": __version__, "config": config.model_dump(mode="json")}
    write_json(result.report, {**values, "made_by": made_by})
    if config.results is not None:
        _complete_report(config.results, out, seconds=time.monotonic() - start)
    return result


def _complete_report(results: Path, out: Path, *, seconds: float) -> None:
    """Add the figures to the report that ``wsiad heatmap`` wrote, where it did."""
    from wsiad.stages.heatmap_task import FACTS
    from wsiad.stages.reporting import write_results_report

    if (results / FACTS).exists():
        write_results_report(results, evaluation=out, seconds={"evaluate": seconds})


def _summary(figures: Figures, left_out: str, report: Path) -> str:
    named = {
        "slide AUC": figures.slide_auc,
        **{f"FROC {name}": froc.score for name, froc in figures.froc.items()},
        "tile AUROC": figures.tile_auroc,
    }
    width = max(map(len, named))
    lines = [f"{name:<{width}}  {estimate}" for name, estimate in named.items()]
    return "\n".join([*lines, left_out, f"see {report}"])
