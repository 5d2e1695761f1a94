"""The rendering of synthetic H&E: concentrations of two stains, and the light that passes them.

Haematoxylin and eosin concentrations are drawn block by block and become light by the
Beer–Lambert law, ``I = I0 · exp(−(c_H · h + c_E · e))``, with stain vectors ``h`` and
``e`` that differ from slide to slide, as between laboratories (Macenko et al., ISBI
2009, describe the model). Concentrations are optical densities in natural logarithm.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from wsiad.synthetic.anatomy import (
    LOOKS,
    STEP_UM,
    Anatomy,
    Floats,
    Nuclei,
    Tissue,
    Window,
    field,
    seed_nuclei,
)

Rgb = npt.NDArray[np.uint8]

_GLASS = 243.0
_BLOCK_PX = 384  # drawn at a time: bounds the memory, stays in the processor's cache
_MARGIN_UM = 16.0  # beyond a block, so that nuclei on its border are drawn whole
_NOISE_PX = 1024  # period of the noise
# Directions in optical density (R, G, B) as lymph nodes have them under a brightfield scanner.
_HAEMATOXYLIN = (0.59, 0.72, 0.37)
_EOSIN = (0.17, 0.88, 0.44)


@dataclass(frozen=True, slots=True)
class Stains:
    """Stain vectors (3,) in optical density and the light through the glass (3,)."""

    haematoxylin: Floats
    eosin: Floats
    glass: Floats


@dataclass(frozen=True, slots=True)
class Canvas:
    """The canvas of a slide: concentrations on the coarse grid, and noise.

    ``coarse`` holds two float32 (H, W, 3): eosin, haze and gaps; contrast of fibres,
    coordinate across them and distance to the edge (µm). ``noise`` is float32 (3, H, W),
    from fine to broad, periodic and long enough for a block that starts anywhere.
    """

    coarse: tuple[Floats, Floats]
    noise: Floats
    mpp: float


def draw(
    anatomy: Anatomy, *, size_px: tuple[int, int], mpp: float, rng: np.random.Generator
) -> Rgb:
    """Draw a slide, uint8 (height, width, 3)."""
    nuclei = seed_nuclei(anatomy, mpp=mpp, rng=rng)
    stains = _random_stains(rng)
    canvas = _canvas(anatomy, mpp, rng)
    width, height = size_px
    image = np.empty((height, width, 3), np.uint8)
    for y in range(0, height, _BLOCK_PX):
        for x in range(0, width, _BLOCK_PX):
            part = image[y : y + _BLOCK_PX, x : x + _BLOCK_PX]
            part[:] = _block(
                canvas, nuclei, stains=stains, x=x, y=y, width=part.shape[1], height=part.shape[0]
            )
    return image


def _random_stains(rng: np.random.Generator) -> Stains:
    """Return random stain vectors: direction and strength vary as between laboratories."""

    def vector(base: tuple[float, float, float], low: float, high: float) -> Floats:
        jittered = np.clip(np.array(base) + rng.normal(0, 0.035, 3), 0.03, None)
        return np.asarray(jittered / np.linalg.norm(jittered) * rng.uniform(low, high), np.float32)

    glass = _GLASS + rng.normal(0, 1.2) + np.array([0, -1, 0.5]) * rng.uniform(0, 1.5)
    return Stains(
        vector(_HAEMATOXYLIN, 0.75, 1.15), vector(_EOSIN, 0.7, 1.3), glass.astype(np.float32)
    )


def _canvas(anatomy: Anatomy, mpp: float, rng: np.random.Generator) -> Canvas:
    looks = [LOOKS[tissue] for tissue in Tissue]
    table = np.array([(a.eosin, a.haze, a.gaps, a.fibre) for a in looks], np.float32)
    coarse = cv2.GaussianBlur(table[anatomy.code], (0, 0), 0.8)
    coarse[..., 0] *= 1 + 0.12 * field(anatomy.code.shape, 60, rng)
    distances = np.dstack([coarse[..., 3], anatomy.fibre_um, anatomy.edge_um])
    noise = rng.standard_normal((3, _NOISE_PX, _NOISE_PX), dtype=np.float32)
    for plane, sigma_um in zip(noise, (0.5, 1.6, 6.0), strict=True):
        plane[:] = ndimage.gaussian_filter(plane, sigma_um / mpp, mode="wrap", truncate=3.0)
        plane /= plane.std()
    extra = _BLOCK_PX + 2 * _margin_px(mpp)
    return Canvas(
        (coarse[..., :3].copy(), distances),
        np.pad(noise, ((0, 0), (0, extra), (0, extra)), mode="wrap"),
        mpp,
    )


def _margin_px(mpp: float) -> int:
    return int(np.ceil(_MARGIN_UM / mpp))


def _block(
    canvas: Canvas, nuclei: Nuclei, stains: Stains, x: int, y: int, width: int, height: int
) -> Rgb:
    """Draw one block, uint8 (height, width, 3); ``x``, ``y`` is its corner in pixels."""
    margin = _margin_px(canvas.mpp)
    window = Window(x - margin, y - margin, width + 2 * margin, height + 2 * margin)
    noise = canvas.noise[
        :,
        window.top % _NOISE_PX : window.top % _NOISE_PX + window.height,
        window.left % _NOISE_PX : window.left % _NOISE_PX + window.width,
    ]
    haematoxylin, eosin = _concentrations(canvas, nuclei, window, noise)
    # log I = log I0 - c_H h - c_E e, with a little noise of the camera
    to_log_light = np.stack(
        [-stains.haematoxylin, -stains.eosin, np.full(3, 0.006), np.log(stains.glass)], axis=1
    )
    log_light = cv2.transform(cv2.merge([haematoxylin, eosin, noise[0]]), to_log_light)
    light = cv2.convertScaleAbs(cv2.exp(log_light))
    light = cv2.GaussianBlur(light, (0, 0), 0.32 / canvas.mpp)
    return np.asarray(light[margin : margin + height, margin : margin + width])


def _concentrations(
    canvas: Canvas, nuclei: Nuclei, window: Window, noise: Floats
) -> tuple[Floats, Floats]:
    """Return haematoxylin and eosin of a window, float32 (H, W) each."""
    fine, medium, broad = noise
    eosin, haze, gaps, fibre, across, edge = _upsampled(canvas, window)
    if edge.max() < -10:
        return np.zeros_like(edge), np.zeros_like(edge)
    tissue = np.clip((edge + 2 * broad + medium) / 1.5, 0, 1)
    body, border = _nuclei(nuclei, window, noise)
    body *= tissue
    cleft = np.clip(1.5 * (broad + 0.6 * medium - 2.4 + 2.6 * gaps), 0, 0.9)
    waves = np.sin(0.9 * across + 1.1 * broad + 0.5 * medium)
    matter = tissue * (1 - cleft * (1 - body).clip(0))
    matter *= 1 + fibre * (0.6 * waves + 0.2 * medium)
    matter *= 1 + 0.12 * medium + 0.08 * fine
    haze *= matter * (1 + 0.3 * broad) * (1 - 0.4 * border)
    eosin *= matter * (1 - 0.4 * border) * cv2.exp(-0.7 * body)
    return (haze + body).clip(0), eosin.clip(0)


def _upsampled(canvas: Canvas, window: Window) -> tuple[Floats, ...]:
    """Return the planes of the coarse grid at the pixels of a window."""
    scale = canvas.mpp / STEP_UM
    to_grid = np.array(
        [
            [scale, 0, (window.left + 0.5) * scale - 0.5],
            [0, scale, (window.top + 0.5) * scale - 0.5],
        ]
    )
    planes = (
        cv2.warpAffine(
            part,
            to_grid,
            (window.width, window.height),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
        for part in canvas.coarse
    )
    return tuple(plane for part in planes for plane in cv2.split(part))


def _nuclei(nuclei: Nuclei, window: Window, noise: Floats) -> tuple[Floats, Floats]:
    """Return the haematoxylin of the nuclei, and the nearness of pixels to a border between cells.

    Every pixel belongs to its nearest nucleus, as in a Voronoi diagram, and its position within
    that nucleus gives its shade. The cost therefore does not depend on the number of nuclei.
    """
    fine, medium, broad = noise
    nuclei = nuclei.within(window)
    if not len(nuclei.x):
        return np.zeros_like(fine), np.zeros_like(fine)
    owner = _nearest(nuclei, window)
    looks = (nuclei.radius, nuclei.haematoxylin, nuclei.vesicular, nuclei.nucleolus, nuclei.rough)
    table = np.concatenate([nuclei.to_axes(), np.stack(looks, axis=1)], axis=1)
    of = cv2.split(table.take(owner, axis=0))  # one gather for all that a pixel asks
    x = np.arange(window.left, window.left + window.width, dtype=np.float32)
    y = np.arange(window.top, window.top + window.height, dtype=np.float32)[:, None]
    along, aside = of[0] * x + of[1] * y + of[2], of[3] * x + of[4] * y + of[5]
    radius, haematoxylin, vesicular, nucleolus, rough = of[6:]
    away = np.sqrt(along**2 + aside**2) + rough * (broad + 0.4 * medium)
    inside = np.clip((1 - away) * radius * 0.8 + 0.5, 0, 1)
    tone = 1 - vesicular * np.clip(1.35 - away**2, 0, 1) + 0.13 * fine + 0.06 * medium
    spot = cv2.exp(-((along - 0.2) ** 2 + (aside + 0.15) ** 2) / 0.03)
    return inside * (haematoxylin * tone + nucleolus * spot).clip(0), _borders(owner)


def _borders(owner: npt.NDArray[np.intp]) -> Floats:
    """Return soft lines between the pixels of different owners, 0 to about 1."""
    border = np.zeros(owner.shape, np.float32)
    border[:, 1:] = owner[:, 1:] != owner[:, :-1]
    border[1:] += owner[1:] != owner[:-1]
    return np.asarray(cv2.GaussianBlur(border.clip(0, 1), (0, 0), 1.0))


def _nearest(nuclei: Nuclei, window: Window) -> npt.NDArray[np.intp]:
    """Return the index of the nucleus nearest to each pixel, (H, W)."""
    column = (nuclei.x - window.left).astype(int)
    row = (nuclei.y - window.top).astype(int)
    seeds = np.ones((window.height, window.width), np.uint8)
    seeds[row, column] = 0
    _, label = cv2.distanceTransformWithLabels(
        seeds, cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    nucleus = np.zeros(label.max() + 1, np.intp)
    nucleus[label[row, column]] = np.arange(len(column))
    return np.asarray(nucleus.take(label))
