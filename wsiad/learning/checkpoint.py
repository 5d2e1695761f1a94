"""Checkpoints: tensors and values in one safetensors file, written whole or not at all."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from wsiad.core.errors import RunError
from wsiad.core.files import atomic_file, parse_json

CHECKPOINT = "checkpoint.safetensors"

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a fit stands.

    Parameters
    ----------
    tensors : dict of str to Tensor
        Parameters and moments.
    values : dict
        JSON values: the step, the position in the data, …
    identity : dict
        JSON values that must be equal for a fit to go on from here: options, seed, data.
    """

    tensors: dict[str, Tensor]
    values: dict[str, Any]
    identity: dict[str, Any]

    def group(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose names begin with ``prefix.``, without it."""
        start = f"{prefix}."
        return {k.removeprefix(start): t for k, t in self.tensors.items() if k.startswith(start)}

    def write(self, path: Path) -> None:
        """Write the checkpoint atomically."""
        header = json.dumps(
            {"format": _FORMAT, "values": self.values, "identity": self.identity}, allow_nan=False
        )
        tensors = {
            name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()
        }
        with atomic_file(path) as partial:
            save_file(tensors, str(partial), metadata={"wsiad": header})


def read_checkpoint(path: Path, identity: dict[str, Any]) -> Checkpoint | None:
    """Read the checkpoint of a fit, if there is one.

    Raises
    ------
    RunError
        It is damaged, or belongs to another fit; the keys that differ are named.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(str(path), framework="pt") as file:
            header = parse_json((file.metadata() or {})["wsiad"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        version, found, values = header["format"], dict(header["identity"]), dict(header["values"])
    except (AttributeError, SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"is not a readable checkpoint ({error})",
            subject=str(path),
            remedy="Delete it to train from the start.",
        ) from error
    if version != _FORMAT:
        raise RunError(
            f"has the checkpoint format {version!r}, not {_FORMAT}",
            subject=str(path),
            remedy="Go on with the version of wsiad that wrote it, or delete it.",
        )
    expected = json.loads(json.dumps(identity))
    if different := [
        key for key in sorted({*expected, *found}) if expected.get(key) != found.get(key)
    ]:
        raise RunError(
            f"belongs to a training with another {', '.join(different)}",
            subject=str(path),
            remedy="Train into another folder, give the same configuration, or delete it.",
        )
    return Checkpoint(tensors, values, found)
