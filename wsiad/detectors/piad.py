"""PIAD: an autoencoder that two critics keep to healthy images, judged by a perceptual distance.

Two adversarial games train the autoencoder to make realistic images and latents. The generator
side is an encoder E and a decoder G. An image critic distinguishes images x from G(z), with z
drawn from the unit Gaussian; a latent critic distinguishes E(x) from z.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import pydantic
import torch
from torch import Tensor, nn

from wsiad.detectors._perceptual import PerceptualOptions, fitted_distances, restored_distance
from wsiad.detectors._reconstructing import ReconstructingDetector
from wsiad.detectors._trained import TrainedDetector, TrainedOptions, images
from wsiad.learning.adversarial_game import (
    AdversarialGame,
    CriticLoss,
    Match,
    Side,
    WassersteinLoss,
)
from wsiad.learning.batches import check_size
from wsiad.learning.checkpoint import Recipe, Update, clip_and_step, descend
from wsiad.learning.detector import DetectorOptions, FitContext, FitReport, HealthyTiles, State
from wsiad.learning.training_options import ValInterval
from wsiad.networks.autoencoder import (
    Autoencoder,
    AutoencoderShape,
    seeded_autoencoder,
    seeded_encoder,
)
from wsiad.networks.conv_stack import drawing_weights
from wsiad.networks.perceptual import RelativePerceptualL1

_SLOPE = 0.2
_LEAST_NORM = 1e-12

Distance = Callable[[Tensor, Tensor], Tensor]
"""Function that maps images and their reconstructions to the distance of each, (N,)."""


class ScalarCritic(nn.Module):
    """A network with one output for each of its inputs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, …) to (N,)."""
        judged: Tensor = self.network(x)
        return judged.flatten()


def latent_critic(channels: int, width: int) -> nn.Sequential:
    """Return a critic of latents (N, C, 1, 1) with two hidden layers."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(channels, width),
        nn.LeakyReLU(_SLOPE),
        nn.Linear(width, width),
        nn.LeakyReLU(_SLOPE),
        nn.Linear(width, 1),
    )


class GradientBalance(nn.Module):
    """Weight of a loss by which its gradients become as long as those of another loss.

    For every layer, the norms of both gradients are averaged exponentially over the records,
    and their ratio is kept after each record. The weight is the median over layers and the
    last records. Buffers hold all of it.

    Parameters
    ----------
    layers : int
        Number of layers.
    alpha : float
        Share of a new record in the averages.
    records : int
        Number of ratios that are kept.

    Notes
    -----
    Tuluptceva, Bakker, Fedulova & Konushin, *Perceptual Image Anomaly Detection*, ACPR
    2019 (arXiv 1909.05904).
    """

    averages: Tensor
    ratios: Tensor
    count: Tensor

    def __init__(self, layers: int, *, alpha: float = 0.05, records: int = 200) -> None:
        super().__init__()
        self._alpha = alpha
        self.register_buffer("averages", torch.zeros(2, layers))
        self.register_buffer("ratios", torch.zeros(records, layers))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def record(self, wanted: Iterable[Tensor], other: Iterable[Tensor]) -> None:
        """Record the gradients of every layer by the loss to match and by the loss to weight."""
        norms = torch.stack(
            [torch.stack([gradient.norm() for gradient in found]) for found in (wanted, other)]
        )
        count = int(self.count)
        self.averages.lerp_(norms.to(self.averages), self._alpha if count else 1.0)
        ratio = self.averages[0] / self.averages[1].clamp_min(_LEAST_NORM)
        self.ratios[count % len(self.ratios)] = ratio
        self.count += 1

    def weight(self) -> float:
        """Return the weight; 1 before the first record."""
        count = min(int(self.count), len(self.ratios))
        return float(self.ratios[:count].median()) if count else 1.0


@dataclass(frozen=True, slots=True)
class PiadBatch:
    """The tensors of a step of the critics.

    Parameters
    ----------
    x : Tensor, (N, 3, S, S)
        Images in [−1, 1].
    z : Tensor, (N, C, 1, 1)
        Random draws of the latent.
    shares : Tensor, (2, N)
        Position at which the gradient penalty is taken, see :class:`Match`; one row for each
        critic.
    """

    x: Tensor
    z: Tensor
    shares: Tensor


class Players(nn.Module):
    """An autoencoder and its two critics.

    Parameters
    ----------
    autoencoder : Autoencoder
        Autoencoder with a latent (N, C, 1, 1).
    image_critic, latent_critic : nn.Module
        Networks with one output.
    """

    def __init__(
        self, autoencoder: Autoencoder, image_critic: nn.Module, latent_critic: nn.Module
    ) -> None:
        super().__init__()
        self.encoder, self.decoder = autoencoder.encoder, autoencoder.decoder
        self.image_critic, self.latent_critic = (
            ScalarCritic(image_critic),
            ScalarCritic(latent_critic),
        )
        self.encoder_balance = GradientBalance(len(_matrices(self.encoder.parameters())))
        self.decoder_balance = GradientBalance(len(_matrices(self.decoder.parameters())))

    def game(self, loss: CriticLoss) -> AdversarialGame[PiadBatch]:
        """Return the game of both critics; autoencoder and critics share no gradient.

        The image critic distinguishes images from decoded draws, and the latent critic draws
        from encoded images.
        """
        return AdversarialGame(
            [
                Side(
                    critic=lambda batch: self.image_critic,
                    match=lambda batch: Match(batch.x, self.decoder(batch.z), batch.shares[0]),
                    loss=loss,
                ),
                Side(
                    critic=lambda batch: self.latent_critic,
                    match=lambda batch: Match(batch.z, self.encoder(batch.x), batch.shares[1]),
                    loss=loss,
                ),
            ]
        )

    def generator_descent(
        self, x: Tensor, z: Tensor, distance: Distance, *, weight: float | None, record: bool
    ) -> Tensor:
        """Set the gradients of encoder and decoder, and of nothing else.

        The encoder's loss is −D_z(E(x)), the decoder's −D(G(z)). Both also include the distance
        of x to G(E(x)), times its weight.

        Parameters
        ----------
        x : Tensor, (N, 3, S, S)
        z : Tensor, (N, C, 1, 1)
        distance : callable
        weight : float or None
            Weight of the distance; ``None`` for the weight that balances each side.
        record : bool
            True to record the gradients for the balance.

        Returns
        -------
        Tensor, ()
            Mean distance of the images to their reconstructions.
        """
        encoded = self.encoder(x)
        reconstruction = distance(x, self.decoder(encoded)).mean()
        sides = (
            (self.encoder, self.encoder_balance, -self.latent_critic(encoded).mean()),
            (self.decoder, self.decoder_balance, -self.image_critic(self.decoder(z)).mean()),
        )
        own = [list(module.parameters()) for module, _, _ in sides]
        found = torch.autograd.grad(reconstruction, own[0] + own[1], retain_graph=True)
        parts = (found[: len(own[0])], found[len(own[0]) :])
        for parameters, by_distance, (_, balance, adversarial) in zip(
            own, parts, sides, strict=True
        ):
            by_critic = torch.autograd.grad(adversarial, parameters, retain_graph=True)
            if record:
                balance.record(_matrices(by_critic), _matrices(by_distance))
            share = balance.weight() if weight is None else weight
            for parameter, first, second in zip(parameters, by_critic, by_distance, strict=True):
                parameter.grad = first + share * second
        return reconstruction.detach()


def _matrices(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return the weights of layers, without biases."""
    return [tensor for tensor in tensors if tensor.ndim > 1]


_STREAM = 1 << 33  # keeps the draws of latents apart from those of windows
_BETAS = (0.5, 0.99)
_Count = Annotated[int, pydantic.Field(ge=1)]
_Positive = Annotated[float, pydantic.Field(gt=0)]
_NotNegative = Annotated[float, pydantic.Field(ge=0)]


class PiadOptions(PerceptualOptions, TrainedOptions):
    """Options of ``piad``."""

    channels: _Count | tuple[_Count, ...] = (32, 64, 128, 256, 256)
    """Width of encoder, decoder and image critic: one number for all, or one for each resolution
    from the input down to 4 px."""
    critic_channels: _Count | tuple[_Count, ...] | None = None
    """Width of the image critic, if it differs from that of the encoder."""
    latent_channels: _Count = 256
    """Length of the latent vector."""
    latent_critic_width: _Count = 1_024
    """Width of the two hidden layers of the latent critic."""
    batch: _Count = 96
    """Number of tiles in a step, divided among the updates of critics and autoencoder."""
    learning_rate: _Positive = 2e-4
    """Learning rate of encoder and decoder, by Adam whose moments decay by 0.5 and 0.99."""
    critic_learning_rate: _Positive = 5e-4
    """Learning rate of the critics."""
    critic_updates: _Count = 2
    """Number of updates of the critics in a step."""
    gradient_penalty: _NotNegative = 10.0
    """Weight of the gradient penalty of the critics."""
    drift: _NotNegative = 1e-3
    """Weight of the squared outputs of the critics."""
    drift_of: Literal["real", "both"] = "real"
    """Outputs to which ``drift`` applies: those for real inputs, or those for generated ones too,
    as in the code of the method's authors."""
    reconstruction_weight: _NotNegative | None = None
    """Weight of the reconstruction against the critics; by default it follows the gradients."""
    balance_interval: _Count = 100
    """Steps between two measurements of the gradients for the reconstruction's weight."""
    val_interval: ValInterval = 500

    later: ClassVar[Mapping[str, Any]] = {
        "drift_of": "real",
        "critic_channels": None,
        "statistics": "tiles",
        "keep": "best",
    }

    @pydantic.model_validator(mode="after")
    def _enough_tiles(self) -> Self:
        if self.batch <= self.critic_updates:
            raise ValueError("batch must exceed critic_updates: each update needs a tile")
        return self

    def shape(self, input_px: int, *, critic: bool = False) -> AutoencoderShape:
        """Return the sizes of the autoencoder, or of the image critic, at an input size.

        Raises
        ------
        DetectorError
            The sizes do not fit together.
        """
        channels = (critic and self.critic_channels) or self.channels
        if isinstance(channels, int):
            channels = (channels,) * len(AutoencoderShape.edges(input_px, 1))
        return AutoencoderShape(
            image_px=input_px,
            latent_px=1,
            channels=channels,
            latent_channels=1 if critic else self.latent_channels,
            blocks="residual9",
        )


class PerceptualReconstruction(nn.Module):
    """An autoencoder and the distance by which its reconstructions are judged."""

    def __init__(self, autoencoder: Autoencoder, distance: RelativePerceptualL1) -> None:
        super().__init__()
        self.autoencoder, self.distance = autoencoder, distance

    def forward(self, x: Tensor) -> Tensor:
        """Return the distance by place (N, m, m) of images (N, 3, S, S) in [−1, 1]."""
        return self.distance.places(x, self.autoencoder(x))


class PerceptualImageAnomalyDetection(ReconstructingDetector, TrainedDetector):
    """Relative perceptual L1 distance of a tile to its reconstruction G(E(x)).

    Encoder and decoder play two games of WGAN-GP. An image critic distinguishes healthy tiles
    from G(z); a latent critic distinguishes z, drawn from the unit Gaussian, from E(x). The
    reconstruction is trained as well. Its weights, one for the encoder and one for the decoder,
    make its gradients as long as the adversarial ones. The weights with the lowest distance of
    held-out healthy tiles are kept.

    Notes
    -----
    PIAD: Tuluptceva, Bakker, Fedulova & Konushin, *Perceptual Image Anomaly Detection*,
    ACPR 2019 (arXiv 1909.05904); widths, rates and weights as its authors' baseline for
    CAMELYON16 in Shvetsova et al., IEEE Access 2021. Theirs trained for a fixed number of
    steps on the centres of tiles; here windows are random and the training stops early.
    """

    Options: ClassVar[type[DetectorOptions]] = PiadOptions
    default_input_px: ClassVar[int | None] = 64
    options: PiadOptions

    def fit(self, tiles: HealthyTiles, context: FitContext) -> FitReport:
        """Train on random windows of the tiles; see :class:`~wsiad.learning.loop.Training`.

        Raises
        ------
        DetectorError
            The tiles are too small, sizes do not fit, or the training diverged.
        WeightsError
            The perceptual network's weights are not on this machine.
        RunError
            The folder holds the checkpoint of another training.
        """
        started = time.monotonic()
        check_size(tiles.fit.tile, self.spec.size)
        options, self._device, size = self.options, context.device, self.spec.size
        shape = options.shape(size)
        found = fitted_distances(options, tiles.fit, context, size=size)
        autoencoder = seeded_autoencoder(shape, context.seed)
        whole = self._placed(PerceptualReconstruction(autoencoder, found.by_px[size]))
        self._network, self._about = whole, found.about
        players = self._placed(self._players(autoencoder, context.seed))

        def loss(windows: Tensor) -> Tensor:
            x = images(windows) * 2 - 1
            distance: Tensor = whole.distance(x, whole.autoencoder(x))
            return distance

        result = self._train(
            players,
            loss,
            tiles=tiles,
            context=context,
            identity=found.identity,
            recipe=Recipe(
                self._optimiser,
                update=self._update(players, whole, context.seed),
                parts=self.options.critic_updates + 1,
            ),
            started=started,
        )
        self._about["reconstruction_weights"] = {
            "encoder": players.encoder_balance.weight(),
            "decoder": players.decoder_balance.weight(),
        }
        return self._report(result, autoencoder)

    def places(self, images: Tensor) -> Tensor:
        """Return the distance at each place of the coarsest perceptual layer."""
        places: Tensor = self.network()(images * 2 - 1)
        return places

    def judged(self) -> tuple[Autoencoder, RelativePerceptualL1, torch.device]:
        """Return the autoencoder and the distance."""
        whole = self.network_as(PerceptualReconstruction).eval()
        return whole.autoencoder, whole.distance, self._device

    def empty(self, state: State) -> nn.Module:
        """Return an untrained autoencoder with the state's perceptual network."""
        size = self.spec.size
        distance = restored_distance(self.options, state, "distance", size=size)
        return PerceptualReconstruction(Autoencoder(self.options.shape(size)), distance)

    def _players(self, autoencoder: Autoencoder, seed: int) -> Players:
        options = self.options
        judged = options.shape(self.spec.size, critic=True)
        with drawing_weights(seed + 2):
            of_latents = latent_critic(options.latent_channels, options.latent_critic_width)
        return Players(autoencoder, seeded_encoder(judged, seed + 1), of_latents)

    def _optimiser(self, module: nn.Module) -> torch.optim.Optimizer:
        """Return one Adam for all; parameters without a gradient in an update are unchanged."""
        options = self.options
        critics = [p for name, p in module.named_parameters() if "_critic." in name]
        others = [p for name, p in module.named_parameters() if "_critic." not in name]
        factor = options.critic_learning_rate / options.learning_rate
        groups: list[dict[str, Any]] = [
            {"params": others},
            {"params": critics, "factor": factor},
        ]
        return torch.optim.Adam(groups, betas=_BETAS)

    def _update(self, players: Players, whole: PerceptualReconstruction, seed: int) -> Update:
        options = self.options
        loss = WassersteinLoss(options.gradient_penalty, options.drift, options.drift_of)
        game = players.game(loss)

        def update(windows: Tensor, optimiser: torch.optim.Optimizer, step: int) -> Tensor:
            parts = (images(windows) * 2 - 1).tensor_split(options.critic_updates + 1)
            z, shares = self._draws(len(windows), seed=seed, step=step)
            ends = np.cumsum([len(part) for part in parts])[:-1].tolist()
            of_critics = zip(
                parts, z.tensor_split(ends), shares.tensor_split(ends, dim=1), strict=True
            )
            game.train_critics(
                [PiadBatch(*part) for part in of_critics][:-1],
                lambda loss: descend(optimiser, loss, clip=options.grad_clip),
            )
            optimiser.zero_grad(set_to_none=True)
            distance = players.generator_descent(
                parts[-1],
                z[ends[-1] :],
                whole.distance,
                weight=options.reconstruction_weight,
                record=step % options.balance_interval == 0,
            )
            clip_and_step(optimiser, clip=options.grad_clip)
            return distance

        return update

    def _draws(self, count: int, *, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """Return the latents (N, C, 1, 1) and the shares (2, N) of a step."""
        rng = np.random.default_rng([seed, step, _STREAM])
        z = rng.standard_normal((count, self.options.latent_channels, 1, 1), dtype=np.float32)
        shares = rng.random((2, count), dtype=np.float32)
        return torch.from_numpy(z).to(self._device), torch.from_numpy(shares).to(self._device)
