"""Slides whose results are complete: found without what scores them.

torch and the readers of slides take seconds to import. A call of ``wsiad heatmap`` that has nothing
left to score needs neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from wsiad.core.errors import InputError
from wsiad.core.files import read_json
from wsiad.exports.export_format import chosen
from wsiad.heatmaps.heatmap_task import HeatmapRow, SlideTask, identity_of
from wsiad.results.file_names import SLIDE
from wsiad.results.identity import DERIVED, FORMATS
from wsiad.results.records import GEOMETRY, LACKING, NOTES
from wsiad.slides.slide_table import DAMAGED_THERE


def check_loads(tasks: Sequence[SlideTask], *, apart: bool) -> None:
    """Check that the detector of a run can be loaded, if a slide has no scores yet.

    Parameters
    ----------
    tasks : sequence of SlideTask
        Tasks of a run.
    apart : bool
        True where other processes score: then it is not kept in this one.

    Raises
    ------
    RunError
        The detector, or the weights that it needs, are missing or damaged.
    """
    waiting = (task for task in tasks if not (task.folder / SLIDE).exists())
    if (first := next(waiting, None)) is None:
        return
    from wsiad.results.scoring import load_once

    load_once(first.run, "cpu" if apart else first.device, first.digest)
    if apart:
        load_once.cache_clear()


def scored_record(task: SlideTask) -> tuple[dict[str, Any], HeatmapRow] | None:
    """Read the record of a slide with complete scores of the same slide, run and options.

    Raises
    ------
    InputError
        The scores are of another slide, or lack parts that the options request.
    """
    path = task.folder / SLIDE
    if not path.exists():
        return None
    try:
        record = read_json(path, InputError)
        identity = identity_of(task)
        same = {key: record[key] for key in identity} == identity
        row = HeatmapRow(**record["row"])
        sound = isinstance(record[GEOMETRY], dict) and isinstance(record[NOTES], list)
    except (InputError, KeyError, TypeError):
        return None  # not whole: it is made again
    if not sound:
        return None
    if not same:
        raise InputError(
            "has results from another file of this name, or at another µm/px",
            subject=task.slide.name,
            remedy=f"Rename the slide, or delete {task.folder} to score it again.",
        )
    skipped = row.damaged or DAMAGED_THERE in row.reason
    if skipped and task.preparation.damaged_tiles == "fail" and not task.from_store:
        raise InputError(
            "has results without its damaged parts, which --damaged-tiles skip left out",
            subject=task.slide.name,
            remedy=f"Set that option again, or delete {task.folder} to score a better copy.",
        )
    return record, replace(row, label=task.slide.label, split=task.slide.split)


def stored_row(task: SlideTask) -> HeatmapRow | None:
    """Return the row of a slide that is scored and derived as requested; ``None`` if it is not.

    Raises
    ------
    InputError
        The slide's folder contains results of another slide.
    """
    found = scored_record(task)
    if found is None:
        return None
    record, row = found
    there = {*(record.get(FORMATS) or [])}
    whole = record.get(DERIVED) == task.derived and not record.get(LACKING)
    return row if whole and not {*format_names(task)} - there else None


def scored_row(task: SlideTask) -> HeatmapRow:
    """Return the row of a slide; score and derive it if necessary, see :func:`stored_row`."""
    if row := stored_row(task):
        return row
    from wsiad.results.scoring import score_slide

    return score_slide(task)


def format_names(task: SlideTask) -> list[str]:
    """Return the names of the formats that a task requests, aliases resolved."""
    return [kind.name for kind in chosen(task.options.viewers)]
