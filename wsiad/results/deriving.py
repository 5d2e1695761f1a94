"""Derive regions, detections, evidence and their files from the scores of a slide.

Only missing evidence needs the detector, and only views of regions read the slide. All files are
written next to the scores, which stay as they are.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from wsiad.core.errors import InputError
from wsiad.core.files import scratch_folder, write_json
from wsiad.core.geometry import Microns, PixelMap, SquareMicrons
from wsiad.core.terminal import by_number, counted
from wsiad.exports.camelyon import write_detections
from wsiad.exports.export_format import ExportFormat, Findings, chosen
from wsiad.exports.ome import write_ome_tiff
from wsiad.exports.png import write_png
from wsiad.exports.qupath import write_lesions
from wsiad.heatmaps.heatmap_task import (
    DetectionOptions,
    EvidenceOptions,
    HeatmapOptions,
    HeatmapRow,
    RegionOptions,
)
from wsiad.heatmaps.outline_simplification import default_tolerance, simplify
from wsiad.heatmaps.peaks import find_peaks
from wsiad.heatmaps.regions import Region, Regions, find_regions
from wsiad.heatmaps.scale_space import SpatialCalibration
from wsiad.heatmaps.score_map import Heatmap
from wsiad.heatmaps.space_options import SpaceOptions
from wsiad.pictures.colour_scale import ColourScale
from wsiad.results.file_names import (
    DETECTIONS,
    EVIDENCE,
    EVIDENCE_PICTURES,
    FIELD_PICTURES,
    FIELDS,
    OUTLINES,
    OVERLAY,
    REGIONS,
    SLIDE,
    SPATIAL,
    SPATIAL_PICTURE,
    SPATIAL_PLACEMENT,
    THUMBNAIL,
    WINDOWS_P,
)
from wsiad.results.identity import DERIVED, EXAMPLES, FORMATS, STANDARDISED_BY
from wsiad.results.overlay import (
    RGB,
    outline_regions,
    overlay,
    read_picture,
    write_picture,
    write_thumbnail,
)
from wsiad.results.records import GEOMETRY, LACKING, NOTES
from wsiad.results.region_fields import STRONGEST, write_fields
from wsiad.results.region_table import write_regions
from wsiad.results.scored_files import ScoredHeatmap, read_scored
from wsiad.results.slide_results import SlideResults
from wsiad.runs.calibration import Calibration, colour_scale
from wsiad.slides.slide import Slide

REGION_KEYS = tuple(key for key in RegionOptions.model_fields if key != "top_k")
"""Options that decide the regions."""

SPACE_KEYS = (*SpaceOptions.model_fields, STANDARDISED_BY)
"""Values that decide the map of neighbourhoods."""

_SPATIAL = (SPATIAL, SPATIAL_PICTURE, SPATIAL_PLACEMENT)

logger = logging.getLogger(__name__)


Evidence = Callable[[Path, Sequence[Region]], int]
"""Function that writes the evidence of regions into a folder, and returns how many lack it."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Parts of a slide's results to derive.

    Parameters
    ----------
    regions, views, evidence, detections : bool
        True to derive the regions with their outlines, their views, their evidence, and the
        detections.
    """

    regions: bool = True
    views: bool = True
    evidence: bool = True
    detections: bool = True

    @classmethod
    def differing(cls, record: Mapping[str, Any], derived: Mapping[str, Any]) -> Parts:
        """Return the parts that, by a slide's record, were derived with other options or lack.

        Regions that lack views or evidence are the same ones, and keep their p-values.
        """
        there = record.get(DERIVED)
        if not isinstance(there, Mapping):
            return cls()

        def differ(*keys: str) -> bool:
            return any(there.get(key) != derived.get(key) for key in keys)

        regions = differ(*REGION_KEYS, *SPACE_KEYS)
        views = regions or bool(record.get(LACKING))
        return cls(
            regions=regions,
            views=views,
            evidence=views or differ(*EvidenceOptions.model_fields, EXAMPLES),
            detections=differ(*DetectionOptions.model_fields, *SPACE_KEYS),
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the files and folders that these parts write."""
        return (
            *(
                # P-values go with the regions that they were computed with.
                (REGIONS, OUTLINES, OVERLAY, THUMBNAIL, WINDOWS_P, *_SPATIAL)
                if self.regions
                else ()
            ),
            *((FIELDS, FIELD_PICTURES) if self.views else ()),
            *((EVIDENCE, EVIDENCE_PICTURES) if self.evidence else ()),
            *((DETECTIONS,) if self.detections else ()),
        )


def write_derived(
    folder: Path,
    scored: ScoredHeatmap,
    *,
    options: HeatmapOptions,
    calibration: Calibration,
    formats: Iterable[ExportFormat],
    evidence: Evidence,
    slide: Slide | None,
    parts: Parts | None = None,
    spatial: SpatialCalibration | None = None,
) -> dict[str, Any]:
    """Derive regions, detections, evidence and their files from a slide's scores, and write them.

    Parameters
    ----------
    folder : Path
        Folder without derived files.
    scored : ScoredHeatmap
        Scores of the slide.
    options : HeatmapOptions
        Options of deriving.
    calibration : Calibration
        Calibration of the run.
    formats : iterable of ExportFormat
        Formats of the files for other programs.
    evidence : callable
        Function that writes the evidence, see :data:`Evidence`.
    slide : Slide or None
        Open slide, for views of the regions; without it there are no views.
    parts : Parts, optional
        Parts to write; by default all.
    spatial : SpatialCalibration, optional
        Calibration of neighbourhoods: regions and detections are derived from their map in place
        of the scores.

    Returns
    -------
    dict
        Columns of the slide's row: its scores, and the numbers of regions and detections; also
        the number of regions without evidence.
    """
    parts = parts or Parts()
    heatmap, usual, space = scored.heatmap, calibration, None
    if spatial is not None:
        space, usual = spatial.map(heatmap, calibration), spatial.calibration
    evident = space.heatmap if space else heatmap
    regions = find_regions(
        evident,
        threshold=usual.quantile(options.region_quantile),
        min_area=SquareMicrons(options.region_min_um2),
        limit=options.region_limit,
        scale_um=space.radius if space else None,
    )
    detections = find_peaks(
        evident,
        threshold=usual.quantile(options.detection_quantile),
        radius=Microns(options.suppression_radius_um),
        suppression=options.suppression,
        limit=options.detection_limit,
        reach=space.reach if space else None,
    )
    findings = Findings(
        heatmap=heatmap,
        regions=_outlines(heatmap, regions.kept, options),
        percentiles=[float(usual.percentile(region.max_score)) for region in regions.kept],
        detections=detections,
        scale=colour_scale(calibration),
        percentile_of=calibration.percentile,
    )
    if parts.detections:
        upper = _upper(usual)
        write_detections(detections, folder / DETECTIONS, median=usual.median, upper=upper)
    if parts.regions:
        ground = scored.picture.copy()
        if space:
            ground = _over_tissue(scored, space.heatmap, colour_scale(usual))
            write_ome_tiff(space.heatmap, folder / SPATIAL)
            write_png(space.heatmap, folder / SPATIAL_PICTURE, scale=colour_scale(usual))
        _write_regions(folder, scored, findings, regions=regions, ground=ground)
    if parts.views and slide is not None:
        percentiles = findings.percentiles
        write_fields(folder, slide, regions.kept, heatmap=heatmap, percentiles=percentiles)
    for kind in formats:
        kind.write(folder, findings)
    lacking = evidence(folder, regions.kept) if parts.evidence else 0
    highest, top_k = _slide_scores(heatmap, options.top_k)
    return {
        "score_max": highest,
        "score_top_k_mean": top_k,
        "score_scan": float(np.nanmax(space.heatmap.scores)) if space else None,
        "regions": len(regions.kept) + regions.left_out,
        "regions_left_out": regions.left_out,
        "detections": len(detections),
        LACKING: lacking,
    }


def _write_regions(
    folder: Path,
    scored: ScoredHeatmap,
    findings: Findings,
    *,
    regions: Regions,
    ground: RGB,
) -> None:
    """Write regions as outlines, as a table and as pictures, one of them on `ground`."""
    heatmap, percentiles = scored.heatmap, findings.percentiles
    if regions.left_out:
        logger.warning(
            "%s: regions that are outlined, the strongest: %d; weaker ones, only counted: %d",
            heatmap.slide,
            len(regions.kept),
            regions.left_out,
        )
    write_lesions(
        findings.regions,
        folder / OUTLINES,
        slide=heatmap.slide,
        bounds=heatmap.bounds,
        percentiles=percentiles,
    )
    table = zip(regions.kept, percentiles, strict=True)
    write_regions(folder / REGIONS, [replace(region, percentile=p) for region, p in table])
    spots = [_spot(region, scored.shown_at) for region in regions.kept[:STRONGEST]]
    write_thumbnail(folder / THUMBNAIL, ground, spots=spots)
    outline_regions(ground, [region.polygon for region in regions.kept], scored.shown_at)
    write_picture(folder / OVERLAY, ground)


def _spot(region: Region, shown_at: PixelMap) -> tuple[float, float, float, float]:
    """Return the box around a region, pixels of a picture."""
    left, top, right, bottom = region.polygon.bounds
    return (*shown_at.from_level0(left, top), *shown_at.from_level0(right, bottom))


def _over_tissue(scored: ScoredHeatmap, heatmap: Heatmap, scale: ColourScale) -> RGB:
    """Draw a map of the slide over its tissue; what was not scored looks as in the overlay."""
    tissue = read_picture(scored.tissue)
    if tissue.shape != scored.picture.shape:
        raise InputError(
            "has another size than the overlay of the slide",
            subject=str(scored.tissue),
            remedy="Delete the slide's folder and run wsiad heatmap again.",
        )
    return overlay(tissue, scored.shown_at, heatmap, scale, elsewhere=scored.picture)


def _outlines(heatmap: Heatmap, regions: Sequence[Region], options: HeatmapOptions) -> list[Region]:
    """Return the regions with fewer corners."""
    tolerance = options.region_tolerance_um
    return [
        simplify(
            region,
            tolerance=default_tolerance(heatmap) if tolerance is None else Microns(tolerance),
            spacing=heatmap.spacing,
            bounds=heatmap.bounds,
        )
        for region in regions
    ]


def _upper(calibration: Calibration) -> float:
    """Return the healthy 99 % quantile, or a value above the median if scores are constant."""
    upper, median = calibration.quantile(0.99), calibration.median
    return upper if upper > median else median + max(abs(median), 1.0)


def _slide_scores(heatmap: Heatmap, top_k: int) -> tuple[float, float]:
    """Return the highest score of a heatmap and the mean of its ``top_k`` highest."""
    scores = np.sort(heatmap.scores[np.isfinite(heatmap.scores)])
    return float(scores[-1]), float(scores[-top_k:].mean(dtype=np.float64))


def derive_again(
    folder: Path,
    record: Mapping[str, Any],
    row: HeatmapRow,
    *,
    options: HeatmapOptions,
    derived: dict[str, Any],
    calibration: Calibration,
    formats: Iterable[str],
    evidence: Callable[[ScoredHeatmap], Evidence],
    slide: Slide | None,
    unseen: str = "",
    spatial: SpatialCalibration | None = None,
) -> HeatmapRow:
    """Derive the parts of a slide's results that are missing or have other options; scores stay.

    All files are written next to the folder first. If the process is killed while it puts them in
    place, the record states that these parts are not derived, and the same command derives them
    again; regions that are not among them keep their p-values.

    Parameters
    ----------
    folder : Path
        Folder of the slide's results.
    record : mapping
        Content of its ``slide.json``.
    row : HeatmapRow
        Row of the slide in the table.
    options : HeatmapOptions
        Options of deriving.
    derived : dict
        Values that decide what is derived; see :func:`wsiad.results.identity.derived_values`.
    calibration : Calibration
        Calibration of the run.
    formats : iterable of str
        Export formats to add; existing formats stay.
    evidence : callable
        Function of the scores that returns the function that writes the evidence.
    slide : Slide or None
        Open slide, for views of the regions.
    unseen : str
        Reason why the slide could not be opened, if its regions should be shown in it.
    spatial : SpatialCalibration, optional
        Calibration of neighbourhoods, see :func:`write_derived`.

    Returns
    -------
    HeatmapRow
        Updated row of the slide.

    Raises
    ------
    InputError
        The scores are damaged.
    """
    there = set(record.get(FORMATS) or [])
    wanted = sorted(there | {kind.name for kind in chosen(formats)})
    parts = Parts.differing(record, derived)
    if not record[GEOMETRY]:  # nothing was scored, and nothing is derived
        write_record(folder, record, row, derived=derived, formats=wanted)
        return row
    written = [
        kind
        for kind in chosen(wanted)
        if kind.name not in there or (kind.shows_regions and (parts.regions or parts.detections))
    ]
    scored = read_scored(SlideResults(folder.parent, folder, row), record[GEOMETRY])
    with scratch_folder(folder) as new:
        figures = write_derived(
            new,
            scored,
            options=options,
            calibration=calibration,
            formats=written,
            evidence=evidence(scored),
            slide=slide,
            parts=parts,
            spatial=spatial,
        )
        lacking = figures.pop(LACKING)
        unseen = unseen if parts.views and figures["regions"] else ""
        row = replace(row, reason=reason(record[NOTES], figures, lacking, unseen), **figures)
        files = [name for kind in written for name in kind.files(row.slide)]
        write_json(folder / SLIDE, {**record, **_while_replaced(record, parts)})
        put_in_place(new, folder, [*parts.names, *files])
    record = {**record, LACKING: bool(lacking or unseen)}
    write_record(folder, record, row, derived=derived, formats=wanted)
    return row


def _while_replaced(record: Mapping[str, Any], parts: Parts) -> dict[str, Any]:
    """Return what a slide's record states while parts are put in place: without them."""
    there = record.get(DERIVED)
    if parts.regions or not isinstance(there, Mapping):
        return {DERIVED: None}
    lost = {
        *(DetectionOptions.model_fields if parts.detections else ()),
        *((*EvidenceOptions.model_fields, EXAMPLES) if parts.evidence else ()),
    }
    left = {key: value for key, value in there.items() if key not in lost}
    return {DERIVED: left, LACKING: bool(record.get(LACKING)) or parts.views or parts.evidence}


def reason(
    said: Sequence[str], figures: Mapping[str, Any], lacking: int = 0, unseen: str = ""
) -> str:
    """Return the reason of a slide's row: notes on its scores and regions for the reader."""
    told = [*said]
    if left_out := figures.get("regions_left_out", 0):
        are = by_number(left_out, "is", "are")
        told.append(f"{counted(left_out, 'weaker region')} {are} not outlined")
    if unseen:
        told.append(f"regions are not shown in the slide: {unseen}")
    if lacking:
        told.append(
            f"{lacking} region{'s are' if lacking != 1 else ' is'} shown without healthy tiles; "
            "wsiad heatmap adds them"
        )
    return "; ".join(told)


def write_record(
    folder: Path,
    record: Mapping[str, Any],
    row: HeatmapRow,
    *,
    derived: dict[str, Any],
    formats: Iterable[str],
) -> None:
    """Write ``slide.json``, which states that the slide's results are complete."""
    told = {DERIVED: derived, FORMATS: sorted(formats), "row": asdict(row)}
    write_json(folder / SLIDE, {**record, **told})


def put_in_place(new: Path, folder: Path, names: Iterable[str]) -> None:
    """Replace derived files and folders by new ones; delete those without a new one.

    Parameters
    ----------
    new : Path
        Folder of the new files, on the same disk.
    folder : Path
        Folder of the slide's results.
    names : iterable of str
        Names of the files and folders that were derived again.
    """
    for name in names:
        there, made = folder / name, new / name
        if there.is_dir() and not there.is_symlink():
            shutil.rmtree(there)
        elif not made.exists():
            there.unlink(missing_ok=True)
        if made.exists():
            made.replace(there)
