"""The tiles of a search: which, in which fold, and as sources of one fold's fit and test."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsiad.core.errors import DetectorError
from wsiad.runs.anomalies import AnomalySlides, anomaly_slides, spread
from wsiad.runs.fit_tiles import healthy_slides, store_fingerprint, usable_tiles
from wsiad.runs.preparation import check_prepared_alike
from wsiad.store.unseen_slides import unseen_lines, unseen_slides
from wsiad.tuning.folds import Folds, make_folds
from wsiad.tuning.space import Space, options_of, values_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from wsiad.learning.detector import AnomalousTiles, Detector, HealthyTiles
    from wsiad.store.arrays import ArrayTiles
    from wsiad.store.dataset import ChunkedTiles
    from wsiad.store.tile_store import TileStore
    from wsiad.verbs.tune import TuneConfig

    Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SearchTiles:
    """Tiles that a search works on; picklable.

    Parameters
    ----------
    healthy, anomalous : Path
        Their stores.
    tile : int
        Edge of the smaller of their tiles, pixels.
    mpp : float
        µm/px.
    folds : Folds
    types : dict of str to str
        Type of each anomalous slide.
    learns : bool
        Whether the detector learns from anomalous tiles.
    warnings : tuple of str
        What takes away from the figures.
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
        """Return what the record says of the tiles."""
        return dict(self.facts)

    def membership(self, config: TuneConfig) -> dict[str, Any]:
        """Return which slides, or tiles, are in which fold, as JSON values."""
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
        """Return what a detector is fitted on in a fold, anomalies only if it learns from them.

        A part of the slides is held out, to know when to stop.

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

    def test_sources(
        self, fold: int
    ) -> tuple[ArrayTiles | ChunkedTiles, ArrayTiles | ChunkedTiles]:
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


def search_tiles(config: TuneConfig, cls: type[Detector], *, learns: bool) -> SearchTiles:
    """Choose the tiles of a search and deal them to folds.

    Raises
    ------
    StoreError
        There is no store, or it is damaged.
    StoreMismatchError
        The anomalous tiles were prepared otherwise than the healthy ones.
    InputError
        There are no healthy or anomalous tiles, or fewer slides than folds.
    DetectorError
        The tiles are smaller than an input that is to be tried.
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
        config.store,
        config.anomalies,
        tile,
        float(store.preparation.mpp),
        folds,
        types,
        learns,
        (*_unseen(store, odd), *_warnings(config, learns=learns)),
        facts,
    )


def _unseen(*stores: TileStore) -> list[str]:
    lines = [unseen_lines(unseen_slides(store), str(store.path)) for store in stores]
    return ["\n".join(said) for said in lines if said]


def _check_inputs(config: TuneConfig, cls: type[Detector], tile: int) -> None:
    """Check that the largest input that is to be tried fits into a tile."""
    largest = max(_inputs(config.space), default=config.options.get("input_px"))
    size = largest or cls.default_input_px or tile
    if size > tile:
        raise DetectorError(
            f"needs {size} px and the tiles have {tile} px",
            subject=config.detector,
            remedy=f"Tile with --tile {size} or larger, or try a smaller input_px.",
        )


def _inputs(space: Space) -> list[int]:
    """All values of ``input_px`` in a space; of a range its ends."""
    found = []
    for name, parameter in space.items():
        values = values_of(parameter) or [parameter.low, parameter.high]  # type: ignore[union-attr]
        sizes = (options_of({name: parameter}, {name: value}).get("input_px") for value in values)
        found += [int(size) for size in sizes if size is not None]
    return found


def _warnings(config: TuneConfig, *, learns: bool) -> list[str]:
    found = []
    if config.healthy_folds_by == "tile":
        found.append(
            "healthy tiles are dealt to folds one by one: a slide is fitted on and tested on, and "
            "the figures are too good"
        )
    if config.anomaly_folds_by == "tile":
        effect = (
            "the detector has learnt from slides that it is tested on, and the figures are too good"
            if learns
            else "the detector does not learn from them, but the spread over folds is too small"
        )
        found.append(f"anomalous tiles are dealt to folds one by one: {effect}")
    return found


def _source(path: Path, tiles: dict[str, Indices]) -> ArrayTiles | ChunkedTiles:
    from wsiad.store.dataset import store_tiles
    from wsiad.store.tile_store import TileStore

    store = TileStore(path)
    return store_tiles([(store.slide(name), indices) for name, indices in sorted(tiles.items())])


def _joined(parts: list[Indices]) -> Indices:
    import numpy as np

    return np.sort(np.concatenate(parts))
