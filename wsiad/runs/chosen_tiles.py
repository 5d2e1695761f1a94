"""Choose the method, the healthy tiles and the labelled anomalous tiles of a training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from wsiad.core.config import build
from wsiad.core.errors import DetectorError
from wsiad.core.geometry import Mpp, TilePx
from wsiad.detectors import registry
from wsiad.learning.detector import Detector, DetectorOptions, HealthyTiles, InputSpec
from wsiad.runs.anomalies import AnomalySlides, anomaly_slides
from wsiad.runs.compatibility import check_apart, check_prepared_alike, check_stops_by_nothing
from wsiad.runs.healthy_tiles import (
    TrainingOptions,
    healthy_slides,
    method_values,
    store_fingerprint,
    tile_source,
    usable_tiles,
)
from wsiad.runs.split import HealthySplit, SlideTiles, split_all_to_fit, split_slides
from wsiad.store.stored_slide import StoredSlide
from wsiad.store.tile_source import StoreTiles
from wsiad.store.tile_store import TileStore
from wsiad.tissue.tissue_options import QualityOptions


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Chosen:
    """Method, slides and tiles that were chosen for a training.

    Parameters
    ----------
    cls, options : type of Detector, DetectorOptions
        Class of the detector, and its options.
    size : int
        Edge of the detector's input, pixels.
    store : TileStore
        Store of the healthy tiles.
    thresholds : QualityOptions
        Quality thresholds of the tiles.
    slides : list of StoredSlide
        Healthy slides.
    skipped : dict of str to str
        Reason why each of the other slides is not used.
    usable : dict of str to ndarray of int64
        Indices of the tiles that pass the thresholds, by slide.
    unusable : dict of str to int
        Number of the other tiles, by reason.
    others : Chosen or None
        Healthy slides of another store to calibrate with, if all slides here are fitted on.
    further : tuple of (StoredSlide, ndarray of int64)
        Slides of another store whose tiles are fitted on too, with the indices of these.
    """

    cls: type[Detector]
    options: DetectorOptions
    size: int
    store: TileStore
    thresholds: QualityOptions
    slides: list[StoredSlide]
    skipped: dict[str, str]
    usable: dict[str, npt.NDArray[np.int64]]
    unusable: dict[str, int]
    others: Chosen | None = None
    further: tuple[tuple[StoredSlide, npt.NDArray[np.int64]], ...] = ()

    def names_of(self, fingerprints: Iterable[str]) -> list[str]:
        """Return the names of the healthy slides with these fingerprints."""
        marks = set(fingerprints)
        return [slide.name for slide in self.all_slides if slide.fingerprint in marks]

    @property
    def all_slides(self) -> list[StoredSlide]:
        """Healthy slides, including those to calibrate with."""
        return [*self.slides, *(self.others.slides if self.others else [])]

    def by_name(self) -> dict[str, tuple[StoredSlide, npt.NDArray[np.int64]]]:
        """Return the healthy slides with their usable tiles, by name."""
        own = {slide.name: (slide, self.usable[slide.name]) for slide in self.slides}
        return own | (self.others.by_name() if self.others else {})

    @property
    def mpp(self) -> Mpp:
        """Scale of the tiles, µm/px."""
        return Mpp(self.store.preparation.mpp)

    def source(self, part: Sequence[SlideTiles]) -> StoreTiles:
        """Return the tiles of a part of the split."""
        return tile_source(part, self.by_name())

    def fingerprints(self) -> dict[str, str]:
        """Return the fingerprint of each store, by name."""
        found = {self.store.path.name: store_fingerprint(self.store, self.slides)}
        if self.others:
            name = f"{self.others.store.path.name} (calibration)"
            found[name] = store_fingerprint(self.others.store, self.others.slides)
        return found

    def counts(self) -> list[tuple[str, int]]:
        """Return the name and the number of usable tiles of each slide."""
        return [(name, len(tiles)) for name, tiles in self.usable.items()]

    def begin(
        self, seed: int, *, only_fit: Sequence[str]
    ) -> tuple[HealthySplit, Detector, HealthyTiles]:
        """Return the split of the slides, an unfitted detector, and the tiles to fit it on."""
        if self.others:
            parts = split_all_to_fit(self.counts(), self.others.counts())
        else:
            tied = self.names_of(slide.fingerprint for slide, _ in self.further)
            parts = split_slides(self.counts(), seed=seed, only_fit=[*only_fit, *tied])
        spec = InputSpec(TilePx(self.size), self.mpp)
        by_name = self.by_name()
        own = [(by_name[item.slide][0], by_name[item.slide][1][item.indices]) for item in parts.fit]
        tiles = HealthyTiles(StoreTiles([*own, *self.further]), self.source(parts.stop))
        return parts, self.cls(self.options, spec), tiles


def choose(options: TrainingOptions) -> Chosen:
    """Choose the method and the healthy tiles by the options of a training.

    Raises
    ------
    StoreError
        The store does not exist or is damaged.
    InputError
        The store has no healthy slide with tiles to train on, or no tile passes the thresholds.
    DetectorError
        The method is unknown, or the tiles are smaller than its input.
    """
    cls = registry.load(options.detector)
    store = TileStore(options.store)
    values = method_values(options.options, cls, store)
    chosen = build(cls.Options, values, source=f"options of {options.detector}")
    thresholds = store.preparation.quality.changed_by(options.quality)
    slides, skipped = healthy_slides(store, options.split)
    usable, unusable = usable_tiles(slides, thresholds)
    tile = store.preparation.tile
    size = cls.input_size(chosen, tile_px=tile, mpp=float(store.preparation.mpp))
    if size > tile:
        raise DetectorError(
            f"needs {size} px, but the store's tiles have {tile} px",
            subject=options.detector,
            remedy=f"Tile with --tile {size} or larger, or set --option input_px={tile}.",
        )
    found = Chosen(
        cls=cls,
        options=chosen,
        size=size,
        store=store,
        thresholds=thresholds,
        slides=slides,
        skipped=skipped,
        usable=usable,
        unusable=unusable,
    )
    if options.calibration:
        found = replace(found, others=_chosen_others(options, found))
    if options.healthy_regions:
        found = replace(found, further=_further(options, found))
    return found


def _further(
    options: TrainingOptions, chosen: Chosen
) -> tuple[tuple[StoredSlide, npt.NDArray[np.int64]], ...]:
    """Choose the tiles of the store of further healthy tiles."""
    assert options.healthy_regions is not None
    store, own = TileStore(options.healthy_regions), chosen.store
    check_prepared_alike(store, own.preparation, own.target, keys=("mpp", "stain"))
    if store.preparation.tile != own.preparation.tile:
        raise DetectorError(
            f"has tiles of {store.preparation.tile} px, and {own.path} of {own.preparation.tile}",
            subject=str(store.path),
            remedy="Pass tiles of the same size.",
        )
    slides, _ = healthy_slides(store, None)
    if chosen.others:
        check_apart(chosen.others.slides, slides, subject=str(options.calibration))
    usable, _ = usable_tiles(slides, chosen.thresholds)
    return tuple((slide, usable[slide.name]) for slide in slides if len(usable[slide.name]))


def _chosen_others(options: TrainingOptions, chosen: Chosen) -> Chosen:
    """Choose the healthy tiles of the store to calibrate with; see :func:`check_apart`."""
    keeps = getattr(chosen.options, "keep", "last")
    check_stops_by_nothing(options.detector, keeps=keeps)
    values = {"store": options.calibration, "calibration": None, "split": None}
    values |= {"healthy_regions": None}
    other = choose(options.model_copy(update=values))
    store = chosen.store
    check_prepared_alike(other.store, store.preparation, store.target, keys=("mpp", "stain"))
    check_apart(other.slides, chosen.slides, subject=str(options.calibration))
    return other


def anomalies_of(options: TrainingOptions, chosen: Chosen) -> AnomalySlides | None:
    """Choose the labelled anomalous tiles of a training; ``None`` without `anomalies`.

    Raises
    ------
    StoreError
        The store does not exist or is damaged.
    StoreMismatchError
        The tiles were prepared differently from the healthy ones.
    InputError
        The store has no anomalous slide with tiles to learn from, or one of its slides is to
        calibrate with.
    DetectorError
        The tiles are smaller than the detector's input.
    """
    if options.anomalies is None:
        return None
    store = TileStore(options.anomalies)
    check_prepared_alike(
        store, chosen.store.preparation, chosen.store.target, keys=("mpp", "stain")
    )
    if store.preparation.tile < chosen.size:
        raise DetectorError(
            f"needs {chosen.size} px, but the anomalous tiles have {store.preparation.tile} px",
            subject=options.detector,
            remedy="Pass larger tiles, or set a smaller input with --option input_px.",
        )
    thresholds = store.preparation.quality.changed_by(options.quality)
    found = anomaly_slides(
        store,
        types=options.anomaly_types,
        split=options.split,
        most=options.anomaly_tiles,
        seed=options.seed,
        usable=lambda slides: usable_tiles(slides, thresholds, kind="anomalous")[0],
        labels_of=chosen.cls.labels_of,
    )
    if chosen.others:  # loose tiles have the fingerprint of a file of many slides
        whole = [slide for slide in found.slides if slide.has_geometry]
        check_apart(chosen.others.slides, whole, subject=str(options.calibration))
    return found
