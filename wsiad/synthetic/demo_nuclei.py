"""The nuclei of a synthetic lymph node: points with a size, a shape and a texture.

Every kind of tissue has its own look. What makes a lesion strange is what makes one
strange under a microscope: nuclei twice as large, pale and uneven, with nucleoli, in
more and pinker cytoplasm.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from wsiad.synthetic.anatomy import STEP_UM, Anatomy, Floats, Tissue


@dataclass(frozen=True, slots=True)
class Look:
    """How a kind of tissue looks.

    Parameters
    ----------
    pitch_um : float
        Distance between neighbouring nuclei; 0 for none.
    diameter_um : tuple of float
        Smallest and largest nuclear diameter.
    elongation : float
        Long over short axis of a nucleus.
    haematoxylin : float
        In a nucleus.
    vesicular : float
        How much paler the middle of a nucleus is than its rim, 0 to 1.
    nucleolus : float
        Haematoxylin that a nucleolus adds.
    rough : float
        Irregularity of the nuclear outline, in radii.
    eosin, haze : float
        Eosin and haematoxylin between the nuclei.
    gaps : float
        How many white clefts: 0 for none, 1 for mostly.
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
    """A block with its margin: corner and size in pixels of level 0."""

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
        """Those whose centre lies in a window."""
        x, y = self.x - window.left, self.y - window.top
        keep = (x >= 0) & (x < window.width) & (y >= 0) & (y < window.height)
        return Nuclei(*(getattr(self, column.name)[keep] for column in fields(self)))

    def to_axes(self) -> npt.NDArray[np.float32]:
        """Linear maps to coordinates along the axes of each nucleus, (N, 6).

        ``m[0] x + m[1] y + m[2]`` is a pixel's position along the long axis of a nucleus
        and ``m[3] x + m[4] y + m[5]`` that along the short one, both in half-axes: what
        lies within has a norm below 1.
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
    """Jittered hexagonal grid with some places left empty, (N, 2) as x, y."""
    y, x = np.mgrid[0 : height : pitch * 0.866, 0:width:pitch]
    x[1::2] += pitch / 2
    points = np.stack([x.ravel(), y.ravel()], axis=1)
    points += rng.normal(0, 0.17 * pitch, points.shape)
    inside = (points >= 0).all(1) & (points[:, 0] < width) & (points[:, 1] < height)
    return points[inside & (rng.random(len(points)) > 0.05)]
