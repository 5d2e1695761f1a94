"""All that a report says, before it is worded and drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from wsiad.report import wording as report_text
from wsiad.results.region_table import RegionRow

Pictures = Sequence[tuple[str, Path]]
"""Pictures as (caption, PNG or JPEG file)."""


@dataclass(frozen=True, slots=True)
class ColourScale:
    """The meaning of the colours of the overlays.

    Parameters
    ----------
    caption : str
        What is shown, such as ``"Share of healthy windows with a lower score"``.
    colours : sequence of str
        ``#rrggbb`` at equal distances from the low end to the high end.
    ticks : sequence of str
        Labels at equal distances from the low end to the high end.
    """

    caption: str
    colours: Sequence[str]
    ticks: Sequence[str]


@dataclass(frozen=True, slots=True)
class RegionEntry:
    """A region of a slide in the report.

    Parameters
    ----------
    region : RegionRow
        Rank, scores, area, p and q.
    images : sequence of (str, Path)
        The region as it lies in the slide; large.
    tiles : sequence of (str, Path)
        What it is compared with; small.
    """

    region: RegionRow
    images: Pictures = ()
    tiles: Pictures = ()


@dataclass(frozen=True, slots=True)
class SlideEntry:
    """A slide in the report.

    Parameters
    ----------
    name, status : str
        Its name, and ``"ok"``, ``"no-tissue"``, ``"unusable"`` or ``"failed"``.
    reason : str
        Why it failed or could not be looked at, or what its reader should know.
    label : str or None
        What the reference says of it, such as ``"tumor"``.
    score_max, score_top_k_mean : float or None
        Highest score of its windows, and mean of its k highest.
    percentile : float or None
        Where its score lies among healthy ones, 0 to 100.
    windows : int
        Windows scored.
    seconds : float
        Time spent on it.
    images : sequence of (str, Path)
        Caption and PNG or JPEG file.
    overview : Path or None
        PNG or JPEG file that shows what of the slide was scored.
    not_assessed : bool
        Whether something was left out: its overview is then shown at once.
    lesions, lesions_hit : int or None
        Annotated lesions, where annotations are at hand, and how many a detection hits.
    p, q : float or None
        Conformal p-value, and the same adjusted to the slides of the folder.
    detections : int or None
        Detections exported.
    thumbnail : Path or None
        Small PNG or JPEG file for the ranking.
    regions : sequence of RegionEntry
        The strongest, strongest first.
    regions_found : int or None
        How many there are in all.
    left_out : mapping of str to int
        Windows with tissue that were not scored, by the reason.
    """

    name: str
    status: str
    reason: str = ""
    label: str | None = None
    score_max: float | None = None
    score_top_k_mean: float | None = None
    percentile: float | None = None
    windows: int = 0
    seconds: float = 0.0
    images: Pictures = ()
    overview: Path | None = None
    not_assessed: bool = False
    lesions: int | None = None
    lesions_hit: int | None = None
    p: float | None = None
    q: float | None = None
    detections: int | None = None
    thumbnail: Path | None = None
    regions: Sequence[RegionEntry] = ()
    regions_found: int | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def left_out_share(self) -> float | None:
        """Share of the windows with tissue that were not scored, 0 to 1; ``None`` without any."""
        gone = sum(self.left_out.values())
        return gone / (self.windows + gone) if self.windows + gone else None

    @property
    def flags(self) -> list[str]:
        """Facts that the reader of the slide has to know, one thing each."""
        return [flag for flag in self.reason.split("; ") if flag]


@dataclass(frozen=True, slots=True)
class Report:
    """All that a report says.

    Parameters
    ----------
    title : str
        Of the page.
    created_by : str
        Program and version.
    run, calibration : mapping
        Facts of the run and of its calibration on healthy slides, label to value.
    slides : sequence of SlideEntry
        In any order; the page ranks them.
    failures : sequence of (str, str)
        Slides that failed, and why.
    evaluation : mapping or None
        Content of ``evaluation.json``; ``None`` without a reference.
    plots : sequence of (str, Path)
        Title and PNG or JPEG file: ROC, FROC, loss.
    timings : mapping of str to float
        Stage to seconds.
    config_yaml : str
        The resolved configuration.
    notes : sequence of str
        What a reader should know.
    warnings : sequence of str
        What no reader may miss; shown first.
    random_weights : bool
        The networks have random weights: warn, loudly.
    rank_by : str
        Which score ranks the slides.
    colour_scale : ColourScale or None
        Legend of the overlays.
    versions : mapping of str to str
        Of the packages that computed, by name.
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
    rank_by: Literal["max", "top_k_mean"] = "max"
    colour_scale: ColourScale | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    def ranked(self) -> list[SlideEntry]:
        """Slides from the highest score to the lowest, then those without, by name."""
        return sorted(self.slides, key=self._rank)

    def _rank(self, slide: SlideEntry) -> tuple[bool, float, str]:
        score = self.score(slide)
        return score is None, -(score or 0.0), slide.name

    def score(self, slide: SlideEntry) -> float | None:
        """Score that ranks a slide; ``None`` where there is no finite one."""
        return report_text.finite(
            slide.score_max if self.rank_by == "max" else slide.score_top_k_mean
        )
