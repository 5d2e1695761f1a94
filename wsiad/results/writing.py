"""A scored slide as files: everything in its folder of results but the record."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiad.core.geometry import Microns, SquareMicrons
from wsiad.exports.asap import SUFFIX as LIKELIHOOD_MAP
from wsiad.exports.asap import write_annotations, write_likelihood_map
from wsiad.exports.camelyon import write_detections
from wsiad.exports.ome import write_ome_tiff, write_ome_zarr
from wsiad.exports.png import write_png
from wsiad.exports.qupath import write_lesions, write_tiles, write_unassessed
from wsiad.heatmaps.heatmap_task import SlideTask, Viewer
from wsiad.heatmaps.peaks import find_peaks
from wsiad.heatmaps.regions import (
    Region,
    Regions,
    default_tolerance,
    find_regions,
    simplify,
    unassessed_regions,
)
from wsiad.heatmaps.score_map import Heatmap, WindowScores
from wsiad.heatmaps.stitch import Scored
from wsiad.heatmaps.windows import WindowSource
from wsiad.pictures.colours import HEALTHY_LEVELS, ColourScale
from wsiad.pictures.overview import Overview, overview_jpeg
from wsiad.results.evidence import Explainer, write_evidence
from wsiad.results.overlay import (
    enlarged,
    hatch_unscored,
    outline,
    outline_regions,
    overlay,
    write_picture,
    write_thumbnail,
)
from wsiad.results.region_fields import write_fields
from wsiad.results.region_table import REGIONS, region_rows, write_regions
from wsiad.runs.calibration import Calibration
from wsiad.tiling.left_out import LeftOut
from wsiad.tissue.quality import Reason

logger = logging.getLogger(__name__)

WINDOW = np.dtype(
    [(name, np.float64) for name in ("x", "y", "width", "height", "score", "percentile")]
)
"""A row of ``windows.npy``: level-0 rectangle, score, percentile among healthy windows."""

LEFT_OUT = np.dtype(
    [*((name, np.float64) for name in ("x", "y", "width", "height")), ("reason", "U10")]
)
"""A row of ``left_out.npy``: level-0 rectangle of a window that was not scored, and why."""


def colour_scale(calibration: Calibration) -> ColourScale:
    """Return the one colour scale of a run, fixed by its healthy scores."""
    return ColourScale.from_healthy([calibration.quantile(level) for level in HEALTHY_LEVELS])


def _upper(calibration: Calibration) -> float:
    """Return the healthy 99 % quantile, or what is above the median of constant scores."""
    upper, median = calibration.quantile(0.99), calibration.median
    return upper if upper > median else median + max(abs(median), 1.0)


def write_results(
    folder: Path,
    task: SlideTask,
    calibration: Calibration,
    source: WindowSource,
    scored: Scored,
    explainer: Explainer,
) -> dict[str, Any]:
    """Write pictures, heatmap, regions, their evidence and detections of a slide.

    Returns
    -------
    dict
        Of the slide's row: how many regions and detections there are, and its scores;
        empty where no window was scored.
    """
    left_out = _write_left_out(folder, source, scored.left_out)
    overview = _overview(task, source, scored, left_out)
    shown = enlarged(overview)
    write_picture(folder / "tissue.png", outline(shown.thumbnail, shown.mask))
    (folder / "overview.jpg").write_bytes(overview_jpeg(overview))
    write_unassessed(
        unassessed_regions(
            overview,
            slide_size=source.size,
            bounds=source.bounds,
            nothing=bool(scored.unusable),
        ),
        folder / "not_assessed.geojson",
        slide=task.slide.name,
        bounds=source.bounds,
    )
    if not scored.heatmap:
        write_thumbnail(folder / "thumbnail.jpg", source.thumbnail)
        return {}
    counts, regions = _write(folder, task, calibration, scored.heatmap, scored.windows)
    write_evidence(folder, explainer, regions, scored.windows, source, options=task.options)
    if source.slide is not None:  # a store has no surroundings to show
        percentiles = [float(calibration.percentile(region.max_score)) for region in regions]
        write_fields(folder, source.slide, regions, heatmap=scored.heatmap, percentiles=percentiles)
    scale = colour_scale(calibration)
    picture = overlay(shown.thumbnail, shown.placement, scored.heatmap, scale)
    hatch_unscored(picture, shown)
    write_thumbnail(folder / "thumbnail.jpg", picture)
    outline_regions(picture, [region.polygon for region in regions], shown.placement)
    write_picture(folder / "overlay.png", picture)
    highest, top_k = _slide_scores(scored.heatmap, task.options.top_k)
    return {"score_max": highest, "score_top_k_mean": top_k, **counts}


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
    np.save(folder / "left_out.npy", table, allow_pickle=False)
    return boxes


def _overview(
    task: SlideTask, source: WindowSource, scored: Scored, left_out: npt.NDArray[np.float64]
) -> Overview:
    return Overview(
        task.slide.name,
        source.thumbnail,
        source.mask,
        source.pen,
        source.placement,
        source.spacing,
        source.mpp,
        scored.windows.boxes,
        left_out,
        scored.left_out.reasons,
        scored.examples,
        source.stain,
        source.stain_fallback,
        noun="window",
        damaged=source.damaged,
    )


def _slide_scores(heatmap: Heatmap, top_k: int) -> tuple[float, float]:
    """Return the highest score of a heatmap and the mean of its ``top_k`` highest."""
    scores = np.sort(heatmap.scores[np.isfinite(heatmap.scores)])
    return float(scores[-1]), float(scores[-top_k:].mean(dtype=np.float64))


def _write(
    folder: Path,
    task: SlideTask,
    calibration: Calibration,
    heatmap: Heatmap,
    windows: WindowScores,
) -> tuple[dict[str, Any], Sequence[Region]]:
    """Write everything that is made of a heatmap; return what there is of each, and the regions."""
    options = task.options
    write_ome_tiff(heatmap, folder / "heatmap.ome.tif")
    write_png(heatmap, folder / "heatmap.png", scale=colour_scale(calibration))
    _write_viewers(folder, options.viewers, calibration, heatmap)
    regions = find_regions(
        heatmap,
        threshold=calibration.quantile(options.region_quantile),
        min_area=SquareMicrons(options.region_min_um2),
        limit=options.region_limit,
    )
    _write_outlines(folder, task, calibration, heatmap, regions)
    percentiles = [float(calibration.percentile(region.max_score)) for region in regions.kept]
    write_regions(folder / REGIONS, region_rows(regions.kept, percentiles))
    detections = find_peaks(
        heatmap,
        threshold=calibration.quantile(options.detection_quantile),
        radius=Microns(options.suppression_radius_um),
        suppression=options.suppression,
        limit=options.detection_limit,
    )
    write_detections(
        detections,
        folder / "detections.csv",
        median=calibration.median,
        upper=_upper(calibration),
    )
    table = np.empty(len(windows.scores), WINDOW)
    for name, column in zip(("x", "y", "width", "height"), windows.boxes.T, strict=True):
        table[name] = column
    table["score"], table["percentile"] = windows.scores, windows.percentiles
    np.save(folder / "windows.npy", table, allow_pickle=False)
    counts = {
        "regions": len(regions.kept) + regions.left_out,
        "regions_left_out": regions.left_out,
        "detections": len(detections),
    }
    return counts, regions.kept


def _write_viewers(
    folder: Path, viewers: Sequence[Viewer], calibration: Calibration, heatmap: Heatmap
) -> None:
    """Write the heatmap for the programs that it is wanted for."""
    if "qupath" in viewers:
        pixels = heatmap_pixels(heatmap, calibration)
        write_tiles(pixels, folder / "tiles.geojson.gz", slide=heatmap.slide, bounds=heatmap.bounds)
    if "asap" in viewers:
        path = folder / f"{Path(heatmap.slide).name}{LIKELIHOOD_MAP}"
        write_likelihood_map(heatmap, path, scale=colour_scale(calibration))
    if "napari" in viewers:
        write_ome_zarr(heatmap, folder / "heatmap.ome.zarr")


def _write_outlines(
    folder: Path, task: SlideTask, calibration: Calibration, heatmap: Heatmap, regions: Regions
) -> None:
    """Write regions as outlines, and say how many are left out."""
    if regions.left_out:
        logger.warning(
            "%s: the %d strongest regions are outlined; %d weaker ones are counted only",
            heatmap.slide,
            len(regions.kept),
            regions.left_out,
        )
    tolerance = task.options.region_tolerance_um
    drawn = [
        simplify(
            region,
            tolerance=default_tolerance(heatmap) if tolerance is None else Microns(tolerance),
            spacing=heatmap.spacing,
            bounds=heatmap.bounds,
        )
        for region in regions.kept
    ]
    percentiles = [float(calibration.percentile(region.max_score)) for region in drawn]
    write_lesions(
        drawn,
        folder / "lesions.geojson",
        slide=heatmap.slide,
        bounds=heatmap.bounds,
        percentiles=percentiles,
    )
    if "asap" in task.options.viewers:
        write_annotations(drawn, folder / "annotations.xml", percentiles=percentiles)


def heatmap_pixels(heatmap: Heatmap, calibration: Calibration) -> WindowScores:
    """Return the scored pixels of a heatmap as squares that do not overlap."""
    rows, columns = np.nonzero(np.isfinite(heatmap.scores))
    x, y = heatmap.placement.to_level0(columns.astype(np.float64), rows.astype(np.float64))
    boxes = np.empty((len(rows), 4))
    boxes[:, 0], boxes[:, 1] = x, y
    boxes[:, 2], boxes[:, 3] = heatmap.placement.scale_x, heatmap.placement.scale_y
    scores = heatmap.scores[rows, columns]
    return WindowScores(boxes, scores, calibration.percentile(scores))
