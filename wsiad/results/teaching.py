"""Choose the windows of a cohort that teach a second look, and read them.

The windows come from the results of a first look. Those of neighbourhoods that stand out are taken
for anomalous, unlike ones of the same slides for healthy. Each slide is of one fold.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from wsiad.annotations import SUFFIXES, Role, read_annotations
from wsiad.conformal.false_discovery import (
    StandingOut,
    healthy_slides_needed,
    lowest,
    standing_out,
)
from wsiad.core.errors import InputError
from wsiad.core.labels import is_healthy
from wsiad.core.terminal import counted
from wsiad.evaluation.truth import find_truth
from wsiad.heatmaps.chosen_scales import choose_scales
from wsiad.heatmaps.heatmap_task import SlideTask
from wsiad.heatmaps.scale_space import SpatialCalibration
from wsiad.heatmaps.score_map import boxes_of
from wsiad.heatmaps.space_options import SpaceOptions
from wsiad.learning.detector import InputSpec, Lessons, Tiles
from wsiad.results.folder import Results
from wsiad.results.reviewed_windows import read_windows
from wsiad.results.scoring_inputs import reading_tasks
from wsiad.results.slide_results import SlideResults
from wsiad.runs.calibration import Calibration
from wsiad.runs.healthy_maps import HealthyMaps
from wsiad.runs.run import RunFolder
from wsiad.runs.second_look import ChoiceOptions, TaughtWindow
from wsiad.slides.slide_table import without_result

logger = logging.getLogger(__name__)

_GROUPS = 10


@dataclass(frozen=True, slots=True, eq=False)
class LookedAt:
    """A slide of a first look, with the values of its windows.

    Parameters
    ----------
    task : SlideTask
        Task that opens its windows again.
    fingerprint : str
        Fingerprint of the slide.
    boxes : ndarray of float64, (N, 4)
        ``x, y, width, height`` of the windows, level-0 pixels.
    values : ndarray of float64, (N,)
        Value of the spatial map at the centre of each window.
    review : ndarray of int8, (N,)
        1 for windows with their centre in a confirmed region, -1 in a rejected one, else 0.
    """

    task: SlideTask
    fingerprint: str
    boxes: npt.NDArray[np.float64]
    values: npt.NDArray[np.float64]
    review: npt.NDArray[np.int8]

    @property
    def name(self) -> str:
        """Name of the slide."""
        return self.task.slide.name


@dataclass(frozen=True, slots=True, eq=False)
class FirstLook:
    """Results of a cohort that a run made, and what healthy slides have.

    Parameters
    ----------
    slides : list of LookedAt
        Slides with a heatmap.
    healthy : list of ndarray of float64, (M,)
        Values of each held-out healthy slide.
    healthy_from : str
        Where the healthy slides are from, in words.
    digest : str
        Digest of the results.
    """

    slides: list[LookedAt]
    healthy: list[npt.NDArray[np.float64]]
    healthy_from: str
    digest: str


def first_look(
    run: RunFolder,
    results: Path,
    healthy: Path | None,
    options: ChoiceOptions,
    *,
    device: str,
) -> FirstLook:
    """Read the results of a cohort, and those of healthy slides.

    Raises
    ------
    RunError
        The run has no maps of healthy slides, or they are damaged.
    InputError
        The results are not of this run, or a healthy slide is not held out.
    """
    calibration, maps = run.calibration(), run.healthy_maps()
    space = SpaceOptions(scales_um=options.scales_um)
    subject = str(run.path)
    if labelled := run.record().labelled:
        logger.warning(
            "%s: learnt from labels. Where it was measured, a second look at such a run was worse "
            "than the run; see docs/second-look.md.",
            subject,
        )
    scales = choose_scales(maps, calibration, space, labelled=labelled, subject=subject)
    spatial = scales.told(subject).calibration
    if options.reviewed is not None and not options.reviewed.is_dir():
        raise InputError(
            "is no folder of outlines", subject=str(options.reviewed), remedy="Check --reviewed."
        )
    if spatial is None or maps is None:
        raise InputError(
            "looks at single windows, which do not teach",
            subject="scales_um",
            remedy="Pass radii of neighbourhoods.",
        )
    slides, digest = _looked_at(
        run,
        results,
        spatial=spatial,
        calibration=calibration,
        device=device,
        reviewed=options.reviewed,
    )
    if not slides:
        raise _nothing_seen(results, "Score the slides of the cohort with wsiad heatmap.")
    if healthy is None:
        found = _left_out_maps(maps, calibration, spatial)
        return FirstLook(slides, found, "calibration slides of the run", digest)
    others, other_digest = _looked_at(
        run, healthy, spatial=spatial, calibration=calibration, device=device
    )
    if other_digest != digest:
        raise InputError(
            f"was not scored with the options of {results}",
            subject=str(healthy),
            remedy="Score both with the same run and options.",
        )
    _check_held_out(others, slides, run.record().slides_by_fingerprint, healthy)
    return FirstLook(slides, [one.values for one in others], str(healthy), digest)


def _check_held_out(
    others: Sequence[LookedAt],
    slides: Sequence[LookedAt],
    learnt_from: Mapping[str, str],
    healthy: Path,
) -> None:
    if not others:
        raise _nothing_seen(healthy, "Score held-out healthy slides with wsiad heatmap.")
    there = {one.fingerprint: one.name for one in slides}
    for one in others:
        subject, label = f"{one.name} of {healthy}", one.task.slide.label
        if label and not is_healthy(label):
            raise InputError(f"has the label {label!r}, so it is not healthy", subject=subject)
        if use := learnt_from.get(one.fingerprint):
            raise InputError(
                f"was used for the run ({use}), so it is calmer than a new slide",
                subject=subject,
                remedy="Score healthy slides that were not used for the run.",
            )
        if one.fingerprint in there:
            raise InputError(f"is also in the cohort, as {there[one.fingerprint]}", subject=subject)


def _left_out_maps(
    maps: HealthyMaps, calibration: Calibration, spatial: SpatialCalibration
) -> list[npt.NDArray[np.float64]]:
    """Return the values of each calibration slide, standardised without those of its group."""
    count = len(maps)
    if count < 2:
        return []  # one cannot be standardised by others
    groups = [range(first, count, min(count, _GROUPS)) for first in range(min(count, _GROUPS))]
    found = []
    for group in groups:
        rest = [one for number, one in enumerate(maps.maps) if number not in group]
        others = SpatialCalibration.of(
            rest,
            calibration=calibration,
            scales_um=[float(scale.radius) for scale in spatial.scales],
            window=maps.window,
            mean_of=spatial.mean_of,
        )
        for number in group:
            values = others.values(maps.maps[number], calibration)
            found.append(values[np.isfinite(values)].astype(np.float64))
    return found


def _looked_at(
    run: RunFolder,
    path: Path,
    *,
    spatial: SpatialCalibration,
    calibration: Calibration,
    device: str,
    reviewed: Path | None = None,
) -> tuple[list[LookedAt], str]:
    """Return the slides with a heatmap, and the digest of the results."""
    results = Results(path)
    names = [slide.name for slide in results if slide.is_scored]
    tasks = reading_tasks(results, names, run=run.path, device=device)
    found = []
    for name in names:
        slide = results.slide(name)
        windows = slide.windows()
        boxes = boxes_of(windows)
        evident = spatial.map(slide.heatmap(), calibration).heatmap
        values = evident.at_centres(boxes)
        seen = np.isfinite(values)
        if seen.any():
            boxes, values = boxes[seen], values[seen]
            review = reviews(slide, reviewed, boxes)
            mark = slide.fingerprint()
            found.append(LookedAt(tasks[name], mark, boxes=boxes, values=values, review=review))
    return found, str(results.facts["digest"])


def _nothing_seen(path: Path, remedy: str) -> InputError:
    rows = [slide.row for slide in Results(path)]
    problem = without_result(rows, "holds no slide with a heatmap")
    return InputError(problem, subject=str(path), remedy=remedy)


def reviews(
    slide: SlideResults, folder: Path | None, boxes: npt.NDArray[np.float64]
) -> npt.NDArray[np.int8]:
    """Return the verdicts of a review on the centres of boxes (N, 4), level-0 pixels; int8 (N,).

    They are 1 in a confirmed region, -1 in a rejected one, which prevails, and else 0.

    Raises
    ------
    AnnotationError
        The file of the slide is not valid.
    EvaluationError
        There are several files of the slide.
    """
    found = np.zeros(len(boxes), np.int8)
    if folder is None or (path := find_truth(folder, slide.name, suffixes=SUFFIXES)) is None:
        return found
    bounds = slide.bounds()
    outlines = read_annotations(path, bounds=None if bounds is None else (bounds.x, bounds.y))
    for why, count in outlines.ignored.items():
        logger.warning(
            "%s: neither confirmed nor rejected: %s: %s", path, counted(count, "outline"), why
        )
    cut_out = [one.polygon(outlines.source) for one in outlines.with_role(Role.CUT_OUT)]
    rejected = shapely.union_all(cut_out)
    x, y = (boxes[:, :2] + boxes[:, 2:] / 2).T
    for area, verdict in ((outlines.tumour(), 1), (rejected, -1)):
        shapely.prepare(area)
        found[shapely.contains_xy(area, x, y)] = verdict
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """Windows that teach, or the reason why none do.

    Parameters
    ----------
    why_not : str
        Reason why there is no second look; empty if there is one.
    standing : StandingOut or None
        The windows that stand out, and the estimates; ``None`` where a review confirmed them.
    rows : list of TaughtWindow
        Windows that teach, by slide.
    fold_of : dict of str to int
        Fold of each slide of the cohort, by its fingerprint.
    """

    why_not: str
    standing: StandingOut | None = None
    rows: list[TaughtWindow] = field(default_factory=list)
    fold_of: dict[str, int] = field(default_factory=dict)

    def note(self, look: FirstLook) -> dict[str, Any]:
        """Return the facts about the choice that a run records, as JSON values."""
        about = {
            "slides": len(look.slides),
            "anomalous_windows": sum(row.anomalous for row in self.rows),
            "anomalous_slides": len({row.slide for row in self.rows if row.anomalous}),
            "usual_windows": sum(not row.anomalous for row in self.rows),
            "results_digest": look.digest,
        }
        if self.standing is None:
            rejected = sum(int((one.review < 0).sum()) for one in look.slides)
            return {**about, "rejected_windows": rejected}
        return {
            **about,
            "threshold": self.standing.threshold,
            "slides_above": self.standing.slides,
            "windows_above": self.standing.windows,
            "share_above": self.standing.share,
            "window_fdr": self.standing.window_rate,
            "slide_fdr": self.standing.slide_rate,
            "healthy_slides": len(look.healthy),
            "healthy_from": look.healthy_from,
        }


def choose_windows(look: FirstLook, options: ChoiceOptions, *, seed: int) -> Choice:
    """Choose the windows that teach a second look, if the stated rate can be kept.

    If there is a review, the windows of confirmed regions are anomalous and no others are.

    Raises
    ------
    InputError
        The pattern of patients does not match a slide's name.
    """
    standing = None
    if options.reviewed is None:
        standing, why = _standing(look, options)
    else:
        why = _why_review_is_too_small(look, options)
    if why:
        return Choice(why)
    if standing is None:
        anomalous = [one.review > 0 for one in look.slides]
    else:
        anomalous = [one.values >= standing.threshold for one in look.slides]
    pairs = list(zip(look.slides, anomalous, strict=True))
    strange = _capped(
        [np.where(mask, one.values, np.nan) for one, mask in pairs], options.slide_share
    )
    every = np.concatenate([one.values for one in look.slides])
    low = np.quantile(every, options.usual)
    usual = [
        np.flatnonzero(((one.values < low) & (one.review == 0) & ~mask) | (one.review < 0))
        for one, mask in pairs
    ]
    rng = np.random.default_rng([seed, len(every)])
    strange = _drawn(strange, options.most_anomalous, rng)
    usual = _drawn(usual, options.most_usual, rng)
    folds = _folds(look.slides, [len(part) for part in strange], options)
    rows = []
    for one, fold, high, calm in zip(look.slides, folds, strange, usual, strict=True):
        chosen = np.sort(np.concatenate([high, calm]))
        for at, is_strange in zip(chosen.tolist(), np.isin(chosen, high).tolist(), strict=True):
            x, y, width, height = one.boxes[at].tolist()
            rows.append(
                TaughtWindow(
                    slide=one.name,
                    x=x,
                    y=y,
                    width=width,
                    height=height,
                    value=float(one.values[at]),
                    anomalous=int(is_strange),
                    fold=fold,
                )
            )
    marks = [one.fingerprint for one in look.slides]
    return Choice("", standing, rows, dict(zip(marks, folds, strict=True)))


def _standing(look: FirstLook, options: ChoiceOptions) -> tuple[StandingOut | None, str]:
    """Return the windows that stand out at the stated rate, or why there are none."""
    count, least = len(look.slides), options.slides_needed
    needed = healthy_slides_needed(count, rate=options.fdr, slides=count)
    if len(look.healthy) < needed:
        number = counted(len(look.healthy), "healthy slide")
        return None, (
            f"{number} ({look.healthy_from}) cannot show a false-discovery rate of "
            f"{options.fdr:.0%}; pass at least {needed} held-out ones with --healthy"
        )
    found = standing_out([one.values for one in look.slides], look.healthy, most_share=options.top)
    standing, why = lowest(found, rate=options.fdr, least_slides=least)
    if standing is not None:
        return standing, ""
    most = max((one.slides for one in found), default=0)
    more = healthy_slides_needed(count, rate=options.fdr, slides=max(1, most))
    if most >= least and more > len(look.healthy):
        why += f" ({more} healthy slides or more could show it, and there are "
        why += f"{len(look.healthy)})"
    return None, why


def _why_review_is_too_small(look: FirstLook, options: ChoiceOptions) -> str:
    """Return why a review does not teach; empty if it does."""
    confirmed = sum(bool((one.review > 0).any()) for one in look.slides)
    if confirmed >= options.slides_needed:
        return ""
    return (
        f"{options.reviewed} confirms regions of {confirmed} of the "
        f"{counted(len(look.slides), 'slide')}, and "
        f"{options.slides_needed} are needed"
    )


def _capped(values: Sequence[npt.NDArray[np.float64]], share: float) -> list[npt.NDArray[np.int64]]:
    """Return the indices of finite values, so that no slide has more than a share of all.

    Of a slide with too many, the highest are kept.
    """
    counts = np.array([int(np.isfinite(one).sum()) for one in values])
    cap = int(counts.max())
    while cap > 1 and cap > share * np.minimum(counts, cap).sum():
        cap -= 1
    return [
        np.sort(np.argsort(-np.nan_to_num(one, nan=-np.inf), kind="stable")[: min(count, cap)])
        for one, count in zip(values, counts.tolist(), strict=True)
    ]


def _drawn(
    parts: Sequence[npt.NDArray[np.int64]], most: int, rng: np.random.Generator
) -> list[npt.NDArray[np.int64]]:
    """Draw at most so many indices from all parts, evenly over them; their order stays."""
    total = sum(map(len, parts))
    if total <= most:
        return list(parts)
    kept = np.zeros(total, bool)
    kept[rng.choice(total, most, replace=False)] = True
    ends = np.cumsum([len(part) for part in parts])[:-1]
    return [part[keep] for part, keep in zip(parts, np.split(kept, ends), strict=True)]


def _folds(slides: Sequence[LookedAt], counts: Sequence[int], options: ChoiceOptions) -> list[int]:
    """Return the fold of each slide: patients by falling number of anomalous windows, in turn."""
    patients = [_patient(one.name, options.patient) for one in slides]
    totals: dict[str, int] = dict.fromkeys(patients, 0)
    for patient, count in zip(patients, counts, strict=True):
        totals[patient] += count
    order = sorted(totals, key=lambda name: (-totals[name], name))
    number = min(options.folds, len(order))
    return [order.index(patient) % number for patient in patients]


def _patient(name: str, pattern: str | None) -> str:
    if pattern is None:
        return name.rpartition("/")[0] or name
    found = re.search(pattern, name)
    if found is None:
        raise InputError(
            f"its name does not match the pattern of patients {pattern!r}",
            subject=name,
            remedy="Set another --patient, or leave it out.",
        )
    return found[0]


def lessons_of(look: FirstLook, choice: Choice, spec: InputSpec) -> Lessons:
    """Return the lessons of chosen windows, whose pixels are read from their slides in turn."""
    rows = choice.rows
    content = json.dumps([look.digest, choice.fold_of, [astuple(row) for row in rows]])

    def batches() -> Iterator[Tiles]:
        for one in look.slides:
            mine = [row for row in rows if row.slide == one.name]
            if mine:
                boxes = np.array([(row.x, row.y, row.width, row.height) for row in mine])
                yield from read_windows(one.task, boxes, spec, fingerprint=one.fingerprint)

    return Lessons(
        batches=batches,
        anomalous=np.array([row.anomalous for row in rows], np.bool_),
        folds=np.array([row.fold for row in rows], np.int64),
        fold_of=choice.fold_of,
        digest=f"sha256:{hashlib.sha256(content.encode()).hexdigest()}",
    )
