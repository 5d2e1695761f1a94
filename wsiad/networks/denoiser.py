"""A network that predicts the noise in an image, and the schedule by which noise is added.

The network is a U-Net of residual blocks that know the time step, with attention over all places
where the image is small.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from wsiad.core.errors import DetectorError

_GROUPS = 32
_LEAST_WIDTH = 4  # channels: two frequencies
Predict = Callable[[Tensor, Tensor], Tensor]
"""Function that maps noisy images, (N, 3, S, S), and their time steps, (N,), to their noise."""


class NoiseSchedule:
    r"""The share of an image that is left at each time step: :math:`\bar\alpha_t`.

    :math:`\beta_t` rises linearly, :math:`\bar\alpha_t = \prod_{s \le t} (1 - \beta_s)`, and
    :math:`\bar\alpha_0 = 1`: at time step 0 nothing has been added.

    Parameters
    ----------
    steps : int
        Number T of time steps.
    first, last : float
        :math:`\beta_1` and :math:`\beta_T`.

    Attributes
    ----------
    left : Tensor of float64, (T + 1,)
        :math:`\bar\alpha_t` for t from 0 to T.

    Notes
    -----
    Ho, Jain & Abbeel, *Denoising Diffusion Probabilistic Models*, NeurIPS 2020 (arXiv
    2006.11239).
    """

    def __init__(self, steps: int = 1000, first: float = 1e-4, last: float = 0.02) -> None:
        beta = torch.linspace(first, last, steps, dtype=torch.float64)
        self.left = torch.cat([torch.ones(1, dtype=torch.float64), (1 - beta).cumprod(dim=0)])

    @property
    def steps(self) -> int:
        """Number of time steps."""
        return len(self.left) - 1

    def noisy(self, images: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Return images with noise, (N, 3, S, S), at time steps (N,)."""
        left = self._left(times, images)
        return left.sqrt() * images + (1 - left).sqrt() * noise

    def clean(self, noisy: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Return the images from which :meth:`noisy` makes these with this noise."""
        left = self._left(times, noisy)
        return (noisy - (1 - left).sqrt() * noise) / left.sqrt()

    def denoised(self, predict: Predict, noisy: Tensor, start: int, *, steps: int) -> Tensor:
        """Remove the noise of images at time step ``start``, without drawing any.

        The images that are predicted on the way are clamped to [−1, 1].

        Parameters
        ----------
        predict : callable
            Function that predicts the noise.
        noisy : Tensor, float (N, 3, S, S)
        start : int
            Time step of the images; at 0 they are returned as they are.
        steps : int
            Maximum number of predictions.

        Returns
        -------
        Tensor, float (N, 3, S, S)

        Notes
        -----
        Song, Meng & Ermon, *Denoising Diffusion Implicit Models*, ICLR 2021 (arXiv 2010.02502),
        eq. 12 with σ = 0.
        """
        x = noisy
        times = self.times(start, steps)
        for now, then in itertools.pairwise(times):
            at = torch.full((len(x),), now, device=x.device)
            clean = self.clean(x, predict(x, at), at).clamp(-1, 1)
            left = self._left(at, x)
            noise = (x - left.sqrt() * clean) / (1 - left).sqrt()
            x = self.noisy(clean, noise, torch.full_like(at, then))
        return x

    @staticmethod
    def times(start: int, steps: int) -> list[int]:
        """Return the time steps on the way from ``start`` to 0, evenly spread, both included."""
        count = min(steps, start)
        return [round(start * (count - i) / count) for i in range(count + 1)] if count else [0]

    def _left(self, times: Tensor, like: Tensor) -> Tensor:
        return self.left.to(like.device)[times].to(like.dtype).view(-1, 1, 1, 1)


class Denoiser(nn.Module):
    """A U-Net that predicts noise.

    Parameters
    ----------
    px : int
        Edge of the images, pixels.
    widths : sequence of int
        Number of channels at each resolution; the image is halved from one to the next. The first
        is even, 4 or more.
    blocks : int
        Number of residual blocks at each resolution on the way down; one more on the way up.
    attention_px : sequence of int
        Edges at which there is attention after each block, and always at the smallest.
    dropout : float
        Share of activations that are left out in training.

    Raises
    ------
    DetectorError
        The image cannot be halved so often, or the first number of channels is odd or below 4.

    Notes
    -----
    As in Ho et al. 2020: group norm, SiLU, time steps by sines and two layers, attention with
    one head, and a last layer that begins at 0.
    """

    def __init__(
        self,
        px: int,
        widths: Sequence[int],
        *,
        blocks: int = 2,
        attention_px: Sequence[int] = (16,),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if px % 2 ** (len(widths) - 1):
            raise DetectorError(
                f"images of {px} px cannot be halved {len(widths) - 1} times",
                remedy="Set fewer widths, or another input_px.",
            )
        first = widths[0]
        if first % 2 or first < _LEAST_WIDTH:
            raise DetectorError(
                f"a first width of {first} channels cannot hold sines and cosines of a time step",
                remedy=f"Set an even number from {_LEAST_WIDTH} as the first of widths.",
            )
        self._first, time = first, 4 * first
        self.time = nn.Sequential(nn.Linear(first, time), nn.SiLU(), nn.Linear(time, time))
        self.enter = nn.Conv2d(3, first, 3, padding=1)
        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        self.up, self.enlarge = nn.ModuleList(), nn.ModuleList()
        skips, width, edge = [first], first, px
        for level, wide in enumerate(widths):
            attends = edge in attention_px
            for _ in range(blocks):
                self.down.append(_Block(width, wide, time, attends=attends, dropout=dropout))
                width = wide
                skips.append(width)
            if level < len(widths) - 1:
                self.shrink.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
                skips.append(width)
                edge //= 2
        self.middle = nn.ModuleList(
            [_Block(width, width, time, attends=first, dropout=dropout) for first in (True, False)]
        )
        for level, wide in reversed(list(enumerate(widths))):
            attends = edge in attention_px
            for _ in range(blocks + 1):
                before = width + skips.pop()
                self.up.append(_Block(before, wide, time, attends=attends, dropout=dropout))
                width = wide
            if level:
                self.enlarge.append(nn.Conv2d(width, width, 3, padding=1))
                edge *= 2
        self.leave = nn.Sequential(_norm(width), nn.SiLU(), nn.Conv2d(width, 3, 3, padding=1))
        for parameter in self.leave[2].parameters():
            nn.init.zeros_(parameter)
        self._blocks, self._levels = blocks, len(widths)

    def forward(self, images: Tensor, times: Tensor) -> Tensor:
        """Return the noise, (N, 3, S, S), in images at time steps, (N,)."""
        time = self.time(sines(times, self._first))
        x, skips = self._inward(images, time)
        count = self._blocks + 1
        for level in range(self._levels):
            for block in self.up[level * count : (level + 1) * count]:
                x = block(torch.cat([x, skips.pop()], dim=1), time)
            if level < self._levels - 1:
                x = self.enlarge[level](functional.interpolate(x, scale_factor=2.0))
        found: Tensor = self.leave(x)
        return found

    def innermost(self, images: Tensor, times: Tensor) -> Tensor:
        """Return the features at the smallest resolution, (N, C, h, w), before the way up."""
        return self._inward(images, self.time(sines(times, self._first)))[0]

    def _inward(self, images: Tensor, time: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the innermost features, and those on the way down."""
        x = self.enter(images)
        skips = [x]
        for level in range(self._levels):
            for block in self.down[level * self._blocks : (level + 1) * self._blocks]:
                x = block(x, time)
                skips.append(x)
            if level < self._levels - 1:
                x = self.shrink[level](x)
                skips.append(x)
        for block in self.middle:
            x = block(x, time)
        return x, skips


def sines(times: Tensor, width: int) -> Tensor:
    """Return sines and cosines of time steps, (N, width), of frequencies from 1 to 1/10,000."""
    half = width // 2
    rates = torch.exp(-math.log(10_000) * torch.arange(half, device=times.device) / (half - 1))
    angles = times[:, None].float() * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class _Block(nn.Module):
    """A residual block that knows the time step, and attention where it is wanted."""

    def __init__(
        self, before: int, after: int, time: int, *, attends: bool, dropout: float
    ) -> None:
        super().__init__()
        self.first = nn.Sequential(_norm(before), nn.SiLU(), nn.Conv2d(before, after, 3, padding=1))
        self.time = nn.Sequential(nn.SiLU(), nn.Linear(time, after))
        self.second = nn.Sequential(
            _norm(after), nn.SiLU(), nn.Dropout(dropout), nn.Conv2d(after, after, 3, padding=1)
        )
        self.skip = nn.Conv2d(before, after, 1) if before != after else nn.Identity()
        self.attention = _Attention(after) if attends else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Return (N, after, h, w) of x (N, before, h, w) and time (N, time)."""
        inner = self.first(x) + self.time(time)[:, :, None, None]
        found: Tensor = self.attention(self.skip(x) + self.second(inner))
        return found


class _Attention(nn.Module):
    """Attention of each place to all, added to the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = _norm(width)
        self.inputs, self.output = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C, h, w) of the same shape."""
        query, key, value = (
            part.flatten(2).transpose(1, 2) for part in self.inputs(self.norm(x)).chunk(3, dim=1)
        )
        found = functional.scaled_dot_product_attention(query, key, value)
        return x + self.output(found.transpose(1, 2).reshape(x.shape))


def _norm(width: int) -> nn.GroupNorm:
    """Return a norm of groups of several channels: of single ones, it would remove the time."""
    return nn.GroupNorm(math.gcd(_GROUPS, max(1, width // 4)), width)
