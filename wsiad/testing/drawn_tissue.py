"""Tiles and a slide of drawn tissue, and the heatmap that a detector makes of the slide."""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from wsiad.core.errors import WsiadError
from wsiad.heatmaps.heatmap_task import HeatmapOptions, SlideTask
from wsiad.heatmaps.score_map import Heatmap
from wsiad.heatmaps.stitch import stitch
from wsiad.learning.detector import Detector, Tiles
from wsiad.results.scoring import window_source
from wsiad.runs.calibration import Calibration
from wsiad.slides.inputs import SlideInput
from wsiad.stain.profile import StainProfile
from wsiad.tiling.preparation import Preparation, StainOptions

_GLASS = 243  # grey level
_LEAST_TISSUE_PX, _LEAST_MARGIN_PX = 240, 72  # at 1 µm/px; less tissue is taken for dust
_DOUBT_PX = 24  # by which the outline of the tissue is smoothed
_BATCH = 8
_NO_STAIN = StainProfile("none")


def tissue_tiles(count: int, edge: int, *, seed: int, strange: bool = False) -> Tiles:
    """Return tiles of the colours of stained tissue, uint8 (count, edge, edge, 3).

    Parameters
    ----------
    count : int
    edge : int
        Edge of the tiles, pixels.
    seed : int
        Seed; the same seed gives the same tiles.
    strange : bool
        True to draw stripes of another colour through the tiles.
    """
    rng = np.random.default_rng([seed, strange])
    eosin, nuclei = np.array([225.0, 150, 190]), np.array([110.0, 70, 150])
    cells = rng.random((count, -(-edge // 8), -(-edge // 8), 1))
    share = np.kron(cells, np.ones((1, 8, 8, 1)))[:, :edge, :edge]
    made = eosin * (1 - share) + nuclei * share + rng.normal(0, 6, (count, edge, edge, 3))
    if strange:
        made[:, :, ::4] = (60, 160, 60)
    return np.clip(made, 0, 255).astype(np.uint8)


@dataclass(frozen=True, slots=True)
class _Slide:
    """A square of tissue with glass around it, of 1 µm/px, for windows of an edge."""

    window: int

    @property
    def tissue_px(self) -> int:
        """Edge of the tissue: some windows lie within it."""
        return max(_LEAST_TISSUE_PX, 4 * self.window)

    @property
    def margin_px(self) -> int:
        """Width of the glass on each side."""
        return max(_LEAST_MARGIN_PX, self.window)

    @property
    def edge_px(self) -> int:
        """Edge of the slide."""
        return self.tissue_px + 2 * self.margin_px

    def write(self, path: Path) -> None:
        """Write the slide as a tiled TIFF."""
        import tifffile

        image = np.full((self.edge_px, self.edge_px, 3), _GLASS, np.uint8)
        inside = slice(self.margin_px, self.margin_px + self.tissue_px)
        image[inside, inside] = tissue_tiles(1, self.tissue_px, seed=6)[0]
        tifffile.imwrite(
            path,
            image,
            photometric="rgb",
            tile=(128, 128),
            compression="deflate",
            resolution=(10_000, 10_000),  # pixels per centimetre
            resolutionunit="CENTIMETER",
        )


def check_heatmap(detector: Detector, folder: Path) -> None:
    """Check the heatmap that a fitted detector makes of a drawn slide.

    The slide's windows are planned, read, scored place by place and stitched as ``wsiad heatmap``
    does. The heatmap has a pixel for each place; it is finite on tissue and NaN on glass.

    Parameters
    ----------
    detector : Detector
        Fitted detector for tiles of 1 µm/px.
    folder : Path
        Empty folder for the slide.

    Raises
    ------
    AssertionError
        A check fails.
    """
    path, window = folder / "drawn.tif", detector.spec.size
    drawn = _Slide(window)
    drawn.write(path)
    healthy = detector.score(tissue_tiles(_BATCH, window, seed=7))
    task = SlideTask(
        slide=SlideInput("drawn", path),
        preparation=Preparation(
            mpp=float(detector.spec.mpp), tile=window, stain=StainOptions(method="none")
        ),
        target=_NO_STAIN.to_dict(),
        from_store=False,
        results=folder,
        run=folder,
        options=HeatmapOptions(detail="place"),
        digest="",
        derived={},
        batch=_BATCH,
        device="cpu",
    )
    with window_source(task, detector.spec) as source:
        try:
            with closing(source.scored(detector, batch=_BATCH)) as batches:
                found = stitch(task, Calibration.of(healthy, n_slides=1), source, batches)
        except WsiadError as error:
            raise AssertionError(f"a slide of drawn tissue cannot be scored: {error}") from error
    places = detector.score_map(tissue_tiles(1, window, seed=7)).shape[1]
    assert found.heatmap is not None, "no window of a slide of drawn tissue is scored"
    _check_shape(found.heatmap, drawn, places)
    _check_parts(found.heatmap, drawn)


def _check_shape(heatmap: Heatmap, drawn: _Slide, places: int) -> None:
    lattice = math.ceil(drawn.edge_px / drawn.window)
    scores = heatmap.scores
    right = scores.dtype == np.float32 and scores.shape[0] == scores.shape[1]
    right = right and scores.shape[0] in (places * lattice, places * (lattice - 1))
    assert right, f"the heatmap of a slide is {scores.dtype} {scores.shape}, not {places} × places"


def _check_parts(heatmap: Heatmap, drawn: _Slide) -> None:
    """Check what is finite: each pixel of windows inside the tissue, and none far from it."""
    low, high = _along(heatmap)
    begin, end = drawn.margin_px, drawn.margin_px + drawn.tissue_px
    inner = (low >= begin + drawn.window) & (high <= end - drawn.window)
    away = drawn.window / 2 + _DOUBT_PX  # half of a window that is scored can be glass
    far = (high <= begin - away) | (low >= end + away)
    finite = np.isfinite(heatmap.scores)
    assert finite[np.ix_(inner, inner)].all(), "the heatmap has pixels without a score on tissue"
    assert not finite[far | far[:, None]].any(), "the heatmap has scores on glass"
    assert len(np.unique(heatmap.scores[finite])) > 1, "the whole heatmap has the same score"


def _along(heatmap: Heatmap) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return where the pixels of a row begin and end, level-0 pixels."""
    numbers = np.arange(heatmap.size.width + 1, dtype=np.float64)
    edges: npt.NDArray[np.float64] = heatmap.placement.x + heatmap.placement.scale_x * numbers
    return edges[:-1], edges[1:]
