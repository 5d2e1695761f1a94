"""Make the report of a results folder from the files that the verbs have written to it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args
from urllib.parse import quote

import numpy as np

from wsiad._version import __version__
from wsiad.core.errors import EvaluationError, InputError, RunError
from wsiad.core.files import read_json
from wsiad.core.terminal import counted
from wsiad.evaluation.lesion_outlines import (
    FALSE_POSITIVES,
    TrueLesion,
    TrueLesions,
    read_outlines,
)
from wsiad.heatmaps.heatmap_task import HeatmapRow, usual_score
from wsiad.pictures.colour_scale import HEALTHY_LEVELS
from wsiad.report import remarks
from wsiad.report.contact_sheet import write_contact_sheet
from wsiad.report.page import picture_size, write_report
from wsiad.report.report_model import (
    ColourScale,
    LesionMark,
    LesionState,
    OperatingPoint,
    RegionEntry,
    Report,
    SlideEntry,
)
from wsiad.results import file_names as names
from wsiad.results.evaluated_truth import (
    EVALUATE_AGAIN,
    EvaluatedTruth,
    Since,
    evaluation_folder,
    lost_evaluation,
    read_timings,
    write_timings,
)
from wsiad.results.evidence_files import RegionEvidence, RegionField
from wsiad.results.folder import Results, first_look, first_pictures
from wsiad.results.records import GEOMETRY, overlay_map, read_evaluation
from wsiad.results.slide_results import SlideResults
from wsiad.slides.slide_table import FAILED

if TYPE_CHECKING:
    from wsiad.runs.calibration import Calibration
    from wsiad.runs.run import RunRecord

_TISSUE = (names.TISSUE, "Slide, tissue outlined")
_PARTS = "over the tissue; regions outlined, unassessed parts hatched"
_PICTURES = (_TISSUE, (names.OVERLAY, f"Heatmap {_PARTS}"))
_PLAIN = (names.PLAIN_OVERLAY, "Heatmap of single windows over the tissue")
_SPACE_PICTURES = (_TISSUE, (names.OVERLAY, f"Neighbourhoods of windows {_PARTS}"), _PLAIN)


def slide_entry(
    slide: SlideResults, calibration: Calibration | None, *, first: Results | None = None
) -> SlideEntry:
    """Collect the report's entry of a slide.

    Results of older versions have fewer files; missing ones are not shown.

    Raises
    ------
    ExportError, InputError
        A file of the slide's results is damaged.
    """
    row = slide.row
    of_slide = _PICTURES if slide.file(names.SPATIAL) is None else _SPACE_PICTURES
    return SlideEntry(
        row.slide,
        row.status,
        row.reason,
        label=row.label or None,
        score_max=row.score_max,
        score_top_k_mean=row.score_top_k_mean,
        score_scan=row.score_scan,
        percentile=_percentile(row.score_max, calibration),
        windows=row.tiles,
        seconds=row.seconds,
        images=[(text, file) for name, text in of_slide if (file := slide.file(name))],
        first_look=first_pictures(slide, first),
        overview=slide.file(names.OVERVIEW),
        not_assessed=row.unusable > 0 or "not assessed" in row.reason,
        detections=row.detections,
        thumbnail=slide.file(names.THUMBNAIL),
        regions=_regions(slide),
        regions_found=row.regions,
        left_out=_left_out(slide),
    )


def with_findings(
    entry: SlideEntry,
    *,
    evaluated: Mapping[str, Any] | None,
    compared: Mapping[str, Any] | None,
    marks: Sequence[LesionMark] = (),
    since: Since | None = None,
    excluded: Literal["", "all", "froc"] = "",
) -> SlideEntry:
    """Add the findings of ``wsiad evaluate`` and ``wsiad significance`` on a slide.

    Parameters
    ----------
    entry : SlideEntry
        Entry of the slide.
    evaluated : mapping, optional
        The slide's entry in ``evaluation.json``. Its label replaces that of the manifest; its
        lesions are those of the first protocol.
    compared : mapping, optional
        The slide's entry in ``significance.json``.
    marks : sequence of LesionMark
        Annotated lesions of the slide.
    since : str, optional
        What is known of the slide's detections since the evaluation. Hits are those of its
        detections: they are not known where these have changed, or may have.
    excluded : {"", "all", "froc"}
        Figures of the evaluation from which the slide was excluded by name.
    """
    known, sure = evaluated or {}, compared or {}
    found: Mapping[str, Any] = next(iter((known.get("froc") or {}).values()), {})
    hit = (found.get("lesions_hit_at") or {}).get(f"{FALSE_POSITIVES:g}")
    return replace(
        entry,
        label=known.get("label") or entry.label,
        excluded=excluded,
        lesions=found.get("lesions"),
        lesions_hit=hit if since in (None, "unchanged") else None,
        since=since,
        marks=marks,
        p=sure.get("p_slide"),
        q=sure.get("q_slide"),
    )


def _percentile(score: float | None, calibration: Calibration | None) -> float | None:
    if score is None or calibration is None:
        return None
    return float(calibration.percentile(score))


def _left_out(slide: SlideResults) -> dict[str, int]:
    """Count the windows that were not scored by reason, most frequent first."""
    if slide.file(names.LEFT_OUT) is None:
        return {}
    return dict(Counter(map(str, slide.left_out()["reason"])).most_common())


def _regions(slide: SlideResults) -> list[RegionEntry]:
    """Collect the regions that have pictures."""
    fields = {field.rank: field for field in slide.fields()}
    evidence = {found.rank: found for found in slide.evidence()}
    if not fields and not evidence:
        return []
    # Scored from a store, there is nothing of the slide to show.
    shown = fields or evidence
    return [
        RegionEntry(
            region,
            images=[_field(fields[region.rank])] if region.rank in fields else [],
            tiles=list(_tiles(evidence[region.rank])) if region.rank in evidence else [],
        )
        for region in slide.regions()
        if region.rank in shown
    ]


def _field(field: RegionField) -> tuple[str, Path]:
    across, bar = f"{field.across_um:.0f} µm", f"{field.bar_um:g} µm"
    return f"Outlined in the slide, {across} across; the bar is {bar}", field.image


def _tiles(evidence: RegionEvidence) -> Iterator[tuple[str, Path]]:
    """Yield a region's strangest window and the pictures to compare it with."""
    yield f"Strangest window of the region, {evidence.mpp:g} µm/px", evidence.tile
    for place, healthy in enumerate(evidence.nearest, start=1):
        yield (
            f"Healthy tile {place}: {healthy.slide}, distance {healthy.distance:.3g}",
            healthy.tile,
        )
    if evidence.reconstruction is not None:
        yield "Reconstruction by the detector", evidence.reconstruction
    if evidence.difference is not None:
        yield "Difference from the reconstruction", evidence.difference


_STOPS = 65  # colours of a legend
_GROUND = 200  # grey of tissue under the colours of an overlay
_PLOTS = ((names.ROC, "ROC of the slides"), (names.FROC, "FROC"))


def write_results_report(
    results: Path,
    *,
    evaluation: Path | None = None,
    seconds: Mapping[str, float] | None = None,
    warnings: Sequence[str] = (),
    to: Path | None = None,
) -> Path:
    """Write ``report.html``, the contact sheet and the table of all regions of a results folder.

    Parameters
    ----------
    results : Path
        Folder that ``wsiad heatmap`` wrote.
    evaluation : Path, optional
        Folder with ``evaluation.json`` and its plots; by default that of the last
        evaluation, if there was one.
    seconds : mapping of str to float, optional
        Durations of stages that have just run, added to those that the folder records.
    warnings : sequence of str
        Warnings that no reader should miss.
    to : Path, optional
        Path of the report; by default ``report.html`` in the folder.

    Returns
    -------
    Path
        Path of the report.

    Raises
    ------
    InputError
        The folder does not contain results.
    """
    from wsiad.runs.run import LOSS, RunFolder

    opened = Results(results)
    facts = opened.facts
    known = read_timings(results)
    taken = {**known.seconds, **(seconds or {})}
    folder = evaluation or evaluation_folder(results)
    write_timings(results, taken, folder if evaluation or known.evaluation else None)
    run = RunFolder.at(facts["run"])  # it may have been moved
    record = run.record() if run.complete else None
    calibration = run.calibration() if record else None
    first, unseen = first_look(record)
    rows = list(opened.slides)
    sure = opened.significance()
    evaluated = read_evaluation(folder)
    lost = lost_evaluation(results, names.EVALUATION)
    truth = read_outlines(folder / names.TRUTH) if evaluated else None
    since: dict[str, Since] = {}
    if truth is not None:
        judged = EvaluatedTruth(folder / names.TRUTH, truth)
        since = {
            slide.name: judged.detections_since(slide)
            for slide in opened
            if judged.of(slide) is not None
        }
    plots = [(title, folder / name) for name, title in _PLOTS if (folder / name).exists()]
    if (run.path / LOSS).exists():
        plots.append(("Loss of the training", run.path / LOSS))
    path = to or results / names.REPORT
    sheet = Path(os.path.relpath(results / names.CONTACT_SHEET, path.parent)).as_posix()
    report = Report(
        title=f"Anomaly report: {facts['detector']} on {counted(len(rows), 'slide')}",
        created_by=f"wsiad {__version__}",
        run=_run_facts(record, facts),
        calibration=_calibration_facts(calibration) if calibration else {},
        slides=_entries(
            opened, calibration, evaluated, sure, first=first, truth=truth, since=since
        ),
        failures=[(row.slide, row.reason) for row in rows if row.status == FAILED],
        evaluation=evaluated,
        plots=plots,
        timings=_timings(record, rows) | taken,
        config_yaml=run.config_text(),
        notes=[
            *remarks.general_notes(rows, record),
            *remarks.space_notes(facts),
            *remarks.significance_notes(sure),
        ],
        warnings=[
            *warnings,
            *unseen,
            *remarks.calibration_warnings(record, calibration),
            *([f"{lost[:1].upper()}{lost[1:]}. {EVALUATE_AGAIN}"] if lost else []),
            *remarks.evaluation_warnings(evaluated, rows, facts, since=since),
            *remarks.significance_warnings(sure, rows),
            *remarks.not_assessed(rows),
        ],
        random_weights=bool(record and record.random_weights),
        rank_by=usual_score(rows),
        colour_scale=_legend(calibration, "windows") if calibration else None,
        space_scale=_space_legend(results),
        versions=facts.get("versions") or {},
        operating_point=OperatingPoint(truth.false_positives, truth.threshold) if truth else None,
        contact_sheet=quote(sheet),
        folder=Path(os.path.relpath(results, path.parent)).as_posix(),
    )
    write_contact_sheet(opened, report, page=path)
    write_report(path, report)
    return path


def _entries(
    results: Results,
    calibration: Calibration | None,
    evaluated: dict[str, Any] | None,
    sure: dict[str, Any] | None,
    *,
    first: Results | None,
    truth: TrueLesions | None,
    since: Mapping[str, Since],
) -> list[SlideEntry]:
    """Collect the entries of the slides that did not fail."""
    lesions = truth.slides if truth else {}
    known = evaluated or {}
    judged = {one["slide"]: one for key in ("excluded", "slides") for one in known.get(key) or []}
    excluded: dict[str, Literal["all", "froc"]] = {}
    for which in get_args(Literal["froc", "all"]):
        excluded |= dict.fromkeys((known.get("exclusions") or {}).get(which) or [], which)
    compared = (sure or {}).get("slides", {})
    return [
        with_findings(
            slide_entry(results.of(row), calibration, first=first),
            evaluated=judged.get(row.slide),
            compared=compared.get(row.slide),
            marks=_marks(results.of(row), lesions.get(row.slide, []), since.get(row.slide)),
            since=since.get(row.slide),
            excluded=excluded.get(row.slide, ""),
        )
        for row in results.slides
        if row.status != FAILED
    ]


def _marks(
    slide: SlideResults, lesions: Sequence[TrueLesion], since: Since | None
) -> list[LesionMark]:
    """Place annotated lesions on the pictures of a slide; none if it has no overlay."""
    path = slide.file(names.OVERLAY)
    placement = overlay_map((slide.facts() or {}).get(GEOMETRY)) if lesions else None
    if path is None or placement is None:
        return []
    width, height = picture_size(path)
    marks = []
    for lesion in lesions:
        columns, rows = placement.from_level0(*np.array(lesion.outline).reshape(-1, 2).T)
        outline = np.stack([columns / width, rows / height], axis=1).clip(0, 1)
        state = _state(lesion, since)
        marks.append(LesionMark(lesion.number, state, [(x, y) for x, y in outline.tolist()]))
    return marks


def _state(lesion: TrueLesion, since: Since | None) -> LesionState:
    """Return what is known of a lesion now, by what is known of the detections since then."""
    if lesion.kind == "itc":
        return "cells"
    if since != "unchanged":
        return "unknown"
    return "found" if lesion.found else "missed"


def _timings(record: RunRecord | None, rows: Sequence[HeatmapRow]) -> dict[str, float]:
    """Return the durations of stages that the run and the slides record."""
    found = {}
    if record:
        if record.tile_seconds is not None:
            found["tile, sum over slides"] = record.tile_seconds
        found["train"] = record.seconds
    if rows:
        found["heatmap, sum over slides"] = sum(row.seconds for row in rows)
    return found


def _run_facts(record: RunRecord | None, facts: Mapping[str, Any]) -> dict[str, object]:
    if record is None:
        return {"Detector": facts["detector"], "Run": "its folder no longer exists"}
    found: dict[str, object] = {
        "Detector": record.method,
        "Ended by": record.ended_by,
        "Steps": record.steps,
        "Seed": record.seed,
        "Device": record.device,
        "Healthy tiles": record.split,
        "Finished": record.finished,
    }
    weights = record.notes.get("weights")
    if isinstance(weights, dict):
        terms = f" ({weights['encoder']}, {weights['licence']})" if "encoder" in weights else ""
        found["Weights"] = Path(str(weights.get("source", "?"))).name + terms  # path: in run.json
    found["Stores"] = ", ".join(f"{name} ({mark[:19]}…)" for name, mark in record.stores.items())
    return found


def _calibration_facts(calibration: Calibration) -> dict[str, object]:
    return {
        "Healthy windows": calibration.n_windows,
        "Healthy slides": calibration.n_slides,
        "Median score": f"{calibration.median:.4g}",
        "99 % below": f"{calibration.quantile(0.99):.4g}",
        "99.9 % below": f"{calibration.quantile(0.999):.4g}",
    }


def _space_legend(results: Path) -> ColourScale | None:
    """Return the legend of the map of neighbourhoods, if regions come from one.

    Raises
    ------
    InputError
        Its calibration is damaged.
    """
    from wsiad.heatmaps.scale_space import SpatialCalibration

    path = results / names.SCALES
    if not path.exists():
        return None
    remedy = "Run wsiad export with --scales-um again."
    stored = read_json(path, InputError, remedy=remedy)
    try:
        spatial = SpatialCalibration.from_json(stored)
    except (EvaluationError, RunError) as error:
        raise InputError(error.problem, subject=str(path), remedy=remedy) from error
    return _legend(spatial.calibration, "neighbourhoods")


def _legend(calibration: Calibration, of: str) -> ColourScale:
    from wsiad.runs.calibration import colour_scale

    scale = colour_scale(calibration)
    last = len(scale.knots) - 1
    fine = np.interp(np.linspace(0, last, _STOPS), range(last + 1), scale.knots)
    shown = scale.over(fine, _GROUND)
    shares = [f"{100 * level:g} %: " for level in HEALTHY_LEVELS]
    return ColourScale(
        f"Share of healthy {of} with a lower score, and the score. The same for all slides.",
        [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in shown.tolist()],
        [
            f"{name}{score:.3g}".replace("-", "−")
            for name, score in zip([*shares, ""], scale.knots, strict=True)
        ],
        f"Healthy {of} with a lower score: their score",
    )
