"""What counts as tissue: the options, in µm."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from wsiad.config import Config


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
