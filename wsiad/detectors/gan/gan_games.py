"""The games of ``gan``: what its critics distinguish, and what generator and encoder minimise.

Every update of the critics in a step sees its own part of the tiles, with new draws of codes; the
generator's update sees the last part. An encoder plays along (``inversion: joint``), or learns
next to the game from the generator's images (``simultaneous``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from wsiad.detectors._trained import images
from wsiad.detectors.gan.gan_model import CODE, CODES, IMAGE, IMAGES, PAIR, GanModel
from wsiad.learning.adversarial_game import AdversarialGame, Match, Side
from wsiad.learning.checkpoint import OptimiserFactory, Update
from wsiad.learning.devices import drawing
from wsiad.learning.game_losses import Player, adam_of, descend_alone
from wsiad.networks.code_critics import joined
from wsiad.networks.image_distances import absolute

STREAM = 0x6A11  # keeps the draws of codes apart from those of windows
_HELD_OUT = 1 << 40  # in place of the number of a step


class GanBatch(NamedTuple):
    """A batch of an update: images (N, 3, S, S) in [−1, 1], and the generator of its draws."""

    x: Tensor
    rng: np.random.Generator


class GanGame:
    """Generator, critics and possibly an encoder that are trained in turn.

    Parameters
    ----------
    model : GanModel
    seed : int

    Attributes
    ----------
    module : ModuleDict
        The networks that the game trains.
    """

    def __init__(self, model: GanModel, *, seed: int) -> None:
        self.model, self.options, self._seed = model, model.options, seed
        self._losses = self.options.game.game_loss()
        matches: dict[str, Callable[[GanBatch], Match]] = {
            IMAGE: self._image_match,
            PAIR: self._pair_match,
            IMAGES: self._images_match,
            CODE: self._code_match,
            CODES: self._codes_match,
        }
        self._game = AdversarialGame(
            [
                Side(lambda batch, critic=critic: critic, matches[name], self._losses.critic)  # type: ignore[misc]
                for name, critic in model.critics.items()
            ]
        )
        options, critic = self.options, self.options.critic
        self._critics = Player([model.critics], critic.learning_rate, critic.betas)
        makers: list[nn.Module] = [model.generator]
        parts: dict[str, nn.Module] = {"generator": model.generator, "critics": model.critics}
        self._follower: Player | None = None
        if model.encoder is not None and options.inversion != "encoder":
            parts["encoder"] = model.encoder
            if options.inversion == "simultaneous":
                self._follower = Player([model.encoder], options.learning_rate, options.betas)
            else:
                makers.append(model.encoder)
        self._makers = Player(makers, options.learning_rate, options.betas)
        self.module = nn.ModuleDict(parts)

    def optimiser(self) -> OptimiserFactory:
        """Return the function that makes one Adam with a group for each player."""
        players = [self._makers, self._critics]
        if self._follower:
            players.append(self._follower)
        return adam_of(players, rate=self.options.learning_rate)

    def update(self, device: torch.device) -> Update:
        """Return the function that takes a step: the critics' updates, then the others'."""
        options = self.options

        def update(windows: Tensor, optimiser: torch.optim.Optimizer, step: int) -> Tensor:
            parts = (images(windows) * 2 - 1).tensor_split(options.critic.updates)
            rng = np.random.default_rng([self._seed, STREAM, step])
            with drawing(device, self._seed, STREAM, step):
                for part in parts:
                    judged = self._game.critics_loss(GanBatch(part, rng))
                    descend_alone(optimiser, judged, self._critics, clip=options.grad_clip)
                total = self.makers_loss(GanBatch(parts[-1], rng))
                descend_alone(optimiser, total, self._makers, clip=options.grad_clip)
                if self._follower:
                    error = self.code_errors(self.model.drawn(len(parts[-1]), rng)).mean()
                    descend_alone(optimiser, error, self._follower, clip=options.grad_clip)
            return total.detach()

        return update

    def held_out_losses(self, windows: Tensor) -> Tensor:
        """Return the loss (N,) of held-out windows, uint8 (N, S, S, 3), with fixed draws.

        It is the mean of |x − G(E(x))| for a joint game; for a simultaneous encoder its error on
        drawn codes; and otherwise how well the critic distinguishes the windows from images of
        the generator: lower if it does.
        """
        x, model = images(windows) * 2 - 1, self.model
        if self.options.inversion == "joint":
            return absolute(x, model.made(model.code(x))).mean(dim=(1, 2))
        z = model.drawn(len(x), np.random.default_rng([self._seed, STREAM, _HELD_OUT]))
        if self._follower:
            return self.code_errors(z)
        critic = model.critics[IMAGE]
        return self._losses.opponent(critic(x)) + self._losses.hiding(critic(model.made(z)))

    def makers_loss(self, batch: GanBatch) -> Tensor:
        """Return the loss of the generator and of an encoder that plays along, ()."""
        model, critics, x = self.model, self.model.critics, batch.x
        fooled = self._losses.opponent
        z = model.drawn(len(x), batch.rng)
        made = model.made(z)
        if self.options.inversion != "joint":
            return fooled(critics[IMAGE](made)).mean()
        code = model.code(x)
        if self.options.joint == "alpha":
            # The critic of images trains the generator alone; the encoder has its own critic.
            total = self.options.reconstruction_weight * absolute(x, model.made(code)).mean()
            total = total + fooled(critics[IMAGE](made)).mean()
            total = total + fooled(critics[IMAGE](model.made(code.detach()))).mean()
            return total + fooled(critics[CODE](code)).mean()
        total = fooled(critics[PAIR](joined(made, z))).mean()
        total = total + self._losses.hiding(critics[PAIR](joined(x, code))).mean()
        if self.options.joint == "alad":
            reconstructed = torch.cat([x, model.made(code)], 1)
            total = total + fooled(critics[IMAGES](reconstructed)).mean()
            total = total + fooled(critics[CODES](torch.cat([z, model.code(made)], 1))).mean()
        return total

    def code_errors(self, z: Tensor) -> Tensor:
        """Return the mean of (z − E(G(z)))² of codes (N, L), (N,); it moves the encoder alone."""
        with torch.no_grad():
            made = self.model.made(z)
        return (z - self.model.code(made)).square().mean(dim=1)

    def _match(self, batch: GanBatch, real: Tensor, made: Tensor) -> Match:
        return Match(real, made, self._losses.mix(batch.rng, real))

    def _image_match(self, batch: GanBatch) -> Match:
        model, x = self.model, batch.x
        made = model.made(model.drawn(len(x), batch.rng))
        if self.options.plays("alpha"):
            # Images of draws and reconstructions together count as much as the real ones.
            x, made = torch.cat([x, x]), torch.cat([made, model.made(model.code(x))])
        return self._match(batch, x, made)

    def _pair_match(self, batch: GanBatch) -> Match:
        model, x = self.model, batch.x
        z = model.drawn(len(x), batch.rng)
        return self._match(batch, joined(x, model.code(x)), joined(model.made(z), z))

    def _images_match(self, batch: GanBatch) -> Match:
        model, x = self.model, batch.x
        reconstructed = model.made(model.code(x))
        return self._match(batch, torch.cat([x, x], 1), torch.cat([x, reconstructed], 1))

    def _code_match(self, batch: GanBatch) -> Match:
        model, x = self.model, batch.x
        return self._match(batch, model.drawn(len(x), batch.rng), model.code(x))

    def _codes_match(self, batch: GanBatch) -> Match:
        model = self.model
        z = model.drawn(len(batch.x), batch.rng)
        again = model.code(model.made(z))
        return self._match(batch, torch.cat([z, z], 1), torch.cat([z, again], 1))


class EncoderLoss:
    """The loss of an encoder of images for a generator and a critic that stay as they are.

    Parameters
    ----------
    model : GanModel
        Networks; generator and critic in evaluation mode.
    seed : int

    Notes
    -----
    Schlegl et al., "f-AnoGAN: Fast Unsupervised Anomaly Detection with Generative Adversarial
    Networks", Medical Image Analysis 2019: *izi*, *ziz*, and *izi_f*, here ``izif``.
    """

    def __init__(self, model: GanModel, *, seed: int) -> None:
        self.model, self.options, self._seed = model, model.options, seed

    def __call__(self, windows: Tensor) -> Tensor:
        """Return the loss (N,) of held-out windows, uint8 (N, S, S, 3), with fixed draws."""
        rng = np.random.default_rng([self._seed, STREAM, _HELD_OUT])
        return self.losses(images(windows) * 2 - 1, rng)

    def losses(self, x: Tensor, rng: np.random.Generator) -> Tensor:
        """Return the loss (N,) of images (N, 3, S, S) in [−1, 1]; draws are made for ``ziz``."""
        model = self.model
        if self.options.encoder_loss == "ziz":
            z = model.drawn(len(x), rng)
            return (z - model.code(model.made(z))).square().mean(dim=1)
        z = model.code(x)
        made = model.made(z)
        total = (x - made).square().mean(dim=(1, 2, 3))
        if self.options.encoder_loss == "izif":
            difference = model.seen(x, z, x) - model.seen(x, z, made)
            total = total + self.options.feature_weight * difference.square().flatten(1).mean(dim=1)
        return total

    def update(self, device: torch.device, player: Player) -> Update:
        """Return the function that takes a step of the encoder down the mean loss of a batch."""

        def update(windows: Tensor, optimiser: torch.optim.Optimizer, step: int) -> Tensor:
            rng = np.random.default_rng([self._seed, STREAM, step])
            with drawing(device, self._seed, STREAM, step):
                loss = self.losses(images(windows) * 2 - 1, rng).mean()
                descend_alone(optimiser, loss, player, clip=self.options.grad_clip)
            return loss.detach()

        return update
