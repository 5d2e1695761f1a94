"""Derive the files of results again without the detector: plan the work, and do a slide."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsiad.compute.batch import BatchTask
from wsiad.core.config import build, differences
from wsiad.core.errors import InputError, RunError, WsiadError
from wsiad.core.files import MOST_FACTS, read_json, write_json
from wsiad.exports.export_format import chosen
from wsiad.heatmaps.chosen_scales import choose_scales
from wsiad.heatmaps.heatmap_task import HeatmapOptions, HeatmapRow
from wsiad.heatmaps.scale_space import SpatialCalibration
from wsiad.heatmaps.space_options import ALONE
from wsiad.results.compared_slides import maps_of, read_folder
from wsiad.results.file_names import CALIBRATION, FACTS, HEALTHY_MAPS, SLIDE, SLIDES_TABLE
from wsiad.results.folder import Results
from wsiad.results.identity import (
    ALONE_BECAUSE,
    DERIVED,
    EXAMPLES,
    FORMATS,
    LABELLED,
    MEAN_OF,
    STANDARDISED_BY,
    derived_values,
    kept_mean,
    options_of,
    stated,
    write_scales,
)
from wsiad.results.records import GEOMETRY, LACKING, NOTES
from wsiad.results.significance_comparison import slides_of_run
from wsiad.results.significance_files import forget_other_regions
from wsiad.results.slide_results import SlideResults
from wsiad.runs.calibration import Calibration
from wsiad.runs.healthy_maps import HealthyMaps
from wsiad.slides.inputs import SlideInput
from wsiad.slides.slide_files import away_problem, slide_fingerprint
from wsiad.slides.slide_table import FAILED, OK, without_result

if TYPE_CHECKING:
    from wsiad.heatmaps.regions import Region
    from wsiad.results.deriving import Evidence
    from wsiad.results.scored_files import ScoredHeatmap
    from wsiad.slides.slide import Slide

_AGAIN = "Delete the slide's folder and run wsiad heatmap again."
_WRITTEN_AGAIN = "Run the same wsiad heatmap again, which writes it anew and keeps the scores."


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportTask(BatchTask):
    """One slide whose results are derived again; a worker gets all that it needs with it.

    Parameters
    ----------
    results : Path
        Results folder.
    options : HeatmapOptions
        Options of deriving.
    derived : dict
        Values that decide what is derived; see :mod:`wsiad.results.identity`.
    formats : tuple of str
        Formats that the slide should have.
    calibration : Calibration
        Calibration of the run.
    row : HeatmapRow
        Row of the slide in the table.
    spatial : SpatialCalibration or None
        Calibration of neighbourhoods, if regions and detections are derived from them.
    """

    results: Path
    options: HeatmapOptions
    derived: dict[str, Any]
    formats: tuple[str, ...]
    calibration: Calibration
    row: HeatmapRow
    spatial: SpatialCalibration | None

    @property
    def folder(self) -> Path:
        """Folder of the slide's results."""
        return self.results / self.slide.name


@dataclass(frozen=True, slots=True)
class Export:
    """Work of an export.

    Parameters
    ----------
    tasks : list of ExportTask
        One task for each slide with results.
    formats : tuple of str
        All formats that the results have afterwards.
    said : tuple of str
        Notes for the summary.
    """

    tasks: list[ExportTask]
    formats: tuple[str, ...]
    said: tuple[str, ...]


def begin_export(
    results: Path,
    given: Mapping[str, Any],
    formats: Iterable[str],
    *,
    scales_from: Path | None = None,
) -> Export:
    """Record the new options in the results, and list the work that they need.

    Parameters
    ----------
    results : Path
        Results folder.
    given : mapping
        Options to change, by name; the others stay as they are.
    formats : iterable of str
        Formats to add.
    scales_from : Path, optional
        Results of healthy slides that standardise the scales from now on.

    Raises
    ------
    InputError
        The folder contains no results, or they are damaged or of an earlier version; or the
        healthy slides cannot standardise scales, or there are none to standardise.
    """
    folder = Results(results)
    facts = folder.facts
    before = options_of(facts, results)
    by = facts.get(STANDARDISED_BY)
    maps = None
    if scales_from is not None:
        maps, by = _standardising(results, scales_from)
        if before.scales_um == ALONE:
            given = {"scales_um": "auto", **given}
    elif (results / HEALTHY_MAPS).exists():
        maps = HealthyMaps.read(results / HEALTHY_MAPS)
    mean_of = given.get("mean_of") or kept_mean(facts, results)
    changed = {**before.model_dump(), "mean_of": mean_of, **given}
    if "mean_of" not in given and changed["scales_um"] == ALONE:
        changed["mean_of"] = "auto"  # nothing is averaged
    options = build(HeatmapOptions, changed, source="export")
    names = tuple(sorted({*facts[FORMATS], *(kind.name for kind in chosen(formats))}))
    calibration = _calibration(results)
    subject, labelled = str(results), _labelled(facts)
    unsaid = labelled is None and options.mean_of == "auto"
    scales = choose_scales(maps, calibration, options, labelled=bool(labelled), subject=subject)
    if scales_from is not None and scales.calibration is None:
        why = "its healthy slides are too few or too small" if scales.reason else "`scales_um` is 0"
        raise InputError(
            f"standardises nothing: {why}",
            subject=str(scales_from),
            remedy="Pass results of more healthy slides, or radii that these can standardise as "
            "--scales-um.",
        )
    options = options.model_copy(update=scales.told(subject).options)
    derived = derived_values(options, None) | {EXAMPLES: facts[DERIVED].get(EXAMPLES, "")}
    if by and maps and scales.calibration:
        derived[STANDARDISED_BY] = f"{len(maps)} healthy slides, {scales.calibration.digest}"
    tasks = [
        ExportTask(
            slide=SlideInput(
                name=row.slide, path=Path(row.file or row.slide), label=row.label, split=row.split
            ),
            results=results,
            options=options,
            derived=derived,
            formats=names,
            calibration=calibration,
            row=row,
            spatial=scales.calibration,
        )
        for slide in folder
        # One that was scored and whose results are gone fails, and says so.
        if (row := slide.row).status == OK or _has_results(slide)
    ]
    if not tasks:
        raise InputError(
            without_result([slide.row for slide in folder], "holds no slide with results"),
            subject=str(results),
            remedy=f"See its {SLIDES_TABLE} for all reasons.",
        )
    said = []
    told = differences(stated(facts[DERIVED]), stated(derived))
    if told:
        said.append(f"derived again: {', '.join(told)}")
    now = {**facts, DERIVED: derived, FORMATS: list(names)}
    if "scales_um" in given:
        now.pop(ALONE_BECAUSE, None)
    now.pop(MEAN_OF, None)
    if not scales.calibration and mean_of != "auto":
        now[MEAN_OF] = mean_of
    if unsaid and scales.calibration:
        said.append(
            "percentiles are averaged, because the results do not say whether their method learnt "
            "from labels; if it did, set --mean-of scores"
        )
    if scales.reason:
        said.append(scales.reason)
        now[ALONE_BECAUSE] = scales.reason
    if gone := forget_other_regions(results, facts, now):
        said.append(gone)
    if scales_from is not None and maps:
        now[STANDARDISED_BY] = by
        maps.write(results / HEALTHY_MAPS)
    write_json(results / FACTS, now)
    write_scales(results, scales.calibration)
    return Export(tasks, names, tuple(said))


def _labelled(facts: Mapping[str, Any]) -> bool | None:
    """Tell whether the method learnt from labels; ``None`` if neither results nor run say it.

    Results of before there was a choice do not state it.
    """
    if isinstance(stated := facts.get(LABELLED), bool):
        return stated
    from wsiad.runs.run import RunFolder

    try:
        return RunFolder.open(Path(str(facts.get("run")))).record().labelled
    except WsiadError:
        return None


def _standardising(results: Path, healthy: Path) -> tuple[HealthyMaps, dict[str, Any]]:
    """Return the heatmaps of healthy slides, and what ``run.json`` states of them.

    Raises
    ------
    InputError
        They are not healthy slides of the same run that took part in nothing.
    """
    tested, folder = read_folder(results), read_folder(healthy)
    folder.check_same_scores(tested.facts["digest"])
    folder.check_healthy(slides_of_run(tested) or {})
    folder.check_apart(tested)
    slides = [slide.name for slide in folder.slides]
    return maps_of(folder), {"results": str(healthy.absolute()), "slides": slides}


def _has_results(slide: SlideResults) -> bool:
    """Tell whether a slide without a score in the table has results of its own file.

    An export that failed, for example on a full disk, is tried again. Results of another file of
    the same name, which ``wsiad heatmap`` refused, stay refused.
    """
    path = Path(slide.row.file)
    try:
        facts = slide.facts()
        if facts is None or slide.row.status != FAILED:
            return facts is not None
        return away_problem(path) is not None or slide_fingerprint(path) == facts["fingerprint"]
    except (WsiadError, OSError):
        return True  # its task says what is wrong


def _calibration(results: Path) -> Calibration:
    path = results / CALIBRATION
    try:
        return Calibration.from_json(
            read_json(path, InputError, remedy=_WRITTEN_AGAIN, most=MOST_FACTS)
        )
    except RunError as error:
        raise InputError(error.problem, subject=str(path), remedy=_WRITTEN_AGAIN) from error


def export_slide(task: ExportTask) -> HeatmapRow:
    """Write the missing formats of a slide's results, and derive the parts whose options differ.

    Raises
    ------
    InputError
        The results are damaged.
    """
    record = read_json(task.folder / SLIDE, InputError, remedy=_AGAIN, most=MOST_FACTS)
    row = _row(record, task)
    lacking = {kind.name for kind in chosen(task.formats)} - {*(record.get(FORMATS) or [])}
    if record.get(DERIVED) == task.derived and not lacking:
        return row
    from wsiad.results.deriving import Parts, derive_again  # with all that reads and draws

    with ExitStack() as stack:
        slide, unseen = None, ""
        if Parts.differing(record, task.derived).views and record[GEOMETRY]:
            slide, unseen = _opened(stack, record, row)
        return derive_again(
            task.folder,
            record,
            row,
            options=task.options,
            derived=task.derived,
            calibration=task.calibration,
            formats=task.formats,
            evidence=functools.partial(_kept, task),
            slide=slide,
            unseen=unseen,
            spatial=task.spatial,
        )


def lacks_evidence(folder: Path) -> bool:
    """Tell whether regions of a slide lack evidence or views that `wsiad heatmap` can add.

    A slide whose record cannot be read has failed; scoring it again makes all parts again.
    """
    try:
        record = read_json(folder / SLIDE, InputError, remedy=_AGAIN, most=MOST_FACTS)
        return bool(record.get(LACKING))
    except InputError:
        return False


def _row(record: Mapping[str, Any], task: ExportTask) -> HeatmapRow:
    kinds = {GEOMETRY: dict, NOTES: list, "row": dict}
    lacks = [key for key, kind in kinds.items() if not isinstance(record.get(key), kind)]
    try:
        row = HeatmapRow(**({} if lacks else record["row"]))
    except TypeError as error:
        problem = f"it has no {lacks[0]}" if lacks else str(error)
        raise InputError(
            f"is damaged: {problem}", subject=str(task.folder / SLIDE), remedy=_AGAIN
        ) from error
    return replace(row, label=task.row.label, split=task.row.split)


def _kept(task: ExportTask, scored: ScoredHeatmap) -> Evidence:
    def write(folder: Path, regions: Sequence[Region]) -> int:
        from wsiad.results.evidence import keep_evidence

        return keep_evidence(
            folder, task.folder, regions, scored.windows, options=task.options, mpp=scored.mpp
        )

    return write


def _opened(
    stack: ExitStack, record: Mapping[str, Any], row: HeatmapRow
) -> tuple[Slide | None, str]:
    """Open a slide to show its regions, or return why it cannot be opened.

    Neither is returned for a slide whose windows came from a store.
    """
    if row.backend == "store" or not row.file:
        return None, ""
    from wsiad.slides.opening import open_slide

    path = Path(row.file)
    try:
        if not path.exists():
            return None, "its file is not available"
        if slide_fingerprint(path) != record.get("fingerprint"):
            return None, "its file has changed since it was scored"
        return stack.enter_context(open_slide(path, name=row.slide, fallback_mpp=row.mpp_x)), ""
    except (WsiadError, OSError) as error:
        return None, f"its file cannot be read ({error})"
