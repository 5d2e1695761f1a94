"""Write the tiles of a store as image files, one folder per slide."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from PIL import Image

from wsiad.core.files import atomic_folder
from wsiad.core.images import save_png

if TYPE_CHECKING:
    from wsiad.store.stored_slide import StoredSlide

ImageFormat: TypeAlias = Literal["png", "jpeg"]

_SUFFIXES: dict[ImageFormat, str] = {"png": ".png", "jpeg": ".jpg"}


@dataclass(frozen=True, slots=True)
class TileFile:
    """Tile and the name of its file.

    Parameters
    ----------
    index : int
        Index of the tile in its slide.
    file : str
        Name of the file in the slide's folder.
    box : tuple of float or None
        x, y, width and height, level-0 pixels, if they are known.
    """

    index: int
    file: str
    box: tuple[float, float, float, float] | None


def tile_files(slide: StoredSlide, kind: ImageFormat) -> list[TileFile]:
    """Return the names of the files of a slide's tiles.

    A name is ``<x>_<y>`` of the top-left corner, in whole level-0 pixels. It is the number of the
    tile if positions are not known; the number is added if tiles are so close together that names
    would be equal.
    """
    suffix = _SUFFIXES[kind]
    numbers = [f"{index:07d}" for index in range(len(slide))]
    if not slide.has_geometry:
        return [TileFile(i, f"{number}{suffix}", None) for i, number in enumerate(numbers)]
    lattice = slide.column("lattice").reshape(-1, 2)
    boxes = slide.grid.boxes(lattice[:, 0], lattice[:, 1])
    names = [f"{x}_{y}" for x, y in np.rint(boxes[:, :2]).astype(np.int64).tolist()]
    if len(set(names)) < len(names):
        names = [f"{name}_{number}" for name, number in zip(names, numbers, strict=True)]
    return [
        TileFile(index, f"{name}{suffix}", (box[0], box[1], box[2], box[3]))
        for index, (name, box) in enumerate(zip(names, boxes.tolist(), strict=True))
    ]


def write_tile_images(
    slide: StoredSlide, folder: Path, *, kind: ImageFormat, quality: int
) -> list[TileFile]:
    """Write a slide's tiles as files; the folder is complete or absent.

    Parameters
    ----------
    slide : StoredSlide
        Slide to write.
    folder : Path
        Folder to write; replaced if it exists.
    kind : {"png", "jpeg"}
        Format of the files; PNG keeps the pixels as they are.
    quality : int
        Quality of JPEG, 1 to 100; its colours have full resolution.
    """
    files = tile_files(slide, kind)
    with atomic_folder(folder) as partial:
        for start in range(0, len(slide), slide.chunk):
            stop = min(start + slide.chunk, len(slide))
            for file, pixels in zip(files[start:stop], slide.tiles(start, stop), strict=True):
                path = partial / file.file
                if kind == "png":
                    save_png(pixels, path)
                else:
                    Image.fromarray(pixels).save(
                        path, format="JPEG", quality=quality, subsampling=0
                    )
    return files
