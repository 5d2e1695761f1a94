"""``wsiad significance``: p-values for results, from healthy slides that were held out."""

from __future__ import annotations

from wsiad.core.config import verb
from wsiad.results.significance_comparison import SignificanceConfig, SignificanceResult, compare


@verb(SignificanceConfig)
def significance(config: SignificanceConfig) -> SignificanceResult:
    """Add p-values to results, and say so in their report; nothing is scored again.

    Raises
    ------
    InputError
        A folder holds no results or those of another run or other options; a healthy slide
        was used for the run, is labelled as anything but healthy, or is among the slides
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
