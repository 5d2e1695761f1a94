"""The base of detectors that use a backbone network of torchvision or timm."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Self, TypeVar

import pydantic

from wsiad.learning.detector import DetectorOptions, FitContext
from wsiad.networks.features import AUTO, BackboneFeatures, Normalisation, settle
from wsiad.networks.weights import Weights

_FLOAT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")
_LARGEST = 1 << 16


def _argument(value: Any) -> Any:
    """Check a value that YAML can hold; accept ``1e-5``, though YAML requires ``1.0e-5``."""
    if isinstance(value, str):
        return float(value) if _FLOAT.fullmatch(value) else value
    for part in value if isinstance(value, list | tuple) else [value]:
        if part is not None and not isinstance(part, bool | int | float):
            raise ValueError("is neither a number, a text, true, false nor a list of numbers")
        if part is not None and not abs(part) <= _LARGEST:
            raise ValueError(f"is not a number from −{_LARGEST} to {_LARGEST}")
    return value


Argument = Annotated[Any, pydantic.BeforeValidator(_argument)]
_Channel = Annotated[float, pydantic.Field(ge=0, le=1)]
_Deviation = Annotated[float, pydantic.Field(gt=0, le=10)]


class BackboneOptions(DetectorOptions):
    """Options of every detector with a backbone: its network and the images that it receives."""

    backbone: str = AUTO
    """Backbone network, as :func:`wsiad.networks.features.settle` accepts it."""
    backbone_args: dict[str, Argument] = pydantic.Field(default_factory=dict)
    """Arguments of the constructor of a timm network, such as {init_values: 1.0}."""
    mean: tuple[_Channel, _Channel, _Channel] | None = None
    """Mean of red, green and blue (0 to 1) by which images are normalised, as when the weights were
    trained. Set it together with std. The default is ImageNet's, or for a network of timm the one
    that timm states."""
    std: tuple[_Deviation, _Deviation, _Deviation] | None = None
    """Standard deviation of red, green and blue by which images are normalised; set with mean."""

    @pydantic.model_validator(mode="after")
    def _mean_with_std(self) -> Self:
        if (self.mean is None) != (self.std is None):
            raise ValueError("set both mean and std, or neither")
        return self

    def normalisation(self) -> Normalisation | None:
        """Return mean and deviation, or ``None`` if they are not set."""
        return (self.mean, self.std) if self.mean and self.std else None


O = TypeVar("O", bound=BackboneOptions)  # noqa: E741


def settled(options: O, context: FitContext) -> tuple[O, Weights]:
    """Return options with the backbone that is used, and its weights.

    Raises
    ------
    WeightsError
        The weights are not on this machine, or of a network that has to be named.
    """
    chosen = settle(
        options.backbone, context.weights, seed=context.seed, arguments=options.backbone_args
    )
    return options.model_copy(update={"backbone": chosen.name}), chosen.weights


def about(found: Weights, backbone: BackboneFeatures, *, name: str) -> dict[str, Any]:
    """Return the facts about its backbone that a run records, as JSON values.

    The normalisation is included if a later timm might state another one for the name.
    """
    note = found.note()
    if backbone.left_off:
        note["left_off"] = f"its classifier: {len(backbone.left_off)} keys"
    values: dict[str, Any] = {"weights": note, "backbone": name}
    if name.startswith("timm/"):
        mean, std = backbone.normalisation
        values["normalisation"] = {"mean": list(mean), "std": list(std)}
    return values


def restored(options: O, values: Mapping[str, Any]) -> O:
    """Return options with the backbone and the normalisation that a run recorded.

    Raises
    ------
    ValueError, TypeError
        The record is not a valid backbone or normalisation.
    """
    update: dict[str, Any] = {"backbone": values.get("backbone", options.backbone)}
    if (stated := values.get("normalisation")) is not None:
        for key in ("mean", "std"):
            red, green, blue = map(float, stated[key])
            update[key] = (red, green, blue)
    return options.model_copy(update=update)
