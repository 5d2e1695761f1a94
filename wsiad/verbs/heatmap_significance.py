"""``wsiad heatmap --healthy``: results that come with p-values."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from wsiad.core.errors import InputError
from wsiad.heatmaps.heatmap_task import HeatmapRow
from wsiad.results.difference import difference
from wsiad.slides.slide_table import OK

if TYPE_CHECKING:
    from wsiad.verbs.heatmap import HeatmapConfig


def check_healthy(config: HeatmapConfig, digest: str) -> None:
    """Refuse a reference that would not fit, before hours of scoring.

    Raises
    ------
    InputError
        The folder holds no results, or those of another run or other options.
    """
    from wsiad.results.scored import read_folder

    if config.healthy is None:
        return
    facts = read_folder(config.healthy).facts
    if facts["digest"] != digest:
        told = difference(config.healthy, facts, config)
        raise InputError(
            f"holds results of another run or of other options: {told}",
            subject=str(config.healthy),
            remedy="Score the healthy slides by the same run with the same options.",
        )


def add_significance(
    results: Path, healthy: Path | None, rows: Iterable[HeatmapRow], *, quiet: bool
) -> str:
    """Compare results with those of healthy slides, if there are any; say what was found.

    Raises
    ------
    InputError
        As by :func:`wsiad.significance`.
    """
    from wsiad.verbs.significance import SignificanceConfig, compare

    if healthy is None or not any(row.status == OK for row in rows):
        return ""
    found = compare(SignificanceConfig(results=results, healthy=healthy, quiet=quiet))
    return f"\n{found.summary}"
