"""``wsiad significance``: add p-values to results, from held-out healthy slides."""

from __future__ import annotations

from wsiad.core.config import verb
from wsiad.results.significance_comparison import SignificanceConfig, SignificanceResult, compare


@verb(SignificanceConfig)
def significance(config: SignificanceConfig) -> SignificanceResult:
    """Add p-values to results and to their report; nothing is scored again.

    Raises
    ------
    InputError
        A folder contains no results, or those of another run or other options; or a healthy
        slide was used for the run, has a label other than healthy, or is among the slides
        that are compared with it.
    ExportError
        Results of a slide are damaged.
    """
    from wsiad.report.report import write_results_report
    from wsiad.results.qupath_project import update_results_project

    result = compare(config)
    write_results_report(config.results)
    update_results_project(config.results)
    return result
