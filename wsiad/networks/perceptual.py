"""The relative perceptual L1 distance of images, used as loss and as anomaly score."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from wsiad.core.errors import DetectorError
from wsiad.networks.channel_moments import ChannelMoments
from wsiad.networks.vgg import Vgg19

_IMAGE_PLACE_PX = 8  # of a place where there are only pixels: that of relu4_2
_LEAST_SIZE = 1e-8  # only features that are all equal to the mean come below it

Relative = Literal["tile", "place"]


@dataclass(frozen=True, slots=True)
class ChannelStatistics:
    """Mean and standard deviation of every channel of a layer, float32 (C,)."""

    mean: Tensor
    std: Tensor


class RelativePerceptualL1(nn.Module):
    r"""Distance of a reconstruction to its original in the features of a network.

    With :math:`\hat f = (f - \mu_c) / \sigma_c` and the means over channels and places

    .. math:: L(x, y) = \frac{\mathrm{mean}\,|\hat f(x) - \hat f(y)|}
                             {\mathrm{mean}\,|\hat f(x)|},

    where the denominator belongs to the original *x* and carries no gradient. Several layers
    are averaged by their weights. ``image_weight`` times the mean absolute difference of the
    pixels can be added; without layers it is the only term.

    Parameters
    ----------
    network : Vgg19 or None
        Frozen feature extractor; ``None`` without layers.
    statistics : mapping of str to ChannelStatistics
        :math:`\mu_c` and :math:`\sigma_c` of every layer.
    layer_weights : mapping of str to float
        Layers and their weights.
    relative : {"tile", "place"}
        ``"tile"`` divides by the mean over the tile, as published; ``"place"`` divides
        at each place by the mean over channels there, and averages the ratios.
    image_weight : float
        Weight of the difference of pixels; 0 leaves it out.
    bf16 : bool
        Compute the features of CUDA tensors in bfloat16.

    Raises
    ------
    DetectorError
        A weight is not positive, or there is nothing to compare by.

    Notes
    -----
    Shvetsova et al., IEEE Access 2021 (arXiv 2006.13265), equations 1 and 2. A channel that
    never changes over the tiles of the statistics (its standard deviation is 0) is shifted but
    not scaled.
    """

    def __init__(
        self,
        network: Vgg19 | None,
        statistics: Mapping[str, ChannelStatistics],
        layer_weights: Mapping[str, float],
        *,
        relative: Relative = "tile",
        image_weight: float = 0.0,
        bf16: bool = False,
    ) -> None:
        super().__init__()
        total = sum(layer_weights.values())
        if min(*layer_weights.values(), image_weight, 0) < 0 or not (total or image_weight):
            raise DetectorError("the weights of the perceptual layers must be positive")
        if total and network is None:
            raise DetectorError("perceptual layers need a network")
        self.network = network
        self.relative = relative
        self.image_weight = image_weight
        self.bf16 = bf16
        self.statistics = dict(statistics)
        self._shares = {layer: weight / total for layer, weight in layer_weights.items()}
        for layer in layer_weights:
            mean, std = statistics[layer].mean, statistics[layer].std
            scale = torch.where(std > 0, std, torch.ones_like(std))
            self.register_buffer(f"mean_{layer}", mean.float().view(1, -1, 1, 1))
            self.register_buffer(f"scale_{layer}", scale.float().view(1, -1, 1, 1))

    def forward(self, original: Tensor, reconstruction: Tensor) -> Tensor:
        """Return the distance of each image.

        Parameters
        ----------
        original, reconstruction : Tensor, float (N, 3, H, W)
            RGB in [−1, 1]; the reconstruction can exceed this range and is not clamped.

        Returns
        -------
        Tensor, float32 (N,)
        """
        maps = self._maps(original, reconstruction)
        total = torch.zeros((), device=original.device)
        for layer, share in self._shares.items():
            total = total + share * maps[layer].mean(dim=(1, 2))
        if self.image_weight:
            difference = (original - reconstruction).abs()
            total = total + self.image_weight * difference.mean(dim=(1, 2, 3))
        return total

    def places(self, original: Tensor, reconstruction: Tensor) -> Tensor:
        """Return the distance at each place; its mean over places is :meth:`forward`.

        Finer layers are averaged down to the grid of the coarsest one. If only pixels are
        compared, a place has an edge of 8 px, or less, so that complete places fill the image.

        Returns
        -------
        Tensor, float32 (N, m, m)
        """
        maps = self._maps(original, reconstruction)
        edge = original.shape[-1]
        alone = edge // math.gcd(edge, _IMAGE_PLACE_PX)
        coarsest = min((m.shape[-1] for m in maps.values()), default=alone)
        total = torch.zeros((), device=original.device)
        for layer, share in self._shares.items():
            pooled = nn.functional.adaptive_avg_pool2d(maps[layer][:, None], coarsest)
            total = total + share * pooled[:, 0]
        if self.image_weight:
            difference = (original - reconstruction).abs().mean(dim=1, keepdim=True)
            pooled = nn.functional.adaptive_avg_pool2d(difference, coarsest)
            total = total + self.image_weight * pooled[:, 0]
        return total

    @property
    def layers(self) -> tuple[str, ...]:
        """Perceptual layers that are compared; empty if only pixels are."""
        return tuple(self._shares)

    def averages(self, images: Tensor) -> Tensor:
        """Return the normalised features of images in [−1, 1], averaged over their places.

        The vectors of the layers follow each other. Each is scaled by the layer's weight over
        the root of its channels, so that wide layers do not dominate a Euclidean distance.

        Returns
        -------
        Tensor, float32 (N, D)
            Vectors with D channels, those of all layers.
        """
        features = self._features(images)
        return torch.cat(
            [
                features[layer].mean(dim=(2, 3)) * (share / math.sqrt(features[layer].shape[1]))
                for layer, share in self._shares.items()
            ],
            dim=1,
        )

    def _maps(self, original: Tensor, reconstruction: Tensor) -> dict[str, Tensor]:
        if not self._shares:
            return {}
        with torch.no_grad():
            reference = self._features(original)
        found = self._features(reconstruction)
        maps: dict[str, Tensor] = {}
        for layer in self._shares:
            size = reference[layer].abs().mean(dim=1)
            if self.relative == "tile":
                size = size.mean(dim=(1, 2), keepdim=True)
            difference = (reference[layer] - found[layer]).abs().mean(dim=1)
            maps[layer] = difference / size.clamp_min(_LEAST_SIZE)
        return maps

    def _features(self, images: Tensor) -> dict[str, Tensor]:
        """Return the channel-normalised features of images in [−1, 1], float32."""
        assert self.network is not None
        with torch.autocast(
            images.device.type, dtype=torch.bfloat16, enabled=self.bf16 and images.is_cuda
        ):
            features = self.network(images * 0.5 + 0.5)
        return {
            layer: (features[layer].float() - self.get_buffer(f"mean_{layer}"))
            / self.get_buffer(f"scale_{layer}")
            for layer in self._shares
        }


@torch.no_grad()
def channel_statistics(network: Vgg19, batches: Iterable[Tensor]) -> dict[str, ChannelStatistics]:
    """Return mean and (population) standard deviation of every channel over all places.

    Parameters
    ----------
    network : Vgg19
        Feature extractor; the statistics are those of its layers.
    batches : iterable of Tensor, float (N, 3, H, W)
        RGB in [0, 1], on the network's device.

    Raises
    ------
    DetectorError
        There is no batch, or a feature is not finite.
    """
    moments = {layer: ChannelMoments() for layer in network.layers}
    for images in batches:
        for layer, features in network(images).items():
            moments[layer].add(features)
    found = {layer: ChannelStatistics(*each.found()) for layer, each in moments.items()}
    for layer, one in found.items():
        if not bool(torch.isfinite(one.mean).all() and torch.isfinite(one.std).all()):
            raise DetectorError(f"the features of {layer} are not finite; the weights are damaged")
    return found
