"""Tiles of stores for training with torch, in any number of processes and ranks."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from wsiad.core.errors import InputError
from wsiad.slides.slide_table import SLIDES_TABLE, SlideRow, first_reasons, read_table
from wsiad.store.dataset import (
    THREADS,
    Chunks,
    Order,
    batches,
    every_tile,
    fair_to_slides,
    shuffled,
    window_of,
)
from wsiad.store.stored_slide import StoredSlide
from wsiad.store.tile_store import TileStore
from wsiad.store.tile_task import unseen_slides

logger = logging.getLogger(__name__)

Balance = Literal["slides", "tiles"]


class TileBatch(NamedTuple):
    """A batch of tiles with their slides and positions.

    Parameters
    ----------
    tiles : Tensor of uint8, (N, S, S, 3)
        RGB.
    slide : Tensor of int64, (N,)
        Index of each tile's slide in :attr:`TileDataset.slides`.
    row : Tensor of int64, (N,)
        Index of the tile in its slide, and in the columns of the slide's group.
    position : Tensor of float64, (N, 2), or None
        x, y of the tile's top-left corner, level-0 pixels; ``None`` if any slide has tiles
        without known positions.
    """

    tiles: Tensor
    slide: Tensor
    row: Tensor
    position: Tensor | None


class TileDataset(IterableDataset[Any]):
    """Shuffled batches of the tiles of stores.

    Chunks are read in a random order into a bounded buffer, from which batches are drawn.
    Nothing is decoded twice in an epoch. No file stays open, so the dataset can be sent to
    worker processes of any start method. The order is a pure function of the seed, the epoch,
    the rank and the number of ranks and workers.

    The dataset builds the batches: use :meth:`loader`, or pass ``batch_size=None`` to a loader of
    your own; another ``batch_size`` is an error. The tiles are as the store has them, 0 to 255;
    ``TileStore.preparation.stain`` says whether their stains are normalised.

    Parameters
    ----------
    stores : Path, str, TileStore or sequence of them
        Stores of one preparation.
    batch : int
        Number of tiles in a batch.
    slides : sequence of str, optional
        Names of the slides to use; by default all that have tiles.
    balance : {"slides", "tiles"}
        ``"slides"``: an epoch has equally many tiles of each slide, regardless of its size; over
        the epochs, all tiles of a slide come equally often. ``"tiles"``: every tile comes once.
    tiles_per_slide : int, optional
        Number of tiles of each slide in an epoch with ``balance="slides"``. By default an
        epoch has about as many tiles as the stores.
    seed : int
    buffer_bytes : int
        Memory for tiles, over all workers of this rank. Each worker needs at least 6 chunks
        (18 MB), and torch keeps some batches besides. It is kept for the next epoch.
    drop_last : bool
        Yield only full batches, and equally many in every rank and worker. The tiles of at most
        a few chunks are left out of an epoch, different ones in each. Otherwise every tile is
        yielded.
    places : bool
        Yield :class:`TileBatch` with the tiles' positions instead of the pixels alone.
    threads : int
        Number of threads in each worker that read and decode; the order does not depend on it.
        Threads need no worker processes, which cost time to hand over each batch
        (docs/performance.md).
    rank, world_size : int, optional
        Index of this process and number of processes; by default those of
        ``torch.distributed``.

    Attributes
    ----------
    slides : tuple of StoredSlide
        Slides from which tiles are drawn.

    Raises
    ------
    StoreError
        A store is missing or damaged.
    InputError
        The stores differ in their preparation, lack a slide, or hold no tiles.

    Examples
    --------
    >>> dataset = TileDataset("store/", batch=256)                    # doctest: +SKIP
    >>> for epoch in range(10):                                       # doctest: +SKIP
    ...     dataset.set_epoch(epoch)
    ...     for tiles in dataset.loader():  # uint8 (256, S, S, 3)
    ...         ...
    """

    def __init__(
        self,
        stores: Path | str | TileStore | Sequence[Path | str | TileStore],
        *,
        batch: int = 64,
        slides: Sequence[str] | None = None,
        balance: Balance = "slides",
        tiles_per_slide: int | None = None,
        seed: int = 0,
        buffer_bytes: int = 2**30,
        drop_last: bool = True,
        places: bool = False,
        threads: int = THREADS,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        super().__init__()
        if min(batch, threads, tiles_per_slide or 1) < 1 or tiles_per_slide == 0:
            raise InputError("`batch`, `threads` and `tiles_per_slide` must be at least 1")
        if balance not in ("slides", "tiles"):
            raise InputError(f"`balance` is 'slides' or 'tiles', not {balance!r}")
        self.slides = _slides(stores, slides)
        self.batch, self._seed, self._balance = batch, seed, balance
        self._buffer_bytes, self._drop_last = buffer_bytes, drop_last
        self._places, self._threads = places, threads
        self._rank, self._world = _ranks(rank, world_size)
        sizes = [slide.chunk for slide in self.slides]
        lengths = [len(slide) for slide in self.slides]
        self._chunks = Chunks.of([np.arange(n) for n in lengths], sizes=sizes)
        tile = self.slides[0].tile
        self._shape = (max(sizes), tile, tile, 3)
        self._per_slide = tiles_per_slide or max(1, round(sum(lengths) / len(lengths)))
        self._spare: list[npt.NDArray[np.uint8]] = []
        self._have_geometry = all(slide.has_geometry for slide in self.slides)
        # In shared memory: workers that persist see what set_epoch sets.
        # The third number counts the iterations since, to warn of the same order once more.
        self._at = torch.zeros(3, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process needs: not the memory of an earlier epoch."""
        return vars(self) | {"_spare": []}

    def set_epoch(self, epoch: int, *, start: int = 0) -> None:
        """Choose the epoch of the next iteration.

        Without this call each iteration has the same order, and the second one warns of it.

        Parameters
        ----------
        epoch : int
        start : int
            Number of batches of the epoch that were taken already (by this rank, with as many
            workers): the iteration continues after them.
        """
        self._at[0], self._at[1], self._at[2] = epoch, start, 0

    def labels(self, codes: Mapping[str, int]) -> Tensor:
        """Return the number of each slide's label, to be indexed by :attr:`TileBatch.slide`.

        Parameters
        ----------
        codes : mapping of str to int
            A number for each label, such as ``{"normal": 0, "tumor": 1}``.

        Returns
        -------
        Tensor of int64, (number of slides,)
            Numbers in the order of :attr:`slides`.

        Raises
        ------
        InputError
            A slide has no label, or one without a number: neither is ever taken for another.
        """
        rows = {
            store: {row.slide: row.label for row in read_table(store / SLIDES_TABLE, SlideRow)}
            for store in {slide.store for slide in self.slides}
        }
        found = [rows[slide.store].get(slide.name, "") for slide in self.slides]
        for slide, label in zip(self.slides, found, strict=True):
            if not label or label not in codes:
                raise InputError(
                    f"has the label {label!r}, for which there is no number"
                    if label
                    else "has no label",
                    subject=f"{slide.store}: slide {slide.name}",
                    remedy="Name the slides to use with `slides`, or give a number to each label.",
                )
        return torch.tensor([codes[label] for label in found], dtype=torch.int64)

    def loader(self, *, workers: int = 0, **options: Any) -> DataLoader[Any]:
        """Return a loader of the batches.

        Parameters
        ----------
        workers : int
            Number of processes that read, started by ``forkserver``. With 0, this process reads
            by the dataset's threads.
        **options
            Options of :class:`torch.utils.data.DataLoader`, such as ``pin_memory``.
        """
        values: dict[str, Any] = {"batch_size": None, "num_workers": workers}
        if workers:
            values |= {"multiprocessing_context": "forkserver", "persistent_workers": True}
        return DataLoader(self, **values | options)

    def __iter__(self) -> Iterator[Tensor | TileBatch]:
        """Return an iterator of the batches of this rank and worker.

        Raises
        ------
        InputError
            A loader would put batches into batches.
        """
        # A loader tells nobody that it will batch, but for an attribute of what calls `iter` here.
        # To see it later, in the default collation, batches would have to be of a tensor type of
        # wsiad, which `torch.load` refuses where a user stored them; a data set that is none of
        # torch's would refuse `batch_size=None` too, with which loaders of others work.
        frame = inspect.currentframe()
        caller = frame.f_back.f_locals.get("self") if frame and frame.f_back else None
        if getattr(caller, "auto_collation", False):
            raise InputError(
                "makes the batches itself, and the loader would put them into batches again",
                subject="TileDataset",
                remedy="Use `dataset.loader()`, or pass `batch_size=None` to DataLoader.",
            )
        return self._given()

    def _given(self) -> Iterator[Tensor | TileBatch]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        epoch, done, before = (int(value) for value in self._at)
        if worker == 0:
            self._at[2] += 1
            if before == 1:
                logger.warning(
                    "TileDataset: epoch %d is read again, in the same order; call `set_epoch` "
                    "before each epoch",
                    epoch,
                )
        # The loader asks the workers in turn, from the first: when it goes on within an
        # epoch, the first is the one whose turn it was.
        turn = (worker + done) % workers
        shares = self._world * workers
        chosen = self._order(epoch, share=self._rank * workers + turn, shares=shares)
        given = batches(
            chosen,
            self._read,
            chunk_shape=self._shape,
            batch=self.batch,
            start=len(range(turn, done, workers)) * self.batch,
            stop=chosen.least // self.batch * self.batch if self._drop_last else None,
            threads=self._threads,
            spare=self._spare,
        )
        positions: dict[int, npt.NDArray[np.float64]] = {}
        for pixels, which in given:
            tiles = torch.from_numpy(pixels)
            yield self._placed(tiles, chosen, which, positions) if self._places else tiles

    def _order(self, epoch: int, *, share: int, shares: int) -> Order:
        workers = shares // self._world
        visits = (
            every_tile(self._chunks)
            if self._balance == "tiles"
            else fair_to_slides(
                self._chunks, per_slide=self._per_slide, seed=self._seed, epoch=epoch
            )
        )
        window = window_of(self._buffer_bytes // workers, math.prod(self._shape))
        return shuffled(
            visits, window=window, seed=self._seed, epoch=epoch, share=share, shares=shares
        )

    def _read(self, chunk: int, out: npt.NDArray[np.uint8]) -> None:
        slide = self.slides[self._chunks.slide[chunk]]
        slide.read_chunk(int(self._chunks.number[chunk]), out[: slide.chunk])

    def _placed(
        self,
        tiles: Tensor,
        chosen: Order,
        which: slice,
        positions: dict[int, npt.NDArray[np.float64]],
    ) -> TileBatch:
        chunk = chosen.chunk[chosen.visit[which]]
        slide = self._chunks.slide[chunk]
        sizes = np.array([self.slides[number].chunk for number in slide])
        index = self._chunks.number[chunk] * sizes + chosen.offset[which]
        position = None
        if self._have_geometry:
            for number in set(slide.tolist()) - positions.keys():
                positions[number] = self.slides[number].column("position")
            rows = [positions[s][i] for s, i in zip(slide.tolist(), index.tolist(), strict=True)]
            position = torch.from_numpy(np.stack(rows))
        return TileBatch(tiles, torch.from_numpy(slide), torch.from_numpy(index), position)


def _slides(
    stores: Path | str | TileStore | Sequence[Path | str | TileStore],
    names: Sequence[str] | None,
) -> tuple[StoredSlide, ...]:
    """Open the slides to draw from, in an order that does not depend on that of the stores."""
    given = [stores] if isinstance(stores, Path | str | TileStore) else list(stores)
    opened = [store if isinstance(store, TileStore) else TileStore(Path(store)) for store in given]
    for store in opened[1:]:
        if store.digest != opened[0].digest:
            raise InputError(
                f"was prepared differently from {opened[0].path}",
                subject=str(store.path),
                remedy="Tile both with the same configuration, or use one of them.",
            )
    found = sorted((name, number) for number, store in enumerate(opened) for name in store.names())
    lacking = set(names or ()) - {name for name, _ in found}
    for store in opened:
        if failed := sorted(set(store.names(failed=True)) - set(store.names())):
            reasons = {name: why for name, why in unseen_slides(store).items() if name in failed}
            if named := sorted(lacking.intersection(failed)):
                raise InputError(
                    f"slide {named[0]!r} is not used: {reasons[named[0]]}",
                    subject=str(store.path),
                    remedy="Tile it again, or leave it out.",
                )
            if names is not None:
                continue
            logger.warning(
                "%s: no tiles are drawn of slides that failed when they were tiled last: %d (%s)",
                store.path,
                len(failed),
                first_reasons(reasons),
            )
    if lacking:
        raise InputError(
            f"no slide {sorted(lacking)[0]!r} in {', '.join(str(store.path) for store in opened)}"
        )
    chosen = [opened[n].slide(name) for name, n in found if names is None or name in names]
    slides = tuple(slide for slide in chosen if len(slide))
    if not slides:
        unseen = [item for store in opened for item in unseen_slides(store).items()]
        why = first_reasons({name: why for name, why in unseen if names is None or name in names})
        raise InputError(
            f"there are no tiles to draw from{f' ({why})' if why else ''}",
            remedy="Tile slides with tissue.",
        )
    return slides


def _ranks(rank: int | None, world: int | None) -> tuple[int, int]:
    """Return the rank of this process and the number of ranks."""
    if (rank is None) != (world is None):
        raise InputError("give both `rank` and `world_size`, or neither")
    if rank is None or world is None:
        known = torch.distributed.is_available() and torch.distributed.is_initialized()
        return (
            (torch.distributed.get_rank(), torch.distributed.get_world_size()) if known else (0, 1)
        )
    if not 0 <= rank < world:
        raise InputError(f"`rank` must be 0 to {world - 1}, not {rank}")
    return rank, world
