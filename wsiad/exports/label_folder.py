"""Write a folder of windows to label: images to sort, a table, and GeoJSON for QuPath.

The images are the detector's input, pixel by pixel, so that `wsiad import-tiles --prepared-like`
takes them back when a reviewer has sorted them.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from wsiad.core.errors import InputError
from wsiad.core.files import atomic_folder, write_json, write_text
from wsiad.core.geometry import Box
from wsiad.core.images import save_png
from wsiad.core.typed_files import TableKind
from wsiad.exports.qupath.objects import write_suggestions

TABLE: Final = "suggestions.csv"
RECORD: Final = "suggestions.json"
UNSURE: Final = "unsure"
"""Folder of the images; its name is the class that they have before somebody has seen them."""
QUPATH: Final = "qupath"

_SCRATCH = ".candidates"
_NAME_BYTES = 120


@dataclass(frozen=True, slots=True)
class Suggestion:
    """Row of the table of windows to label.

    Parameters
    ----------
    rank : int
        Place in the order of the choice, from 1.
    slide : str
        Name of the slide, or of the group of an imported store.
    file : str
        Name of the image.
    number : int
        Number of the window in the results, or of the tile in the store.
    x, y, width, height : float or None
        Rectangle, level-0 pixels; ``None`` for tiles without positions.
    mpp : float
        Scale of the image, µm/px.
    score, percentile : float
        Score, and its percentile among healthy windows.
    strength : float
        Value by which it was a candidate.
    why : str
        Name of that value, ``"neighbourhood"`` or ``"score"``; or ``"unsure"`` for a window whose
        score is between usual and strange.
    """

    rank: int
    slide: str
    file: str
    number: int
    x: float | None
    y: float | None
    width: float | None
    height: float | None
    mpp: float
    score: float
    percentile: float
    strength: float
    why: str

    @property
    def box(self) -> tuple[float, float, float, float] | None:
        """Rectangle in level-0 pixels; ``None`` for tiles without positions."""
        if self.x is None or self.y is None or self.width is None or self.height is None:
            return None
        return self.x, self.y, self.width, self.height


SUGGESTIONS = TableKind(
    Suggestion, "windows to label", "Pass a folder that wsiad suggest made.", InputError
)


def read_suggestions(folder: Path) -> list[Suggestion]:
    """Read the windows of a folder that ``wsiad suggest`` made.

    Raises
    ------
    InputError
        The folder is another one, or its table is damaged.
    """
    return SUGGESTIONS.read(folder / TABLE)


def image_name(rank: int, slide: str, place: Sequence[float] | int) -> str:
    """Return the file name of a window: rank, slide, and its corner or number.

    Examples
    --------
    >>> image_name(3, "patient1/block2", (960.0, 1920.0))
    '003_patient1_block2_960_1920.png'
    >>> image_name(3, "tiles", 17)
    '003_tiles_17.png'
    """
    short = slide.replace("/", "_").encode()[-_NAME_BYTES:].decode(errors="ignore")
    numbers = [place] if isinstance(place, int) else [round(value) for value in place]
    return "_".join([f"{rank:03d}", short, *map(str, numbers)]) + ".png"


class LabelFolder:
    """Folder of windows to label, while it is written; see :func:`label_folder`.

    Parameters
    ----------
    path : Path
        Folder that is put in place when it is complete.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        (path / _SCRATCH).mkdir()
        (path / UNSURE).mkdir()

    @property
    def path(self) -> Path:
        """Folder to write other files to."""
        return self._path

    def keep(self, key: str, pixels: npt.NDArray[np.uint8]) -> None:
        """Keep the pixels of a candidate, uint8 (S, S, 3), on disk under a key."""
        save_png(pixels, self._path / _SCRATCH / f"{key}.png")

    def finish(
        self,
        rows: Sequence[tuple[str, Suggestion]],
        *,
        bounds: Mapping[str, Box],
        record: Mapping[str, Any],
    ) -> None:
        """Write the chosen windows, and drop the other candidates.

        Parameters
        ----------
        rows : sequence of (str, Suggestion)
            Key and row of each chosen window, in order of the rank.
        bounds : mapping of str to Box
            Non-empty part of each slide with known positions, level-0 pixels.
        record : mapping
            What made the choice, as JSON values.

        Raises
        ------
        ExportError
            QuPath would not import a window.
        """
        by_slide: dict[str, list[Suggestion]] = {}
        for key, row in rows:
            (self._path / _SCRATCH / f"{key}.png").rename(self._path / UNSURE / row.file)
            if row.slide in bounds and row.box is not None:
                by_slide.setdefault(row.slide, []).append(row)
        shutil.rmtree(self._path / _SCRATCH)
        write_text(self._path / TABLE, SUGGESTIONS.text(row for _, row in rows))
        for slide, mine in by_slide.items():
            write_suggestions(
                [(row.rank, row.box, row.score, row.percentile) for row in mine if row.box],
                self._path / QUPATH / f"{slide}.geojson",
                slide=slide,
                bounds=bounds[slide],
            )
        write_json(self._path / RECORD, dict(record))


@contextlib.contextmanager
def label_folder(path: Path) -> Iterator[LabelFolder]:
    """Yield a folder to write windows to label into; it is complete or absent afterwards.

    Raises
    ------
    InputError
        The folder holds something: perhaps images that somebody has sorted already.
    """
    taken = InputError(
        "holds windows to label, which may be sorted already"
        if (path / TABLE).exists()
        else "is not an empty folder",
        subject=str(path),
        remedy="Set another --out; pass this folder as --known to get other windows."
        if (path / TABLE).exists()
        else "Set another --out.",
    )
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise taken
    try:
        with atomic_folder(path, replace=False) as partial:
            yield LabelFolder(partial)
    except FileExistsError:
        raise taken from None
