"""How a detector is fitted by ``wsiad train``: on which tiles, by one process or by several."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from wsiad.core.config import build
from wsiad.core.errors import ConfigError, DetectorError, RunError
from wsiad.core.geometry import Mpp, TilePx
from wsiad.detectors import registry
from wsiad.learning.detector import (
    AnomalousTiles,
    Budget,
    Detector,
    DetectorOptions,
    FitContext,
    HealthyTiles,
    InputSpec,
)
from wsiad.learning.device import choose_device
from wsiad.learning.ranks import Ranks
from wsiad.runs.anomalies import AnomalySlides, anomaly_slides
from wsiad.runs.healthy_tiles import TrainingOptions, healthy_slides, tile_source, usable_tiles
from wsiad.runs.preparation import check_prepared_alike
from wsiad.runs.split import HealthySplit, SlideTiles, split_slides
from wsiad.store.dataset import ArrayTiles, ChunkedTiles
from wsiad.store.stored_slide import StoredSlide
from wsiad.store.tile_store import TileStore
from wsiad.tissue.tissue_options import QualityOptions

_PATIENCE_SECONDS = 10


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Chosen:
    """The choice of a training: the method, the slides, and which of their tiles.

    Parameters
    ----------
    cls, options : type of Detector, DetectorOptions
    size : int
        Edge of the detector's input, pixels.
    store : TileStore
    thresholds : QualityOptions
    slides : list of StoredSlide
    skipped : dict of str to str
        Why slides are not used.
    usable : dict of str to ndarray of int64
        Tiles by slide.
    unusable : dict of str to int
        Counts of the other tiles by reason.
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

    def source(self, part: Sequence[SlideTiles]) -> ArrayTiles | ChunkedTiles:
        """Return the tiles of a part of the split."""
        by_name = {slide.name: (slide, self.usable[slide.name]) for slide in self.slides}
        return tile_source(part, by_name)

    def begin(
        self, seed: int, *, only_fit: Sequence[str]
    ) -> tuple[HealthySplit, Detector, HealthyTiles]:
        """Return the split of the slides, an unfitted detector, and the tiles to fit it on."""
        counts = [(name, len(tiles)) for name, tiles in self.usable.items()]
        parts = split_slides(counts, seed=seed, only_fit=only_fit)
        spec = InputSpec(TilePx(self.size), Mpp(self.store.preparation.mpp))
        tiles = HealthyTiles(self.source(parts.fit), self.source(parts.stop))
        return parts, self.cls(self.options, spec), tiles


def choose(options: TrainingOptions) -> Chosen:
    """Find the method and the tiles that options ask for.

    Raises
    ------
    StoreError, InputError, DetectorError
        As by :func:`wsiad.train`.
    """
    cls = registry.load(options.detector)
    chosen = build(cls.Options, options.options, source=f"options of {options.detector}")
    store = TileStore(options.store)
    thresholds = store.preparation.quality.changed_by(options.quality)
    slides, skipped = healthy_slides(store, options.split)
    usable, unusable = usable_tiles(slides, thresholds)
    tile = store.preparation.tile
    size = chosen.input_px or cls.default_input_px or tile
    if size > tile:
        raise DetectorError(
            f"needs {size} px and the store's tiles have {tile} px",
            subject=options.detector,
            remedy=f"Tile with --tile {size} or larger, or give --option input_px={tile}.",
        )
    return Chosen(
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


def anomalies_of(options: TrainingOptions, chosen: Chosen) -> AnomalySlides | None:
    """Find the labelled anomalous tiles, if there are any; prepared as the healthy ones.

    Raises
    ------
    StoreError, StoreMismatchError, InputError, DetectorError
        As by :func:`wsiad.train`.
    """
    if options.anomalies is None:
        return None
    store = TileStore(options.anomalies)
    check_prepared_alike(
        store, chosen.store.preparation, chosen.store.target, keys=("mpp", "stain")
    )
    if store.preparation.tile < chosen.size:
        raise DetectorError(
            f"needs {chosen.size} px and the anomalous tiles have {store.preparation.tile} px",
            subject=options.detector,
            remedy="Give larger ones, or a smaller input by --option input_px.",
        )
    thresholds = store.preparation.quality.changed_by(options.quality)
    return anomaly_slides(
        store,
        types=options.anomaly_types,
        split=options.split,
        most=options.anomaly_tiles,
        seed=options.seed,
        usable=lambda slides: usable_tiles(slides, thresholds, kind="anomalous")[0],
    )


def fit_context(
    options: TrainingOptions,
    ranks: Ranks,
    *,
    device: torch.device,
    anomalies: AnomalousTiles | None = None,
) -> FitContext:
    """Return the circumstances of the fit of a process."""
    return FitContext(
        seed=options.seed,
        device=_device_of(ranks, device),
        folder=options.out,
        budget=Budget(options.max_steps, options.max_minutes),
        weights=options.weights,
        quiet=options.quiet or not ranks.first,
        anomalies=anomalies,
        ranks=ranks,
    )


def check_devices(count: int, device: torch.device, name: str, cls: type[Detector]) -> None:
    """Check that so many devices can be used.

    Raises
    ------
    ConfigError
        The method is not trained step by step, or there are fewer devices.
    """
    if count == 1:
        return
    if not cls.uses_ranks:
        raise ConfigError(
            f"{name} is fitted by one process", subject="devices", remedy="Leave --devices out."
        )
    if device.type == "cuda" and (str(device) != "cuda" or count > torch.cuda.device_count()):
        raise ConfigError(
            f"{count} GPUs were asked for, with --device {device}, and this machine has "
            f"{torch.cuda.device_count()}",
            subject="devices",
            remedy="Give --device cuda and no more devices than there are.",
        )


@contextmanager
def together(options: TrainingOptions, device: torch.device) -> Iterator[Ranks]:
    """Start the other processes that a fit needs; this one is the first of them.

    Raises
    ------
    RunError
        One of the others ended early; why, it said itself.
    """
    count = options.devices
    if count == 1:
        yield Ranks()
        return
    threads = torch.get_num_threads()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        meeting = Path(folder) / "meeting"
        others = [
            context.Process(target=fit_along, args=(options, rank, meeting), daemon=True)
            for rank in range(1, count)
        ]
        for process in others:
            process.start()
        try:
            _join(Ranks(0, count), device, meeting)
            yield Ranks(0, count)
            for process in others:
                process.join()
        except RuntimeError as error:
            # The connection breaks before a process has ended.
            others[0].join(timeout=_PATIENCE_SECONDS)
            if any(process.exitcode for process in others):
                raise RunError(
                    "a process that trained along ended early",
                    subject=str(options.out),
                    remedy="See what it printed; the same command goes on from the last "
                    "checkpoint.",
                ) from error
            raise
        finally:
            for process in others:
                process.terminate()
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
            torch.set_num_threads(threads)


def fit_along(options: TrainingOptions, rank: int, meeting: Path) -> None:
    """Fit as one of the other processes, which write nothing."""
    ranks, device = Ranks(rank, options.devices), choose_device(options.device)
    _join(ranks, device, meeting)
    _, detector, tiles = choose(options).begin(options.seed, only_fit=())
    detector.fit(tiles, fit_context(options, ranks, device=device))
    torch.distributed.destroy_process_group()


def _join(ranks: Ranks, device: torch.device, meeting: Path) -> None:
    """Meet the other processes."""
    own = _device_of(ranks, device)
    if own.type == "cuda":
        torch.cuda.set_device(own)
    else:
        torch.set_num_threads(max(1, torch.get_num_threads() // ranks.count))
    torch.distributed.init_process_group(
        "nccl" if own.type == "cuda" else "gloo",
        init_method=f"file://{meeting}",
        rank=ranks.rank,
        world_size=ranks.count,
    )


def _device_of(ranks: Ranks, device: torch.device) -> torch.device:
    return torch.device("cuda", ranks.rank) if ranks.count > 1 and device.type == "cuda" else device
