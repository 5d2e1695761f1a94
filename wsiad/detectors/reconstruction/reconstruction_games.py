"""The adversarial games of ``reconstruction``: critics of its images and of its latents.

An image critic distinguishes tiles from what the network makes of them, or of draws from the
prior. A latent critic distinguishes draws from the prior from the codes of tiles, as the task shows
them: those of OCGAN have noise. A classifier can tell reconstructions from images of draws, so that
the draws with the least real images are found. All updates of a step see the same tiles, with new
draws for each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from wsiad.detectors._trained import images
from wsiad.detectors.reconstruction.old_generator import OldWeights
from wsiad.detectors.reconstruction.reconstruction_model import ReconstructionModel
from wsiad.detectors.reconstruction.reconstruction_options import ReconstructionOptions
from wsiad.detectors.reconstruction.reconstruction_training import STREAM, RestorationLoss
from wsiad.learning.adversarial_game import AdversarialGame, Match, Side
from wsiad.learning.checkpoint import OptimiserFactory, Update
from wsiad.learning.devices import drawing
from wsiad.learning.game_losses import Player, adam_of, binary_critic, descend_alone
from wsiad.networks.code_critics import LatentCritic
from wsiad.networks.conv_stack import Critic, seeded

_WITHIN = 1 - 1e-6  # codes stay inside of (−1, 1), where the inverse of tanh is finite


class GameBatch(NamedTuple):
    """A batch of a step.

    Parameters
    ----------
    x : Tensor, (N, 3, S, S)
        Images in [−1, 1].
    rng : Generator
        Generator of the draws of the step.
    step : int
        Number of the step, from 0.
    """

    x: Tensor
    rng: np.random.Generator
    step: int = 0


def drawn_codes(options: ReconstructionOptions, like: Tensor, rng: np.random.Generator) -> Tensor:
    """Return draws from the prior in the shape of some codes.

    The prior is uniform in (−1, 1) if the latent game says so, and else the unit Gaussian.
    """
    shape = tuple(like.shape)
    if options.latent_game == "uniform":
        found = rng.random(shape, dtype=np.float32) * 2 - 1
    else:
        found = rng.standard_normal(shape, dtype=np.float32)
    return torch.from_numpy(found).to(like)


def mined(codes: Tensor, judge: Callable[[Tensor], Tensor], *, steps: int, rate: float) -> Tensor:
    """Return codes moved to where a classifier is surer that their images are not real.

    The steps go down −log (1 − σ(C)), the loss of the label "not real", in the space that tanh
    maps to (−1, 1): codes stay there.

    Parameters
    ----------
    codes : Tensor
        Codes in (−1, 1).
    judge : callable
        Function that maps codes to the classifier's logits C of their images, (N,).
    steps : int
    rate : float
        Length of a step, a multiple of the slope of each code's own loss.

    Returns
    -------
    Tensor
        Codes in (−1, 1), without a gradient.

    Notes
    -----
    Perera, Nallapati & Xiang, "OCGAN", CVPR 2019: informative-negative mining. The released code
    takes the tanh of the drawn codes themselves, so that those that have not moved are within
    ±0.76; here, codes that do not move stay the same.
    """
    at = torch.atanh(codes.detach().clamp(-_WITHIN, _WITHIN))
    for _ in range(steps):
        point = at.requires_grad_()
        loss = functional.softplus(judge(torch.tanh(point))).sum()
        (slope,) = torch.autograd.grad(loss, point)
        at = (point - rate * slope).detach()
    return torch.tanh(at).clamp(-_WITHIN, _WITHIN)


class ReconstructionGame:
    """Autoencoder and critics that are trained in turn.

    Parameters
    ----------
    loss : RestorationLoss
        Loss of the autoencoder without its critics.
    latent_critic : LatentCritic or None
        Critic of codes, if there is a latent game. The image critic is the model's own.
    seed : int

    Attributes
    ----------
    module : nn.ModuleDict
        All that is trained or kept from step to step.
    old : OldWeights or None
        Old generator, if there is a second phase.
    """

    def __init__(
        self, loss: RestorationLoss, latent_critic: LatentCritic | None, *, seed: int
    ) -> None:
        self._loss, self._latent_critic, self._seed = loss, latent_critic, seed
        self.model, self.options = loss.model, loss.options
        self._losses = self.options.game.game_loss()
        sides = []
        if self.options.image_game != "none":
            sides.append(Side(lambda batch: self._judge, self._image_match, self._losses.critic))
        if latent_critic is not None:
            sides.append(Side(lambda batch: latent_critic, self._code_match, self._losses.critic))
        classifier = self._classifier = classifier_of(self.model, seed)
        if classifier is not None:
            sides.append(Side(lambda batch: classifier, self._mining_match, binary_critic))
        self._game = AdversarialGame(sides)
        trained = {
            "image_critic": self.model.image_critic,
            "latent": latent_critic,
            "classifier": classifier,
        }
        critics = {name: one for name, one in trained.items() if one is not None}
        options, critic = self.options, self.options.critic
        self._autoencoder = Player(
            [self.model.learnt()],
            options.learning_rate,
            options.betas,
            weight_decay=options.weight_decay,
        )
        self._critics = Player(list(critics.values()), critic.learning_rate, critic.betas)
        self.module = nn.ModuleDict({"model": self.model.learnt(), **critics})
        self.old: OldWeights | None = None
        if options.second_phase_steps:
            self.old = OldWeights(self.model)
            self.module["old"] = self.old

    def optimiser(self) -> OptimiserFactory:
        """Return the function that makes one Adam with a group for each player."""
        return adam_of([self._autoencoder, self._critics], rate=self.options.learning_rate)

    def update(self, device: torch.device) -> Update:
        """Return the function that takes a step: the critics' updates, then the autoencoder's."""
        options = self.options

        def update(windows: Tensor, optimiser: torch.optim.Optimizer, step: int) -> Tensor:
            batch = GameBatch(
                images(windows) * 2 - 1, np.random.default_rng([self._seed, STREAM, step]), step
            )
            with drawing(device, self._seed, STREAM, step):
                for _ in range(options.critic.updates):
                    judged = self._game.critics_loss(batch)
                    descend_alone(optimiser, judged, self._critics, clip=options.grad_clip)
                for _ in range(options.model_updates):
                    total, distance = self.opponent_losses(batch)
                    descend_alone(optimiser, total, self._autoencoder, clip=options.grad_clip)
            if self.old is not None and step + 1 == options.old_steps:
                self.old.take(self.model)
            return distance

        return update

    def opponent_losses(self, batch: GameBatch) -> tuple[Tensor, Tensor]:
        """Return the autoencoder's mean loss with its critics, and without them, () each."""
        options, x = self.options, batch.x
        view = self._loss.restored(x, batch.rng, draw=True)
        plain = self._loss.of_view(x, view, draw=True).mean()
        total = plain
        if options.image_game != "none":
            made = view.made.image
            if options.image_game == "prior":
                made = self._from_prior(batch, mine=True)
            elif options.image_game_moves == "decoder":
                made = self._with_fixed_code(x)
            fooled = self._losses.opponent(self._judge(made)).mean()
            total = total + options.image_game_weight * fooled
        if self._latent_critic is not None:
            code = self._code(batch)
            fooled = self._losses.opponent(self._latent_critic(code)).mean()
            total = total + options.latent_game_weight * fooled
        return total, plain.detach()

    def _judge(self, x: Tensor) -> Tensor:
        assert self.model.image_critic is not None
        judged: Tensor = self.model.image_critic(x)
        return judged

    def _code(self, batch: GameBatch) -> Tensor:
        """Return the codes that a latent critic sees: of images as the task shows them."""
        return self.model.code(self._loss.changed(batch.x, batch.rng), draw=True).value

    def _from_prior(self, batch: GameBatch, *, mine: bool = False) -> Tensor:
        options, classifier = self.options, self._classifier
        with torch.no_grad():
            like = self.model.code(batch.x).value
        codes = drawn_codes(options, like, batch.rng)
        if mine and classifier is not None and batch.step >= options.mining_from:
            codes = mined(
                codes,
                lambda code: classifier(self.model.decoded(code).image),
                steps=options.mining_steps,
                rate=options.mining_rate,
            )
        return self.model.decoded(codes).image

    def _with_fixed_code(self, x: Tensor) -> Tensor:
        """Return reconstructions through which no gradient reaches the encoder."""
        with torch.no_grad():
            code = self.model.code(x, draw=True).value
        return self.model.decoded(code).image

    def _image_match(self, batch: GameBatch) -> Match:
        if self.options.image_game == "prior":
            made = self._from_prior(batch)
        else:
            made = self._loss.restored(batch.x, batch.rng, draw=True).made.image
        return Match(batch.x, made, self._losses.mix(batch.rng, batch.x))

    def _code_match(self, batch: GameBatch) -> Match:
        code = self._code(batch)
        return Match(
            drawn_codes(self.options, code, batch.rng), code, self._losses.mix(batch.rng, batch.x)
        )

    def _mining_match(self, batch: GameBatch) -> Match:
        made = self._loss.restored(batch.x, batch.rng, draw=True).made.image
        return Match(made, self._from_prior(batch))


def latent_critic_of(model: ReconstructionModel, seed: int) -> LatentCritic | None:
    """Return an untrained critic of the codes of a model; ``None`` without a latent game."""
    options, shape = model.options, model.encoder.shape
    if options.latent_game == "none":
        return None
    places = shape.latent_px**2 if options.spatial else 1
    return seeded(
        lambda: LatentCritic(shape.code_channels * places, options.latent_critic_widths), seed, 1
    )


def classifier_of(model: ReconstructionModel, seed: int) -> Critic | None:
    """Return an untrained classifier of images; ``None`` if no codes are mined."""
    options = model.options
    if not options.mining_steps:
        return None
    px = model.encoder.shape.image_px
    shape = options.critic_network.shape(px, latent_channels=1, spatial=False)
    return seeded(lambda: Critic(shape), seed, 2)
