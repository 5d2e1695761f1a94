"""Read the slides of a results folder for the comparison with healthy slides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wsiad.conformal.judgement import SlideScores
from wsiad.core.config import read_yaml
from wsiad.core.errors import ConfigError, InputError
from wsiad.core.geometry import SquareMicrons
from wsiad.core.labels import is_healthy
from wsiad.evaluation.submission import SCAN_AGAIN, StoredScore
from wsiad.results.file_names import CONFIG, SLIDE, SLIDES_TABLE
from wsiad.results.folder import Results
from wsiad.results.identity import (
    ALIKE_BY_EXPORT,
    DERIVED,
    region_differences,
    stated_options,
)
from wsiad.results.records import MAKE, SCORE_AGAIN
from wsiad.results.slide_results import SlideResults
from wsiad.runs.healthy_maps import HealthyMap, HealthyMaps
from wsiad.slides.slide_table import OK, SlideRow, without_result


@dataclass(frozen=True, slots=True)
class ComparedSlide:
    """Slide with a heatmap.

    Parameters
    ----------
    results : SlideResults
        Results of the slide.
    fingerprint : str
        Fingerprint of the slide's file.
    score : float
        Score of the slide that is compared, with all its digits.
    """

    results: SlideResults
    fingerprint: str
    score: float

    @property
    def name(self) -> str:
        """Name of the slide."""
        return self.results.name

    @property
    def label(self) -> str:
        """Label from the manifest."""
        return self.results.row.label

    @property
    def n_regions(self) -> int:
        """Number of regions of the slide, including those left out."""
        return self.results.row.regions or 0

    def scores(self) -> SlideScores:
        """Read the scores of the slide, its windows and its regions.

        Raises
        ------
        InputError
            The windows cannot be read, a score is not a finite number, or the slide was scored by
            a version of wsiad that wrote no table of regions.
        ExportError
            The table of regions is damaged.
        """
        tiles = np.asarray(self.results.windows()["score"], np.float64)
        return SlideScores(self.score, tiles, self.results.region_scores(), self.n_regions)


@dataclass(frozen=True, slots=True)
class ComparedFolder:
    """Slides of a results folder.

    Parameters
    ----------
    path : Path
        Results folder.
    facts : dict
        Content of ``run.json``: digest, run and more.
    slides : tuple of ComparedSlide
        Slides with a heatmap.
    others : dict of str to str
        Status of each other slide: without tissue, unusable, failed.
    reasons : dict of str to str
        Reason why each other slide has no score, if it is known.
    score : str
        Name of the score that is the score of a slide.
    """

    path: Path
    facts: dict[str, Any]
    slides: tuple[ComparedSlide, ...]
    others: dict[str, str]
    reasons: dict[str, str]
    score: StoredScore = "max"

    def check_same_run(self, other: ComparedFolder) -> None:
        """Check that two folders were scored by the same run and options.

        Options on which nothing that is compared depends may differ.

        Raises
        ------
        InputError
            They were not; the error states the differences.
        """
        told = region_differences(self.facts, other.facts, slide_score=self.score)
        if self.facts["digest"] != other.facts["digest"]:
            told.insert(0, _difference(self.path, other.path))
        if told:
            raise InputError(
                f"was not scored like {other.path}: {'; '.join(told)}",
                subject=str(self.path),
                remedy="Score both with the same run and options, so that they can be compared."
                if self.facts["digest"] != other.facts["digest"]
                else ALIKE_BY_EXPORT,
            )

    def no_slides(self) -> InputError:
        """Return the error for a folder without scored slides, with counts and first reasons."""
        rows = [SlideRow(n, status, self.reasons.get(n, "")) for n, status in self.others.items()]
        return InputError(
            without_result(rows, "holds no scored slide"),
            subject=str(self.path),
            remedy=f"See its {SLIDES_TABLE} for all reasons."
            if rows
            else "Score slides with `wsiad heatmap`.",
        )

    def check_same_scores(self, digest: str) -> None:
        """Check that the slides were scored by a run and options.

        Parameters
        ----------
        digest : str
            Digest of the run and of the options that decide the scores.

        Raises
        ------
        InputError
            They were not.
        """
        if self.facts["digest"] != digest:
            raise InputError(
                "holds results of another run or of other options",
                subject=str(self.path),
                remedy="Score the healthy slides with the same run and options.",
            )

    def check_healthy(self, learnt_from: Mapping[str, str]) -> None:
        """Check that the slides are healthy and held out from the run, and that each occurs once.

        Parameters
        ----------
        learnt_from : mapping of str to str
            Use of slides by the run, by fingerprint.

        Raises
        ------
        InputError
            A slide is not; the error names the first.
        """
        if not self.slides:
            raise self.no_slides()
        seen: dict[str, str] = {}
        for slide in self.slides:
            subject = f"{slide.name} of {self.path}"
            if slide.label and not is_healthy(slide.label):
                raise InputError(
                    f"has the label {slide.label!r}, so it is not a healthy slide", subject=subject
                )
            if use := learnt_from.get(slide.fingerprint):
                raise InputError(
                    f"was used for the run ({use}), so its scores are not those of a new slide",
                    subject=subject,
                    remedy="Score healthy slides that were not used for the run.",
                )
            if twin := seen.get(slide.fingerprint):
                raise InputError(f"is the same slide as {twin}", subject=subject)
            seen[slide.fingerprint] = slide.name

    def check_apart(self, other: ComparedFolder) -> None:
        """Check that two folders share no slide.

        Raises
        ------
        InputError
            A slide is in both; the error names the first.
        """
        there = {slide.fingerprint: slide.name for slide in other.slides}
        for slide in self.slides:
            if slide.fingerprint in there:
                raise InputError(
                    f"is also in {other.path}, as {there[slide.fingerprint]}",
                    subject=f"{slide.name} of {self.path}",
                    remedy="Leave it out of one folder: a slide cannot be compared with itself.",
                )


def maps_of(healthy: ComparedFolder) -> HealthyMaps:
    """Read the heatmaps of healthy slides, by which scales can be standardised.

    Raises
    ------
    InputError
        There is no slide, or a file of a slide is missing or damaged.
    """
    if not healthy.slides:
        raise healthy.no_slides()
    maps = []
    for slide in healthy.slides:
        heatmap = slide.results.heatmap()
        maps.append(HealthyMap(slide.name, heatmap.scores, heatmap.pixel_um))
    window = healthy.slides[0].results.windows()[0]
    spacing = heatmap.spacing
    area = float(window["width"]) * spacing.x * float(window["height"]) * spacing.y
    return HealthyMaps(tuple(maps), SquareMicrons(area))


def read_folder(path: Path, *, score: StoredScore = "max") -> ComparedFolder:
    """List the slides of a results folder.

    Parameters
    ----------
    path : Path
        Results folder.
    score : str
        Name of the score that is the score of a slide.

    Raises
    ------
    InputError
        The folder contains no results, or those of a slide are damaged or of another run.
    """
    results = Results(path)
    facts = results.facts
    if not (path / SLIDES_TABLE).exists():
        raise InputError("does not hold results", subject=str(path), remedy=MAKE)
    slides, others, reasons = [], {}, {}
    for row in results.slides:
        if row.status != OK:
            others[row.slide], reasons[row.slide] = row.status, row.reason
            continue
        slides.append(_slide(results.of(row), facts, score))
    return ComparedFolder(
        path=path,
        facts=facts,
        slides=tuple(slides),
        others=others,
        reasons=reasons,
        score=score,
    )


def _slide(results: SlideResults, folder: Mapping[str, Any], score: StoredScore) -> ComparedSlide:
    subject = str(results.folder)
    facts = results.facts()
    if facts is None or facts["digest"] != folder["digest"]:
        raise InputError(f"has no {SLIDE} of this run", subject=subject, remedy=SCORE_AGAIN)
    if facts.get(DERIVED) != folder.get(DERIVED):
        raise InputError(
            "its regions were not derived with the options of the other slides",
            subject=subject,
            remedy="Run wsiad heatmap or wsiad export again with the options that you want.",
        )
    value = results.score(score)
    if value is None or not np.isfinite(value):
        remedy = SCAN_AGAIN if score == "scan" else SCORE_AGAIN
        raise InputError(f"has no score_{score}", subject=subject, remedy=remedy)
    return ComparedSlide(results, facts["fingerprint"], value)


def _difference(one: Path, two: Path) -> str:
    """Return the options that differ as text, or state that the run differs."""
    try:
        first, second = stated_options(one), stated_options(two)
        runs = [str(read_yaml(folder / CONFIG).get("run")) for folder in (one, two)]
    except ConfigError:
        return "by another run or other options"
    differ = [
        f"{key} is {first[key]} and not {second[key]}" for key in first if first[key] != second[key]
    ]
    return "; ".join(differ) or f"by another run ({', '.join(runs)})"
