"""The anatomy of a synthetic lymph node: the place of each kind of tissue, and the nuclei.

Tissue is laid out in µm on a coarse grid, so the layout does not depend on the scale at which the
slide is drawn. It is invented, with the proportions of a textbook: a capsule, a sinus below
it, follicles in the cortex, sinuses and trabeculae within, a few vessels, lesions.

Nuclei are points with a size, a shape and a texture. Every kind of tissue has its own look.
Lesions look strange as they do under a microscope: their nuclei are twice as large, pale and
uneven, with nucleoli, in more and pinker cytoplasm.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum

import cv2
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from wsiad.core.errors import InputError

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.uint8]
Outline = npt.NDArray[np.float64]

STEP_UM = 4.0
"""Edge of a cell of the coarse grid, µm."""

_LESION_GAP_UM = 110.0  # CAMELYON16 merges what lies within 75 µm: stay well apart
_LARGE_UM = (330.0, 620.0)  # length of the first lesion: no isolated tumour cells
_OTHERS_UM = (90.0, 420.0)
_LEAST_UM = 70.0


class Tissue(IntEnum):
    """Kinds of tissue."""

    PARACORTEX = 0
    MANTLE = 1
    GERMINAL_CENTRE = 2
    SINUS = 3
    STROMA = 4
    LUMEN = 5
    TUMOUR = 6


@dataclass(frozen=True, slots=True)
class Anatomy:
    """The kind of tissue in each cell of the coarse grid.

    Parameters
    ----------
    code : ndarray of uint8, (H, W)
        :class:`Tissue` of each cell.
    edge_um : ndarray of float32, (H, W)
        Signed distance to the edge of the tissue, µm; positive within.
    fibre_um : ndarray of float32, (H, W)
        Coordinate across the fibres of the stroma, µm.
    lesions : list of ndarray of float64, (N, 2)
        Outlines of the lesions (x, y), µm, as open rings.
    """

    code: Codes
    edge_um: Floats
    fibre_um: Floats
    lesions: list[Outline]


def lay_out(
    width_um: float, height_um: float, *, lesions: int, rng: np.random.Generator
) -> Anatomy:
    """Lay out a lymph node with up to ``lesions`` lesions, and at least one if any is requested.

    Raises
    ------
    InputError
        There is no room for a lesion.
    """
    shape = (int(np.ceil(height_um / STEP_UM)) + 1, int(np.ceil(width_um / STEP_UM)) + 1)
    edge = _tissue_edge(shape, rng)
    code = np.full(shape, Tissue.PARACORTEX, np.uint8)
    fibre = _paint_sinuses_and_stroma(code, edge, rng)
    _paint_follicles(code, edge, rng)
    _paint_vessels(code, edge, fibre, rng)
    outlines = _place_lesions(edge, lesions, rng)
    _paint_lesions(code, outlines, fibre, rng)
    return Anatomy(code, edge, fibre, outlines)


def field(shape: tuple[int, int], scale_um: float, rng: np.random.Generator) -> Floats:
    """Return a smooth random field on the coarse grid, mean 0 and standard deviation 1."""
    noise = rng.standard_normal(shape, dtype=np.float32)
    smooth = ndimage.gaussian_filter(noise, scale_um / STEP_UM, mode="reflect", truncate=3.0)
    return np.asarray((smooth - smooth.mean()) / smooth.std(), np.float32)


def _tissue_edge(shape: tuple[int, int], rng: np.random.Generator) -> Floats:
    """Return the signed distance in µm to the edge of one or two smooth pieces of tissue."""
    short_um = min(shape) * STEP_UM
    y, x = np.mgrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j]
    score = field(shape, short_um / 8, rng) + 0.1 * field(shape, short_um / 50, rng)
    score = score - 4.0 * (np.abs(x) ** 4 + np.abs(y) ** 4)
    tissue = score > np.quantile(score, 1 - rng.uniform(0.50, 0.62))
    tissue[:3] = tissue[-3:] = tissue[:, :3] = tissue[:, -3:] = False
    label, _ = ndimage.label(tissue)
    areas = np.bincount(label.ravel())[1:]
    tissue = np.isin(label, 1 + np.flatnonzero(areas > 0.1 * areas.max()))
    tissue = ndimage.binary_fill_holes(tissue)
    inside = ndimage.distance_transform_edt(tissue) - ndimage.distance_transform_edt(~tissue)
    return np.asarray(ndimage.gaussian_filter(inside, 1.0) * STEP_UM, np.float32)


def _paint_sinuses_and_stroma(code: Codes, edge: Floats, rng: np.random.Generator) -> Floats:
    """Paint sinuses, trabeculae and the capsule; return the coordinate across fibres, µm."""
    shape = (edge.shape[0], edge.shape[1])
    deep = np.clip((edge - 130) / 150, 0, 1)
    web = np.abs(field(shape, 40, rng)) - 0.16 * deep * (field(shape, 150, rng) > -0.2)
    code[web < 0] = Tissue.SINUS
    capsule_um = 22 + 5 * field(shape, 60, rng)
    below = (edge > capsule_um) & (edge < capsule_um + 16)
    code[below & (field(shape, 90, rng) > -0.4)] = Tissue.SINUS
    ridge = field(shape, 130, rng)
    slope = np.hypot(*np.gradient(ridge, STEP_UM)).clip(1e-3)
    across_um = np.abs(ridge) / slope  # distance to the ridge line, to first order
    trabecula = (across_um < 11) & (field(shape, 160, rng) > -0.1)
    code[trabecula] = Tissue.STROMA
    code[edge < capsule_um] = Tissue.STROMA
    return np.where(trabecula & (edge > capsule_um), ridge / slope, edge).astype(np.float32)


def _disc(
    shape: tuple[int, ...], at: npt.NDArray[np.intp], wobble: Floats
) -> npt.NDArray[np.float64]:
    """Return the distance in µm of every cell to the cell ``at``, with an uneven outline."""
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return np.asarray(np.hypot(rows - at[0], columns - at[1]) * STEP_UM * (1 + 0.08 * wobble))


def _paint_follicles(code: Codes, edge: Floats, rng: np.random.Generator) -> None:
    """Paint round follicles along the cortex: a dark mantle around a pale germinal centre."""
    wobble = field((edge.shape[0], edge.shape[1]), 60, rng)
    free = (edge > 120) & (edge < 330)
    for _ in range(int(1 + edge.clip(0).astype(bool).sum() * STEP_UM**2 / 2.6e5)):
        places = np.argwhere(free)
        if not len(places):
            return
        at = places[rng.integers(len(places))]
        radius = min(rng.uniform(95, 190), 0.85 * float(edge[at[0], at[1]]))
        away = _disc(edge.shape, at, wobble)
        code[away < radius] = Tissue.MANTLE
        code[away < radius * rng.uniform(0.5, 0.68)] = Tissue.GERMINAL_CENTRE
        free &= away > radius + 170


def _paint_vessels(code: Codes, edge: Floats, fibre: Floats, rng: np.random.Generator) -> None:
    """Paint a few small vessels: a wall around an empty lumen."""
    wobble = field((edge.shape[0], edge.shape[1]), 25, rng)
    places = np.argwhere((edge > 60) & (code == Tissue.PARACORTEX))
    for at in places[rng.integers(len(places), size=rng.integers(3, 9))] if len(places) else ():
        away = _disc(edge.shape, at, 2 * wobble)
        lumen = rng.uniform(8, 24)
        wall = away < 1.25 * lumen + 9
        code[wall] = Tissue.STROMA
        code[away < lumen] = Tissue.LUMEN
        fibre[wall] = away[wall]


def _place_lesions(edge: Floats, count: int, rng: np.random.Generator) -> list[Outline]:
    """Return outlines in µm, from the longest to the shortest, within the tissue and apart."""
    low, high = _OTHERS_UM
    others = np.exp(rng.uniform(np.log(low), np.log(high), size=max(0, count - 1)))
    lengths = [rng.uniform(*_LARGE_UM), *sorted(others, reverse=True)] if count else []
    free = edge > 30
    outlines: list[Outline] = []
    for length in lengths:
        outline = _place(length, free, rng)
        if outline is None and not outlines:
            raise InputError(
                "there is no room for a lesion in the tissue",
                subject="demo slides",
                remedy="Request larger slides.",
            )
        if outline is not None:
            outlines.append(outline)
            apart = ndimage.distance_transform_edt(~_fill(edge.shape, outline)) * STEP_UM
            free &= apart > _LESION_GAP_UM
    return outlines


def _place(
    length_um: float, free: npt.NDArray[np.bool_], rng: np.random.Generator
) -> Outline | None:
    """Find a place for a lesion; make it smaller if that length does not fit."""
    places = np.argwhere(free)
    while length_um >= _LEAST_UM and len(places):
        ring = _ring(length_um, rng)
        for at in places[rng.integers(len(places), size=60)]:
            outline = ring + (at[::-1] + 0.5) * STEP_UM
            column, row = np.floor(outline / STEP_UM).astype(int).T
            inside = (column >= 0) & (row >= 0)
            inside &= (column < free.shape[1]) & (row < free.shape[0])
            if inside.all() and free[row, column].all():
                return outline
        length_um *= 0.85
    return None


def _ring(length_um: float, rng: np.random.Generator) -> Outline:
    """Return an uneven closed curve around the origin whose longest extent is ``length_um``."""
    angle = np.linspace(0, 2 * np.pi, 180, endpoint=False)
    radius = np.ones_like(angle)
    for wave in range(2, 9):
        radius += rng.normal(0, 0.28 / wave) * np.cos(wave * angle + rng.uniform(0, 2 * np.pi))
    radius = radius.clip(0.45)
    turn, squash = rng.uniform(0, np.pi), rng.uniform(0.6, 0.95)
    x, y = radius * np.cos(angle), squash * radius * np.sin(angle)
    ring = np.stack(
        [x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)], axis=1
    )
    extent = np.linalg.norm(ring[:, None] - ring[None], axis=2).max()
    return ring * (length_um / extent)


def _fill(shape: tuple[int, ...], outline: Outline) -> npt.NDArray[np.bool_]:
    """Return the cells of the coarse grid within an outline in µm."""
    mask = np.zeros(shape[:2], np.uint8)
    cells = np.round((outline / STEP_UM - 0.5) * 256).astype(np.int32)
    cv2.fillPoly(mask, [cells], 1, shift=8)
    return mask.astype(bool)


def _paint_lesions(
    code: Codes, outlines: list[Outline], fibre: Floats, rng: np.random.Generator
) -> None:
    """Paint lesions as nests of tumour cells between strands of stroma."""
    shape = (code.shape[0], code.shape[1])
    strand = field(shape, 34, rng)
    for outline in outlines:
        lesion = _fill(shape, outline)
        code[lesion] = Tissue.TUMOUR
        strands = ndimage.binary_erosion(lesion, iterations=5) & (np.abs(strand) < 0.2)
        code[strands] = Tissue.STROMA
        fibre[strands] = 40 * strand[strands]


@dataclass(frozen=True, slots=True)
class Look:
    """Appearance of a kind of tissue.

    Parameters
    ----------
    pitch_um : float
        Distance between neighbouring nuclei, µm; 0 for no nuclei.
    diameter_um : tuple of float
        Smallest and largest diameter of a nucleus, µm.
    elongation : float
        Ratio of the long to the short axis of a nucleus.
    haematoxylin : float
        Haematoxylin in a nucleus, optical density.
    vesicular : float
        Difference in darkness between the rim and the paler middle of a nucleus, 0 to 1.
    nucleolus : float
        Haematoxylin that a nucleolus adds.
    rough : float
        Irregularity of the nuclear outline, in radii.
    eosin, haze : float
        Eosin and haematoxylin between the nuclei, optical density.
    gaps : float
        Share of white clefts, 0 for none to 1 for mostly clefts.
    fibre : float
        Contrast of fibres, 0 to 1.
    """

    pitch_um: float = 0.0
    diameter_um: tuple[float, float] = (6.0, 7.6)
    elongation: float = 1.15
    haematoxylin: float = 2.1
    vesicular: float = 0.1
    nucleolus: float = 0.0
    rough: float = 0.06
    eosin: float = 0.0
    haze: float = 0.0
    gaps: float = 0.0
    fibre: float = 0.0


LOOKS = {
    Tissue.PARACORTEX: Look(pitch_um=8.1, eosin=0.34, haze=0.22, gaps=0.35),
    Tissue.MANTLE: Look(pitch_um=7.5, haematoxylin=2.4, eosin=0.32, haze=0.30, gaps=0.15),
    Tissue.GERMINAL_CENTRE: Look(
        pitch_um=10.0, diameter_um=(6.8, 9.2), elongation=1.2, haematoxylin=1.6, vesicular=0.3,
        nucleolus=0.3, rough=0.08, eosin=0.44, haze=0.28, gaps=0.2,
    ),
    Tissue.SINUS: Look(
        pitch_um=14.0, diameter_um=(6.0, 8.5), elongation=1.3, haematoxylin=1.7, vesicular=0.2,
        rough=0.1, eosin=0.28, haze=0.05, gaps=0.8,
    ),
    Tissue.STROMA: Look(
        pitch_um=20.0, diameter_um=(4.6, 6.0), elongation=3.2, haematoxylin=1.7, eosin=0.62,
        haze=0.06, gaps=0.1, fibre=0.5,
    ),
    Tissue.LUMEN: Look(),
    Tissue.TUMOUR: Look(
        pitch_um=17.5, diameter_um=(12.0, 18.0), elongation=1.25, haematoxylin=1.2, vesicular=0.6,
        nucleolus=1.6, rough=0.11, eosin=0.62, haze=0.14, gaps=0.22,
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Window:
    """A block with its margin: its corner and size in pixels of level 0."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Nuclei:
    """Nuclei as columns, float32 (N,); lengths in pixels, angles in radians."""

    x: Floats
    y: Floats
    radius: Floats
    elongation: Floats
    angle: Floats
    haematoxylin: Floats
    vesicular: Floats
    nucleolus: Floats
    rough: Floats

    def within(self, window: Window) -> Nuclei:
        """Return the nuclei whose centre is in a window."""
        x, y = self.x - window.left, self.y - window.top
        keep = (x >= 0) & (x < window.width) & (y >= 0) & (y < window.height)
        return Nuclei(*(getattr(self, column.name)[keep] for column in fields(self)))

    def to_axes(self) -> npt.NDArray[np.float32]:
        """Return linear maps to coordinates along the axes of each nucleus, (N, 6).

        ``m[0] x + m[1] y + m[2]`` is a pixel's position along the long axis of a nucleus,
        and ``m[3] x + m[4] y + m[5]`` that along the short one, both in half-axes. Points
        within the nucleus have a norm below 1.
        """
        stretch = np.sqrt(self.elongation)
        cos, sin = np.cos(self.angle) / self.radius, np.sin(self.angle) / self.radius
        long_x, long_y, short_x, short_y = (
            cos / stretch,
            sin / stretch,
            -sin * stretch,
            cos * stretch,
        )
        return np.stack(
            [
                *(long_x, long_y, -(long_x * self.x + long_y * self.y)),
                *(short_x, short_y, -(short_x * self.x + short_y * self.y)),
            ],
            axis=1,
        )


def seed_nuclei(anatomy: Anatomy, *, mpp: float, rng: np.random.Generator) -> Nuclei:
    """Scatter the nuclei of every kind of tissue on jittered hexagonal grids."""
    rows, columns = anatomy.code.shape
    slope_x = np.asarray(np.gradient(anatomy.fibre_um, axis=1))
    slope_y = np.asarray(np.gradient(anatomy.fibre_um, axis=0))
    parts = []
    for tissue, look in LOOKS.items():
        if not look.pitch_um:
            continue
        grid = _hexagonal(columns * STEP_UM, rows * STEP_UM, look.pitch_um, rng)
        column, row = (grid / STEP_UM).astype(int).T
        keep = (anatomy.code[row, column] == tissue) & (anatomy.edge_um[row, column] > 4)
        (x, y), row, column = grid[keep].T, row[keep], column[keep]
        count = len(x)
        angle = rng.uniform(0, np.pi, count)
        if look.fibre:  # spindle nuclei lie along the fibres
            across = np.arctan2(slope_y[row, column], slope_x[row, column])
            angle = across + np.pi / 2 + rng.normal(0, 0.15, count)
        parts.append(
            (
                x / mpp,
                y / mpp,
                rng.uniform(*look.diameter_um, count) / 2 / mpp,
                look.elongation * np.exp(rng.normal(0, 0.08, count)),
                angle,
                look.haematoxylin * np.exp(rng.normal(0, 0.14, count)),
                np.full(count, look.vesicular),
                look.nucleolus * rng.uniform(0.3, 1, count),
                np.full(count, look.rough),
            )
        )
    return Nuclei(*(np.concatenate(p).astype(np.float32) for p in zip(*parts, strict=True)))


def _hexagonal(
    width: float, height: float, pitch: float, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Return a jittered hexagonal grid with some places left empty, (N, 2) as x, y."""
    y, x = np.mgrid[0 : height : pitch * 0.866, 0:width:pitch]
    x[1::2] += pitch / 2
    points = np.stack([x.ravel(), y.ravel()], axis=1)
    points += rng.normal(0, 0.17 * pitch, points.shape)
    inside = (points >= 0).all(1) & (points[:, 0] < width) & (points[:, 1] < height)
    return points[inside & (rng.random(len(points)) > 0.05)]
