"""The windows of a slide scored, and stitched to a heatmap."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from wsiad.heatmaps.heatmap_source import WindowSource
from wsiad.heatmaps.heatmap_task import SlideTask
from wsiad.heatmaps.score_map import Heatmap, WindowScores
from wsiad.heatmaps.stitch import Stitcher
from wsiad.heatmaps.windows import ScoredBatch
from wsiad.runs.calibration import Calibration
from wsiad.slides.slide_table import NO_TISSUE, OK, UNUSABLE
from wsiad.tiling.left_out import LeftOut
from wsiad.tiling.stream import Example
from wsiad.tiling.verdict import damage_note, missing_note
from wsiad.tissue.guards import Reason, in_words


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """What scoring a slide's windows made; no heatmap where there is no window.

    Without one, ``unusable`` says why it could not be looked at; empty where it is without tissue.
    """

    heatmap: Heatmap | None
    windows: WindowScores
    left_out: LeftOut
    examples: tuple[Example, ...]
    unusable: str = ""

    @property
    def status(self) -> str:
        """Status of the slide's row."""
        if self.heatmap:
            return OK
        # Not to be taken for a slide without tissue, of which there is nothing to fear.
        return UNUSABLE if self.unusable else NO_TISSUE


def stitch(
    task: SlideTask, calibration: Calibration, source: WindowSource, scored: Iterator[ScoredBatch]
) -> Scored:
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
        windows = WindowScores(np.empty((0, 4)), none, none)
        return Scored(None, windows, left_out, examples, source.why_unusable(left_out))
    flat = np.concatenate(scores)
    windows = WindowScores(
        source.grid.boxes(np.concatenate(rows), np.concatenate(columns)),
        flat,
        calibration.percentile(flat),
    )
    heatmap = stitcher.finish(
        task.slide.name, slide_size=source.size, bounds=source.bounds, spacing=source.spacing
    )
    return Scored(heatmap, windows, left_out, examples)


def notes(source: WindowSource, scored: Scored, *, regions_left_out: int) -> Iterator[str]:
    """Yield what the reader of a slide's row has to know of how it was scored."""
    if scored.unusable:
        yield scored.unusable
    elif source.stain_fallback:
        yield f"stains of the reference were used: {source.stain_fallback}"
    if source.scale_note:
        yield source.scale_note
    if scored.heatmap and (missing := scored.left_out.count(Reason.MISSING)):
        yield f"{missing} windows left out: the slide has no pixels there"
    if scored.heatmap and (why := missing_note(source.missing_share)):
        yield why
    share = float(source.damaged.mean()) if source.damaged is not None else 0.0
    if why := damage_note(scored.left_out.count(Reason.DAMAGED), share, noun="windows"):
        yield why
    if why := in_words(scored.left_out.by_quality()):
        yield f"windows not assessed, as they fail the quality thresholds: {why}"
    if source.pen is not None:
        pixel = source.placement.scale_x * source.spacing.x
        area = source.pen.sum() * pixel * source.placement.scale_y * source.spacing.y / 1e6
        yield f"pen marks hide {area:.2g} mm², which is not assessed"
    if regions_left_out:
        yield f"{regions_left_out} weaker regions are not outlined"
