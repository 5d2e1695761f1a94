"""Content of a report, before it is worded and laid out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from wsiad.core.terminal import counted
from wsiad.heatmaps.regions import Region
from wsiad.report import wording as report_text
from wsiad.results.evaluated_truth import Since

Pictures = Sequence[tuple[str, Path]]
"""Pictures as (caption, PNG or JPEG file)."""

LesionState = Literal["found", "missed", "cells", "unknown"]
"""States of an annotated lesion: hit by a detection at the operating point; missed; isolated tumour
cells, which count neither way; or not known, as the detections are not those that were evaluated.
"""


@dataclass(frozen=True, slots=True)
class ColourScale:
    """Legend of the colours of the overlays.

    Parameters
    ----------
    caption : str
        Meaning of the scale, such as ``"Share of healthy windows with a lower score"``.
    colours : sequence of str
        ``#rrggbb`` at equal distances from the low end to the high end.
    ticks : sequence of str
        Labels at equal distances from the low end to the high end.
    of : str
        What the scores are of, in a few words, for the legend beside a slide.
    """

    caption: str
    colours: Sequence[str]
    ticks: Sequence[str]
    of: str = ""


@dataclass(frozen=True, slots=True)
class RegionEntry:
    """Region of a slide in the report.

    Parameters
    ----------
    region : Region
        Rank, scores, area, p and q of the region.
    images : sequence of (str, Path)
        Large pictures of the region in the slide.
    tiles : sequence of (str, Path)
        Small pictures of its strangest window and of the tiles to compare it with.
    """

    region: Region
    images: Pictures = ()
    tiles: Pictures = ()


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """Score from which a detection counts, where lesions are said to be hit or missed.

    Parameters
    ----------
    false_positives : float
        Mean false positives per slide that the score leaves.
    threshold : float or None
        That score; ``None`` if even the highest leaves more.
    """

    false_positives: float
    threshold: float | None

    @property
    def words(self) -> str:
        """The point in words, to stand after "hit"."""
        rate = f"{counted(self.false_positives, 'false positive', 'g')} a slide"
        if self.threshold is None:
            return f"at {rate} on average, which no confidence keeps to"
        least = report_text.score(self.threshold)
        return f"at {rate} on average, that is with a confidence of at least {least}"


@dataclass(frozen=True, slots=True)
class LesionMark:
    """Annotated lesion, to be drawn on the pictures of its slide.

    Parameters
    ----------
    number : int
        Number on the slide, as in ``lesions.csv``.
    state : str
        ``"found"``, ``"missed"``, ``"cells"`` or ``"unknown"``.
    outline : sequence of (float, float)
        Corners as shares of the pictures' width and height.
    """

    number: int
    state: LesionState
    outline: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class SlideEntry:
    """Slide in the report.

    Parameters
    ----------
    name, status : str
        Name of the slide, and ``"ok"``, ``"no-tissue"``, ``"unusable"`` or ``"failed"``.
    reason : str
        Reason why the slide failed or could not be looked at, or notes for its reader.
    label : str or None
        Label of the slide by the reference, such as ``"tumor"``.
    excluded : str
        Figures of the evaluation from which the slide was excluded by name: ``"all"``, ``"froc"``
        or none.
    score_max, score_top_k_mean : float or None
        Highest heatmap pixel of the slide, and mean of its k highest.
    score_scan : float or None
        Highest standardised mean over a neighbourhood, standard deviations; ``None`` where
        neighbours were not looked at.
    percentile : float or None
        Percentile of its score among healthy windows, 0 to 100.
    windows : int
        Number of scored windows.
    seconds : float
        Time spent on the slide, seconds.
    images : sequence of (str, Path)
        Captions and PNG or JPEG files of the pictures.
    first_look : sequence of (str, Path)
        The same of a first look, in other results; embedded after the first two.
    overview : Path or None
        PNG or JPEG file that shows the scored parts of the slide.
    not_assessed : bool
        True where parts were left out; the overview is then shown unfolded.
    lesions, lesions_hit : int or None
        Number of annotated lesions, if there are annotations, and number that a detection hits
        at the operating point of the report; ``None`` where that is not known.
    since : str or None
        What is known of the slide's detections since the evaluation: ``"unchanged"``,
        ``"changed"`` or ``"unknown"``; ``None`` without outlines of lesions.
    marks : sequence of LesionMark
        Annotated lesions, for the pictures.
    p, q : float or None
        Conformal p-value, and the same value adjusted over the slides of the folder.
    detections : int or None
        Number of detections.
    thumbnail : Path or None
        Small PNG or JPEG file for the ranking.
    regions : sequence of RegionEntry
        Strongest regions, strongest first.
    regions_found : int or None
        Number of all regions.
    left_out : mapping of str to int
        Number of windows with tissue that were not scored, by reason.
    """

    name: str
    status: str
    reason: str = ""
    label: str | None = None
    excluded: Literal["", "all", "froc"] = ""
    score_max: float | None = None
    score_top_k_mean: float | None = None
    score_scan: float | None = None
    percentile: float | None = None
    windows: int = 0
    seconds: float = 0.0
    images: Pictures = ()
    first_look: Pictures = ()
    overview: Path | None = None
    not_assessed: bool = False
    lesions: int | None = None
    lesions_hit: int | None = None
    since: Since | None = None
    marks: Sequence[LesionMark] = ()
    p: float | None = None
    q: float | None = None
    detections: int | None = None
    thumbnail: Path | None = None
    regions: Sequence[RegionEntry] = ()
    regions_found: int | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def left_out_share(self) -> float | None:
        """Share of the windows with tissue that were not scored, 0 to 1; ``None`` if none has."""
        gone = sum(self.left_out.values())
        return gone / (self.windows + gone) if self.windows + gone else None

    @property
    def flags(self) -> list[str]:
        """Notes for the reader of the slide, one fact each."""
        return [flag for flag in self.reason.split("; ") if flag]


@dataclass(frozen=True, slots=True)
class Report:
    """Content of a report.

    Parameters
    ----------
    title : str
        Title of the page.
    created_by : str
        Program and version.
    run, calibration : mapping
        Facts about the run and about its calibration on healthy slides, label to value.
    slides : sequence of SlideEntry
        Slides in any order; the page ranks them.
    failures : sequence of (str, str)
        Names of failed slides, and reasons.
    evaluation : mapping or None
        Content of ``evaluation.json``; ``None`` without an evaluation.
    plots : sequence of (str, Path)
        Titles and PNG or JPEG files of the plots: ROC, FROC, loss.
    timings : mapping of str to float
        Duration of each stage, seconds.
    config_yaml : str
        Resolved configuration of the run.
    notes : sequence of str
        Notes for the reader.
    warnings : sequence of str
        Warnings that no reader should miss; shown first.
    random_weights : bool
        True where the networks have random weights, of which the page warns first.
    rank_by : str
        Name of the score that ranks the slides.
    colour_scale : ColourScale or None
        Legend of the overlays.
    space_scale : ColourScale or None
        Legend of the maps of neighbourhoods.
    versions : mapping of str to str
        Versions of the packages that computed the results, by name.
    operating_point : OperatingPoint or None
        Score at which lesions count as hit; ``None`` without annotated lesions.
    contact_sheet : str
        Address of the contact sheet, relative to the page; empty if there is none.
    folder : str
        Path of the results folder, relative to the folder of the page.
    """

    title: str
    created_by: str
    run: Mapping[str, object] = field(default_factory=dict)
    calibration: Mapping[str, object] = field(default_factory=dict)
    slides: Sequence[SlideEntry] = ()
    failures: Sequence[tuple[str, str]] = ()
    evaluation: Mapping[str, Any] | None = None
    plots: Pictures = ()
    timings: Mapping[str, float] = field(default_factory=dict)
    config_yaml: str = ""
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()
    random_weights: bool = False
    rank_by: Literal["max", "top_k_mean", "scan"] = "max"
    colour_scale: ColourScale | None = None
    space_scale: ColourScale | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    operating_point: OperatingPoint | None = None
    contact_sheet: str = ""
    folder: str = "."

    @property
    def hit_where(self) -> str:
        """The operating point in words, or that the evaluation of an earlier version has none."""
        point = self.operating_point
        return point.words if point else "at a score that is not stated (run wsiad evaluate again)"

    def ranked(self) -> list[SlideEntry]:
        """Return the slides by descending score, then those without a score by name."""
        return sorted(self.slides, key=self._rank)

    def _rank(self, slide: SlideEntry) -> tuple[bool, float, str]:
        score = self.score(slide)
        return score is None, -(score or 0.0), slide.name

    def score(self, slide: SlideEntry) -> float | None:
        """Return the score that ranks a slide; ``None`` if it has no finite score."""
        scores = {
            "max": slide.score_max,
            "top_k_mean": slide.score_top_k_mean,
            "scan": slide.score_scan,
        }
        return report_text.finite(scores[self.rank_by])
