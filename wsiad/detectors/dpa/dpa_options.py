"""Options of the Deep Perceptual Autoencoder; the defaults are the published CAMELYON16 run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pydantic

from wsiad.core.config import Config
from wsiad.core.errors import DetectorError
from wsiad.detectors._perceptual import LayerWeights, PerceptualOptions, SomeLayers
from wsiad.learning.adversarial_game import AdversarialOptions
from wsiad.learning.detector import DetectorOptions
from wsiad.learning.stages import Stages
from wsiad.learning.training_options import LoopOptions
from wsiad.networks.autoencoder import AutoencoderShape
from wsiad.networks.growing import growing_edges

_STAGE_STEPS = 20_000
_SHALLOW_PX = 32  # published: relu3_2 up to here, the final layers above
_SHALLOW_LAYERS = {"relu3_2": 1.0}


_Count = Annotated[int, pydantic.Field(ge=1)]
_ByPx = dict[_Count, _Count]


class GrowingOptions(Config):
    """Progressive growing. A resolution that is not named has its default."""

    start_px: _Count = 16
    """First resolution, pixels: the input's, halved one or more times."""
    stabilise_steps: _Count | _ByPx = _STAGE_STEPS
    """Steps at each resolution before the next one is faded in: a number, or numbers by pixels."""
    transition_steps: _Count | _ByPx = _STAGE_STEPS
    """Steps in which a resolution is faded in: a number, or numbers by pixels."""
    layers: dict[_Count, SomeLayers] = pydantic.Field(default={})
    """Perceptual layers for each resolution below the input's, which has the detector's ``layers``.
    Default: ``relu3_2`` up to 32 px, and those of the detector above."""
    batch: _ByPx = pydantic.Field(default={})
    """Tiles in a step for each resolution below the input's; default: the detector's ``batch``."""

    def stages(self, edges: tuple[int, ...], *, batch: int) -> Stages:
        """Return the stages over resolutions from the first to the input's, pixels.

        Parameters
        ----------
        edges : tuple of int
        batch : int
            Number of tiles in a step if no other number is set.

        Raises
        ------
        DetectorError
            A value is set for a resolution for which it cannot be set.
        """
        below, above = edges[:-1], edges[1:]
        _check_keys("layers", self.layers, below)
        return Stages(
            edges,
            stabilise=_by_px("stabilise_steps", self.stabilise_steps, below),
            transition=_by_px("transition_steps", self.transition_steps, above),
            batch={edges[-1]: batch, **_by_px("batch", self.batch, below, default=batch)},
        )


class DpaOptions(PerceptualOptions, DetectorOptions, LoopOptions):
    """Options of ``dpa``."""

    blocks: Literal["residual18", "residual9"] = "residual18"
    """Residual blocks at every resolution: two (``residual18``) or one (``residual9``)."""
    latent_px: _Count = 8
    """Edge of the latent, pixels; 1 for a vector."""
    channels: _Count | tuple[_Count, ...] = 4
    """Width of the autoencoder: one number, or one for each resolution from the input down."""
    latent_channels: _Count | None = None
    """Number of channels of the latent; by default that of the smallest resolution."""
    layers: LayerWeights = pydantic.Field(default={"relu4_2": 1.0})
    """Layers of the perceptual network and their weights in the loss. ``{}`` compares only pixels,
    by ``image_weight``, and needs no network."""
    image_weight: Annotated[float, pydantic.Field(ge=0)] = 0.0
    """Weight of the mean absolute difference of pixels (of −1 to 1), added to loss and score."""
    adversarial_weight: Annotated[float, pydantic.Field(ge=0)] = 0.0
    """Weight of a critic's judgement of the reconstruction, added to the loss in training but not
    to the score; 0 trains no critic."""
    adversarial: AdversarialOptions = AdversarialOptions()
    """Options of the critic, for ``adversarial_weight``."""
    growing: GrowingOptions | None = None
    """Progressive growing; ``{}`` grows as published, ``null`` trains at one resolution."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the perceptual network in training: `auto` is bfloat16 on CUDA, else float32."""

    @pydantic.model_validator(mode="after")
    def _something_to_compare_by(self) -> DpaOptions:
        if not self.layers and not self.image_weight:
            raise ValueError("without layers, image_weight must be above 0")
        if not self.layers and self.growing and self.growing.layers:
            raise ValueError("growing.layers needs layers")
        return self

    def shape(self, input_px: int) -> AutoencoderShape:
        """Return the sizes of the autoencoder at an input size.

        Raises
        ------
        DetectorError
            The sizes do not fit together.
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

    def stages(self, input_px: int) -> Stages | None:
        """Return the stages of the training at an input size; ``None`` if it does not grow.

        Raises
        ------
        DetectorError
            The stages do not fit the autoencoder.
        """
        if self.growing is None:
            return None
        edges = growing_edges(self.shape(input_px), self.growing.start_px)
        return self.growing.stages(edges, batch=self.batch)

    def layers_by_px(self, input_px: int) -> dict[int, dict[str, float]]:
        """Return the perceptual layers and their weights for every resolution, pixels.

        Raises
        ------
        DetectorError
            The resolutions do not fit the autoencoder.
        """
        if self.growing is None:
            return {input_px: self.layers}
        shallow = _SHALLOW_LAYERS if self.layers else {}
        edges = growing_edges(self.shape(input_px), self.growing.start_px)
        usual = {px: shallow if px <= _SHALLOW_PX else self.layers for px in edges}
        return {**usual, **self.growing.layers, input_px: self.layers}

    def identity(self, *, limit: int) -> dict[str, Any]:
        """Return the values on which the weights after a given step depend, as JSON."""
        own = DpaOptions.model_fields.keys() - LoopOptions.model_fields.keys()
        values = self.model_dump(mode="json", include=set(own) - self.scoring_only)
        # Checkpoints of before these options, or without them, do not state them.
        if not self.adversarial_weight:
            del values["adversarial"]
        for name in ("growing", "image_weight", "adversarial_weight", "statistics_images"):
            if not values[name]:
                del values[name]
        if self.contrast == 1:
            del values["contrast"]
        if self.statistics == "tiles":
            del values["statistics"]
        return {**super().identity(limit=limit), **values}


def _by_px(
    name: str,
    given: int | Mapping[int, int],
    edges: tuple[int, ...],
    *,
    default: int = _STAGE_STEPS,
) -> dict[int, int]:
    if isinstance(given, int):
        return dict.fromkeys(edges, given)
    _check_keys(name, given, edges)
    return {px: given.get(px, default) for px in edges}


def _check_keys(name: str, given: Mapping[int, object], edges: tuple[int, ...]) -> None:
    if unknown := [px for px in given if px not in edges]:
        raise DetectorError(
            f"growing.{name} cannot be set for {unknown[0]} px",
            remedy=f"It can be set for {', '.join(map(str, edges)) or 'no resolution'} px.",
        )
