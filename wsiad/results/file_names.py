"""Names of all files and folders in a results folder; no other module spells them.

Export formats name their own files (:mod:`wsiad.exports.export_format`). docs/results-format.md
describes the content of each file.
"""

from __future__ import annotations

from typing import Final

from wsiad.core import config
from wsiad.runs import claim
from wsiad.slides import folder_kinds, slide_table

# In the results folder itself.

FACTS: Final = config.RECORD
"""Run, options and versions that made the results."""
CONFIG: Final = config.CONFIG
"""Resolved configuration of ``wsiad heatmap``."""
SLIDES_TABLE: Final = slide_table.SLIDES_TABLE
"""Table with a row for each slide, even if it failed."""
REPORT: Final = slide_table.REPORT
CONTACT_SHEET: Final = "contact_sheet.html"
"""Page of the strongest regions of all slides, side by side."""
ALL_REGIONS: Final = "all_regions.csv"
"""Table of the regions of all slides, strongest first."""
TIMINGS: Final = "timings.json"
"""Seconds by stage, and folder of the last evaluation."""
CALIBRATION: Final = "calibration.json"
"""Copy of the run's calibration, with which regions and detections are derived."""
HEALTHY_MAPS: Final = claim.HEALTHY_MAPS
"""Copy of the run's maps of healthy slides, by which scales are standardised."""
SCALES: Final = "scales.json"
"""Spread of each scale on healthy slides, if regions are derived from neighbourhoods."""
LEGEND: Final = "colours.png"
"""Legend of the heatmaps' colours."""
QUPATH: Final = "qupath"
"""Folder of the QuPath project, so that QuPath's own files stay separate."""
SHARDS: Final = "runs"
"""Folder of the records of shards."""

REVIEWS: Final = "reviews"
"""Folder of the judgements of reviewers, a GeoJSON file for each slide."""

# From `wsiad evaluate`, here or in a folder of their own.

EVALUATION: Final = "evaluation.json"
LESION_TABLE: Final = "lesions.csv"
TRUTH: Final = "truth.json"
"""Outlines of the annotated lesions, and which were found."""
ROC: Final = "roc.png"
FROC: Final = "froc.png"

# From `wsiad significance`.

SIGNIFICANCE: Final = "significance.json"
"""Record of the p-values; written last, so that they are complete if it exists."""
SIGNIFICANCE_TABLE: Final = "significance.csv"

RESERVED: Final = frozenset(
    {QUPATH, SHARDS, REVIEWS, FACTS, CONFIG, SLIDES_TABLE, REPORT, CONTACT_SHEET, ALL_REGIONS}
    | {TIMINGS, CALIBRATION, HEALTHY_MAPS, SCALES, LEGEND, EVALUATION, LESION_TABLE, TRUTH, ROC}
    | {FROC, SIGNIFICANCE, SIGNIFICANCE_TABLE}
)
"""Files and folders of a results folder, whose names no slide can have."""

# In a slide's folder.

SLIDE: Final = folder_kinds.SLIDE_RECORD
"""Record of the slide: origin of its scores, and its row of the table; written last."""
WINDOWS: Final = "windows.npy"
"""Position, score and percentile of every scored window."""
WINDOWS_P: Final = "windows_p.npy"
"""p-value of each scored window, in the same order; from `wsiad significance`."""
LEFT_OUT: Final = "left_out.npy"
"""Position and reason of every window that was not scored."""
SPATIAL: Final = "spatial.ome.tif"
"""Highest standardised mean over neighbourhoods at each heatmap pixel."""
SPATIAL_PICTURE: Final = "spatial.png"
SPATIAL_PLACEMENT: Final = "spatial.json"
HEATMAP: Final = "heatmap.ome.tif"
"""Scores as an image, for programs."""
HEATMAP_PICTURE: Final = "heatmap.png"
PLACEMENT: Final = "heatmap.json"
"""Position of the heatmap's picture on the slide, and its colour scale."""
TISSUE: Final = "tissue.png"
"""Slide with its tissue outlined."""
OVERLAY: Final = "overlay.png"
"""Regions outlined over the slide and the map that they come from: heatmap or neighbourhoods."""
PLAIN_OVERLAY: Final = "overlay_plain.png"
"""Heatmap over the slide, without outlines of regions."""
OVERVIEW: Final = "overview.jpg"
"""Overview of the windows that were scored, and of those that were not, with the reasons."""
THUMBNAIL: Final = "thumbnail.jpg"
REGIONS: Final = "regions.csv"
"""Table of the outlined regions."""
FIELDS: Final = "regions.json"
"""Fields of view around the strongest regions."""
FIELD_PICTURES: Final = "regions"
EVIDENCE: Final = "evidence.json"
"""Evidence of the strongest regions: their windows and the nearest healthy tiles."""
EVIDENCE_PICTURES: Final = "evidence"
OUTLINES: Final = "lesions.geojson"
"""Outlined regions for QuPath."""
NOT_ASSESSED: Final = "not_assessed.geojson"
"""Outlines, for QuPath, of the parts that were not assessed."""
DETECTIONS: Final = "detections.csv"
"""Detections, for FROC scripts."""
