"""Features that other programs computed, in their HDF5 files, and the lattice of their tiles.

TRIDENT and CLAM keep a file for each slide with ``features``, (N, D) or (1, N, D), and ``coords``,
(N, 2): x and y of the tiles' top-left corners in level-0 pixels. TRIDENT states the tiles in the
attributes of ``coords``, CLAM states nothing.

A file is not trusted. Its sizes are checked before anything is read, and it is read in blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
import numpy.typing as npt

from wsiad.core.errors import InputError
from wsiad.core.geometry import Grid, PixelMap, TilePx
from wsiad.core.hdf5 import dataset, open_hdf5, reading
from wsiad.core.terminal import by_number, counted

_MOST_TILES = 5_000_000
_MOST_VALUES = 1 << 16
_MOST_PX = 1 << 31
_BLOCK_BYTES = 32 << 20
_FINER = 4
"""Steps of the lattice in a tile, for tiles that are on no common lattice."""
_MASK_UM = 8.0
_MOST_MASK_PX = 1 << 24
_ON_LATTICE_PX = 1.0

Corners = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


class FeatureFile:
    """An open file of the features of a slide.

    Parameters
    ----------
    path : Path
        HDF5 file.

    Raises
    ------
    InputError
        The file is not HDF5, or holds no features with coordinates of a plausible size.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open_hdf5(path)
        try:
            with reading(path):
                self._features = _features(self._file, path)
                self._corners, self.stated = _coordinates(self._file, path)
                _check_as_many(len(self), len(self._corners), path)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return int(self._features.shape[-2])

    @property
    def channels(self) -> int:
        """Number of values of a tile."""
        return int(self._features.shape[-1])

    @property
    def corners(self) -> Corners:
        """Top-left corners x, y of the tiles, level-0 pixels, float64 (N, 2)."""
        return self._corners

    def blocks(self, indices: Indices) -> Iterator[npt.NDArray[np.float32]]:
        """Yield the features of tiles, float32 (n, 1, 1, D), in the order of their indices.

        The file is read in the order of its own rows, block by block.

        Parameters
        ----------
        indices : ndarray of int64, (N,)
            Tiles in the order in which they are wanted.

        Raises
        ------
        InputError
            The features cannot be decoded, or one is not finite.
        """
        rows = max(1, _BLOCK_BYTES // (4 * self.channels))
        for start in range(0, len(indices), rows):
            wanted = indices[start : start + rows]
            low, high = int(wanted.min()), int(wanted.max()) + 1
            spread = high - low > 4 * len(wanted)
            with reading(self.path):
                if spread:
                    found = np.stack([self._read(i, i + 1)[0] for i in wanted.tolist()])
                else:
                    found = self._read(low, high)[wanted - low]
            if not np.isfinite(found).all():
                at = int(wanted[~np.isfinite(found).all(axis=1)][0])
                raise InputError(
                    f"the features of tile {at} are not finite",
                    subject=str(self.path),
                    remedy="Compute them again, in float32.",
                )
            yield found.astype(np.float32).reshape(len(wanted), 1, 1, self.channels)

    def _read(self, start: int, stop: int) -> npt.NDArray[Any]:
        one = self._features.ndim == 3
        return np.asarray(self._features[0, start:stop] if one else self._features[start:stop])


def _features(file: h5py.File, path: Path) -> h5py.Dataset:
    found = dataset(file, "features", path=path)
    shape = tuple(found.shape or ())
    fits = len(shape) == 2 or (len(shape) == 3 and shape[0] == 1)
    if not fits or found.dtype.kind != "f" or found.dtype.itemsize > 8:
        raise InputError(
            f"its `features` are {found.dtype} {shape}, not floats (N, D) or (1, N, D)",
            subject=str(path),
        )
    if not (0 < shape[-2] <= _MOST_TILES and 0 < shape[-1] <= _MOST_VALUES):
        raise InputError(
            f"its `features` are of {counted(shape[-2], 'tile')} with "
            f"{counted(shape[-1], 'value')}; 1 to {_MOST_TILES} "
            f"tiles and 1 to {_MOST_VALUES} values can be read",
            subject=str(path),
        )
    return found


def _coordinates(file: h5py.File, path: Path) -> tuple[Corners, dict[str, float]]:
    found = dataset(file, "coords", path=path)
    shape = tuple(found.shape or ())
    if len(shape) == 3 and shape[0] == 1:
        shape = shape[1:]
    if len(shape) != 2 or shape[1] != 2 or found.dtype.kind not in "iuf" or shape[0] > _MOST_TILES:
        raise InputError(
            f"its `coords` are {found.dtype} {tuple(found.shape or ())}, not numbers (N, 2)",
            subject=str(path),
        )
    corners = np.asarray(found[...], np.float64).reshape(-1, 2)
    if not np.isfinite(corners).all() or (np.abs(corners) > _MOST_PX).any():
        raise InputError("has coordinates that are no level-0 pixels", subject=str(path))
    names = ("patch_size", "patch_size_level0", "level0_width", "level0_height")
    stated = {}
    for name in names:
        value = found.attrs.get(name)
        if np.isscalar(value) and np.isreal(value) and 0 < float(value) <= _MOST_PX:  # type: ignore[arg-type]
            stated[name] = float(value)  # type: ignore[arg-type]
    return corners, stated


def _check_as_many(features: int, corners: int, path: Path) -> None:
    if features != corners:
        raise InputError(
            f"has {counted(features, 'feature')} and {counted(corners, 'coordinate')}",
            subject=str(path),
        )


@dataclass(frozen=True, slots=True)
class Layout:
    """Placement of a slide's tiles on a lattice.

    Parameters
    ----------
    grid : Grid
        Grid of the tiles.
    indices : ndarray of int64, (N,)
        Used tiles of the file, row by row.
    lattice : ndarray of int32, (N, 2)
        Row and column of each of them.
    moved_px : float
        Largest distance from a tile's own corner, level-0 pixels, along x or y.
    doubled : int
        Number of tiles that are left out because another one has their place.
    """

    grid: Grid
    indices: Indices
    lattice: npt.NDArray[np.int32]
    moved_px: float
    doubled: int


def lay_out(corners: Corners, *, tile: int, edge: float) -> Layout:
    """Place tiles on a lattice.

    Tiles that are a multiple of their edge apart keep their places. All others are moved to the
    nearest place of a lattice of a quarter (or a third, or half) of a tile, by half of that at the
    most. Of several tiles in one place the first is used.

    Parameters
    ----------
    corners : ndarray of float64, (N, 2)
        Top-left corners x, y, level-0 pixels.
    tile : int
        Edge of a tile, pixels.
    edge : float
        Edge of a tile, level-0 pixels.
    """
    origin = corners.min(axis=0)
    stride = tile
    places = (corners - origin) / edge
    off = np.abs(places - np.rint(places)).max() * edge
    if off > _ON_LATTICE_PX:
        finer = next((n for n in (_FINER, 3, 2) if tile % n == 0), 1)
        stride = tile // finer
    step = edge * stride / tile
    columns_rows = np.rint((corners - origin) / step).astype(np.int64)
    moved = float(np.abs(columns_rows * step + origin - corners).max())
    lattice, first = np.unique(columns_rows[:, ::-1], axis=0, return_index=True)
    scale = edge / tile
    rows, columns = (int(n) + 1 for n in lattice.max(axis=0))
    grid = Grid(
        tile=TilePx(tile),
        stride=TilePx(stride),
        columns=columns,
        rows=rows,
        pixels=PixelMap(float(origin[0]), float(origin[1]), scale, scale),
    )
    return Layout(
        grid=grid,
        indices=first.astype(np.int64),
        lattice=lattice.astype(np.int32),
        moved_px=0.0 if moved <= _ON_LATTICE_PX else moved,
        doubled=len(corners) - len(first),
    )


def mask_of(layout: Layout, *, mpp: float) -> tuple[npt.NDArray[np.bool_], PixelMap]:
    """Draw the tiles as a mask at about 8 µm/px; return it with its place on the slide."""
    grid = layout.grid
    stride_um = grid.stride * mpp
    fine = max(1, round(stride_um / _MASK_UM))
    while fine > 1 and (grid.rows + 4) * (grid.columns + 4) * fine**2 > _MOST_MASK_PX:
        fine -= 1
    reach = grid.tile // grid.stride
    cells = np.zeros((grid.rows + reach - 1, grid.columns + reach - 1), bool)
    for down in range(reach):
        for right in range(reach):
            cells[layout.lattice[:, 0] + down, layout.lattice[:, 1] + right] = True
    mask = cells.repeat(fine, axis=0).repeat(fine, axis=1)
    step = grid.stride * grid.pixels.scale_x / fine
    return mask, PixelMap(grid.pixels.x, grid.pixels.y, step, step)


def tile_edge(stated: dict[str, float], *, tile: int, mpp: float, slide_mpp: float | None) -> float:
    """Return the edge of a tile in level-0 pixels, as the file or the user states it.

    Raises
    ------
    InputError
        Nobody states it.
    """
    if (edge := stated.get("patch_size_level0")) is not None:
        return edge
    if slide_mpp is None:
        raise InputError(
            "does not state the size of its tiles on level 0 (`patch_size_level0`)",
            remedy="Set --slide-mpp, the µm/px of level 0, and --tile, the edge of the tiles.",
        )
    return tile * mpp / slide_mpp


def check_lattice(layout: Layout, path: Path) -> None:
    """Refuse tiles that are spread over an absurd lattice.

    Raises
    ------
    InputError
        The lattice has more places than can be drawn.
    """
    places = math.prod((layout.grid.rows, layout.grid.columns))
    if places > 4 * _MOST_MASK_PX or places > max(1 << 20, 100_000 * len(layout.indices)):
        raise InputError(
            f"its {counted(len(layout.indices), 'tile')} "
            f"{by_number(len(layout.indices), 'is', 'are')} spread over {places} places",
            subject=str(path),
            remedy="Check that its coordinates are in level-0 pixels.",
        )


def feature_files(paths: Sequence[Path]) -> list[Path]:
    """List HDF5 files, and those in folders (also in their ``h5_files/``), sorted by folder.

    Raises
    ------
    InputError
        A path does not exist, or a folder holds no HDF5 file.
    """
    found = []
    for path in paths:
        if path.is_file():
            found.append(path)
            continue
        if not path.is_dir():
            raise InputError("there is no such file or folder", subject=str(path))
        inner = path / "h5_files"  # of CLAM
        folder = inner if inner.is_dir() else path
        files = sorted(p for p in folder.iterdir() if p.suffix == ".h5" and p.name[0] != ".")
        if not files:
            raise InputError(
                "holds no HDF5 files of features",
                subject=str(path),
                remedy="Pass TRIDENT's folder features_<encoder>, or CLAM's h5_files.",
            )
        found += files
    return found
