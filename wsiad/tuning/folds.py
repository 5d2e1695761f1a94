"""Choose the tiles of a search and divide them into folds, so that a test has only unseen tiles.

The protocol is that of Shvetsova et al. 2021, section IV-C: a detector is fitted on the healthy
tiles of all folds except one, and tested on the healthy and the anomalous tiles of that one. In
the folds that were released with the paper, every slide is in every fold; here a slide is in
exactly one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from wsiad.core.errors import DetectorError, InputError
from wsiad.runs.anomalies import AnomalySlides, anomaly_slides, spread
from wsiad.runs.compatibility import check_prepared_alike
from wsiad.runs.healthy_tiles import healthy_slides, store_fingerprint, usable_tiles
from wsiad.runs.split import SlideTiles
from wsiad.store.tile_task import unseen_lines, unseen_slides
from wsiad.tuning.space import SearchOptions, Space, options_of, values_of

if TYPE_CHECKING:
    from wsiad.learning.detector import AnomalousTiles, Detector, HealthyTiles
    from wsiad.store.tile_source import StoreTiles
    from wsiad.store.tile_store import TileStore

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
        raise InputError(f"{total} {kind} tiles cannot fill {folds} folds", remedy="Add tiles.")
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


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchTiles:
    """Tiles that a search uses; picklable, so that workers can get them.

    Parameters
    ----------
    healthy, anomalous : Path
        Store of the healthy tiles, and store of the anomalous tiles.
    tile : int
        Edge of the tiles, pixels; the smaller one if the stores differ.
    mpp : float
        Scale of the tiles, µm/px.
    folds : Folds
        Tiles of each fold.
    types : dict of str to str
        Type of each anomalous slide.
    learns : bool
        True where the detector learns from anomalous tiles.
    warnings : tuple of str
        Reasons why the figures are worth less.
    facts : dict
        JSON values for the record.
    """

    healthy: Path
    anomalous: Path
    tile: int
    mpp: float
    folds: Folds
    types: dict[str, str]
    learns: bool
    warnings: tuple[str, ...]
    facts: dict[str, Any]

    def note(self) -> dict[str, Any]:
        """Return the record's entry on the tiles, as JSON values."""
        return dict(self.facts)

    def membership(self, config: SearchOptions) -> dict[str, Any]:
        """Return the slides, or tiles, of each fold as JSON values."""
        by = {"healthy": config.healthy_folds_by, "anomalies": config.anomaly_folds_by}
        return {
            "by": by,
            "seed": config.seed,
            "types": self.types,
            "warnings": list(self.warnings),
            "tiles_are": "indices" if "tile" in by.values() else "counted",
            "folds": self.folds.as_json(tiles="tile" in by.values()),
        }

    def fit_sources(self, fold: int, *, seed: int) -> tuple[HealthyTiles, AnomalousTiles | None]:
        """Return the healthy tiles that a fold is fitted on, and the anomalous ones.

        A part of the healthy slides is held out, to decide when to stop. The anomalous tiles are
        ``None`` if the detector does not learn from them.

        Raises
        ------
        InputError
            There are fewer than three healthy tiles.
        """
        from wsiad.learning.detector import HealthyTiles
        from wsiad.runs.split import split_slides

        parts = self.folds.parts(fold)
        anomalies = parts.anomalies_fit if self.learns else {}
        split = split_slides(
            [(name, len(tiles)) for name, tiles in parts.fit.items()],
            seed=seed,
            only_fit=list(anomalies),
        )
        # There is nothing to calibrate: what a run would hold out for it is fitted on.
        chosen: dict[str, list[Indices]] = {}
        for item in (*split.fit, *split.calibration):
            chosen.setdefault(item.slide, []).append(parts.fit[item.slide][item.indices])
        stop = {item.slide: parts.fit[item.slide][item.indices] for item in split.stop}
        healthy = HealthyTiles(
            _source(self.healthy, {name: _joined(some) for name, some in chosen.items()}),
            _source(self.healthy, stop),
        )
        return healthy, self._anomalous(anomalies) if anomalies else None

    def test_sources(self, fold: int) -> tuple[StoreTiles, StoreTiles]:
        """Return the healthy and the anomalous tiles that a fold is tested on."""
        parts = self.folds.parts(fold)
        return _source(self.healthy, parts.test), _source(self.anomalous, parts.anomalies_test)

    def _anomalous(self, tiles: dict[str, Indices]) -> AnomalousTiles:
        from wsiad.store.tile_store import TileStore

        store = TileStore(self.anomalous)
        types: dict[str, list[Any]] = {}
        for name, indices in tiles.items():
            types.setdefault(self.types[name], []).append((store.slide(name), indices))
        return AnomalySlides(store, types, {}).tiles()


def search_tiles(config: SearchOptions, cls: type[Detector], *, learns: bool) -> SearchTiles:
    """Choose the tiles of a search and divide them into folds.

    Raises
    ------
    StoreError
        A store does not exist or is damaged.
    StoreMismatchError
        The anomalous tiles were prepared differently from the healthy ones.
    InputError
        There are no healthy or no anomalous tiles, or fewer slides than folds.
    DetectorError
        The tiles are smaller than an input size to try.
    """
    from wsiad.store.tile_store import TileStore

    store, odd = TileStore(config.store), TileStore(config.anomalies)
    check_prepared_alike(odd, store.preparation, store.target, keys=("mpp", "stain"))
    tile = min(store.preparation.tile, odd.preparation.tile)
    _check_inputs(config, cls, tile)
    slides, skipped = healthy_slides(store, config.split)
    usable, _ = usable_tiles(slides, store.preparation.quality.changed_by(config.quality))
    usable = spread(usable, config.healthy_tiles, seed=config.seed)
    thresholds = odd.preparation.quality.changed_by(config.quality)
    anomalies = anomaly_slides(
        odd,
        types=config.anomaly_types,
        split=config.split,
        most=config.anomaly_tiles,
        seed=config.seed,
        usable=lambda slides: usable_tiles(slides, thresholds, kind="anomalous")[0],
    )
    types = {slide.name: name for name, parts in anomalies.types.items() for slide, _ in parts}
    folds = make_folds(
        usable,
        {slide.name: tiles for parts in anomalies.types.values() for slide, tiles in parts},
        folds=config.folds,
        seed=config.seed,
        healthy_by_tile=config.healthy_folds_by == "tile",
        anomalous_by_tile=config.anomaly_folds_by == "tile",
        types=types if config.anomaly_folds_by == "label" else None,
    )
    facts = {
        "stores": {config.store.name: store_fingerprint(store, slides)},
        "healthy": {"slides": len(usable), "tiles": sum(map(len, usable.values()))},
        "anomalies": anomalies.note(),
    } | ({"slides_not_used": skipped} if skipped else {})
    return SearchTiles(
        healthy=config.store,
        anomalous=config.anomalies,
        tile=tile,
        mpp=float(store.preparation.mpp),
        folds=folds,
        types=types,
        learns=learns,
        warnings=(*_unseen(store, odd), *_warnings(config, learns=learns)),
        facts=facts,
    )


def _unseen(*stores: TileStore) -> list[str]:
    lines = [unseen_lines(unseen_slides(store), str(store.path)) for store in stores]
    return ["\n".join(said) for said in lines if said]


def _check_inputs(config: SearchOptions, cls: type[Detector], tile: int) -> None:
    """Check that the largest input size to try fits into a tile."""
    largest = max(_inputs(config.space), default=config.options.get("input_px"))
    size = largest or cls.default_input_px or tile
    if size > tile:
        raise DetectorError(
            f"needs {size} px, but the tiles have {tile} px",
            subject=config.detector,
            remedy=f"Tile with --tile {size} or larger, or try a smaller input_px.",
        )


def _inputs(space: Space) -> list[int]:
    """Return all values of ``input_px`` in a space; for a range, its ends."""
    found = []
    for name, parameter in space.items():
        values = values_of(parameter) or [parameter.low, parameter.high]  # type: ignore[union-attr]
        sizes = (options_of({name: parameter}, {name: value}).get("input_px") for value in values)
        found += [int(size) for size in sizes if size is not None]
    return found


def _warnings(config: SearchOptions, *, learns: bool) -> list[str]:
    found = []
    if config.healthy_folds_by == "tile":
        found.append(
            "healthy tiles are divided into folds tile by tile: detectors are tested on slides "
            "that they were fitted on, and the figures are too good"
        )
    if config.anomaly_folds_by == "tile":
        effect = (
            "detectors are tested on slides that they were trained on, and the figures are too good"
            if learns
            else "the detector does not learn from them, but the spread over folds is too small"
        )
        found.append(f"anomalous tiles are divided into folds tile by tile: {effect}")
    return found


def _source(path: Path, tiles: dict[str, Indices]) -> StoreTiles:
    from wsiad.store.tile_source import StoreTiles
    from wsiad.store.tile_store import TileStore

    store = TileStore(path)
    return StoreTiles([(store.slide(name), indices) for name, indices in sorted(tiles.items())])


def _joined(parts: list[Indices]) -> Indices:
    import numpy as np

    return np.sort(np.concatenate(parts))
