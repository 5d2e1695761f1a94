"""List each lesion with its size, whether it was hit, and the false positives that cost.

The size of a lesion is its longest axis as the protocols measure it, minus the :data:`MERGE_UM`
by which they widen a region. The limit of 275 µm for isolated tumour cells is then the 0.2 mm of
the AJCC. Its limit between micro- and macrometastases is 2 mm (AJCC Cancer Staging Manual, 8th
edition, 2017, breast).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from wsiad.core.csv_file import table_text
from wsiad.core.files import write_text
from wsiad.core.geometry import Microns, SquareMicrons
from wsiad.evaluation.froc import Pool
from wsiad.evaluation.matching import (
    MERGE_UM,
    PROTOCOLS,
    Detections,
    EvaluationMask,
    ProtocolName,
    SlideHits,
    region_outlines,
)

LesionClass = Literal["macro", "micro", "itc"]

CLASSES: tuple[LesionClass, ...] = ("macro", "micro", "itc")

MACRO_UM = Microns(2000.0)
"""Lesions larger than this, µm, are macrometastases."""

CLASS_RULE = (
    "size: longest axis of the region (of the ellipse with its second moments) less the 75 µm by "
    "which the protocol widens it; itc: below 275 µm before that is taken off, the protocol's own "
    "rule; macro: above 2 mm; micro: between (AJCC's sizes)"
)

COLUMNS = (
    "protocol",
    "slide",
    "lesion",
    "class",
    "size_um",
    "axis_um",
    "tumour_um2",
    "x",
    "y",
    "hit",
    "score",
    "rank",
    "false_positives_on_slide",
    "false_positives_per_slide",
)
"""Columns of ``lesions.csv``."""


@dataclass(frozen=True, slots=True)
class Lesion:
    """Tumour region of a slide, by one protocol.

    Parameters
    ----------
    number : int
        Number of the region on its slide, from 1 in reading order.
    kind : str
        ``"macro"``, ``"micro"`` or ``"itc"``.
    axis_um : Microns
        Longest axis as the protocol measures it, after widening.
    tumour : SquareMicrons
        Area of the outlined tumour in the region, µm².
    x, y : float
        Centroid, level-0 pixels; that of a crescent may be outside the region.
    score : float or None
        Highest confidence on the region; ``None`` if it was missed.
    rank : int or None
        Rank of that detection among all on the slide, from 1; equal ones share the lowest.
    outline : ndarray of float64, (N, 2)
        Outline after widening, x and y in level-0 pixels: a detection within it is a hit.
    """

    number: int
    kind: LesionClass
    axis_um: Microns
    tumour: SquareMicrons
    x: float
    y: float
    score: float | None
    rank: int | None
    outline: npt.NDArray[np.float64]

    @property
    def size_um(self) -> Microns:
        """Longest axis minus the distance by which the region was widened; never below 0."""
        return Microns(max(self.axis_um - MERGE_UM, 0.0))


def list_lesions(
    truth: EvaluationMask | None,
    hits_with_itc: SlideHits,
    detections: Detections,
    *,
    downsample: float,
    pixel_um: float,
) -> tuple[Lesion, ...]:
    """List the tumour regions of a slide with the best detection on each.

    Parameters
    ----------
    truth : EvaluationMask or None
        Regions of the slide; ``None`` for a normal slide.
    hits_with_itc : SlideHits
        Hits on the same regions, with isolated tumour cells as lesions.
    detections : Detections
        Detections on the slide.
    downsample, pixel_um : float
        Level-0 pixels and µm per mask pixel.
    """
    if truth is None:
        return ()
    lesions = []
    outlines = region_outlines(truth)
    for number, region in enumerate(truth.regions, start=1):
        best = float(hits_with_itc.regions[number - 1])
        axis = Microns(region.axis_px * pixel_um)
        lesions.append(
            Lesion(
                number=number,
                kind="itc" if number in truth.itc else _kind(axis),
                axis_um=axis,
                tumour=SquareMicrons(region.tumour_px * pixel_um**2),
                x=region.column * downsample,
                y=region.row * downsample,
                # Both protocols take a confidence of 0 for a miss.
                score=best if best > 0 else None,
                rank=1 + int(np.count_nonzero(detections.confidence > best)) if best > 0 else None,
                outline=outlines[number - 1] * downsample,
            )
        )
    return tuple(lesions)


def _kind(axis: Microns) -> LesionClass:
    return "macro" if axis - MERGE_UM > MACRO_UM else "micro"


@dataclass(frozen=True, slots=True, eq=False)
class SlideLesions:
    """Lesions of one slide by one protocol, and the hits on them."""

    slide: str
    lesions: Sequence[Lesion]
    hits: SlideHits


def write_lesions(path: Path, found: Mapping[ProtocolName, Sequence[SlideLesions]]) -> None:
    """Write ``lesions.csv``: a row for each lesion and protocol.

    Parameters
    ----------
    path : Path
        CSV to write, atomically. Without lesions it has only a header.
    found : mapping of str to sequence of SlideLesions
        By protocol, one entry for each slide that takes part in FROC, normal slides included:
        the mean number of false positives is over all these slides.
    """
    rows: list[list[str | int | float]] = []
    for protocol, slides in found.items():
        pool = Pool([slide.hits for slide in slides], PROTOCOLS[protocol])
        for slide in slides:
            rows.extend(_row(protocol, slide, lesion, pool) for lesion in slide.lesions)
    write_text(path, table_text(COLUMNS, rows))


def _row(
    protocol: ProtocolName, slide: SlideLesions, lesion: Lesion, pool: Pool
) -> list[str | int | float]:
    row: list[str | int | float] = [
        protocol,
        slide.slide,
        lesion.number,
        lesion.kind,
        round(lesion.size_um, 1),
        round(lesion.axis_um, 1),
        round(lesion.tumour),
        round(lesion.x, 1),
        round(lesion.y, 1),
    ]
    if lesion.score is None or lesion.rank is None:
        return [*row, 0, "", "", "", ""]
    here = int(np.count_nonzero(slide.hits.false_positives >= lesion.score))
    everywhere = pool.false_positives_from(lesion.score)
    return [*row, 1, repr(lesion.score), lesion.rank, here, repr(everywhere)]
