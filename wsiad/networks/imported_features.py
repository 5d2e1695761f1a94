"""The place of a network where features were imported: it states them, and computes none."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from wsiad.core.errors import DetectorError
from wsiad.core.terminal import counted
from wsiad.networks.features import BackboneFeatures
from wsiad.networks.vgg import IMAGENET_MEAN, IMAGENET_STD


class ImportedFeatures(BackboneFeatures):
    """A backbone without a network, whose features another program computed.

    Parameters
    ----------
    backbone : str
        Name of the features, such as ``"features/uni"``.
    """

    def __init__(self, backbone: str) -> None:
        nn.Module.__init__(self)
        self.backbone, self.layers, self.places, self.neighbourhood = backbone, (), 1, 1
        self.padding, self.arguments, self.contrast = "zeros", {}, 1.0
        self.encoder, self.precision = None, "fp32"
        self.network, self.left_off = nn.Module(), []
        self.normalisation = IMAGENET_MEAN, IMAGENET_STD

    def forward(self, images: Tensor) -> Tensor:
        """Refuse images: there is no network.

        Raises
        ------
        DetectorError
            Always.
        """
        raise DetectorError(
            f"reads imported features, and {counted(len(images), 'tile')} of this call without any",
            subject=self.backbone,
            remedy="Pass a store of features of the same encoder, size and µm/px (`wsiad "
            "import-features`).",
        )

    def identity(self) -> dict[str, Any]:
        """Return the name of the features; the rest is not known."""
        return {"backbone": self.backbone}
