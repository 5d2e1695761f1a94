"""Simplex noise in two dimensions, for many images at once.

Gradient noise on a grid of triangles has a scale, which Gaussian noise of single pixels has not:
a network that removes it fills in structures of that size. Several octaves are added, each of
twice the frequency of the one before.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

_SKEW, _UNSKEW = (math.sqrt(3) - 1) / 2, (3 - math.sqrt(3)) / 6
_RADIUS = 0.5  # squared: a corner reaches no further than its triangles
_SCALE = 99.204334582718712976990005025589  # of the largest sum to 1
_DIRECTIONS = 24
_VARIANCE = 0.2904
"""Variance of :func:`simplex` over the plane; a test compares it with that of many draws."""


def simplex(x: Tensor, y: Tensor, seeds: Tensor) -> Tensor:
    """Return simplex noise at points of the plane, from −1 to 1.

    Parameters
    ----------
    x, y : Tensor of float32
        Coordinates; the triangles have edges of about 0.8.
    seeds : Tensor of int64
        Seed of each field, in a shape that broadcasts with the coordinates.

    Returns
    -------
    Tensor of float32
        Noise, 0 on average; a pure function of coordinates and seed.

    Notes
    -----
    Perlin, *Improving Noise*, SIGGRAPH 2002; the grid and the falloff as usual for two dimensions
    (Gustavson, *Simplex noise demystified*, 2005). The gradient of a corner is one of 24
    directions, chosen by a hash of the corner's numbers and the seed.
    """
    skew = (x + y) * _SKEW
    i, j = torch.floor(x + skew), torch.floor(y + skew)
    unskew = (i + j) * _UNSKEW
    x0, y0 = x - (i - unskew), y - (j - unskew)
    first = (x0 > y0).float()
    angles = (torch.arange(_DIRECTIONS, device=x.device) + 0.5) * (2 * math.pi / _DIRECTIONS)
    cosines, sines = angles.cos(), angles.sin()
    zero, one = torch.zeros_like(first), torch.ones_like(first)
    total = torch.zeros((), device=x.device)
    for di, dj in ((zero, zero), (first, 1 - first), (one, one)):
        step = (di + dj) * _UNSKEW
        dx, dy = x0 - di + step, y0 - dj + step
        fall = (_RADIUS - dx * dx - dy * dy).clamp(min=0) ** 4
        way = _hashed((i + di).long(), (j + dj).long(), seeds) % _DIRECTIONS
        total = total + fall * (cosines[way] * dx + sines[way] * dy)
    return total * _SCALE


def _hashed(i: Tensor, j: Tensor, seeds: Tensor) -> Tensor:
    """Return a well mixed number, not negative, for each corner and seed (after SplitMix64)."""
    key = ((i * -0x61C8864680B583EB) ^ (j * -0x3D4D51C2D82B14B1)) + seeds
    key = (key ^ _shifted(key, 30)) * -0x40A7B892E31B1A47
    key = (key ^ _shifted(key, 27)) * -0x6B2FB644ECCEEE15
    return _shifted(key ^ _shifted(key, 31), 1)


def _shifted(key: Tensor, bits: int) -> Tensor:
    """Return numbers of 64 bits moved to the right, with zeros from the left."""
    return (key >> bits) & ((1 << (64 - bits)) - 1)


def simplex_images(
    shape: tuple[int, ...],
    rng: np.random.Generator,
    *,
    frequency: float = 2**-6,
    octaves: int = 6,
    decay: float = 0.8,
    device: torch.device | None = None,
) -> Tensor:
    """Return independent fields of simplex noise with several octaves, of variance 1.

    Parameters
    ----------
    shape : tuple of int
        Numbers of fields, then their height and width in pixels.
    rng : Generator
        Source of the seeds and of the places that the fields are taken from.
    frequency : float
        Frequency of the first octave, 1/px.
    octaves : int
        Number of octaves.
    decay : float
        Amplitude of an octave, relative to the one before.
    device : torch.device, optional
        Device to compute on.

    Returns
    -------
    Tensor of float32, of the shape
        Noise of mean 0 and variance 1 over draws.

    Notes
    -----
    The defaults are those of AnoDDPM (Wyatt et al., CVPR Workshops 2022). Its sum of octaves is
    not scaled to a variance of 1 (from general knowledge of the published code); here it is, so
    that the schedule of the noise means what it says.
    """
    *fields, height, width = shape
    amplitudes = [decay**octave for octave in range(octaves)]
    down, across = (torch.arange(edge, device=device).float() for edge in (height, width))
    total = torch.zeros(shape, device=device)
    for octave, amplitude in enumerate(amplitudes):
        at = torch.from_numpy(rng.uniform(0, 4096, (2, *fields, 1, 1)).astype(np.float32))
        seeds = torch.from_numpy(rng.integers(0, 2**62, (*fields, 1, 1))).to(device)
        x0, y0 = at.to(device)
        step = frequency * 2**octave
        x, y = (across * step + x0).expand(shape), (down[:, None] * step + y0).expand(shape)
        total += amplitude * simplex(x, y, seeds)
    return total / math.sqrt(_VARIANCE * sum(a * a for a in amplitudes))
