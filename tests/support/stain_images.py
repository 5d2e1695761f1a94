"""Images of known stain for the stain tests."""

from __future__ import annotations

import numpy as np

HE = np.array([[0.60, 0.72, 0.35], [0.20, 0.85, 0.49]])
HE /= np.linalg.norm(HE, axis=1, keepdims=True)
GLASS = (243, 242, 244)


def noisy(colour, *, shape=(256, 256), sigma=3.0, seed=0):
    """One colour with Gaussian noise."""
    noise = np.random.default_rng(seed).normal(0, sigma, (*shape, 3))
    return np.clip(np.asarray(colour) + noise, 0, 255).round().astype(np.uint8)


def tissue(matrix=HE, *, edge=256, seed=0, white=(255, 255, 255), glass=0.2, sigma=1.0):
    """Sparse mixtures of two stains beside some glass: uint8 (edge, edge, 3)."""
    rng = np.random.default_rng(seed)
    n = edge * edge
    kind = rng.choice(4, n, p=[glass, (1 - glass) * 0.4, (1 - glass) * 0.4, (1 - glass) * 0.2])
    amounts = rng.gamma(6.0, 0.22, (n, 2))
    amounts[kind == 0] = 0
    amounts[kind == 1, 1] *= 0.02
    amounts[kind == 2, 0] *= 0.02
    rgb = np.asarray(white) * np.exp(-amounts @ np.asarray(matrix)) + rng.normal(0, sigma, (n, 3))
    return np.clip(rgb, 0, 255).round().astype(np.uint8).reshape(edge, edge, 3)


def painted(image, colour, share, *, sigma=8.0, seed=1):
    """The image with its upper part in one colour, noisy."""
    image = image.copy()
    rows = round(len(image) * share)
    image[:rows] = noisy(colour, shape=image[:rows].shape[:2], sigma=sigma, seed=seed)
    return image


def angles_deg(one, other):
    """Angles between the rows of two matrices."""
    return np.degrees(np.arccos(np.clip((np.asarray(one) * np.asarray(other)).sum(axis=1), -1, 1)))
