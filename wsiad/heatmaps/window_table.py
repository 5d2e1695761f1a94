"""Tables of windows as ``.npy`` files: those that were scored, and those that were left out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiad.core.errors import WsiadError

_MOST_HEADER = 10_000


def read_window_table(
    path: Path, fields: Sequence[str], error: type[WsiadError], *, remedy: str | None = None
) -> npt.NDArray[Any]:
    """Open a ``.npy`` file that holds a table of numbers, memory-mapped.

    Nothing of what its header claims is believed before it fits the file.

    Parameters
    ----------
    path : Path
    fields : sequence of str
        Columns that it has to have.
    error : type
        Of the error where it cannot be read.
    remedy : str, optional

    Returns
    -------
    structured ndarray, (N,)
        Read-only.

    Raises
    ------
    WsiadError
        An `error`: there is no such file, or it is not such a table, or cut short.
    """
    try:
        return _read(path, fields)
    except Exception as cause:  # what numpy makes of a damaged header has no end
        words = " ".join(str(cause).split())[:200] or type(cause).__name__
        raise error(
            f"is damaged or cannot be read: {words}", subject=str(path), remedy=remedy
        ) from cause


def _read(path: Path, fields: Sequence[str]) -> npt.NDArray[Any]:
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        headers = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        shape, _, dtype = headers[version](file, max_header_size=_MOST_HEADER)
        start, size = file.tell(), os.fstat(file.fileno()).st_size
    kinds = [dtype[name] for name in dtype.names or ()]
    if len(shape) != 1 or not set(fields) <= set(dtype.names or ()):
        raise ValueError(f"it is no table of {', '.join(fields)}")
    if any(kind.kind not in "biufU" or kind.shape for kind in kinds):
        raise ValueError("its columns are not numbers")
    if start + shape[0] * dtype.itemsize != size:
        raise ValueError(f"it has {size} bytes, and its header says {shape[0]} rows")
    if not shape[0]:
        return np.empty(0, dtype)
    return np.memmap(path, dtype, "r", start, shape)
