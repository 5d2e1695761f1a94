"""Write and update the QuPath project of a results folder."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wsiad.core.errors import ExportError
from wsiad.core.ownership import clear_leftovers
from wsiad.exports.qupath.project import PROJECT, ProjectSlide, write_project
from wsiad.heatmaps.heatmap_task import HeatmapRow, Ranking, usual_score
from wsiad.results.file_names import QUPATH
from wsiad.results.folder import Results
from wsiad.slides.slide_table import OK, SLIDES_TABLE, read_table
from wsiad.store.tile_store import is_store
from wsiad.store.tile_task import TileRow

logger = logging.getLogger(__name__)


MADE = "run_made_ms"
"""Key of ``run.json``: time of the detector, ms since 1970; the time stamp of a new project."""


def write_results_project(results: Path) -> str:
    """Write the project, or update it from ``slides.csv``.

    Parameters
    ----------
    results : Path
        Folder that ``wsiad heatmap`` wrote.

    Returns
    -------
    str
        Text for the summary: the path of the project, or why it was not written. It is empty if no
        slide was scored, so that there is nothing to look at yet.
    """
    folder_of_results = Results(results)
    rows = folder_of_results.slides
    compared = (folder_of_results.significance() or {}).get("slides", {})
    made_ms = folder_of_results.facts.get(MADE)
    slides = project_slides(rows, compared)
    if unknown := sorted({row.slide for row in rows} - {slide.name for slide in slides}):
        logger.warning(
            "not in the QuPath project, because their files are unknown: %s", ", ".join(unknown)
        )
    folder = results / QUPATH
    clear_leftovers(folder, folder / "classifiers", folder / "scripts")
    try:
        write_project(folder, slides, results=results.resolve(), made_ms=_whole(made_ms))
    except ExportError as error:
        logger.warning("the QuPath project was not updated: %s", error)
        return f"the QuPath project was not updated ({error})"
    scored = any(row.status == OK for row in rows)
    return f"open {folder / PROJECT} in QuPath" if scored else ""


def _whole(value: object) -> int:
    return value if isinstance(value, int) and 0 <= value < 1 << 53 else 0


def update_results_project(results: Path) -> None:
    """Update the project, if there is one."""
    if (results / QUPATH / PROJECT).exists():
        write_results_project(results)


def project_slides(
    rows: Sequence[HeatmapRow], compared: Mapping[str, Mapping[str, Any]] | None = None
) -> list[ProjectSlide]:
    """List slides as images by name, without those whose file is unknown.

    The rank is by descending score, with leading zeros because QuPath sorts metadata as text.

    Parameters
    ----------
    rows : sequence of HeatmapRow
        Rows of the results.
    compared : mapping of str to mapping, optional
        Entry of each slide in ``significance.json``.
    """
    known = compared or {}
    kind = usual_score(rows)
    scored = sorted((-score, row.slide) for row in rows if (score := _score(row, kind)) is not None)
    ranks = {name: f"{n:0{len(str(len(scored)))}}" for n, (_, name) in enumerate(scored, start=1)}
    files = _files(rows)
    return [
        ProjectSlide(
            row.slide, file, _facts(row, ranks.get(row.slide, ""), known.get(row.slide, {}))
        )
        for row in sorted(rows, key=lambda row: row.slide)
        if (file := files[row.slide]) is not None
    ]


def _score(row: HeatmapRow, kind: Ranking) -> float | None:
    return row.score_scan if kind == "scan" else row.score_max


def _facts(row: HeatmapRow, rank: str, compared: Mapping[str, Any]) -> dict[str, str]:
    """Return the metadata of a slide, without unknown values."""
    p, significant = compared.get("p_slide"), compared.get("significant_regions")
    facts = {
        "rank": rank,
        "score": "" if row.score_max is None else f"{row.score_max:.6g}",
        "scan score": "" if row.score_scan is None else f"{row.score_scan:.6g}",
        "p": "" if p is None else f"{p:.4f}",
        "regions": "" if row.regions is None else str(row.regions),
        "significant regions": "" if significant is None else str(significant),
        "status": row.status,
        "reason": row.reason,
        "label": row.label,
        "split": row.split,
    }
    return {key: value for key, value in facts.items() if value}


def _files(rows: Sequence[HeatmapRow]) -> dict[str, Path | None]:
    """Return the files of slides for QuPath, also for slides whose tiles came from a store."""
    stores = {row.file for row in rows if row.file and is_store(Path(row.file))}
    tables = {store: read_table(Path(store) / SLIDES_TABLE, TileRow) for store in stores}
    originals = {(store, row.slide): row.file for store in stores for row in tables[store]}
    found = {}
    for row in rows:
        text = originals.get((row.file, row.slide), "") if row.file in stores else row.file
        found[row.slide] = _openable(Path(text)) if text else None
    return found


def _openable(path: Path) -> Path | None:
    """Return the file with which a slide is opened; it need not be available now."""
    if not path.is_dir():
        return path
    # A DICOM slide is a folder of files, and known by any of them.
    return min((p for p in path.iterdir() if p.suffix.lower() == ".dcm"), default=None)
