"""Read ground truth from files: which slides hold tumour, and the position of the tumour.

``reference.csv`` states which slides hold tumour. An annotation file or a mask image of a slide
states the position.

Outlines become masks by the rule of ASAP, the program that made the CAMELYON masks. ASAP paints
level 0 and takes the top-left pixel of each block for the next level, so a mask pixel is inside
an outline if its top-left corner is. A corner is inside if the outline winds around it at least
once (Sunday's winding number, in ``AnnotationToMask``); of two areas that share an edge, exactly
one contains the corners on it. ASAP also leaves out corners that lie exactly on the left or upper
side of an outline's bounding box. This is not done here: it would make a rectangle too small, and
no outline drawn by hand has such corners.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from wsiad.annotations import Annotations, Ring, Role
from wsiad.core.errors import EvaluationError, InputError
from wsiad.core.geometry import Mpp, Size
from wsiad.core.labels import (
    LABEL,
    NAME,
    SLIDE,
    cell_of,
    is_healthy,
    known_columns,
    label_of,
    understood_label,
)
from wsiad.evaluation.submission import read_rows, slide_name

_DELIMITERS = ",;\t"

_MASK_NAMES = ("{}", "{}_mask", "{}_evaluation_mask")
_PNG = (".png",)
_TIFF = (".tif", ".tiff")
_PLAUSIBLE_MPP = (0.05, 5.0)

MASK_SUFFIXES = _PNG + _TIFF
"""Suffixes of files that :func:`read_mask` accepts."""

MAX_MASK_PX = 1 << 28
"""Maximum pixels of a mask: level 5 of a slide of half a million pixels along each side."""


def read_reference(path: Path) -> dict[str, bool]:
    """Read the reference: which slides hold tumour.

    The columns are ``image`` (or ``slide`` …) and ``type`` (or ``label`` …), as in CAMELYON16;
    other columns are ignored. Columns and labels are those of manifests, see
    :mod:`wsiad.core.labels`.

    Returns
    -------
    dict of str to bool
        True for tumour, by slide, in the order of the file.

    Raises
    ------
    EvaluationError
        The file is missing or lists nothing, a column is missing, a label is not
        understood, or a slide is listed twice.
    """
    rows = read_rows(path, delimiters=_DELIMITERS)
    if not rows:
        raise EvaluationError("lists no slides", subject=str(path))
    header = rows[0].cells
    slide_at, label_at = _slide_column(header, path), _column(header, LABEL, path)
    labels: dict[str, bool] = {}
    for row in rows[1:]:
        where = f"{path}, row {row.number}"
        if len(row.cells) <= max(*slide_at, *label_at):
            raise EvaluationError("has fewer fields than the header", subject=where)
        slide = slide_name(_cell(row.cells, slide_at, where), subject=where)
        text = _cell(row.cells, label_at, where, label_of)
        if not text:
            raise EvaluationError(
                f"the label of {slide} is ''", subject=where, remedy="Write normal, or tumor."
            )
        try:
            label = understood_label(text, slide=slide)
        except InputError as error:
            raise EvaluationError(error.problem, subject=where, remedy=error.remedy) from None
        if slide in labels:
            raise EvaluationError(
                f"{slide} is listed twice", subject=where, remedy="Keep one of the rows."
            )
        labels[slide] = not is_healthy(label)
    if not labels:
        raise EvaluationError("lists no slides", subject=str(path))
    return labels


NOT_STATED = "not stated"
"""Name of the group of slides whose group is not known."""


def read_groups(
    path: Path, column: str, *, slides: Collection[str] | None = None
) -> dict[str, str]:
    """Read the group of each slide.

    Parameters
    ----------
    path : Path
        File that :func:`read_reference` accepts, or a manifest of slides: any CSV with the
        column and a column named ``image`` or ``slide``. If that column holds paths, the names
        of the files count.
    column : str
        Name of the column, such as ``center``, in any case.
    slides : collection of str, optional
        Names of the slides that matter; by default all. A name may include the last folders of a
        slide's path, as in ``patient1/1``.

    Returns
    -------
    dict of str to str
        Group by slide; `NOT_STATED` for an empty cell.

    Raises
    ------
    EvaluationError
        There is no such column, or a slide is in two groups.
    """
    rows = read_rows(path, delimiters=_DELIMITERS)
    if not rows:
        raise EvaluationError("lists no slides", subject=str(path))
    header = rows[0].cells
    slide_at = _slide_column(header, path)
    wanted = [at for at, cell in enumerate(header) if cell.casefold() == column.casefold()]
    if not wanted:
        raise _no_column(column, header, path)
    groups: dict[str, str] = {}
    for row in rows[1:]:
        where = f"{path}, row {row.number}"
        file = _cell(row.cells, slide_at, where)
        group = _cell(row.cells, wanted, where) or NOT_STATED
        for slide in _names(file, where):
            if groups.setdefault(slide, group) != group and (slides is None or slide in slides):
                raise EvaluationError(
                    f"{slide} is in {groups[slide]!r} already",
                    subject=where,
                    remedy="Keep one row.",
                )
    return groups


def _names(file: str, where: str) -> Iterator[str]:
    """Yield the names by which a file may be known: its own, and its own with its folders."""
    parts = Path(file).parts
    yield slide_name(Path(file).name, subject=where)
    for first in range(len(parts) - 2, -1, -1):
        try:
            yield slide_name("/".join(parts[first:]), subject=where)
        except EvaluationError:
            return


def _slide_column(header: Sequence[str], path: Path) -> list[int]:
    """Return the columns of the slides' files or, if there are none, of the slides' names."""
    columns = known_columns(header)
    return columns.get(SLIDE) or columns.get(NAME) or _column(header, SLIDE, path)


def _column(header: Sequence[str], column: str, path: Path) -> list[int]:
    if found := known_columns(header).get(column):
        return found
    raise _no_column({SLIDE: "image", LABEL: "type"}[column], header, path)


def _no_column(name: str, header: Sequence[str], path: Path) -> EvaluationError:
    return EvaluationError(
        f"has no column {name!r} (its columns: {', '.join(header).lower()})",
        subject=str(path),
        remedy="Name the columns in the first row, such as image,type.",
    )


def _cell(
    cells: Sequence[str],
    places: Sequence[int],
    where: str,
    meaning: Callable[[str], str | None] = str,
) -> str:
    try:
        return cell_of(cells, places, meaning=meaning)
    except InputError as error:
        raise EvaluationError(error.problem, subject=where, remedy=error.remedy) from None


@dataclass(frozen=True, slots=True, eq=False)
class TumourMask:
    """Mask image of a slide.

    Parameters
    ----------
    pixels : ndarray of bool, (H, W)
        True where there is tumour.
    mpp : Mpp or None
        µm per level-0 pixel, if a pyramidal TIFF states it.
    """

    pixels: npt.NDArray[np.bool_]
    mpp: Mpp | None = None


def find_truth(folder: Path, slide: str, *, suffixes: tuple[str, ...]) -> Path | None:
    """Find the one file of a slide, such as ``<slide>.xml``; ``None`` if there is none.

    Masks may also have the names of CAMELYON16, ``<slide>_mask.tif`` and
    ``<slide>_evaluation_mask.png``.

    Raises
    ------
    EvaluationError
        There are several files, so that all but one would be ignored.
    """
    names = _MASK_NAMES if suffixes == MASK_SUFFIXES else ("{}",)
    paths = [folder / f"{name.format(slide)}{suffix}" for name in names for suffix in suffixes]
    found = [path for path in paths if os.path.isfile(path)]  # noqa: PTH113 -- no name is too long
    if len(found) > 1:
        raise EvaluationError(
            f"has several files of ground truth: {', '.join(path.name for path in found)}",
            subject=slide,
            remedy="Keep one of them in the folder.",
        )
    return found[0] if found else None


def read_mask(path: Path, *, downsample: int) -> TumourMask:
    """Read a mask image.

    Tumour is 255 in an image of 0 and 255 (as in the 2016 script), and 2 in a TIFF of 0, 1 and
    2 (as in the data set). A TIFF with a pyramid is read at the level of ``downsample``.

    Parameters
    ----------
    path : Path
        PNG or TIFF with 8 bits, and one channel or several equal channels.
    downsample : int
        Level-0 pixels per mask pixel.

    Raises
    ------
    EvaluationError
        The file cannot be read, is too large, has no level of ``downsample``, or has other
        values. An image of 0 and 1 alone is refused too: 1 is tumour to some and tissue to
        others.
    """
    tiff = path.suffix.lower() in _TIFF
    try:
        values, mpp = _read_tiff(path, downsample) if tiff else (_read_png(path), None)
    except EvaluationError:
        raise
    except Exception as error:  # whatever a decoder makes of a damaged file
        raise EvaluationError(f"cannot be read as a mask ({error})", subject=str(path)) from error
    if values.ndim == 3 and values.shape[2] in (3, 4):
        if (values[..., :3] != values[..., :1]).any():
            raise EvaluationError(
                "has colours", subject=str(path), remedy="Save the mask as 8-bit grey."
            )
        values = values[..., 0]
    if values.dtype == np.bool_:
        return TumourMask(values, mpp)
    if values.dtype != np.uint8 or values.ndim != 2:
        raise EvaluationError(
            f"is not an 8-bit mask ({values.dtype}, shape {values.shape})",
            subject=str(path),
            remedy="Save the mask as 8-bit grey, tumour 255.",
        )
    return TumourMask(values == _tumour_value(values, path, tiff=tiff), mpp)


def _tumour_value(values: npt.NDArray[np.uint8], path: Path, *, tiff: bool) -> int:
    none, full = np.count_nonzero(values == 0), np.count_nonzero(values == 255)
    if none + full == values.size:
        return 255
    one, two = np.count_nonzero(values == 1), np.count_nonzero(values == 2)
    if tiff and two and none + one + two == values.size:
        return 2
    listed = ", ".join(str(value) for value in np.unique(values)[:8])
    raise EvaluationError(
        f"has the values {listed}, which do not say what is tumour",
        subject=str(path),
        remedy="Save tumour as 255 and all else as 0 (in a TIFF also: tumour 2, tissue 1).",
    )


def _check_size(width: int, height: int, path: Path) -> None:
    if width * height > MAX_MASK_PX or width < 1 or height < 1:
        raise EvaluationError(
            f"has {width} × {height} pixels, too many for a mask",
            subject=str(path),
            remedy="Save it at level 5, 32 level-0 pixels per pixel.",
        )


def _read_png(path: Path) -> npt.NDArray[Any]:
    from PIL import Image

    with warnings.catch_warnings():
        # Sizes are checked below; Pillow's own warning would come first.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(path, formats=["PNG"]) as image:
            _check_size(*image.size, path)
            if image.mode == "P":
                raise EvaluationError(
                    "has a palette", subject=str(path), remedy="Save the mask as 8-bit grey."
                )
            if image.mode in {"LA", "RGBA"}:
                return np.asarray(image.convert("RGB"))
            return np.asarray(image)


def _read_tiff(path: Path, downsample: int) -> tuple[npt.NDArray[Any], Mpp | None]:
    import tifffile

    with tifffile.TiffFile(path) as file:
        levels = file.series[0].levels
        level = levels[0]
        if len(levels) > 1:
            ratios = [levels[0].shape[1] / level.shape[1] for level in levels]
            nearest = int(np.argmin([abs(ratio - downsample) for ratio in ratios]))
            if abs(ratios[nearest] / downsample - 1) > 0.05:
                raise EvaluationError(
                    f"has no level of {downsample} level-0 pixels per pixel "
                    f"(its levels: {', '.join(f'{ratio:.4g}' for ratio in ratios)})",
                    subject=str(path),
                    remedy="Set --mask-downsample, or pass a mask with that level.",
                )
            level = levels[nearest]
        _check_size(level.shape[1], level.shape[0], path)
        return level.asarray(), _stated_mpp(file) if len(levels) > 1 else None


def _stated_mpp(file: Any) -> Mpp | None:
    """Return the µm/px that a pyramid's first page states in pixels per centimetre."""
    tags = file.pages[0].tags
    unit, resolution = tags.get("ResolutionUnit"), tags.get("XResolution")
    if unit is None or resolution is None or int(unit.value) != 3 or not resolution.value[0]:
        return None
    mpp = 1e4 * resolution.value[1] / resolution.value[0]
    return Mpp(mpp) if _PLAUSIBLE_MPP[0] <= mpp <= _PLAUSIBLE_MPP[1] else None


Mask = npt.NDArray[np.bool_]
"""Mask of tumour pixels, bool (H, W)."""

_BAND_PX = 1 << 22
"""Maximum pixels that are processed at a time, to bound memory for outlines of any size."""


def rasterise(
    annotations: Annotations,
    size: Size,
    *,
    scale: float,
    sample: Literal["corner", "centre"] = "corner",
) -> Mask:
    """Make a mask: paint the tumour outlines, then the cut-outs over them.

    Parameters
    ----------
    annotations : Annotations
        Outlines in level-0 pixels.
    size : Size
        Size of the mask, pixels.
    scale : float
        Level-0 pixels per mask pixel; the mask starts at the slide's corner.
    sample : str
        Point of a mask pixel that must be inside an outline: its top-left ``"corner"`` as in the
        CAMELYON masks, or its ``"centre"``, which is closer to the outline on average.

    Returns
    -------
    ndarray of bool, (H, W)
        True where the pixel is tumour.
    """
    mask = np.zeros((size.height, size.width), dtype=np.bool_)
    for role, value in ((Role.TUMOUR, True), (Role.CUT_OUT, False)):
        for outline in annotations.with_role(role):
            # To move the outline is to move the points that decide.
            shift = scale / 2 if sample == "centre" else 0.0
            shell, holes = outline.shell - shift, [hole - shift for hole in outline.holes]
            _paint(mask, shell, holes, value=value, scale=scale)
    return mask


def _paint(mask: Mask, shell: Ring, holes: Sequence[Ring], *, value: bool, scale: float) -> None:
    top, bottom, left, right = _bounds(shell, mask.shape, scale)
    if top >= bottom or left >= right:
        return
    # An edge may cross every row, so that their number bounds the rows as well.
    edges = max(len(ring) for ring in (shell, *holes))
    step = max(1, _BAND_PX // max(right - left, edges))
    for start in range(top, bottom, step):
        stop = min(start + step, bottom)
        inside = _wound(shell, (start, stop), (left, right), scale)
        for hole in holes:
            inside &= ~_wound(hole, (start, stop), (left, right), scale)
        mask[start:stop, left:right][inside] = value


def _bounds(ring: Ring, shape: tuple[int, ...], scale: float) -> tuple[int, int, int, int]:
    """Return the range of rows and columns of the mask that an outline can touch."""
    low = np.floor(ring.min(axis=0) / scale).astype(int)
    high = np.floor(ring.max(axis=0) / scale).astype(int) + 2
    (left, top), (right, bottom) = np.maximum(low, 0), np.minimum(high, shape[1::-1])
    return int(top), int(bottom), int(left), int(right)


def _wound(ring: Ring, rows: tuple[int, int], columns: tuple[int, int], scale: float) -> Mask:
    """Return the pixels whose corner a ring winds around, in a range of rows and columns."""
    start, end = ring, np.roll(ring, -1, axis=0)
    low = _first_row(np.minimum(start[:, 1], end[:, 1]), scale).clip(*rows)
    high = _first_row(np.maximum(start[:, 1], end[:, 1]), scale).clip(*rows)
    crossings = high - low
    edge = np.repeat(np.arange(len(ring)), crossings)
    before = np.repeat(np.cumsum(crossings) - crossings, crossings)
    row = np.arange(len(edge)) - before + low[edge]
    column = _crossing_column(start[edge], end[edge], row, scale)
    direction = np.where(end[edge, 1] > start[edge, 1], 1, -1)
    winding = np.zeros((rows[1] - rows[0], columns[1] - columns[0] + 1), dtype=np.int32)
    # An edge counts for every corner to the left of it.
    np.add.at(winding, (row - rows[0], 0), direction)
    np.add.at(winding, (row - rows[0], column.clip(*columns) - columns[0]), -direction)
    return np.asarray(np.cumsum(winding, axis=1)[:, :-1] != 0)


def _first_row(y: npt.NDArray[np.float64], scale: float) -> npt.NDArray[np.int64]:
    """Return the first row whose corner is not above y."""
    row = np.ceil(y / scale)
    # The quotient is rounded; the product decides, as it does for the corner itself.
    row = np.where((row - 1) * scale >= y, row - 1, row)
    return np.where(row * scale < y, row + 1, row).astype(np.int64)


def _crossing_column(
    start: npt.NDArray[np.float64],
    end: npt.NDArray[np.float64],
    row: npt.NDArray[np.int64],
    scale: float,
) -> npt.NDArray[np.int64]:
    """Return the first column whose corner is not to the left of the edge at this row."""
    (x0, y0), (dx, dy) = start.T, (end - start).T
    y = row * scale
    column = np.ceil((x0 + (y - y0) * dx / dy) / scale)

    def is_left(candidate: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        return np.sign(dy) * (dx * (y - y0) - (candidate * scale - x0) * dy) > 0

    column = np.where(is_left(column - 1), column, column - 1)
    return np.where(is_left(column), column + 1, column).astype(np.int64)
