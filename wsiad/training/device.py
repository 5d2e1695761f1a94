"""Which device to compute on."""

from __future__ import annotations

import torch

from wsiad.errors import ConfigError


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
