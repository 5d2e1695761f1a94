"""The training loop: bounded, stopped early, resumed exactly.

Everything on which a step depends is a pure function of the seed and the step, or is in the
checkpoint. A training that was killed therefore ends with the same weights as one that was not,
to the bit on the same CPU with as many threads. Early stopping follows the mean loss over
held-out healthy tiles.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from wsiad.learning.adversarial_game import Adversary
from wsiad.learning.batches import Batch, centre_crops, check_size, on_device, planned, sample
from wsiad.learning.checkpoint import (
    CHECKPOINT,
    SLIDES,
    Checkpoint,
    Recipe,
    Trained,
    check_followed,
    read_checkpoint,
)
from wsiad.learning.detector import FitContext, HealthyTiles, Tiles, TileSource
from wsiad.learning.metrics import METRICS, MetricsLog, MetricsRow, check_loss
from wsiad.learning.stages import Stages
from wsiad.learning.step import Loss, Step
from wsiad.learning.training_options import LoopOptions
from wsiad.learning.training_progress import TrainingProgress

EndedBy = Literal["early-stopping", "max-steps", "max-minutes"]


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """The result of a training; the module holds the weights of ``best_step``.

    If the last stage was not reached, ``best_step`` is 0, ``best_loss`` is infinite, and the
    module holds its last weights.
    """

    ended_by: EndedBy
    steps: int
    best_step: int
    best_loss: float
    seconds: float


@dataclass(slots=True)
class Position:
    """The position of a training, without its tensors.

    Parameters
    ----------
    step : int
        Number of steps taken.
    epoch, position : int
        Epoch of the next batch, and its position in the epoch.
    seconds : float
        Time that the training took until its last checkpoint.
    loss_sum, loss_count : float, int
        Sum and number of losses since the last line of the metrics.
    """

    step: int = 0
    epoch: int = 0
    position: int = 0
    seconds: float = 0.0
    loss_sum: float = 0.0
    loss_count: int = 0


@dataclass(slots=True)
class EarlyStopping:
    """Decide when the held-out loss has stopped falling, and which step was best.

    Parameters
    ----------
    interval : int
        Steps between two validations.
    patience : int
        Maximum number of validations in a row without an improvement; with one more the training
        is over.
    min_delta : float
        Minimum decrease of the loss that counts as an improvement.
    keeps_last : bool
        True to take every validation as the best so far: nothing is stopped early.

    Attributes
    ----------
    best_step, best_loss
        Step and value of the lowest loss so far, even if it is lower by less than ``min_delta``.
    mark_step, mark_loss
        Step and value of the last improvement by at least ``min_delta``, from which patience
        counts.
    last_step
        Step of the last validation.
    """

    interval: int
    patience: int = 3
    min_delta: float = 1e-3
    keeps_last: bool = False
    best_step: int = 0
    best_loss: float = math.inf
    mark_step: int = 0
    mark_loss: float = math.inf
    last_step: int = 0

    def update(self, step: int, loss: float) -> bool:
        """Record a validation; return whether its weights are the best so far."""
        self.last_step = step
        if self.keeps_last:
            self.best_step = self.mark_step = step
            self.best_loss = self.mark_loss = loss
            return True
        if loss < self.mark_loss - self.min_delta:
            self.mark_step, self.mark_loss = step, loss
        if loss < self.best_loss:
            self.best_step, self.best_loss = step, loss
            return True
        return False

    @property
    def is_over(self) -> bool:
        """True if patience has run out at the last validation."""
        return (self.last_step - self.mark_step) / self.interval > self.patience

    def values(self) -> dict[str, Any]:
        """Return the progress as JSON values; a loss that is not known yet is ``None``."""
        return {
            "best_step": self.best_step,
            "best_loss": None if math.isinf(self.best_loss) else self.best_loss,
            "last_step": self.last_step,
            "mark_step": self.mark_step,
            "mark_loss": None if math.isinf(self.mark_loss) else self.mark_loss,
        }

    def restore(self, values: dict[str, Any]) -> Self:
        """Restore progress returned by :meth:`values`."""
        self.best_step, self.mark_step = int(values["best_step"]), int(values["mark_step"])
        self.last_step = int(values["last_step"])
        self.best_loss = math.inf if values["best_loss"] is None else float(values["best_loss"])
        self.mark_loss = math.inf if values["mark_loss"] is None else float(values["mark_loss"])
        return self


def held_out_loss(
    losses: Callable[[Tensor], Tensor],
    source: TileSource,
    *,
    size: int,
    most: int | None,
    batch: int,
    seed: int,
    device: torch.device,
) -> float:
    """Return the mean loss of the central windows of tiles, the same tiles each time.

    Parameters
    ----------
    losses : callable
        Function that maps windows, uint8 (N, size, size, 3), to the loss of each, (N,).
    source : TileSource
    size : int
        Edge of the windows, pixels.
    most : int or None
        Maximum number of tiles; see :func:`~wsiad.learning.batches.sample`.
    batch : int
    seed : int
    device : torch.device
    """
    count, batches = sample(source, most, batch=batch, seed=seed)
    total = 0.0
    for tiles in batches:
        found = losses(centre_crops(on_device(tiles, device), size))
        total += float(found.double().sum())
    return total / count


_CUDA_CHECK_STEPS = 25  # reading the loss back at each step would leave the GPU idle


class Training:
    """Training of a module on healthy tiles.

    Parameters
    ----------
    module : nn.Module
        Module to train, on the context's device.
    loss : callable
        Function from windows, uint8 (N, size, size, 3), to the loss of each, (N,).
    tiles : HealthyTiles
        Tiles to fit on and to stop by.
    size : int
        Edge of the windows, pixels.
    options : LoopOptions
        Options of the training.
    context : FitContext
        Seed, device, folder and limits.
    identity : dict
        JSON values, besides the options, that a checkpoint must agree with.
    started : float, optional
        ``time.monotonic()`` when the fit began. ``max_minutes`` counts from there, and includes
        the time before an interruption.
    stages : Stages, optional
        Stages of the training, each with its own optimiser and batch size. Only in the last
        stage are the best weights kept and the training stopped early.
    adversary : Adversary, optional
        Critics that are trained as well, with tiles of their own in every step. Their part of
        the loss is minimised, but is neither logged nor used to stop.
    recipe : Recipe, optional
        Optimiser or update other than Adam on the mean loss.
    whole : FitContext, optional
        Context of the complete fit, if another training follows in its folder.

    Raises
    ------
    DetectorError
        The tiles are smaller than the windows.
    RunError
        The folder holds the checkpoint of another training.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Loss,
        *,
        tiles: HealthyTiles,
        size: int,
        options: LoopOptions,
        context: FitContext,
        identity: dict[str, Any],
        started: float | None = None,
        stages: Stages | None = None,
        adversary: Adversary[Any] | None = None,
        recipe: Recipe | None = None,
        whole: FitContext | None = None,
    ) -> None:
        for source in (tiles.fit, tiles.stop):
            check_size(source.tile, size)
        self._tiles, self._size = tiles, size
        self._options, self._context = options, context
        self._stages, self._adversary = stages, adversary
        self._module, recipe = module, recipe or Recipe()
        self._limit = min(options.max_steps, context.budget.max_steps or options.max_steps)
        self._started = time.monotonic() if started is None else started
        self._trained = Trained(
            module,
            name="module",
            moments="adam",
            average_decay=options.ema_decay,
            ranks=context.ranks,
            optimiser=recipe.optimiser,
        )
        self._stepper = Step(
            self._trained,
            module,
            loss=loss,
            size=size,
            limit=self._limit,
            options=options,
            context=context,
            recipe=recipe,
            stages=stages,
            adversary=adversary,
        )
        self._best = self._trained.copy()
        self._stopping = EarlyStopping(
            options.val_interval,
            options.patience,
            options.min_delta,
            keeps_last="last" in (recipe.keeps, options.keep),
        )
        self._at = Position()
        self._unread: list[Tensor] = []
        self._train_loss: float | None = None
        self._held_out: float | None = None
        self._identity = {
            **options.identity(limit=self._limit),
            "seed": context.seed,
            "input_px": size,
            "tile_px": tiles.fit.tile,
            "number of tiles": [len(tiles.fit), len(tiles.stop)],
            SLIDES: [getattr(part, "fingerprint", "") for part in (tiles.fit, tiles.stop)],
            **identity,
        }
        self._limits = asdict((whole or context).budget)
        self._resume(whole)

    def run(self) -> TrainingResult:
        """Train until the end; the module then holds the best weights.

        Raises
        ------
        DetectorError
            The loss is not finite or exceeds 1e6.
        """
        at = self._at
        if at.step < self._limit:
            self._stepper.check_memory(self._tiles.stop)
        batches = self._batches()
        with (
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True),
            self._progress() as progress,
            closing(batches),
        ):
            while not (ended_by := self._ended_by()):
                batch = next(batches)
                self._step(batch.tiles)
                at.epoch, at.position = batch.epoch, batch.position
                self._look()
                progress.took(
                    loss=self._train_loss,
                    held_out=self._held_out,
                    best_step=self._stopping.best_step,
                    stage=self._stages.span(max(at.step - 1, 0)).name if self._stages else "",
                )
            self._finish(ended_by)
        stopping = self._stopping
        return TrainingResult(
            ended_by=ended_by,
            steps=at.step,
            best_step=stopping.best_step,
            best_loss=stopping.best_loss,
            seconds=self._seconds(),
        )

    def _batches(self) -> Generator[Batch, None, None]:
        """Return the batches of the coming steps, each with all the tiles that it needs."""
        return planned(
            self._tiles.fit,
            self._stages or self._options.batch,
            self._context,
            times=self._stepper.draws,
            step=self._at.step,
            epoch=self._at.epoch,
            position=self._at.position,
        )

    def _in_last_stage(self) -> bool:
        """Tell whether the step before was in the last stage."""
        return self._stages is None or self._at.step > self._stages.last_start

    def _progress(self) -> TrainingProgress:
        return TrainingProgress(
            self._limit,
            budget=self._context.budget,
            step=self._at.step,
            seconds=self._seconds(),
            stops_early=not self._stopping.keeps_last,
            quiet=self._context.quiet,
        )

    def _step(self, tiles: Tiles | Tensor) -> None:
        at = self._at
        losses = self._stepper.take(tiles, at.step)
        at.step += 1
        self._unread.append(losses.detach().mean())
        if not losses.is_cuda or at.step % _CUDA_CHECK_STEPS == 0:
            self._read_losses()

    def _look(self) -> None:
        """Validate, log and save as the step requires."""
        options, at = self._options, self._at
        if at.step % options.val_interval == 0:
            self._validate()
            self._save()
        elif at.step % options.log_interval == 0:
            self._log(None)
        elif time.monotonic() - self._saved_at >= options.checkpoint_seconds:
            self._save()

    def _ended_by(self) -> EndedBy | None:
        minutes = self._context.budget.max_minutes
        if self._stopping.is_over:
            return "early-stopping"
        if self._at.step >= self._limit:
            return "max-steps"
        if minutes is not None and self._context.agreed(self._seconds() >= minutes * 60):
            return "max-minutes"
        return None

    def _finish(self, ended_by: EndedBy) -> None:
        """Validate the last weights too, and put the best ones into the module."""
        if self._at.step % self._options.val_interval or self._at.step == 0:
            # Saved first: a later run with a larger bound must not see this look,
            # which a longer training would not have had.
            self._save()
            self._validate()
        elif ended_by == "max-minutes":
            # The time may have ended while the checkpoint was written, which has less of it: a
            # later run with the same bound would take further steps.
            self._save()
        if self._in_last_stage():
            self._trained.set(self._best)

    def _validate(self) -> None:
        self._module.eval()
        with self._trained.averaged(), torch.no_grad():
            loss = held_out_loss(
                lambda windows: self._stepper.losses(windows, max(self._at.step - 1, 0)),
                self._tiles.stop,
                size=self._size,
                most=self._options.val_tiles,
                batch=self._options.batch,
                seed=self._context.seed,
                device=self._context.device,
            )
            found = self._trained.copy()
        loss = self._context.agreed(loss)
        check_loss(loss, self._at.step)
        if self._in_last_stage() and self._stopping.update(self._at.step, loss):
            self._best = found
        self._held_out = loss
        self._log(loss)

    def _log(self, stop_loss: float | None) -> None:
        self._read_losses()
        at = self._at
        train_loss = self._context.averaged(at.loss_sum / at.loss_count) if at.loss_count else None
        at.loss_sum, at.loss_count = 0.0, 0
        rate = self._options.rate(max(at.step - 1, 0), limit=self._limit)
        row = MetricsRow(
            step=at.step,
            seconds=round(self._seconds(), 3),
            learning_rate=rate,
            train_loss=train_loss,
            stop_loss=stop_loss,
        )
        if self._metrics:
            self._metrics.append(row)

    def _read_losses(self) -> None:
        if self._unread:
            for loss in torch.stack(self._unread).double().tolist():
                check_loss(loss, self._at.step)
                self._at.loss_sum += loss
                self._at.loss_count += 1
            self._unread.clear()
            self._train_loss = self._at.loss_sum / self._at.loss_count

    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._started

    def _save(self) -> None:
        if not self._context.ranks.first:
            return
        self._read_losses()
        self._at.seconds = self._seconds()
        best = {f"best.{name}": tensor for name, tensor in self._best.items()}
        tensors = best | self._trained.tensors()
        if self._adversary:
            tensors |= self._adversary.tensors()
        values = {**asdict(self._at), "stopping": self._stopping.values(), "limits": self._limits}
        Checkpoint(tensors, values, self._identity).write(self._context.folder / CHECKPOINT)
        self._saved_at = time.monotonic()

    def _resume(self, whole: FitContext | None) -> None:
        checkpoint = read_checkpoint(self._context.folder / CHECKPOINT, self._identity)
        if checkpoint:
            self._restore(checkpoint)
        self._seconds_before = self._at.seconds
        was = checkpoint.values.get("limits") if checkpoint else None
        if whole and was and not self._ended_by():  # checkpoints of before do not state them
            check_followed(whole.folder, was=was, now=self._limits)
        path, keep = self._context.folder / METRICS, self._at.step
        follower = self._context.follower
        self._metrics = (
            MetricsLog(path, keep_steps=keep, follower=follower)
            if self._context.ranks.first
            else None
        )
        self._saved_at = time.monotonic()

    def _restore(self, checkpoint: Checkpoint) -> None:
        values = dict(checkpoint.values)
        self._stopping.restore(values.pop("stopping"))
        values.pop("limits", None)
        self._at = Position(**values)
        self._trained.restore(checkpoint)
        if self._adversary:
            self._adversary.restore(checkpoint)
        for name, tensor in checkpoint.group("best").items():
            self._best[name].copy_(tensor)
