"""Which healthy tiles a run keeps to show: drawn by the seed, evenly over the slides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from wsiad.core.errors import DetectorError
from wsiad.core.images import jpeg
from wsiad.core.progress import Progress
from wsiad.learning.capabilities import Embeds, Reconstructs
from wsiad.learning.crops import windows as cut
from wsiad.learning.detector import Detector, Tiles, TileSource
from wsiad.learning.sampling import sample
from wsiad.pictures.colours import HEALTHY_LEVELS
from wsiad.runs.anomalies import spread
from wsiad.runs.examples import HealthyExamples
from wsiad.runs.split import SlideTiles
from wsiad.store.stored_slide import StoredSlide

_BATCH = 64
_SCALE_TILES = 512
_STREAM = 0xE8A  # keeps its draws apart from others of the seed
_QUALITY = 85  # 512 tiles of 256 px take 12 to 19 MB


def choose_examples(
    detector: Detector,
    part: Sequence[SlideTiles],
    by_name: Mapping[str, tuple[StoredSlide, npt.NDArray[np.int64]]],
    *,
    held_out: TileSource,
    count: int,
    seed: int,
    quiet: bool = False,
) -> HealthyExamples | None:
    """Choose examples among the tiles that a detector was fitted on, and embed them.

    Of a tile larger than the detector's input it is a window at random.

    Parameters
    ----------
    detector : Detector
        Fitted.
    part : sequence of SlideTiles
        The tiles that were fitted on; at least one.
    by_name : mapping of str to (StoredSlide, ndarray of int64)
        Slides with their usable tiles, which the indices of ``part`` count.
    held_out : TileSource
        Healthy tiles that were not fitted on, for the scale of differences.
    count : int
        How many; fewer are chosen where there are fewer.
    seed : int
        Same seed and tiles, same examples.
    quiet : bool
        No progress output.

    Returns
    -------
    HealthyExamples or None
        ``None`` if the detector has no features to compare by, or none are wanted.

    Raises
    ------
    StoreError
        A chunk is damaged or missing.
    DetectorError
        A feature is not finite.
    """
    if not count or not isinstance(detector, Embeds):
        return None
    usable = {item.slide: by_name[item.slide][1][item.indices] for item in part}
    chosen = spread(usable, count, seed=seed)
    names: list[str] = []
    pictures: list[bytes] = []
    positions: list[npt.NDArray[np.float64]] = []
    vectors: list[npt.NDArray[np.float32]] = []
    total = sum(map(len, chosen.values()))
    with Progress("examples", total=total, unit="tile", quiet=quiet) as progress:
        for place, name in enumerate(sorted(chosen)):
            rng = np.random.default_rng([seed, _STREAM, place])
            parts = _windows(by_name[name][0], chosen[name], detector.spec.size, rng)
            for windows, corners in parts:
                names += [name] * len(windows)
                pictures += [jpeg(window, quality=_QUALITY) for window in windows]
                positions.append(corners)
                vectors.append(detector.embed(windows))
                progress.update(len(windows))
    embedding = np.concatenate(vectors)
    if not np.isfinite(embedding).all():
        raise DetectorError(
            "the detector's features of healthy tiles are not finite",
            remedy="Fit it again; for a trained method with a smaller learning_rate.",
        )
    return HealthyExamples(
        tuple(names),
        np.concatenate(positions),
        tuple(pictures),
        embedding,
        detector.spec.size,
        detector.spec.mpp,
        _differences(detector, held_out, seed=seed),
    )


def _differences(detector: Detector, tiles: TileSource, *, seed: int) -> tuple[float, ...] | None:
    """Return quantiles of the differences at places of healthy tiles.

    Places differ more than the tiles whose scores are their means: the quantiles of scores
    would paint half of every healthy tile in the brightest colour.
    """
    if not isinstance(detector, Reconstructs):
        return None
    _, batches = sample(tiles, _SCALE_TILES, batch=_BATCH, seed=seed)
    found = [detector.difference(cut(part, detector.spec.size)).ravel() for part in batches]
    levels = np.quantile(np.concatenate(found).astype(np.float64), HEALTHY_LEVELS)
    return tuple(levels.tolist())


def _windows(
    slide: StoredSlide, indices: npt.NDArray[np.int64], size: int, rng: np.random.Generator
) -> Iterator[tuple[Tiles, npt.NDArray[np.float64]]]:
    """Yield windows of a slide's tiles, and their corners in level-0 pixels (N, 2)."""
    starts = rng.integers(0, slide.tile - size + 1, size=(len(indices), 2))
    corners = np.full((len(indices), 2), np.nan)
    if slide.has_geometry:
        pixels = slide.grid.pixels
        within = starts[:, ::-1] * (pixels.scale_x, pixels.scale_y)
        corners = slide.column("position")[indices] + within
    for first in range(0, len(indices), _BATCH):
        here = slice(first, first + _BATCH)
        tiles = slide.take(indices[here])
        windows = np.stack(
            [
                tile[y : y + size, x : x + size]
                for tile, (y, x) in zip(tiles, starts[here].tolist(), strict=True)
            ]
        )
        yield windows, corners[here]
