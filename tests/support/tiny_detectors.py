"""Detectors with trained networks, so small that a test trains them."""

import numpy as np
import torch

from wsiad.core.config import build, idle_options_allowed
from wsiad.core.geometry import Mpp, TilePx
from wsiad.detectors import registry
from wsiad.learning.detector import Budget, FitContext, HealthyTiles, InputSpec
from wsiad.store.dataset import ArrayTiles

CPU = torch.device("cpu")
RNG = np.random.default_rng(0)
SMOOTH = np.kron(RNG.integers(120, 240, (26, 5, 5, 3)), np.ones((1, 8, 8, 1))).astype(np.uint8)
HEALTHY = HealthyTiles(ArrayTiles(SMOOTH[:20]), ArrayTiles(SMOOTH[20:]))
DISTILLED = {"layers": ["features.4", "features.7"], "places": 4}
TINY = {
    "contrastive": {"widths": [3, 4], "projection": 4, "views": {"view_px": 24}},
    "deep-geo": {"width": 1, "shrink": 4, "dirichlet_tiles": 12},
    "deep-svdd": {"channels": [4, 6], "representation": 5, "pretrain_steps": 7},
    "efficient-ad": {
        "dimensions": 4,
        "width": 0.03,
        "places": 4,
        "backbone_px": 32,
        "layers": ["features.3", "features.4"],
        "teacher_steps": 3,
        "teacher_batch": 5,
        "lr_schedule": "constant",
    },
    "feature-reconstruction": {**DISTILLED, "latent": 3, "layers": ["features.3"]},
    "density": {"layers": ["features.3"], "places": 4, "steps": 2, "hidden_ratio": 0.1},
    "diffusion": {"widths": [8, 16], "blocks": 1, "attention_px": [], "steps": 2},
    "gan": {
        "network": {"widths": [4, 6], "norm": "batch", "output": "tanh"},
        "critic_network": {"widths": [4, 4], "norm": "layer"},
        "encoder_network": {"widths": [4, 6]},
        "latent_channels": 3,
        "critic": {"updates": 2, "learning_rate": 1e-3},
        "gan_steps": 3,
        "places": 4,
    },
    "ganomaly": {
        "network": {"widths": [4, 6], "vector": "conv", "norm_first": False, "dropout": 0.1},
        "latent_channels": 3,
        "critic_network": {"widths": [4, 5], "vector": "conv", "norm_first": False},
    },
    "piad": {
        "channels": [2, 3, 3, 4],
        "latent_channels": 5,
        "latent_critic_width": 8,
        "layers": {"relu1_2": 1.0, "relu2_1": 1.0},
        "balance_interval": 3,
    },
    "reconstruction": {
        "network": {"widths": [4, 6], "hidden": [8], "bias": False, "dropout": 0.1},
        "latent": "vae",
        "latent_channels": 3,
    },
    "reverse-distillation": {**DISTILLED, "layers": ["features.3"]},
    "student-teacher": DISTILLED,
    "uninformed-students": {
        "patches": [17],
        "students": 2,
        "dimensions": 4,
        "width": 0.03,
        "places": 4,
        "backbone_px": 32,
        "layers": ["features.3"],
        "teacher_steps": 3,
    },
    "synthetic": {"restoring_width": 2, "finding_width": 2, "places": 4},
}


def useful(name, small, given=None):
    """Return options over small ones, of which those that then do nothing are left out."""
    given = given or {}
    with idle_options_allowed():
        return build(registry.load(name).Options, {**small, **given}).without_idle(small) | given


def detector(name, **options):
    cls = registry.load(name)
    tiny = {"batch": 6, "val_interval": 4, "log_interval": 2, **TINY[name]}
    return cls(build(cls.Options, useful(name, tiny, options)), InputSpec(TilePx(32), Mpp(1)))


def context(folder, steps=11, seed=1):
    return FitContext(
        seed=seed,
        device=CPU,
        folder=folder,
        budget=Budget(max_steps=steps),
        weights="random",
        quiet=True,
    )


def fitted(name, folder, *, steps=11, seed=1, **options):
    found = detector(name, **options)
    folder.mkdir(exist_ok=True)
    found.fit(HEALTHY, context(folder, steps, seed))
    return found
