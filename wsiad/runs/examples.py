"""Healthy examples of a run: some of the tiles that it was fitted on, to be shown as evidence.

They are drawn by the seed, evenly over the slides, and stored in one safetensors file, so that they
are complete or absent. The metadata of the file have one JSON value, `wsiad`, because the order of
several would not be fixed.

====================  ===================================================================
``embedding``         float32 (N, D), the detector's own features of each example
``slide``             int32 (N,), index of its slide in the metadata's ``slides``
``position``          float64 (N, 2), x and y of its top-left corner, level-0 pixels; NaN
                      for imported tiles, whose positions are not known
``picture``           uint8 (B,), the examples as JPEG files, one after the other
``picture_end``       int64 (N,), end of each JPEG file in ``picture``
====================  ===================================================================
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
import pydantic
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from wsiad.core.config import Config
from wsiad.core.errors import DetectorError, InputError, RunError
from wsiad.core.files import atomic_file, parse_json
from wsiad.core.images import decode, jpeg
from wsiad.core.terminal import Progress
from wsiad.learning.detector import Detector, Embedding, Embeds, Reconstructs, Tiles, TileSource
from wsiad.learning.feature_source import ReadsFeatures, embeddings
from wsiad.pictures.colour_scale import HEALTHY_LEVELS, ColourScale
from wsiad.runs.anomalies import spread
from wsiad.runs.claim import EXAMPLES
from wsiad.runs.split import SlideTiles
from wsiad.store.stored_slide import StoredSlide
from wsiad.store.tile_source import StoreTiles

_METADATA = "wsiad"
_TENSORS = {
    "embedding": (np.float32, 2),
    "slide": (np.int32, 1),
    "position": (np.float64, 2),
    "picture": (np.uint8, 1),
    "picture_end": (np.int64, 1),
}


class _About(Config):
    format: Literal[1] = 1
    mpp: pydantic.PositiveFloat
    size_px: pydantic.PositiveInt
    slides: tuple[str, ...]
    difference: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class HealthyExamples:
    """Healthy tiles as a detector saw them, with the detector's features of them.

    Parameters
    ----------
    slides : tuple of str
        Name of the slide of each example. Names can contain any text: escape them where they
        are shown, and make no paths of them.
    positions : ndarray of float64, (N, 2)
        x, y of the top-left corner of each example, level-0 pixels; NaN where it is not known.
    pictures : tuple of bytes
        JPEG file of each example, ``size`` × ``size`` px.
    embedding : ndarray of float32, (N, D)
        Features of each example, see :class:`wsiad.learning.detector.Embeds`.
    size : int
        Edge of an example, pixels: the size of the detector's input.
    mpp : float
        Scale of the examples, µm/px.
    difference : tuple of float or None
        Quantiles, at :data:`wsiad.pictures.colour_scale.HEALTHY_LEVELS`, of the differences between
        places of healthy tiles that were held out from the fit and their reconstructions;
        ``None`` if the detector does not reconstruct.
    """

    slides: tuple[str, ...]
    positions: npt.NDArray[np.float64]
    pictures: tuple[bytes, ...]
    embedding: Embedding
    size: int
    mpp: float
    difference: tuple[float, ...] | None = None

    def __len__(self) -> int:
        return len(self.slides)

    def nearest(
        self, vector: npt.NDArray[np.float32], count: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Find the examples that are nearest to a vector, by Euclidean distance.

        Parameters
        ----------
        vector : ndarray of float32, (D,)
            Features of a window.
        count : int
            Number of examples; fewer are returned if there are fewer.

        Returns
        -------
        indices : ndarray of int64, (K,)
            Indices of the examples, nearest first; of equally near ones the earlier first.
        distances : ndarray of float64, (K,)
            Distances of these examples, ascending.

        Raises
        ------
        RunError
            The vector has another number of features than the examples.
        """
        if vector.shape != self.embedding.shape[1:]:
            raise RunError(
                f"its healthy examples have {self.embedding.shape[1]} features, but the "
                f"detector returned {vector.shape}",
                subject=EXAMPLES,
                remedy="Train the detector again.",
            )
        away = self.embedding.astype(np.float64) - vector.astype(np.float64)
        distances = np.sqrt(np.square(away).sum(axis=1))
        indices = np.argsort(distances, kind="stable")[:count]
        return indices, distances[indices]

    def picture(self, index: int) -> bytes:
        """Return the JPEG file of an example, after checking that it can be decoded.

        Raises
        ------
        RunError
            The file is damaged.
        """
        try:
            decode(self.pictures[index], subject=f"example {index}", tile=self.size)
        except InputError as error:
            raise RunError(f"is damaged: {error}", subject=EXAMPLES) from error
        return self.pictures[index]

    def write(self, path: Path) -> None:
        """Write the examples to a file, atomically; equal examples give equal bytes."""
        names = tuple(dict.fromkeys(self.slides))
        number = {name: place for place, name in enumerate(names)}
        tensors = {
            "embedding": np.ascontiguousarray(self.embedding, np.float32),
            "slide": np.array([number[name] for name in self.slides], np.int32),
            "position": np.ascontiguousarray(self.positions, np.float64),
            "picture": np.frombuffer(b"".join(self.pictures), np.uint8),
            "picture_end": np.cumsum([len(picture) for picture in self.pictures], dtype=np.int64),
        }
        about = _About(mpp=self.mpp, size_px=self.size, slides=names, difference=self.difference)
        with atomic_file(path) as partial:
            save_file(tensors, str(partial), metadata={_METADATA: about.model_dump_json()})

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read examples from a file that :meth:`write` wrote.

        Raises
        ------
        RunError
            The file is missing, damaged or of an unknown format version.
        """
        try:
            with safe_open(path, framework="numpy") as file:
                about = _About.model_validate(parse_json((file.metadata() or {})[_METADATA]))
                if about.difference is not None:
                    ColourScale.from_healthy(about.difference)  # to be sure that it can be
                found = {name: file.get_tensor(name) for name in _TENSORS}
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            raise _damaged(path, str(error)) from error
        if fault := _fault(found, slides=len(about.slides)):
            raise _damaged(path, fault)
        ends = found["picture_end"].tolist()
        data = found["picture"].tobytes()
        return cls(
            slides=tuple(about.slides[place] for place in found["slide"].tolist()),
            positions=found["position"],
            pictures=tuple(data[first:end] for first, end in zip([0, *ends], ends, strict=False)),
            embedding=found["embedding"],
            size=about.size_px,
            mpp=about.mpp,
            difference=about.difference,
        )


def _fault(found: dict[str, npt.NDArray[np.generic]], *, slides: int) -> str:
    """Return the first fault of the tensors, or an empty text if there is none."""
    for name, (kind, axes) in _TENSORS.items():
        if found[name].dtype != kind or found[name].ndim != axes:
            return f"{name} is {found[name].dtype} of {found[name].ndim} axes"
    count = len(found["slide"])
    shapes = [found["embedding"].shape[:1], found["picture_end"].shape]
    if not count or {*shapes} != {(count,)} or found["position"].shape != (count, 2):
        return "its parts are of different lengths"
    if not np.isfinite(found["embedding"]).all():
        return "an embedding is not finite"
    ends = np.concatenate([[0], found["picture_end"]])
    if (np.diff(ends) <= 0).any() or ends[-1] != len(found["picture"]):
        return "its pictures do not end at the stated positions"
    places = found["slide"].astype(np.int64)
    return "" if places.min() >= 0 and places.max() < slides else "a slide has no name"


def _damaged(path: Path, why: str) -> RunError:
    return RunError(f"cannot be read ({why})", subject=str(path), remedy="Train again.")


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

    The example of a tile larger than the detector's input is a random window in it.

    Parameters
    ----------
    detector : Detector
        Fitted detector.
    part : sequence of SlideTiles
        Tiles that the detector was fitted on; at least one.
    by_name : mapping of str to (StoredSlide, ndarray of int64)
        Slides with their usable tiles; the indices of ``part`` refer to the latter.
    held_out : TileSource
        Healthy tiles that were not fitted on, for the scale of differences.
    count : int
        Number of examples; fewer are chosen if there are fewer tiles.
    seed : int
        Seed; the same seed and tiles give the same examples.
    quiet : bool
        Show no progress.

    Returns
    -------
    HealthyExamples or None
        The examples; ``None`` if the detector has no features to compare, ``count`` is 0, or the
        store holds features without tiles.

    Raises
    ------
    StoreError
        A chunk is damaged or missing.
    DetectorError
        A feature is not finite.
    """
    if not count or not isinstance(detector, Embeds):
        return None
    if not all(by_name[item.slide][0].has_pixels for item in part):
        return None  # there is nothing to show
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
            tiles = StoreTiles([(by_name[name][0], chosen[name])])
            stored = isinstance(detector, ReadsFeatures) and detector.reads(tiles)
            if stored:
                vectors += embeddings(detector, tiles, batch=_BATCH)
            parts = _windows(by_name[name][0], chosen[name], detector.spec.size, rng)
            for windows, corners in parts:
                names += [name] * len(windows)
                pictures += [jpeg(window, quality=_QUALITY) for window in windows]
                positions.append(corners)
                if not stored:
                    vectors.append(detector.embed(windows))
                progress.update(len(windows))
    embedding = np.concatenate(vectors)
    if not np.isfinite(embedding).all():
        raise DetectorError(
            "the detector's features of healthy tiles are not finite",
            remedy="Fit it again; use a smaller learning_rate for a trained method.",
        )
    return HealthyExamples(
        slides=tuple(names),
        positions=np.concatenate(positions),
        pictures=tuple(pictures),
        embedding=embedding,
        size=detector.spec.size,
        mpp=detector.spec.mpp,
        difference=_differences(detector, held_out, seed=seed),
    )


def _differences(detector: Detector, tiles: TileSource, *, seed: int) -> tuple[float, ...] | None:
    """Return quantiles of the differences at places of healthy tiles.

    Differences at places vary more than the scores of tiles, which are their means. With the
    quantiles of scores, half of every healthy tile would have the brightest colour.
    """
    if not isinstance(detector, Reconstructs):
        return None
    from wsiad.learning.batches import sample
    from wsiad.learning.batches import windows as cut

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
