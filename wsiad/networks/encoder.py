"""Encoder: a network by name, with everything that its features depend on but its weights.

The table ``encoders.yaml`` beside this file holds published encoders of pathology and of natural
images. A team can add its own in a file of the same form, ``$WSIAD_ENCODERS/encoders.yaml``.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import pydantic

from wsiad.core.config import Config, build, read_yaml
from wsiad.core.errors import ConfigError
from wsiad.networks.key_formats import KeyFormat

ENCODERS_VARIABLE: Final = "WSIAD_ENCODERS"
"""Environment variable: a folder of encoders' weights, and of a team's table of encoders."""

TABLE: Final = "encoders.yaml"
"""Name of a table of encoders: the one of wsiad, and that of a team."""

RESERVED: Final = frozenset({"auto", "wsiad", "pixels"})
"""Names that are backbones of other kinds."""

Embedding = Literal["cls", "patch_mean", "cls+patch_mean", "places"]
"""Features of a tile: the class token, the mean of the patch tokens, both, or each patch token."""

Precision = Literal["fp32", "bf16", "fp16"]
Filter = Literal["bilinear", "bicubic"]

_NAME = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")
_LARGEST = 1 << 16
_SHARE = 0.2  # by which a scale can differ from that of an encoder

_CONSTITUTIVE: Final = {
    *("name", "network", "arguments", "stem", "projection", "pooler", "positions"),
    *("mean", "std", "px", "resize_px", "filter"),
}

_Text = Annotated[str, pydantic.Field(max_length=500)]
_Sha256 = Annotated[str, pydantic.Field(pattern="^[0-9a-f]{64}$")]
_Count = Annotated[int, pydantic.Field(ge=1)]
_Edge = Annotated[int, pydantic.Field(ge=8, le=4096)]
_Channel = Annotated[float, pydantic.Field(ge=0, le=1)]
_Deviation = Annotated[float, pydantic.Field(gt=0, le=10)]
_Positive = Annotated[float, pydantic.Field(gt=0, le=1000)]


class Transformer(Config):
    """Properties of a vision transformer that weights do not show when they are loaded."""

    heads: _Count
    """Number of attention heads."""
    eps: Annotated[float, pydantic.Field(gt=0, lt=1)]
    """The epsilon of the layer normalisations."""
    activation: Literal["GELU", "SiLU", "QuickGELU"]
    """Activation function, by the name of its class."""
    prefix_tokens: Annotated[int, pydantic.Field(ge=0)]
    """Number of tokens before those of the patches: the class token and the registers."""
    patch_px: _Count
    """Edge of a patch, pixels."""


class AttentionPooler(Config):
    """Attention of one learnt query to all tokens, whose result is the embedding of an image."""

    width: _Count
    """Number of channels of the result."""
    heads: _Count
    """Number of attention heads."""


class Encoder(Config):
    """A network by name, its images, its scale, and its terms."""

    name: Annotated[str, pydantic.Field(pattern=f"^{_NAME.pattern}$", max_length=60)]
    """Name by which the encoder is chosen."""
    aliases: tuple[str, ...] = ()
    """Other names of the encoder."""
    repositories: tuple[str, ...] = ()
    """Repositories of Hugging Face that hold its weights, ORGANISATION/NAME."""
    files: tuple[str, ...] = ("model.safetensors", "pytorch_model.bin")
    """Names of the files of weights in a repository or folder, the preferred ones first."""
    hub_files: tuple[str, ...] = ()
    """Names of the files of weights that torch hub keeps."""
    unwrap: tuple[str, ...] = ()
    """Keys under which a file can hold its state dict."""
    network: str
    """Name of the network in timm."""
    arguments: dict[str, bool | int | float | str] = pydantic.Field(default_factory=dict)
    """Arguments of its constructor. ``mlp_layer`` and ``act_layer`` are names of classes."""
    stem: Literal["patches", "convolutions"] = "patches"
    """First layer: one convolution of patches, or CTransPath's three convolutions."""
    projection: _Count | None = None
    """Number of channels to which the network projects the class token; null if it does not."""
    pooler: AttentionPooler | None = None
    """Attention pooler after the network, whose result stands for the class token."""
    keys: Annotated[tuple[KeyFormat, ...], pydantic.Field(min_length=1)] = ("timm",)
    """Formats of the names in its files."""
    positions: Literal["exact", "network", "bilinear", "bicubic"] = "exact"
    """Rule for position embeddings of another grid than the network's: refuse them, make the
    network for their grid, or resample them (without antialiasing)."""
    parameters: _Count
    """Number of parameters of the network."""
    transformer: Transformer | None = None
    """Properties of a vision transformer, which are checked on the network; null for others."""
    mean: tuple[_Channel, _Channel, _Channel] = (0.485, 0.456, 0.406)
    """Mean of red, green and blue by which its images are normalised."""
    std: tuple[_Deviation, _Deviation, _Deviation] = (0.229, 0.224, 0.225)
    """Standard deviation of red, green and blue by which its images are normalised."""
    px: _Edge = 224
    """Edge of its images, pixels."""
    resize_px: _Edge | None = None
    """Edge to which tiles are resized; if it is larger than px, the centre is cut out. The default
    is px."""
    filter: Filter = "bicubic"
    """Filter by which tiles are resized, with antialiasing."""
    tile_px: _Edge | None = None
    """Edge of the tiles, at its first µm/px, that it was made for. The default is resize_px."""
    mpp: tuple[_Positive, ...] = ()
    """Scales of the tiles that it was made for, µm/px; empty if none are stated."""
    precision: Precision = "fp32"
    """Precision on a GPU."""
    embedding: Embedding = "cls"
    """Recommended features of a tile."""
    dim: _Count
    """Number of channels of the recommended features of a tile."""
    licence: _Text = "not stated"
    """Licence of the weights."""
    gated: bool | None = None
    """True if the weights require an account and accepted terms; null if that is not known."""
    citation: _Text = ""
    """Publication."""
    sha256: tuple[_Sha256, ...] = ()
    """SHA-256 of its known files of weights."""

    @pydantic.field_validator("arguments")
    @classmethod
    def _bounded(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name, one in value.items():
            if isinstance(one, int | float) and not abs(one) <= _LARGEST:
                raise ValueError(f"{name} is not a number from −{_LARGEST} to {_LARGEST}")
        return value

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.resize_px is not None and self.resize_px < self.px:
            raise ValueError("resize_px is smaller than px, so that nothing can be cut out")
        if self.transformer is None and self.embedding in ("cls", "cls+patch_mean"):
            raise ValueError(f"the embedding {self.embedding} needs a transformer")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """All names of the encoder, the first of which is its own."""
        return (self.name, *self.aliases)

    @property
    def resized_px(self) -> int:
        """Edge to which tiles are resized, pixels, before the centre is cut out."""
        return self.resize_px or self.px

    @property
    def own_tile_px(self) -> int:
        """Edge, at its first µm/px, of the tiles that it was made for, pixels."""
        return self.tile_px or self.resized_px

    def constitution(self) -> dict[str, Any]:
        """Return the properties on which features depend but the layers, as JSON values."""
        return self.model_dump(mode="json", include=_CONSTITUTIVE)

    def window_px(self, mpp: float, *, most: int) -> int:
        """Return the edge of the windows to read at a scale, pixels.

        Their field is that of the tiles that the encoder was made for; where the encoder knows
        several scales, at the nearest of them.

        Parameters
        ----------
        mpp : float
            Scale of the tiles, µm/px.
        most : int
            Edge of the tiles, pixels: the largest possible window.
        """
        if not self.mpp:
            return most
        own = min(self.mpp, key=lambda one: max(one / mpp, mpp / one))
        return min(most, round(self.own_tile_px * own / mpp))

    def misfit(self, window_px: int, mpp: float) -> str:
        """Return the reason why windows do not suit its scale; empty if they do.

        The scale of the image that the network receives, after resizing, must be within ±20 % of
        one that the encoder was made for, and the tiles must not be coarser than that.
        """
        if not self.mpp:
            return ""
        seen = mpp * window_px / self.resized_px
        scales = [one for one in self.mpp if one / (1 + _SHARE) <= seen <= one * (1 + _SHARE)]
        known = " or ".join(f"{one:g}" for one in self.mpp)
        if not scales:
            return (
                f"{self.name} is made for {known} µm/px, but windows of {window_px} px at "
                f"{mpp:g} µm/px, resized to {self.resized_px} px, have {seen:.3g} µm/px"
            )
        if mpp > max(scales) * (1 + _SHARE):
            return (
                f"{self.name} is made for {known} µm/px, and tiles at {mpp:g} µm/px would have to "
                "be enlarged: what the encoder looks at is not in them"
            )
        return ""


class Table:
    """Encoders by name.

    Parameters
    ----------
    encoders : iterable of Encoder

    Raises
    ------
    ConfigError
        Two encoders have the same name.
    """

    def __init__(self, encoders: Iterable[Encoder], *, source: str = TABLE) -> None:
        self.encoders = tuple(encoders)
        self._by_name: dict[str, Encoder] = {}
        for encoder in self.encoders:
            for name in encoder.names:
                if name in self._by_name or name in RESERVED:
                    raise ConfigError(
                        f"the name {name!r} is taken",
                        subject=source,
                        remedy="Give the encoder another name.",
                    )
                self._by_name[name] = encoder

    def get(self, name: str) -> Encoder | None:
        """Return the encoder of a name or alias, whatever its case; ``None`` if there is none."""
        return self._by_name.get(name.lower())

    @property
    def names(self) -> list[str]:
        """All names, without aliases."""
        return [encoder.name for encoder in self.encoders]

    def of_sha256(self, sha256: str) -> Encoder | None:
        """Return the encoder that a SHA-256 is known to belong to; ``None`` if it is unknown."""
        return next((one for one in self.encoders if sha256 in one.sha256), None)

    def of_repository(self, repository: str) -> Encoder | None:
        """Return the encoder of a repository, whatever its case; ``None`` if there is none."""
        wanted = repository.lower()
        return next(
            (e for e in self.encoders if wanted in (r.lower() for r in e.repositories)), None
        )

    def owner(self, file_name: str) -> Encoder | None:
        """Return the encoder whose name a file's or a folder's name begins with.

        The longest name counts, and it must end there or before a full stop, hyphen or
        underscore: ``uni2-h.bin`` does not belong to ``uni``.
        """
        lower = file_name.lower()
        best = ""
        for name in self._by_name:
            rest = lower.removeprefix(name)
            if rest != lower and (not rest or rest[0] in "._-") and len(name) > len(best):
                best = name
        return self._by_name[best] if best else None


def table() -> Table:
    """Return wsiad's encoders and those of the team.

    Raises
    ------
    ConfigError
        The team's table, ``$WSIAD_ENCODERS/encoders.yaml``, is not one.
    """
    own = _published()
    folder = encoders_folder()
    path = folder / TABLE if folder else None
    if path is None or not path.is_file():
        return own
    return Table([*own.encoders, *read_table(path)], source=str(path))


def encoders_folder() -> Path | None:
    """Return the folder that ``$WSIAD_ENCODERS`` names; ``None`` if it is not set."""
    value = os.environ.get(ENCODERS_VARIABLE, "")
    return Path(value).expanduser() if value else None


def read_table(path: Path) -> list[Encoder]:
    """Read a table of encoders: a mapping of names to their properties.

    Raises
    ------
    ConfigError
        The file cannot be read or is not such a table; the error names the encoder and the key.
    """
    values = read_yaml(path)
    return [_encoder(name, entry, source=str(path)) for name, entry in values.items()]


@functools.cache
def _published() -> Table:
    return Table(read_table(Path(__file__).parent / TABLE))


def _encoder(name: str, values: Any, *, source: str) -> Encoder:
    where = f"{source}, {name}"
    if not isinstance(values, Mapping):
        raise ConfigError("is not a mapping of properties", subject=where)
    if "name" in values:
        raise ConfigError("has a name twice", subject=where, remedy="Leave out the key name.")
    return build(Encoder, {"name": name, **values}, source=where)
