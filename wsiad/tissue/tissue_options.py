"""Options of tissue: what counts as such, and which tiles of it are good enough."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field

from wsiad.core.config import Config


class TissueOptions(Config):
    """How tissue is told from glass."""

    mpp: Annotated[float, Field(ge=1, le=64)] = 8.0
    """Scale of the tissue mask, µm/px."""
    saturation_min: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Otsu's threshold on saturation (0 to 1) is never taken below this: an empty slide
    has only noise to split."""
    saturation_max: Annotated[float, Field(ge=0, le=1)] = 0.15
    """Nor above this: a slide that is all tissue has no glass to split off."""
    glass_margin: Annotated[float, Field(gt=0, le=1)] = 0.06
    """Nor further than this above the saturation of the glass: where dark and pale tissue
    lie side by side, Otsu's threshold falls between them."""
    smooth_um: Annotated[float, Field(ge=0)] = 24.0
    """Diameter of the opening that removes dust and the closing that joins tissue, µm."""
    min_area_um2: Annotated[float, Field(ge=0)] = 10_000.0
    """Smaller pieces of tissue are dropped, µm²."""
    max_hole_um2: Annotated[float, Field(ge=0)] = 50_000.0
    """Smaller holes in tissue are filled, µm²."""
    remove_pen: bool = True
    """Leave out pen marks (green, blue, red, black) by their hue."""


class QualityThresholds(Config):
    """Thresholds that a tile must pass to be used; by default none: quality is only recorded."""

    min_sharpness: Annotated[float, Field(ge=0)] | None = None
    """Least variance of the Laplacian, (grey levels)²: below it, tiles are out of focus."""
    min_saturation: Annotated[float, Field(ge=0, le=1)] | None = None
    """Least mean saturation, 0 to 1: below it, tiles are pale or glass."""
    max_pen: Annotated[float, Field(ge=0, le=1)] | None = None
    """Largest share of pixels with the colour of a pen."""
    max_black: Annotated[float, Field(ge=0, le=1)] | None = None
    """Largest share of black pixels: the border of a scan."""

    def thresholds(self) -> QualityThresholds:
        """Return the thresholds alone."""
        return self.part(QualityThresholds)

    @property
    def given(self) -> dict[str, float]:
        """Thresholds that are set, by name."""
        return {k: v for k, v in self.thresholds().model_dump().items() if v is not None}

    def changed_by(self, other: QualityThresholds) -> Self:
        """Return these with the thresholds that are set in ``other`` in their place."""
        return self.model_copy(update=other.given)


class QualityOptions(QualityThresholds):
    """Thresholds that a tile must pass to be used, and what becomes of those that do not."""

    action: Literal["drop", "keep"] = "drop"
    """Treatment of tiles that fail by `wsiad tile`: `drop` counts them and notes their places;
    `keep` stores them too, marked in the column `usable`, which `wsiad train` honours."""
