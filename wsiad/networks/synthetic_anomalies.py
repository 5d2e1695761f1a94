"""Synthetic anomalies of healthy images: pasted patches, scars, and textures in Perlin noise.

Images are float (N, 3, S, S). All draws are those of a generator on the CPU, so that they do not
depend on the device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

_AREA, _ASPECT = (0.02, 0.15), (0.3, 3.3)  # of a pasted patch: share of the image; height to width
_SCAR_WIDTH, _SCAR_LENGTH, _SCAR_TURN = (2.0, 8.0), (10.0, 25.0), math.pi / 4  # pixels, radians
_JITTER = 0.1  # share by which each colour of a pasted patch is changed at most
_OCTAVES = 6  # cells of the Perlin noise along an edge: 1, 2, … 32
_THRESHOLD = 0.5  # of the Perlin noise


def _between(generator: torch.Generator, count: int, low: float, high: float) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)


def pasted(
    images: Tensor, *, half: Tensor, turn: Tensor, source: Tensor, target: Tensor, gain: Tensor
) -> Tensor:
    """Copy a rectangle of each image, turned, to another place of it.

    Parameters
    ----------
    images : Tensor, (N, 3, S, S)
    half : Tensor, (N, 2)
        Half of the height and width, pixels.
    turn : Tensor, (N,)
        Angle by which the rectangle is turned, radians.
    source, target : Tensor, (N, 2)
        Centres, down and across, pixels.
    gain : Tensor, (N, 3)
        Factor of each colour of the rectangle.
    """
    size, device = images.shape[2], images.device
    half, turn, source, target, gain = (
        one.to(device) for one in (half, turn, source, target, gain)
    )
    along = torch.arange(size, device=device) + 0.5
    down = along[None, :, None] - target[:, 0, None, None]
    across = along[None, None, :] - target[:, 1, None, None]
    cosine, sine = torch.cos(turn)[:, None, None], torch.sin(turn)[:, None, None]
    own_down, own_across = cosine * down + sine * across, cosine * across - sine * down
    inside = (own_down.abs() <= half[:, 0, None, None]) & (
        own_across.abs() <= half[:, 1, None, None]
    )
    rows = (own_down + source[:, 0, None, None]) / size * 2 - 1
    columns = (own_across + source[:, 1, None, None]) / size * 2 - 1
    seen = functional.grid_sample(
        images,
        torch.stack([columns, rows], dim=3),
        mode="nearest",
        padding_mode="reflection",
        align_corners=False,
    )
    return torch.where(inside[:, None], seen * gain[:, :, None, None], images)


def _placed(
    images: Tensor, generator: torch.Generator, *, half: Tensor, turn: Tensor, room: Tensor
) -> Tensor:
    """Paste rectangles from and to places at which they are inside of the image."""
    size, count = images.shape[2], len(images)
    room = room.clamp(max=size / 2)
    source, target = (
        room + torch.rand(count, 2, generator=generator) * (size - 2 * room) for _ in range(2)
    )
    gain = 1 + _JITTER * (2 * torch.rand(count, 3, generator=generator) - 1)
    return pasted(images, half=half, turn=turn, source=source, target=target, gain=gain)


def cut_paste(images: Tensor, generator: torch.Generator) -> Tensor:
    """Paste a rectangle of 2 to 15 % of each image elsewhere in it."""
    count, area = len(images), images.shape[2] ** 2
    share = _between(generator, count, *_AREA) * area
    aspect = _between(generator, count, *(math.log(value) for value in _ASPECT)).exp()
    half = torch.stack([(share * aspect).sqrt(), (share / aspect).sqrt()], dim=1) / 2
    half = half.clamp(max=images.shape[2] / 2)
    return _placed(images, generator, half=half, turn=torch.zeros(count), room=half)


def scars(images: Tensor, generator: torch.Generator) -> Tensor:
    """Paste a thin turned rectangle of each image elsewhere in it."""
    count = len(images)
    half = torch.stack(
        [_between(generator, count, *_SCAR_LENGTH), _between(generator, count, *_SCAR_WIDTH)],
        dim=1,
    )
    turn = _between(generator, count, -_SCAR_TURN, _SCAR_TURN)
    room = half.norm(dim=1, keepdim=True).expand(-1, 2) / 2
    return _placed(images, generator, half=half / 2, turn=turn, room=room)


def perlin(edge: int, cells: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Return Perlin noise, (edge, edge), about −1 to 1 and 0 at the corners of its cells.

    Parameters
    ----------
    edge : int
    cells : tuple of int
        Number of cells down and across.
    generator : torch.Generator
    """
    down, across = cells
    angles = 2 * math.pi * torch.rand(down + 1, across + 1, generator=generator)
    along = (torch.arange(edge) + 0.5) / edge
    rows, columns = along * down, along * across
    top, left = rows.long(), columns.long()
    y, x = (rows - top)[:, None], (columns - left)[None, :]

    def corner(v: int, u: int) -> Tensor:
        angle = angles[(top + v)[:, None], (left + u)[None, :]]
        return torch.sin(angle) * (y - v) + torch.cos(angle) * (x - u)

    fade_y, fade_x = (6 * t**5 - 15 * t**4 + 10 * t**3 for t in (y, x))
    upper = torch.lerp(corner(0, 0), corner(0, 1), fade_x.expand(edge, edge))
    lower = torch.lerp(corner(1, 0), corner(1, 1), fade_x.expand(edge, edge))
    return math.sqrt(2) * torch.lerp(upper, lower, fade_y.expand(edge, edge))


def textured(
    images: Tensor, generator: torch.Generator, *, share: float, opacity: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Blend a distorted other image into areas of each image that Perlin noise draws.

    Parameters
    ----------
    images : Tensor, (N, 3, S, S), in [0, 1]
    generator : torch.Generator
    share : float
        Share of the images that are changed.
    opacity : tuple of float
        Least and largest opacity of the blended image.

    Returns
    -------
    changed : Tensor, (N, 3, S, S)
    mask : Tensor of int64, (N, S, S)
        1 where the image is changed.
    """
    count, size = len(images), images.shape[2]
    octaves = torch.randint(_OCTAVES, (count, 2), generator=generator).tolist()
    noise = torch.stack([perlin(size, (2**down, 2**across), generator) for down, across in octaves])
    chosen = torch.rand(count, generator=generator) < share
    mask = ((noise > _THRESHOLD) & chosen[:, None, None]).to(images.device)
    other = distorted(images.roll(1, dims=0), generator)
    weight = _between(generator, count, *opacity).to(images.device)[:, None, None, None]
    blended = (1 - weight) * images + weight * other
    return torch.where(mask[:, None], blended, images), mask.long()


def distorted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return images in [0, 1], turned: inverted, with other colours, in few steps or solarised."""
    count = len(images)
    ways = torch.randint(4, (count,), generator=generator).tolist()
    turns = torch.randint(4, (count,), generator=generator).tolist()
    orders = [torch.randperm(3, generator=generator) for _ in range(count)]
    levels = torch.rand(count, generator=generator).tolist()
    found = []
    for image, way, turn, order, level in zip(images, ways, turns, orders, levels, strict=True):
        forms = (
            1 - image,
            image[order.to(image.device)],
            (image * 3).round() / 3,
            torch.where(image > level, 1 - image, image),
        )
        found.append(torch.rot90(forms[way], turn, (1, 2)))
    return torch.stack(found)
