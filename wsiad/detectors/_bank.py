"""Search of the nearest vectors of a bank, and the base of detectors that score by it.

On a CPU most vectors of a bank are ruled out without their distance: those of cells that can hold
none near enough, and those whose codes are too far. The others are compared in float64, so exact
neighbours depend neither on the codes nor on the cells.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import pydantic
import torch
from torch import Tensor

from wsiad.detectors._byte_blocks import SIGN, Blocks, compare
from wsiad.detectors._cells import (
    UNIT,
    Cells,
    Doubles,
    Floats,
    Indices,
    listed,
    squared,
    within,
)
from wsiad.detectors._codes import Coded, Codes, refine
from wsiad.detectors._features import FeatureDetector, FeatureOptions
from wsiad.detectors._vectors import nearest
from wsiad.learning.detector import DetectorOptions, InputSpec, Scores, Tiles

_KEPT = "cells."  # prefix of their tensors in a run
_LEAST_VECTORS = 1024  # of banks that are worth parting
_ASKED = 8192  # vectors that are searched at once
_HELD_VALUES = 1 << 22  # of vectors that wait for others: 16 MiB
_ROWS, _COLUMNS = 512, 1024  # of products, which a core's own cache holds
_FAR = 3.0  # times the error of the bank's own codes


class BankOptions(FeatureOptions):
    """Options of detectors that search a bank."""

    probes: Annotated[int, pydantic.Field(ge=1)] | None = None
    """Number of cells of a large bank, those nearest to a vector, in which its neighbours are
    looked for: faster, and not always the nearest. Without it, neighbours are exact."""


class BankDetector(FeatureDetector):
    """A detector that searches a bank, which is prepared once."""

    Options: ClassVar[type[DetectorOptions]] = BankOptions
    options: BankOptions

    def __init__(self, options: DetectorOptions, spec: InputSpec) -> None:
        super().__init__(options, spec)
        self._bank: Bank | None = None

    def kept_cells(self, bank: Tensor) -> dict[str, Tensor]:
        """Return the cells of a bank as a run keeps them; exact neighbours need none."""
        probes = self.options.probes
        if probes is None:
            return {}
        return {_KEPT + name: part for name, part in Bank(bank, probes=probes).state().items()}

    def nearest_of_bank(
        self, asked: Tensor, fitted: dict[str, Tensor], count: int
    ) -> tuple[Tensor, Tensor]:
        """Find the nearest vectors of ``bank`` by :meth:`Bank.nearest`."""
        return self._prepared(fitted).nearest(asked, count)

    def _prepared(self, fitted: dict[str, Tensor]) -> Bank:
        vectors, last = fitted["bank"], self._bank
        if last is None or last.vectors is not vectors:
            cells = {
                name.removeprefix(_KEPT): part
                for name, part in fitted.items()
                if name.startswith(_KEPT)
            }
            last = self._bank = Bank(vectors, probes=self.options.probes, state=cells)
        return last

    def score_places(self, tiles: Tiles) -> Scores:
        """Score the places of tiles; see :meth:`Detector.score_places`."""
        if not len(tiles) or not self._fitted:
            return super().score_places(tiles)
        return next(self._searched([tiles]))

    def score_maps(self, batches: Iterable[Tiles]) -> Iterator[Scores]:
        """Yield the map of each batch; see :class:`ScoresBatches`. Several are searched at once."""
        if self.options.orientations > 1 or not self._fitted:
            return map(self.score_map, batches)
        return self._searched(batches)

    def _searched(self, batches: Iterable[Tiles]) -> Iterator[Scores]:
        """Yield the scores of places of each batch; features wait until there are enough."""
        counts: deque[int] = deque()

        def seen() -> Iterator[Tensor]:
            for tiles in batches:
                parts = list(self._parts(tiles))
                counts.append(len(parts))
                yield from map(self._seen, parts)

        scores = (
            part
            for group in _groups(seen(), self._together())
            for part in np.split(
                self._scored(torch.cat(group)), np.cumsum([len(one) for one in group])[:-1]
            )
        )
        for first in scores:
            yield np.concatenate([first, *itertools.islice(scores, counts.popleft() - 1)])

    def _together(self) -> int:
        """Return the number of vectors that are searched at once on a CPU: more is faster."""
        bank = self._fitted.get("bank")
        if bank is None or bank.ndim != 2 or bank.device.type != "cpu":
            return 1
        parted = self._prepared(self._fitted).parted
        return min(_ASKED, max(1, _HELD_VALUES // bank.shape[1])) if parted else 1


def _groups(parts: Iterator[Tensor], least: int) -> Iterator[list[Tensor]]:
    """Join parts, (N, ..., C), to groups of ``least`` vectors or more; the last can have fewer."""
    group: list[Tensor] = []
    for part in parts:
        group.append(part)
        if sum(one.shape[:-1].numel() for one in group) >= least:
            yield group
            group = []
    if group:
        yield group


class Bank:
    """Vectors in which the nearest to others are found.

    Parameters
    ----------
    vectors : Tensor of float32, (B, C)
        Vectors of the bank, finite, of a size between 1e-16 and 1e16: squares of others are no
        float32.
    probes : int or None
        Number of cells that are searched for a vector, or ``None`` to find the exact neighbours.
    state : mapping of str to Tensor, optional
        Cells of the bank that :meth:`state` returned; otherwise they are found.
    """

    def __init__(
        self,
        vectors: Tensor,
        *,
        probes: int | None = None,
        state: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.vectors = vectors
        self.probes = probes
        self._cells: Cells | None = None
        self._held: dict[bool, tuple[Codes, Coded | Blocks]] = {}
        # Other devices compare all vectors, unless only some are asked for.
        wanted = probes is not None or vectors.device.type == "cpu"
        if wanted and len(vectors) >= _LEAST_VECTORS:
            self._cells = Cells.of(vectors.cpu(), state or None)

    @property
    def parted(self) -> bool:
        """Tell whether the bank has cells; vectors of a small one are all compared."""
        return self._cells is not None

    def state(self) -> dict[str, Tensor]:
        """Return the cells as tensors, empty if there are none."""
        return {} if self._cells is None else self._cells.state()

    def nearest(self, asked: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Find the nearest vectors of the bank.

        Parameters
        ----------
        asked : Tensor of float32, (N, C)
            Vectors to compare, on the device of the bank.
        count : int
            Number of neighbours, at most B.

        Returns
        -------
        distances : Tensor of float32, (N, count)
            Euclidean distances, increasing.
        indices : Tensor of int64, (N, count)
            Indices in the bank; of equally near vectors the first.
        """
        if self._cells is None or not len(asked):
            return nearest(asked, self.vectors, count)
        if asked.device.type != "cpu":
            return self.nearest_by_products(asked, count)
        asked = asked.contiguous()
        found = torch.cat([self._found(part, count) for part in torch.split(asked, _ASKED)])
        columns = [(asked - self.vectors[column]).norm(dim=1) for column in found.T]
        return torch.stack(columns, dim=1), found

    def _codes(self, *, for_far: bool) -> tuple[Codes, Coded | Blocks]:
        """Return the codes of the bank, cell by cell; those for far vectors are floats."""
        cells = self._cells
        assert cells is not None
        if for_far not in self._held:
            floats = Codes.found(self.vectors, in_bytes=False) if for_far else None
            codes = floats or Codes.of(self.vectors)
            held = codes.coded(self.vectors, torch.from_numpy(cells.order))
            self._held[for_far] = (
                codes,
                held
                if codes.turn is None
                else Blocks.of(held, order=cells.order, starts=cells.starts, scale=codes.scale),
            )
        return self._held[for_far]

    def _found(self, asked: Tensor, count: int) -> Tensor:
        """Return the indices of the nearest vectors, int64 (N, count)."""
        codes, held = self._codes(for_far=False)
        coded = codes.coded(asked)
        if isinstance(held, Coded):
            return self._searched(asked, count, codes=codes, coded=coded, held=held)
        # Bytes end where those of the bank do: beyond, they rule nothing out.
        far = torch.from_numpy(coded.errors > _FAR * held.usual_error)
        if not far.any():
            return self._searched(asked, count, codes=codes, coded=coded, held=held)
        found = torch.empty(len(asked), count, dtype=torch.int64)
        floats, held_floats = self._codes(for_far=True)
        for rows, own, those in ((~far, codes, held), (far, floats, held_floats)):
            some = asked[rows]
            coded = own.coded(some)
            found[rows] = self._searched(some, count, codes=own, coded=coded, held=those)
        return found

    def _searched(
        self, asked: Tensor, count: int, *, codes: Codes, coded: Coded, held: Coded | Blocks
    ) -> Tensor:
        cells = self._cells
        assert cells is not None
        reduced = cells.reduced(asked)
        lengths = reduced.square().sum(dim=1)
        squares = squared(reduced, cells.centres)
        own = squares.argmin(dim=1).numpy()
        reach = lengths.sqrt() + cells.longest
        search = _Search(
            asked=asked.numpy(),
            bank=self.vectors.numpy(),
            cells=cells,
            coded=coded,
            held=held,
            codes=codes,
            lengths=lengths.numpy(),
            slack=(cells.rounding * reach).numpy(),
            rounding=(8 * (reduced.shape[1] + 2) * UNIT * reach.square()).numpy(),
            best=np.full((len(asked), count), np.inf),
            found=np.zeros((len(asked), count), np.int64),
        )
        everyone = np.argsort(own, kind="stable")
        sizes = np.bincount(own, minlength=len(cells.centres))
        search.through(everyone, np.concatenate([[0], np.cumsum(sizes)]))
        if self.probes is None or self.probes >= len(cells.centres):
            search.elsewhere(squares.numpy(), own)
            return torch.from_numpy(search.found)
        beyond = _beyond(squares, self.probes)
        search.elsewhere(squares.masked_fill(beyond, torch.inf).numpy(), own)
        lacking = np.isinf(search.best[:, -1]) & np.isfinite(search.lengths)
        if lacking.any():  # the cells have too few vectors
            others = squares.masked_fill(~beyond, torch.inf)
            others[torch.from_numpy(~lacking)] = torch.inf
            search.elsewhere(others.numpy(), own)
        return torch.from_numpy(search.found)

    def nearest_by_products(self, asked: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Find the nearest vectors of the probed cells by matrix products, on any device.

        The cells that are probed are those of :meth:`nearest`, and so are the neighbours but for
        those whose distances differ by less than the rounding of the products.
        """
        cells, probes = self._cells, self.probes
        assert cells is not None
        assert probes is not None
        squares = squared(cells.reduced(asked), cells.centres.to(asked.device))
        probed = ~_beyond(squares, probes)
        best = torch.full((len(asked), count), torch.inf, device=asked.device)
        found = torch.zeros(len(asked), count, dtype=torch.int64, device=asked.device)
        members = torch.split(
            torch.from_numpy(cells.order).to(asked.device), np.diff(cells.starts).tolist()
        )
        for cell, indices in enumerate(members):
            rows = probed[:, cell].nonzero()[:, 0]
            if not len(rows):
                continue
            away, which = nearest(asked[rows], self.vectors[indices], min(count, len(indices)))
            both = torch.cat([best[rows], away], dim=1).sort(dim=1, stable=True)
            who = torch.cat([found[rows], indices[which]], dim=1).gather(1, both.indices)
            best[rows], found[rows] = both.values[:, :count], who[:, :count]
        lacking = best[:, -1].isinf()
        if lacking.any():
            best[lacking], found[lacking] = nearest(asked[lacking], self.vectors, count)
        return best, found


@dataclass(frozen=True, slots=True)
class _Search:
    """Neighbours that were found so far, of N vectors."""

    asked: Floats
    bank: Floats
    cells: Cells
    coded: Coded
    held: Coded | Blocks
    codes: Codes
    lengths: Floats
    slack: Floats
    rounding: Floats
    best: Doubles
    found: Indices

    def elsewhere(self, squares: Floats, own: Indices) -> None:
        """Compare vectors with the cells that can hold nearer ones, except their own.

        ``squares`` are the squared distances from the centres, (N, M), infinite for cells that
        are left out.
        """
        cells = self.cells
        limits: Doubles = np.sqrt(self.best[:, -1]) + self.slack
        bounds = (squares, own, cells.radii, cells.margins, cells.apart, limits, self.rounding)
        near, counts = np.empty(squares.shape, np.bool_), np.empty(squares.shape[1], np.int64)
        within(*bounds, near, counts)
        starts = np.concatenate([[0], np.cumsum(counts)])
        rows = np.empty(starts[-1] + 1, np.int64)
        listed(near, starts, rows)
        self.through(rows, starts)

    def through(self, rows: Indices, starts: Indices) -> None:
        """Compare vectors with cells: those of ``rows`` from ``starts`` on with each."""
        if isinstance(self.held, Blocks):
            self._by_bytes(self.held, rows, starts)
        else:
            self._by_floats(self.held, rows, starts)

    def _by_bytes(self, held: Blocks, rows: Indices, starts: Indices) -> None:
        codes = self.coded.codes.numpy()
        owns = SIGN * codes.sum(axis=1, dtype=np.int32)

        def compared(part: slice) -> None:
            compare(
                self.asked,
                self.bank,
                codes.reshape(-1),
                owns,
                self.coded.squares,
                self.coded.errors,
                rows,
                starts,
                part.start,
                part.stop,
                held,
                self.best,
                self.found,
            )

        with ThreadPoolExecutor(threads := torch.get_num_threads()) as pool:
            list(pool.map(compared, _cuts(len(codes), threads)))

    def _by_floats(self, held: Coded, rows: Indices, starts: Indices) -> None:
        cells = self.cells
        threads = torch.get_num_threads()
        # Fresh memory costs as much as the work.
        memory = torch.empty(_ROWS * threads * _COLUMNS)
        with ThreadPoolExecutor(threads) as pool:
            for cell in np.flatnonzero(np.diff(starts)).tolist():
                among = rows[starts[cell] : starts[cell + 1]]
                asked = self.coded.codes.index_select(0, torch.from_numpy(among))
                blocks = range(cells.starts[cell], cells.starts[cell + 1], _COLUMNS)
                for begin in blocks:
                    end = min(begin + _COLUMNS, cells.starts[cell + 1])
                    block = held.codes[begin:end].T
                    for first in range(0, len(among), _ROWS * threads):
                        part = among[first : first + _ROWS * threads]
                        made = memory[: len(part) * (end - begin)].view(len(part), end - begin)
                        torch.mm(asked[first : first + len(part)], block, out=made)
                        found = made.numpy()
                        if threads == 1:
                            self._refine(held, found, part, begin)
                            continue
                        cuts = [cut for cut in _cuts(len(part), threads) if len(part[cut])]
                        tasks = [
                            pool.submit(self._refine, held, found[cut], part[cut], begin)
                            for cut in cuts
                        ]
                        for task in tasks:
                            task.result()

    def _refine(self, held: Coded, dots: Floats, rows: Indices, begin: int) -> None:
        block = slice(begin, begin + dots.shape[1])
        squares = held.squares[block]
        refine(
            dots,
            rows,
            squares,
            self.cells.order[block],
            self.asked,
            self.bank,
            self.coded.squares,
            self.coded.errors,
            float(held.errors[block].max()),
            self.codes.rounding,
            float(squares.max()) ** 0.5,
            self.best,
            self.found,
        )


def _cuts(count: int, parts: int) -> list[slice]:
    ends = [count * part // parts for part in range(parts + 1)]
    return [slice(first, end) for first, end in itertools.pairwise(ends)]


def _beyond(squares: Tensor, probes: int) -> Tensor:
    """Tell for squared distances, (N, M), whether so many of a row are smaller."""
    probes = min(probes, squares.shape[1])
    return squares > squares.kthvalue(probes, dim=1, keepdim=True).values
