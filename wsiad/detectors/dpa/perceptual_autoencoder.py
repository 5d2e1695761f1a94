"""Deep Perceptual Autoencoder: strange tiles are reconstructed badly in the features of VGG19."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import nn

from wsiad.core.errors import DetectorError, WsiadError
from wsiad.detectors._perceptual import fitted_distances
from wsiad.detectors._reconstructing import ReconstructingDetector
from wsiad.detectors._trained import group
from wsiad.detectors.dpa.adversarial_term import AdversarialTerm, seeded_critic
from wsiad.detectors.dpa.dpa_options import DpaOptions
from wsiad.detectors.dpa.objective import Objective
from wsiad.learning.batches import check_size, on_device
from wsiad.learning.detector import (
    DetectorOptions,
    FitContext,
    FitReport,
    HealthyTiles,
    InputSpec,
    Scores,
    State,
    Tiles,
    TileSource,
)
from wsiad.learning.loop import Training
from wsiad.learning.stages import Stages
from wsiad.networks import vgg
from wsiad.networks.autoencoder import Autoencoder, images_of, seeded_autoencoder
from wsiad.networks.growing import GrowingAutoencoder, seeded_growing
from wsiad.networks.perceptual import ChannelStatistics, RelativePerceptualL1

_SCORE_BATCH = 256
_ADVERSARIAL = "in the loss of the training alone: scores and held-out losses are without it"

M = TypeVar("M", bound=nn.Module)


class DeepPerceptualAutoencoder(ReconstructingDetector):
    """An autoencoder that is trained and judged by the relative perceptual L1 distance.

    It is trained to reconstruct healthy windows. The anomaly score of a tile is the distance
    between it and its reconstruction. Its places are those of the coarsest perceptual layer
    (8 × 8 at 64 px and ``relu4_2``). With ``pooling: mean`` the score of the tile is the
    published one. With ``growing`` the training begins at a low resolution and fades in the
    higher ones; the autoencoder of the last resolution is kept and scores.

    Notes
    -----
    Shvetsova et al., "Anomaly Detection in Medical Imaging with Deep Perceptual
    Autoencoders", IEEE Access 2021 (arXiv 2006.13265).
    """

    Options: ClassVar[type[DetectorOptions]] = DpaOptions
    default_input_px: ClassVar[int | None] = 64
    uses_ranks: ClassVar[bool] = True
    options: DpaOptions

    def __init__(self, options: DetectorOptions, spec: InputSpec) -> None:
        super().__init__(options, spec)
        self._shape = self.options.shape(spec.size)
        self._stages = self.options.stages(spec.size)
        self._autoencoder: Autoencoder | None = None
        self._distance: RelativePerceptualL1 | None = None
        self._device = torch.device("cpu")
        self._about: dict[str, Any] = {}

    def fit(self, tiles: HealthyTiles, context: FitContext) -> FitReport:
        """Train on random windows of the tiles; see :class:`~wsiad.learning.loop.Training`.

        Raises
        ------
        DetectorError
            The tiles are too small, the training diverged, or the limits on a growing training
            end it before its last stage.
        WeightsError
            The perceptual network's weights are not on this machine.
        RunError
            The folder holds the checkpoint of another training.
        """
        result = self.training(tiles, context).run()
        # Scores should depend on the device as little as can be.
        self._fitted_distance().bf16 = False
        _check_grown(self._stages, result.steps)
        notes = {
            **self._about,
            "parameters": sum(p.numel() for p in self._module().parameters()),
            "best_step": result.best_step,
            "best_stop_loss": result.best_loss,
            "training_seconds": round(result.seconds, 1),
            **({"stages": self._stages.notes()} if self._stages else {}),
            **({"adversarial_term": _ADVERSARIAL} if self.options.adversarial_weight else {}),
        }
        return FitReport(ended_by=result.ended_by, steps=result.steps, notes=notes)

    def training(self, tiles: HealthyTiles, context: FitContext) -> Training:
        """Return the training that :meth:`fit` runs, at its start or where it was interrupted.

        Raises
        ------
        DetectorError, WeightsError, RunError
            The training cannot start; see :meth:`fit`.
        """
        started = time.monotonic()
        check_size(tiles.fit.tile, self.spec.size)
        options, self._device = self.options, context.device
        _check_steps(self._stages, options, context)
        distances, identity = self._distances(tiles.fit, context)
        module, objective, adversary = self._start(distances, context)
        for distance in distances.values():
            distance.bf16 = options.precision != "fp32"
        return Training(
            module,
            objective,
            tiles=tiles,
            size=self.spec.size,
            options=options,
            context=context,
            identity=identity,
            started=started,
            stages=self._stages,
            adversary=adversary,
        )

    def score_places(self, tiles: Tiles) -> Scores:
        """Score the places of tiles; see :meth:`Detector.score_places`."""
        autoencoder, distance = self._module(), self._fitted_distance()
        scores = []
        with torch.inference_mode():
            for start in range(0, len(tiles), _SCORE_BATCH):
                x = images_of(on_device(tiles[start : start + _SCORE_BATCH], self._device))
                scores.append(distance.places(x, autoencoder(x)).cpu().numpy())
        return np.concatenate(scores) if scores else np.zeros((0, 1, 1), np.float32)

    def judged(self) -> tuple[Autoencoder, RelativePerceptualL1, torch.device]:
        """Return the autoencoder and the distance."""
        return self._module(), self._fitted_distance(), self._device

    def state(self) -> State:
        """Return the autoencoder, the used part of the perceptual network, and its statistics."""
        distance = self._fitted_distance()
        named = {
            "autoencoder": self._module().state_dict(),
            "perceptual": distance.network.state_dict() if distance.network else {},
        }
        for layer, values in distance.statistics.items():
            named[f"statistics.{layer}"] = {"mean": values.mean, "std": values.std}
        tensors = {
            f"{group}.{name}": tensor.detach().cpu().contiguous()
            for group, of_group in named.items()
            for name, tensor in of_group.items()
        }
        return State(tensors, dict(self._about))

    def load_state(self, state: State, device: torch.device) -> None:
        """Load a state of this detector."""
        self._device = device
        try:
            layers = list(self.options.layers)
            network = (
                vgg.Vgg19(
                    group(state, "perceptual"),
                    layers,
                    padding=state.values["padding"],
                    contrast=self.options.contrast,
                )
                if layers
                else None
            )
            statistics = {
                layer: ChannelStatistics(**group(state, f"statistics.{layer}")) for layer in layers
            }
            autoencoder = Autoencoder(self._shape)
            autoencoder.load_state_dict(group(state, "autoencoder"))
        except (KeyError, TypeError, RuntimeError, WsiadError) as error:
            raise DetectorError(f"the state is not that of this detector ({error})") from error
        self._about = dict(state.values)
        self._use(autoencoder, self._distance_of(network, statistics, self.spec.size))

    def _distances(
        self, tiles: TileSource, context: FitContext
    ) -> tuple[dict[int, RelativePerceptualL1], dict[str, Any]]:
        """Return the distance for each resolution, and what a checkpoint must agree with."""
        options, size = self.options, self.spec.size
        by_px = options.layers_by_px(size)
        if not options.layers:
            self._about = {"weights": {"source": "none: pixels alone are compared"}}
            return {px: self._distance_of(None, {}, px) for px in by_px}, {}
        found = fitted_distances(
            options,
            tiles,
            context,
            size=size,
            layers_by_px=by_px,
            image_weight=options.image_weight,
        )
        self._about = found.about
        return found.by_px, found.identity

    def _distance_of(
        self, network: vgg.Vgg19 | None, statistics: Mapping[str, ChannelStatistics], px: int
    ) -> RelativePerceptualL1:
        options = self.options
        return RelativePerceptualL1(
            network,
            statistics,
            options.layers_by_px(self.spec.size)[px],
            relative=options.relative,
            image_weight=options.image_weight,
        )

    def _start(
        self, distances: dict[int, RelativePerceptualL1], context: FitContext
    ) -> tuple[nn.Module, Objective, AdversarialTerm | None]:
        """Return the module to train, its loss, and the critic that is trained with it."""
        options, size, seed = self.options, self.spec.size, context.seed
        distances = {px: self._placed(distance) for px, distance in distances.items()}
        module: Autoencoder | GrowingAutoencoder
        if self._stages is None:
            module = seeded_autoencoder(self._shape, seed)
            self._use(module, distances[size])
        else:
            module = self._placed(seeded_growing(self._shape, self._stages.spans[0].px, seed))
            self._use(module.final, distances[size])
        objective = Objective(module, distances, size=size)
        if not options.adversarial_weight:
            return module, objective, None
        start_px = self._stages.spans[0].px if self._stages else size
        critic = self._placed(
            seeded_critic(
                size,
                start_px,
                seed,
                channels=options.adversarial.channels,
                blocks=options.blocks,
            )
        )
        term = AdversarialTerm(
            objective,
            critic,
            size=size,
            weight=options.adversarial_weight,
            options=options.adversarial,
            seed=seed,
            ranks=context.ranks,
        )
        return module, objective, term

    def _use(self, autoencoder: Autoencoder, distance: RelativePerceptualL1) -> None:
        self._autoencoder, self._distance = self._placed(autoencoder), self._placed(distance)

    def _placed(self, module: M) -> M:
        module.to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return module

    def _module(self) -> Autoencoder:
        if self._autoencoder is None:
            raise DetectorError("is not fitted yet", subject="dpa")
        return self._autoencoder

    def _fitted_distance(self) -> RelativePerceptualL1:
        if self._distance is None:
            raise DetectorError("is not fitted yet", subject="dpa")
        return self._distance


def _check_steps(stages: Stages | None, options: DpaOptions, context: FitContext) -> None:
    most = min(options.max_steps, context.budget.max_steps or options.max_steps)
    if stages and most <= stages.last_start:
        raise DetectorError(
            f"growing takes {stages.last_start} steps before its last stage, and max_steps is "
            f"{most}",
            subject="dpa",
            remedy="Set a larger max_steps, or fewer growing.stabilise_steps and "
            "growing.transition_steps.",
        )


def _check_grown(stages: Stages | None, steps: int) -> None:
    if stages and steps <= stages.last_start:
        raise DetectorError(
            f"the time was up after {steps} steps ({stages.span(max(steps - 1, 0)).name}), "
            f"before the last stage, which begins after {stages.last_start}",
            subject="dpa",
            remedy="Train again with larger max_minutes: the training continues from here.",
        )
