"""Devices: the choice of the one to compute on, and processes on several that train together.

A batch belongs to all processes, and its random draws are made for all of it; each process then
takes its own rows. The number of processes changes a training only by rounding.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from wsiad.core.config import Config
from wsiad.core.errors import ConfigError
from wsiad.core.terminal import counted

if TYPE_CHECKING:
    import torch

_CONTAINER = Path("/sys/fs/cgroup/memory.max")
_CPU_BATCH_PX = 1 << 17
_GPU_BATCH_PX = 1 << 25
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_JOBS = ("PBS_JOBID", "LSB_JOBID", "SGE_JOB_SPOOL_DIR")
"""Variables that PBS, LSF and SGE set in every job."""


class DeviceOptions(Config):
    """Options of the device to compute on."""

    device: str = "auto"
    """Device to compute on: `auto`, `cpu`, `cuda` or `cuda:N`. With `auto`, the workers of a
    machine with several GPUs take them in turn."""


def check_device(name: str) -> None:
    """Check that this machine has the device of a name, as :func:`choose_device` does.

    Every machine has ``"auto"`` and ``"cpu"``: torch is imported only to look for others.

    Raises
    ------
    ConfigError
        This machine does not have the device.
    """
    if name not in ("auto", "cpu"):
        choose_device(name)


def worker_number() -> int | None:
    """Return the number of the worker that runs the current task; ``None`` in other processes.

    It is the last number of the worker's name. Workers that :func:`wsiad.compute.tasks.run_tasks`
    starts on this machine are numbered from 0; one that replaces another has its number.
    """
    if "distributed" not in sys.modules:
        return None
    from distributed import get_worker

    try:
        name = str(get_worker().name)
    except ValueError:  # no worker runs this
        return None
    found = re.search(r"-(\d+)$", name)
    return int(found[1]) if found else None


def memory_bytes(device: torch.device) -> int:
    """Return the complete memory of a device, for a CPU that this process may use, bytes."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = _CONTAINER.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        limit = ""
    return min(found, int(limit)) if limit.isdecimal() else found


def choose_device(name: str) -> torch.device:
    """Return the device of a name; ``"auto"`` is a GPU if there is one.

    Workers of a machine with several GPUs take them in turn: worker ``i`` of ``n`` GPUs has
    ``cuda:{i mod n}``.

    Raises
    ------
    ConfigError
        This machine does not have the device, or a batch system gave this job GPUs that PyTorch
        cannot use.
    """
    import torch

    if name == "auto":
        if not torch.cuda.is_available():
            if given := _gpus_of_job():
                raise ConfigError(
                    f"this job was given GPUs ({given}), which PyTorch cannot use on "
                    f"{platform.node()}",
                    subject="device",
                    remedy="`wsiad doctor` on that node says more; or set --device cpu.",
                )
            return torch.device("cpu")
        worker, count = worker_number(), torch.cuda.device_count()
        if worker is None or count < 2:
            return torch.device("cuda")
        return torch.device("cuda", worker % count)
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(
            f"{name!r} is not a device", subject="device", remedy="Use auto, cpu, cuda or cuda:1."
        ) from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"{name!r} was requested, but this machine has "
            f"{counted(torch.cuda.device_count(), 'GPU')}",
            subject="device",
            remedy="Use auto or cpu, or check the driver with `wsiad doctor`.",
        )
    return device


def _gpus_of_job() -> str:
    """Return the variable that states the GPUs of this job, with its value; empty if none does.

    SLURM has a variable of its own. Those of PBS, LSF and SGE that hand out GPUs set CUDA's, which
    outside of a job says nothing: it may be set in a profile for all machines.
    """
    if given := os.environ.get("SLURM_JOB_GPUS"):
        return f"SLURM_JOB_GPUS={given}"
    visible = os.environ.get(_VISIBLE, "").strip()
    # By other beginnings, such as -1 or NoDevFiles, none is visible to CUDA.
    named = re.match(r"\d|GPU-|MIG-", visible)
    return f"{_VISIBLE}={visible}" if named and any(map(os.environ.get, _JOBS)) else ""


def windows_at_once(batch: int, device: torch.device, *, edge: int) -> int:
    """Return the number of windows that a device scores at a time, at most ``batch``.

    On a CPU they have 131,072 px or fewer. The values that a network keeps of these stay in the
    CPU's caches, which makes it up to four times as fast. On a GPU they have 33,554,432 px or
    fewer (668 windows of 224 px), 100 MB, because three batches wait in a worker's memory. The
    number changes scores by rounding at most.

    Parameters
    ----------
    batch : int
    device : torch.device
    edge : int
        Edge of a window, pixels.
    """
    pixels = _CPU_BATCH_PX if device.type == "cpu" else _GPU_BATCH_PX
    return min(batch, max(1, pixels // edge**2))


@contextmanager
def drawing(device: torch.device, *seed: int) -> Iterator[None]:
    """Let the global generators of torch follow from the numbers of a seed, and restore them.

    A step of a training that uses dropout or ``torch.randn`` is then a function of its seed and
    number, so that a killed training resumes exactly.

    Parameters
    ----------
    device : torch.device
    *seed : int
        Numbers that decide the draws: those of the training, the stream and the step.
    """
    import torch

    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(int(np.random.default_rng(seed).integers(2**63)))
        yield


@dataclass(frozen=True, slots=True)
class Ranks:
    """A process among those that train together, by ``torch.distributed`` if there are several.

    Parameters
    ----------
    rank, count : int
        Index of the process, from 0, and number of processes; the first one writes all files.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """True for the first process."""
        return self.rank == 0

    def own(self, total: int, *, groups: int = 1) -> npt.NDArray[np.int64]:
        """Return the rows of a batch for this process: equally many from each group of the batch.

        Raises
        ------
        ConfigError
            The rows cannot be shared evenly.
        """
        each, left = divmod(total, groups * self.count)
        if left:
            raise ConfigError(
                f"batches of {total // groups} tiles cannot be shared by {self.count} devices",
                subject="devices",
                remedy="Set batch to a multiple of their number.",
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
