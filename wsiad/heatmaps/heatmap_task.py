"""The task of scoring one slide, its options, and its row in the table.

Scores take hours and depend on few options; regions, detections and files are derived from them
in seconds. :class:`ScoringOptions` decide the former, all others the latter.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from wsiad.core.config import Config
from wsiad.slides.inputs import SlideInput
from wsiad.slides.scale import check_mpp
from wsiad.slides.slide_table import SlideRow
from wsiad.slides.staging import Staging
from wsiad.tiling.preparation import Preparation
from wsiad.tissue.tissue_options import QualityThresholds


class ScoringOptions(Config):
    """Options that decide a slide's scores, besides run and slide."""

    stride: Annotated[int, Field(ge=1)] | None = None
    """Step from window to window, pixels at the run's scale; by default the window's edge.
    Smaller steps overlap, and scores are averaged."""
    detail: Literal["window", "place"] = "window"
    """Source of a heatmap pixel: the score of the windows over it, or of the places
    within them where the method scores places."""


class ReadingOptions(Config):
    """Options that change what the windows of a slide show, in place of the run's."""

    slide_mpp: Annotated[float, Field(gt=0)] | None = None
    """µm/px of level 0 for slides that state none."""
    override_mpp: bool = False
    """The µm/px of a manifest, or else of `slide_mpp`, holds for slides that state another, too."""
    allow_upsampling: bool | None = None
    """Accept slides that are coarser than the run's scale by more than 2 %; by default as the
    run's store."""
    quality: QualityThresholds = QualityThresholds()
    """Which windows are too bad to be scored, in place of the thresholds of the run: they are
    shown as not assessed, and counted."""

    @field_validator("slide_mpp")
    @classmethod
    def _is_a_scale_of_slides(cls, value: float | None) -> float | None:
        return None if value is None else check_mpp(value)


class RegionOptions(Config):
    """Options that decide a slide's regions and its second score."""

    top_k: Annotated[int, Field(ge=1)] = 10
    """How many of the highest heatmap pixels `score_top_k_mean` averages."""
    region_quantile: Annotated[float, Field(gt=0, lt=1)] = 0.999
    """Healthy quantile of the score above which a region is outlined."""
    region_min_um2: Annotated[float, Field(ge=0)] = 0.0
    """Smaller regions are not outlined, µm²."""
    region_limit: Annotated[int, Field(ge=1)] = 300
    """The most regions of a slide; the strongest are kept."""
    region_tolerance_um: Annotated[float, Field(ge=0)] | None = None
    """How far an outline may be drawn from the edges of the heatmap pixels that it encloses, µm,
    to have fewer corners; by default three quarters of such a pixel. 0: exactly along them."""


class EvidenceOptions(Config):
    """Options that decide what the strongest regions are shown beside."""

    evidence_regions: Annotated[int, Field(ge=0, le=100)] = 10
    """For so many of the strongest regions, show their strangest window beside the nearest
    healthy tiles, and its reconstruction where the method makes one; 0 for none."""
    evidence_neighbours: Annotated[int, Field(ge=0, le=20)] = 3
    """How many healthy tiles are shown beside each."""


class DetectionOptions(Config):
    """Options that decide a slide's detections."""

    detection_quantile: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Healthy quantile of the score above which a peak is a detection: low, so that FROC
    reaches its rate of eight false positives a slide."""
    detection_limit: Annotated[int, Field(ge=1)] = 1000
    """The most detections of a slide."""
    suppression: Literal["disc", "square", "regions-max", "regions-mean"] = "disc"
    """Non-maximum suppression by a disc (Liu 2017) or by NCRF's square window; or the centre
    of each connected region with its highest or mean score (Wang 2016): raise
    `detection_quantile` for these, say to 0.99."""
    suppression_radius_um: Annotated[float, Field(gt=0)] = 187.0
    """Its radius, µm."""


class DerivedOptions(DetectionOptions, EvidenceOptions, RegionOptions):
    """Options that decide what is derived from a slide's scores."""


class HeatmapOptions(DerivedOptions, ScoringOptions):
    """Options that decide a slide's results, besides run and slide."""

    viewers: tuple[str, ...] = ("asap", "napari", "qupath")
    """For which programs files are written besides PNG and OME-TIFF: QuPath (tiles, project),
    ASAP (likelihood map, annotations), napari (OME-Zarr); or any format of `wsiad export`."""

    @field_validator("viewers")
    @classmethod
    def _in_order(cls, viewers: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted(set(viewers)))


@dataclass(frozen=True, slots=True)
class HeatmapRow(SlideRow):
    """A slide in a results folder's ``slides.csv``.

    Parameters
    ----------
    score_max, score_top_k_mean : float or None
        Highest heatmap pixel, and mean of the highest ones; ``None`` without tissue.
    tiles : int
        Scored.
    unusable : int
        Windows that were not scored as they fail a quality threshold.
    regions, detections : int or None
        Regions above the healthy quantile, those left out counted in; peaks.
    damaged : int
        Windows that were not scored as their part of the file is damaged.
    regions_left_out : int
        Of the regions, those beyond the limit, which are not outlined.
    """

    score_max: float | None = None
    score_top_k_mean: float | None = None
    tiles: int = 0
    regions: int | None = None
    detections: int | None = None
    unusable: int = 0
    regions_left_out: int = 0
    damaged: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideTask:
    """One slide to score, as it travels to a worker.

    Parameters
    ----------
    slide : SlideInput
        Its path is that of the store where windows come from one.
    from_store : bool
    results, run : Path
    options : HeatmapOptions
    preparation : Preparation
        Of the run.
    target : dict
        Stain profile that slides are given, as JSON values.
    digest : str
        Of the run and of the options that decide the scores.
    derived : dict
        What decides what is derived from the scores; see :mod:`wsiad.results.identity`.
    batch : int
    device : str
    staging : Staging, optional
        Where the slide is copied to before it is read.
    override_mpp : bool
        The µm/px that the user states holds where the slide states another.
    """

    slide: SlideInput
    from_store: bool
    results: Path
    run: Path
    options: HeatmapOptions
    preparation: Preparation
    target: dict[str, Any]
    digest: str
    derived: dict[str, Any]
    batch: int
    device: str
    staging: Staging | None = None
    override_mpp: bool = False

    @property
    def folder(self) -> Path:
        """Folder of the slide's results."""
        return self.results / self.slide.name
