"""The detector ``reconstruction``: an autoencoder with the latent, task, loss and score of choice.

Most reconstruction methods of the literature are one method with other options.
"""

from __future__ import annotations

import time
from typing import ClassVar

import torch
from torch import Tensor, nn

from wsiad.detectors._perceptual import fitted_distances, restored_distance
from wsiad.detectors._reconstructing import RestoringDetector, check_places
from wsiad.detectors._trained import (
    about_training,
    after,
    before_the_last,
)
from wsiad.detectors.reconstruction.old_generator import (
    OldWeights,
    SecondPhaseLoss,
    check_steps,
    second_phase,
)
from wsiad.detectors.reconstruction.reconstruction_games import (
    ReconstructionGame,
    latent_critic_of,
)
from wsiad.detectors.reconstruction.reconstruction_model import ReconstructionModel
from wsiad.detectors.reconstruction.reconstruction_options import ReconstructionOptions
from wsiad.detectors.reconstruction.reconstruction_scores import projected, score_places
from wsiad.detectors.reconstruction.reconstruction_training import (
    RestorationLoss,
    measure_held_out,
)
from wsiad.learning.batches import check_size
from wsiad.learning.checkpoint import STEPS_OF, Recipe, adam
from wsiad.learning.detector import (
    DetectorOptions,
    Embedding,
    FitContext,
    FitReport,
    HealthyTiles,
    State,
    Tiles,
)
from wsiad.learning.loop import TrainingResult
from wsiad.networks.conv_stack import seeded

_DISTANCE = "terms.distance"
_FIRST, _FIRST_SHARE = "first_phase", 0.9  # folder and share of the time of the first training


class Reconstruction(RestoringDetector):
    """Distance of a tile to its restoration by an autoencoder of healthy tiles.

    A convolutional autoencoder learns to reconstruct healthy windows, or to restore them from
    changed ones. Latent, task, loss and score are options; the defaults are an autoencoder with
    a vector of 16 numbers and the mean squared error. The map of the distance is averaged over
    8 × 8 places. Each published system of the family is a preset.

    Scores keep their sign. Distances of pixels are known to invert on tumour, which is smoother
    than healthy tissue, and therefore easier to reconstruct.

    Notes
    -----
    The page docs/families/reconstruction.md names each system with its paper, its preset, and
    what was adapted to windows of 64 px.
    """

    Options: ClassVar[type[DetectorOptions]] = ReconstructionOptions
    default_input_px: ClassVar[int | None] = 64
    network_for: ClassVar[str] = "perceptual"
    """Part of the loss without which no pretrained network is needed."""
    options: ReconstructionOptions

    def fit(self, tiles: HealthyTiles, context: FitContext) -> FitReport:
        """Train on random windows of the tiles; see :class:`~wsiad.learning.loop.Training`.

        Raises
        ------
        DetectorError
            The tiles are too small, sizes do not fit, the training diverged, or it ended before
            the old generator of a second phase was there.
        WeightsError
            The perceptual network's weights are not on this machine.
        RunError
            The folder holds the checkpoint of another training.
        """
        started = time.monotonic()
        check_size(tiles.fit.tile, self.spec.size)
        check_places(self.options.places, self.spec.size)
        options, seed, size = self.options, context.seed, self.spec.size
        self._device, self._about = context.device, {}
        distance, identity = None, {}
        if "perceptual" in options.terms():
            found = fitted_distances(options, tiles.fit, context, size=size)
            distance, self._about, identity = found.by_px[size], found.about, found.identity
        model = self._placed(seeded(lambda: ReconstructionModel(options, size, distance), seed))
        self._network = model
        loss = RestorationLoss(model, seed)
        module: nn.Module = (learnt := model.learnt())
        old: OldWeights | None = None
        optimiser = adam(betas=options.betas, weight_decay=options.weight_decay)
        update = loss.update(context.device)
        if options.has_games():
            game = ReconstructionGame(loss, latent_critic_of(model, seed), seed=seed)
            module, optimiser = self._placed(game.module), game.optimiser()
            update, old = game.update(context.device), game.old
        first = context
        if old is not None:
            check_steps(options, context.budget)
            first = before_the_last(context, _FIRST, share=_FIRST_SHARE)
        result = self._train(
            module,
            loss,
            tiles=tiles,
            context=first,
            identity=identity,
            recipe=Recipe(optimiser, update=update, keeps=options.keep),
            started=started,
        )
        if old is not None:
            self._about["first_phase"] = about_training(result)
            result = self._judge_anew(old, tiles, after(result, context), steps=result.steps)
        self._about |= measure_held_out(
            model, tiles.stop, size=size, seed=seed, device=context.device
        )
        return self._report(result, learnt)

    def places(self, images: Tensor) -> Tensor:
        """Return the scores of the places, by the option ``score``."""
        return score_places(self.model(), images * 2 - 1, self.options.restoration())

    def model(self) -> ReconstructionModel:
        """Return the fitted model.

        Raises
        ------
        DetectorError
            The detector is not fitted yet.
        """
        return self.network_as(ReconstructionModel)

    def embed(self, tiles: Tiles) -> Embedding:
        """Return the latent of unchanged tiles, place by place."""
        model = self.model()
        return self.embed_images(lambda x: model.vectors(x * 2 - 1), tiles)

    def restored(self, x: Tensor) -> Tensor:
        """Return the restored images.

        A task that shows a tile in several ways gives the mean of its answers, and the score by
        projection gives the projection.
        """
        model, task = self.model(), self.options.restoration()
        if self.options.score == "projection":
            return projected(model, x)
        return torch.stack([view.made.image for view in task.shown(model, x)]).mean(dim=0)

    def empty(self, state: State) -> nn.Module:
        """Return an untrained model, with the perceptual network of the state if it has one."""
        check_places(self.options.places, self.spec.size)
        distance = None
        if "perceptual" in self.options.terms():
            distance = restored_distance(self.options, state, _DISTANCE, size=self.spec.size)
        return seeded(lambda: ReconstructionModel(self.options, self.spec.size, distance), 0)

    def _judge_anew(
        self, old: OldWeights, tiles: HealthyTiles, context: FitContext, *, steps: int
    ) -> TrainingResult:
        """Train the image critic alone against the old generator; the autoencoder stays.

        It continues only a training after as many steps of the first phase.
        """
        model = self.model().eval()
        critic = model.image_critic
        assert critic is not None
        return self._train(
            critic,
            SecondPhaseLoss(model, old),
            tiles=tiles,
            context=context,
            identity={"part": "second phase", f"{STEPS_OF}first phase": steps},
            recipe=Recipe(adam(), keeps="last"),
            options=second_phase(self.options),
        )
