"""A network that tells two classes of tiles apart at every place, trained from end to end."""

from __future__ import annotations

from typing import Self

from torch import Tensor, nn
from torch.nn import functional

from wsiad.networks.features import BackboneFeatures


class PlaceClassifier(nn.Module):
    """A backbone and a linear layer: a logit at every place of its last features.

    The logit of a tile is the mean over its places: that of the mean features, as the layer
    is linear. Batch normalisations keep the statistics that they came with: batches of
    equally many tiles of both classes are not what the network will see.

    Parameters
    ----------
    backbone : BackboneFeatures
        Of one layer; its weights are trained too.
    channels : int
        Of that layer.
    magnify : float
        Enlarge images so many times before the backbone.
    dropout : float
        Share of the mean features that is left out in a step of the training.
    """

    def __init__(
        self, backbone: BackboneFeatures, channels: int, *, magnify: float, dropout: float
    ) -> None:
        super().__init__()
        self.backbone, self.magnify = backbone.requires_grad_(requires_grad=True), magnify
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(channels, 1)

    def train(self, mode: bool = True) -> Self:
        """Train the weights, without the statistics of batch normalisations."""
        super().train(mode)
        self.backbone.eval()
        return self

    def maps(self, images: Tensor) -> Tensor:
        """Return the features (N, C, h, w) of RGB images (N, 3, S, S) in [0, 1]."""
        if self.magnify != 1:
            images = functional.interpolate(images, scale_factor=self.magnify, mode="bilinear")
        return self.backbone.maps(self.backbone.normalised(images))[0].float()

    def vectors(self, images: Tensor) -> Tensor:
        """Return the mean features of each image, (N, C)."""
        return self.maps(images).mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logit of each image, (N,)."""
        logits: Tensor = self.head(self.dropout(self.vectors(images)))[:, 0]
        return logits

    def places(self, images: Tensor, edge: int | None = None) -> Tensor:
        """Return the logits of edge × edge places, (N, edge, edge), or of all there are."""
        found = self.maps(images)
        if edge:
            found = functional.adaptive_avg_pool2d(found, edge)
        return functional.conv2d(found, self.head.weight[:, :, None, None], self.head.bias)[:, 0]
