"""Mean and deviation of channels over more healthy places than fit into memory."""

from __future__ import annotations

import torch
from torch import Tensor

from wsiad.core.errors import DetectorError

_LEAST = 1e-6  # of the largest deviation; a channel with less does not vary


class ChannelMoments:
    """Mean and deviation by channel, merged batch by batch (Chan et al. 1983), in float64."""

    def __init__(self) -> None:
        self._count = 0
        self._mean = torch.zeros(())
        self._squares = torch.zeros(())

    def add(self, features: Tensor) -> None:
        """Add features, (N, C) or (N, C, h, w)."""
        values = features.detach().to(dtype=torch.float64).transpose(0, 1).flatten(1)
        count, middle = values.shape[1], values.mean(dim=1)
        squares = (values - middle[:, None]).square().sum(dim=1).cpu()
        mean = middle.cpu()
        total = self._count + count
        shift = mean - self._mean
        self._mean = self._mean + shift * (count / total)
        self._squares = self._squares + squares + shift.square() * (self._count * count / total)
        self._count = total

    def found(self) -> tuple[Tensor, Tensor]:
        """Return mean and deviation, float32 (C,) each, in main memory.

        Raises
        ------
        DetectorError
            Nothing was added.
        """
        if self._count == 0:
            raise DetectorError("there are no tiles for the channel statistics")
        return self._mean.float(), (self._squares / self._count).sqrt().float()

    def scaling(self) -> tuple[Tensor, Tensor] | None:
        """Return mean and deviation to divide by; ``None`` if no channel varies.

        The deviation of a channel that does not vary is 1.
        """
        mean, deviation = self.found()
        varies = deviation > _LEAST * deviation.max()
        return (mean, torch.where(varies, deviation, 1.0)) if bool(varies.any()) else None
