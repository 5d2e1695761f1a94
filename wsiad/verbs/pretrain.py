"""``wsiad pretrain``: train a perceptual network on the healthy tiles of a store."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from wsiad.core.config import QuietOptions, build, verb
from wsiad.core.errors import DetectorError, RunError, WeightsError
from wsiad.core.files import atomic_file, read_json, write_json
from wsiad.core.packages import versions
from wsiad.core.terminal import counted
from wsiad.learning.devices import DeviceOptions
from wsiad.learning.training_options import END_WORDS, LimitOptions
from wsiad.runs.claim import WEIGHTS, taken
from wsiad.runs.healthy_tiles import (
    HealthyOptions,
    healthy_slides,
    store_fingerprint,
    tile_source,
    usable_tiles,
)
from wsiad.store.tile_task import unseen_lines, unseen_slides

if TYPE_CHECKING:
    from wsiad.learning.contrastive import ContrastiveNetwork, ContrastiveOptions
    from wsiad.learning.loop import TrainingResult
    from wsiad.learning.teachers import Teacher

logger = logging.getLogger(__name__)

RECORD = "pretrain.json"


class PretrainConfig(QuietOptions, LimitOptions, DeviceOptions, HealthyOptions):
    """Train a perceptual network on the healthy tiles of a store, without any labels."""

    tries_out: ClassVar[bool] = False
    ORDER = ("store", "out", "teacher", "options", "split", "quality", "seed", ...)

    out: Path
    """Folder of the network; an interrupted training in it continues."""
    teacher: tuple[str, ...] = ()
    """Networks whose features are learnt, in place of contrastive training: files of weights, or
    names with their weights, such as resnet18=FILE."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Option of the network and its training, see docs/pretrain.md; can be passed several times."""
    seed: int = 0
    """Seed of the training; the same seed gives the same result."""


@dataclass(frozen=True, slots=True)
class PretrainResult:
    """Result of pretraining.

    Parameters
    ----------
    weights : Path
        Weights file for `--weights`: safetensors, with torchvision's keys of VGG19.
    ended_by : str
        Reason why the training ended.
    steps : int
        Number of optimiser steps.
    summary : str
        Summary for the terminal.
    """

    weights: Path
    ended_by: str
    steps: int
    summary: str


@verb(PretrainConfig)
def pretrain(config: PretrainConfig) -> PretrainResult:
    """Train a small VGG19 to distinguish healthy tiles, independently of stain and orientation.

    The method is SimCLR (Chen et al., ICML 2020) with views for stained tissue, at several depths
    of the network at the same time. The authors of the Deep Perceptual Autoencoder pretrained
    their network with SimCLR for the MOOD challenge of 2020. With teachers, the network learns
    their features of the healthy tiles instead.

    Raises
    ------
    StoreError, InputError
        The store does not exist, is damaged, or has no healthy tiles to use.
    ConfigError
        An option is unknown or has an invalid value.
    DetectorError
        The tiles are too small, or the training diverged.
    WeightsError
        The weights of a teacher cannot be read, or do not tell their network.
    RunError
        The folder contains something else.
    """
    from wsiad.learning.contrastive import ContrastiveOptions, new_training
    from wsiad.learning.detector import Budget, FitContext, HealthyTiles
    from wsiad.learning.devices import choose_device
    from wsiad.learning.teachers import new_distillation
    from wsiad.runs.split import split_slides
    from wsiad.store.tile_store import TileStore

    start = time.monotonic()
    options = build(ContrastiveOptions, config.options, source="options of pretrain")
    device = choose_device(config.device)
    store = TileStore(config.store)
    tile = store.preparation.tile
    if tile < options.views.view_px:
        raise DetectorError(
            f"views of {options.views.view_px} px do not fit in tiles of {tile} px",
            subject=str(config.store),
            remedy=f"Set --option 'views={{view_px: {tile}}}', or make larger tiles.",
        )
    teachers = [_teacher(text, config.seed) for text in config.teacher]
    thresholds = store.preparation.quality.changed_by(config.quality)
    slides, skipped = healthy_slides(store, config.split)
    usable, unusable = usable_tiles(slides, thresholds)
    free = ("store", "device", "max_steps", "max_minutes")
    with taken(config.out, config, record=RECORD, what="pretraining", free=free) as complete:
        if complete:
            return _already_done(config)
        # Nothing is calibrated here: what `train` would hold out for that is learnt from too.
        parts = split_slides(
            [(n, len(t)) for n, t in usable.items()], seed=config.seed, only_fit=()
        )
        by_name = {slide.name: (slide, usable[slide.name]) for slide in slides}
        tiles = HealthyTiles(
            tile_source([*parts.fit, *parts.calibration], by_name), tile_source(parts.stop, by_name)
        )
        context = FitContext(
            seed=config.seed,
            device=device,
            folder=config.out,
            budget=Budget(config.max_steps, config.max_minutes),
            quiet=config.quiet,
        )
        network, training = (
            new_distillation(tiles, teachers, options, context, size=tile)
            if teachers
            else new_training(tiles, options, context, size=tile)
        )
        result = training.run()
        used = {
            "stores": {config.store.name: store_fingerprint(store, slides)},
            "tiles": {"fit": len(tiles.fit), "held_out": len(tiles.stop)},
            "mpp": store.preparation.mpp,
            "teachers": [teacher.note() for teacher in teachers],
            "split": parts.note,
            "slides_not_used": skipped,
            "tiles_not_used": unusable,
        }
        _write(
            config,
            options,
            network=network,
            result=result,
            used=used,
            seconds=time.monotonic() - start,
        )
        unseen = "".join(
            f"{line}\n" for line in unseen_lines(unseen_slides(store), str(config.store))
        )
        summary = (
            f"{unseen}{END_WORDS[result.ended_by]} after {counted(result.steps, 'step')}; "
            "held-out loss "
            f"{result.best_loss:.4f} at step {result.best_step}\n"
            f"to use it: --weights {config.out / WEIGHTS}"
        )
        return PretrainResult(config.out / WEIGHTS, result.ended_by, result.steps, summary)


def _teacher(text: str, seed: int) -> Teacher:
    """Return the teacher that a user stated, with its layers at 1/8 and 1/16 of the tile."""
    from wsiad.detectors._features import TWO_DEPTHS
    from wsiad.learning.teachers import Teacher
    from wsiad.networks.features import AUTO, settle

    name, named, file = text.partition("=")
    if not named or Path(text).exists():
        name, file = AUTO, text
    try:
        found = settle(name, file, seed=seed)
    except WeightsError as error:
        if name != AUTO or not error.problem.startswith("belong"):
            raise
        remedy = f"Name their network, for example --teacher resnet50={file}."
        raise WeightsError(error.problem, subject=error.subject, remedy=remedy) from error
    fine, coarse = TWO_DEPTHS.of(found.name)
    return Teacher(found.name, found.weights, fine, coarse)


def _already_done(config: PretrainConfig) -> PretrainResult:
    keys = ("ended_by", "steps")
    record = read_json(config.out / RECORD, RunError, keys=keys, remedy="Delete it and run again.")
    ended_by, steps = (record[key] for key in keys)
    return PretrainResult(
        config.out / WEIGHTS, ended_by, steps, f"{config.out} is complete already"
    )


def _write(
    config: PretrainConfig,
    options: ContrastiveOptions,
    network: ContrastiveNetwork,
    result: TrainingResult,
    used: dict[str, Any],
    *,
    seconds: float,
) -> None:
    """Write the weights, then the record that declares them complete."""
    from safetensors.torch import save_file

    from wsiad.networks.weights import tensors_sha256

    tensors = network.plain()
    about = {
        "network": "vgg19",
        "padding": "zeros",
        "widths": ",".join(map(str, options.widths)),
        "mpp": f"{used['mpp']:g}",
        "made_by": f"wsiad pretrain {versions()['wsiad']}",
    }
    if used["teachers"]:
        about["teachers"] = ", ".join(f"{t['name']} {t['sha256']}" for t in used["teachers"])
    with atomic_file(config.out / WEIGHTS) as partial:
        save_file(tensors, str(partial), metadata=about)
    record = {
        "format": 1,
        "ended_by": result.ended_by,
        "steps": result.steps,
        "best_step": result.best_step,
        "best_loss": result.best_loss,
        "seconds": round(seconds, 3),
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
        "sha256_of_tensors": tensors_sha256(tensors),
        "options": options.model_dump(mode="json"),
        **used,
        "versions": versions(),
    }
    write_json(config.out / RECORD, record)
