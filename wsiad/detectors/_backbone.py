"""The base of detectors that use a backbone network of torchvision or timm."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeVar

import pydantic

from wsiad.core.errors import DetectorError
from wsiad.learning.detector import DetectorOptions, FitContext, InputSpec
from wsiad.networks import encoder_files
from wsiad.networks.encoder import RESERVED, Encoder, table
from wsiad.networks.encoder_images import check_fingerprint
from wsiad.networks.features import AUTO, BackboneFeatures, Normalisation, settle
from wsiad.networks.weights import Weights

logger = logging.getLogger(__name__)

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
    encoder: Encoder | None = None
    """Properties of the encoder of that name. The default is its entry in the table of encoders."""
    carry_weights: bool | None = None
    """Keep the backbone's weights in the run. By default, a run keeps them only if they are random,
    of torchvision or made by wsiad, and looks for the file of others again when it is loaded."""
    any_mpp: bool = False
    """Allow windows whose scale differs by more than 20 % from those that the encoder is made
    for."""
    backbone_args: dict[str, Argument] = pydantic.Field(default_factory=dict)
    """Arguments of the constructor of a timm network, such as {init_values: 1.0}, or of the
    backbone pixels: {patch: 7, projections: 24, grey: true, seed: 0}."""
    mean: tuple[_Channel, _Channel, _Channel] | None = None
    """Mean of red, green and blue (0 to 1) by which images are normalised, as when the weights were
    trained. Set it together with std. The default is ImageNet's, or for a network of timm the one
    that timm states."""
    std: tuple[_Deviation, _Deviation, _Deviation] | None = None
    """Standard deviation of red, green and blue by which images are normalised; set with mean."""

    inverted_auroc: ClassVar[str] = ""
    """AUROC below 0.5 that was measured with the method's defaults; empty if there is none."""
    scoring_only: ClassVar[frozenset[str]] = DetectorOptions.scoring_only | {
        *("any_mpp", "carry_weights"),
    }

    @pydantic.model_validator(mode="after")
    def _mean_with_std(self) -> Self:
        if (self.mean is None) != (self.std is None):
            raise ValueError("set both mean and std, or neither")
        return self

    def named_encoder(self) -> Encoder | None:
        """Return the encoder that the backbone names; ``None`` if it is another network."""
        if self.encoder is not None or self.backbone in RESERVED:
            return self.encoder
        return table().get(self.backbone)

    def own_input_px(self, *, tile_px: int, mpp: float) -> int | None:
        """Return the edge of the windows that suit the encoder; ``None`` for other networks."""
        encoder = self.named_encoder()
        return encoder.window_px(mpp, most=tile_px) if encoder else None

    def for_encoder(self, encoder: Encoder, names: Sequence[str]) -> dict[str, Any]:
        """Return the options that depend on the encoder, with its name and properties.

        Parameters
        ----------
        encoder : Encoder
        names : sequence of str
            Names of its weights; empty before they are read.

        Raises
        ------
        DetectorError
            An option is set that the encoder decides.
        """
        for name, value in (("mean", self.mean), ("backbone_args", self.backbone_args)):
            if value:
                raise DetectorError(
                    f"{name} is not for the encoder {encoder.name}, which states its own",
                    remedy="Leave it out.",
                )
        return {"backbone": encoder.name, "encoder": encoder}

    def known_inverted(self) -> str:
        """Return the measurement in which these options were inverted; empty if there is none."""
        if not self.inverted_auroc or self.backbone not in (AUTO, "squeezenet1_1"):
            return ""
        return (
            "through SqueezeNet, tumour of lymph node scored lower than healthy tissue (AUROC "
            f"{self.inverted_auroc}, docs/detector-figures.md)"
        )

    def normalisation(self) -> Normalisation | None:
        """Return mean and deviation, or ``None`` if they are not set."""
        return (self.mean, self.std) if self.mean and self.std else None


O = TypeVar("O", bound=BackboneOptions)  # noqa: E741


def settled(
    options: O, context: FitContext, spec: InputSpec, *, trained: bool = False
) -> tuple[O, Weights]:
    """Return options with the backbone that is used, and its weights.

    Parameters
    ----------
    options : BackboneOptions
    context : FitContext
    spec : InputSpec
    trained : bool
        True if the backbone is trained further.

    Raises
    ------
    WeightsError
        The weights are not on this machine, or of a network that has to be named.
    DetectorError
        The windows do not suit the scale of an encoder, or an option does not suit it.
    """
    encoder = options.named_encoder()
    if encoder is not None:
        options.for_encoder(encoder, ())  # what is refused is refused before a long reading
        why = encoder.misfit(spec.size, spec.mpp)
        if why and not options.any_mpp:
            raise DetectorError(
                why,
                remedy="Tile at another --mpp, set --option input_px, or allow it with "
                "--option any_mpp=true.",
            )
    chosen = settle(
        options.backbone,
        context.weights,
        seed=context.seed,
        arguments=options.backbone_args,
        encoder=encoder,
        trained=trained,
    )
    update: dict[str, Any] = {"backbone": chosen.name}
    if encoder is not None:
        update = options.for_encoder(encoder, list(chosen.weights.tensors))
    return options.model_copy(update=update), chosen.weights


def about(
    found: Weights, backbone: BackboneFeatures, options: BackboneOptions, *, edge: int
) -> dict[str, Any]:
    """Return the facts about its backbone that a run records, as JSON values.

    The normalisation is included if a later timm might state another one for the name. Where the
    run does not hold the weights, or they are an encoder's, a fingerprint of the features is, so
    that a change of the network is noticed.

    Parameters
    ----------
    found : Weights
    backbone : BackboneFeatures
    options : BackboneOptions
        Options of :func:`settled`.
    edge : int
        Edge of the images, pixels.
    """
    note, name = found.note(), options.backbone
    if backbone.left_off:
        note["left_off"] = f"its classifier: {len(backbone.left_off)} keys"
    values: dict[str, Any] = {"weights": note, "backbone": name}
    if name.startswith("timm/"):
        mean, std = backbone.normalisation
        values["normalisation"] = {"mean": list(mean), "std": list(std)}
    kept = encoder_files.is_open(found) if options.carry_weights is None else options.carry_weights
    kept = kept or not Path(found.source).is_file()
    if not kept:
        path = Path(found.source).absolute()
        note |= {"carried": False, "source": str(path)}
        logger.warning(
            "the run will not hold the weights of %s, and needs %s (SHA-256 %s) wherever it is "
            "used; to keep them in the run, set --option carry_weights=true",
            *(name, path, found.sha256),
        )
    elif found.licence:
        logger.warning("the run holds the weights of %s: %s", name, found.licence)
    if options.encoder or not kept:
        values |= {"precision": backbone.precision, "fingerprint": backbone.fingerprint(edge)}
    return values


def carried(values: Mapping[str, Any]) -> bool:
    """Tell whether a run holds the weights of its backbone, by its recorded facts."""
    note = values.get("weights")
    return not isinstance(note, Mapping) or note.get("carried") is not False


def found_again(options: BackboneOptions, values: Mapping[str, Any]) -> Weights | None:
    """Return the weights that a run needs and does not hold; ``None`` if it holds them.

    Raises
    ------
    WeightsError
        Their file is not on this machine, or has changed.
    """
    if carried(values):
        return None
    note = values["weights"]
    return encoder_files.again(options.encoder, str(note.get("source")), str(note.get("sha256")))


def check_same(backbone: BackboneFeatures, values: Mapping[str, Any], *, edge: int) -> None:
    """Check that a loaded backbone gives the features of the training.

    Raises
    ------
    WeightsError
        Its features of the built-in picture are others.
    """
    was, precision = values.get("fingerprint"), values.get("precision")
    if not isinstance(was, list) or precision not in ("fp32", "bf16", "fp16"):
        return  # of a run that needs none, or of an older one
    check_fingerprint(
        was,
        backbone.fingerprint(edge),
        subject=str(values.get("backbone")),
        precisions=(precision, backbone.precision),
    )


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
