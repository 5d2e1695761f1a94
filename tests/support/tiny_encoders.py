"""Tiny encoders of the same kind as real ones, with weights that a formula gives."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import Tensor

from wsiad.core.config import build
from wsiad.networks import encoder_network
from wsiad.networks.encoder import Encoder

TRANSFORMER = {"heads": 3, "eps": 1e-6, "activation": "GELU", "prefix_tokens": 1, "patch_px": 8}
TINY = {
    "network": "vit_tiny_patch16_224",
    "arguments": {
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 24,
        "depth": 2,
        "num_heads": 3,
        "init_values": 1e-5,
    },
    "parameters": 19_656,
    "transformer": TRANSFORMER,
    "mean": [0.5, 0.4, 0.6],
    "std": [0.2, 0.3, 0.25],
    "px": 32,
    "mpp": [0.5],
    "dim": 24,
    "licence": "for tests only",
}
REGISTERS = {
    **TINY,
    "arguments": {**TINY["arguments"], "reg_tokens": 4, "no_embed_class": True},
    "parameters": 19_728,
    "transformer": {**TRANSFORMER, "prefix_tokens": 5},
    "embedding": "cls+patch_mean",
    "dim": 48,
}


def tiny(name: str = "tiny", base: dict | None = None, **changes) -> Encoder:
    """Return a tiny encoder."""
    return build(Encoder, {"name": name, **(base or TINY), **changes})


def formula(name: str, shape: tuple[int, ...], *, scale: float = 0.2) -> Tensor:
    """Return values that depend on a name and their places alone, float32."""
    count = int(np.prod(shape, dtype=np.int64))
    phase = zlib.crc32(name.encode()) % 1000
    values = scale * np.sin(1.7 * np.arange(count) + phase + 0.013 * np.arange(count) ** 1.1)
    if name.endswith(("running_var",)):
        values = np.abs(values) + 0.5
    return torch.from_numpy(values.astype(np.float32)).reshape(shape)


def weights(encoder: Encoder) -> dict[str, Tensor]:
    """Return weights of an encoder by timm's names."""
    with torch.device("meta"):
        network = encoder_network.build(encoder)
    return {
        name: torch.zeros(1, dtype=torch.int64)[0] if not tensor.is_floating_point()
        else formula(name, tuple(tensor.shape))
        for name, tensor in network.state_dict().items()
    }  # fmt: skip


def team(folder: Path, **encoders: dict) -> Path:
    """Write the table and the weights of a team's encoders into a folder; return it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "encoders.yaml").write_text(yaml.safe_dump(encoders), encoding="utf-8")
    for name, values in encoders.items():
        torch.save(weights(tiny(name, values)), folder / f"{name}.bin")
    return folder
