"""Which layers of a backbone a method looks at, where the user does not say."""

from __future__ import annotations

from dataclasses import dataclass

Layers = tuple[str, ...]
"""Names of modules of a network, from the finest."""


@dataclass(frozen=True, slots=True)
class DefaultLayers:
    """A method's choice of layers, by backbone.

    Parameters
    ----------
    squeezenet1_0, squeezenet1_1, vgg19, wsiad : tuple of str
        Of the networks of these names; the last is the one that comes along.
    others : tuple of str
        Of all others: stages of a residual network.
    """

    squeezenet1_0: Layers
    squeezenet1_1: Layers
    vgg19: Layers
    wsiad: Layers
    others: Layers

    def of(self, backbone: str) -> Layers:
        """Return the layers of a backbone."""
        named = {
            "squeezenet1_0": self.squeezenet1_0,
            "squeezenet1_1": self.squeezenet1_1,
            "vgg19": self.vgg19,
            "wsiad": self.wsiad,
        }
        return named.get(backbone, self.others)


FINE = DefaultLayers(
    squeezenet1_0=("features.4",),
    squeezenet1_1=("features.4",),
    vgg19=("features.12",),
    wsiad=("features.12",),
    others=("layer1", "layer2"),
)
"""SqueezeNet's second Fire module, relu3_2 of a VGG19, or the first two residual stages."""

TWO_DEPTHS = DefaultLayers(
    squeezenet1_0=("features.5", "features.10"),
    squeezenet1_1=("features.4", "features.7"),
    vgg19=("features.17", "features.26"),
    wsiad=("features.17", "features.26"),
    others=("layer2", "layer3"),
)
"""The ends of SqueezeNet's first two resolutions and of those of a VGG19 that are as coarse, or
the second and third residual stages."""

THREE_DEPTHS = DefaultLayers(
    squeezenet1_0=("features.5", "features.10", "features.12"),
    squeezenet1_1=("features.4", "features.7", "features.12"),
    vgg19=("features.8", "features.17", "features.26"),
    wsiad=("features.8", "features.17", "features.26"),
    others=("layer1", "layer2", "layer3"),
)
"""The ends of three resolutions, or the first three residual stages."""

MIDDLE = DefaultLayers(
    squeezenet1_0=("features.7", "features.10"),
    squeezenet1_1=("features.7", "features.10"),
    vgg19=("features.17", "features.26"),
    wsiad=("features.17", "features.26"),
    others=("layer2", "layer3"),
)
"""Two layers from the middle of the network on."""

CODED = DefaultLayers(
    squeezenet1_0=THREE_DEPTHS.squeezenet1_0[:2],
    squeezenet1_1=THREE_DEPTHS.squeezenet1_1[:2],
    vgg19=THREE_DEPTHS.vgg19[:2],
    wsiad=THREE_DEPTHS.wsiad[:2],
    others=THREE_DEPTHS.others,
)
"""As many of :data:`THREE_DEPTHS` as one small code can hold."""

DEEPEST = DefaultLayers(
    squeezenet1_0=("features.12",),
    squeezenet1_1=("features.12",),
    vgg19=("features.35",),
    wsiad=("features.26",),
    others=("layer4",),
)
"""The last block before the classifier, or the last residual stage."""
