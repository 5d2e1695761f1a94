"""Pixels as features: a backbone without weights, whose features are patches of the image.

It stands where a network would: methods of texture and density that were published on pixels use
it by ``backbone: pixels``, with the same places, layers and stored features as any other backbone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

import numpy as np
import pydantic
import torch
from torch import Tensor, nn
from torch.nn import functional

from wsiad.core.config import Config, build
from wsiad.core.errors import DetectorError

PIXELS: Final = "pixels"
"""Name of the backbone."""

FINEST: Final = "level0"
"""The layer of the image itself."""

LEVELS: Final = 6
"""Number of levels of the pyramid; each is half as large as the one before."""

_LEVEL = re.compile(r"level([0-9])")
_LARGEST = 64
_MOST = 1 << 12


class PixelArguments(Config):
    """Arguments of the backbone ``pixels``, as its ``backbone_args``."""

    patch: Annotated[int, pydantic.Field(ge=1, le=_LARGEST)] = 8
    """Edge of the patch in the middle of each place, in pixels of its level. With 1, the pixels
    themselves are the features, averaged over each place."""
    projections: Annotated[int, pydantic.Field(ge=1, le=_MOST)] | None = None
    """Number of random projections of each patch, in place of its pixels."""
    grey: bool = False
    """Use the mean of red, green and blue."""
    seed: Annotated[int, pydantic.Field(ge=0)] = 0
    """Seed of the random projections."""


class PixelPatches(nn.Module):
    """A network without weights that maps images to patches of the levels of their pyramid.

    Each level of the pyramid is the one before, averaged over 2 × 2 pixels. A patch that extends
    over the border of its level is mirrored there. Projections are drawn from a Gaussian, with
    the mean squared length of a patch kept.

    Parameters
    ----------
    layers : sequence of str
        Levels, ``"level0"`` for the image to ``"level5"``.
    places : int
        Edge m of the grid of places, each with one patch.
    arguments : mapping
        Values of :class:`PixelArguments`.

    Raises
    ------
    DetectorError
        There is no such level.
    ConfigError
        An argument is unknown or out of its range.
    """

    def __init__(
        self, layers: Sequence[str], places: int, arguments: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.given = build(
            PixelArguments, dict(arguments or {}), source=f"backbone_args of {PIXELS}"
        )
        self._levels = {layer: _level(layer) for layer in layers}
        if not self._levels:
            raise DetectorError(f"no layer of {PIXELS} was chosen")
        self._places = places
        if self.given.projections is not None:
            for level in self._levels.values():
                matrix = self._matrix(level, self.given.projections)
                self.register_buffer(f"projection{level}", matrix, persistent=False)

    def arguments(self) -> dict[str, Any]:
        """Return all arguments, defaults included, as JSON values."""
        return self.given.model_dump(mode="json")

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the patches of each level, (N, C, m, m), of images (N, 3, S, S).

        Raises
        ------
        DetectorError
            A level is smaller than a patch.
        """
        if self.given.grey:
            images = images.mean(dim=1, keepdim=True)
        found, level, at = {}, images, 0
        for layer, number in sorted(self._levels.items(), key=lambda item: item[1]):
            while at < number:
                self._check(level, layer, least=2)
                level, at = functional.avg_pool2d(level, 2), at + 1
            found[layer] = self._patches(level, layer)
        return found

    def _patches(self, level: Tensor, layer: str) -> Tensor:
        edge = self.given.patch
        if edge == 1:
            patches = level
        else:
            self._check(level, layer, least=edge)
            margin = edge // 2
            padded = functional.pad(level, (margin,) * 4, mode="reflect")
            rows = self._positions(level.shape[2]).to(level.device)
            columns = self._positions(level.shape[3]).to(level.device)
            cut = padded[:, :, rows][..., columns]  # (N, 3, m, k, m, k)
            patches = cut.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)
        if self.given.projections is None:
            return patches
        matrix = self.get_buffer(f"projection{self._levels[layer]}")
        return torch.einsum("ncyx,pc->npyx", patches, matrix)

    def _positions(self, edge: int) -> Tensor:
        """Return the rows of the patch of each place, (m, k), in a level with its margin."""
        patch, places = self.given.patch, self._places
        middles = (np.arange(places) + 0.5) * edge / places
        first = np.floor(middles - patch / 2 + 0.5).astype(np.int64) + patch // 2
        return torch.from_numpy(first[:, None] + np.arange(patch))

    def _check(self, level: Tensor, layer: str, *, least: int) -> None:
        edge = min(level.shape[2:])
        if edge < least:
            raise DetectorError(
                f"{layer} of {PIXELS} has {edge} px, fewer than its patches of {least} px",
                remedy="Choose larger tiles, a finer level or a smaller patch.",
            )

    def _matrix(self, level: int, count: int) -> Tensor:
        given = self.given
        inputs = given.patch**2 * (1 if given.grey else 3)
        rng = np.random.default_rng([given.seed, level, given.patch, count, inputs])
        matrix = rng.normal(size=(count, inputs)) / np.sqrt(count)
        return torch.from_numpy(matrix.astype(np.float32))


def _level(layer: str) -> int:
    found = _LEVEL.fullmatch(layer)
    if found is None or int(found[1]) >= LEVELS:
        known = ", ".join(f"level{number}" for number in range(LEVELS))
        raise DetectorError(
            f"{PIXELS} has no layer {layer!r}",
            remedy=f"Set --option layers=null for the method's own, or some of {known}.",
        )
    return int(found[1])
