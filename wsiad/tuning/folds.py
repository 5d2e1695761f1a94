"""Divide the tiles of a search into folds, so that a test has only unseen tiles.

The protocol is that of Shvetsova et al. 2021, section IV-C: a detector is fitted on the healthy
tiles of all folds except one, and tested on the healthy and the anomalous tiles of that one. In
the folds that were released with the paper, every slide is in every fold; here a slide is in
exactly one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiad.core.errors import InputError
from wsiad.core.terminal import counted
from wsiad.runs.split import SlideTiles

Indices = npt.NDArray[np.int64]
Tiles = Mapping[str, Indices]
"""Indices of tiles by slide."""


@dataclass(frozen=True, slots=True)
class FoldParts:
    """Tiles that one fold fits on and tests on, as indices by slide.

    Parameters
    ----------
    fit, test : dict of str to ndarray of int64
        Healthy tiles of the other folds, and of this fold.
    anomalies_fit, anomalies_test : dict of str to ndarray of int64
        Anomalous tiles of the other folds, for detectors that learn from them, and of this fold.
    """

    fit: dict[str, Indices]
    test: dict[str, Indices]
    anomalies_fit: dict[str, Indices]
    anomalies_test: dict[str, Indices]


@dataclass(frozen=True, slots=True)
class Folds:
    """Healthy and anomalous tiles by fold.

    Parameters
    ----------
    healthy, anomalous : tuple of tuple of SlideTiles
        Tiles of each fold, in order of the slides' names.
    """

    healthy: tuple[tuple[SlideTiles, ...], ...]
    anomalous: tuple[tuple[SlideTiles, ...], ...]

    def __len__(self) -> int:
        return len(self.healthy)

    def parts(self, fold: int) -> FoldParts:
        """Return the tiles that a fold fits on and tests on; folds are counted from 1."""
        test, others = fold - 1, [i for i in range(len(self)) if i != fold - 1]
        return FoldParts(
            fit=_merged([item for i in others for item in self.healthy[i]]),
            test=_merged(self.healthy[test]),
            anomalies_fit=_merged([item for i in others for item in self.anomalous[i]]),
            anomalies_test=_merged(self.anomalous[test]),
        )

    def dealt(self, healthy: Tiles, anomalous: Tiles) -> Folds:
        """Return other tiles of the same slides, each slide in the fold that it is in here."""

        def of(parts: tuple[tuple[SlideTiles, ...], ...], tiles: Tiles) -> Any:
            return tuple(
                tuple(SlideTiles(item.slide, np.sort(tiles[item.slide])) for item in part)
                for part in parts
            )

        return Folds(of(self.healthy, healthy), of(self.anomalous, anomalous))

    def as_json(self, *, tiles: bool) -> list[dict[str, Any]]:
        """Return the content of the folds: the number of tiles by slide, or all their indices."""

        def listed(part: Sequence[SlideTiles]) -> dict[str, Any]:
            return {
                item.slide: item.indices.tolist() if tiles else len(item.indices) for item in part
            }

        pairs = zip(self.healthy, self.anomalous, strict=True)
        return [
            {"fold": number, "healthy": listed(healthy), "anomalies": listed(anomalous)}
            for number, (healthy, anomalous) in enumerate(pairs, 1)
        ]


def make_folds(
    healthy: Tiles,
    anomalous: Tiles,
    *,
    folds: int,
    seed: int,
    healthy_by_tile: bool = False,
    anomalous_by_tile: bool = False,
    types: Mapping[str, str] | None = None,
) -> Folds:
    """Divide slides, or tiles, into folds with about the same number of tiles each.

    A slide with both healthy and anomalous tiles is in one fold with all of them.

    Parameters
    ----------
    healthy, anomalous : mapping of str to ndarray of int64
        Indices of tiles by slide; slides without tiles are left out.
    folds : int
        Number of folds, at least two.
    seed : int
        Seed; the same seed, slides and tiles give the same folds.
    healthy_by_tile, anomalous_by_tile : bool
        Divide tiles instead of slides, so that tiles of one slide are in several folds.
    types : mapping of str to str, optional
        Type of each anomalous slide; all slides of a type are in one fold.

    Raises
    ------
    InputError
        There are fewer slides (types, tiles) than folds.
    """
    healthy = {name: tiles for name, tiles in sorted(healthy.items()) if len(tiles)}
    anomalous = {name: tiles for name, tiles in sorted(anomalous.items()) if len(tiles)}
    rng = np.random.default_rng([seed, 0xF01D])
    groups = {name: f"type {types[name]}" if types else f"slide {name}" for name in anomalous}
    kind = ("type", " of anomalous slides") if types else ("anomalous slide", "")
    fold_of: dict[str, int] = {}
    if anomalous_by_tile:
        anomalous_parts = _by_tile(anomalous, folds, rng, kind="anomalous")
    else:
        weights = _summed(anomalous, groups)
        fold_of = _balanced(weights, [0] * folds, rng)
        _check_filled(fold_of.values(), folds, _counted(len(weights), *kind), "--anomaly-folds-by")
        anomalous_parts = _by_fold(anomalous, groups, fold_of, folds)
    if healthy_by_tile:
        healthy_parts = _by_tile(healthy, folds, rng, kind="healthy")
    else:
        tied = groups if not anomalous_by_tile else {}
        own = {name: tied.get(name, f"slide {name}") for name in healthy}
        weights = _summed(healthy, own)
        loads = [0] * folds
        for group, fold in fold_of.items():
            loads[fold] += weights.pop(group, 0)
        fold_of |= _balanced(weights, loads, rng)
        filled = (fold_of[group] for group in own.values())
        _check_filled(filled, folds, _counted(len(healthy), "healthy slide"), "--healthy-folds-by")
        healthy_parts = _by_fold(healthy, own, fold_of, folds)
    return Folds(healthy_parts, anomalous_parts)


def _summed(tiles: Tiles, groups: Mapping[str, str]) -> dict[str, int]:
    weights: dict[str, int] = {}
    for name, indices in tiles.items():
        weights[groups[name]] = weights.get(groups[name], 0) + len(indices)
    return weights


def _balanced(
    weights: Mapping[str, int], loads: Sequence[int], rng: np.random.Generator
) -> dict[str, int]:
    """Put each group, the largest first, into the fold with the fewest tiles."""
    filled = list(loads)
    names = sorted(weights)
    shuffled = [names[i] for i in rng.permutation(len(names))]
    fold_of = {}
    for name in sorted(shuffled, key=lambda group: -weights[group]):
        fold = min(range(len(filled)), key=filled.__getitem__)
        fold_of[name] = fold
        filled[fold] += weights[name]
    return fold_of


def _counted(number: int, what: str, rest: str = "") -> str:
    return f"{number} {what}{'' if number == 1 else 's'}{rest}"


def _check_filled(fold_of: Iterable[int], folds: int, what: str, option: str) -> None:
    if len(set(fold_of)) < folds:
        raise InputError(
            f"{what} cannot fill {folds} folds, because each slide is in exactly one fold",
            remedy=f"Add slides, lower --folds, or set {option} tile: tiles of one slide are then "
            "in several folds, and the result states this.",
        )


def _by_fold(
    tiles: Tiles, groups: Mapping[str, str], fold_of: Mapping[str, int], folds: int
) -> tuple[tuple[SlideTiles, ...], ...]:
    parts: list[list[SlideTiles]] = [[] for _ in range(folds)]
    for name, indices in tiles.items():
        parts[fold_of[groups[name]]].append(SlideTiles(name, np.sort(indices)))
    return tuple(map(tuple, parts))


def _by_tile(
    tiles: Tiles, folds: int, rng: np.random.Generator, *, kind: str
) -> tuple[tuple[SlideTiles, ...], ...]:
    names = list(tiles)
    total = sum(map(len, tiles.values()))
    if total < folds:
        raise InputError(
            f"{counted(total, f'{kind} tile')} cannot fill {folds} folds", remedy="Add tiles."
        )
    owner = np.repeat(np.arange(len(names)), [len(tiles[name]) for name in names])
    index = np.concatenate([tiles[name] for name in names])
    order = rng.permutation(total)
    return tuple(
        tuple(
            SlideTiles(names[i], np.sort(index[part][owner[part] == i]))
            for i in np.unique(owner[part])
        )
        for part in (order[fold::folds] for fold in range(folds))
    )


def _merged(parts: Sequence[SlideTiles]) -> dict[str, Indices]:
    """Return the indices of tiles by slide, sorted; a slide may be in several parts."""
    found: dict[str, list[Indices]] = {}
    for item in parts:
        found.setdefault(item.slide, []).append(item.indices)
    return {name: np.sort(np.concatenate(some)) for name, some in sorted(found.items())}
