"""The facts that a slide's group in a store states, checked before any of them is used.

Metadata are JSON files that anything may have damaged, and the errors that zarr makes of damage
are unpredictable. They are therefore read here. The shape and type of a column are also checked
before memory is reserved for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
import pydantic

from wsiad.core.errors import StoreError
from wsiad.core.files import MOST_FACTS, read_json
from wsiad.core.typed_files import first_fault

if TYPE_CHECKING:
    import zarr

_MOST_BYTES = 1 << 30
_MOST_CHUNK_BYTES = 256 << 20

_MADE_AGAIN = "Delete its folder, and run the command that made it again."

_METADATA = "zarr.json"

_GROUP_KEYS = {"attributes", "zarr_format", "node_type"}
"""Metadata of a group as wsiad writes them."""

_Count = Annotated[int, pydantic.Field(ge=0, le=2**31, strict=True)]
_Pixels = Annotated[int, pydantic.Field(ge=1, le=2**31, strict=True)]
_Edge = Annotated[int, pydantic.Field(ge=1, le=2**15, strict=True)]
_Number = Annotated[float, pydantic.Field(ge=-1e12, le=1e12, allow_inf_nan=False, strict=True)]
_Positive = Annotated[_Number, pydantic.Field(gt=0)]
_Text = Annotated[str, pydantic.Field(strict=True)]
_Map = tuple[_Number, _Number, _Positive, _Positive]


class _Part(pydantic.BaseModel):
    """Part of the attributes; keys that are not listed can hold anything."""


class _Slide(_Part):
    fingerprint: _Text
    geometry: bool = True
    spacing_source: _Text = ""
    size_px: tuple[_Pixels, _Pixels] | None = None
    bounds_px: tuple[_Number, _Number, _Positive, _Positive] | None = None
    spacing_um: tuple[_Positive, _Positive] | None = None


class _Grid(_Part):
    tile_px: _Edge
    stride_px: _Edge | None = None
    columns: _Count | None = None
    rows: _Count | None = None
    pixels: _Map | None = None


class _Tissue(_Part):
    share: Annotated[_Number, pydantic.Field(ge=0, le=1)]
    placement: _Map
    missing_share: Annotated[_Number, pydantic.Field(ge=0, le=1)] = 0.0
    colourless_share: Annotated[_Number, pydantic.Field(ge=0, le=1)] = 0.0


class _Stain(_Part):
    method: _Text
    fallback: _Text | None = None


class _Coordinates(_Part):
    fingerprint: _Text


class _Facts(_Part):
    status: Literal["ok", "no-tissue", "unusable"]
    reason: _Text = ""
    seen: bool = False
    tiles: _Count
    tiles_missing: _Count
    digest: _Text
    pixels: bool = True
    slide: _Slide
    grid: _Grid
    read: dict[str, Any] | None = None
    tissue: _Tissue | None = None
    stain: _Stain
    unusable: dict[str, _Count] = {}
    coordinates: _Coordinates | None = None

    @pydantic.model_validator(mode="after")
    def _check_geometry(self) -> Self:
        slide, grid = self.slide, self.grid
        places = (slide.size_px, slide.bounds_px, slide.spacing_um, grid.stride_px, grid.pixels)
        whole = (*places, grid.columns, grid.rows, self.read, self.tissue)
        if slide.geometry and any(part is None for part in whole):
            raise ValueError("the slide's geometry is incomplete")
        return self


def slide_facts(folder: Path) -> dict[str, Any]:
    """Read and check the attributes of a slide's group; see docs/store-format.md.

    Raises
    ------
    StoreError
        The attributes are missing or damaged.
    """
    facts = group_facts(folder)
    try:
        _Facts.model_validate(facts)
    except pydantic.ValidationError as error:
        problem = f"is damaged: {first_fault(error, whole='the attributes')}"
        raise StoreError(problem, subject=str(folder), remedy=_MADE_AGAIN) from None
    return facts


def group_facts(folder: Path) -> dict[str, Any]:
    """Read the ``wsiad`` attributes of a group without checking their content.

    Raises
    ------
    StoreError
        The group's metadata are missing or damaged.
    """
    path = folder / _METADATA
    values = read_json(path, StoreError, keys=["attributes"], remedy=_MADE_AGAIN, most=MOST_FACTS)
    attributes = values["attributes"]
    facts = attributes.get("wsiad") if isinstance(attributes, dict) else None
    if values.get("zarr_format") != 3 or values.get("node_type") != "group":
        problem = "is not the metadata of a zarr v3 group"
        raise StoreError(problem, subject=str(path), remedy=_MADE_AGAIN)
    if values.keys() - _GROUP_KEYS:
        open_group(folder)  # zarr alone knows what it refuses of other metadata
    if not isinstance(facts, dict):
        raise StoreError("has no attributes of wsiad", subject=str(path), remedy=_MADE_AGAIN)
    return facts


def open_group(folder: Path) -> zarr.Group:
    """Open a group for reading.

    Raises
    ------
    StoreError
        The group is missing or damaged; or its metadata, or that of one of its arrays, is larger
        than what wsiad writes.
    """
    import zarr

    try:
        for path in (folder / _METADATA, *folder.glob(f"*/{_METADATA}")):
            if path.stat().st_size > MOST_FACTS:
                raise ValueError(f"{path} has more than {MOST_FACTS >> 20} MiB")  # noqa: TRY301
        return zarr.open_group(folder, mode="r")
    except Exception as error:  # what zarr makes of damaged metadata has no end
        raise _damaged(folder, error) from error


def read_column(
    group: zarr.Group,
    name: str,
    *,
    folder: Path,
    shape: Sequence[int | None] | None = None,
    kind: npt.DTypeLike | None = None,
    whole: bool = False,
) -> npt.NDArray[Any]:
    """Read a complete array of a group.

    Parameters
    ----------
    group : zarr.Group
    name : str
    folder : Path
        Folder of the group.
    shape : sequence of int or None, optional
        Shape that the array must have; ``None`` stands for any length.
    kind : dtype, optional
        Type that the array must have.
    whole : bool
        Require every chunk to be present. By default a missing chunk is read as zeros, because
        zarr does not write chunks that hold only zeros.

    Raises
    ------
    StoreError
        The array is missing or damaged, or has another shape or type.
    """
    try:
        array = _checked(group, name, shape, None if kind is None else np.dtype(kind))
        if whole and array.size and array.nchunks_initialized < array.nchunks:
            raise ValueError("a chunk is missing")  # noqa: TRY301 - said as all else is
        values = np.asarray(array[...])
    except Exception as error:  # what zarr and its codecs make of damage has no end
        raise _damaged(folder / name, error) from error
    return values


def array_shape(
    group: zarr.Group, name: str, *, folder: Path, kind: npt.DTypeLike
) -> tuple[int, ...]:
    """Return the shape of an array that is read in parts; every chunk must be present.

    Raises
    ------
    StoreError
        The array is missing or damaged, or has another type.
    """
    import zarr

    try:
        array = group[name]
        if not isinstance(array, zarr.Array) or array.dtype != np.dtype(kind):
            raise TypeError(f"it is not an array of {kind}")  # noqa: TRY301 - said as all else is
        if not 0 < math.prod(array.chunks) * array.dtype.itemsize <= _MOST_CHUNK_BYTES:
            raise ValueError(f"it claims chunks of {array.chunks}")  # noqa: TRY301
        if array.size and array.nchunks_initialized < array.nchunks:
            raise ValueError("a chunk is missing")  # noqa: TRY301
    except Exception as error:  # what zarr makes of damaged metadata has no end
        raise _damaged(folder / name, error) from error
    return tuple(array.shape)


def _checked(
    group: zarr.Group, name: str, shape: Sequence[int | None] | None, kind: np.dtype[Any] | None
) -> zarr.Array[Any]:
    import zarr

    array = group[name]
    if not isinstance(array, zarr.Array):
        raise TypeError("it is not an array")
    wanted = [None] * array.ndim if shape is None else shape
    fits = len(array.shape) == len(wanted) and all(
        length in (None, there) for length, there in zip(wanted, array.shape, strict=True)
    )
    if not fits or kind not in (None, array.dtype):
        words = ", ".join("any" if length is None else str(length) for length in wanted)
        raise ValueError(f"it is {array.dtype} {array.shape}, not {kind} ({words})")
    item, chunk = array.dtype.itemsize, math.prod(array.chunks)
    most = _MOST_CHUNK_BYTES // max(1, item)
    if math.prod(array.shape) * item > _MOST_BYTES or not 0 < chunk <= most:
        raise ValueError(f"it claims {array.shape} in chunks of {array.chunks}")
    if not _reads_whole(array):
        raise ValueError("the names of its chunks are not those that wsiad writes")
    return array


def _reads_whole(array: zarr.Array[Any]) -> bool:
    """Tell whether missing chunks read as zeros, and chunks have the names that wsiad writes."""
    names = getattr(array.metadata, "chunk_key_encoding", None)
    return getattr(names, "separator", None) == "/" and not np.any(array.fill_value)


def _damaged(what: Path, error: Exception) -> StoreError:
    words = " ".join(str(error).split())[:200] or type(error).__name__
    return StoreError(f"is damaged: {words}", subject=str(what))
