"""A slide's group in a tile store, open for reading (docs/store-format.md)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from wsiad.core.errors import StoreError
from wsiad.core.geometry import Box, Grid, Mpp, PixelMap, Size, Spacing, TilePx
from wsiad.core.terminal import counted
from wsiad.store.group_facts import array_shape, open_group, read_column, slide_facts
from wsiad.store.shards import ShardReader
from wsiad.tissue.quality import COLUMNS, LeftOut, Reason, judge
from wsiad.tissue.tissue_options import QualityThresholds

_FEATURES_AT_ONCE = 1024
_UNCHECKED = (
    "it has no tiles, and the version of wsiad that tiled it did not check whether all of it was "
    "seen: delete {folder} and tile it again"
)


_COLUMNS: dict[str, tuple[tuple[int | None, ...], str]] = {
    "position": ((0, 2), "float64"),
    "lattice": ((0, 2), "int32"),
    "coverage": ((0,), "float32"),
    **dict.fromkeys(COLUMNS, ((0,), "float32")),
    "source_name": ((0, None), "uint8"),
    "left_out_lattice": ((None, 2), "int32"),
    "left_out_reason": ((None,), "uint8"),
    "mask": ((None, None), "bool"),
    "pen_mask": ((None, None), "bool"),
    "damaged_mask": ((None, None), "bool"),
    "usable": ((0,), "bool"),
}
"""Shape and type of each column; 0 stands for the number of tiles, ``None`` for any length."""


@dataclass(frozen=True, slots=True)
class StoredSlide:
    """A slide's group in a store, open for reading.

    Parameters
    ----------
    name : str
    group : zarr.Group
    facts : dict
        The group's ``wsiad`` attributes; see docs/store-format.md.
    folder : Path
        Folder of the group.
    reader : ShardReader or None
        Reader of the tiles; ``None`` if only zarr can read them.
    """

    name: str
    group: zarr.Group
    facts: dict[str, Any]
    folder: Path
    reader: ShardReader | None

    def __len__(self) -> int:
        return int(self.facts["tiles"])

    @property
    def store(self) -> Path:
        """Folder of the store."""
        return self.folder.parents[len(Path(self.name).parts)]

    @property
    def status(self) -> str:
        """Status, ``"ok"``, ``"no-tissue"``, or ``"unusable"`` if it could not be looked at."""
        status = str(self.facts["status"])
        return "unusable" if status == "no-tissue" and not self.facts.get("seen") else status

    @property
    def reason(self) -> str:
        """Reason why the slide is ``"unusable"``; empty for all others."""
        if self.status != "unusable":
            return ""
        if self.facts["status"] == "unusable":
            return str(self.facts.get("reason", "none of its tiles passes the quality thresholds"))
        return _UNCHECKED.format(folder=self.folder)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the slide's file when it was tiled."""
        return str(self.facts["slide"]["fingerprint"])

    @property
    def has_geometry(self) -> bool:
        """True where the tiles' positions on a slide are known; imported tiles have none.

        A slide without geometry has no size, bounds, spacing or grid, and no columns of positions.
        """
        return bool(self.facts["slide"].get("geometry", True))

    @property
    def has_pixels(self) -> bool:
        """True where the tiles are stored; of imported features only their positions are."""
        return bool(self.facts.get("pixels", True))

    @property
    def tile(self) -> TilePx:
        """Edge of the square tiles, pixels at the store's µm/px."""
        return TilePx(self.facts["grid"]["tile_px"])

    @property
    def size(self) -> Size:
        """Width and height of the slide, level-0 pixels."""
        return Size(*self.facts["slide"]["size_px"])

    @property
    def bounds(self) -> Box:
        """Non-empty part of the slide, level-0 pixels."""
        return Box(*self.facts["slide"]["bounds_px"])

    @property
    def spacing(self) -> Spacing:
        """Size of a level-0 pixel, µm."""
        x, y = self.facts["slide"]["spacing_um"]
        return Spacing(Mpp(x), Mpp(y))

    @property
    def grid(self) -> Grid:
        """Grid of the tiles."""
        grid = self.facts["grid"]
        return Grid(
            tile=TilePx(grid["tile_px"]),
            stride=TilePx(grid["stride_px"]),
            columns=grid["columns"],
            rows=grid["rows"],
            pixels=PixelMap(*grid["pixels"]),
        )

    def tiles(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Read tiles ``start`` to ``stop``, uint8 (N, tile, tile, 3).

        Raises
        ------
        StoreError
            A chunk is damaged or missing.
        """
        start, stop, _ = slice(start, stop).indices(len(self))
        size = self.chunk
        out = np.empty((max(0, stop - start), self.tile, self.tile, 3), np.uint8)
        scratch = np.empty((size, *out.shape[1:]), np.uint8)
        for number in range(start // size, -(-stop // size) if stop > start else 0):
            first = number * size
            if start <= first and first + size <= stop:
                self.read_chunk(number, out[first - start : first - start + size])
                continue
            self.read_chunk(number, scratch)
            low, high = max(start, first), min(stop, first + size)
            out[low - start : high - start] = scratch[low - first : high - first]
        return out

    def take(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Read tiles by their indices, uint8 (N, tile, tile, 3), and each chunk only once.

        Raises
        ------
        StoreError
            A chunk is damaged or missing.
        """
        out = np.empty((len(indices), self.tile, self.tile, 3), np.uint8)
        scratch = np.empty((self.chunk, *out.shape[1:]), np.uint8)
        numbers = indices // self.chunk
        for number in np.unique(numbers).tolist():
            self.read_chunk(number, scratch)
            here = numbers == number
            out[here] = scratch[indices[here] % self.chunk]
        return out

    def read_chunk(self, number: int, out: npt.NDArray[np.uint8]) -> None:
        """Read a chunk of :attr:`chunk` tiles; values beyond the last tile are undefined.

        Parameters
        ----------
        number : int
            Index of the chunk, which begins with tile ``number * chunk``.
        out : ndarray of uint8, (chunk, tile, tile, 3)
            Array to fill; C-contiguous.

        Raises
        ------
        StoreError
            The chunk is damaged or missing.
        """
        first = number * self.chunk
        if not self.has_pixels:
            raise self._without_tiles("no pixels can be read")
        try:
            if self.reader is not None:
                self.reader.read(number, out)
            else:
                found = np.asarray(self.group["tiles"][first : first + self.chunk])
                out[: len(found)] = found
        except Exception as error:  # what zarr and its codecs make of damage has no end
            last = min(first + self.chunk, len(self)) - 1
            raise StoreError(
                f"tiles {first} to {last} are damaged or missing: {' '.join(str(error).split())}",
                subject=self.name,
                remedy=f"Delete {self.folder} and tile the slide again.",
            ) from error

    def has(self, name: str) -> bool:
        """Tell whether the slide has a column, even a damaged one."""
        return (self.folder / name).exists()

    def column(self, name: str) -> npt.NDArray[Any]:
        """Read a column: ``position``, ``lattice``, ``coverage``, a quality column or a mask.

        Raises
        ------
        StoreError
            The slide has no such column, or it is damaged.
        """
        shape, kind = _COLUMNS[name]
        try:
            values = read_column(
                self.group,
                name,
                folder=self.folder,
                shape=(len(self), *shape[1:]) if shape[0] == 0 else shape,
                kind=kind,
                # Of these at the most one is nothing but zeros, that of a tile in the corner.
                whole=name in ("position", "lattice") and len(self) > 1,
            )
        except StoreError as error:
            raise self._broken(error) from error
        if fault := _fault(name, values):
            why = StoreError(f"is damaged: {fault}", subject=str(self.folder / name))
            raise self._broken(why)
        return values

    def quality(self) -> dict[str, npt.NDArray[np.float32]]:
        """Read the quality columns; see :func:`wsiad.tissue.quality.measure`.

        Raises
        ------
        StoreError
            A column is damaged.
        """
        return {name: self.column(name) for name in COLUMNS}

    def judged(self, thresholds: QualityThresholds) -> npt.NDArray[np.uint8]:
        """Judge the tiles by their quality; see :func:`wsiad.tissue.quality.judge`.

        Raises
        ------
        StoreError
            A column is damaged, or there are thresholds and the quality is not known.
        """
        if self.has_pixels:
            return judge(self.quality(), thresholds)
        if thresholds.given:
            raise self._without_tiles("their quality is not known. Leave out the thresholds")
        return np.full(len(self), Reason.USABLE, np.uint8)

    def _without_tiles(self, why: str) -> StoreError:
        return StoreError(
            f"holds features without tiles: {why}",
            subject=self.name,
            remedy="Use a method on frozen features with the backbone features/<encoder>, or tile "
            "the slides.",
        )

    @property
    def left_out(self) -> LeftOut:
        """Tiles of the plan that are not stored; empty if the slide's group has no record of them.

        Raises
        ------
        StoreError
            The record is damaged.
        """
        if not (self.has("left_out_reason") or self.has("left_out_lattice")):
            return LeftOut()
        lattice, reasons = self.column("left_out_lattice"), self.column("left_out_reason")
        if len(lattice) != len(reasons):
            fault = (
                f"{counted(len(reasons), 'reason')} for {counted(len(lattice), 'place')} left out"
            )
            raise self._broken(StoreError(f"is damaged: {fault}", subject=str(self.folder)))
        return LeftOut(lattice[:, 0], lattice[:, 1], reasons)

    def source_names(self) -> list[str]:
        """Return the names that imported tiles had in their source, in the tiles' order.

        The list is empty for tiles of a slide, and for sources whose tiles have no names.

        Raises
        ------
        StoreError
            The names are damaged.
        """
        if not self.has("source_name"):
            return []
        try:
            rows = self.column("source_name")
            return [row.tobytes().rstrip(b"\0").decode("utf-8") for row in rows]
        except UnicodeDecodeError as error:
            why = StoreError(f"is damaged: {error}", subject=str(self.folder / "source_name"))
            raise self._broken(why) from error

    def _broken(self, error: StoreError) -> StoreError:
        return StoreError(
            error.problem,
            subject=error.subject,
            remedy=f"Delete {self.folder} and tile the slide again.",
        )

    @property
    def chunk(self) -> int:
        """Number of tiles in a chunk, which is the smallest unit that is read from disk."""
        if self.reader is not None:
            return self.reader.shape[0]
        if not self.has_pixels:
            return _FEATURES_AT_ONCE
        return int(self.group["tiles"].chunks[0])


def open_slide_group(name: str, folder: Path, *, store: Path) -> StoredSlide:
    """Open a slide's group and check the facts that it states.

    Raises
    ------
    StoreError
        The group is damaged.
    """
    facts, reader = check_slide_group(name, folder, store=store)
    with _damage_of(name, folder, store=store):
        group = open_group(folder)
    return StoredSlide(name=name, group=group, facts=facts, folder=folder, reader=reader)


def check_slide_group(
    name: str, folder: Path, *, store: Path
) -> tuple[dict[str, Any], ShardReader | None]:
    """Check the facts that a slide's group states, and the shape of its tiles.

    Tiles of wsiad's layout are checked without zarr, which takes longer than all else.

    Returns
    -------
    dict
        The facts.
    ShardReader or None
        Reader of the tiles; ``None`` if only zarr can read them.

    Raises
    ------
    StoreError
        The group is damaged.
    """
    with _damage_of(name, folder, store=store):
        facts = slide_facts(folder)
        shape = (facts["tiles"], *[facts["grid"]["tile_px"]] * 2, 3)
        if not facts.get("pixels", True):
            return facts, None
        if reader := ShardReader.of(folder / "tiles"):
            found: tuple[int, ...] = (reader.count, *reader.shape[1:])
        else:
            found = array_shape(open_group(folder), "tiles", folder=folder, kind="uint8")
        if found != shape:
            raise ValueError(f"its tiles have the shape {found}, not {shape}")
    return facts, reader


@contextlib.contextmanager
def _damage_of(name: str, folder: Path, *, store: Path) -> Iterator[None]:
    """Say of what is damaged in a slide's group which slide it is, and the remedy."""
    try:
        yield
        return
    except StoreError as error:  # with the remedy of this slide in place of its own
        fault = f"{error.subject}: {error.problem}"
    except (OSError, ValueError) as error:
        fault = " ".join(str(error).split())
    raise StoreError(
        f"the group of slide {name!r} is damaged: {fault}",
        subject=str(store),
        remedy=f"Delete {folder} and tile the slide again.",
    )


def _fault(name: str, values: npt.NDArray[Any]) -> str:
    """Return the fault of a column's values; empty if there is none."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        return "a value is not finite"
    if name == "coverage" and ((values < 0) | (values > 1)).any():
        return "a share is not within 0 and 1"
    if name.endswith("lattice") and (values < 0).any():
        return "a place is negative"
    if name == "left_out_reason" and (values > max(Reason)).any():
        return "a reason is unknown"
    return ""
