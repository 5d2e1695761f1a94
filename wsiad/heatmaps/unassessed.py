"""What of a slide was not assessed, as outlines: no finding there means nothing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from wsiad.core.geometry import Box, Size
from wsiad.heatmaps.regions import Region, find_regions
from wsiad.heatmaps.score_map import Heatmap
from wsiad.pictures.overview import Overview, left_out_areas

_LIMIT = 10_000


def unassessed_regions(
    overview: Overview, *, slide_size: Size, bounds: Box, nothing: bool = False
) -> Iterator[tuple[str, Region]]:
    """Outline what was left out of a slide, reason by reason.

    Parameters
    ----------
    overview : Overview
        What was scored and what was not; windows that overlap scored ones are assessed.
    slide_size : Size
        Of level 0, pixels.
    bounds : Box
        Non-empty part of the slide, level-0 pixels.
    nothing : bool
        Whether nothing of the slide could be looked at: all of it is outlined.

    Yields
    ------
    reason : str
        ``"missing"``, or the quality column that tells; pen marks that are left out of
        the tissue are ``"pen"`` too; ``"all"`` of the whole slide.
    region : Region
        Its outline runs along the pixels of the overview's thumbnail (about 8 µm); its
        scores mean nothing.
    """
    shape = (overview.mask.shape[0], overview.mask.shape[1])
    areas = [
        (reason.word, area)
        for reason, area in left_out_areas(overview, shape, overview.placement, overview.pen)
    ]
    if nothing and overview.mask.size:
        areas.append(("all", np.ones(shape, bool)))
    for reason, area in areas:
        marked = Heatmap(
            overview.slide,
            area.astype(np.float32),
            overview.placement,
            slide_size,
            bounds,
            overview.spacing,
        )
        for region in find_regions(marked, threshold=0.5, limit=_LIMIT).kept:
            yield reason, region
