"""The Deep Perceptual Autoencoder with networks so small that a test trains it."""

import numpy as np
import torch

from wsiad.core.config import build
from wsiad.core.geometry import Mpp, TilePx
from wsiad.detectors.dpa import DeepPerceptualAutoencoder
from wsiad.detectors.dpa.dpa_options import DpaOptions
from wsiad.learning.detector import Budget, FitContext, HealthyTiles, InputSpec
from wsiad.networks.vgg import LAYERS
from wsiad.store.dataset import ArrayTiles

CPU = torch.device("cpu")
RNG = np.random.default_rng(0)
SMOOTH = np.kron(RNG.integers(120, 240, (30, 5, 5, 3)), np.ones((1, 8, 8, 1))).astype(np.uint8)
HEALTHY = HealthyTiles(ArrayTiles(SMOOTH[:22]), ArrayTiles(SMOOTH[22:]))
TINY = {"input_px": 32, "latent_px": 8, "layers": {"relu2_2": 1.0}, "batch": 6}


def tiny_vgg(widths=(4, 6, 6, 8, 8)):
    generator = torch.Generator().manual_seed(1)
    tensors, channels = {}, 3
    for name, index in LAYERS.items():
        if name.startswith("conv"):
            width = widths[int(name[4]) - 1]
            weight = torch.randn(width, channels, 3, 3, generator=generator)
            tensors[f"features.{index}.weight"] = weight * (2 / (9 * channels)) ** 0.5
            tensors[f"features.{index}.bias"] = torch.zeros(width)
            channels = width
    return tensors


def detector(**options):
    options = {**TINY, "val_interval": 4, "log_interval": 2, **options}
    return DeepPerceptualAutoencoder(
        build(DpaOptions, options), InputSpec(TilePx(options["input_px"]), Mpp(0.972))
    )


def context(folder, weights, steps=6, seed=1):
    return FitContext(
        seed=seed,
        device=CPU,
        folder=folder,
        budget=Budget(max_steps=steps),
        weights=weights,
        quiet=True,
    )


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
