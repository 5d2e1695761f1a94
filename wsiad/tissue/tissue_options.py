"""Options of tissue: what counts as tissue, and which of its tiles are good enough."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field

from wsiad.core.config import Config


class TissueOptions(Config):
    """Options of the tissue mask."""

    mpp: Annotated[float, Field(ge=1, le=64)] = 8.0
    """Scale of the tissue mask, µm/px."""
    saturation_min: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Minimum of Otsu's threshold on saturation (0 to 1): an empty slide has only noise to
    split."""
    saturation_max: Annotated[float, Field(ge=0, le=1)] = 0.15
    """Maximum of Otsu's threshold on saturation: a slide full of tissue has no glass to split."""
    glass_margin: Annotated[float, Field(gt=0, le=1)] = 0.06
    """Maximum of Otsu's threshold above the saturation of the glass: if dark and pale tissue are
    next to each other, the threshold would otherwise separate them."""
    smooth_um: Annotated[float, Field(ge=0)] = 24.0
    """Diameter of the opening that removes dust and of the closing that joins tissue, µm."""
    min_area_um2: Annotated[float, Field(ge=0)] = 10_000.0
    """Minimum area of a piece of tissue, µm²; smaller pieces are dropped."""
    max_hole_um2: Annotated[float, Field(ge=0)] = 50_000.0
    """Maximum area of a hole in tissue that is filled, µm²."""
    remove_pen: bool = True
    """Leave out pen marks (green, blue, red, black) by their hue."""


class QualityThresholds(Config):
    """Thresholds that a tile must pass to be used; by default there are none."""

    min_sharpness: Annotated[float, Field(ge=0)] | None = None
    """Minimum variance of the Laplacian, (grey levels)²; tiles below it are out of focus."""
    min_saturation: Annotated[float, Field(ge=0, le=1)] | None = None
    """Minimum mean saturation, 0 to 1; tiles below it are pale or glass."""
    max_pen: Annotated[float, Field(ge=0, le=1)] | None = None
    """Maximum share of pixels with the colour of a pen, 0 to 1."""
    max_black: Annotated[float, Field(ge=0, le=1)] | None = None
    """Maximum share of black pixels, 0 to 1, as on the border of a scan."""

    def thresholds(self) -> QualityThresholds:
        """Return only the thresholds."""
        return self.part(QualityThresholds)

    @property
    def given(self) -> dict[str, float]:
        """Thresholds that are set, by name."""
        return {k: v for k, v in self.thresholds().model_dump().items() if v is not None}

    def changed_by(self, other: QualityThresholds) -> Self:
        """Return these thresholds, replaced by those that are set in ``other``."""
        return self.model_copy(update=other.given)


class QualityOptions(QualityThresholds):
    """Thresholds that a tile must pass to be used, and the treatment of tiles that fail."""

    action: Literal["drop", "keep"] = "drop"
    """Treatment of tiles that fail, in `wsiad tile`: `drop` counts them and notes their positions;
    `keep` stores them too, marked in the column `usable`, which `wsiad train` obeys."""
