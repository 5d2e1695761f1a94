"""One slide scored: from its windows to its folder of results."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiad.detector import Detector
from wsiad.errors import InputError
from wsiad.export.camelyon import write_detections
from wsiad.export.ome_tiff import write_ome_tiff
from wsiad.export.overlay import hatch_unscored, outline, overlay, write_picture
from wsiad.export.png import write_png
from wsiad.export.qupath import write_lesions, write_tiles, write_unassessed
from wsiad.files import atomic_folder, fingerprint, write_json
from wsiad.geometry import Box, PixelMap, Size
from wsiad.heatmaps.colours import HEALTHY_LEVELS, ColourScale
from wsiad.heatmaps.heatmap import Heatmap, WindowScores
from wsiad.heatmaps.peaks import find_peaks
from wsiad.heatmaps.regions import find_regions
from wsiad.heatmaps.stitch import Stitcher
from wsiad.heatmaps.unassessed import unassessed_regions
from wsiad.heatmaps.windows import (
    ScoredBatch,
    WindowBatch,
    from_plan,
    from_store,
    score_windows,
    store_grid,
)
from wsiad.runs.calibration import Calibration
from wsiad.runs.run import RunFolder
from wsiad.slides.opening import open_slide
from wsiad.slides.slide import Slide
from wsiad.slides.staging import staged
from wsiad.stages.heatmap_task import SLIDE, HeatmapRow, SlideTask
from wsiad.stages.slide_table import NO_TISSUE, OK, UNUSABLE
from wsiad.stain.profile import StainProfile
from wsiad.tiles.left_out import LeftOut
from wsiad.tiles.overview import Overview, overview_jpeg
from wsiad.tiles.plan import plan_slide
from wsiad.tiles.store import TileStore
from wsiad.tiles.stream import Example
from wsiad.tiles.writer import check_unchanged
from wsiad.tiling import Grid
from wsiad.tissue.guards import Reason, in_words
from wsiad.training.device import choose_device, windows_at_once
from wsiad.units import Microns, Mpp, Spacing, SquareMicrons

WINDOW = np.dtype(
    [(name, np.float64) for name in ("x", "y", "width", "height", "score", "percentile")]
)
"""A row of ``windows.npy``: level-0 rectangle, score, percentile among healthy windows."""

LEFT_OUT = np.dtype(
    [*((name, np.float64) for name in ("x", "y", "width", "height")), ("reason", "U10")]
)
"""A row of ``left_out.npy``: level-0 rectangle of a window that was not scored, and why."""


@dataclass(frozen=True, slots=True)
class _Source:
    """What both ways of reading a slide's windows have to say of it.

    The identity is what the results depend on, as it was before anything was read; the
    slide is ``None`` where windows come from a store, which does not change.
    """

    batches: Iterator[WindowBatch]
    grid: Grid
    size: Size
    bounds: Box
    spacing: Spacing
    thumbnail: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.bool_]
    pen: npt.NDArray[np.bool_] | None
    placement: PixelMap
    mpp: Mpp
    stain: str
    stain_fallback: str | None
    backend: str
    identity: dict[str, Any]
    slide: Slide | None = None


@functools.lru_cache(maxsize=1)
def _loaded(run: Path, device: str, digest: str) -> tuple[Detector, Calibration]:
    """Load a run's detector once a process; the digest tells runs of one path apart."""
    folder = RunFolder.open(run)
    return folder.load_detector(choose_device(device)), folder.calibration()


def colour_scale(calibration: Calibration) -> ColourScale:
    """Return the one colour scale of a run, fixed by its healthy scores."""
    return ColourScale.from_healthy([calibration.quantile(level) for level in HEALTHY_LEVELS])


def _upper(calibration: Calibration) -> float:
    """Return the healthy 99 % quantile, or what is above the median of constant scores."""
    upper, median = calibration.quantile(0.99), calibration.median
    return upper if upper > median else median + max(abs(median), 1.0)


def stored_row(task: SlideTask) -> HeatmapRow | None:
    """Row of a slide whose results are whole and of the same slide, run and options."""
    path = task.folder / SLIDE
    if not path.exists():
        return None
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        same = {key: facts[key] for key in _identity(task)} == _identity(task)
        row = HeatmapRow(**facts["row"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not whole: it is made again
    if not same:
        raise InputError(
            "has results from another file of this name, or at another µm/px",
            subject=task.slide.name,
            remedy=f"Rename the slide, or delete {task.folder} to score it again.",
        )
    return replace(row, label=task.slide.label, split=task.slide.split)


def _identity(task: SlideTask) -> dict[str, Any]:
    """Return what results depend on, as JSON values."""
    return {
        "digest": task.digest,
        "fingerprint": _fingerprint(task),
        "manifest_mpp": task.slide.mpp,
    }


def _fingerprint(task: SlideTask) -> str:
    if task.from_store:
        return TileStore(task.slide.path).slide(task.slide.name).fingerprint
    return fingerprint(task.slide.path)


def score_slide(task: SlideTask) -> HeatmapRow:
    """Score a slide and write its folder of results, whole or not at all.

    Raises
    ------
    SlideError
        The slide cannot be opened or decoded, or its µm/px does not fit the run.
    StoreError
        The stored slide is damaged, or its tiles do not fit the detector.
    """
    start = time.monotonic()
    detector, calibration = _loaded(task.run, task.device, task.digest)
    if task.from_store:
        return _finish(task, detector, calibration, _stored_source(task, detector), start)
    with (
        staged(task.slide.path, task.staging, name=task.slide.name) as local,
        open_slide(
            local,
            name=task.slide.name,
            manifest_mpp=task.slide.mpp,
            fallback_mpp=task.preparation.slide_mpp,
        ) as slide,
    ):
        identity = _identity(task)
        plan = plan_slide(
            slide,
            task.preparation,
            target=StainProfile.from_dict(task.target),
            tile=detector.spec.size,
            stride=task.options.stride or detector.spec.size,
        )
        source = _Source(
            from_plan(plan),
            plan.grid,
            slide.size,
            slide.bounds,
            slide.spacing,
            plan.tissue.thumbnail,
            plan.tissue.mask,
            plan.tissue.pen,
            plan.tissue.placement,
            plan.scaled.mpp,
            plan.stain.method,
            plan.stain.fallback,
            slide.read_by,
            identity,
            slide,
        )
        return _finish(task, detector, calibration, source, start)


def _stored_source(task: SlideTask, detector: Detector) -> _Source:
    slide = TileStore(task.slide.path).slide(task.slide.name)
    grid = store_grid(slide, detector.spec, task.options.stride)
    mask = slide.column("mask")
    # A store keeps no thumbnail: tissue is drawn in grey instead.
    thumbnail = np.where(mask[..., None], np.uint8(200), np.uint8(244)).repeat(3, axis=2)
    return _Source(
        from_store(slide, grid, thresholds=task.preparation.quality),
        grid,
        slide.size,
        slide.bounds,
        slide.spacing,
        thumbnail,
        mask,
        slide.column("pen_mask") if "pen_mask" in slide.group else None,
        PixelMap(*slide.facts["tissue"]["placement"]),
        detector.spec.mpp,
        slide.facts["stain"]["method"],
        slide.facts["stain"].get("fallback"),
        "store",
        _identity(task),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Scored:
    """What scoring a slide's windows made; no heatmap where there is no window."""

    heatmap: Heatmap | None
    windows: WindowScores
    left_out: LeftOut
    examples: tuple[Example, ...]

    @property
    def status(self) -> str:
        if self.heatmap:
            return OK
        # Not to be taken for a slide without tissue, of which there is nothing to fear.
        return UNUSABLE if any(self.left_out.by_quality().values()) else NO_TISSUE


def _finish(
    task: SlideTask, detector: Detector, calibration: Calibration, source: _Source, start: float
) -> HeatmapRow:
    batch = windows_at_once(task.batch, choose_device(task.device), edge=detector.spec.size)
    scored = _stitch(
        task, calibration, source, score_windows(detector, source.batches, batch=batch)
    )
    with atomic_folder(task.folder) as folder:
        row = HeatmapRow(
            task.slide.name,
            scored.status,
            "; ".join(_notes(source, scored)),
            tiles=len(scored.windows.scores),
            unusable=sum(scored.left_out.by_quality().values()),
            mpp_x=float(source.spacing.x),
            mpp_y=float(source.spacing.y),
            width=source.size.width,
            height=source.size.height,
            label=task.slide.label,
            split=task.slide.split,
            file=str(task.slide.path),
            backend=source.backend,
        )
        left_out = _write_left_out(folder, source, scored.left_out)
        write_picture(folder / "tissue.png", outline(source.thumbnail, source.mask))
        overview = _overview(task, source, scored, left_out)
        (folder / "overview.jpg").write_bytes(overview_jpeg(overview))
        write_unassessed(
            unassessed_regions(overview, slide_size=source.size, bounds=source.bounds),
            folder / "not_assessed.geojson",
            slide=task.slide.name,
            bounds=source.bounds,
        )
        if scored.heatmap:
            counts = _write(folder, task, calibration, scored.heatmap, scored.windows)
            scale = colour_scale(calibration)
            picture = overlay(source.thumbnail, source.placement, scored.heatmap, scale)
            hatch_unscored(picture, overview)
            write_picture(folder / "overlay.png", picture)
            highest, top_k = _slide_scores(scored.heatmap, task.options.top_k)
            row = replace(row, score_max=highest, score_top_k_mean=top_k, **counts)
        row = replace(row, seconds=round(time.monotonic() - start, 3))
        if source.slide:
            check_unchanged(source.slide, source.identity["fingerprint"])
        write_json(folder / SLIDE, source.identity | {"row": asdict(row)})
    return row


def _write_left_out(folder: Path, source: _Source, left_out: LeftOut) -> npt.NDArray[np.float64]:
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
    task: SlideTask, source: _Source, scored: _Scored, left_out: npt.NDArray[np.float64]
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
    )


def _notes(source: _Source, scored: _Scored) -> Iterator[str]:
    if source.stain_fallback:
        yield f"stains of the reference were used: {source.stain_fallback}"
    if missing := scored.left_out.count(Reason.MISSING):
        yield f"{missing} windows left out: the slide has no pixels there"
    if why := in_words(scored.left_out.by_quality()):
        yield f"windows not assessed, as they fail the quality thresholds: {why}"
    if source.pen is not None:
        pixel = source.placement.scale_x * source.spacing.x
        area = source.pen.sum() * pixel * source.placement.scale_y * source.spacing.y / 1e6
        yield f"pen marks hide {area:.2g} mm², which is not assessed"


def _slide_scores(heatmap: Heatmap, top_k: int) -> tuple[float, float]:
    """Return the highest score of a heatmap and the mean of its ``top_k`` highest."""
    scores = np.sort(heatmap.scores[np.isfinite(heatmap.scores)])
    return float(scores[-1]), float(scores[-top_k:].mean(dtype=np.float64))


def _stitch(
    task: SlideTask, calibration: Calibration, source: _Source, scored: Iterator[ScoredBatch]
) -> _Scored:
    """Stitch the scores of all windows."""
    stitcher: Stitcher | None = None
    rows, columns, scores = [], [], []
    parts: list[LeftOut] = []
    examples: tuple[Example, ...] = ()
    for batch in scored:
        parts.append(batch.left_out)
        examples += batch.examples
        if not len(batch.scores):
            continue
        maps = batch.places if task.options.detail == "place" else batch.scores[:, None, None]
        if stitcher is None:
            stitcher = Stitcher(
                source.grid.rows,
                source.grid.columns,
                stride=source.grid.stride,
                window=source.grid.tile,
                grid=source.grid.pixels,
                places=maps.shape[1],
            )
        stitcher.add(batch.rows.astype(np.int64), batch.columns.astype(np.int64), maps)
        rows.append(batch.rows)
        columns.append(batch.columns)
        scores.append(batch.scores)
    left_out = LeftOut.join(parts)
    if stitcher is None:
        none = np.empty(0, np.float32)
        return _Scored(None, WindowScores(np.empty((0, 4)), none, none), left_out, examples)
    flat = np.concatenate(scores)
    windows = WindowScores(
        source.grid.boxes(np.concatenate(rows), np.concatenate(columns)),
        flat,
        calibration.percentile(flat),
    )
    heatmap = stitcher.finish(
        task.slide.name, slide_size=source.size, bounds=source.bounds, spacing=source.spacing
    )
    return _Scored(heatmap, windows, left_out, examples)


def _write(
    folder: Path,
    task: SlideTask,
    calibration: Calibration,
    heatmap: Heatmap,
    windows: WindowScores,
) -> dict[str, Any]:
    """Write everything that is made of a heatmap; return what there is of each."""
    options = task.options
    write_ome_tiff(heatmap, folder / "heatmap.ome.tif")
    write_png(heatmap, folder / "heatmap.png", scale=colour_scale(calibration))
    pixels = heatmap_pixels(heatmap, calibration)
    write_tiles(pixels, folder / "tiles.geojson.gz", slide=heatmap.slide, bounds=heatmap.bounds)
    regions = find_regions(
        heatmap,
        threshold=calibration.quantile(options.region_quantile),
        min_area=SquareMicrons(options.region_min_um2),
        limit=options.region_limit,
    )
    write_lesions(
        regions.kept,
        folder / "lesions.geojson",
        slide=heatmap.slide,
        bounds=heatmap.bounds,
        percentiles=[float(calibration.percentile(r.max_score)) for r in regions.kept],
    )
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
    return {"regions": len(regions.kept) + regions.left_out, "detections": len(detections)}


def heatmap_pixels(heatmap: Heatmap, calibration: Calibration) -> WindowScores:
    """Return the scored pixels of a heatmap as squares that do not overlap."""
    rows, columns = np.nonzero(np.isfinite(heatmap.scores))
    x, y = heatmap.placement.to_level0(columns.astype(np.float64), rows.astype(np.float64))
    boxes = np.empty((len(rows), 4))
    boxes[:, 0], boxes[:, 1] = x, y
    boxes[:, 2], boxes[:, 3] = heatmap.placement.scale_x, heatmap.placement.scale_y
    scores = heatmap.scores[rows, columns]
    return WindowScores(boxes, scores, calibration.percentile(scores))
