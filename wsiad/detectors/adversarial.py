"""Two adversarial games about an autoencoder: its images and its latents should look real.

The generator side is an encoder E and a decoder G. An image critic tells images x from
G(z), z drawn from the unit Gaussian; a latent critic tells E(x) from z.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wsiad.networks.autoencoder import Autoencoder

_SLOPE = 0.2
_LEAST_NORM = 1e-12

Distance = Callable[[Tensor, Tensor], Tensor]
"""Maps images and their reconstructions to the distance of each, (N,)."""


@dataclass(frozen=True, slots=True)
class CriticLoss:
    """Weights in the loss of a critic.

    Parameters
    ----------
    penalty : float
        Of the squared difference to 1 of the gradient's norm.
    drift : float
        Of the squared outputs for what is real, which would else have no zero.
    """

    penalty: float = 10.0
    drift: float = 1e-3

    def __call__(
        self, critic: Callable[[Tensor], Tensor], real: Tensor, made: Tensor, shares: Tensor
    ) -> Tensor:
        """Return the loss () of a critic, larger outputs meaning real.

        Parameters
        ----------
        critic : callable
            Maps (N, …) to (N,).
        real, made : Tensor, (N, …)
            Without gradients.
        shares : Tensor, (N,)
            Of the real one in the mixtures at which the gradient is taken, from 0 to 1.
        """
        judged = critic(real)
        game = critic(made).mean() - judged.mean()
        penalty = gradient_penalty(critic, real, made, shares)
        loss: Tensor = game + self.penalty * penalty + self.drift * judged.square().mean()
        return loss


def gradient_penalty(
    critic: Callable[[Tensor], Tensor], real: Tensor, made: Tensor, shares: Tensor
) -> Tensor:
    """Return the mean of (|∇D| − 1)² at mixtures of real and made ones.

    Gulrajani et al., *Improved Training of Wasserstein GANs*, NeurIPS 2017, eq. 3.
    """
    share = shares.view(-1, *[1] * (real.ndim - 1))
    mixed = (share * real + (1 - share) * made).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(mixed).sum(), mixed, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()


class Critic(nn.Module):
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
    """Weight of one loss such that its gradients are as long as those of another.

    For every layer the norms of both gradients are averaged exponentially over the
    records, and their ratio is kept after each. The weight is the median over layers and
    the last records. All of it is kept in buffers.

    Parameters
    ----------
    layers : int
        How many.
    alpha : float
        Share of a new record in the averages.
    records : int
        How many ratios are kept.

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
        """Record the gradients of every layer by the loss to match and the one to weigh."""
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


class Game(nn.Module):
    """An autoencoder and its two critics.

    Parameters
    ----------
    autoencoder : Autoencoder
        With a latent (N, C, 1, 1).
    image_critic, latent_critic : nn.Module
        Networks with one output.
    """

    def __init__(
        self, autoencoder: Autoencoder, image_critic: nn.Module, latent_critic: nn.Module
    ) -> None:
        super().__init__()
        self.encoder, self.decoder = autoencoder.encoder, autoencoder.decoder
        self.image_critic, self.latent_critic = Critic(image_critic), Critic(latent_critic)
        self.encoder_balance = GradientBalance(len(_matrices(self.encoder.parameters())))
        self.decoder_balance = GradientBalance(len(_matrices(self.decoder.parameters())))

    def critics_loss(self, x: Tensor, z: Tensor, shares: Tensor, *, loss: CriticLoss) -> Tensor:
        """Return the loss () of both critics; autoencoder and critics share no gradient.

        Parameters
        ----------
        x : Tensor, (N, 3, S, S)
            Images.
        z : Tensor, (N, C, 1, 1)
            Draws.
        shares : Tensor, (2, N)
            See :class:`CriticLoss`; one row a critic.
        loss : CriticLoss
        """
        with torch.no_grad():
            made, encoded = self.decoder(z), self.encoder(x)
        of_images = loss(self.image_critic, x, made, shares[0])
        return of_images + loss(self.latent_critic, z, encoded, shares[1])

    def generator_descent(
        self, x: Tensor, z: Tensor, distance: Distance, *, weight: float | None, record: bool
    ) -> Tensor:
        """Set the gradients of encoder and decoder, and of nothing else.

        The encoder's loss is −D_z(E(x)), the decoder's −D(G(z)); both have the distance of
        x to G(E(x)) besides, times its weight.

        Parameters
        ----------
        x : Tensor, (N, 3, S, S)
        z : Tensor, (N, C, 1, 1)
        distance : callable
        weight : float or None
            Of the distance; ``None`` for that of the balance of each side.
        record : bool
            Record the gradients for the balance.

        Returns
        -------
        Tensor, ()
            Mean distance.
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
