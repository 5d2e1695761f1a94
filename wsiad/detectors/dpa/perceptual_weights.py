"""Weights of a perceptual network: how it pads, and what a run should say of it."""

from __future__ import annotations

import logging
from typing import Any, cast

from wsiad.core.errors import DetectorError
from wsiad.detectors.dpa.dpa_options import PerceptualOptions
from wsiad.networks import vgg
from wsiad.networks.weights import Weights

logger = logging.getLogger(__name__)

INVERTED = (
    "trained through the network that comes with wsiad, dpa scored tumour of lymph node lower than "
    "healthy tissue (docs/pretrain.md): give VGG19's ImageNet weights by --weights, or use knn"
)
"""Said where a distance is taken in the features of that network."""


def padding_of(options: PerceptualOptions, found: Weights) -> vgg.Padding:
    """Return the padding of the perceptual network: as in the options, or its weights.

    Raises
    ------
    DetectorError
        The weights state one that is not known.
    """
    stated = options.padding or found.metadata.get("padding", "zeros")
    if stated not in ("zeros", "reflect"):
        raise DetectorError(
            f"the weights state the unknown padding {stated!r}",
            subject=found.source,
            remedy="Set padding to zeros or reflect.",
        )
    return cast(vgg.Padding, stated)


def note_of(found: Weights) -> dict[str, Any]:
    """Return what a run should say of its weights, as JSON; warn where results would be bad."""
    note = found.note()
    if found.shipped:
        logger.warning(INVERTED)
        note["warning"] = INVERTED
    return note
