"""A slide that is prepared for its stream of tiles."""

from wsiad.stain.profile import reference_profile
from wsiad.tiling.plan import plan_slide
from wsiad.tiling.preparation import Preparation

PLAIN = {"stain": {"method": "none"}, "tissue": {"min_area_um2": 100, "smooth_um": 0}}


def prepared(slide, **values):
    options = Preparation.model_validate({"mpp": 0.5, "tile": 32, **PLAIN, **values})
    return plan_slide(slide, options, target=reference_profile(options.stain.method))
