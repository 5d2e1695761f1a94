"""Bags of tiles for methods that learn from labels of slides: a bag is a slide's tiles."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from wsiad.learning.detector import AnomalousTiles, TileSource

Positions = npt.NDArray[np.int64]


@runtime_checkable
class KnowsSlides(Protocol):
    """Capability of a :class:`~wsiad.learning.detector.TileSource` to name its slides."""

    def slide_counts(self) -> Mapping[str, int]:
        """Return the number of tiles of each slide, in the order of ``ordered``."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Bag:
    """Some tiles of one slide.

    Parameters
    ----------
    name : str
        Name of the slide.
    source : TileSource
        Source of the tiles.
    positions : ndarray of int64, (n,)
        Sorted positions of the tiles in the source's order.
    """

    name: str
    source: TileSource
    positions: Positions

    def __len__(self) -> int:
        return len(self.positions)


def anomalous_bags(anomalies: AnomalousTiles, *, most: int, seed: int) -> list[Bag]:
    """Return a bag for each anomalous slide, whose label is the slide's and not the tiles'.

    Parameters
    ----------
    anomalies : AnomalousTiles
    most : int
        Maximum number of tiles in a bag; more are drawn by the seed and the slide's name.
    seed : int
    """
    found = []
    for kind in anomalies.types:
        slides = np.asarray(kind.slides)
        for name in sorted(set(kind.slides)):
            positions = np.flatnonzero(slides == name)
            found.append(Bag(name, kind.tiles, _some(positions, most, seed=seed, name=name)))
    return found


def healthy_bags(tiles: TileSource, *, most: int, usual: int, seed: int) -> list[Bag]:
    """Return a bag for each healthy slide.

    Any tiles of healthy slides are a healthy bag. Where the source does not know the slides, its
    tiles are therefore dealt into bags of the usual size.

    Parameters
    ----------
    tiles : TileSource
    most : int
        Maximum number of tiles in a bag, as for :func:`anomalous_bags`.
    usual : int
        Usual number of tiles in an anomalous bag.
    seed : int
    """
    if isinstance(tiles, KnowsSlides):
        counts = dict(tiles.slide_counts())
    else:
        number = max(1, round(len(tiles) / max(1, min(usual, most))))
        edges = np.linspace(0, len(tiles), number + 1).astype(int)
        counts = {f"bag {i:06}": int(n) for i, n in enumerate(np.diff(edges)) if n}
    found, start = [], 0
    for name, count in counts.items():
        positions = np.arange(start, start + count)
        found.append(Bag(name, tiles, _some(positions, most, seed=seed, name=name)))
        start += count
    return found


def _some(positions: Positions, most: int, *, seed: int, name: str) -> Positions:
    if len(positions) <= most:
        return positions.astype(np.int64)
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    return np.sort(rng.choice(positions, most, replace=False)).astype(np.int64)
