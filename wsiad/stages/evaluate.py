"""Evaluate results, or somebody else's detections, against ground truth."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

import pydantic

from wsiad._version import __version__
from wsiad.config import Config, verb
from wsiad.errors import EvaluationError
from wsiad.evaluation.froc import ProtocolName
from wsiad.evaluation.results import SlideScore

if TYPE_CHECKING:
    from wsiad.evaluation.cohort import Case
    from wsiad.evaluation.evidence import SlideEvidence
    from wsiad.evaluation.report import Figures


class EvaluateConfig(Config):
    """Config of ``wsiad evaluate``."""

    results: Path | None = None
    """Results folder of `wsiad heatmap`; or else `detections`."""
    detections: Path | None = None
    """Folder of CSV files, one a slide: confidence, x, y in level-0 pixels."""
    reference: Path
    """CSV that says which slides hold tumour: columns `image` and `type`."""
    annotations: Path | None = None
    """Folder of outlines, `<slide>.xml` (ASAP) or `<slide>.geojson`; or else `masks`."""
    masks: Path | None = None
    """Folder of masks, `<slide>.png` or `.tif`, at level 5 (see `mask_downsample`)."""
    out: Path | None = None
    """Where figures and plots go; by default the results folder."""
    protocols: Annotated[tuple[ProtocolName, ...], pydantic.Field(min_length=1)] = (
        "camelyon16-2016",
        "camelyon16-dataset",
    )
    """FROC protocols; the first one's counts of lesions are the ones shown on top."""
    slide_score: SlideScore = "max"
    """Which score of `wsiad heatmap` is a slide's score."""
    spacing_um: Annotated[float, pydantic.Field(gt=0)] | None = None
    """µm per level-0 pixel for all slides; by default each slide's own, else 0.243."""
    mask_downsample: Annotated[int, pydantic.Field(ge=1)] | None = None
    """Level-0 pixels per mask pixel; by default 32 (level 5), on outlines of slides of
    other magnification the power of two that is nearest to it in µm."""
    exclude: tuple[str, ...] = ()
    """Slides to leave out altogether."""
    exclude_from_froc: tuple[str, ...] = ()
    """Slides to leave out of FROC and tile AUROC, such as test_114: not all outlined."""
    bootstrap: Annotated[int, pydantic.Field(ge=1, le=1_000_000)] = 1000
    """Resamples of the slides for intervals."""
    seed: Annotated[int, pydantic.Field(ge=0)] = 0
    """Seed of the resamples."""
    quiet: bool = False
    """No progress output."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if (self.results is None) == (self.detections is None):
            raise ValueError("give either `results` or `detections`")
        if self.annotations is not None and self.masks is not None:
            raise ValueError("give either `annotations` or `masks`")
        if self.out is None and self.results is None:
            raise ValueError("`detections` need an `out` folder")
        if self.detections is not None and self.slide_score != "max":
            raise ValueError("the slide score of `detections` is their highest: `max`")
        for name in ("protocols", "exclude", "exclude_from_froc"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"`{name}` names something twice")
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
    slides = _collect(config, _gather(config, source))
    figures = report.compute(
        slides,
        protocols=config.protocols,
        resamples=config.bootstrap,
        seed=config.seed,
        no_truth=_why_no_truth(config, slides),
        no_tiles=_why_no_tiles(config),
    )
    out = config.out or source
    result = EvaluationResult(
        figures,
        out / "evaluation.json",
        out / "lesions.csv",
        out / "roc.png",
        out / "froc.png",
        _summary(figures, out / "evaluation.json"),
    )
    plot_roc(
        result.roc_plot,
        *report.slide_scores(slides),
        figures.slide_auc,
        resamples=config.bootstrap,
        seed=config.seed,
    )
    plot_froc(result.froc_plot, figures.froc)
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


def _summary(figures: Figures, report: Path) -> str:
    named = {
        "slide AUC": figures.slide_auc,
        **{f"FROC {name}": froc.score for name, froc in figures.froc.items()},
        "tile AUROC": figures.tile_auroc,
    }
    width = max(map(len, named))
    lines = [f"{name:<{width}}  {estimate}" for name, estimate in named.items()]
    return "\n".join([*lines, f"see {report}"])


def _gather(config: EvaluateConfig, source: Path) -> list[Case]:
    from wsiad.evaluation.cohort import gather
    from wsiad.evaluation.results import read_results
    from wsiad.evaluation.submission import read_submission
    from wsiad.evaluation.truth import read_reference

    reference = read_reference(config.reference)
    if config.results is None:
        scored = read_submission(source, ignore=[config.reference])
    else:
        scored = read_results(source, score=config.slide_score, exclude=config.exclude)
    return gather(
        reference,
        scored,
        exclude=config.exclude,
        exclude_from_froc=config.exclude_from_froc,
        source=source,
    )


def _collect(config: EvaluateConfig, cases: list[Case]) -> list[SlideEvidence]:
    from wsiad.evaluation.evidence import collect
    from wsiad.evaluation.lesions import load_truth
    from wsiad.progress import Progress

    folder = config.annotations or config.masks
    if folder is not None and not folder.is_dir():
        raise EvaluationError(
            "is no folder",
            subject=str(folder),
            remedy="Name the folder that holds the ground truth of each slide.",
        )
    slides = []
    with Progress("evaluate", total=len(cases), unit="slide", quiet=config.quiet) as progress:
        for case in cases:
            truth = None
            if folder is not None and case.located:
                truth = load_truth(
                    case,
                    annotations=config.annotations,
                    masks=config.masks,
                    downsample=config.mask_downsample,
                )
            found = collect(
                case,
                truth,
                protocols=config.protocols,
                given_mpp=config.spacing_um,
                outlined=config.annotations is not None,
            )
            slides.append(found)
            progress.update()
    return slides


def _why_no_truth(config: EvaluateConfig, slides: list[SlideEvidence]) -> str | None:
    if config.annotations is None and config.masks is None:
        return "neither annotations nor masks were given"
    if not any(slide.by_protocol for slide in slides):
        return "all slides are excluded from FROC"
    return None


def _why_no_tiles(config: EvaluateConfig) -> str | None:
    if config.results is None:
        return "detections come without tile scores"
    if config.annotations is None:
        return "no annotations were given"
    return None
