"""GANomaly and Skip-GANomaly: a tile is restored against a critic, and encoded again."""

from __future__ import annotations

import time
from typing import Annotated, ClassVar, NamedTuple, Self

import numpy as np
import pydantic
import torch
from torch import Tensor, nn

from wsiad.detectors._reconstructing import RestoringDetector, check_places
from wsiad.detectors._trained import TrainedOptions, images
from wsiad.learning.adversarial_game import AdversarialGame, Match, Side
from wsiad.learning.batches import check_size
from wsiad.learning.checkpoint import OptimiserFactory, Recipe, Update
from wsiad.learning.detector import (
    DetectorOptions,
    Embedding,
    FitContext,
    FitReport,
    HealthyTiles,
    State,
    Tiles,
)
from wsiad.learning.devices import drawing
from wsiad.learning.game_losses import (
    GameOptions,
    Player,
    PlayerOptions,
    adam_of,
    descend_alone,
)
from wsiad.learning.training_options import BatchSize, LearningRate, ValInterval
from wsiad.networks.judged_autoencoder import (
    OF_THE_CRITIC,
    Judged,
    JudgedAutoencoder,
    Restored,
    Term,
)
from wsiad.networks.stack_options import StackOptions

_STREAM = 1 << 37  # keeps the draws of the noise apart from those of windows
_Count = Annotated[int, pydantic.Field(ge=1)]
_Positive = Annotated[float, pydantic.Field(gt=0)]
_Decay = Annotated[float, pydantic.Field(ge=0, lt=1)]
_Terms = Annotated[dict[Term, _Positive], pydantic.Field(min_length=1)]
_JudgedTerms = Annotated[dict[Judged, _Positive], pydantic.Field(min_length=1)]

_DCGAN = {
    "widths": (64, 128, 256, 512),
    "kernel": 4,
    "vector": "conv",
    "norm_first": False,
    "activation": "leaky",
    "bias": False,
    "initial": "normal",
}


class GanomalyOptions(TrainedOptions):
    """Options of ``ganomaly``; the defaults are GANomaly's."""

    network: StackOptions = StackOptions.model_validate(
        {**_DCGAN, "up_activation": "relu", "output": "tanh"}
    )
    """Levels of the encoders, which the decoder mirrors. With ``skips: true`` it is a U-Net, as
    in Skip-GANomaly."""
    latent_channels: _Count | None = 100
    """Length of the code, or channels of a spatial one; ``null`` for a spatial code that is the
    output of the last level."""
    spatial: bool = False
    """Use a map as code."""
    loss: _Terms = pydantic.Field(default={"features": 1.0, "l1": 50.0, "code": 1.0})
    """Terms of the autoencoder's loss with their weights: mean square of f(x) − f(x̂) for the
    critic's features f; mean of |x − x̂| (``l1``) or (x − x̂)² (``l2``), of images in [−1, 1];
    mean square of z − ẑ for the codes of the tile and of its reconstruction (``code``, which
    needs a second encoder); and the critic's judgement of the reconstruction (``critic``)."""
    judged_by: _JudgedTerms = pydantic.Field(default={"code": 1.0})
    """Terms of the score with their weights: ``code``, ``l1``, ``l2``, ``features``."""
    noise: Annotated[float, pydantic.Field(ge=0)] = 0.0
    """Standard deviation of the noise that is added to the input in training; the target is
    without it."""
    critic_network: StackOptions = StackOptions.model_validate(_DCGAN)
    """Levels of the critic."""
    critic_vector: _Count | None = None
    """Length of a vector of features from which the critic judges, as in Skip-GANomaly; by
    default its features are the maps of its last level."""
    critic: PlayerOptions = PlayerOptions()
    """Training of the critic."""
    game: GameOptions = GameOptions(loss="bce")
    """Loss of the game."""
    places: _Count = 8
    """Edge of the grid of places in a tile. A distance of vectors is the same at all of them."""
    betas: tuple[_Decay, _Decay] = (0.5, 0.999)
    """Decay of the moments of Adam in a step."""
    batch: BatchSize = 64
    learning_rate: LearningRate = 2e-4
    val_interval: ValInterval = 200

    scoring_only: ClassVar[frozenset[str]] = TrainedOptions.scoring_only | {"judged_by", "places"}

    @pydantic.model_validator(mode="after")
    def _fits_together(self) -> Self:
        if not OF_THE_CRITIC & self.loss.keys():
            raise ValueError(
                "loss needs features or critic: the reconstruction detector has no critic"
            )
        if not {"l1", "l2"} & self.loss.keys():
            raise ValueError("loss needs l1 or l2: else nothing keeps the image")
        if "code" in self.judged_by and "code" not in self.loss:
            raise ValueError("judged_by: code needs code in the loss, which trains its encoder")
        if self.network.skips and not {"code", "features"} & self.judged_by.keys():
            raise ValueError(
                "network.skips needs judged_by: code or features, for it can copy its input"
            )
        if self.latent_channels is None and not self.spatial:
            raise ValueError("latent_channels can be null only with spatial: true")
        if self.batch == 1 and "batch" in (self.network.norm, self.critic_network.norm):
            raise ValueError("batch must be 2 or more with batch normalisation")
        return self

    def uses(self) -> dict[str, tuple[bool, str]]:
        """Return which options do something; see :meth:`UsedOptions.uses`."""
        return (
            super().uses()
            | self.network.uses_in("network", sees=True, makes=True, vector=not self.spatial)
            | self.critic_network.uses_in("critic_network", sees=True, makes=False, vector=True)
        )

    def steady(self) -> dict[Term, float]:
        """Return the terms of the loss that do not change with the critic."""
        return {name: w for name, w in self.loss.items() if name not in OF_THE_CRITIC}


class GanomalyBatch(NamedTuple):
    """A batch of a step: images (N, 3, S, S) in [−1, 1], and the generator of its draws."""

    x: Tensor
    rng: np.random.Generator


class GanomalyGame:
    """Autoencoder and critic that are trained in turn: first the critic's updates.

    The critic minimises its own loss alone. Skip-GANomaly's code adds the distance of its
    features, which the critic would then learn to make small, and both codes draw the critic's
    weights anew when its loss falls below 1e-5; neither is done here.

    Parameters
    ----------
    model : JudgedAutoencoder
    options : GanomalyOptions
    seed : int
    """

    def __init__(self, model: JudgedAutoencoder, options: GanomalyOptions, seed: int) -> None:
        self.model, self._options, self._seed = model, options, seed
        self._losses = options.game.game_loss()
        side: Side[GanomalyBatch] = Side(
            lambda batch: model.critic, self._match, self._losses.critic
        )
        self.game = AdversarialGame([side])
        critic = options.critic
        self._autoencoder = Player([model.generator], options.learning_rate, options.betas)
        self._critic = Player([model.critic], critic.learning_rate, critic.betas)

    def __call__(self, windows: Tensor) -> Tensor:
        """Return the loss (N,) of held-out windows, without the terms of the critic or noise."""
        x = images(windows) * 2 - 1
        made = self.model.generator(x)
        return self.model.losses(x, made, self._options.steady(), self._losses.opponent)

    def optimiser(self) -> OptimiserFactory:
        """Return the function that makes one Adam with a group for each player."""
        return adam_of([self._autoencoder, self._critic], rate=self._options.learning_rate)

    def update(self, device: torch.device) -> Update:
        """Return the function that takes a step: the critic's updates, then the autoencoder's."""
        options = self._options

        def update(windows: Tensor, optimiser: torch.optim.Optimizer, step: int) -> Tensor:
            rng = np.random.default_rng([self._seed, _STREAM, step])
            batch = GanomalyBatch(images(windows) * 2 - 1, rng)
            with drawing(device, self._seed, _STREAM, step):
                for _ in range(options.critic.updates):
                    judged = self.game.critics_loss(batch)
                    descend_alone(optimiser, judged, self._critic, clip=options.grad_clip)
                total, steady = self.opponent_losses(batch)
                descend_alone(optimiser, total, self._autoencoder, clip=options.grad_clip)
            return steady

        return update

    def opponent_losses(self, batch: GanomalyBatch) -> tuple[Tensor, Tensor]:
        """Return the autoencoder's mean loss, and that without the critic's terms, () each."""
        options, made = self._options, self._restored(batch)
        steady = self.model.losses(batch.x, made, options.steady(), self._losses.opponent).mean()
        moving = {name: w for name, w in options.loss.items() if name in OF_THE_CRITIC}
        total = steady + self.model.losses(batch.x, made, moving, self._losses.opponent).mean()
        return total, steady.detach()

    def _restored(self, batch: GanomalyBatch) -> Restored:
        x, sigma = batch.x, self._options.noise
        if sigma:
            noise = batch.rng.standard_normal(tuple(x.shape), dtype=np.float32) * sigma
            x = x + torch.from_numpy(noise).to(x)
        found: Restored = self.model.generator(x)
        return found

    def _match(self, batch: GanomalyBatch) -> Match:
        made = self._restored(batch).image
        return Match(batch.x, made, self._losses.mix(batch.rng, batch.x))


class Ganomaly(RestoringDetector):
    """Distance of a tile's code to that of its reconstruction, which was learnt against a critic.

    An encoder and a decoder reconstruct healthy windows, a second encoder maps the results to
    codes again, and a critic learns to distinguish reconstructions from tiles. The autoencoder
    minimises the distance of the pixels, of the critic's features, and of both codes. The last
    is the score. With skip connections (``network: {skips: true}``) there is no narrow code, and
    the score is the distance of pixels and of the critic's features.

    Scores keep their sign and their scale, which depend on the tile alone: both published codes
    scale scores by the extremes of the test set, and keep the epoch that is best on it. Here
    the weights of the lowest held-out loss without the critic's terms are kept.

    Notes
    -----
    Akcay, Atapour-Abarghouei & Breckon, "GANomaly", ACCV 2018, and "Skip-GANomaly", IJCNN 2019.
    The page docs/families/adversarial.md states what was adapted.
    """

    Options: ClassVar[type[DetectorOptions]] = GanomalyOptions
    default_input_px: ClassVar[int | None] = 64
    options: GanomalyOptions

    def fit(self, tiles: HealthyTiles, context: FitContext) -> FitReport:
        """Train on random windows of the tiles; see :class:`~wsiad.learning.loop.Training`.

        Raises
        ------
        DetectorError
            The tiles are too small, sizes do not fit, or the training diverged.
        RunError
            The folder holds the checkpoint of another training.
        """
        started = time.monotonic()
        check_size(tiles.fit.tile, self.spec.size)
        self._device, self._about = context.device, {}
        model = self._placed(self._untrained(context.seed))
        self._network = model
        game = GanomalyGame(model, self.options, context.seed)
        result = self._train(
            model,
            game,
            tiles=tiles,
            context=context,
            identity={},
            recipe=Recipe(
                game.optimiser(), update=game.update(context.device), keeps=self.options.keep
            ),
            started=started,
        )
        return self._report(result, model.generator)

    def places(self, images: Tensor) -> Tensor:
        """Return the distances of the option ``judged_by`` at every place."""
        model, x, options = self.model(), images * 2 - 1, self.options
        return model.places(x, model.generator(x), options.judged_by, options.places)

    def model(self) -> JudgedAutoencoder:
        """Return the fitted model.

        Raises
        ------
        DetectorError
            The detector is not fitted yet.
        """
        return self.network_as(JudgedAutoencoder)

    def embed(self, tiles: Tiles) -> Embedding:
        """Return the codes of tiles, place by place."""
        model = self.model()
        return self.embed_images(lambda x: model.generator.encoder(x * 2 - 1).flatten(1), tiles)

    def restored(self, x: Tensor) -> Tensor:
        """Return the reconstructions of images."""
        found: Restored = self.model().generator(x)
        return found.image

    def empty(self, state: State) -> nn.Module:
        """Return an untrained model."""
        return self._untrained(0)

    def _untrained(self, seed: int) -> JudgedAutoencoder:
        options, size = self.options, self.spec.size
        check_places(options.places, size)
        return JudgedAutoencoder(
            options.network.shape(
                size, latent_channels=options.latent_channels, spatial=options.spatial
            ),
            options.critic_network.shape(size, latent_channels=1, spatial=False),
            twice="code" in options.loss,
            critic_vector=options.critic_vector,
            seed=seed,
        )
