"""Write the files of a slide that depend only on its scores, and read the heatmap back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiad.core.errors import InputError
from wsiad.core.geometry import Mpp, PixelMap
from wsiad.exports.ome import write_ome_tiff
from wsiad.exports.png import write_png
from wsiad.exports.qupath import write_unassessed
from wsiad.heatmaps.heatmap_task import SlideTask
from wsiad.heatmaps.regions import unassessed_regions
from wsiad.heatmaps.score_map import Heatmap, WindowScores
from wsiad.heatmaps.stitch import Scored
from wsiad.heatmaps.windows import WindowSource
from wsiad.pictures.overview import Overview, overview_jpeg
from wsiad.results import file_names as names
from wsiad.results.overlay import (
    RGB,
    enlarged,
    hatch_unscored,
    outline,
    overlay,
    read_picture,
    reduced,
    write_picture,
    write_thumbnail,
)
from wsiad.results.records import SCORE_AGAIN, overlay_map
from wsiad.results.slide_results import SlideResults
from wsiad.runs.calibration import Calibration, colour_scale
from wsiad.tissue.quality import LeftOut, Reason

WINDOW = np.dtype(
    [(name, np.float64) for name in ("x", "y", "width", "height", "score", "percentile")]
)
"""Type of a row of ``windows.npy``: level-0 rectangle, score, percentile among healthy windows."""

LEFT_OUT = np.dtype(
    [*((name, np.float64) for name in ("x", "y", "width", "height")), ("reason", "U10")]
)
"""Type of a row of ``left_out.npy``: level-0 rectangle of a window not scored, and the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredHeatmap:
    """Scores of a slide, from which everything else is derived.

    Parameters
    ----------
    heatmap : Heatmap
        Heatmap of the slide.
    windows : WindowScores
        Scored windows.
    picture : ndarray of uint8, (H, W, 3)
        Overlay without outlines of regions.
    tissue : Path
        File of a picture of the slide with the same size.
    shown_at : PixelMap
        Map from pixels of the pictures to level-0 pixels.
    mpp : Mpp
        Scale of the windows, µm/px.
    """

    heatmap: Heatmap
    windows: WindowScores
    picture: RGB
    tissue: Path
    shown_at: PixelMap
    mpp: Mpp


def write_scored(
    folder: Path, task: SlideTask, calibration: Calibration, source: WindowSource, scored: Scored
) -> tuple[dict[str, Any], ScoredHeatmap | None]:
    """Write pictures, scores, heatmap and unassessed parts of a slide.

    Returns
    -------
    dict
        Position of the overlay, as JSON values for :func:`read_scored`; empty if no
        window was scored.
    ScoredHeatmap or None
        Scores of the slide, as :func:`read_scored` reads them back.
    """
    left_out = _write_left_out(folder, source, scored.left_out)
    overview = _overview(task, source, scored, left_out)
    shown = enlarged(overview)
    write_picture(folder / names.TISSUE, outline(shown.thumbnail, shown.mask))
    (folder / names.OVERVIEW).write_bytes(overview_jpeg(overview))
    write_unassessed(
        unassessed_regions(
            overview,
            slide_size=source.size,
            bounds=source.bounds,
            nothing=bool(scored.unusable),
        ),
        folder / names.NOT_ASSESSED,
        slide=task.slide.name,
        bounds=source.bounds,
    )
    if not scored.heatmap:
        write_thumbnail(folder / names.THUMBNAIL, source.thumbnail)
        return {}, None
    scale = colour_scale(calibration)
    write_ome_tiff(scored.heatmap, folder / names.HEATMAP)
    write_png(scored.heatmap, folder / names.HEATMAP_PICTURE, scale=scale)
    _write_windows(folder / names.WINDOWS, scored.windows)
    picture = overlay(shown.thumbnail, shown.placement, scored.heatmap, scale)
    hatch_unscored(picture, shown)
    write_thumbnail(folder / names.THUMBNAIL, picture)
    picture, placement = reduced(picture, shown.placement)
    write_picture(folder / names.PLAIN_OVERLAY, picture)
    written = ScoredHeatmap(
        heatmap=scored.heatmap,
        windows=scored.windows,
        picture=picture,
        tissue=folder / names.TISSUE,
        shown_at=placement,
        mpp=source.mpp,
    )
    return _geometry(written), written


def _write_windows(path: Path, windows: WindowScores) -> None:
    table = np.empty(len(windows.scores), WINDOW)
    for name, column in zip(("x", "y", "width", "height"), windows.boxes.T, strict=True):
        table[name] = column
    table["score"], table["percentile"] = windows.scores, windows.percentiles
    np.save(path, table, allow_pickle=False)


def _write_left_out(
    folder: Path, source: WindowSource, left_out: LeftOut
) -> npt.NDArray[np.float64]:
    """Write the windows that were not scored, and return their boxes."""
    table = np.empty(len(left_out), LEFT_OUT)
    boxes = source.grid.boxes(left_out.rows, left_out.columns)
    for name, column in zip(("x", "y", "width", "height"), boxes.T, strict=True):
        table[name] = column
    words = np.array([reason.word for reason in Reason])
    table["reason"] = words[left_out.reasons]
    np.save(folder / names.LEFT_OUT, table, allow_pickle=False)
    return boxes


def _overview(
    task: SlideTask, source: WindowSource, scored: Scored, left_out: npt.NDArray[np.float64]
) -> Overview:
    return Overview(
        slide=task.slide.name,
        thumbnail=source.thumbnail,
        mask=source.mask,
        pen=source.pen,
        placement=source.placement,
        spacing=source.spacing,
        mpp=source.mpp,
        boxes=scored.windows.boxes,
        left_out=left_out,
        reasons=scored.left_out.reasons,
        examples=scored.examples,
        stain=source.stain,
        fallback=source.stain_fallback,
        noun="window",
        damaged=source.damaged,
    )


def _geometry(written: ScoredHeatmap) -> dict[str, Any]:
    return {"overlay": _numbers(written.shown_at), "window_mpp": float(written.mpp)}


def _numbers(at: PixelMap) -> list[float]:
    return [float(value) for value in (at.x, at.y, at.scale_x, at.scale_y)]


def read_scored(slide: SlideResults, geometry: Mapping[str, Any]) -> ScoredHeatmap:
    """Read the scores of a slide back, with exactly the numbers that were written.

    Parameters
    ----------
    slide : SlideResults
        Results of the slide.
    geometry : mapping
        First value that :func:`write_scored` returned.

    Raises
    ------
    InputError
        A file is missing or damaged.
    """
    shown = overlay_map(geometry)
    try:
        mpp = Mpp(geometry["window_mpp"])
        sound = math.isfinite(mpp) and mpp > 0
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound or shown is None:
        raise InputError(
            "its record does not state the position of its overlay",
            subject=str(slide.folder),
            remedy=SCORE_AGAIN,
        )
    table = slide.windows()
    fields = ("x", "y", "width", "height")
    boxes = np.stack([np.asarray(table[name], np.float64) for name in fields], axis=1)
    windows = WindowScores(
        boxes.reshape(-1, 4),
        np.asarray(table["score"], np.float32),
        np.asarray(table["percentile"], np.float32),
    )
    return ScoredHeatmap(
        heatmap=slide.heatmap(),
        windows=windows,
        picture=read_picture(slide.folder / names.PLAIN_OVERLAY),
        tissue=slide.folder / names.TISSUE,
        shown_at=shown,
        mpp=mpp,
    )
