"""Conformance suites for detectors, slide backends and export formats of other packages.

A test of a detector is one call, ``check_detector(MyDetector)``; of a slide backend,
``check_slide(slide)``; of an export format, ``check_export(MyFormat)``. wsiad's own pass the
same suites. Each raises ``AssertionError`` at the first violation, which the error states in one
sentence.
"""

from wsiad.testing.detector_suite import check_detector
from wsiad.testing.drawn_tissue import tissue_tiles
from wsiad.testing.export_suite import check_export
from wsiad.testing.slide_suite import check_slide

__all__ = ["check_detector", "check_export", "check_slide", "tissue_tiles"]
