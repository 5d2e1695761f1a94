"""How a slide is prepared: the options that a store, a run and a heatmap must share."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from wsiad.core.config import Config
from wsiad.stain.profile import StainMethod
from wsiad.tissue.tissue_options import QualityOptions, TissueOptions


class StainOptions(Config):
    """Stain normalisation; see docs/stain.md."""

    method: StainMethod = "vahadane"
    """Method, fitted once per slide."""
    target: Path | None = None
    """Image or slide whose stains all slides are given; by default a documented matrix."""
    sample_px: Annotated[int, Field(ge=16_384)] = 2_000_000
    """Tissue pixels, at the tiles' scale, that the stains are estimated from."""


class CompressionOptions(Config):
    """How a store keeps its pixels; see docs/store-format.md."""

    codec: Literal["zstd", "none", "jpeg", "jpeg-xl"] = "zstd"
    """`zstd` and `none` keep every pixel; `jpeg` and `jpeg-xl` do not, and state their error."""
    level: Annotated[int, Field(ge=-50, le=19)] = -20
    """Level of zstd: higher is smaller and slower."""
    quality: Annotated[int, Field(ge=1, le=100)] = 95
    """Quality of `jpeg` (4:4:4) and `jpeg-xl`, up to 100."""

    @property
    def lossy(self) -> bool:
        """Whether pixels are not what they were."""
        return self.codec in ("jpeg", "jpeg-xl")

    def of_pixels(self) -> dict[str, object]:
        """Return what decides the pixels, as JSON values: nothing if they are kept."""
        return {"codec": self.codec, "quality": self.quality} if self.lossy else {}

    def facts(self) -> dict[str, object]:
        """Return what was done, without the options of other codecs, as JSON values."""
        if self.lossy:
            return self.of_pixels()
        return {"codec": self.codec} | ({"level": self.level} if self.codec == "zstd" else {})


class Preparation(Config):
    """From slide to normalised tiles."""

    mpp: Annotated[float, Field(gt=0, le=64)]
    """Scale of the tiles, µm/px."""
    tile: Annotated[int, Field(ge=8, le=4096)]
    """Edge of the square tiles, pixels at that scale."""
    stride: Annotated[int, Field(ge=1)] | None = None
    """Step from tile to tile, pixels at that scale; by default the tile's edge."""
    min_coverage: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Least share of a tile that is tissue."""
    slide_mpp: Annotated[float, Field(gt=0)] | None = None
    """µm/px of level 0 for slides that state none."""
    allow_upsampling: bool = False
    """Accept slides that are coarser than the tiles' scale by more than 2 %."""
    tissue: TissueOptions = TissueOptions()
    """How tissue is told from glass."""
    stain: StainOptions = StainOptions()
    """How stains are made alike."""
    quality: QualityOptions = QualityOptions()
    """Which tiles are too bad to be used; see docs/quality.md."""
    damaged_tiles: Literal["fail", "skip"] = "fail"
    """Effect of a damaged part of a slide's file: the slide fails; or the tiles that lie in it
    are left out, counted and shown as not assessed."""

    @model_validator(mode="after")
    def _stride_leaves_no_gaps(self) -> Self:
        if self.stride is not None and self.stride > self.tile:
            raise ValueError(
                f"a stride of {self.stride} px leaves gaps between tiles of {self.tile}"
            )
        return self

    @property
    def step(self) -> int:
        """Step from tile to tile, pixels."""
        return self.stride or self.tile

    def preparation(self) -> Preparation:
        """Return the part that decides what the pixels are, without a verb's own fields."""
        return self.part(Preparation)

    def as_json(self) -> dict[str, Any]:
        """Return the preparation as JSON values, as a store and a run keep it.

        Without `quality` where no threshold is set: what was made before there were
        thresholds then stays what it is, to the byte. Without `damaged_tiles`, which decides
        whether a slide is there, not what its pixels are.
        """
        values = self.preparation().model_dump(mode="json", exclude={"damaged_tiles"})
        if not self.quality.given:
            del values["quality"]
        return values

    def digest(
        self, target: dict[str, object], *, compression: CompressionOptions | None = None
    ) -> str:
        """Identify the preparation together with the stain target's content.

        Parameters
        ----------
        target : dict
            The target's stain profile as JSON values: its file may move or change.
        compression : CompressionOptions, optional
            Counts only where it changes pixels.
        """
        values = self.as_json()
        values["stain"]["target"] = target
        if compression is not None and compression.lossy:
            values["compression"] = compression.of_pixels()
        text = json.dumps(values, sort_keys=True)
        return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
