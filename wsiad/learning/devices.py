"""Devices: which one to compute on, and the processes of several that train together.

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

_CPU_BATCH_PX = 1 << 17


def choose_device(name: str) -> torch.device:
    """Return the device of a name; ``"auto"`` is a GPU where there is one.

    Raises
    ------
    ConfigError
        There is no such device on this machine.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(
            f"{name!r} is not a device", subject="device", remedy="Give auto, cpu, cuda or cuda:1."
        ) from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"{name!r} was asked for and this machine has {torch.cuda.device_count()} GPUs",
            subject="device",
            remedy="Give auto or cpu, or check the driver with `wsiad doctor`.",
        )
    return device


def windows_at_once(batch: int, device: torch.device, *, edge: int) -> int:
    """Return how many windows a device scores at once, at most ``batch``.

    On a CPU it is fewer: what a network keeps of 131,072 px stays in its caches, is
    computed up to four times as fast, and leaves a worker's memory bounded whatever the
    windows' size. Scores are the same.

    Parameters
    ----------
    batch : int
    device : torch.device
    edge : int
        Of a window, pixels.
    """
    if device.type != "cpu":
        return batch
    return min(batch, max(1, _CPU_BATCH_PX // edge**2))


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
