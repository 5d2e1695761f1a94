"""Deep SVDD: a network is trained to map healthy tiles into a small ball."""

from __future__ import annotations

import time
from typing import Annotated, Any, ClassVar, Literal

import pydantic
import torch
from torch import Tensor, nn

from wsiad.detectors._trained import (
    TrainedDetector,
    TrainedOptions,
    about_training,
    after,
    before_the_last,
    images,
)
from wsiad.learning.batches import check_size
from wsiad.learning.checkpoint import STEPS_OF, Recipe, adam, descend
from wsiad.learning.detector import (
    DetectorOptions,
    Embedding,
    FitContext,
    FitReport,
    HealthyTiles,
    State,
    Tiles,
    TileSource,
)
from wsiad.learning.loop import TrainingResult
from wsiad.learning.step import Loss
from wsiad.learning.training_options import LearningRate, LoopOptions, ValInterval
from wsiad.networks.conv_stack import drawing_weights
from wsiad.networks.hypersphere import (
    BiasFreeEncoder,
    Hypersphere,
    MirrorDecoder,
    centre_of,
    square_distances,
)

_FOLDER = "autoencoder"
_STREAM = 1 << 32  # keeps the draws of the centre apart from those of the training
_Count = Annotated[int, pydantic.Field(ge=1)]
_Decay = Annotated[float, pydantic.Field(ge=0)]


class BallOptions(LoopOptions):
    """Options of the training of an encoder that maps healthy tiles near a centre."""

    channels: Annotated[tuple[_Count, ...], pydantic.Field(min_length=1)] = (32, 64, 128)
    """Width of each convolution of the encoder; each is followed by a halving."""
    centre_tiles: _Count = 2_048
    """Maximum number of healthy tiles whose mean output becomes the centre."""
    learning_rate: LearningRate = 1e-4
    weight_decay: _Decay = 5e-7
    """Weight of the squared weights in the loss."""
    pretrain_steps: Annotated[int, pydantic.Field(ge=0)] = 5_000
    """Maximum number of steps of the pretraining as an autoencoder's encoder; 0 for none."""
    pretrain_weight_decay: _Decay = 5e-4
    """Weight of the squared weights in the loss of the pretraining."""
    val_interval: ValInterval = 100


class DeepSvddOptions(BallOptions, TrainedOptions):
    """Options of ``deep-svdd``."""

    objective: Literal["one-class", "soft-boundary"] = "one-class"
    """Draw all healthy tiles to the centre, or those outside of a ball that excludes ``nu``."""
    nu: Annotated[float, pydantic.Field(gt=0, lt=1)] = 0.1
    """Share of healthy tiles outside of the ball, for ``soft-boundary``."""
    representation: _Count = 128
    """Dimensions of the space of the ball."""


class DeepSvdd(TrainedDetector):
    """Squared distance |φ(x) − c|² of a tile to the centre of healthy ones.

    A convolutional encoder without biases is first trained as part of an autoencoder (squared
    error), which also stops by its held-out loss. The mean of its outputs, with no coordinate
    closer to 0 than 0.1, is the centre c. The encoder is then trained to lower the mean of
    |φ − c|² (``one-class``), or R² + mean of max(0, |φ − c|² − R²) / ν (``soft-boundary``,
    whose score is |φ − c|² − R²). After every step, R² is set to the quantile 1 − ν of the
    squared distances in the batch, and at the end to that of healthy tiles. A tile has one
    place.

    Notes
    -----
    Ruff et al., *Deep One-Class Classification*, ICML 2018, eq. 3 and 4, with their encoder for
    CIFAR-10. Unlike theirs, tiles keep their contrast and brightness, and R² is set from the
    first step, so that held-out losses can be compared.
    """

    Options: ClassVar[type[DetectorOptions]] = DeepSvddOptions
    default_input_px: ClassVar[int | None] = 64
    options: DeepSvddOptions

    def fit(self, tiles: HealthyTiles, context: FitContext) -> FitReport:
        """Train the autoencoder, for at most half of ``max_minutes``, then the ball.

        Raises
        ------
        DetectorError
            The tiles are too small, or the training diverged.
        RunError
            The folder holds the checkpoint of another training.
        """
        started = time.monotonic()
        check_size(tiles.fit.tile, self.spec.size)
        options, self._device = self.options, context.device
        ball = self._placed(self._ball(context.seed))
        self._network, self._about, last = ball, {}, context
        if options.pretrain_steps:
            before = self._pretrain(ball.encoder, tiles, context, started)
            self._about["autoencoder"] = about_training(before)
            started, last = time.monotonic(), after(before, context)
        outputs = self._outputs(ball, tiles.fit, context.seed)
        ball.centre.copy_(self._centre(ball, outputs))
        if options.objective == "soft-boundary":
            ball.fit_radius(square_distances(outputs, ball.centre), options.nu)

        def loss(windows: Tensor) -> Tensor:
            distances: Tensor = ball(images(windows))
            if options.objective == "one-class":
                return distances
            return ball.soft_boundary(distances, options.nu)

        result = self._train(
            ball,
            loss,
            tiles=tiles,
            context=last,
            identity=self._identity("ball"),
            recipe=self._recipe(ball),
            started=started,
        )
        if options.objective == "soft-boundary":
            # While training, the radius is that of a batch normalised by itself.
            outputs = self._outputs(ball, tiles.fit, context.seed)
            ball.fit_radius(square_distances(outputs, ball.centre), options.nu)
        return self._report(result, ball)

    def places(self, images: Tensor) -> Tensor:
        """Return the squared distance, minus the squared radius if there is one: (N, 1, 1)."""
        ball = self.network_as(Hypersphere)
        distances: Tensor = ball(images) - ball.square_radius
        return distances.view(-1, 1, 1)

    def embed(self, tiles: Tiles) -> Embedding:
        """Return the encoder's outputs φ, whose distance to the centre is scored."""
        return self.embed_images(self.network_as(Hypersphere).encoder, tiles)

    def empty(self, state: State) -> nn.Module:
        """Return an untrained encoder with its ball."""
        return self._ball(0)

    def _ball(self, seed: int) -> Hypersphere:
        options = self.options
        with drawing_weights(seed):
            encoder = BiasFreeEncoder(self.spec.size, options.channels, options.representation)
        return Hypersphere(encoder, options.representation)

    def _pretrain(
        self, encoder: nn.Module, tiles: HealthyTiles, context: FitContext, started: float
    ) -> TrainingResult:
        """Train the encoder as part of an autoencoder."""
        options = self.options
        with drawing_weights(context.seed):
            decoder = MirrorDecoder(self.spec.size, options.channels, options.representation)
        autoencoder = nn.Sequential(encoder, self._placed(decoder))

        def loss(windows: Tensor) -> Tensor:
            x = images(windows)
            error: Tensor = (autoencoder(x) - x).square().mean(dim=(1, 2, 3))
            return error

        return self._train(
            autoencoder,
            loss,
            tiles=tiles,
            context=before_the_last(context, _FOLDER),
            identity=self._identity("autoencoder"),
            recipe=self._pretraining(loss),
            options=options.model_copy(update={"max_steps": options.pretrain_steps}),
            started=started,
        )

    def _identity(self, part: str) -> dict[str, Any]:
        """Return JSON values that a checkpoint of a part of the training must agree with.

        The ball continues only after as many steps of the pretraining.
        """
        if part == "ball" and (before := self._about.get("autoencoder")):
            return {"part": part, f"{STEPS_OF}pretraining": before["steps"]}
        return {"part": part}

    def _centre(self, ball: Hypersphere, outputs: Tensor) -> Tensor:
        """Return the centre, from outputs for healthy tiles before the training."""
        return centre_of(outputs)

    def _pretraining(self, loss: Loss) -> Recipe:
        """Return the recipe of the pretraining."""
        return Recipe(adam(weight_decay=self.options.pretrain_weight_decay))

    @torch.no_grad()
    def _outputs(self, ball: Hypersphere, tiles: TileSource, seed: int) -> Tensor:
        """Return the outputs (N, D) for windows of the healthy tiles of the fit."""
        ball.eval()
        parts = self._healthy_windows(tiles, self.options.centre_tiles, seed=seed, stream=_STREAM)
        return torch.cat([ball.encoder(images(windows)) for windows in parts])

    def _recipe(self, ball: Hypersphere) -> Recipe:
        options = self.options
        optimiser = adam(weight_decay=options.weight_decay)
        if options.objective == "one-class":
            return Recipe(optimiser)

        def update(windows: Tensor, optimiser: torch.optim.Optimizer, step: int) -> Tensor:
            distances: Tensor = ball(images(windows))
            loss = ball.soft_boundary(distances, options.nu).mean()
            descend(optimiser, loss, clip=options.grad_clip)
            ball.fit_radius(distances.detach(), options.nu)
            return loss

        return Recipe(optimiser, update=update)
