"""Matching of detections with tumour regions: which they hit, and which hit none.

What the official CAMELYON16 protocols of FROC do differently: their rules, as values.

``camelyon16-2016`` is the script of the challenge (Ehteshami Bejnordi, January 2016),
by which published numbers were made; ``camelyon16-dataset`` is the one that comes with
the public data set. Each is followed to the letter, oddities included; what they make
of the score is shown by two readings without them (:func:`all_thresholds` and
:func:`conservative`).

From a tumour mask to lesions: what counts as one, and what is too small to count.

Follows the CAMELYON16 evaluation (Ehteshami Bejnordi et al., JAMA 318, 2017): tumour
within 75 µm belongs to one lesion, holes are filled, and a region whose longest
diameter is below 275 µm is a group of isolated tumour cells (ITC), which is neither to
be found nor wrong to find.

How large the pixels of evaluation masks are, by each protocol.
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
    """The rules by which the protocols differ.

    Parameters
    ----------
    coordinate : str
        How a level-0 coordinate becomes a mask pixel: ``"truncate"``, or ``"round"``
        (halves to even).
    single_precision : bool
        Scores of hit lesions are float32 while those of false positives are float64,
        so that equal scores may or may not tie.
    drop_lowest : bool
        The lowest score of all is no threshold. It is 0, and nothing is lost, as soon as
        a lesion is missed or there are isolated tumour cells; else a hit may be lost.
        Without it, every score above 0 is a threshold.
    reading : str
        Sensitivity at f false positives per slide: ``"linear"`` interpolates;
        ``"step-up"`` takes the first point with at least f, which is optimistic where
        the curve jumps; ``"step-down"`` the best point with at most f.
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
    """Return the rules with every threshold, exact ties and no sensitivity not reached."""
    return dataclasses.replace(all_thresholds(rules), reading="step-down")


MERGE_UM = Microns(75.0)
"""Tumour regions up to this far apart are one lesion."""

ITC_UM = Microns(275.0)
"""Regions with a shorter longest axis are isolated tumour cells."""

_COARSE = 16
"""Mask pixels per cell of the coarse search for tumour."""

_DISC_REACH = 16.0
"""Pixels from which a distance transform is faster than widening by a disc."""

Pixels = npt.NDArray[np.bool_]

Window = tuple[slice, slice]


@dataclass(frozen=True, slots=True)
class TumourRegion:
    """One lesion by a protocol, or one group of isolated tumour cells.

    Parameters
    ----------
    axis_px : float
        Longest axis after widening, mask pixels: what tells isolated tumour cells.
    tumour_px : int
        Mask pixels of tumour within, as it is outlined: not widened, holes not filled.
    column, row : float
        Centroid after widening, mask pixels from the mask's corner.
    """

    axis_px: float
    tumour_px: int
    column: float
    row: float


@dataclass(frozen=True, slots=True, eq=False)
class EvaluationMask:
    """The lesions of a slide.

    Parameters
    ----------
    labels : ndarray of int32, (H, W)
        0 outside, else the number of the region, counted from 1 in reading order of
        their first pixels.
    regions : tuple of TumourRegion
        In order of their numbers.
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

    Tumour is widened by half of :data:`MERGE_UM` (distances strictly below it), holes
    are filled, regions that touch at an edge or corner are one. The longest axis is
    that of the ellipse with the region's second moments, after widening, as in the
    official scripts. Only the surroundings of tumour are worked on; the result is that
    of working on the whole mask.

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


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """A region before it has its number: first pixel, bounding window, pixels, facts."""

    first: tuple[int, int]
    box: Window
    pixels: Pixels
    facts: TumourRegion


def _regions(tumour: Pixels, window: Window, reach: float) -> Iterator[_Found]:
    """Yield the regions of a window, in no order."""
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
    """Pixels whose centre is less than `reach` pixels away from that of a tumour pixel."""
    import cv2
    from scipy import ndimage

    if reach > _DISC_REACH:
        return np.asarray(ndimage.distance_transform_edt(~tumour) < reach)
    offsets = np.arange(-math.ceil(reach), math.ceil(reach) + 1)
    disc = np.sqrt(offsets**2 + offsets[:, None] ** 2) < reach
    return cv2.dilate(tumour.view(np.uint8), disc.view(np.uint8)).view(np.bool_)


def _filled(mask: Pixels) -> Pixels:
    """Mask with all that its pixels enclose, corners touching included."""
    import cv2

    outside = cv2.copyMakeBorder(mask.view(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=[0])
    cv2.floodFill(outside, None, (0, 0), [2], flags=4)
    return np.asarray(outside[1:-1, 1:-1] != 2)


def _facts(region: Pixels, top: int, left: int, tumour_px: int) -> TumourRegion:
    """Measure a region; its axis is that of the ellipse with the same second moments."""
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
    """Disjoint windows that hold all tumour with a margin around it.

    Found on a coarse grid, so that no array of the size of the mask is needed. Windows
    that overlap are merged until none does: nothing in one then touches or encloses
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
    """Whether any of each :data:`_COARSE` rows is set, by column."""
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
        At least 0; higher is surer.
    x, y : ndarray of float64, (N,)
        Level-0 pixels.
    """

    confidence: Floats
    x: Floats
    y: Floats

    def __len__(self) -> int:
        return len(self.confidence)


@dataclass(frozen=True, slots=True, eq=False)
class SlideHits:
    """The hits of the detections on one slide.

    Parameters
    ----------
    regions : ndarray of float64, (R,)
        Highest confidence on each tumour region; 0 for a missed one, and for isolated
        tumour cells.
    false_positives : ndarray of float64, (F,)
        Confidence of every detection outside all regions.
    lesions : int
        Regions that are to be found.
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
    tumour cells count neither way, unless they are included. A detection beyond the mask
    is outside all regions, save that one which rounding puts one pixel beyond it
    belongs to the pixel that it lies in.

    Parameters
    ----------
    detections : Detections
        In level-0 pixels, none negative.
    truth : EvaluationMask or None
        Regions of the slide; ``None`` for a normal slide.
    rules : Rules
        Of the protocol.
    downsample : float
        Level-0 pixels per mask pixel.
    include_itc : bool
        Take isolated tumour cells as lesions.
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
"""µm per level-0 pixel that the 2016 script takes for every slide."""

LEVEL5_DOWNSAMPLE = 32
"""Level-0 pixels per mask pixel in both scripts."""

_SAME_SCANNER = 0.1


def mask_downsample(mpp: Mpp | None) -> int:
    """Return the power of two whose mask pixels come nearest to those of CAMELYON16.

    It is 32, level 5, for both scanners of CAMELYON16, and where nothing is known (which
    :func:`protocol_mpp` refuses where it matters); on a
    slide of 0.97 µm/px it is 8, so that the 75 µm and 275 µm of the protocols still span
    several pixels.
    """
    if mpp is None:
        return LEVEL5_DOWNSAMPLE
    return 1 << max(0, round(math.log2(SCRIPT_MPP * LEVEL5_DOWNSAMPLE / mpp)))


def protocol_mpp(
    protocol: ProtocolName, *, given: float | None, known: Mpp | None, slide: str | None = None
) -> tuple[Mpp, str]:
    """µm per level-0 pixel that a protocol reckons with, and where it comes from.

    What the user gives holds for all; where nothing is known, nothing is assumed. Else
    ``camelyon16-dataset`` goes by the slide, and ``camelyon16-2016`` by its constant, as
    long as the slide is within 10 % of it, which both scanners of CAMELYON16 are; on other
    slides the constant would mean nothing.

    Parameters
    ----------
    protocol : str
        Name of the protocol.
    given : float or None
        The user's value.
    known : Mpp or None
        The slide's own.
    slide : str, optional
        Its name, for the error.

    Raises
    ------
    EvaluationError
        Neither is known.
    """
    if given is not None:
        return Mpp(given), "given"
    if known is None:
        raise EvaluationError(
            "no µm/px is known, by which tumour becomes lesions",
            subject=slide,
            remedy=f"Give --spacing-um; it is {SCRIPT_MPP} for CAMELYON16.",
        )
    if protocol == "camelyon16-2016" and abs(known / SCRIPT_MPP - 1) <= _SAME_SCANNER:
        return SCRIPT_MPP, "the 2016 script's 0.243 µm/px"
    return known, "the slide's own"
