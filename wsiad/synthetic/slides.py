"""Synthetic H&E-like lymph-node slides as files: drawn, not scanned.

Everything here is invented by arithmetic: no pixel, outline or colour comes from a
patient. With these slides every stage can be run, from tiling to FROC, on a machine
without data. **Figures measured on them prove that the software runs; they say nothing
about real tissue.**
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import tifffile

from wsiad.core.errors import InputError
from wsiad.core.files import atomic_file, write_text
from wsiad.core.geometry import Mpp
from wsiad.core.terminal import Progress
from wsiad.synthetic.anatomy import Outline, lay_out
from wsiad.synthetic.render import Rgb, draw

SYNTHETIC = (
    "Synthetic slide, drawn by wsiad; not real tissue. Figures measured on it prove that "
    "the software runs and say nothing about real tissue."
)
"""Statement in every file that is made, where a reader or a viewer shows it."""

_MPP = Mpp(0.486)  # 20×
_LEAST_SIDE_UM = 400.0
_LEVEL_PX = 1024  # the pyramid ends below this
_TILE_PX = 256
_JPEG_QUALITY = 88
_README = """\
Synthetic demo slides
=====================

These slides were drawn by wsiad. They are not real tissue, and no pixel of them comes
from a patient. Figures measured on them prove that the software runs; they say nothing
about real tissue.

normal_*.tif    healthy lymph node, pyramidal TIFF, resolution in px/cm
tumor_*.tif     the same with lesions
tumor_*.xml     outlines of the lesions, ASAP XML, level-0 pixels, group _0
reference.csv   columns image,type: the kind of every slide
"""


@dataclass(frozen=True, slots=True)
class DemoSlide:
    """A slide that was made.

    Parameters
    ----------
    path : Path
        Path of the pyramidal TIFF.
    annotations : Path or None
        ASAP XML with the outlines of its lesions; ``None`` for a healthy slide.
    lesions : int
        Number of lesions.
    """

    path: Path
    annotations: Path | None
    lesions: int


def make_slides(
    out: Path,
    *,
    healthy: int,
    tumorous: int,
    size_px: tuple[int, int] = (4608, 3456),
    mpp: Mpp = _MPP,
    seed: int = 0,
    quiet: bool = False,
) -> list[DemoSlide]:
    """Draw slides into a folder, with annotations and ``reference.csv``.

    Writes ``normal_001.tif``, … and ``tumor_001.tif`` with ``tumor_001.xml``, …,
    ``reference.csv`` (``image,type`` with ``normal`` and ``tumor``, as CAMELYON16 has
    them) and a ``README.txt``. The content of a slide depends on its kind, its number, the
    size, the scale and the seed, and not on the number of other slides.

    Parameters
    ----------
    out : Path
        Folder to write to, created if missing. Files of these names are replaced.
    healthy, tumorous : int
        Number of slides of each kind.
    size_px : tuple of int
        Width and height of level 0, pixels.
    mpp : Mpp
        µm per level-0 pixel.
    seed : int
        Seed; the same seed makes the same slides.
    quiet : bool
        True for no progress output.

    Returns
    -------
    list of DemoSlide
        The slides in the order of ``reference.csv``: the healthy slides first.

    Raises
    ------
    InputError
        No slide is requested, or the slides are too small for a lymph node with a lesion.
    """
    _check(healthy, tumorous, size_px, mpp)
    made: list[DemoSlide] = []
    with Progress("Drawing slides", total=healthy + tumorous, unit="slide", quiet=quiet) as bar:
        for kind, count in (("normal", healthy), ("tumor", tumorous)):
            for number in range(1, count + 1):
                rng = np.random.default_rng([seed, int(kind == "tumor"), number])
                path = out / f"{kind}_{number:03d}.tif"
                made.append(_make_slide(path, kind == "tumor", size_px=size_px, mpp=mpp, rng=rng))
                bar.update()
    rows = [(s.path.stem, "tumor" if s.annotations else "normal") for s in made]
    with atomic_file(out / "reference.csv") as partial, partial.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("image", "type"), *rows])
    write_text(out / "README.txt", _README)
    return made


def _check(healthy: int, tumorous: int, size_px: tuple[int, int], mpp: float) -> None:
    if healthy < 0 or tumorous < 0 or healthy + tumorous == 0:
        raise InputError(
            f"{healthy} healthy and {tumorous} tumorous slides cannot be made",
            subject="demo slides",
            remedy="Request at least one slide.",
        )
    if not (0.1 <= mpp <= 1.0 and min(size_px) * mpp >= _LEAST_SIDE_UM):
        raise InputError(
            f"{size_px[0]} × {size_px[1]} px at {mpp:g} µm/px cannot hold a lymph node",
            subject="demo slides",
            remedy=f"Use 0.1 to 1 µm/px and at least {_LEAST_SIDE_UM:g} µm on each side.",
        )


def _make_slide(
    path: Path, tumorous: bool, size_px: tuple[int, int], mpp: Mpp, rng: np.random.Generator
) -> DemoSlide:
    lesions = int(rng.integers(1, 6)) if tumorous else 0
    anatomy = lay_out(size_px[0] * mpp, size_px[1] * mpp, lesions=lesions, rng=rng)
    write_pyramid(path, draw(anatomy, size_px=size_px, mpp=mpp, rng=rng), mpp=mpp)
    annotations = path.with_suffix(".xml") if tumorous else None
    if annotations:
        write_text(annotations, _asap_xml([outline / mpp for outline in anatomy.lesions]))
    return DemoSlide(path, annotations, len(anatomy.lesions))


def write_pyramid(path: Path, image: Rgb, *, mpp: Mpp) -> None:
    """Write a pyramidal, JPEG-tiled TIFF that OpenSlide opens as ``generic-tiff``.

    Parameters
    ----------
    path : Path
        File to write, atomically.
    image : ndarray of uint8, (H, W, 3)
        Level 0; every further level has half the edge, until it is below 1024 px.
    mpp : Mpp
        µm per level-0 pixel, written as the resolution in px/cm.
    """
    with atomic_file(path) as partial, tifffile.TiffWriter(partial) as tiff:
        level, scale = image, 1
        while True:
            tiff.write(
                _tiles(level),
                shape=level.shape,
                dtype=level.dtype,
                tile=(_TILE_PX, _TILE_PX),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": _JPEG_QUALITY},
                resolution=(1e4 / (mpp * scale), 1e4 / (mpp * scale)),
                resolutionunit="CENTIMETER",
                subfiletype=int(scale > 1),
                description=SYNTHETIC if scale == 1 else None,
                software="wsiad",
                metadata=None,
                maxworkers=1,
            )
            if max(level.shape[:2]) < _LEVEL_PX:
                return
            half = (level.shape[1] // 2, level.shape[0] // 2)
            level = np.asarray(cv2.resize(level, half, interpolation=cv2.INTER_AREA), np.uint8)
            scale *= 2


def _tiles(level: Rgb) -> Iterator[Rgb]:
    """Yield the tiles of a level, row by row; those at its edge repeat its last pixels.

    The TIFF writer would fill them with black, which JPEG smears into the slide.
    """
    height, width = level.shape[:2]
    for y in range(0, height, _TILE_PX):
        for x in range(0, width, _TILE_PX):
            tile = level[y : y + _TILE_PX, x : x + _TILE_PX]
            over = ((0, _TILE_PX - tile.shape[0]), (0, _TILE_PX - tile.shape[1]), (0, 0))
            yield np.pad(tile, over, mode="edge")


def _asap_xml(outlines: list[Outline]) -> str:
    """Return the ASAP XML of outlines in level-0 pixels, all in the group ``_0`` (tumour)."""
    annotations = []
    for number, outline in enumerate(outlines):
        coordinates = "\n".join(
            f'        <Coordinate Order="{order}" X="{x:.2f}" Y="{y:.2f}"/>'
            for order, (x, y) in enumerate(outline)
        )
        annotations.append(
            f'    <Annotation Name="Lesion {number + 1}" Type="Polygon" PartOfGroup="_0" '
            f'Color="#F4FA58">\n      <Coordinates>\n{coordinates}\n      </Coordinates>\n'
            "    </Annotation>"
        )
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<!-- {SYNTHETIC} -->\n<ASAP_Annotations>\n'
        "  <Annotations>\n" + "\n".join(annotations) + "\n  </Annotations>\n"
        '  <AnnotationGroups>\n    <Group Name="_0" PartOfGroup="None" Color="#F4FA58">\n'
        "      <Attributes/>\n    </Group>\n  </AnnotationGroups>\n</ASAP_Annotations>\n"
    )
