"""Score maps of the healthy slides that a run was calibrated with.

A quantile of single windows does not tell how strange a neighbourhood can be on healthy tissue.
For that a run keeps where the windows of its calibration slides lie, with their scores, in one
safetensors file: a float32 tensor (H, W) for each slide, NaN where there was no window. Runs
whose slides were split by tile, or whose tiles have no positions, have none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
import numpy.typing as npt
import pydantic
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from wsiad.core.config import Config
from wsiad.core.errors import RunError, StoreError
from wsiad.core.files import atomic_file, parse_json
from wsiad.core.geometry import SquareMicrons
from wsiad.core.terminal import counted
from wsiad.learning.detector import Scores
from wsiad.runs.split import HealthySplit

if TYPE_CHECKING:
    from wsiad.store.stored_slide import StoredSlide

_METADATA = "wsiad"
_MOST_PIXELS = 1 << 30
"""Maximum number of pixels of all maps together: 4 GiB, a thousand slides of a million windows."""


_Pixel = tuple[pydantic.PositiveFloat, pydantic.PositiveFloat]


class _About(Config):
    format: Literal[1] = 1
    pixel_um: pydantic.PositiveFloat | tuple[_Pixel, ...]
    window_um: pydantic.PositiveFloat
    slides: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class HealthyMap:
    """Scores of the windows of a healthy slide, where they lie.

    Parameters
    ----------
    slide : str
        Name of the slide.
    scores : ndarray of float32, (H, W)
        NaN where there was no window.
    pixel_um : tuple of float
        Width and height of a pixel, µm.
    """

    slide: str
    scores: npt.NDArray[np.float32]
    pixel_um: tuple[float, float]


@dataclass(frozen=True, slots=True, eq=False)
class HealthyMaps:
    """Maps of the calibration slides of a run.

    Parameters
    ----------
    maps : tuple of HealthyMap
        One a slide, with at least one window each.
    window : SquareMicrons
        Area of a window, µm².
    """

    maps: tuple[HealthyMap, ...]
    window: SquareMicrons

    def __len__(self) -> int:
        return len(self.maps)

    @classmethod
    def of(
        cls,
        split: HealthySplit,
        slides: Mapping[str, tuple[StoredSlide, npt.NDArray[np.int64]]],
        scores: Scores,
        *,
        size: int,
        mpp: float,
    ) -> Self | None:
        """Put the scores of calibration windows where the windows lie.

        Parameters
        ----------
        split : HealthySplit
            Its part for calibration gave the scores.
        slides : mapping of str to (StoredSlide, ndarray of int64)
            Slides by name, with the indices of their usable tiles.
        scores : ndarray of float32, (N,)
            Scores of all windows of all tiles, in order.
        size, mpp : int, float
            Edge of a window, pixels, and their size, µm.

        Returns
        -------
        HealthyMaps or None
            ``None`` where slides have no geometry, or were fitted on in part.

        Raises
        ------
        StoreError
            A slide's positions are damaged.
        """
        parts = [(slides[part.slide], part) for part in split.calibration]
        if not split.by_slide or not all(slide.has_geometry for (slide, _), _ in parts):
            return None
        maps, start = [], 0
        for (slide, usable), part in parts:
            grid = slide.grid
            side = grid.tile // size
            stop = start + len(part.indices) * side**2
            cut = scores[start:stop].reshape(-1, side, side)
            start = stop
            lattice = slide.column("lattice")[usable[part.indices]]
            if (lattice >= (grid.rows, grid.columns)).any():
                raise StoreError(
                    "is damaged: a tile lies outside of its grid",
                    subject=str(slide.folder / "lattice"),
                    remedy="Delete the slide's folder and run wsiad tile again.",
                )
            maps.append(HealthyMap(part.slide, *_placed(lattice, cut, grid.stride * mpp / side)))
        return cls(tuple(maps), SquareMicrons((size * mpp) ** 2))

    def write(self, path: Path) -> None:
        """Write the maps to a file, atomically; equal maps give equal bytes."""
        pixels = tuple(one.pixel_um for one in self.maps)
        first = pixels[0][0]
        about = _About(
            pixel_um=first if set(pixels) == {(first, first)} else pixels,
            window_um=float(self.window) ** 0.5,
            slides=tuple(one.slide for one in self.maps),
        )
        tensors = {f"{number:06}": one.scores for number, one in enumerate(self.maps)}
        with atomic_file(path) as partial:
            save_file(tensors, str(partial), metadata={_METADATA: about.model_dump_json()})

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read maps from a file that :meth:`write` wrote.

        Raises
        ------
        RunError
            The file is missing, damaged or of an unknown format version.
        """
        try:
            with safe_open(path, framework="numpy") as file:
                about = _About.model_validate(parse_json((file.metadata() or {})[_METADATA]))
                names = sorted(file.keys())
                pixels = sum(math.prod(file.get_slice(name).get_shape()) for name in names)
                few = pixels <= _MOST_PIXELS
                found = [file.get_tensor(name) for name in names] if few else []
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            raise _damaged(path, str(error)) from error
        if not few:
            raise _damaged(path, f"maps of {pixels:,} pixels; at most {_MOST_PIXELS:,} are read")
        if len(found) != len(about.slides) or not found:
            raise _damaged(
                path, f"{counted(len(found), 'map')} of {counted(len(about.slides), 'slide')}"
            )
        for name, scores in zip(about.slides, found, strict=True):
            sound = scores.ndim == 2 and scores.dtype == np.float32
            if not sound or np.isinf(scores).any() or np.isnan(scores).all():
                raise _damaged(path, f"the map of {name} is not one of scores")
        pixels = about.pixel_um
        if not isinstance(pixels, tuple):
            pixels = ((pixels, pixels),) * len(found)
        if len(pixels) != len(found):
            raise _damaged(
                path, f"sizes of pixels of {len(pixels)} of {counted(len(found), 'map')}"
            )
        maps = tuple(HealthyMap(*one) for one in zip(about.slides, found, pixels, strict=True))
        return cls(maps, SquareMicrons(about.window_um**2))


def _placed(
    lattice: npt.NDArray[np.int64], scores: Scores, pixel_um: float
) -> tuple[npt.NDArray[np.float32], tuple[float, float]]:
    """Return the map of a slide's windows, and the size of its pixels, µm.

    Parameters
    ----------
    lattice : ndarray of int, (N, 2)
        Row and column of each tile.
    scores : ndarray of float32, (N, m, m)
        Scores of its windows.
    pixel_um : float
        Step from window to window, µm.
    """
    side = scores.shape[1]
    steps = np.arange(side)
    columns = (lattice[:, 1, None, None] * side + steps).repeat(side, axis=1).ravel()
    rows = (lattice[:, 0, None, None] * side + steps[:, None]).repeat(side, axis=2).ravel()
    columns, rows = columns - columns.min(), rows - rows.min()
    placed = np.full((rows.max() + 1, columns.max() + 1), np.nan, np.float32)
    placed[rows, columns] = scores.ravel()
    return placed, (pixel_um, pixel_um)


def _damaged(path: Path, why: str) -> RunError:
    return RunError(
        f"is damaged or not a file of healthy maps: {' '.join(why.split())[:200]}",
        subject=str(path),
        remedy="Train again, or copy the run again.",
    )
