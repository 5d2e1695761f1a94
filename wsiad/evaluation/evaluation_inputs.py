"""Options and inputs that `evaluate` and `compare` share: ground truth and exclusions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

import pydantic

from wsiad.core.config import Order, QuietOptions
from wsiad.core.errors import EvaluationError
from wsiad.evaluation.matching import ProtocolName
from wsiad.evaluation.submission import AskedScore
from wsiad.evaluation.unscored import CountedAs
from wsiad.slides.scale import check_mpp

if TYPE_CHECKING:
    from wsiad.evaluation.cohort import Case
    from wsiad.evaluation.figures import Settings
    from wsiad.evaluation.slide_evidence import SlideEvidence
    from wsiad.evaluation.submission import ScoredSlide

_FINEST_UM = 0.01
_SCORES = {
    "max": "their highest score (max)",
    "top_k_mean": "the mean of their highest scores (top_k_mean)",
    "scan": "their highest mean over a neighbourhood (scan)",
}


class EvaluationOptions(QuietOptions):
    """Options of the ground truth, and of its comparison with results."""

    ORDER: ClassVar[Order] = (..., "quiet")

    reference: Path
    """CSV that states which slides hold tumour, in the columns `image` and `type`."""
    annotations: Path | None = None
    """Folder of outlines, `<slide>.xml` (ASAP) or `<slide>.geojson`; an alternative to `masks`."""
    masks: Path | None = None
    """Folder of mask images, `<slide>.png` or `.tif`, at level 5 (see `mask_downsample`)."""
    class_map: dict[str, str] = pydantic.Field(default_factory=dict)
    """Meaning of a class or group of outlines: tumor, cut-out or ignore; for example
    Carcinoma=tumor."""
    annotation_origin: Literal["auto", "level0", "bounds"] = "auto"
    """Origin of positions in outline files that do not state it: `level0` is the corner of the
    slide, `bounds` that of its bounds. By default bounds for GeoJSON, as in QuPath, and level 0
    for ASAP's XML."""
    protocols: Annotated[tuple[ProtocolName, ...], pydantic.Field(min_length=1)] = (
        "camelyon16-2016",
        "camelyon16-dataset",
    )
    """FROC protocols, by default both; the summary shows the lesion counts of the first."""
    slide_score: AskedScore = "auto"
    """Score of a slide: the highest heatmap pixel, the mean of the highest, the highest mean over a
    neighbourhood (`scan`, see `scales_um` of `wsiad heatmap`), or a percentile. `auto`: `scan` if
    all slides have it, else `max`."""
    score_percentile: Annotated[float, pydantic.Field(gt=0, le=100)] = 99.0
    """Percentile of a slide's heatmap pixels that is its score, for `slide_score: percentile`."""
    spacing_um: Annotated[float, pydantic.Field(gt=0)] | None = None
    """µm per level-0 pixel for all slides; by default each slide's own. 0.243 for CAMELYON16."""
    mask_downsample: Annotated[int, pydantic.Field(ge=1)] | None = None
    """Level-0 pixels per mask pixel. The default is 32 (level 5); for outlines of slides with
    other µm/px, it is the power of two that is closest to that size in µm."""
    exclude: tuple[str, ...] = ()
    """Slides to leave out of all figures."""
    exclude_from_froc: tuple[str, ...] = ()
    """Slides to leave out of FROC and tile AUROC, such as test_114, whose outlines are
    incomplete."""
    unscored: CountedAs = "exclude"
    """Treatment of slides without a score (failed, unusable, without tissue): leave them out of
    the ranking, or count them as the lowest or the highest score. The output states the choice."""
    bootstrap: Annotated[int, pydantic.Field(ge=1, le=1_000_000)] = 1000
    """Number of resamples of the slides, for intervals."""
    seed: Annotated[int, pydantic.Field(ge=0)] = 0
    """Seed of the resamples."""

    @pydantic.field_validator("spacing_um")
    @classmethod
    def _check_spacing(cls, value: float | None) -> float | None:
        # A scale chosen to measure by may be somewhat finer than any scanner's.
        return value if value is None or _FINEST_UM <= value <= 1 else check_mpp(value)

    @pydantic.model_validator(mode="after")
    def _check_options(self) -> Self:
        if self.annotations is not None and self.masks is not None:
            raise ValueError("set either `annotations` or `masks`, not both")
        for name in ("protocols", "exclude", "exclude_from_froc"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"`{name}` names something twice")
        if self.class_map:
            from wsiad.annotations import ClassMap

            ClassMap(self.class_map)
        if self.annotations is None and (self.class_map or self.annotation_origin != "auto"):
            raise ValueError("`class_map` and `annotation_origin` need outlines (`annotations`)")
        return self


def cases_of(
    options: EvaluationOptions, scored: Mapping[str, ScoredSlide], source: Path
) -> list[Case]:
    """Pair the findings on slides with the reference.

    Raises
    ------
    EvaluationError
        A slide is in only one of reference and results, and is not excluded by name.
    """
    from wsiad.evaluation.cohort import gather
    from wsiad.evaluation.truth import read_reference

    return gather(
        read_reference(options.reference),
        scored,
        exclude=options.exclude,
        exclude_from_froc=options.exclude_from_froc,
        source=source,
    )


def evidence_of(
    options: EvaluationOptions, cases: list[Case], *, label: str
) -> list[SlideEvidence]:
    """Read the ground truth, detections and windows of each slide, and match them.

    Raises
    ------
    EvaluationError
        Detections, windows or ground truth are missing or not valid.
    AnnotationError
        An annotation file is not valid or contradicts the reference.
    """
    from wsiad.annotations import ClassMap
    from wsiad.core.terminal import Progress
    from wsiad.evaluation.lesions import OutlineOptions, load_truth
    from wsiad.evaluation.slide_evidence import collect

    folder = options.annotations or options.masks
    if folder is not None and not folder.is_dir():
        raise EvaluationError(
            "is not a folder",
            subject=str(folder),
            remedy="Name the folder that contains the ground truth of each slide.",
        )
    outlines = OutlineOptions(ClassMap(options.class_map), options.annotation_origin)
    slides = []
    with Progress(label, total=len(cases), unit="slide", quiet=options.quiet) as progress:
        for case in cases:
            truth = None
            # What nobody looked at has not missed its lesions, unless that is asked for.
            counted = case.was_seen or options.unscored != "exclude"
            if folder is not None and case.located and counted:
                truth = load_truth(
                    case,
                    annotations=options.annotations,
                    masks=options.masks,
                    downsample=options.mask_downsample,
                    given_mpp=options.spacing_um,
                    outlines=outlines,
                )
            found = collect(
                case,
                truth,
                protocols=options.protocols,
                given_mpp=options.spacing_um,
                outlined=options.annotations is not None,
                unscored=options.unscored,
            )
            slides.append(found)
            progress.update()
    return slides


def conditions_of(options: EvaluationOptions, slides: list[SlideEvidence]) -> list[str]:
    """Return lines with the conditions of the figures and the facts a reader must know."""
    from wsiad.annotations import ClassMap
    from wsiad.evaluation.conditions import conditions
    from wsiad.evaluation.figures import notes

    classes = ClassMap(options.class_map)
    said = conditions(slides, protocols=options.protocols, classes=classes)
    percentile = f"percentile {options.score_percentile:g} of their scores"
    ranked = f"slides are ranked by {_SCORES.get(options.slide_score, percentile)}"
    return [ranked, *said, *notes(slides)]


def settings_of(
    options: EvaluationOptions, slides: list[SlideEvidence], *, results: bool
) -> Settings:
    """Return the settings of the computation, with reasons for figures that are not defined.

    Parameters
    ----------
    options : EvaluationOptions
        Options of the evaluation.
    slides : list of SlideEvidence
        Evaluated slides.
    results : bool
        True where the slides come from results, which have tile scores.
    """
    from wsiad.evaluation.figures import Settings

    no_truth = no_tiles = None
    if options.annotations is None and options.masks is None:
        no_truth = "neither annotations nor masks were given"
    elif not any(slide.by_protocol for slide in slides):
        no_truth = "all slides are excluded from FROC, were not looked at, or have no tumour marked"
    if not results:
        no_tiles = "detections come without tile scores"
    elif options.annotations is None:
        no_tiles = "no annotations were given"
    return Settings(
        protocols=options.protocols,
        resamples=options.bootstrap,
        seed=options.seed,
        no_truth=no_truth,
        no_tiles=no_tiles,
    )
