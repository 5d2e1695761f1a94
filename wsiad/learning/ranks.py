"""Processes that train together: which tiles of a batch are each one's, and what they agree on.

A batch is that of all processes, and everything drawn for it is drawn for all of it; each
process then takes its own rows. How many there are changes a training by rounding alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from wsiad.core.errors import ConfigError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Ranks:
    """Which of how many processes this is; with more than one, ``torch.distributed`` is set up.

    Parameters
    ----------
    rank, count : int
        From 0; the first writes what there is to write.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the first process."""
        return self.rank == 0

    def own(self, total: int, *, groups: int = 1) -> npt.NDArray[np.int64]:
        """Return the rows of a batch that are this process's: as many of each group of it.

        Raises
        ------
        ConfigError
            They cannot be shared out evenly.
        """
        each, left = divmod(total, groups * self.count)
        if left:
            raise ConfigError(
                f"batches of {total // groups} tiles cannot be shared by {self.count} devices",
                subject="devices",
                remedy="Set batch to a multiple of it.",
            )
        rows = np.arange(total).reshape(groups, self.count, each)
        return rows[:, self.rank].ravel()

    def average(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace tensors by their means over the processes."""
        if self.count == 1 or not tensors:
            return
        import torch

        flat = torch.cat([tensor.flatten() for tensor in tensors])
        torch.distributed.all_reduce(flat)
        flat /= self.count
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def average_of(self, value: float, device: torch.device) -> float:
        """Return the mean of a number over the processes."""
        if self.count == 1:
            return value
        import torch

        shared = torch.tensor(value, dtype=torch.float64, device=device)
        self.average([shared])
        return float(shared)

    def agreed(self, value: float, device: torch.device) -> float:
        """Return the first process's value."""
        if self.count == 1:
            return value
        import torch

        shared = torch.tensor(value, dtype=torch.float64, device=device)
        torch.distributed.broadcast(shared, src=0)
        return float(shared)
