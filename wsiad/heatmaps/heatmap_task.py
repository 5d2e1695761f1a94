"""Task of scoring one slide, its options, and its row in the table of slides.

Scores take hours and depend on few options, :class:`ScoringOptions`. Regions, detections and files
are derived from the scores in seconds, by all other options.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator

from wsiad.compute.batch import PreparedTask
from wsiad.core.config import Config
from wsiad.heatmaps.space_options import SpaceOptions
from wsiad.slides.scale import check_mpp
from wsiad.slides.slide_files import slide_fingerprint
from wsiad.slides.slide_table import OK, SlideRow
from wsiad.tissue.tissue_options import QualityThresholds

if TYPE_CHECKING:
    from wsiad.heatmaps.scale_space import SpatialCalibration


class ScoringOptions(Config):
    """Options that decide a slide's scores, together with the run and the slide."""

    stride: Annotated[int, Field(ge=1)] | None = None
    """Step from window to window, pixels at the run's scale; by default the window's edge.
    With smaller steps windows overlap, and their scores are averaged."""
    detail: Literal["window", "place"] = "window"
    """Source of a heatmap pixel: the scores of the windows over it, or the scores of places
    within the windows if the method scores places."""
    precision: Literal["run", "bf16"] = "run"
    """Precision of frozen features: that of the run, or bfloat16, in which many GPUs and some
    processors compute faster. Scores then differ by little from those of the run's calibration."""


class ReadingOptions(Config):
    """Options of reading a slide's windows, which replace those of the run."""

    slide_mpp: Annotated[float, Field(gt=0)] | None = None
    """µm/px of level 0 for slides that state none."""
    override_mpp: bool = False
    """Use the µm/px of the manifest, or else of `slide_mpp`, also for slides that state others."""
    allow_upsampling: bool | None = None
    """Accept slides that are coarser than the run's scale by more than 2 %; by default as for
    the run's store."""
    quality: QualityThresholds = QualityThresholds()
    """Quality thresholds that replace those of the run. Windows that fail them are not scored,
    but shown as not assessed and counted."""

    @field_validator("slide_mpp")
    @classmethod
    def _is_a_scale_of_slides(cls, value: float | None) -> float | None:
        return None if value is None else check_mpp(value)


class RegionOptions(SpaceOptions):
    """Options that decide a slide's regions and its second score."""

    top_k: Annotated[int, Field(ge=1)] = 10
    """Number of highest heatmap pixels that `score_top_k_mean` averages."""
    region_quantile: Annotated[float, Field(gt=0, lt=1)] = 0.999
    """Healthy quantile of the score above which a region is outlined."""
    region_min_um2: Annotated[float, Field(ge=0)] = 0.0
    """Minimum area of a region, µm²; smaller ones are not outlined."""
    region_limit: Annotated[int, Field(ge=1)] = 300
    """Maximum number of regions per slide; the strongest are kept."""
    region_tolerance_um: Annotated[float, Field(ge=0)] | None = None
    """Maximum distance of an outline from the edges of its heatmap pixels, µm, so that it has
    fewer corners; by default three quarters of a heatmap pixel. 0 follows the edges exactly."""


class EvidenceOptions(Config):
    """Options that decide the evidence for the strongest regions."""

    evidence_regions: Annotated[int, Field(ge=0, le=100)] = 10
    """Number of strongest regions with evidence: their strangest window next to the nearest
    healthy tiles, and its reconstruction if the method makes one; 0 for none."""
    evidence_neighbours: Annotated[int, Field(ge=0, le=20)] = 3
    """Number of healthy tiles shown next to each window."""


class DetectionOptions(Config):
    """Options that decide a slide's detections."""

    detection_quantile: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Healthy quantile of the score above which a peak is a detection. It is low so that FROC
    reaches its rate of eight false positives per slide."""
    detection_limit: Annotated[int, Field(ge=1)] = 1000
    """Maximum number of detections per slide."""
    suppression: Literal["disc", "square", "regions-max", "regions-mean"] = "disc"
    """Non-maximum suppression by a disc (Liu 2017) or by NCRF's square window; or one detection
    at the centre of each connected region, with its highest or mean score (Wang 2016). For the
    latter, raise `detection_quantile`, for example to 0.99."""
    suppression_radius_um: Annotated[float, Field(gt=0)] = 187.0
    """Radius of the suppression by a disc or square, µm."""


class DerivedOptions(DetectionOptions, EvidenceOptions, RegionOptions):
    """Options that decide everything that is derived from a slide's scores."""


class HeatmapOptions(DerivedOptions, ScoringOptions):
    """Options that decide a slide's results, together with the run and the slide."""

    viewers: tuple[str, ...] = ("asap", "napari", "qupath")
    """Programs to write files for, in addition to PNG and OME-TIFF: QuPath (tiles, project),
    ASAP (likelihood map, annotations), napari (OME-Zarr); or any format of `wsiad export`. By
    default all three."""

    @field_validator("viewers")
    @classmethod
    def _in_order(cls, viewers: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted(set(viewers)))


@dataclass(frozen=True, slots=True)
class HeatmapRow(SlideRow):
    """Row of a slide in ``slides.csv`` of a results folder.

    Parameters
    ----------
    score_max, score_top_k_mean : float or None
        Highest heatmap pixel, and mean of the highest ones; ``None`` without tissue.
    score_scan : float or None
        Highest standardised mean over a neighbourhood; ``None`` where neighbours were not looked
        at.
    tiles : int
        Number of scored windows.
    regions, detections : int or None
        Number of regions above the healthy quantile, including those left out, and of peaks.
    unusable : int
        Number of windows that were not scored because they fail a quality threshold.
    regions_left_out : int
        Number of the regions that are not outlined because they are beyond the limit.
    damaged : int
        Number of windows that were not scored because their part of the file is damaged.
    """

    score_max: float | None = None
    score_top_k_mean: float | None = None
    tiles: int = 0
    regions: int | None = None
    detections: int | None = None
    unusable: int = 0
    regions_left_out: int = 0
    damaged: int = 0
    score_scan: float | None = None


Ranking = Literal["max", "scan"]
"""Scores that rank slides unless the user chooses another."""


def usual_score(rows: Iterable[HeatmapRow]) -> Ranking:
    """Return the score that ranks slides unless the user chooses another.

    Parameters
    ----------
    rows : iterable of HeatmapRow
        Rows of all slides that are ranked together.

    Returns
    -------
    {"scan", "max"}
        ``"scan"`` where every scored slide has a scan score, so that all are ranked by one.
    """
    scans = [row.score_scan for row in rows if row.status == OK]
    sound = all(scan is not None and math.isfinite(scan) for scan in scans)
    return "scan" if scans and sound else "max"


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideTask(PreparedTask):
    """One slide to score; a worker gets all that it needs with it.

    Parameters
    ----------
    from_store : bool
        True where windows come from a store, whose path is then that of the slide.
    results, run : Path
        Folder of the results, and folder of the run.
    options : HeatmapOptions
        Options that decide the results.
    digest : str
        Digest of the run and of the options that decide the scores.
    derived : dict
        Values that decide what is derived from the scores; see :mod:`wsiad.results.identity`.
    batch : int
        Maximum number of windows that are scored at a time.
    device : str
        Device on which windows are scored.
    spatial : SpatialCalibration or None
        Calibration of neighbourhoods, if regions and detections are derived from them.
    """

    from_store: bool
    results: Path
    run: Path
    options: HeatmapOptions
    digest: str
    derived: dict[str, Any]
    batch: int
    device: str
    spatial: SpatialCalibration | None = None

    @property
    def folder(self) -> Path:
        """Folder of the slide's results."""
        return self.results / self.slide.name


def identity_of(task: SlideTask) -> dict[str, Any]:
    """Return the identity of a slide's results: everything they depend on, as JSON values."""
    return {
        "digest": task.digest,
        "fingerprint": _fingerprint(task),
        "manifest_mpp": task.slide.mpp,
    }


def _fingerprint(task: SlideTask) -> str:
    from wsiad.store.tile_store import TileStore

    if task.from_store:
        return TileStore(task.slide.path).slide(task.slide.name).fingerprint
    return slide_fingerprint(task.slide.path)
