"""The preparation of a slide: the options that a store, a run and a heatmap must share."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from wsiad.core.config import Config
from wsiad.stain.profile import StainMethod
from wsiad.tissue.tissue_options import QualityOptions, TissueOptions


class StainOptions(Config):
    """Options of the stain normalisation; see docs/stain.md."""

    method: StainMethod = "vahadane"
    """Method of the stain normalisation, fitted once per slide."""
    target: Path | None = None
    """Image or slide to whose stains all slides are normalised; by default a documented matrix."""
    sample_px: Annotated[int, Field(ge=16_384)] = 2_000_000
    """Number of tissue pixels, at the tiles' scale, from which the stains are estimated."""


class CompressionOptions(Config):
    """Compression of a store's pixels; see docs/store-format.md."""

    codec: Literal["zstd", "none", "jpeg", "jpeg-xl"] = "zstd"
    """Codec: `zstd` and `none` are lossless; `jpeg` and `jpeg-xl` are lossy and state the error."""
    level: Annotated[int, Field(ge=-50, le=19)] = -20
    """Level of `zstd`; higher is smaller and slower."""
    quality: Annotated[int, Field(ge=1, le=100)] = 95
    """Compression quality of `jpeg` (4:4:4) and `jpeg-xl`, 1 to 100."""

    @property
    def lossy(self) -> bool:
        """True if the codec changes pixels."""
        return self.codec in ("jpeg", "jpeg-xl")

    def of_pixels(self) -> dict[str, object]:
        """Return the options that decide the pixels, as JSON values; empty if lossless."""
        return {"codec": self.codec, "quality": self.quality} if self.lossy else {}

    def facts(self) -> dict[str, object]:
        """Return the compression, without the options of other codecs, as JSON values."""
        if self.lossy:
            return self.of_pixels()
        return {"codec": self.codec} | ({"level": self.level} if self.codec == "zstd" else {})


class PictureOptions(Config):
    """Preparation of pictures that are not tiles of slides: grey, larger, or pale ones."""

    grey_values: tuple[float, float] | None = None
    """Two sample values of grey pictures that mean black and white, such as 0 and 255, or 0 and
    4095 for 12 bits in 16. Required for grey pictures; values beyond them are refused."""
    resize: Annotated[int, Field(ge=8, le=4096)] | None = None
    """Scale each picture so that its shorter edge has so many pixels."""
    crop: Annotated[int, Field(ge=8, le=4096)] | None = None
    """Cut the central square of this edge, pixels, out of each picture, after `resize`."""
    clahe: Annotated[float, Field(gt=0, le=100)] | None = None
    """Equalise the contrast of each tile in 8 × 8 parts (CLAHE); the value limits how much, such
    as 2. Of coloured tiles only the lightness is changed."""

    @model_validator(mode="after")
    def _black_is_not_white(self) -> Self:
        if self.grey_values and self.grey_values[0] == self.grey_values[1]:
            raise ValueError("the two `grey_values` are the same")
        return self

    def pictures(self) -> PictureOptions | None:
        """Return these options without a verb's own fields; ``None`` if none is set."""
        own = self.part(PictureOptions)
        return None if own == PictureOptions() else own


class TilingOptions(Config):
    """Options that lead from a slide to normalised tiles."""

    mpp: Annotated[float, Field(gt=0, le=64)]
    """Scale of the tiles, µm/px."""
    tile: Annotated[int, Field(ge=8, le=4096)]
    """Edge of the square tiles, pixels at the tiles' µm/px."""
    stride: Annotated[int, Field(ge=1)] | None = None
    """Step from tile to tile, pixels at the tiles' µm/px; by default the tile's edge."""
    min_coverage: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Minimum share of a tile that must be tissue, 0 to 1."""
    slide_mpp: Annotated[float, Field(gt=0)] | None = None
    """µm/px of level 0 for slides that state none."""
    allow_upsampling: bool = False
    """Accept slides that are coarser than the tiles' scale by more than 2 %."""
    tissue: TissueOptions = TissueOptions()
    """Options of the tissue mask."""
    stain: StainOptions = StainOptions()
    """Options of the stain normalisation."""
    quality: QualityOptions = QualityOptions()
    """Quality thresholds of the tiles; see docs/quality.md."""
    decode: Literal["full", "scaled"] = "full"
    """`scaled` lets the JPEG decoder scale down by 2 or 4 where the tiles' scale is so much coarser
    than the slide's next finer level: faster, with other pixels (by 0.1 to 1.6 grey levels in the
    mean, docs/performance.md). Slides on which it would do nothing are refused. Heatmaps decode
    as the store of their run."""
    damaged_tiles: Literal["fail", "skip"] = "fail"
    """Treatment of a damaged part of a slide's file: `fail` fails the slide; `skip` leaves out the
    tiles in that part, counts them and shows them as not assessed."""

    @model_validator(mode="after")
    def _stride_leaves_no_gaps(self) -> Self:
        if self.stride is not None and self.stride > self.tile:
            raise ValueError(
                f"a stride of {self.stride} px leaves gaps between tiles of {self.tile} px: set "
                f"{self.tile} or less"
            )
        return self

    @property
    def step(self) -> int:
        """Step from tile to tile, pixels."""
        return self.stride or self.tile

    def preparation(self) -> Preparation:
        """Return the part that decides the pixels, without a verb's own fields."""
        return Preparation(**{key: getattr(self, key) for key in TilingOptions.model_fields})


class Preparation(TilingOptions):
    """Options that lead from a slide, or from pictures, to tiles, as a store keeps them."""

    pictures: PictureOptions | None = None
    """Preparation of imported pictures."""

    @model_serializer(mode="wrap")
    def _without_unused(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out `pictures` if there are none: stores of slides stay the same, to the byte."""
        values: dict[str, Any] = whole(self)
        if values.get("pictures") is None:
            values.pop("pictures", None)
        return values

    def preparation(self) -> Preparation:
        """Return the preparation without other fields."""
        return self.part(Preparation)

    def as_json(self) -> dict[str, Any]:
        """Return the preparation as JSON values, as a store and a run keep it.

        `quality` is left out if no threshold is set, and `decode` if it is ``"full"``, so that
        results of versions without them stay the same, to the byte. `damaged_tiles` is left out
        because it decides whether a slide is used, not what its pixels are.
        """
        values = self.preparation().model_dump(mode="json", exclude={"damaged_tiles"})
        if not self.quality.given:
            del values["quality"]
        if self.decode == "full":
            del values["decode"]
        return values

    def digest(
        self, target: dict[str, object], *, compression: CompressionOptions | None = None
    ) -> str:
        """Return a digest of the preparation together with the stain target's content.

        Parameters
        ----------
        target : dict
            Stain profile of the target as JSON values, because its file may move or change.
        compression : CompressionOptions, optional
            Compression, which counts only if it changes pixels.
        """
        values = self.as_json()
        values["stain"]["target"] = target
        if compression is not None and compression.lossy:
            values["compression"] = compression.of_pixels()
        text = json.dumps(values, sort_keys=True)
        return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
