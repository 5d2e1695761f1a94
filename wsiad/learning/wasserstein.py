"""The Wasserstein game with gradient penalty: what the critic and its opponent minimise."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Critic = Callable[[Tensor], Tensor]
"""Maps images, float (N, C, H, W), to a number each, float (N,): higher is more real."""


def critic_loss(
    critic: Critic,
    real: Tensor,
    fake: Tensor,
    *,
    mix: Tensor,
    penalty_weight: float,
    drift_weight: float,
) -> Tensor:
    """Return what the critic *D* minimises, a scalar.

    −(mean D(x) − mean D(y)) + ``drift_weight`` · (mean D(x)² + mean D(y)²) +
    ``penalty_weight`` · :func:`gradient_penalty`.

    Parameters
    ----------
    critic : callable
    real, fake : Tensor, float (N, C, H, W)
        *x* and *y*; they carry no gradient.
    mix : Tensor, float (N,)
        Of the penalty.
    penalty_weight, drift_weight : float

    Notes
    -----
    Gulrajani et al., "Improved Training of Wasserstein GANs", NeurIPS 2017; the drift term
    is that of Karras et al., "Progressive Growing of GANs", ICLR 2018, for both images.
    """
    of_real, of_fake = critic(real), critic(fake)
    game = of_fake.mean() - of_real.mean()
    drift = of_real.square().mean() + of_fake.square().mean()
    penalty = gradient_penalty(critic, real, fake, mix=mix)
    return game + drift_weight * drift + penalty_weight * penalty


def gradient_penalty(critic: Critic, real: Tensor, fake: Tensor, *, mix: Tensor) -> Tensor:
    """Return the mean of (‖∇D(z)‖₂ − 1)² at z = mix · real + (1 − mix) · fake, a scalar.

    Parameters
    ----------
    critic : callable
    real, fake : Tensor, float (N, C, H, W)
    mix : Tensor, float (N,)
        Of 0 to 1, one for each pair of images.
    """
    share = mix.view(-1, 1, 1, 1)
    between = (share * real + (1 - share) * fake).detach().requires_grad_()
    (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return (slope.flatten(1).norm(dim=1) - 1).square().mean()
