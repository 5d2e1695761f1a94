"""Choose the tiles of a search at each of its scales, and give them out fold by fold."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsiad.core.errors import DetectorError, RunError, StoreMismatchError
from wsiad.core.files import read_json, write_json
from wsiad.runs.anomalies import AnomalySlides, anomaly_slides, spread
from wsiad.runs.compatibility import check_prepared_alike
from wsiad.runs.healthy_tiles import healthy_slides, store_fingerprint, usable_tiles
from wsiad.store.tile_task import unseen_lines, unseen_slides
from wsiad.tuning.folds import Folds, Indices, make_folds
from wsiad.tuning.scale_slides import ScaleSlides, check_same_slides
from wsiad.tuning.space import SCALE, Params, SearchOptions, Space, options_of, values_of

if TYPE_CHECKING:
    from wsiad.learning.detector import AnomalousTiles, Detector, HealthyTiles
    from wsiad.store.tile_source import StoreTiles
    from wsiad.store.tile_store import TileStore


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
    others : tuple of SearchTiles
        The same slides at other scales, in the same folds.
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
    others: tuple[SearchTiles, ...] = ()

    def scales(self) -> list[float]:
        """Return the scales of the search, µm/px, from the finest."""
        return sorted(one.mpp for one in (self, *self.others))

    def at(self, params: Params) -> SearchTiles:
        """Return the tiles of a trial's scale.

        Raises
        ------
        RunError
            There are none, because a store was tiled again since the search began.
        """
        mpp = params.get(SCALE, self.mpp)
        for one in (self, *self.others):
            if one.mpp == mpp:
                return one
        raise RunError(
            f"no store has tiles of {mpp:g} µm/px any more",
            subject=str(self.healthy),
            remedy="Begin another search in another folder.",
        )

    def note(self) -> dict[str, Any]:
        """Return the record's entry on the tiles, as JSON values."""
        if not self.others:
            return dict(self.facts)
        scales = [{"mpp": one.mpp, **one.facts} for one in (self, *self.others)]
        return {**self.facts, "scales": scales}

    def write_folds(self, path: Path, config: SearchOptions) -> None:
        """Write the slides, or tiles, of each fold; a search that is resumed keeps them.

        Raises
        ------
        RunError
            The file is of other tiles: those of the stores changed since the search began.
        """
        found = json.loads(json.dumps(self.membership(config)))
        if path.exists():
            remedy = "Begin another search in another folder."
            before = read_json(path, RunError, keys=("folds",), remedy=remedy)
            changed = {name for name in before.keys() & found if before[name] != found[name]}
            if changed - {"warnings"}:
                stores = f"{self.healthy} or {self.anomalous}"
                raise RunError(
                    f"the tiles of {stores} changed since the search began",
                    subject=str(path.parent),
                    remedy=remedy,
                )
        write_json(path, found)

    def membership(self, config: SearchOptions) -> dict[str, Any]:
        """Return the slides, or tiles, of each fold as JSON values, and what tiles they are."""
        by = {"healthy": config.healthy_folds_by, "anomalies": config.anomaly_folds_by}
        return {
            "by": by,
            "seed": config.seed,
            "types": self.types,
            "warnings": list(self.warnings),
            "tiles_are": "indices" if "tile" in by.values() else "counted",
            "folds": self.folds.as_json(tiles="tile" in by.values()),
            "tiles": self.note(),
        } | (
            {"scales": [{"mpp": o.mpp, "folds": o.folds.as_json(tiles=False)} for o in self.others]}
            if self.others
            else {}
        )

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
    """Choose the tiles of a search, at each scale, and divide them into folds.

    Raises
    ------
    StoreError
        A store does not exist or is damaged.
    StoreMismatchError
        The anomalous tiles were prepared differently from the healthy ones, or a store of another
        scale holds other slides, has the same scale, or another stain normalisation.
    InputError
        There are no healthy or no anomalous tiles, or fewer slides than folds.
    DetectorError
        The tiles are smaller than an input size to try.
    """
    chosen = _chosen(config, cls, (config.store, config.anomalies))
    types = chosen.types
    folds = make_folds(
        chosen.healthy,
        chosen.anomalous,
        folds=config.folds,
        seed=config.seed,
        healthy_by_tile=config.healthy_folds_by == "tile",
        anomalous_by_tile=config.anomaly_folds_by == "tile",
        types=types if config.anomaly_folds_by == "label" else None,
    )
    warnings = tuple(_warnings(config, learns=learns))
    first = chosen.tiles(folds, learns=learns, warnings=warnings)
    others = []
    scales = {first.mpp: first.healthy}
    for healthy, anomalies in config.scales.items():
        other = _chosen(config, cls, (Path(healthy), anomalies))
        check_same_slides(chosen.slides, other.slides)
        if (same := scales.get(other.mpp)) is not None:
            raise StoreMismatchError(
                f"has tiles of {other.mpp:g} µm/px, as {same} has",
                subject=healthy,
                remedy="Tile the slides at another --mpp, or leave this store out.",
            )
        scales[other.mpp] = Path(healthy)
        dealt = folds.dealt(other.healthy, other.anomalous)
        others.append(other.tiles(dealt, learns=learns, warnings=()))
    return replace(
        first,
        others=tuple(others),
        warnings=tuple(dict.fromkeys(line for one in (first, *others) for line in one.warnings)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chosen:
    """Tiles of one scale, before they are divided into folds."""

    slides: ScaleSlides
    stores: tuple[TileStore, TileStore]
    tile: int
    healthy: dict[str, Indices]
    anomalous: dict[str, Indices]
    facts: dict[str, Any]

    @property
    def types(self) -> dict[str, str]:
        return dict(self.slides.types)

    @property
    def mpp(self) -> float:
        return float(self.stores[0].preparation.mpp)

    def tiles(self, folds: Folds, *, learns: bool, warnings: tuple[str, ...]) -> SearchTiles:
        """Return the tiles in their folds."""
        return SearchTiles(
            healthy=self.stores[0].path,
            anomalous=self.stores[1].path,
            tile=self.tile,
            mpp=self.mpp,
            folds=folds,
            types=self.types,
            learns=learns,
            warnings=(*_unseen(*self.stores), *warnings),
            facts=self.facts,
        )


def _chosen(config: SearchOptions, cls: type[Detector], paths: tuple[Path, Path]) -> _Chosen:
    """Choose the healthy and the anomalous tiles of two stores of one scale."""
    from wsiad.store.tile_store import TileStore

    store, odd = (TileStore(path) for path in paths)
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
    parts = [part for some in anomalies.types.values() for part in some]
    facts = {
        "stores": {paths[0].name: store_fingerprint(store, slides)},
        "healthy": {"slides": len(usable), "tiles": sum(map(len, usable.values()))},
        "anomalies": anomalies.note(),
    } | ({"slides_not_used": skipped} if skipped else {})
    return _Chosen(
        slides=ScaleSlides.of(
            paths,
            [slide for slide in slides if len(usable.get(slide.name, ()))],
            {
                name: [slide for slide, tiles in some if len(tiles)]
                for name, some in anomalies.types.items()
            },
            stain=store.preparation.stain.method,
        ),
        stores=(store, odd),
        tile=tile,
        healthy=usable,
        anomalous={slide.name: tiles for slide, tiles in parts},
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
    return np.sort(np.concatenate(parts))
