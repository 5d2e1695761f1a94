"""Options of the Deep Perceptual Autoencoder; the defaults are the published CAMELYON16 run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from wsiad.detector import DetectorOptions
from wsiad.networks.autoencoder import AutoencoderShape
from wsiad.networks.vgg import LAYERS
from wsiad.training.options import LoopOptions

_Count = Annotated[int, pydantic.Field(ge=1)]


class DpaOptions(DetectorOptions, LoopOptions):
    """Options of ``dpa``."""

    blocks: Literal["residual18", "residual9"] = "residual18"
    """Two or one residual block(s) at every resolution."""
    latent_px: _Count = 8
    """Edge of the latent, pixels; 1 for a vector."""
    channels: _Count | tuple[_Count, ...] = 4
    """Width of the autoencoder: one for all, or one a resolution from the input down."""
    latent_channels: _Count | None = None
    """Channels of the latent; by default those of the smallest resolution."""
    layers: dict[str, Annotated[float, pydantic.Field(gt=0)]] = pydantic.Field(
        default={"relu4_2": 1.0}, min_length=1
    )
    """Layers of the perceptual network and their weights in the loss."""
    padding: Literal["zeros", "reflect"] | None = None
    """Padding of the perceptual network; by default what its weights file states, else zeros."""
    relative: Literal["tile", "place"] = "tile"
    """Divide the distance by the size of the features over the tile, or at each place."""
    statistics_tiles: _Count = 2_048
    """The most healthy tiles to take the mean and deviation of each feature channel from."""
    statistics_file: Path | None = None
    """JSON of such statistics instead: by layer, ``mean`` and ``std``, a number a channel."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the perceptual network in training: ``auto`` is bfloat16 on CUDA, else float32."""

    @pydantic.field_validator("layers")
    @classmethod
    def _known_layers(cls, layers: dict[str, float]) -> dict[str, float]:
        if unknown := [layer for layer in layers if layer not in LAYERS]:
            raise ValueError(f"VGG19 has no layer {unknown[0]!r}; names are such as relu4_2")
        return layers

    def shape(self, input_px: int) -> AutoencoderShape:
        """Sizes of the autoencoder at an input size.

        Raises
        ------
        DetectorError
            They do not fit together.
        """
        edges = AutoencoderShape.edges(input_px, self.latent_px)
        channels = self.channels
        if isinstance(channels, int):
            channels = (channels,) * len(edges)
        return AutoencoderShape(
            image_px=input_px,
            latent_px=self.latent_px,
            channels=channels,
            latent_channels=self.latent_channels or channels[-1],
            blocks=self.blocks,
        )

    def identity(self, *, limit: int) -> dict[str, Any]:
        """Return the values on which the weights after a given step depend, as JSON."""
        own = DpaOptions.model_fields.keys() - LoopOptions.model_fields.keys()
        scoring_only = {"pooling", "pooling_quantile", "input_px"}
        return {
            **super().identity(limit=limit),
            **self.model_dump(mode="json", include=set(own) - scoring_only),
        }
