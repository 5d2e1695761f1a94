"""Read the results of one slide from its folder."""

from __future__ import annotations

import base64
import html
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from wsiad.core.errors import ExportError, InputError
from wsiad.core.files import parse_json
from wsiad.core.geometry import Box, Mpp, PixelMap, Size, Spacing
from wsiad.core.terminal import counted
from wsiad.heatmaps.heatmap_task import HeatmapRow
from wsiad.heatmaps.score_map import (
    Heatmap,
    read_description,
    read_scores,
    read_window_table,
    read_windows,
)
from wsiad.results import file_names as names
from wsiad.results.evidence_files import RegionEvidence, RegionField, read_evidence, read_fields
from wsiad.results.outline_shapes import OutlinedShape, read_shapes
from wsiad.results.records import (
    SCORE_AGAIN,
    HeatmapPlacement,
    heatmap_placement,
    slide_bounds,
    slide_facts,
)
from wsiad.results.region_table import RegionRow, outlined, read_regions
from wsiad.slides.slide_table import FAILED, NO_TISSUE, OK, UNUSABLE

if TYPE_CHECKING:
    from wsiad.evaluation.matching import Detections
    from wsiad.heatmaps.regions import Region

_DERIVE_AGAIN = "Run wsiad export with --scales-um again."
_LARGEST_THUMBNAIL = 1 << 18
_LEFT_OUT_COLUMNS = ("x", "y", "width", "height", "reason")
_WHY = {
    NO_TISSUE: "no tissue was found on it",
    UNUSABLE: "it could not be looked at",
    FAILED: "it failed",
}


@dataclass(frozen=True, slots=True, repr=False)
class SlideResults:
    """Results of one slide, as :meth:`wsiad.Results.slide` returns them.

    Each method reads its file when it is called. A slide that was not scored has no heatmap,
    windows, regions or detections. Reading them raises an error that states why, and never
    returns an empty answer.

    Parameters
    ----------
    results : Path
        Results folder.
    folder : Path
        Folder of the slide in it.
    row : HeatmapRow
        Row of the slide in ``slides.csv``: status, reason, scores rounded to nine digits, counts.

    Examples
    --------
    >>> slide = Results("results/").slide("test_001")  # doctest: +SKIP
    >>> slide.heatmap().scores.shape  # doctest: +SKIP
    (431, 268)
    """

    results: Path
    folder: Path
    row: HeatmapRow

    def __repr__(self) -> str:
        score = self.row.score_max
        told = [self.row.status]
        if score is not None:
            told.append(f"score {score:.6g}")
        if self.row.regions is not None:
            told.append(f"{counted(self.row.regions, 'region')}")
        return f"SlideResults({self.name!r}: {', '.join(told)})"

    def _repr_html_(self) -> str:
        path = self.folder / names.THUMBNAIL
        picture = ""
        if path.is_file() and path.stat().st_size <= _LARGEST_THUMBNAIL:
            data = base64.b64encode(path.read_bytes()).decode()
            picture = f'<br><img src="data:image/jpeg;base64,{data}" alt="">'
        reason = f"<br>{html.escape(self.row.reason)}" if self.row.reason else ""
        return f"<p>{html.escape(repr(self))}{reason}{picture}</p>"

    @property
    def name(self) -> str:
        """Name of the slide."""
        return self.row.slide

    @property
    def is_scored(self) -> bool:
        """True where the slide has scores and therefore a heatmap."""
        return self.row.status == OK

    def file(self, name: str) -> Path | None:
        """Return a file of the slide's folder, or ``None`` if it does not exist.

        Older versions of wsiad wrote fewer files.
        """
        path = self.folder / name
        return path if path.exists() else None

    def facts(self) -> dict[str, Any] | None:
        """Read the record of the results, ``slide.json``; ``None`` if there is no such file.

        Returns
        -------
        dict or None
            ``digest``, ``fingerprint``, ``row`` and more.

        Raises
        ------
        InputError
            The record is damaged.
        """
        return slide_facts(self.folder)

    def fingerprint(self) -> str:
        """Read the fingerprint of the slide that was scored.

        Raises
        ------
        InputError
            The record is missing or damaged.
        """
        facts = self.facts()
        if facts is None:
            raise InputError(f"has no {names.SLIDE}", subject=str(self.folder), remedy=SCORE_AGAIN)
        return str(facts["fingerprint"])

    def score(self, kind: Literal["max", "top_k_mean", "scan"] = "max") -> float | None:
        """Read a score of the slide with all its digits; ``None`` if it has none.

        The table rounds to nine digits; the slide's record has the exact number. If the score in
        the table is not the rounded one of the record, somebody has changed it, and it counts.

        Raises
        ------
        InputError
            The record is damaged.
        """
        value: float | None = getattr(self.row, f"score_{kind}")
        facts = self.facts() if value is not None else None
        exact = ((facts or {}).get("row") or {}).get(f"score_{kind}")
        if value is None or exact is None or f"{exact:.9g}" != f"{value:.9g}":
            return value
        return float(exact)

    def placement(self) -> HeatmapPlacement | None:
        """Read the position of the heatmap and its colour scale; ``None`` if there is no file.

        Raises
        ------
        InputError
            The record is damaged.
        """
        return heatmap_placement(self.folder)

    def bounds(self) -> Box | None:
        """Read the bounds of the slide, level-0 pixels; ``None`` if there is no file.

        Raises
        ------
        InputError
            The record is damaged.
        """
        return slide_bounds(self.folder)

    def scores(self, *, few: int | None = None) -> npt.NDArray[np.float32]:
        """Read the scores of the heatmap without their position.

        Parameters
        ----------
        few : int, optional
            Maximum number of pixels: the finest level with at most this many is read, or else
            the coarsest. By default the full resolution is read.

        Returns
        -------
        ndarray of float32, (H, W)
            Scores; NaN where nothing was scored.

        Raises
        ------
        InputError
            The slide was not scored, or its heatmap is missing or damaged, or has no score.
        """
        path = self._scored(names.HEATMAP)
        scores = read_scores(path, InputError, remedy=SCORE_AGAIN, few=few)
        if not np.isfinite(scores).any():
            raise InputError("holds no score", subject=str(path), remedy=SCORE_AGAIN)
        return scores

    def heatmap(self) -> Heatmap:
        """Read the heatmap with its position, with exactly the numbers that were written.

        Returns
        -------
        Heatmap
            ``scores`` (float32, H × W, NaN where nothing was scored), ``placement`` to level-0
            pixels, and size, bounds and µm/px of the slide.

        Raises
        ------
        InputError
            The slide was not scored, a file is missing or damaged, or two files do not fit.
        """
        return self._placed(self.scores())

    def neighbourhood_scores(self, *, few: int | None = None) -> npt.NDArray[np.float32] | None:
        """Read the scores of :meth:`neighbourhoods` without their position.

        Parameters
        ----------
        few : int, optional
            Maximum number of pixels, see :meth:`scores`.

        Raises
        ------
        InputError
            The slide was not scored, or the file is damaged.
        """
        path = self._scored(names.HEATMAP).parent / names.SPATIAL
        if not path.exists():
            return None
        return read_scores(path, InputError, remedy=_DERIVE_AGAIN, few=few)

    def neighbourhoods(self) -> Heatmap | None:
        """Read the map of neighbourhoods that regions come from; ``None`` if there is none.

        Returns
        -------
        Heatmap or None
            ``scores`` are standard deviations above the means of such neighbourhoods on healthy
            slides. Position and assessed pixels are those of :meth:`heatmap`.

        Raises
        ------
        InputError
            The slide was not scored, a file is damaged, or two files do not fit.
        """
        scores = self.neighbourhood_scores()
        return None if scores is None else self._placed(scores)

    def _placed(self, scores: npt.NDArray[np.float32]) -> Heatmap:
        placement = self.placement()
        if placement is None:
            raise InputError(
                f"has no {names.PLACEMENT}", subject=str(self.folder), remedy=SCORE_AGAIN
            )
        return Heatmap(
            slide=self.name,
            scores=scores,
            placement=self._pixel_map(Size(scores.shape[1], scores.shape[0]), placement),
            slide_size=Size(placement.slide_size.width, placement.slide_size.height),
            bounds=placement.bounds.box(),
            spacing=Spacing(Mpp(placement.level0_um_per_px.x), Mpp(placement.level0_um_per_px.y)),
        )

    def _pixel_map(self, size: Size, placement: HeatmapPlacement) -> PixelMap:
        factor = placement.heatmap_pixels_per_image_pixel
        shown = placement.image_size
        covered = placement.level0_rectangle.box()
        across, down = shown.width * factor, shown.height * factor
        path = self.folder / names.HEATMAP
        # Divided, the scale may be one unit in the last place off; the image has it as it was.
        exact = _described_map(read_description(path, InputError, remedy=SCORE_AGAIN))
        fits = (shown.width, shown.height) == (-(-size.width // factor), -(-size.height // factor))
        if fits and exact is None:
            return PixelMap(covered.x, covered.y, covered.width / across, covered.height / down)
        if not fits or exact is None or exact.box(Size(across, down)) != covered:
            raise InputError(
                f"belongs to another heatmap than {names.HEATMAP} in the same folder",
                subject=str(self.folder / names.PLACEMENT),
                remedy=SCORE_AGAIN,
            )
        return exact

    def windows(self) -> npt.NDArray[Any]:
        """Open the scored windows, memory-mapped and read-only.

        Returns
        -------
        structured ndarray, (N,)
            Fields ``x``, ``y``, ``width``, ``height`` (level-0 pixels), ``score`` and
            ``percentile`` (among healthy windows, 0 to 100), float64.

        Raises
        ------
        InputError
            The slide was not scored, or the file is missing or damaged.
        """
        path = self._scored(names.WINDOWS)
        return read_windows(path, self.name, InputError, remedy=SCORE_AGAIN)

    def left_out(self) -> npt.NDArray[Any]:
        """Open the windows with tissue that were not scored.

        Returns
        -------
        structured ndarray, (N,)
            Fields ``x``, ``y``, ``width``, ``height`` (level-0 pixels) and ``reason`` (text).

        Raises
        ------
        InputError
            The file is missing or damaged.
        """
        path = self.folder / names.LEFT_OUT
        return read_window_table(path, _LEFT_OUT_COLUMNS, InputError, remedy=SCORE_AGAIN)

    def regions(self) -> list[Region]:
        """Read the regions with their outlines, strongest first, and p-values if there are any.

        Raises
        ------
        InputError
            The slide was not scored, or was scored by a version of wsiad without this table; or
            the outlines are missing or damaged.
        ExportError
            The table is damaged, or has other regions than the outlines.
        """
        from wsiad.exports.qupath.objects import SCORE

        rows, shapes = self.region_rows(), self.outlines()
        if len(rows) != len(shapes):
            raise ExportError(
                f"holds {counted(len(shapes), 'region')}, but {names.REGIONS} next to it holds "
                f"{len(rows)}",
                subject=str(self.folder / names.OUTLINES),
                remedy=SCORE_AGAIN,
            )
        pairs = list(zip(rows, shapes, strict=True))
        for row, shape in pairs:
            # A killed export leaves a table and outlines of different options. Earlier versions
            # rounded one of them to nine digits.
            outlined_score = shape.measurements.get(SCORE, row.max_score)
            if not math.isclose(outlined_score, row.max_score, rel_tol=1e-6):
                raise ExportError(
                    f"holds other regions than {names.REGIONS} next to it",
                    subject=str(self.folder / names.OUTLINES),
                    remedy="Run wsiad export on the results again.",
                )
        return [outlined(row, shape) for row, shape in pairs]

    def region_scores(self) -> npt.NDArray[np.float64]:
        """Read the maximum scores of the regions, strongest first, without their outlines.

        Raises
        ------
        InputError
            The slide was not scored, or was scored by a version of wsiad without this table.
        ExportError
            The table is damaged.
        """
        return np.array([row.max_score for row in self.region_rows()], np.float64)

    def region_rows(self) -> list[RegionRow]:
        """Read the table of the regions, strongest first, without their outlines.

        Raises
        ------
        InputError
            The slide was not scored, or was scored by a version of wsiad without this table.
        ExportError
            The table is damaged.
        """
        path = self._scored(names.REGIONS)
        if not path.exists():
            raise InputError(
                f"has no {names.REGIONS}", subject=str(self.folder), remedy=SCORE_AGAIN
            )
        return read_regions(path)

    def detections(self) -> Detections:
        """Read the detections.

        Returns
        -------
        Detections
            ``confidence``, ``x`` and ``y`` (level-0 pixels) as arrays of float64, (N,).

        Raises
        ------
        InputError
            The slide was not scored.
        EvaluationError
            The file is missing or damaged.
        """
        from wsiad.evaluation.submission import read_detections

        path = self._scored(names.DETECTIONS)
        width, height = self.row.width, self.row.height
        limit = Size(width, height) if width and height else None
        return read_detections(path, self.name, limit=limit)

    def outlines(self) -> list[OutlinedShape]:
        """Read the regions as outlines in level-0 pixels, strongest first.

        Raises
        ------
        InputError
            The slide was not scored, or the file is missing or damaged.
        """
        return self._shapes(self._scored(names.OUTLINES))

    def not_assessed(self) -> list[OutlinedShape]:
        """Read the parts that were not assessed, as outlines in level-0 pixels.

        Raises
        ------
        InputError
            The file is missing, as in the results of a slide that failed, or damaged.
        """
        return self._shapes(self.folder / names.NOT_ASSESSED)

    def _shapes(self, path: Path) -> list[OutlinedShape]:
        # Without a heatmap nothing was found that bounds could move.
        whole = Box(0, 0, self.row.width or 0, self.row.height or 0)
        return read_shapes(path, self.bounds() or whole)

    def fields(self) -> tuple[RegionField, ...]:
        """Read the fields of view around the strongest regions; empty if there is no file.

        Raises
        ------
        ExportError
            The file is damaged, or names a picture outside the slide's folder.
        """
        return read_fields(self.folder)

    def evidence(self) -> tuple[RegionEvidence, ...]:
        """Read the evidence of the strongest regions; empty if there is no file.

        Raises
        ------
        ExportError
            The file is damaged, or names a picture outside the slide's folder.
        """
        return read_evidence(self.folder)

    def _scored(self, name: str) -> Path:
        """Return a file that every scored slide has.

        Raises
        ------
        InputError
            The slide was not scored; the error states why.
        """
        if not self.is_scored:
            why = _WHY.get(self.row.status, f"its status is {self.row.status!r}")
            reason = f" ({self.row.reason})" if self.row.reason else ""
            raise InputError(
                f"was not scored: {why}{reason}", subject=f"{self.name} of {self.results}"
            )
        return self.folder / name


_DESCRIPTION = re.compile(r"<Description>(.*?)</Description>", re.DOTALL)


def _described_map(description: str) -> PixelMap | None:
    """Return the position that an OME-XML states; ``None`` if it states none."""
    found = _DESCRIPTION.search(description)
    try:
        values = parse_json(html.unescape(found.group(1))) if found else None
    except (ValueError, json.JSONDecodeError):
        return None
    if not isinstance(values, dict):
        return None
    keys = ("level0_x", "level0_y", "level0_px_per_pixel_x", "level0_px_per_pixel_y")
    numbers = [values.get(key) for key in keys]
    if not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
        return None
    x, y, scale_x, scale_y = (float(n) for n in numbers if n is not None)
    return PixelMap(x, y, scale_x, scale_y) if scale_x > 0 and scale_y > 0 else None
