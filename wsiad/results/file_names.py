"""Names of all files and folders in a results folder; no other module spells them.

Files of export formats are named by the formats (:mod:`wsiad.exports.export_format`).

docs/results-format.md says what each holds.
"""

from __future__ import annotations

from typing import Final

from wsiad.core import config
from wsiad.slides import folder_kinds, slide_table

# In the results folder itself.

FACTS: Final = config.RECORD
"""Run, options and versions that the results were made with."""
CONFIG: Final = config.CONFIG
"""The resolved configuration of ``wsiad heatmap``."""
SLIDES_TABLE: Final = slide_table.SLIDES_TABLE
"""One row a slide, whatever became of it."""
REPORT: Final = slide_table.REPORT
TIMINGS: Final = "timings.json"
"""Seconds by stage, and where the last evaluation lies."""
CALIBRATION: Final = "calibration.json"
"""Copy of the run's calibration: regions and detections are derived by it, without the run."""
LEGEND: Final = "colours.png"
"""Legend of the heatmaps' colours."""
QUPATH: Final = "qupath"
"""Folder of the QuPath project: QuPath's own files stay apart from ours."""
SHARDS: Final = "runs"
"""Folder of the records of shards."""

RESERVED: Final = frozenset({QUPATH, SHARDS})
"""Folders of a results folder that are not a slide's."""

# From `wsiad evaluate`, here or in a folder of their own.

EVALUATION: Final = "evaluation.json"
LESION_TABLE: Final = "lesions.csv"
ROC: Final = "roc.png"
FROC: Final = "froc.png"

# From `wsiad significance`.

SIGNIFICANCE: Final = "significance.json"
"""Written last: where it is, the p-values are whole."""
SIGNIFICANCE_TABLE: Final = "significance.csv"

# In a slide's folder.

SLIDE: Final = folder_kinds.SLIDE_RECORD
"""Record of the slide: its scores' origin and its row of the table; written last."""
WINDOWS: Final = "windows.npy"
"""Every scored window: place, score, percentile."""
WINDOWS_P: Final = "windows_p.npy"
"""p of each window, in the order of the scored windows; from `wsiad significance`."""
LEFT_OUT: Final = "left_out.npy"
"""Every window that was not scored: place, reason."""
HEATMAP: Final = "heatmap.ome.tif"
"""The scores as an image, for programs."""
HEATMAP_PICTURE: Final = "heatmap.png"
PLACEMENT: Final = "heatmap.json"
"""Where the picture of the heatmap lies on the slide, and its colour scale."""
TISSUE: Final = "tissue.png"
"""The slide with its tissue outlined."""
OVERLAY: Final = "overlay.png"
"""The heatmap over the slide, regions outlined."""
PLAIN_OVERLAY: Final = "overlay_plain.png"
"""The heatmap over the slide, before regions are outlined on it."""
OVERVIEW: Final = "overview.jpg"
"""Which windows were scored, which were not and why."""
THUMBNAIL: Final = "thumbnail.jpg"
REGIONS: Final = "regions.csv"
"""The outlined regions as a table."""
FIELDS: Final = "regions.json"
"""Fields of view around the strongest regions."""
FIELD_PICTURES: Final = "regions"
EVIDENCE: Final = "evidence.json"
"""The strongest regions beside the nearest healthy tiles."""
EVIDENCE_PICTURES: Final = "evidence"
OUTLINES: Final = "lesions.geojson"
"""Outlined regions for QuPath."""
NOT_ASSESSED: Final = "not_assessed.geojson"
"""Places that were left out, outlined for QuPath."""
DETECTIONS: Final = "detections.csv"
"""Strongest places, for FROC scripts."""
