"""Parts of a picture that follow from its pixels alone: bands of frequencies, and nuclei.

Nothing here is learnt. A Laplacian pyramid splits an image into bands of frequencies, each at its
own resolution, from which the image is put together again without loss. The map of nuclei is the
concentration of haematoxylin, by the reference stain of the package.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from wsiad.core.errors import DetectorError
from wsiad.stain.profile import reference_profile

_BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)
_BLACK = 1 / 255  # 0 has no logarithm


def check_scales(edge: int, scales: int) -> None:
    """Check that an image can be halved often enough for a pyramid.

    Raises
    ------
    DetectorError
        It cannot.
    """
    if edge % 2 ** (scales - 1) or edge // 2 ** (scales - 1) < len(_BINOMIAL):
        raise DetectorError(
            f"an input of {edge} px cannot be halved for {scales} scales",
            remedy="Choose another input_px, or fewer scales.",
        )


def halved(x: Tensor) -> Tensor:
    """Return images (N, C, S, S) at half their resolution, blurred by a binomial filter of 5 px.

    Images are padded by reflection.
    """
    channels = x.shape[1]
    weights = torch.tensor(_BINOMIAL, device=x.device, dtype=x.dtype)
    padded = functional.pad(x, [len(_BINOMIAL) // 2] * 4, mode="reflect")
    rows = weights.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
    columns = weights.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    blurred = functional.conv2d(padded, rows, groups=channels)
    return functional.conv2d(blurred, columns, groups=channels)[:, :, ::2, ::2]


def enlarged(x: Tensor) -> Tensor:
    """Return images (N, C, S, S) at twice their resolution, by bilinear interpolation."""
    return functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def gaussian_pyramid(x: Tensor, scales: int) -> list[Tensor]:
    """Return images at each of some scales, from the finest, which is themselves."""
    found = [x]
    for _ in range(scales - 1):
        found.append(halved(found[-1]))
    return found


def laplacian_pyramid(x: Tensor, scales: int) -> list[Tensor]:
    """Return the bands of images, from the finest; the last is the image at the coarsest scale.

    Parameters
    ----------
    x : Tensor, float (N, C, S, S)
    scales : int
        Number of scales.

    Notes
    -----
    Burt & Adelson, "The Laplacian Pyramid as a Compact Image Code", IEEE Transactions on
    Communications 1983.
    """
    *finer, coarsest = images = gaussian_pyramid(x, scales)
    bands = [one - enlarged(below) for one, below in zip(finer, images[1:], strict=True)]
    return [*bands, coarsest]


def collapsed(bands: Sequence[Tensor]) -> list[Tensor]:
    """Return the images at each scale that bands make up, from the finest.

    It is the inverse of :func:`laplacian_pyramid`.
    """
    *finer, image = bands
    found = [image]
    for band in reversed(finer):
        image = enlarged(image) + band
        found.append(image)
    return found[::-1]


def nuclei_map(x: Tensor) -> Tensor:
    """Return the concentration of haematoxylin, from 0 to 1, (N, 1, S, S).

    1 is the 99th percentile of tissue of the reference stain (:mod:`wsiad.stain.profile`, by
    Macenko's method, whose stains lie far apart). Nuclei are bright in it, and whatever else is
    blue.

    Parameters
    ----------
    x : Tensor, float (N, 3, S, S)
        Images in [−1, 1]; values beyond are taken as the nearest of them.
    """
    stains = reference_profile("macenko").stains
    assert stains is not None
    unmix = np.linalg.pinv(np.array([stains.haematoxylin, stains.eosin]).T)[0]
    weights = torch.from_numpy(unmix / stains.strength[0]).to(x).view(1, 3, 1, 1)
    density = -((x + 1) / 2).clamp(_BLACK, 1).log()
    return (density * weights).sum(dim=1, keepdim=True).clamp(0, 1)


def nuclei_difference(x: Tensor, y: Tensor) -> Tensor:
    """Return the absolute difference of the maps of nuclei of two images, (N, S, S)."""
    return (nuclei_map(x) - nuclei_map(y)).abs()[:, 0]
