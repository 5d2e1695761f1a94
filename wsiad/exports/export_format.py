"""Interface and names of export formats: kinds of files for other programs.

A format knows heatmaps, regions and detections, but not results folders or slides. To add a format,
derive a class from :class:`ExportFormat` in a module of this package, or name one by an entry
point of the group ``wsiad.exports``. It is found by its name; nothing else has to change.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from wsiad.core.errors import ExportError, PluginError
from wsiad.core.packages import claimed
from wsiad.core.terminal import did_you_mean
from wsiad.heatmaps.peaks import Detection
from wsiad.heatmaps.regions import Region
from wsiad.heatmaps.score_map import Heatmap, WindowScores
from wsiad.pictures.colour_scale import ColourScale


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """Everything that is derived from the scores of one slide, for a format to write.

    Parameters
    ----------
    heatmap : Heatmap
        Scores with their position on the slide.
    regions : sequence of Region
        Outlined regions, strongest first; their polygons are simplified, in level-0 pixels.
    percentiles : sequence of float
        Share of healthy windows below each region's highest score, 0 to 100.
    detections : sequence of Detection
        Peaks of the heatmap, level-0 pixels.
    scale : ColourScale
        Colour scale of the run, the same for all slides.
    percentile_of : callable
        Function of scores that returns the share of healthy windows below each, 0 to 100.
    """

    heatmap: Heatmap
    regions: Sequence[Region]
    percentiles: Sequence[float]
    detections: Sequence[Detection]
    scale: ColourScale
    percentile_of: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]

    def pixels(self) -> WindowScores:
        """Return the scored pixels of the heatmap as squares that do not overlap."""
        heatmap = self.heatmap
        rows, columns = np.nonzero(np.isfinite(heatmap.scores))
        x, y = heatmap.placement.to_level0(columns.astype(np.float64), rows.astype(np.float64))
        boxes = np.empty((len(rows), 4))
        boxes[:, 0], boxes[:, 1] = x, y
        boxes[:, 2], boxes[:, 3] = heatmap.placement.scale_x, heatmap.placement.scale_y
        scores = heatmap.scores[rows, columns]
        return WindowScores(boxes, scores, self.percentile_of(scores))


class ExportFormat(ABC):
    """Base class of kinds of files for other programs."""

    name: ClassVar[str]
    """Name of the format for `wsiad export --format`."""
    summary: ClassVar[str]
    """Program that reads the files, in a few words."""
    shows_regions: ClassVar[bool] = False
    """True where the files contain regions or detections, not only the heatmap."""

    @abstractmethod
    def files(self, slide: str) -> tuple[str, ...]:
        """Return the names of the files of a slide, relative to its folder."""

    @abstractmethod
    def write(self, folder: Path, findings: Findings) -> None:
        """Write the files into a folder that does not contain them yet.

        Parameters
        ----------
        folder : Path
            Existing folder.
        findings : Findings
            Findings on the slide.

        Raises
        ------
        ExportError
            The format cannot represent the findings.
        """


GROUP = "wsiad.exports"
"""Group of entry points with which other packages add formats."""

ALIASES = {"napari": "ome-zarr"}
"""Other names of formats: the programs that read them."""

ALWAYS = ("camelyon", "geojson", "ome-tiff", "png")
"""Formats that every results folder has: detections, outlines, scores, picture."""

logger = logging.getLogger(__name__)


@functools.cache
def formats() -> dict[str, type[ExportFormat]]:
    """Return the formats that a user can request, by name.

    A format of another package that cannot be loaded, or that has the name of another format,
    is left out with a warning.
    """
    found = {cls.name: cls for cls in _own()}
    plugins, faults = claimed(GROUP)
    for fault in faults:
        logger.warning("%s", fault)
    for point in sorted(plugins, key=lambda point: (point.name, point.distribution.name)):
        source = point.distribution.name
        try:
            cls, problem = point.load(), ""
        except PluginError as error:
            cls, problem = None, error.problem
        if not problem and not (isinstance(cls, type) and issubclass(cls, ExportFormat)):
            problem = "it is not a class derived from ExportFormat"
        if not problem and cls.name in {*found, *ALWAYS, *ALIASES}:
            problem = f"the name {cls.name} is taken"
        if problem:
            logger.warning("%s: its export format %s is left out: %s", source, point.name, problem)
        else:
            found[cls.name] = cls
    return dict(sorted(found.items()))


def _own() -> list[type[ExportFormat]]:
    room = importlib.import_module("wsiad.exports")
    modules = [
        importlib.import_module(f"{room.__name__}.{info.name}")
        for info in pkgutil.iter_modules(room.__path__)
    ]
    return [cls for module in modules for cls in _classes(module)]


def _classes(module: ModuleType) -> list[type[ExportFormat]]:
    return [
        cls
        for _, cls in inspect.getmembers(module, inspect.isclass)
        if issubclass(cls, ExportFormat)
        and not inspect.isabstract(cls)
        and cls.__module__.startswith(module.__name__)
    ]


def check_formats(names: Iterable[str]) -> None:
    """Check that formats are known.

    Raises
    ------
    ValueError
        A format is not known; the error names the most similar one.
    """
    known = (*formats(), *ALIASES, *ALWAYS)
    for name in names:
        if name not in known:
            near = did_you_mean(name, known)
            raise ValueError(f"{name!r} is not a format{near}; known: {', '.join(sorted(known))}")


def chosen(names: Iterable[str]) -> list[ExportFormat]:
    """Return formats by their names or aliases, each once, in order of their names.

    The formats that every results folder has are left out.

    Raises
    ------
    ExportError
        A format is not known, for example because its package is no longer installed.
    """
    found: dict[str, ExportFormat] = {}
    for name in sorted({ALIASES.get(name, name) for name in names} - {*ALWAYS}):
        if name not in formats():
            raise ExportError(
                "is not an installed export format",
                subject=name,
                remedy=f"Install the package that has it, or choose one of {', '.join(formats())}.",
            )
        found[name] = formats()[name]()
    return list(found.values())
