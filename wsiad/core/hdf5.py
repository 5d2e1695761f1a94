"""HDF5 files that other programs made: opened without a lock, and checked before they are read.

Files of tiles have PatchCamelyon's layout: ``x`` uint8 (N, S, S, 3), ``y`` 0 or 1.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
import numpy.typing as npt

from wsiad.core.errors import InputError, WsiadError
from wsiad.core.images import MAX_TILE_PX
from wsiad.core.terminal import counted

_READ_BYTES = 32 * 2**20
_MAX_CHUNK_BYTES = 256 * 2**20
_MAX_LABELS = 100_000_000
_MOST_EXPANSION = 1100
"""Limit of the expansion; deflate makes at most 1032 bytes out of one."""


def open_hdf5(path: Path) -> h5py.File:
    """Open an HDF5 file for reading, without a lock.

    Many network and read-only file systems do not support locks, and two readers need none.
    HDF5_USE_FILE_LOCKING therefore need not be set.

    Raises
    ------
    InputError
        The file is not an HDF5 file, or is damaged.
    """
    try:
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        raise InputError(
            f"cannot be read as HDF5 ({' '.join(str(error).split())})", subject=str(path)
        ) from error


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Report damage that HDF5 finds in its own structures as one kind of error.

    Raises
    ------
    InputError
        The file is damaged; this replaces whatever error h5py raises.
    """
    try:
        yield
    except WsiadError:
        raise
    except Exception as error:  # OSError, RuntimeError, KeyError, TypeError, MemoryError, …
        words = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"is damaged ({words})", subject=str(path), remedy="Copy or make the file again."
        ) from error


def dataset(file: h5py.File, name: str, *, path: Path) -> h5py.Dataset:
    """Return a dataset whose data are in the file itself.

    Links, external storage and virtual datasets could name any other file of this machine.

    Raises
    ------
    InputError
        There is no such dataset, its data are in another file, or its chunks are too large to
        read.
    """
    if not isinstance(file.get(name, getlink=True), h5py.HardLink) or not isinstance(
        file[name], h5py.Dataset
    ):
        raise InputError(
            f"has no dataset `{name}` (it has: {', '.join(sorted(file)[:8]) or 'nothing'})",
            subject=str(path),
            remedy="See docs/interchange.md for the layouts that can be read.",
        )
    found = file[name]
    if found.external or found.is_virtual:
        raise InputError(f"the data of `{name}` are in another file", subject=str(path))
    most = max(1 << 20, _MOST_EXPANSION * path.stat().st_size)
    if math.prod(found.shape or ()) * found.dtype.itemsize > most:
        raise InputError(
            f"`{name}` claims {found.shape} values, more than the file can hold",
            subject=str(path),
            remedy="Copy or make the file again.",
        )
    if found.chunks and math.prod(found.chunks) * found.dtype.itemsize > _MAX_CHUNK_BYTES:
        raise InputError(f"the chunks of `{name}` are too large", subject=str(path))
    return found


class Hdf5Tiles:
    """An open HDF5 file of tiles.

    Parameters
    ----------
    path : Path

    Raises
    ------
    InputError
        The file is not HDF5, or has no dataset ``x`` of square RGB tiles.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = open_hdf5(path)
        try:
            with reading(path):
                self._x = _images(self._file, path)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    @property
    def tile(self) -> int:
        """Edge of the tiles, pixels."""
        return int(self._x.shape[1])

    def __len__(self) -> int:
        return int(self._x.shape[0])

    def tiles(self, chosen: npt.NDArray[np.bool_] | None = None) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield tiles in order, uint8 (tile, tile, 3), read in blocks of complete chunks.

        Raises
        ------
        InputError
            The tiles cannot be decoded, or their number differs from that of ``chosen``.
        """
        if chosen is not None and len(chosen) != len(self):
            raise InputError(
                f"has {counted(len(self), 'tile')}, but {counted(len(chosen), 'label')}",
                subject=str(self._path),
            )
        chunk = self._x.chunks[0] if self._x.chunks else 1
        block = max(1, _READ_BYTES // (self.tile**2 * 3) // chunk) * chunk
        for start in range(0, len(self), block):
            wanted = None if chosen is None else chosen[start : start + block]
            if wanted is not None and not wanted.any():
                continue
            with reading(self._path):
                pixels = self._x[start : start + block]
            yield from pixels if wanted is None else pixels[wanted]


def _images(file: h5py.File, path: Path) -> h5py.Dataset:
    found = dataset(file, "x", path=path)
    shape = tuple(found.shape or ())
    square = len(shape) == 4 and shape[1] == shape[2] and 8 <= shape[1] <= MAX_TILE_PX
    if not square or shape[3] != 3 or found.dtype != np.uint8:
        raise InputError(
            f"its `x` is {found.dtype} {shape}, not uint8 (N, S, S, 3)", subject=str(path)
        )
    return found


def read_labels(path: Path) -> npt.NDArray[np.bool_]:
    """Read ``y``, 0 or 1 for each tile, in a shape such as (N,) or PCam's (N, 1, 1, 1).

    Returns
    -------
    ndarray of bool, (N,)
        True where a tile shows tumour.

    Raises
    ------
    InputError
        The dataset is missing, or holds something other than 0 and 1.
    """
    with reading(path), open_hdf5(path) as file:
        found = dataset(file, "y", path=path)
        shape = found.shape or (0,)
        if math.prod(shape) != shape[0] or shape[0] > _MAX_LABELS or found.dtype.kind not in "biuf":
            raise InputError(
                f"its `y` is {found.dtype} {tuple(shape)}, not one per tile", subject=str(path)
            )
        values: npt.NDArray[Any] = np.asarray(found[...]).reshape(-1)
    if not np.isin(values, (0, 1)).all():
        raise InputError("its `y` holds labels other than 0 and 1", subject=str(path))
    return values.astype(bool)
