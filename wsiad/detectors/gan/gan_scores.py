"""The scores of ``gan``: codes of images, and the difference of an image from its reconstruction.

All are functions of an image alone. A descent begins at codes that are the same for all images,
and its images do not influence each other.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from wsiad.detectors.gan.gan_model import CODE, GanModel
from wsiad.networks.image_distances import absolute, pooled, squared

_STARTS = 23  # the seed of the codes at which a descent begins
_AT_A_TIME = 128  # images of a descent, those of all starts together


def score_places(model: GanModel, x: Tensor) -> Tensor:
    """Return the scores of the places of images, (N, places, places).

    Parameters
    ----------
    model : GanModel
        Model in evaluation mode.
    x : Tensor, float (N, 3, S, S)
        Images in [−1, 1].
    """
    return by_parts(model, x, found_codes(model, x))


def found_codes(model: GanModel, x: Tensor) -> Tensor:
    """Return the codes (N, L) of images, by the encoder or by a descent for each."""
    if model.encoder is not None:
        return model.code(x)
    at_a_time = max(1, _AT_A_TIME // model.options.descent_starts)
    return torch.cat([descended(model, part) for part in torch.split(x, at_a_time)])


def descended(model: GanModel, x: Tensor) -> Tensor:
    """Return the codes (N, L) by which the generator makes images of the lowest score.

    An Adam descends from each start for every image. The code at the end of the best descent of
    an image counts.

    Notes
    -----
    Schlegl et al., "Unsupervised Anomaly Detection with Generative Adversarial Networks to Guide
    Marker Discovery", IPMI 2017 (AnoGAN), with one start.
    """
    options = model.options
    starts = model.drawn(options.descent_starts, np.random.default_rng(_STARTS))
    with torch.inference_mode(False), torch.enable_grad():
        z = starts.clone().repeat(len(x), 1).requires_grad_()
        every = x.clone().repeat_interleave(len(starts), dim=0)
        seen = None
        if "features" in options.parts():
            with torch.no_grad():
                seen = model.seen(every, z, every)

        def losses() -> Tensor:
            return by_parts(model, every, z, seen=seen).mean(dim=(1, 2))

        adam = torch.optim.Adam([z], lr=options.descent_rate)
        for _ in range(options.descent_steps):
            (z.grad,) = torch.autograd.grad(losses().sum(), z)
            adam.step()
        with torch.no_grad():
            best = losses().view(len(x), len(starts)).argmin(dim=1)
            every_end = z.detach().view(len(x), len(starts), -1)
            return every_end[torch.arange(len(x), device=best.device), best]


def by_parts(model: GanModel, x: Tensor, z: Tensor, *, seen: Tensor | None = None) -> Tensor:
    """Return the weighted sum of the parts of the score, (N, places, places).

    Parameters
    ----------
    model : GanModel
    x : Tensor, (N, 3, S, S)
    z : Tensor, (N, L)
        Codes of the images.
    seen : Tensor, optional
        The critic's features of the images, if they are known.
    """
    options = model.options
    made, total = model.made(z), x.new_zeros(len(x), options.places, options.places)
    opponent = options.game.game_loss().opponent
    for part, weight in options.parts().items():
        match part:
            case "pixels":
                found = _difference(model, x, made)
            case "features":
                before = model.seen(x, z, x) if seen is None else seen
                found = _difference(model, before, model.seen(x, z, made))
            case "critic":
                found = opponent(model.judged(x, z, made)).view(-1, 1, 1)
            case "code-critic":
                found = opponent(model.critics[CODE](z)).view(-1, 1, 1)
            case "code":
                found = z.norm(dim=1).view(-1, 1, 1)
        total = total + weight * found
    return total


def _difference(model: GanModel, first: Tensor, second: Tensor) -> Tensor:
    """Return the difference of images or features, (N, C, h, w) or (N, C), by place."""
    options = model.options
    function = absolute if options.distance == "l1" else squared
    found = function(first, second)
    scale = first[0].numel() if options.reduction == "sum" else 1
    if found.ndim == 1:
        return scale * found.view(-1, 1, 1)
    return scale * pooled(found, options.places)
