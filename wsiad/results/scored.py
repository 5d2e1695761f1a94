"""A results folder of ``wsiad heatmap``, as far as its slides are compared with each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wsiad.conformal.judgement import SlideScores
from wsiad.core.config import read_yaml
from wsiad.core.errors import ConfigError, EvaluationError, InputError
from wsiad.core.labels import is_healthy
from wsiad.evaluation.submission import SlideScore
from wsiad.heatmaps.heatmap_task import HeatmapOptions, HeatmapRow
from wsiad.heatmaps.score_map import read_windows
from wsiad.results.difference import READING
from wsiad.results.file_names import CONFIG, REGIONS, SLIDE, SLIDES, WINDOWS
from wsiad.results.records import MAKE, SCORE_AGAIN, results_facts, slide_facts
from wsiad.results.region_table import RegionRow, read_regions
from wsiad.slides.folder_kinds import RESULTS, refuse_other
from wsiad.slides.slide_table import OK, read_table


@dataclass(frozen=True, slots=True)
class ScoredSlide:
    """A slide with a heatmap.

    Parameters
    ----------
    name, label : str
    fingerprint : str
        Of its file.
    score : float
    n_regions : int
        Those left out counted in.
    folder : Path
    """

    name: str
    label: str
    fingerprint: str
    score: float
    n_regions: int
    folder: Path

    def regions(self) -> list[RegionRow]:
        """Read its regions, strongest first.

        Raises
        ------
        InputError
            It was scored by a version of wsiad that wrote none.
        ExportError
            The table is damaged.
        """
        path = self.folder / REGIONS
        if not path.exists():
            raise InputError(f"has no {REGIONS}", subject=str(self.folder), remedy=SCORE_AGAIN)
        return read_regions(path)

    def scores(self) -> SlideScores:
        """Read all its scores.

        Raises
        ------
        EvaluationError
            Its windows cannot be read, or a score is not a finite number.
        """
        windows = read_windows(
            self.folder / WINDOWS, self.name, EvaluationError, remedy=SCORE_AGAIN
        )
        regions = np.array([row.max_score for row in self.regions()], np.float64)
        tiles = np.asarray(windows["score"], np.float64)
        return SlideScores(self.score, tiles, regions, self.n_regions)


@dataclass(frozen=True, slots=True)
class ScoredFolder:
    """Slides of a results folder.

    Parameters
    ----------
    path : Path
    facts : dict
        Its ``run.json``: digest, run.
    slides : tuple of ScoredSlide
        Those with a heatmap.
    others : dict of str to str
        Status of the other slides: without tissue, unusable, failed.
    reasons : dict of str to str
        Why the other slides have no score, where it is known.
    """

    path: Path
    facts: dict[str, Any]
    slides: tuple[ScoredSlide, ...]
    others: dict[str, str]
    reasons: dict[str, str]

    def check_same_run(self, other: ScoredFolder) -> None:
        """Check that two folders were scored alike.

        Raises
        ------
        InputError
            Saying what differs.
        """
        if self.facts["digest"] != other.facts["digest"]:
            raise InputError(
                f"was not scored as {other.path} was: {_difference(self.path, other.path)}",
                subject=str(self.path),
                remedy="Scores can be compared only if run and options are the same.",
            )

    def no_slides(self) -> InputError:
        """Return the error that no slide has a score, which says what they have instead."""
        counts = Counter(self.others.values())
        said = ", ".join(f"{count} {status}" for status, count in counts.items())
        return InputError(
            f"holds no scored slide{f' ({said})' if said else ''}",
            subject=str(self.path),
            remedy="Its slides.csv says why." if said else "Score slides by `wsiad heatmap`.",
        )

    def check_healthy(self, learnt_from: Mapping[str, str]) -> None:
        """Check that its slides are healthy, held out, and each there once.

        Parameters
        ----------
        learnt_from : mapping of str to str
            What slides were used for by the run, by fingerprint.

        Raises
        ------
        InputError
            Naming the first slide that is not.
        """
        if not self.slides:
            raise self.no_slides()
        seen: dict[str, str] = {}
        for slide in self.slides:
            subject = f"{slide.name} of {self.path}"
            if slide.label and not is_healthy(slide.label):
                raise InputError(
                    f"has the label {slide.label!r}, so it is no healthy slide", subject=subject
                )
            if use := learnt_from.get(slide.fingerprint):
                raise InputError(
                    f"was used for the run ({use}), so its scores are not those of a new slide",
                    subject=subject,
                    remedy="Score healthy slides that the run knows nothing of.",
                )
            if twin := seen.get(slide.fingerprint):
                raise InputError(f"is the same slide as {twin}", subject=subject)
            seen[slide.fingerprint] = slide.name

    def check_apart(self, other: ScoredFolder) -> None:
        """Check that two folders share no slide.

        Raises
        ------
        InputError
            Naming the first that is in both.
        """
        there = {slide.fingerprint: slide.name for slide in other.slides}
        for slide in self.slides:
            if slide.fingerprint in there:
                raise InputError(
                    f"is among {other.path} too, as {there[slide.fingerprint]}",
                    subject=f"{slide.name} of {self.path}",
                    remedy="Compare slides with other slides: leave it out of one of them.",
                )


def read_folder(path: Path, *, score: SlideScore = "max") -> ScoredFolder:
    """List the slides of a results folder.

    Parameters
    ----------
    path : Path
    score : str
        Which score of a slide is its score.

    Raises
    ------
    InputError
        It holds no results, or those of a slide are damaged or of another run.
    """
    refuse_other(path, RESULTS, InputError, remedy=MAKE)
    facts = results_facts(path)
    if not (path / SLIDES).exists():
        raise InputError("does not hold results", subject=str(path), remedy=MAKE)
    slides, others, reasons = [], {}, {}
    for row in read_table(path / SLIDES, HeatmapRow):
        if row.status != OK:
            others[row.slide], reasons[row.slide] = row.status, row.reason
            continue
        slides.append(_slide(row, path / row.slide, facts["digest"], score))
    return ScoredFolder(path, facts, tuple(slides), others, reasons)


def _slide(row: HeatmapRow, folder: Path, digest: str, score: SlideScore) -> ScoredSlide:
    facts = slide_facts(folder)
    if facts is None or facts["digest"] != digest:
        raise InputError(f"has no {SLIDE} of this run", subject=str(folder), remedy=SCORE_AGAIN)
    value = row.score_max if score == "max" else row.score_top_k_mean
    if value is None or not np.isfinite(value):
        raise InputError(f"has no score_{score}", subject=str(folder), remedy=SCORE_AGAIN)
    # The table rounds to nine digits; the record has the number itself.
    exact = facts.get("row", {}).get(f"score_{score}")
    value = value if exact is None else float(exact)
    return ScoredSlide(
        row.slide,
        row.label,
        facts["fingerprint"],
        float(value if exact is None else exact),
        row.regions or 0,
        folder,
    )


def _difference(one: Path, two: Path) -> str:
    """Say which options differ, or else that it must be the run."""
    try:
        first, second = read_yaml(one / CONFIG), read_yaml(two / CONFIG)
    except ConfigError:
        return "by another run or other options"
    keys = [*HeatmapOptions.model_fields, *READING]
    differ = [
        f"{key} is {first.get(key)} and not {second.get(key)}"
        for key in keys
        if first.get(key) != second.get(key)
    ]
    return "; ".join(differ) or f"by another run ({first.get('run')}, {second.get('run')})"
