"""Which backbone a detector looks through, and with which weights, where that is left open."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from wsiad.core.errors import WeightsError
from wsiad.networks import features, weights
from wsiad.networks.weights import Weights

logger = logging.getLogger(__name__)

AUTO: Final = "auto"
DEFAULT: Final = "squeezenet1_1"

_MARKS = {"features.3.squeeze.weight": DEFAULT, "features.2.weight": "vgg19"}


@dataclass(frozen=True, slots=True)
class Backbone:
    """A network by name, and its weights.

    Parameters
    ----------
    name : str
        As :class:`~wsiad.networks.features.BackboneFeatures` takes it.
    weights : Weights
    """

    name: str
    weights: Weights


def settle(
    name: str, asked: str | None, *, seed: int, arguments: Mapping[str, Any] | None = None
) -> Backbone:
    """Get a backbone and its weights.

    Parameters
    ----------
    name : str
        A network of torchvision or timm, or ``"wsiad"`` for one that ``wsiad pretrain``
        made; ``"auto"`` is what the weights are of: a file's SqueezeNet 1.1, VGG19 (of any
        widths) or network of ``wsiad pretrain``, and without a file ImageNet's SqueezeNet
        1.1, or where that is not at hand the network that comes with wsiad.
    asked : str or None
        See :func:`wsiad.networks.weights.resolve`.
    seed : int
        Of random weights.
    arguments : mapping of str to value, optional
        Of the constructor of a network of timm.

    Raises
    ------
    WeightsError
        The weights are not at hand, or of a network that has to be named.
    """
    if name == AUTO and asked is None:
        try:
            return Backbone(DEFAULT, weights.official(DEFAULT))
        except WeightsError as error:
            logger.warning(weights.NOT_AT_HAND, DEFAULT, error.problem)
            return Backbone(weights.SHIPPED, weights.shipped())
    if name == AUTO and asked not in (weights.RANDOM, weights.IMAGENET):
        found = (
            weights.shipped() if asked == weights.SHIPPED else weights.read_file(Path(asked or ""))
        )
        return Backbone(_recognised(found), found)
    name = DEFAULT if name == AUTO else name
    found = weights.resolve(
        asked,
        model=name,
        random_tensors=lambda: features.random_tensors(name, seed, arguments=arguments),
    )
    return Backbone(name, found)


def _recognised(found: Weights) -> str:
    if found.metadata.get("made_by", "").startswith("wsiad pretrain"):
        return weights.SHIPPED
    for mark, name in _MARKS.items():
        if any(key == mark or key.endswith(f".{mark}") for key in found.tensors):
            return name
    raise WeightsError(
        "are neither of a SqueezeNet 1.1 nor of a VGG19",
        subject=found.source,
        remedy="Name the network that they are of: --option backbone=resnet50, for example.",
    )
