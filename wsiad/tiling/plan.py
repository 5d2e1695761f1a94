"""The plan of a slide: its tissue, its grid and its colour table, before any tile is read.

Coordinates of tiles that CLAM, TRIDENT or wsiad wrote can replace the grid, and outlines of tumour
can choose from it. The target of the stain normalisation is the documented default, or the stain
of an image or slide.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from PIL import Image, UnidentifiedImageError

from wsiad.annotations import SUFFIXES, read_annotations
from wsiad.core.errors import InputError, SlideOpenError, StainError
from wsiad.core.geometry import Grid, IntArray, Mpp, Size
from wsiad.core.hdf5 import dataset, open_hdf5, reading
from wsiad.slides.inspection import check_pixels
from wsiad.slides.opening import open_slide
from wsiad.slides.scaled import ScaledSlide
from wsiad.slides.slide import Region, Slide
from wsiad.stain.colour_table import ColourTable
from wsiad.stain.colours import ColourHistogram
from wsiad.stain.fit import fit_stains
from wsiad.stain.profile import StainProfile, reference_profile
from wsiad.tiling.preparation import Preparation, StainOptions
from wsiad.tissue.artefacts import without_ink
from wsiad.tissue.mask import TissueMask, coverage, find_tissue
from wsiad.tissue.tissue_options import QualityOptions

_MOST = 50_000_000
_ATTRIBUTES = ("patch_size_level0", "patch_size", "patch_level", "custom_downsample")
_TOLERANCE = 0.01
"""Maximum relative difference between the edges of a patch and of a tile that count as equal."""


def find_coordinates(folder: Path, name: str) -> Path:
    """Find a slide's file of coordinates or outlines.

    Coordinates are ``<name>.h5`` or ``<name>_patches.h5``, also in ``patches/``; outlines are
    ``<name>.xml``, ``<name>.geojson`` or ``<name>.json``.

    Raises
    ------
    InputError
        There is no such file, or there are several of outlines.
    """
    for part in (folder, folder / "patches"):
        for file in (f"{name}.h5", f"{name}_patches.h5"):
            if (part / file).is_file():
                return part / file
    outlines = [path for end in SUFFIXES if (path := folder / f"{name}{end}").is_file()]
    if len(outlines) > 1:
        raise InputError(
            f"has several files of outlines: {', '.join(path.name for path in outlines)}",
            subject=name,
            remedy="Keep one of them in the folder.",
        )
    if outlines:
        return outlines[0]
    raise InputError(
        f"has neither coordinates, {name}.h5 or {name}_patches.h5, nor outlines, {name}.xml or "
        f"{name}.geojson, in {folder}",
        subject=name,
        remedy="Name the file as the slide, or leave the slide out.",
    )


def read_corners(path: Path, scaled: ScaledSlide, *, tile: int) -> npt.NDArray[np.float64]:
    """Read the top-left corners of patches, and check that a patch is as large as a tile.

    Parameters
    ----------
    path : Path
        HDF5 file with ``coords``; see docs/interchange.md for its attributes.
    scaled : ScaledSlide
        The slide at the tiles' scale.
    tile : int
        Edge of the tiles, pixels at that scale.

    Returns
    -------
    ndarray of float64, (N, 2)
        Corners x, y in level-0 pixels.

    Raises
    ------
    InputError
        The file has no such content, or its patches are larger or smaller than the tiles.
    """
    with reading(path), open_hdf5(path) as file:
        coords = dataset(file, "coords", path=path)
        shape = tuple(coords.shape or ())
        if len(shape) != 2 or shape[1] != 2 or shape[0] > _MOST or coords.dtype.kind not in "iu":
            raise InputError(
                f"its `coords` is {coords.dtype} {shape}, not integers (N, 2)", subject=str(path)
            )
        attributes = {name: coords.attrs[name] for name in _ATTRIBUTES if name in coords.attrs}
        corners = np.asarray(coords[...], dtype=np.float64)
    try:
        edge = _edge(attributes, scaled)
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise InputError(
            f"its `coords` do not state the patch size ({error})",
            subject=str(path),
            remedy="It needs `patch_size_level0`, or `patch_size` and `patch_level`.",
        ) from error
    covered = tile * scaled.pixels.scale_x
    if not abs(edge - covered) <= max(1.0, _TOLERANCE * covered):
        mpp = edge * scaled.slide.spacing.x / tile
        raise InputError(
            f"its patches have {edge:g} level-0 px, but the tiles cover {covered:g}",
            subject=str(path),
            remedy=f"Pass --mpp {mpp:.4g}, or --tile {round(edge / scaled.pixels.scale_x)}.",
        )
    return corners


def _edge(attributes: dict[str, Any], scaled: ScaledSlide) -> float:
    """Return the edge of the patches, level-0 pixels."""
    if "patch_size_level0" in attributes:
        edge = float(attributes["patch_size_level0"])
    else:
        level = int(attributes["patch_level"])
        if level < 0:
            raise ValueError(f"patch_level is {level}")
        down = scaled.slide.levels[level].downsample_x
        further = float(attributes.get("custom_downsample", 1))
        edge = float(attributes["patch_size"]) * down * further
    if not (math.isfinite(edge) and edge > 0):
        raise ValueError(f"the patch size is {edge}")
    return edge


_SAMPLE_PX = 128
"""Edge of the patches from which stains are estimated. They have a grid of their own, so that
``tile`` and ``heatmap`` estimate the same stains whatever their tiles."""


@dataclass(frozen=True, slots=True)
class SlidePlan:
    """The plan of a slide: the tiles to read, and the map of their colours.

    Parameters
    ----------
    scaled : ScaledSlide
        The slide at the tiles' scale.
    tissue : TissueMask
    grid : Grid
    rows, columns : ndarray of int32, (N,)
        Lattice positions of the tiles with enough tissue, in reading order.
    coverage : ndarray of float32, (N,)
        Tissue coverage of the tiles, 0 to 1.
    stain : StainProfile
        The slide's own stains, or the fallback with its reason.
    table : ColourTable
        Map from the slide's colours to the target's.
    outside : int
        Number of requested tiles that are not completely within the slide.
    quality : QualityOptions
        Thresholds that the tiles must pass to be used.
    min_coverage : float or None
        Tissue coverage that a tile needs; ``None`` if coordinates place the tiles.
    """

    scaled: ScaledSlide
    tissue: TissueMask
    grid: Grid
    rows: IntArray
    columns: IntArray
    coverage: npt.NDArray[np.float32]
    stain: StainProfile
    table: ColourTable
    outside: int = 0
    quality: QualityOptions = field(default_factory=QualityOptions)
    min_coverage: float | None = None

    def __len__(self) -> int:
        return len(self.rows)


def plan_slide(
    slide: Slide,
    options: Preparation,
    *,
    target: StainProfile,
    tile: int | None = None,
    stride: int | None = None,
    coordinates: Path | None = None,
    stain: StainProfile | None = None,
    like: SlidePlan | None = None,
) -> SlidePlan:
    """Plan the tiles of a slide.

    Parameters
    ----------
    slide : Slide
    options : Preparation
    target : StainProfile
        Stain profile to which the tiles are normalised.
    tile, stride : int, optional
        Edge and step of a detector's own windows, instead of those of the options.
    coordinates : Path, optional
        HDF5 file with the positions of tiles, which are used whatever their coverage; or outlines,
        of which the tiles with enough tissue are used whose centre is in a tumour. The lattice
        has a step of one pixel; a tile is at most half a pixel from its position.
    stain : StainProfile, optional
        The slide's own stains, from an earlier plan with these options. They are estimated by
        default, which takes most of the time of a plan.
    like : SlidePlan, optional
        An earlier plan of this slide with these options. All of it is taken, with the colours
        that its table knows, but what is read is ``slide``.

    Raises
    ------
    UnusableSlideError
        The slide's pixels are not colours of 8 bits.
    ScaleError
        The slide is coarser than the tiles.
    SlideReadError
        The slide cannot be decoded.
    InputError
        The coordinates cannot be read, or do not belong to such tiles on this slide; or the JPEG
        decoder cannot scale the slide down, as the options want it.
    AnnotationError
        The outlines cannot be read.
    """
    check_pixels(slide)
    scaled = ScaledSlide(
        slide,
        Mpp(options.mpp),
        allow_upsampling=options.allow_upsampling,
        decode=options.decode,
    )
    if like is not None:
        return replace(like, scaled=scaled)
    tissue = find_tissue(slide, options.tissue)
    grid = Grid.cover(
        scaled.size,
        tile=tile or options.tile,
        stride=1 if coordinates else stride or options.step,
        pixels=scaled.pixels,
    )
    outside = 0
    if coordinates is None:
        rows, columns, share = select(grid, tissue, min_coverage=options.min_coverage)
    else:
        if coordinates.suffix.lower() in SUFFIXES:
            edge = grid.tile
            lattice = Grid.cover(scaled.size, tile=edge, stride=edge, pixels=scaled.pixels)
            least = options.min_coverage
            corners = _outlined(coordinates, slide, lattice, tissue=tissue, min_coverage=least)
        else:
            corners = read_corners(coordinates, scaled, tile=grid.tile)
            tissue = replace(tissue, colourless_share=0.0)  # its mask places no tile
        rows, columns, outside = _placed(grid, corners)
        if outside and not len(rows):
            raise InputError("is completely outside of the slide", subject=str(coordinates))
        share = coverage(tissue.mask, tissue.placement, grid.boxes(rows, columns))
    stain = stain or estimate_stains(scaled, tissue, options.stain)
    return SlidePlan(
        scaled=scaled,
        tissue=tissue,
        grid=grid,
        rows=rows,
        columns=columns,
        coverage=share,
        stain=stain,
        table=ColourTable.between(stain, target),
        outside=outside,
        quality=options.quality,
        min_coverage=None if coordinates else options.min_coverage,
    )


def _outlined(
    path: Path, slide: Slide, lattice: Grid, *, tissue: TissueMask, min_coverage: float
) -> npt.NDArray[np.float64]:
    """Return the corners, level-0 (N, 2), of a lattice's tiles whose centre is in a tumour."""
    bounds = slide.bounds
    area = read_annotations(path, bounds=(bounds.x, bounds.y)).tumour()
    rows, columns, _ = select(lattice, tissue, min_coverage=min_coverage)
    boxes = lattice.boxes(rows, columns)
    shapely.prepare(area)
    inside = shapely.contains_xy(area, *(boxes[:, :2] + boxes[:, 2:] / 2).T)
    return np.asarray(boxes[inside, :2])


def _placed(grid: Grid, corners: npt.NDArray[np.float64]) -> tuple[IntArray, IntArray, int]:
    """Place corners, level-0 (N, 2), on a grid of single pixels; count those outside."""
    x, y = grid.pixels.from_level0(corners[:, 0], corners[:, 1])
    places = np.unique(np.rint(np.stack([y, x], axis=1)), axis=0)
    inside = ((places >= 0) & (places < (grid.rows, grid.columns))).all(axis=1)
    rows, columns = places[inside].astype(np.int32).T
    return np.ascontiguousarray(rows), np.ascontiguousarray(columns), int((~inside).sum())


def select(
    grid: Grid, tissue: TissueMask, *, min_coverage: float
) -> tuple[IntArray, IntArray, npt.NDArray[np.float32]]:
    """Select the tiles with enough tissue, row by row.

    Returns
    -------
    rows, columns : ndarray of int32, (N,)
    coverage : ndarray of float32, (N,)
        Tissue coverage, above 0 and at least ``min_coverage``.
    """
    chosen: list[tuple[IntArray, IntArray, npt.NDArray[np.float32]]] = []
    every_column = np.arange(grid.columns, dtype=np.int32)
    # In bands of rows: a small stride on a large slide has a hundred million positions.
    band = max(1, 1_000_000 // max(1, grid.columns))
    for first in range(0, grid.rows, band):
        some = np.arange(first, min(first + band, grid.rows), dtype=np.int32)
        rows, columns = np.repeat(some, grid.columns), np.tile(every_column, len(some))
        share = coverage(tissue.mask, tissue.placement, grid.boxes(rows, columns))
        keep = (share >= min_coverage) & (share > 0)
        chosen.append((rows[keep], columns[keep], share[keep]))
    if not chosen:
        empty = np.empty(0, np.int32)
        return empty, empty, np.empty(0, np.float32)
    rows, columns, share = (np.concatenate(parts) for parts in zip(*chosen, strict=True))
    return rows, columns, share


def estimate_stains(scaled: ScaledSlide, tissue: TissueMask, options: StainOptions) -> StainProfile:
    """Estimate the stains of a slide from tissue patches spread over it.

    The patches are read at the tiles' own scale: at the mask's 8 µm/px every pixel is a mixture
    of nuclei and plasma, which would bring the two stain vectors closer together.

    Raises
    ------
    SlideReadError
        The slide cannot be decoded.
    """
    histogram = ColourHistogram()
    if options.method != "none":
        edge = min(_SAMPLE_PX, scaled.size.width, scaled.size.height)
        if edge > 0:
            # Outside of the mask, colours only tell the colour of the slide's glass.
            overview = tissue.thumbnail[::4, ::4]
            histogram.add(overview, np.zeros(overview.shape[:2], bool))
            _sample(
                histogram,
                scaled,
                tissue=tissue,
                edge=edge,
                count=max(1, options.sample_px // edge**2),
            )
    return fit_stains(histogram, method=options.method)


def _sample(
    histogram: ColourHistogram, scaled: ScaledSlide, tissue: TissueMask, edge: int, count: int
) -> None:
    grid = Grid.cover(scaled.size, tile=edge, stride=edge, pixels=scaled.pixels)
    rows, columns, _ = select(grid, tissue, min_coverage=0.5)
    if not len(rows):
        rows, columns, _ = select(grid, tissue, min_coverage=0.0)
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round())
    regions: list[Region] = []
    for at in chosen.astype(np.int64).tolist():
        # A patch costs the decoding of the file's tiles that it lies in.
        with scaled.slide.reading_ahead():
            left, top = int(columns[at]) * edge, int(rows[at]) * edge
            regions.append(scaled.read(left, top, Size(edge, edge)))
    # Red and violet ink have the colours of stains: only here can they be told apart.
    for region, usable in zip(regions, without_ink([r.rgb for r in regions]), strict=True):
        histogram.add(region.rgb, usable if region.valid is None else usable & region.valid)


def stain_target(options: Preparation) -> StainProfile:
    """Return the stain profile to which the options normalise slides.

    Raises
    ------
    StainError
        The target file is neither a slide nor an image, or has no usable stains.
    SlideError
        The target is a slide that cannot be read at the tiles' scale.
    """
    method, path = options.stain.method, options.stain.target
    if path is None or method == "none":
        return reference_profile(method)
    try:
        slide = open_slide(path, fallback_mpp=options.slide_mpp)
    except SlideOpenError:
        profile = fit_stains(_image_histogram(path), method=method)
    else:
        with slide:
            scaled = ScaledSlide(slide, Mpp(options.mpp), allow_upsampling=options.allow_upsampling)
            profile = estimate_stains(scaled, find_tissue(slide, options.tissue), options.stain)
    if profile.fallback:
        raise StainError(
            f"cannot serve as the stain target: {profile.fallback}",
            subject=str(path),
            remedy="Choose an H&E image or slide with well-stained tissue.",
        )
    return profile


def _image_histogram(path: Path) -> ColourHistogram:
    try:
        with Image.open(path) as image:
            rgba = np.asarray(image.convert("RGBA"))
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise StainError(
            f"cannot be read as a slide or an image: {error}",
            subject=str(path),
            remedy="Pass to --stain-target a slide, PNG, JPEG or TIFF.",
        ) from error
    histogram = ColourHistogram()
    histogram.add(np.ascontiguousarray(rgba[..., :3]), rgba[..., 3] == 255)
    return histogram
