"""Match detections with the tumour regions of a slide, by the rules of a FROC protocol.

Lesions are made from a tumour mask as in the CAMELYON16 evaluation (Ehteshami Bejnordi et al.,
JAMA 318, 2017). Tumour within 75 µm belongs to one lesion, and holes are filled. A region whose
longest axis is below 275 µm is a group of isolated tumour cells (ITC): it counts neither as a
lesion nor as a false positive.

The two official protocols of FROC differ in their rules, which are values here.
``camelyon16-2016`` is the script of the challenge (Ehteshami Bejnordi, January 2016), with which
published figures were computed. ``camelyon16-dataset`` is the script that comes with the public
data set. Each is followed to the letter, oddities included. Two readings without the oddities
(:func:`all_thresholds` and :func:`conservative`) show what these do to the score.

The protocols also differ in the size of the pixels of evaluation masks (:func:`protocol_mpp`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from wsiad.core.errors import EvaluationError
from wsiad.core.geometry import Microns, Mpp

ProtocolName = Literal["camelyon16-2016", "camelyon16-dataset"]


@dataclass(frozen=True, slots=True)
class Rules:
    """Rules by which the protocols differ.

    Parameters
    ----------
    coordinate : str
        Conversion of a level-0 coordinate to a mask pixel: ``"truncate"``, or ``"round"``
        (halves to even).
    single_precision : bool
        True where the scores of hit lesions are float32 and those of false positives float64,
        so that equal scores may or may not tie.
    drop_lowest : bool
        True where the lowest score of all is not a threshold. That score is 0, and nothing is
        lost, if a lesion is missed or there are isolated tumour cells; otherwise a hit may be
        lost. False makes every score above 0 a threshold.
    reading : str
        Sensitivity at f false positives per slide: ``"linear"`` interpolates;
        ``"step-up"`` takes the first point with at least f, which is optimistic where
        the curve jumps; ``"step-down"`` takes the best point with at most f.
    """

    coordinate: Literal["truncate", "round"]
    single_precision: bool
    drop_lowest: bool
    reading: Literal["linear", "step-up", "step-down"]


PROTOCOLS: dict[ProtocolName, Rules] = {
    "camelyon16-2016": Rules("truncate", True, True, "linear"),
    "camelyon16-dataset": Rules("round", False, False, "step-up"),
}
"""Rules of the official protocols by name."""


def all_thresholds(rules: Rules) -> Rules:
    """Return the rules with every threshold kept, exact ties and linear interpolation."""
    return dataclasses.replace(rules, single_precision=False, drop_lowest=False, reading="linear")


def conservative(rules: Rules) -> Rules:
    """Return the rules with every threshold, exact ties and the ``"step-down"`` reading."""
    return dataclasses.replace(all_thresholds(rules), reading="step-down")


MERGE_UM = Microns(75.0)
"""Tumour regions closer together than this distance, µm, are one lesion."""

ITC_UM = Microns(275.0)
"""Regions whose longest axis is shorter than this, µm, are isolated tumour cells."""

_COARSE = 16
"""Mask pixels per cell of the coarse search for tumour."""

_DISC_REACH = 16.0
"""Pixels from which a distance transform is faster than widening by a disc."""

Pixels = npt.NDArray[np.bool_]

Window = tuple[slice, slice]


@dataclass(frozen=True, slots=True)
class TumourRegion:
    """Lesion by a protocol, or group of isolated tumour cells.

    Parameters
    ----------
    axis_px : float
        Longest axis after widening, mask pixels; it decides what is isolated tumour cells.
    tumour_px : int
        Number of tumour pixels in the region as outlined: not widened, holes not filled.
    column, row : float
        Centroid after widening, mask pixels from the mask's corner.
    """

    axis_px: float
    tumour_px: int
    column: float
    row: float


@dataclass(frozen=True, slots=True, eq=False)
class EvaluationMask:
    """Lesions of a slide, as numbered regions of a mask.

    Parameters
    ----------
    labels : ndarray of int32, (H, W)
        0 outside all regions, else the number of the region, counted from 1 in reading order
        of the regions' first pixels.
    regions : tuple of TumourRegion
        Regions in order of their numbers.
    itc : frozenset of int
        Numbers of the regions that are isolated tumour cells.
    """

    labels: npt.NDArray[np.int32]
    regions: tuple[TumourRegion, ...]
    itc: frozenset[int]

    @property
    def axes_px(self) -> tuple[float, ...]:
        """Longest axis of each region after widening, mask pixels."""
        return tuple(region.axis_px for region in self.regions)

    @property
    def lesions(self) -> int:
        """Number of regions that are not isolated tumour cells."""
        return len(self.regions) - len(self.itc)


def evaluation_mask(tumour: Pixels, *, pixel_um: float) -> EvaluationMask:
    """Merge, fill, number and measure the tumour regions of a mask.

    Tumour is widened by half of :data:`MERGE_UM` (distances strictly below it) and holes
    are filled. Regions that touch at an edge or corner are one region. The longest axis is
    that of the ellipse with the region's second moments, after widening, as in the
    official scripts. Only the surroundings of tumour are processed; the result is the same as
    for the complete mask.

    Parameters
    ----------
    tumour : ndarray of bool, (H, W)
        Tumour pixels.
    pixel_um : float
        Edge of a mask pixel, µm.
    """
    reach = MERGE_UM / (pixel_um * 2)
    labels = np.zeros(tumour.shape, dtype=np.int32)
    found: list[_Found] = []
    for window in _windows_with_tumour(tumour, margin=int(np.ceil(reach)) + 1):
        found.extend(_regions(tumour[window], window, reach))
    found.sort(key=lambda region: region.first)
    for number, region in enumerate(found, start=1):
        labels[region.box][region.pixels] = number
    regions = tuple(region.facts for region in found)
    limit = ITC_UM / pixel_um
    itc = frozenset(n for n, region in enumerate(regions, start=1) if region.axis_px < limit)
    return EvaluationMask(labels, regions, itc)


def region_outlines(truth: EvaluationMask) -> list[npt.NDArray[np.float64]]:
    """Return the outline of each region, in order of their numbers.

    Returns
    -------
    list of ndarray of float64, (N, 2)
        Corners as column and row, mask pixels from the mask's corner. They run through the
        centres of the region's outer pixels, and leave out those within a pixel of a line.
    """
    import cv2
    from scipy import ndimage

    outlines = []
    for number, window in enumerate(ndimage.find_objects(truth.labels), start=1):
        pixels = (truth.labels[window] == number).view(np.uint8)
        rings, _ = cv2.findContours(pixels, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        ring = cv2.approxPolyDP(max(rings, key=len), 1.0, True)[:, 0].astype(np.float64)
        corner = np.array([window[1].start, window[0].start])
        outlines.append(ring + corner + 0.5)
    return outlines


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """Region without a number yet: first pixel, bounding window, pixels, measurements."""

    first: tuple[int, int]
    box: Window
    pixels: Pixels
    facts: TumourRegion


def _regions(tumour: Pixels, window: Window, reach: float) -> Iterator[_Found]:
    """Yield the regions of a window, in no particular order."""
    import cv2

    filled = _filled(_widened(tumour, reach))
    count, labels, boxes, _ = cv2.connectedComponentsWithStats(filled.view(np.uint8))
    for number in range(1, count):
        left, top, width, height, _area = boxes[number].tolist()
        within = (slice(top, top + height), slice(left, left + width))
        pixels = labels[within] == number
        marked = int(np.count_nonzero(tumour[within] & pixels))
        top, left = top + window[0].start, left + window[1].start
        box = (slice(top, top + height), slice(left, left + width))
        first = (top, left + int(np.argmax(pixels[0])))
        yield _Found(first, box, pixels, _facts(pixels, top, left, marked))


def _widened(tumour: Pixels, reach: float) -> Pixels:
    """Return the pixels whose centre is less than `reach` pixels from that of a tumour pixel."""
    import cv2
    from scipy import ndimage

    if reach > _DISC_REACH:
        return np.asarray(ndimage.distance_transform_edt(~tumour) < reach)
    offsets = np.arange(-math.ceil(reach), math.ceil(reach) + 1)
    disc = np.sqrt(offsets**2 + offsets[:, None] ** 2) < reach
    return cv2.dilate(tumour.view(np.uint8), disc.view(np.uint8)).view(np.bool_)


def _filled(mask: Pixels) -> Pixels:
    """Return the mask with its holes filled; pixels that touch at a corner enclose a hole too."""
    import cv2

    outside = cv2.copyMakeBorder(mask.view(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=[0])
    cv2.floodFill(outside, None, (0, 0), [2], flags=4)
    return np.asarray(outside[1:-1, 1:-1] != 2)


def _facts(region: Pixels, top: int, left: int, tumour_px: int) -> TumourRegion:
    """Measure a region; its axis is that of the ellipse with the region's second moments."""
    import cv2

    moments = cv2.moments(region.view(np.uint8), binaryImage=True)
    xx, yy, xy = (moments[name] / moments["m00"] for name in ("mu20", "mu02", "mu11"))
    largest = (xx + yy) / 2 + math.sqrt(((xx - yy) / 2) ** 2 + xy**2)
    return TumourRegion(
        axis_px=4 * math.sqrt(max(largest, 0.0)),
        tumour_px=tumour_px,
        column=left + moments["m10"] / moments["m00"] + 0.5,
        row=top + moments["m01"] / moments["m00"] + 0.5,
    )


def _windows_with_tumour(tumour: Pixels, *, margin: int) -> list[Window]:
    """Return disjoint windows that contain all tumour with a margin around it.

    They are found on a coarse grid, so that no array of the size of the mask is needed. Windows
    that overlap are merged until none does. Nothing in one window then touches or encloses
    anything in another.
    """
    from scipy import ndimage

    height, width = tumour.shape
    if not height or not width:
        return []
    cells, _ = ndimage.label(_any_of_rows(_any_of_rows(tumour).T).T)
    boxes = [
        (
            max(0, r.start * _COARSE - margin),
            min(height, r.stop * _COARSE + margin),
            max(0, c.start * _COARSE - margin),
            min(width, c.stop * _COARSE + margin),
        )
        for r, c in ndimage.find_objects(cells)
    ]
    return [(slice(t, b), slice(le, r)) for t, b, le, r in _merge_overlapping(boxes)]


def _any_of_rows(mask: Pixels) -> Pixels:
    """Return, by column, True where any pixel of each :data:`_COARSE` rows is set."""
    height, width = mask.shape
    whole = height // _COARSE * _COARSE
    # Many times as fast as `reduceat`: this is all that is done to the whole of a mask.
    found = np.asarray(mask[:whole].reshape(-1, _COARSE, width).any(axis=1))
    return found if whole == height else np.vstack([found, mask[whole:].any(axis=0)])


Box = tuple[int, int, int, int]


def _merge_overlapping(boxes: list[Box]) -> list[Box]:
    """Replace boxes (top, bottom, left, right) that overlap by the box around them."""
    merged: list[Box] = []
    for box in boxes:
        current = box
        while True:
            hit = next((other for other in merged if _overlap(current, other)), None)
            if hit is None:
                break
            merged.remove(hit)
            current = (
                min(current[0], hit[0]),
                max(current[1], hit[1]),
                min(current[2], hit[2]),
                max(current[3], hit[3]),
            )
        merged.append(current)
    return merged


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[1] and b[0] < a[1] and a[2] < b[3] and b[2] < a[3]


Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """Detections on one slide.

    Parameters
    ----------
    confidence : ndarray of float64, (N,)
        Confidence of each detection, at least 0; a higher one is more certain.
    x, y : ndarray of float64, (N,)
        Position of each detection, level-0 pixels.
    """

    confidence: Floats
    x: Floats
    y: Floats

    def __len__(self) -> int:
        return len(self.confidence)


@dataclass(frozen=True, slots=True, eq=False)
class SlideHits:
    """Hits and false positives among the detections on one slide.

    Parameters
    ----------
    regions : ndarray of float64, (R,)
        Highest confidence on each tumour region; 0 for a missed region and for isolated
        tumour cells.
    false_positives : ndarray of float64, (F,)
        Confidence of every detection outside all regions.
    lesions : int
        Number of regions that should be found.
    """

    regions: Floats
    false_positives: Floats
    lesions: int


def match(
    detections: Detections,
    truth: EvaluationMask | None,
    rules: Rules,
    *,
    downsample: float,
    include_itc: bool = False,
) -> SlideHits:
    """Match the detections on a slide to its tumour regions.

    Several hits on a region count once, with the highest confidence. Hits on isolated
    tumour cells count neither as hits nor as false positives, unless they are included. A
    detection beyond the mask is outside all regions. A detection that only rounding puts one
    pixel beyond the mask counts at the pixel that contains it.

    Parameters
    ----------
    detections : Detections
        Detections in level-0 pixels, none negative.
    truth : EvaluationMask or None
        Regions of the slide; ``None`` for a normal slide.
    rules : Rules
        Rules of the protocol.
    downsample : float
        Level-0 pixels per mask pixel.
    include_itc : bool
        Count isolated tumour cells as lesions.
    """
    if truth is None:
        return SlideHits(np.zeros(0), detections.confidence, 0)
    label = _labels_at(detections, truth.labels, rules, downsample)
    regions = np.zeros(len(truth.regions) + 1)
    np.maximum.at(regions, label, detections.confidence)
    itc = np.array([] if include_itc else sorted(truth.itc), dtype=int)
    regions[itc] = 0.0
    lesions = len(truth.regions) if include_itc else truth.lesions
    return SlideHits(regions[1:], detections.confidence[label == 0], lesions)


def _labels_at(
    detections: Detections, labels: npt.NDArray[np.int32], rules: Rules, downsample: float
) -> npt.NDArray[np.int32]:
    pixels, inside = [], np.ones(len(detections), dtype=bool)
    for position, length in ((detections.y, labels.shape[0]), (detections.x, labels.shape[1])):
        truncated = np.trunc(position / downsample)
        index = np.rint(position / downsample) if rules.coordinate == "round" else truncated
        inside &= truncated < length
        pixels.append(index.astype(np.int64).clip(0, length - 1))
    return np.where(inside, labels[pixels[0], pixels[1]], 0).astype(np.int32)


SCRIPT_MPP = Mpp(0.243)
"""µm per level-0 pixel that the 2016 script assumes for every slide."""

LEVEL5_DOWNSAMPLE = 32
"""Level-0 pixels per mask pixel in both scripts."""

_SAME_SCANNER = 0.1


def mask_downsample(mpp: Mpp | None) -> int:
    """Return the power of two whose mask pixels are closest in size to those of CAMELYON16.

    It is 32, level 5, for both scanners of CAMELYON16. It is also 32 where the spacing is
    unknown, which :func:`protocol_mpp` refuses where it matters. For a slide of 0.97 µm/px it is
    8, so that the 75 µm and 275 µm of the protocols still span several pixels.
    """
    if mpp is None:
        return LEVEL5_DOWNSAMPLE
    return 1 << max(0, round(math.log2(SCRIPT_MPP * LEVEL5_DOWNSAMPLE / mpp)))


def protocol_mpp(
    protocol: ProtocolName, *, given: float | None, known: Mpp | None, slide: str | None = None
) -> tuple[Mpp, str]:
    """Return the µm per level-0 pixel that a protocol uses, and the source of the value.

    A value that the user sets is used for all protocols. Otherwise ``camelyon16-dataset`` uses
    the value of the slide. ``camelyon16-2016`` uses its constant if the slide is within 10 % of
    it, as for both scanners of CAMELYON16, and the value of the slide otherwise: on other slides
    the constant would mean nothing. An unknown spacing is an error, never an assumption.

    Parameters
    ----------
    protocol : str
        Name of the protocol.
    given : float or None
        Value that the user sets.
    known : Mpp or None
        Value of the slide.
    slide : str, optional
        Name of the slide, for errors.

    Raises
    ------
    EvaluationError
        Neither value is known.
    """
    if given is not None:
        return Mpp(given), "given"
    if known is None:
        raise EvaluationError(
            "no µm/px is known, so tumour cannot be divided into lesions",
            subject=slide,
            remedy=f"Set --spacing-um; it is {SCRIPT_MPP} for CAMELYON16.",
        )
    if protocol == "camelyon16-2016" and abs(known / SCRIPT_MPP - 1) <= _SAME_SCANNER:
        return SCRIPT_MPP, "the 2016 script's 0.243 µm/px"
    return known, "the slide's own"
