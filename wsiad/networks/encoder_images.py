"""Images of encoders: resized as an encoder requires, and one picture to recognise it by."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from wsiad.core.errors import WeightsError
from wsiad.networks.encoder import Encoder, Precision

FINGERPRINT_VALUES: Final = 32
"""Number of features that a fingerprint keeps, besides the length of all."""

_PICTURE_PX = 224
_TOLERANCE: Final = {"fp32": 1e-3, "bf16": 2e-2, "fp16": 2e-2}
_LEAST = 1e-12


def resized(images: Tensor, encoder: Encoder) -> Tensor:
    """Return RGB images (N, 3, S, S) in [0, 1] at the size that an encoder requires.

    They are resized with antialiasing to :attr:`Encoder.resized_px`, as Pillow does it: first
    across, then down, each time to whole intensities. Then the centre of :attr:`Encoder.px` is
    cut out.
    """
    edge = encoder.resized_px
    if images.shape[-1] != edge:
        for size in ((images.shape[-2], edge), (edge, edge)):
            images = functional.interpolate(
                images, size=size, mode=encoder.filter, antialias=True, align_corners=False
            )
            images = images.clamp(0, 1).mul(255).round().div(255)
    start = (edge - encoder.px) // 2
    return images[..., start : start + encoder.px, start : start + encoder.px]


def picture(edge: int = _PICTURE_PX) -> Tensor:
    """Return a picture like stained tissue, float32 (1, 3, edge, edge) in [0, 1].

    It is computed and always the same: dark round nuclei on a pink ground of changing strength.
    """
    y, x = np.mgrid[:edge, :edge].astype(np.float64)
    ground = 0.5 + 0.25 * np.sin(x / 23) + 0.25 * np.cos(y / 31 + x / 57)
    row, column = np.floor(y / 21), np.floor(x / 19)
    from_middle = np.hypot(y % 21 - 10 - 3 * np.sin(column * 2.1), x % 19 - 9 - 3 * np.cos(row))
    nuclei = np.clip((5.5 + np.sin(row * 3 + column) - from_middle) / 2, 0, 1)
    haematoxylin, eosin = 1.4 * nuclei + 0.1 * ground, 0.3 + 0.5 * ground
    density = np.stack(
        [
            0.65 * haematoxylin + 0.07 * eosin,
            0.70 * haematoxylin + 0.99 * eosin,
            0.29 * haematoxylin + 0.11 * eosin,
        ]
    )
    pixels = np.round(255 * np.power(10.0, -density)).astype(np.float32) / 255
    return torch.from_numpy(pixels)[None]


def fingerprint(vector: Tensor) -> list[float]:
    """Return the values by which features of the picture are recognised: some, and their length.

    Parameters
    ----------
    vector : Tensor, (C,)
    """
    values = vector.detach().double().cpu()
    kept = np.linspace(0, len(values) - 1, min(FINGERPRINT_VALUES, len(values))).round().astype(int)
    return [*(round(float(values[index]), 7) for index in kept), round(float(values.norm()), 7)]


def check_fingerprint(
    was: list[float], now: list[float], *, subject: str, precisions: tuple[Precision, Precision]
) -> None:
    """Check that two fingerprints are those of the same features.

    Raises
    ------
    WeightsError
        They differ by more than rounding in the coarser of the precisions.
    """
    before, after = np.asarray(was, np.float64), np.asarray(now, np.float64)
    allowed = max(_TOLERANCE[one] for one in precisions)
    same_length = before.shape == after.shape
    scale = max(float(np.linalg.norm(before)), _LEAST)
    off = float(np.linalg.norm(before - after)) / scale if same_length else float("inf")
    if not off <= allowed:
        raise WeightsError(
            f"its features of the built-in picture are not those of the training ({off:.2g} off, "
            f"{allowed:g} allowed): its scores would be wrong",
            subject=subject,
            remedy="Use the versions of wsiad, torch and timm that run.json states, or train "
            "again.",
        )
