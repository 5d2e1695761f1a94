"""The detector ``gan``: a generator of healthy tiles, and a way from a tile to its code."""

from __future__ import annotations

import time
from typing import ClassVar

from torch import Tensor, nn

from wsiad.detectors._reconstructing import RestoringDetector, check_places
from wsiad.detectors._trained import (
    about_training,
    after,
    before_the_last,
)
from wsiad.detectors.gan.gan_games import EncoderLoss, GanGame
from wsiad.detectors.gan.gan_model import IMAGE, GanModel
from wsiad.detectors.gan.gan_options import GanOptions
from wsiad.detectors.gan.gan_scores import found_codes, score_places
from wsiad.learning.batches import check_size
from wsiad.learning.checkpoint import STEPS_OF, Recipe, rms_prop
from wsiad.learning.detector import (
    DetectorOptions,
    Embedding,
    FitContext,
    FitReport,
    HealthyTiles,
    State,
    Tiles,
)
from wsiad.learning.game_losses import Player
from wsiad.learning.loop import TrainingResult
from wsiad.networks.conv_stack import Critic, seeded

_FOLDER = "generator"


class Gan(RestoringDetector):
    """Difference of a tile from what a generator of healthy tiles makes of its code.

    A generator G and a critic play an adversarial game on healthy windows. A tile's code z is
    found by a descent for each tile, or by an encoder: one that is trained afterwards, one that
    plays the game, or one that learns next to it. The score compares the tile with G(z), in
    pixels and in the critic's features, or it is the length of the code. The defaults are
    f-AnoGAN.

    A descent takes ``descent_steps`` · ``descent_starts`` passes through generator and critic,
    forwards and backwards, for every tile: it is for small sets.

    Notes
    -----
    The page docs/families/adversarial.md names each system with its paper, its preset, and what
    was adapted to windows of 64 px. Weights of a game do not show by a held-out loss how good
    they are: without an encoder that reconstructs, the last ones are kept.
    """

    Options: ClassVar[type[DetectorOptions]] = GanOptions
    default_input_px: ClassVar[int | None] = 64
    options: GanOptions

    def fit(self, tiles: HealthyTiles, context: FitContext) -> FitReport:
        """Train the game, for at most half of ``max_minutes`` if an encoder follows, then that.

        Raises
        ------
        DetectorError
            The tiles are too small, sizes do not fit, or the training diverged.
        RunError
            The folder holds the checkpoint of another training.
        """
        started = time.monotonic()
        check_size(tiles.fit.tile, self.spec.size)
        options, self._device, self._about = self.options, context.device, {}
        model = self._placed(seeded(self._untrained, context.seed))
        self._network = model
        if options.inversion == "encoder":
            before = self._train_game(model, tiles, before_the_last(context, _FOLDER), started)
            self._about["generator"] = about_training(before)
            started, context = time.monotonic(), after(before, context)
            result = self._train_encoder(model, tiles, context, started, steps=before.steps)
        else:
            result = self._train_game(model, tiles, context, started)
        if options.inversion == "descent":
            self._about["passes_per_tile"] = options.descent_steps * options.descent_starts
        return self._report(result, model)

    def places(self, images: Tensor) -> Tensor:
        """Return the scores of the places, by the option ``score``."""
        return score_places(self.model(), images * 2 - 1)

    def model(self) -> GanModel:
        """Return the fitted networks.

        Raises
        ------
        DetectorError
            The detector is not fitted yet.
        """
        return self.network_as(GanModel)

    def embed(self, tiles: Tiles) -> Embedding:
        """Return the codes of tiles; without an encoder, the critic's features by channel."""
        model = self.model()
        if model.encoder is not None:
            return self.embed_images(lambda x: model.code(x * 2 - 1), tiles)
        critic = model.critics[IMAGE]
        assert isinstance(critic, Critic)
        return self.embed_images(lambda x: critic.features(x * 2 - 1).mean(dim=(2, 3)), tiles)

    def restored(self, x: Tensor) -> Tensor:
        """Return what the generator makes of the images' codes."""
        model = self.model()
        return model.made(found_codes(model, x))

    def empty(self, state: State) -> nn.Module:
        """Return untrained networks."""
        return seeded(self._untrained, 0)

    def _untrained(self) -> GanModel:
        check_places(self.options.places, self.spec.size)
        return GanModel(self.options, self.spec.size)

    def _train_game(
        self, model: GanModel, tiles: HealthyTiles, context: FitContext, started: float
    ) -> TrainingResult:
        """Train generator and critics, and an encoder that plays along or learns next to them."""
        options, game = self.options, GanGame(model, seed=context.seed)
        own: dict[str, int] = {"batch": options.batch * options.critic.updates}
        if options.inversion == "encoder":
            own["max_steps"] = options.gan_steps
        return self._train(
            game.module,
            game.held_out_losses,
            tiles=tiles,
            context=context,
            identity={"part": "game"},
            recipe=Recipe(
                game.optimiser(),
                update=game.update(context.device),
                keeps="best" if options.inversion == "joint" else "last",
                parts=options.critic.updates,
            ),
            options=options.model_copy(update=own),
            started=started,
        )

    def _train_encoder(
        self,
        model: GanModel,
        tiles: HealthyTiles,
        context: FitContext,
        started: float,
        *,
        steps: int,
    ) -> TrainingResult:
        """Train the encoder for the generator and the critic, which stay as they are.

        It continues only after as many steps of the generator.
        """
        encoder, options = model.encoder, self.options
        assert encoder is not None
        for fixed in (model.generator, model.critics):
            fixed.eval().requires_grad_(False)
        loss = EncoderLoss(model, seed=context.seed)
        player = Player([encoder], options.encoder_learning_rate)
        return self._train(
            encoder,
            loss,
            tiles=tiles,
            context=context,
            identity={
                "part": "encoder",
                "generator_learning_rate": options.learning_rate,
                f"{STEPS_OF}generator": steps,
            },
            recipe=Recipe(rms_prop(), update=loss.update(context.device, player)),
            options=options.model_copy(update={"learning_rate": options.encoder_learning_rate}),
            started=started,
        )
