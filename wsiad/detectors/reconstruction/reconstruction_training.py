"""The training of ``reconstruction``: the loss of a batch with the draws of its step."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from wsiad.detectors._trained import images
from wsiad.detectors.reconstruction.latent_models import VariationalLatent
from wsiad.detectors.reconstruction.reconstruction_model import ReconstructionModel
from wsiad.detectors.reconstruction.reconstruction_scores import attended, by_distance
from wsiad.detectors.reconstruction.restoration_tasks import Made, Network, Task, View
from wsiad.learning.batches import centre_crops, on_device, sample
from wsiad.learning.checkpoint import Update, descend
from wsiad.learning.detector import TileSource
from wsiad.learning.devices import drawing

logger = logging.getLogger(__name__)

STREAM = 1 << 35  # keeps the draws of tasks and latents apart from those of windows
_COLLAPSED = 0.01  # nats: a dimension with less tells the decoder nothing


class RestorationLoss:
    """The loss of images: distance of what was restored, and penalty of the latent.

    Parameters
    ----------
    model : ReconstructionModel
    seed : int
    """

    def __init__(self, model: ReconstructionModel, seed: int) -> None:
        self.model, self.options, self._seed = model, model.options, seed
        self._task = model.options.restoration()

    def __call__(self, windows: Tensor) -> Tensor:
        """Return the loss (N,) of held-out windows, uint8 (N, S, S, 3), without any draw.

        The changes of a task are the same at every validation.
        """
        x = images(windows) * 2 - 1
        return self.losses(x, np.random.default_rng([self._seed, STREAM]), draw=False)

    def losses(self, x: Tensor, rng: np.random.Generator, *, draw: bool) -> Tensor:
        """Return the loss (N,) of images (N, 3, S, S) in [−1, 1].

        Parameters
        ----------
        x : Tensor
        rng : Generator
            Generator of the changes of the task.
        draw : bool
            True to draw the code of a variational latent.
        """
        return self.of_view(x, self.restored(x, rng, draw=draw), draw=draw)

    def restored(self, x: Tensor, rng: np.random.Generator, *, draw: bool) -> View:
        """Return the network's answer to the task, and its target.

        With draws, it is shown adversarial inputs if the options say so.
        """
        options = self.options

        def network(shown: Tensor) -> Made:
            made: Made = self.model(shown, draw=draw)
            return made

        if draw and options.attack:
            return attacked(
                self._task,
                network,
                x,
                rng,
                loss=self.model.terms.losses,
                most=options.attack,
                steps=options.attack_steps,
            )
        return self._task.trained(network, x, rng)

    def changed(self, x: Tensor, rng: np.random.Generator) -> Tensor:
        """Return images as the task shows them to the encoder, with drawn changes."""
        return self._task.changed(x, rng)

    def of_view(self, x: Tensor, view: View, *, draw: bool) -> Tensor:
        """Return the loss (N,) of an answer to the task."""
        options, terms = self.options, self.model.terms
        total, penalty = terms.losses(view), view.made.penalty
        if options.whole_weight:
            whole = self.model(x, draw=draw)
            total = total + options.whole_weight * terms.losses(View(whole, x))
            penalty = whole.penalty
        total = total + options.weight_of_penalty() * penalty
        if options.code_weight:
            before = self.model.code(x).value
            after = self.model.code(view.made.image).value
            change = (before - after).square().flatten(1).mean(dim=1)
            total = total + options.code_weight * change
        if options.attention_weight:
            spread = 1 - attended(self.model, x).mean(dim=(1, 2))
            total = total + options.attention_weight * spread
        return total

    def update(self, device: torch.device) -> Update:
        """Return the function that takes a step down the mean loss of a batch."""

        def update(windows: Tensor, optimiser: torch.optim.Optimizer, step: int) -> Tensor:
            rng = np.random.default_rng([self._seed, STREAM, step])
            with drawing(device, self._seed, STREAM, step):
                loss = self.losses(images(windows) * 2 - 1, rng, draw=True).mean()
                descend(optimiser, loss, clip=self.options.grad_clip)
            return loss.detach()

        return update


def attacked(
    task: Task,
    network: Network,
    x: Tensor,
    rng: np.random.Generator,
    *,
    loss: Callable[[View], Tensor],
    most: float,
    steps: int,
) -> View:
    """Show a batch with changes that make the task harder; return the answer and its target.

    The changes begin uniformly within ± ``most``, by PyTorch's generator. Each step adds
    2 · ``most`` / ``steps`` times the sign of the slope of the loss, and is cut to ± ``most``. What
    is shown stays in [−1, 1]. The task's draws are the same in every step.

    Parameters
    ----------
    task : Task
    network : callable
    x : Tensor, (N, 3, S, S)
        Images in [−1, 1].
    rng : Generator
        Generator of the draws of the task.
    loss : callable
        Loss (N,) of an answer.
    most : float
        Largest change of a value.
    steps : int

    Notes
    -----
    Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018;
    Wong, Rice & Kolter, "Fast is better than free", ICLR 2020, for one step from a random start.
    """
    state = rng.bit_generator.state
    changes: list[Tensor] = []
    with torch.enable_grad():
        for _ in range(steps):
            shower = _Changed(network, changes, most)
            total = loss(task.trained(shower, x, rng)).sum()
            slopes = torch.autograd.grad(total, shower.used)
            length = 2 * most / steps
            changes = [
                (used + length * slope.sign()).clamp(-most, most).detach()
                for used, slope in zip(shower.used, slopes, strict=True)
            ]
            rng.bit_generator.state = state
    return task.trained(_Changed(network, changes, most), x, rng)


class _Changed:
    """A network that is shown images with changes: given ones, or random ones if there are none.

    Parameters
    ----------
    network : callable
    changes : list of Tensor
        Changes by the number of the call; empty for random ones.
    most : float
        Largest random change of a value.
    """

    def __init__(self, network: Network, changes: list[Tensor], most: float) -> None:
        self._network, self._changes, self._most = network, changes, most
        self.used: list[Tensor] = []

    def __call__(self, shown: Tensor) -> Made:
        """Return what the network makes of the changed images."""
        if self._changes:
            change = self._changes[len(self.used)].clone()
        else:
            change = (torch.rand_like(shown) * 2 - 1) * self._most
        self.used.append(change.requires_grad_())
        return self._network((shown + change).clamp(-1, 1))


@torch.no_grad()
def measure_held_out(
    model: ReconstructionModel, tiles: TileSource, *, size: int, seed: int, device: torch.device
) -> dict[str, object]:
    """Measure the latents of held-out healthy tiles; return what the run reports of them.

    The bounds of an autoregressive latent's score are set. A variational latent whose every
    dimension has a divergence of almost 0 has collapsed: a warning is logged.

    Parameters
    ----------
    model : ReconstructionModel
        Trained model.
    tiles : TileSource
    size : int
        Edge of the windows, pixels.
    seed : int
    device : torch.device
    """
    options = model.options
    if options.latent not in ("vae", "autoregressive"):
        return {}
    model.eval()
    _, batches = sample(tiles, options.val_tiles, batch=options.batch, seed=seed)
    divergences, distances, densities = [], [], []
    task = options.restoration()
    for part in batches:
        x = images(centre_crops(on_device(part, device), size)) * 2 - 1
        if isinstance(model.latent, VariationalLatent):
            found = model.latent.divergence(model.encoder(x))
            divergences.append(found.flatten(2).sum(dim=2) if found.ndim > 2 else found)
        else:
            distances.append(by_distance(model, x, task).mean(dim=(1, 2)))
            densities.append(model.code(x).density)
    if divergences:
        return _about_divergences(torch.cat(divergences).mean(dim=0))
    for row, values in enumerate((torch.cat(distances), torch.cat(densities))):
        model.held_out[row, 0], model.held_out[row, 1] = values.min(), values.max()
    return {"held_out_bounds": model.held_out.tolist()}


def _about_divergences(by_dimension: Tensor) -> dict[str, object]:
    used = int((by_dimension >= _COLLAPSED).sum())
    logger.info(
        "divergence of each latent dimension from N(0, 1), nats: %s",
        ", ".join(f"{value:.3g}" for value in by_dimension.tolist()),
    )
    if not used:
        logger.warning(
            "the latent has collapsed: every dimension has less than %g nats, so that the "
            "reconstruction is the same for all tiles. Set a smaller penalty_weight.",
            _COLLAPSED,
        )
    return {
        "latent_divergence": [round(value, 4) for value in by_dimension.tolist()],
        "latent_dimensions_used": used,
    }
