"""Write the evidence of regions: the strangest window of each, next to the nearest healthy tiles.

The evidence of a slide is in ``evidence.json`` and the folder ``evidence``; see docs/explain.md.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from wsiad.core.files import write_json
from wsiad.core.geometry import Mpp
from wsiad.core.images import jpeg
from wsiad.heatmaps.heatmap_task import HeatmapOptions
from wsiad.heatmaps.regions import Region, strongest_windows
from wsiad.heatmaps.score_map import WindowScores
from wsiad.heatmaps.windows import IntArray, WindowSource
from wsiad.learning.detector import Detector, Embedding, Embeds, Reconstructs, Scores
from wsiad.pictures.colour_scale import ColourScale
from wsiad.results.evidence_files import RegionEvidence, read_evidence
from wsiad.results.file_names import EVIDENCE, EVIDENCE_PICTURES
from wsiad.results.overlay import write_picture
from wsiad.runs.examples import HealthyExamples

_FORMAT = 1
_QUALITY = 95
_RGB = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Explainer:
    """Detector and healthy examples, which explain the regions of a slide.

    Parameters
    ----------
    detector : Detector
        Detector of the run.
    examples : HealthyExamples or None
        Healthy examples of the run; without them, neither neighbours nor differences are shown.
    """

    detector: Detector
    examples: HealthyExamples | None

    @property
    def scale(self) -> ColourScale | None:
        """Colour scale of difference maps, the same for all of a run, from healthy places."""
        if self.examples is None or self.examples.difference is None:
            return None
        return ColourScale.from_healthy(self.examples.difference)


def write_evidence(
    folder: Path,
    explainer: Explainer,
    regions: Sequence[Region],
    windows: WindowScores,
    source: WindowSource,
    *,
    options: HeatmapOptions,
) -> None:
    """Write the evidence for the strongest regions of a slide; nothing if none is requested.

    Only one window is in memory at a time, for any number of regions.

    Parameters
    ----------
    folder : Path
        Folder of the slide, which is put in place when it is complete.
    explainer : Explainer
        Detector and healthy examples.
    regions : sequence of Region
        Regions by descending score.
    windows : WindowScores
        All scored windows.
    source : WindowSource
        Source from which windows are read again.
    options : HeatmapOptions
        Options of the evidence.

    Raises
    ------
    SlideReadError, StoreError
        A window cannot be read again.
    RunError
        The healthy examples are damaged.
    """
    if not options.evidence_regions:
        return
    if source.whole is not None and not source.whole.slide.has_pixels:
        return  # there is nothing to show
    shown = regions[: options.evidence_regions]
    chosen = strongest_windows(shown, windows)
    rows, columns = window_places(windows.boxes[chosen], source)
    if shown:
        (folder / EVIDENCE_PICTURES).mkdir()
    found = []
    again = source.again(rows, columns)
    stored = _stored(explainer, source, rows, columns)
    for number, (at, region, pixels) in enumerate(zip(chosen, shown, again, strict=True), 1):
        entry = _entry(number, int(at), region, windows, mpp=source.mpp)
        found.append(
            entry
            | _pictures(
                folder,
                f"{EVIDENCE_PICTURES}/{number:03d}",
                explainer=explainer,
                pixels=pixels,
                vector=None if stored is None else stored[number - 1],
                options=options,
            )
        )
    write_json(folder / EVIDENCE, {"format": _FORMAT, "regions": found})


def keep_evidence(
    folder: Path,
    there: Path,
    regions: Sequence[Region],
    windows: WindowScores,
    *,
    options: HeatmapOptions,
    mpp: Mpp,
) -> int:
    """Write evidence from the earlier evidence, for regions with the same strangest window.

    Neither the detector nor the slide is needed. Other regions have no evidence until `wsiad
    heatmap` makes it.

    Parameters
    ----------
    folder : Path
        Folder to write to.
    there : Path
        Folder of the slide, with its earlier evidence.
    regions : sequence of Region
        Regions by descending score.
    windows : WindowScores
        All scored windows.
    options : HeatmapOptions
        Options of the evidence.
    mpp : Mpp
        Scale of the windows, µm/px.

    Returns
    -------
    int
        Number of regions that should have evidence and have none.

    Raises
    ------
    ExportError
        The earlier evidence is damaged, or names a file outside the folder.
    """
    if not options.evidence_regions:
        return 0
    shown = regions[: options.evidence_regions]
    known = {(e.x, e.y, e.width, e.height): e for e in read_evidence(there)}
    found = []
    for number, (at, region) in enumerate(
        zip(strongest_windows(shown, windows), shown, strict=True), 1
    ):
        entry = _entry(number, int(at), region, windows, mpp=mpp)
        old = known.get((entry["x"], entry["y"], entry["width"], entry["height"]))
        if old is not None:
            found.append(entry | _copied(folder, number, old))
    write_json(folder / EVIDENCE, {"format": _FORMAT, "regions": found})
    return len(shown) - len(found)


def _entry(
    number: int, at: int, region: Region, windows: WindowScores, *, mpp: Mpp
) -> dict[str, Any]:
    """Return the evidence of a region without its pictures, as JSON values."""
    x, y, width, height = windows.boxes[at].tolist()
    return {
        "rank": number,
        "x": x,
        "y": y,
        "width": width,
        "height": height,
        "score": float(windows.scores[at]),
        "percentile": float(windows.percentiles[at]),
        "area_um2": float(region.area),
        "mpp": float(mpp),
    }


def _copied(folder: Path, number: int, old: RegionEvidence) -> dict[str, Any]:
    """Copy the pictures of a region; return their new names, relative to the slide's folder."""
    stem = f"{EVIDENCE_PICTURES}/{number:03d}"

    def copied(file: Path | None, end: str) -> str | None:
        if file is None:
            return None
        (folder / EVIDENCE_PICTURES).mkdir(exist_ok=True)
        shutil.copyfile(file, folder / f"{stem}{end}")
        return f"{stem}{end}"

    return {
        "tile": copied(old.tile, ".jpg"),
        "nearest": [
            {
                "slide": healthy.slide,
                "x": healthy.x,
                "y": healthy.y,
                "distance": healthy.distance,
                "tile": copied(healthy.tile, f"_healthy_{place}.jpg"),
            }
            for place, healthy in enumerate(old.nearest, 1)
        ],
        "reconstruction": copied(old.reconstruction, "_reconstruction.jpg"),
        "difference": copied(old.difference, "_difference.png"),
    }


def window_places(
    boxes: npt.NDArray[np.float64], source: WindowSource
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Return the rows and columns, on the grid, of the boxes (N, 4) of windows."""
    column, row = source.grid.pixels.from_level0(boxes[:, 0], boxes[:, 1])
    stride = source.grid.stride
    return np.rint(row / stride).astype(np.int32), np.rint(column / stride).astype(np.int32)


def _stored(
    explainer: Explainer, source: WindowSource, rows: IntArray, columns: IntArray
) -> Embedding | None:
    """Return the stored features of windows; ``None`` where the detector has to compute them."""
    if source.whole is None or not isinstance(explainer.detector, Embeds):
        return None
    return source.whole.embedded(explainer.detector, rows, columns)


def _pictures(
    folder: Path,
    stem: str,
    *,
    explainer: Explainer,
    pixels: _RGB,
    vector: Embedding | None,
    options: HeatmapOptions,
) -> dict[str, Any]:
    """Write the pictures of a window; return their names, relative to the slide's folder."""
    detector = explainer.detector
    names: dict[str, Any] = {
        "tile": _write(folder, f"{stem}.jpg", jpeg(pixels, quality=_QUALITY)),
        "nearest": _nearest(
            folder,
            stem,
            explainer=explainer,
            pixels=pixels,
            vector=vector,
            count=options.evidence_neighbours,
        ),
        "reconstruction": None,
        "difference": None,
    }
    if isinstance(detector, Reconstructs):
        made = jpeg(detector.reconstruct(pixels[None])[0], quality=_QUALITY)
        names["reconstruction"] = _write(folder, f"{stem}_reconstruction.jpg", made)
        if scale := explainer.scale:
            drawn = _drawn(detector.difference(pixels[None])[0], scale, edge=len(pixels))
            names["difference"] = f"{stem}_difference.png"
            write_picture(folder / names["difference"], drawn)
    return names


def _nearest(
    folder: Path,
    stem: str,
    *,
    explainer: Explainer,
    pixels: _RGB,
    vector: Embedding | None,
    count: int,
) -> list[dict[str, Any]]:
    """Write the healthy examples nearest to a window, and return their entries."""
    detector, examples = explainer.detector, explainer.examples
    if examples is None or not count or not isinstance(detector, Embeds):
        return []
    found = []
    features = detector.embed(pixels[None])[0] if vector is None else vector
    indices, distances = examples.nearest(features, count)
    for place, (index, distance) in enumerate(zip(indices, distances, strict=True), 1):
        x, y = examples.positions[index].tolist()
        name = _write(folder, f"{stem}_healthy_{place}.jpg", examples.picture(int(index)))
        found.append(
            {
                "slide": examples.slides[index],
                "x": x if np.isfinite(x) else None,
                "y": y if np.isfinite(y) else None,
                "distance": float(distance),
                "tile": name,
            }
        )
    return found


def _drawn(difference: Scores, scale: ColourScale, *, edge: int) -> _RGB:
    """Colour a map (h, w) on a fixed scale, and enlarge it to the window without smoothing."""
    colours = np.ascontiguousarray(scale.rgba(difference)[..., :3])
    return np.asarray(cv2.resize(colours, (edge, edge), interpolation=cv2.INTER_NEAREST), np.uint8)


def _write(folder: Path, name: str, data: bytes) -> str:
    (folder / name).write_bytes(data)  # the folder as a whole is complete or absent
    return name
