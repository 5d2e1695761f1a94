"""Which device to compute on."""

from __future__ import annotations

import torch

from wsiad.core.errors import ConfigError

_CPU_BATCH_PX = 1 << 17


def choose_device(name: str) -> torch.device:
    """Return the device of a name; ``"auto"`` is a GPU where there is one.

    Raises
    ------
    ConfigError
        There is no such device on this machine.
    """
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
