"""Small slides, heatmaps and tiles built by the tests themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image

import wsiad
from wsiad.core.geometry import Box, Mpp, PixelMap, Size, Spacing
from wsiad.heatmaps.score_map import Heatmap
from wsiad.slides.slide import Level, Region, Slide, true_downsample
from wsiad.store.dataset import ArrayTiles


def halve(image: np.ndarray) -> np.ndarray:
    """2 × 2 mean that drops an odd edge, as most scanners' pyramids do."""
    height, width = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
    blocks = image[:height, :width].reshape(height // 2, 2, width // 2, 2, -1)
    return np.rint(blocks.mean(axis=(1, 3))).astype(np.uint8)


def write_tiff(
    path: Path,
    image: np.ndarray,
    *,
    mpp: float | None = 0.5,
    levels: int = 3,
    compression: str = "deflate",
    tile: int = 128,
) -> Path:
    """Write a pyramidal TIFF that OpenSlide opens as generic-tiff; lossless by default."""
    scale = {} if mpp is None else {"resolution": (1e4 / mpp,) * 2, "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for number in range(levels):
            tiff.write(
                image,
                tile=(tile, tile),
                photometric="rgb",
                compression=compression,
                subfiletype=int(number > 0),
                metadata=None,
                **scale,
            )
            scale = {}
            image = halve(image)
    return path


def write_scn(
    path: Path,
    image: np.ndarray,
    *,
    mpp: float,
    offset_px: tuple[int, int],
    collection_px: tuple[int, int],
) -> Path:
    """Write a Leica SCN: one scanned area within a larger collection (``openslide.bounds-*``)."""
    height, width = image.shape[:2]
    nm = round(mpp * 1000)
    whole = f'sizeX="{collection_px[0] * nm}" sizeY="{collection_px[1] * nm}"'
    area = f'sizeX="{width * nm}" sizeY="{height * nm}"'
    offset = f'offsetX="{offset_px[0] * nm}" offsetY="{offset_px[1] * nm}"'
    pixels = f'sizeX="{width}" sizeY="{height}"'
    macro = np.full((64, 64, 3), 200, np.uint8)
    xml = f"""<?xml version="1.0" encoding="utf-8"?>
<scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01" uuid="urn:uuid:0">
<collection name="c" uuid="urn:uuid:1" {whole}>
<image name="macro" uuid="urn:uuid:2">
<creationDate>2020-01-01T00:00:00Z</creationDate><device model="m" version="1"/>
<pixels sizeX="64" sizeY="64"><dimension sizeX="64" sizeY="64" r="0" ifd="0"/></pixels>
<view {whole} offsetX="0" offsetY="0"/>
<scanSettings><objectiveSettings><objective>1</objective></objectiveSettings>
<illuminationSettings><numericalAperture>0.1</numericalAperture>
<illuminationSource>brightfield</illuminationSource></illuminationSettings></scanSettings></image>
<image name="main" uuid="urn:uuid:3">
<creationDate>2020-01-01T00:00:00Z</creationDate><device model="m" version="1"/>
<pixels {pixels}><dimension {pixels} r="0" ifd="1"/></pixels>
<view {area} {offset}/>
<scanSettings><objectiveSettings><objective>20</objective></objectiveSettings>
<illuminationSettings><numericalAperture>0.4</numericalAperture>
<illuminationSource>brightfield</illuminationSource></illuminationSettings></scanSettings></image>
</collection></scn>"""
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for index, page in enumerate((macro, image)):
            tiff.write(
                page,
                tile=(64, 64),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": 100},
                resolution=(1e4 / mpp,) * 2,
                resolutionunit="CENTIMETER",
                description=xml if index == 0 else None,
                metadata=None,
            )
    return path


class ArraySlide(Slide):
    """A slide in memory, with whatever bounds, spacing and holes a test needs."""

    backend = "array"

    def __init__(
        self, image, *, mpp=0.5, mpp_y=None, bounds=None, levels=1, valid=None, name="array"
    ):
        self.images = [image]
        for _ in range(levels - 1):
            self.images.append(halve(self.images[-1]))
        self.valid = valid
        self.name, self.path, self.format = name, Path(f"{name}.tif"), "array"
        height, width = image.shape[:2]
        self.levels = tuple(
            Level(
                Size(part.shape[1], part.shape[0]),
                true_downsample(width, part.shape[1]),
                true_downsample(height, part.shape[0]),
            )
            for part in self.images
        )
        self.spacing = Spacing(Mpp(mpp), Mpp(mpp_y or mpp))
        self.spacing_source = "test"
        self.bounds = bounds or Box(0, 0, width, height)
        self.reads: list[tuple[int, int, int, Size]] = []

    def read_level(self, level, x, y, size):
        self.reads.append((level, x, y, size))
        image = self.images[level]
        out = np.zeros((size.height, size.width, 3), np.uint8)
        ok = np.zeros((size.height, size.width), bool)
        rows = slice(max(y, 0), max(y + size.height, 0))
        columns = slice(max(x, 0), max(x + size.width, 0))
        part = image[rows, columns]
        top, left = max(-y, 0), max(-x, 0)
        here = (slice(top, top + part.shape[0]), slice(left, left + part.shape[1]))
        out[here] = part
        ok[here] = True
        if self.valid is not None and level == 0:
            ok[here] &= self.valid[rows, columns]
        return Region(out, None if ok.all() else ok)

    def close(self):
        pass


def noise(height: int, width: int, *, seed: int = 0) -> np.ndarray:
    """Uniform random RGB."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def stained(height: int, width: int, *, seed: int = 0, glass: int = 0) -> np.ndarray:
    """Purple-pink noise with the colours of H&E, inside a frame of ``glass`` px of glass."""
    rng = np.random.default_rng(seed)
    stains = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
    amounts = rng.gamma(2.0, (0.35, 0.2), (height, width, 2))
    image = 255 * np.exp(-amounts @ stains)
    image = np.clip(image + rng.normal(0, 2, image.shape), 0, 255)
    if glass:
        frame = np.full_like(image, 243)
        frame[glass:-glass, glass:-glass] = image[glass:-glass, glass:-glass]
        image = frame
    return np.rint(image).astype(np.uint8)


def make_heatmap(
    scores: npt.ArrayLike,
    placement: PixelMap,
    *,
    slide: str = "a",
    size: Size | None = None,
    bounds: Box | None = None,
    spacing: Spacing | None = None,
) -> Heatmap:
    """Return a heatmap; the slide ends where it does and has 0.25 µm/px, unless told otherwise."""
    scores = np.asarray(scores, np.float32)
    if size is None:
        height, width = scores.shape
        size = Size(
            int(placement.x + width * placement.scale_x),
            int(placement.y + height * placement.scale_y),
        )
    bounds = bounds or Box(0, 0, size.width, size.height)
    spacing = spacing or Spacing(0.25, 0.25)
    return Heatmap(slide, scores, placement, size, bounds, spacing)


class Dying(ArrayTiles):
    """Tiles whose reading fails after so many batches."""

    def __init__(self, tiles: np.ndarray, batches: int) -> None:
        super().__init__(tiles)
        self.left = batches

    def shuffled(self, batch, **order):
        for tiles in super().shuffled(batch, **order):
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            yield tiles


def import_images(folder: Path, images: np.ndarray, **values: object) -> None:
    """Write tiles as files of a new folder, and import them into a store at 0.5 µm/px."""
    folder.mkdir(parents=True)
    for number, pixels in enumerate(images):
        Image.fromarray(pixels).save(folder / f"{number:04d}.png")
    wsiad.import_tiles(**{"sources": folder, "mpp": 0.5, "quiet": True, **values})
