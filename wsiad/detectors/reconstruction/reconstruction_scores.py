"""The scores of ``reconstruction``: maps of places of images, by one of several published rules.

All are functions of an image alone: draws are the same for all images, and a slope is taken of
the sum of losses that do not share anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from wsiad.detectors.reconstruction.latent_models import VariationalLatent
from wsiad.detectors.reconstruction.reconstruction_model import ReconstructionModel
from wsiad.detectors.reconstruction.restoration_tasks import Task, View
from wsiad.networks.image_distances import mean_filtered, pooled

_DRAWS = 11  # the seed of the draws of a code in scoring
_LEAST = 1e-5

Map = Callable[[ReconstructionModel, Tensor, Task], Tensor]
"""Function that maps images (N, 3, S, S) in [−1, 1] to the scores of places, (N, m, m)."""


def score_places(model: ReconstructionModel, x: Tensor, task: Task) -> Tensor:
    """Return the scores of the places of images by the rule of the model's options.

    Parameters
    ----------
    model : ReconstructionModel
        Model in evaluation mode.
    x : Tensor, float (N, 3, S, S)
        Images in [−1, 1].
    task : Task

    Returns
    -------
    Tensor, (N, places, places)
    """
    rules: dict[str, Map] = {
        "loss": by_distance,
        "probability": by_probability,
        "density": by_density,
        "gradient": by_gradient,
        "projection": by_projection,
        "attention": by_attention,
        "inattention": by_inattention,
        "response": by_response,
        "critic": by_critic,
    }
    return rules[model.options.score](model, x, task)


def by_distance(model: ReconstructionModel, x: Tensor, task: Task) -> Tensor:
    """Return the distance to what the network made, averaged over all ways of the task."""
    options = model.options
    maps = [
        model.terms.places(view, options.places, smooth=options.smooth)
        for view in task.shown(model, x)
    ]
    return torch.stack(maps).mean(dim=0)


def by_probability(model: ReconstructionModel, x: Tensor, task: Task) -> Tensor:
    """Return −mean over draws of log N(x; x̂, σ̂²), averaged over the colours.

    Notes
    -----
    An & Cho, "Variational Autoencoder based Anomaly Detection using Reconstruction
    Probability", 2015: the reconstruction probability; the default of ten draws is from general
    knowledge of the paper. The draws from N(0, 1) are the same for every image.
    """
    latent, options = model.latent, model.options
    assert isinstance(latent, VariationalLatent)
    mean, log_variance = latent.parts(model.encoder(x))
    rng, total = np.random.default_rng(_DRAWS), torch.zeros_like(x[:, 0])
    for _ in range(options.score_draws):
        drawn = torch.from_numpy(rng.standard_normal(tuple(mean.shape[1:]), dtype=np.float32))
        made = model.decoded(mean + drawn.to(mean) * (log_variance / 2).exp())
        assert made.log_variance is not None
        square = (x - made.image).square() * (-made.log_variance).exp()
        total = total + (square + made.log_variance + math.log(2 * math.pi)).mean(dim=1) / 2
    return _as_places(total / options.score_draws, model)


def by_density(model: ReconstructionModel, x: Tensor, task: Task) -> Tensor:
    """Return how unlikely the latent is.

    For a variational latent this is the sum of its divergences, by place if it has places. For
    an autoregressive one it is −log p plus the distance, each scaled so that held-out healthy
    tiles have it from 0 to 1; never the tiles that are scored.

    Notes
    -----
    Abati et al., CVPR 2019, eq. 9 and 10: the novelty score.
    """
    options, density = model.options, model.code(x).density
    if options.latent == "vae":
        if density.ndim > 1:
            return pooled(density, options.places)
        return density.view(-1, 1, 1).expand(-1, options.places, options.places)
    distance = by_distance(model, x, task)
    low, span = model.held_out[:, 0], model.held_out[:, 1] - model.held_out[:, 0]
    span = span.clamp_min(1e-12)
    unlikely = (density - low[1]) / span[1]
    return (distance - low[0]) / span[0] + unlikely.view(-1, 1, 1)


def by_gradient(model: ReconstructionModel, x: Tensor, task: Task) -> Tensor:
    """Return the slope |∂E/∂x| of the loss or of the divergence, averaged over the colours.

    It can be multiplied by the distance at every pixel.

    Notes
    -----
    Zimmerer et al., "Context-encoding Variational Autoencoder for Unsupervised Anomaly
    Detection", 2018: the slope of the divergence times the distance.
    """
    options, weight = model.options, model.options.weight_of_penalty()
    with torch.inference_mode(False), torch.enable_grad():
        at = x.clone().requires_grad_()
        made = model(at)
        value = made.penalty
        if options.gradient_of == "elbo":
            value = model.terms.losses(View(made, at)) + weight * made.penalty
        (slope,) = torch.autograd.grad(value.sum(), at)
        found = slope.abs().mean(dim=1)
        if options.gradient_by_distance:
            found = found * model.terms.pixels(View(made, at)).detach()
    return _as_places(found, model)


def by_projection(model: ReconstructionModel, x: Tensor, task: Task) -> Tensor:
    """Return |x* − x|, averaged over the colours, for the projection x* of :func:`projected`."""
    return _as_places((projected(model, x) - x).abs().mean(dim=1), model)


def projected(model: ReconstructionModel, x: Tensor) -> Tensor:
    """Return the images that the model reconstructs well and that are near to some images.

    From x₀ = x it takes steps x ← x − α ∇E(x) ⊙ (x − x̂)², where E is the sum over the values
    of (x − x̂)², plus λ times that of |x − x₀|. Rate α and weight λ are for values from 0 to 1,
    half of the range here. Values stay within the range of an image: where the model answers a
    change with a larger one, the steps would grow without bound.

    Notes
    -----
    Dehaene et al., "Iterative energy-based projection on a normal data manifold for anomaly
    localization", ICLR 2020; rate and weight from general knowledge of the paper.
    """
    options = model.options
    with torch.inference_mode(False), torch.enable_grad():
        start, at = x.clone(), x.clone()
        for _ in range(options.projection_steps):
            point = at.detach().requires_grad_()
            made = model(point).image
            square = (point - made).square()
            away = (point - start).abs().sum()
            energy = square.sum() / 4 + options.projection_weight * away / 2
            (slope,) = torch.autograd.grad(energy, point)
            at = (point - options.projection_rate * slope * square).detach().clamp(-1, 1)
    return at


def by_attention(model: ReconstructionModel, x: Tensor, task: Task) -> Tensor:
    """Return where the latent looks: mean over k of |α_k A_k|, for the last level's features A.

    α_k is the mean over places of the slope of the sum of the latent's means; the slopes of an
    image are scaled to a root mean square of 1.

    Notes
    -----
    Liu et al., "Towards Visually Explaining Variational Autoencoders", CVPR 2020 (expVAE), in
    the form of its reproduction.
    """
    with torch.inference_mode(False), torch.enable_grad():
        features = model.encoder.features(x.clone())[-1].detach().requires_grad_()
        value = model.latent(model.encoder.head(features)).value
        (slope,) = torch.autograd.grad(value.sum(), features)
        size = slope.square().mean(dim=(1, 2, 3), keepdim=True).sqrt() + _LEAST
        weights = (slope / size).mean(dim=(2, 3), keepdim=True)
        found = (weights * features).abs().mean(dim=1).detach()
    return pooled(found, model.options.places)


def attended(model: ReconstructionModel, x: Tensor) -> Tensor:
    """Return the attention of the latent to the places of the last level, (N, m, m), 0 to 1.

    It is Grad-CAM of the sum of the latent's means: the positive part of Σ_k α_k A_k, for features
    A and the mean α_k over places of their slope, divided by its maximum over the places of the
    image, or by 1e-5 if that is larger. An image whose every place lowers the sum has 0
    everywhere. Where gradients are enabled, the map has one.

    Parameters
    ----------
    model : ReconstructionModel
    x : Tensor, (N, 3, S, S)
        Images in [−1, 1].
    """
    learns = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.enable_grad():
        features = model.encoder.features(x if learns else x.clone())[-1]
        value = model.latent(model.encoder.head(features)).value
        (slope,) = torch.autograd.grad(value.sum(), features, create_graph=learns)
        found = (slope.mean(dim=(2, 3), keepdim=True) * features).sum(dim=1).relu()
        found = found / found.amax(dim=(1, 2), keepdim=True).clamp_min(_LEAST)
    return found if learns else found.detach()


def by_inattention(model: ReconstructionModel, x: Tensor, task: Task) -> Tensor:
    """Return 1 − A for the attention A of :func:`attended`, which training spreads over tissue.

    Notes
    -----
    Venkataramanan et al., "Attention Guided Anomaly Localization in Images", ECCV 2020 (CAVGA),
    without labels. An implementation divides by the maximum over a batch, so that a score would
    depend on other images.
    """
    return pooled(1 - attended(model, x), model.options.places)


def by_response(model: ReconstructionModel, x: Tensor, task: Task) -> Tensor:
    """Return ‖∂E/∂w‖₂, the slope of an image's distance by all weights w of the autoencoder.

    It is how far a step of training on the image alone would move the network. A tile has one
    value for all places.

    Notes
    -----
    After Gao & Wu, "Response score of deep learning for out-of-distribution sample detection of
    medical images", Journal of Biomedical Informatics 2020: the influence of a sample on a
    network's task. No code is known, and this form of the influence is inferred from what is
    said of the method.
    """
    weights = [p for p in model.learnt().parameters() if p.requires_grad]
    found = []
    with torch.inference_mode(False), torch.enable_grad():
        for image in torch.split(x.clone(), 1):
            distances = [model.terms.losses(view) for view in task.shown(model, image)]
            slopes = torch.autograd.grad(torch.cat(distances).mean(), weights, allow_unused=True)
            squares = [slope.square().sum() for slope in slopes if slope is not None]
            found.append(torch.stack(squares).sum().sqrt())
    places = model.options.places
    return torch.stack(found).view(-1, 1, 1).expand(-1, places, places)


def by_critic(model: ReconstructionModel, x: Tensor, task: Task) -> Tensor:
    """Return 1 − σ(D(x̂)) for a game of binary cross entropy, and −D(x̂) for others.

    D is the image critic, and x̂ the reconstruction or the tile itself. A tile has one value for
    all places, unless the critic judges by place.

    Notes
    -----
    Sabokrou et al., "Adversarially Learned One-Class Classifier for Novelty Detection", CVPR
    2018 (ALOCC); by place in Sabokrou et al., "AVID: Adversarial Visual Irregularity
    Detection", ACCV 2018.
    """
    critic, options = model.image_critic, model.options
    assert critic is not None
    shown = [x]
    if options.critic_scores == "reconstruction":
        shown = [view.made.image for view in task.shown(model, x)]
    judged = torch.stack([critic.places(image) for image in shown]).mean(dim=0)
    found = torch.sigmoid(-judged) if options.game.loss.startswith("bce") else -judged
    return pooled(found, options.places)


def _as_places(pixels: Tensor, model: ReconstructionModel) -> Tensor:
    options = model.options
    return pooled(mean_filtered(pixels, options.smooth), options.places)
