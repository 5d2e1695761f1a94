"""A slide that is too large for one task: written in parts of complete shards, then joined.

Any worker can write a part. It makes the same plan again, which is a function of the slide,
and writes its shards under the names that they have in the complete array. The join links them
into the slide's group, whose bytes are those that a single task would have written, whatever
the parts. Complete parts are kept until the join, and the next run uses them, also where it
divides the slide in another way.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from wsiad.core.errors import StoreError
from wsiad.core.files import atomic_folder
from wsiad.core.ownership import clear_leftovers, discard
from wsiad.store.group import (
    TileArray,
    beside,
    create_group,
    shard_tiles,
    write_array,
    write_attributes,
)
from wsiad.store.group_facts import group_facts, open_group, read_column
from wsiad.store.tile_store import TileStore, parts_folder
from wsiad.store.writer import (
    check_unchanged,
    library_versions,
    write_rest,
    write_slide,
    write_tiles,
)
from wsiad.tiling.plan import SlidePlan
from wsiad.tiling.preparation import CompressionOptions
from wsiad.tiling.stream import Example, TileBlock
from wsiad.tissue.quality import COLUMNS, LeftOut


@dataclass(frozen=True, slots=True)
class Part:
    """A range of a slide's tiles, in the order in which they are read.

    Parameters
    ----------
    first, stop : int
        First tile, which begins a shard, and the end of the range (excluded).
    """

    first: int
    stop: int


_LEAST_SHARDS, _WORTH_SHARDS = 4, 16
"""Least shards of a part, and of a slide that is divided only to keep workers busy. A shard is
about 50 MB of pixels, 256 tiles of 256 px; a worker takes 2 to 3 s to start, in which it would
make some 10 of them, and a tenth of a second to open a slide."""
_PARTS_PER_WORKER = 4
"""Parts for each worker that suffice to keep all of them busy to the end."""
_CORES_OF_PROCESS = 2
"""Cores that the threads of one process keep busy while they read, normalise and write a slide."""


def pieces_of_slide(slides: int, workers: int, *, cores: int | None = None) -> int:
    """Return the number of parts of each slide that keeps all workers busy.

    Parameters
    ----------
    slides, workers : int
    cores : int, optional
        Number of cores that the workers share; ``None`` if each has its own. Two are kept busy by
        the threads of one process, which is faster than two that both have to start.

    Examples
    --------
    >>> [pieces_of_slide(slides, workers=8) for slides in (1, 5, 16, 32, 100)]
    [32, 7, 2, 1, 1]
    >>> [pieces_of_slide(1, workers=2, cores=cores) for cores in (2, 16)]
    [1, 8]
    """
    if workers == 1 or (cores is not None and cores <= _CORES_OF_PROCESS):
        return 1
    return -(-_PARTS_PER_WORKER * workers // max(1, slides))


def split(tiles: int, *, tile: int, most: int | None, pieces: int = 1) -> tuple[Part, ...]:
    """Divide a slide's tiles into parts of complete shards, as equal as possible.

    Parameters
    ----------
    tiles : int
        Number of tiles in the slide's plan.
    tile : int
        Edge of the tiles, pixels.
    most : int or None
        Maximum number of tiles in a part, but at least one shard; ``None`` for a single part.
    pieces : int
        Number of parts that are wanted. Small slides have fewer, or are not divided.

    Returns
    -------
    tuple of Part
        The parts; a single one if the slide is not too large.
    """
    if most is None:
        return (Part(0, tiles),)
    shard = shard_tiles(tile)
    shards = -(-tiles // shard)
    least = -(-shards // max(1, most // shard)) if tiles > most else 1
    wanted = min(pieces, shards // _LEAST_SHARDS) if shards >= _WORTH_SHARDS else 1
    count = max(least, wanted)
    edges = [shards * number // count * shard for number in range(count)]
    return tuple(Part(first, stop) for first, stop in zip(edges, [*edges[1:], tiles], strict=True))


class _MovedTilesError(Exception):
    """A tile is missing in a part that is coded with a lossy codec."""


@dataclass(frozen=True, slots=True)
class SlideParts:
    """The parts of a slide that is being written to a store.

    Parameters
    ----------
    store : TileStore
    plan : SlidePlan
        Plan of the complete slide.
    parts : tuple of Part
    fingerprint : str
        Fingerprint of the slide's file, taken after it was opened.
    coordinates : str or None
        Fingerprint of the coordinates from which the plan was made.
    """

    store: TileStore
    plan: SlidePlan
    parts: tuple[Part, ...]
    fingerprint: str
    coordinates: str | None = None

    @property
    def name(self) -> str:
        """Name of the slide."""
        return self.plan.scaled.slide.name

    def resumed(self) -> SlideParts:
        """Return the same slide, divided so that the parts which are complete are among its parts.

        Another number of workers divides a slide at other tiles. What an earlier run completed is
        used nevertheless, and only what lies between is divided as these parts are.
        """
        edges, parts, stop = [part.first for part in self.parts], list[Part](), 0
        for part in [*self._on_disk(), Part(len(self.plan), len(self.plan))]:
            if part.first < stop:
                continue  # another run divided the slide in another way, at the same time
            cuts = [stop, *(edge for edge in edges if stop < edge < part.first), part.first]
            parts += [Part(*pair) for pair in itertools.pairwise(cuts) if pair[0] < pair[1]]
            parts += [part] if part.first < part.stop else []
            stop = part.stop
        return replace(self, parts=tuple(parts)) if parts else self

    def _on_disk(self) -> list[Part]:
        """Return the complete parts of this slide, in order; of two that begin alike the longer."""
        names = [path.name for path in parts_folder(self.store, self.name).glob("*-*")]
        found = [re.fullmatch(r"(\d+)-(\d+)", name) for name in names]
        parts = [Part(int(match[1]), int(match[2])) for match in found if match]
        order = sorted(parts, key=lambda part: (part.first, -part.stop))
        return [part for part in order if self._is_held(part)]

    def missing(self) -> tuple[Part, ...]:
        """Return the parts that are still to be written.

        Parts of another slide, preparation or version are deleted.
        """
        clear_leftovers(parts_folder(self.store, self.name))
        return tuple(part for part in self.parts if not self._is_held(part))

    def write(self, part: Part) -> None:
        """Write a part. Several processes can write parts at the same time.

        Raises
        ------
        SlideReadError
            The slide cannot be decoded, or changed meanwhile; nothing of the part remains.
        OSError
            The disk is full; nothing of the part remains.
        """
        if self._is_held(part):
            return
        try:
            with atomic_folder(self._folder(part), replace=False) as folder:
                self._write(part, folder)
        except FileExistsError:
            pass  # another run was first

    def _write(self, part: Part, folder: Path) -> None:
        group = create_group(folder)
        tiles = TileArray(group, self.plan.grid.tile, self._kept_by, first=part.first)
        blocks = write_tiles(tiles, self.plan, first=part.first, stop=part.stop)
        tiles.finish()
        if tiles.error is not None:
            write_array(group, "error", tiles.error.counts)
        _keep(group, blocks, self._identity(part))
        check_unchanged(self.plan.scaled.slide, self.fingerprint)

    def join(self) -> int:
        """Make the slide's group out of its parts, and remove them.

        Returns
        -------
        int
            Number of tiles written.

        Raises
        ------
        StoreError
            A part is missing.
        SlideReadError
            The slide changed after its first part was begun.
        """
        try:
            tiles = self._join()
        except _MovedTilesError:
            tiles = write_slide(
                self.store,
                self.plan,
                fingerprint=self.fingerprint,
                coordinates=self.coordinates,
            )
        except (FileNotFoundError, KeyError, StoreError):
            if self.name not in self.store:
                raise
            # Another run joined the same parts first, and removed them.
            return len(self.store.slide(self.name))
        discard(parts_folder(self.store, self.name))
        return tiles

    def _join(self) -> int:
        with beside(self.store, self.name) as folder:
            group = create_group(folder)
            tiles = TileArray(group, self.plan.grid.tile, self.store.compression)
            blocks = [self._take(part, tiles) for part in self.parts]
            tiles.finish()
            write_rest(
                group,
                self.store,
                self.plan,
                blocks,
                compression=tiles.facts(),
                fingerprint=self.fingerprint,
                coordinates=self.coordinates,
            )
            return tiles.count

    def _take(self, part: Part, tiles: TileArray) -> TileBlock:
        """Add a part's tiles to the slide's, and return them without pixels."""
        if not self._is_held(part):
            raise StoreError(
                f"tiles {part.first} to {part.stop} of the slide are missing",
                subject=self.name,
                remedy="Run the same command again.",
            )
        source = open_group(self._folder(part))
        block = _kept(source, self._folder(part))
        count, done = len(block.rows), 0
        moved = tiles.count != part.first
        if self._kept_by.lossy:
            if moved or count < part.stop - part.first:
                raise _MovedTilesError
            assert tiles.error is not None
            tiles.error.add_counts(read_column(source, "error", folder=self._folder(part)))
        if not moved and self._kept_by == self.store.compression:
            # No tile before is missing: the part's shards are those of the whole. Else
            # tiles moved up, and from there on shards are made again.
            done = count if part.stop == len(self.plan) else count // tiles.shard * tiles.shard
            tiles.link(self._folder(part) / "tiles", done)
        for at in range(part.first + done, part.first + count, tiles.shard):
            stop = min(at + tiles.shard, part.first + count)
            tiles.append(np.asarray(source["tiles"][at:stop]))
        return block

    @property
    def _kept_by(self) -> CompressionOptions:
        """Compression of the parts: the store's, unless it is lossy and a tile may be left out.

        The tiles after it then move up and are coded with other neighbours, and a lossy codec
        would change their pixels a second time.
        """
        if self.store.compression.lossy and not self._keeps_all:
            return CompressionOptions()
        return self.store.compression

    @property
    def _keeps_all(self) -> bool:
        """True if no tile can be left out: the file lists all pixels, and none is judged."""
        plan, slide = self.plan, self.plan.scaled.slide
        size = slide.levels[plan.scaled.level].size
        edges = np.array([0.0, size.width]), np.array([0.0, size.height])
        listed = slide.listed(plan.scaled.level, *edges)
        judged = plan.quality.given and plan.quality.action == "drop"
        return bool(listed is not None and listed.all() and not judged and not slide.skip_damaged)

    def _folder(self, part: Part) -> Path:
        return parts_folder(self.store, self.name) / f"{part.first}-{part.stop}"

    def _is_held(self, part: Part) -> bool:
        """Tell whether a part is complete; delete it if it does not belong to this slide."""
        folder = self._folder(part)
        if not folder.exists():
            return False
        try:
            held = group_facts(folder)["identity"]
        except (StoreError, KeyError):
            held = None  # damaged
        if held == self._identity(part):
            return True
        discard(folder)
        return False

    def _identity(self, part: Part) -> dict[str, Any]:
        """Return everything that the bytes of a part depend on, as JSON values."""
        slide = self.plan.scaled.slide
        identity = {
            "part": [part.first, part.stop, len(self.plan)],
            "digest": self.store.digest,
            "slide": [
                slide.name,
                self.fingerprint,
                slide.backend,
                slide.spacing.x,
                slide.spacing.y,
            ],
            "coordinates": self.coordinates,
            "stain": self.plan.stain.to_dict(),
            "layout": [shard_tiles(self.plan.grid.tile), self._kept_by.facts()],
            "versions": library_versions(),
        }
        values: dict[str, Any] = json.loads(json.dumps(identity))
        return values


def _keep(group: zarr.Group, blocks: Sequence[TileBlock], identity: dict[str, Any]) -> None:
    """Write everything that is known of a part's tiles except their pixels."""
    left_out = LeftOut.join(block.left_out for block in blocks)
    examples = [example for block in blocks for example in block.examples]
    arrays = {
        "rows": _joined([block.rows for block in blocks], np.int32),
        "columns": _joined([block.columns for block in blocks], np.int32),
        "coverage": _joined([block.coverage for block in blocks], np.float32),
        "left_out_rows": left_out.rows,
        "left_out_columns": left_out.columns,
        "left_out_reasons": left_out.reasons,
        "example_index": np.array([example.index for example in examples], np.int64),
    }
    if examples:
        arrays["example_before"] = np.stack([example.before for example in examples])
        arrays["example_after"] = np.stack([example.after for example in examples])
    for name in COLUMNS:
        values = [block.quality[name] for block in blocks if block.quality]
        arrays[f"quality_{name}"] = _joined(values, np.float32)
    for name, column in arrays.items():
        write_array(group, name, column)
    write_attributes(group, {"identity": identity})


def _kept(group: zarr.Group, folder: Path) -> TileBlock:
    """Read the arrays that :func:`_keep` wrote, as one block."""

    def column(name: str) -> npt.NDArray[Any]:
        return read_column(group, name, folder=folder)

    index = column("example_index")
    pictures = (column("example_before"), column("example_after")) if len(index) else ((), ())
    return TileBlock(
        pixels=np.empty((0, 0, 0, 3), np.uint8),
        rows=column("rows"),
        columns=column("columns"),
        coverage=column("coverage"),
        quality={name: column(f"quality_{name}") for name in COLUMNS},
        left_out=LeftOut(
            column("left_out_rows"), column("left_out_columns"), column("left_out_reasons")
        ),
        examples=tuple(
            Example(int(at), before, after)
            for at, before, after in zip(index, *pictures, strict=True)
        ),
    )


def _joined(parts: Sequence[npt.NDArray[Any]], kind: type[np.generic]) -> npt.NDArray[Any]:
    return np.concatenate(parts) if parts else np.empty(0, kind)
