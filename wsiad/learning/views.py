"""Two random views of a tile for contrastive training: turned, scaled, stained otherwise."""

from __future__ import annotations

import math
from typing import Annotated

import pydantic
import torch
from torch import Tensor, nn

from wsiad.core.config import Config

_Share = Annotated[float, pydantic.Field(ge=0, lt=1)]

# Haematoxylin, eosin, DAB: Ruifrok & Johnston, Quantification of histochemical staining by
# colour deconvolution, 2001; unit vectors of optical density.
_STAINS = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
_DARKEST = 1 / 255


class ViewOptions(Config):
    """How two views of a healthy tile may differ and still be taken for the same tissue."""

    view_px: Annotated[int, pydantic.Field(ge=16)] = 48
    """Edge of a view, pixels of the tile; turned views of a larger tile need room."""
    scale: Annotated[float, pydantic.Field(ge=1)] = 1.3
    """A view is enlarged or shrunk by at most this factor."""
    stain_gain: _Share = 0.2
    """Each stain is made stronger or weaker by at most this share."""
    stain_shift: _Share = 0.03
    """Optical density that each stain gains or loses at most."""
    brightness: _Share = 0.1
    """The light is made stronger or weaker by at most this share."""
    blur: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.3
    """Share of the views that are blurred a little."""


def random_views(tiles: Tensor, options: ViewOptions, generator: torch.Generator) -> Tensor:
    """Cut one view out of every tile: turned by any angle, mirrored, scaled, stained otherwise.

    Parameters
    ----------
    tiles : Tensor of uint8, (N, S, S, 3)
        On any device.
    options : ViewOptions
        By how much.
    generator : torch.Generator
        On the CPU; what is drawn does not depend on the device.

    Returns
    -------
    Tensor of float32, (N, 3, view_px, view_px)
        RGB in [0, 1].
    """
    count, device = len(tiles), tiles.device
    grid = nn.functional.affine_grid(
        _placements(count, tiles.shape[1], options, generator).to(device),
        [count, 3, options.view_px, options.view_px],
        align_corners=False,
    )
    images = nn.functional.grid_sample(
        tiles.permute(0, 3, 1, 2).float() / 255,
        grid,
        padding_mode="reflection",
        align_corners=False,
    )
    stained = _restained(images, options, generator)
    light = 1 + _signed(generator, count, 1, 1, 1) * options.brightness
    lit = (stained * light.to(device)).clamp(0, 1)
    blurred = (torch.rand(count, generator=generator) < options.blur).to(device)
    return torch.where(blurred[:, None, None, None], _blurred(lit), lit)


def _signed(generator: torch.Generator, *shape: int) -> Tensor:
    """Draw evenly from [−1, 1)."""
    return torch.rand(*shape, generator=generator) * 2 - 1


def _placements(count: int, edge: int, options: ViewOptions, generator: torch.Generator) -> Tensor:
    """Affine maps from a view to its tile, both of extent [−1, 1]; (N, 2, 3)."""
    half = options.view_px / edge * torch.exp(_signed(generator, count) * math.log(options.scale))
    angle = _signed(generator, count) * math.pi
    mirror = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    cosine, sine = torch.cos(angle) * half, torch.sin(angle) * half
    # Corners of a turned view may reach over the edge, where the tile is reflected.
    room = (1 - 1.2 * half).clamp(min=0)
    x, y = _signed(generator, count) * room, _signed(generator, count) * room
    rows = [torch.stack([cosine * mirror, -sine, x], 1), torch.stack([sine * mirror, cosine, y], 1)]
    return torch.stack(rows, 1)


def _restained(images: Tensor, options: ViewOptions, generator: torch.Generator) -> Tensor:
    count, device = len(images), images.device
    stains = torch.tensor(_STAINS, device=device)
    gain = 1 + _signed(generator, count, 1, 1, 3) * options.stain_gain
    shift = _signed(generator, count, 1, 1, 3) * options.stain_shift
    density = -torch.log(images.clamp(min=_DARKEST)).permute(0, 2, 3, 1)
    amounts = density @ torch.linalg.inv(stains)
    changed = (amounts * gain.to(device) + shift.to(device)) @ stains
    return torch.exp(-changed).permute(0, 3, 1, 2).clamp(max=1)


def _blurred(images: Tensor) -> Tensor:
    weights = torch.tensor([0.25, 0.5, 0.25], device=images.device)
    kernel = (weights[:, None] * weights).expand(3, 1, 3, 3)
    padded = nn.functional.pad(images, (1, 1, 1, 1), mode="reflect")
    return nn.functional.conv2d(padded, kernel, groups=3)
