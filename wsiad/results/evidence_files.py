"""Read the files about a slide's strongest regions, as untrusted input.

There are two files, and each may be absent: ``regions.json`` with the fields of view around the
regions, and ``evidence.json`` with the healthy tiles that are nearest to them. The regions
themselves are in ``regions.csv``. Names in the files are relative to the folder and cannot lead
out of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeVar

import pydantic
from pydantic import Field, ValidationInfo

from wsiad.core.errors import ExportError
from wsiad.core.files import read_json
from wsiad.core.typed_files import checked
from wsiad.results.file_names import EVIDENCE, FIELDS

T = TypeVar("T", bound="_File")


def _within(name: Path, info: ValidationInfo) -> Path:
    """Return the file of a name, if it is in the folder whose file contains the name."""
    folder: Path = info.context["folder"]  # type: ignore[index]
    file = folder / name
    # Resolved: a link within the folder may lead out of it too.
    if name.is_absolute() or not file.resolve().is_relative_to(folder.resolve()):
        raise ValueError("leads out of the folder")
    return file


_Inside = Annotated[Path, pydantic.AfterValidator(_within)]
_Positive = Annotated[float, Field(gt=0)]


class _Value(pydantic.BaseModel):
    """Base of the values; unknown keys, which later versions may add, are ignored."""

    model_config = pydantic.ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class RegionField(_Value):
    """Field of view around a region.

    Parameters
    ----------
    rank : int
        Rank of the region by its highest score, from 1.
    image : Path
        Picture of the field, with the region outlined.
    x, y, width, height : float
        Rectangle of the field, level-0 pixels.
    across_um : float
        Width of the field, µm.
    bar_um : float
        Length of the bar in the picture, µm.
    """

    rank: Annotated[int, Field(ge=1)]
    image: _Inside
    x: float
    y: float
    width: _Positive
    height: _Positive
    across_um: _Positive
    bar_um: _Positive


class HealthyTile(_Value):
    """Healthy training tile with its position, level-0 pixels, and its distance to a window.

    Imported tiles have no position.
    """

    slide: str
    x: float | None
    y: float | None
    distance: float
    tile: _Inside


class RegionEvidence(_Value):
    """Evidence of a region: its strangest window and the nearest healthy tiles.

    Parameters
    ----------
    rank : int
        Rank of the region by its highest score, from 1.
    x, y, width, height : float
        Rectangle of the strangest window, level-0 pixels.
    score, percentile, area_um2 : float
        Score and percentile of that window, and area of the region, µm².
    mpp : float
        Scale of the tiles, µm/px.
    tile : Path
        Picture of the window as the detector gets it.
    nearest : tuple of HealthyTile
        Healthy tiles, nearest first.
    reconstruction, difference : Path or None
        Pictures of the reconstruction and of the difference, if the detector reconstructs.
    """

    rank: Annotated[int, Field(ge=1)]
    x: float
    y: float
    width: _Positive
    height: _Positive
    score: float
    percentile: Annotated[float, Field(ge=0, le=100)]
    area_um2: _Positive
    mpp: _Positive
    tile: _Inside
    nearest: tuple[HealthyTile, ...] = ()
    reconstruction: _Inside | None = None
    difference: _Inside | None = None


class _File(_Value):
    format: Literal[1]


class _Regions(_File):
    regions: tuple[RegionField, ...] = ()


class _Evidence(_File):
    regions: tuple[RegionEvidence, ...] = ()


def read_fields(folder: Path) -> tuple[RegionField, ...]:
    """Read ``regions.json`` of a slide's folder; empty if there is no such file.

    Raises
    ------
    ExportError
        The file is damaged, or names a file outside the folder.
    """
    found = _read(folder / FIELDS, _Regions)
    return found.regions if found else ()


def read_evidence(folder: Path) -> tuple[RegionEvidence, ...]:
    """Read ``evidence.json`` of a slide's folder; empty if there is no such file.

    Raises
    ------
    ExportError
        The file is damaged, or names a file outside the folder.
    """
    found = _read(folder / EVIDENCE, _Evidence)
    return found.regions if found else ()


def _read(path: Path, kind: type[T]) -> T | None:
    if not path.exists():
        return None
    remedy = f"Delete {path.parent} and run wsiad heatmap again."
    try:
        values = read_json(path, ExportError, remedy=remedy)
    except ExportError as error:
        raise ExportError(
            f"is damaged: {error.problem}", subject=str(path), remedy=remedy
        ) from None
    return checked(kind, values, path, ExportError, remedy=remedy)
