"""Plan the work of ``wsiad heatmap``: the slides to score, and the beginning of their results.

torch and the readers of slides take seconds to import. A call that has nothing left to score needs
neither, so what scores is imported for a slide that waits for it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from wsiad.compute.compute_options import ComputeOptions, first_slides, slides_of_call
from wsiad.core.config import Config, build, differences, read_yaml, write_config
from wsiad.core.errors import ConfigError, InputError, StoreMismatchError
from wsiad.core.files import write_json
from wsiad.core.packages import versions
from wsiad.heatmaps.chosen_scales import choose_scales
from wsiad.heatmaps.heatmap_task import HeatmapOptions, HeatmapRow, ReadingOptions, SlideTask
from wsiad.heatmaps.scale_space import SpatialCalibration
from wsiad.results.file_names import (
    CALIBRATION,
    CONFIG,
    HEALTHY_MAPS,
    LEGEND,
    RESERVED,
    SIGNIFICANCE,
    SLIDE,
)
from wsiad.results.folder import Results
from wsiad.results.identity import (
    ALONE_BECAUSE,
    DERIVED,
    FORMATS,
    LABELLED,
    MEAN_OF,
    SCORED,
    STANDARDISED_BY,
    asked_values,
    begin_results,
    check_scores,
    derived_values,
    format_names,
    options_of,
    scored_digest,
    scoring_values,
    stated,
    with_scales_of,
    write_scales,
)
from wsiad.results.qupath_project import MADE
from wsiad.results.records import LACKING, scored_record
from wsiad.runs.calibration import Calibration, colour_scale
from wsiad.runs.compatibility import check_divides, check_no_gaps, run_preparation, store_slides
from wsiad.runs.healthy_maps import HealthyMaps
from wsiad.runs.run import DETECTOR, RunFolder
from wsiad.slides.folder_kinds import SLIDES, other_kinds_named
from wsiad.slides.inputs import SlideInput, find_slides
from wsiad.store.tile_store import TileStore, is_store
from wsiad.tiling.preparation import Preparation

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """Work of a call of ``wsiad heatmap``.

    Parameters
    ----------
    results : Path
        Results folder.
    tasks : list of SlideTask
        One task for each slide of this call.
    slides : frozenset of str
        Names of the slides of all calls.
    facts : dict
        Content of ``run.json`` at the beginning.
    asked : dict
        Run and options of the scores, see :func:`wsiad.results.identity.asked_values`.
    calibration : Calibration
        Calibration of the run.
    maps : HealthyMaps or None
        Maps of the run's healthy slides, which the results keep for other scales.
    spatial : SpatialCalibration or None
        Calibration of neighbourhoods, if regions and detections are derived from them.
    warnings : tuple of str
        Warnings on these results, which :meth:`begin` logs: nobody needs them if nothing begins.
    """

    results: Path
    tasks: list[SlideTask]
    slides: frozenset[str]
    facts: dict[str, Any]
    asked: dict[str, Any]
    calibration: Calibration
    maps: HealthyMaps | None
    spatial: SpatialCalibration | None
    warnings: tuple[str, ...]

    def begin(self, config: Config) -> None:
        """Write the files of a results folder that do not belong to a slide.

        Parameters
        ----------
        config : Config
            Configuration of the call, which is stored in the results.

        Raises
        ------
        InputError
            Another call has begun other scores in the folder a moment ago.
        """
        was = begin_results(self.results, self.facts, self.asked)
        said_below = {STANDARDISED_BY: ""}
        before, now = (stated(one[DERIVED]) | said_below for one in (was or self.facts, self.facts))
        if told := differences(before, now):
            logger.warning(
                "%s: regions and detections are derived again, with other options: %s. Slides that "
                "this call leaves out keep theirs: call it with all, or run wsiad export.",
                self.results,
                ", ".join(told),
            )
        for warning in self.warnings:
            logger.warning("%s", warning)
        if (self.results / SIGNIFICANCE).exists():
            from wsiad.results.significance_files import forget_other_regions

            if gone := forget_other_regions(self.results, was, self.facts):
                logger.warning("%s: %s", self.results, gone)
        if was and STANDARDISED_BY in (was.get(DERIVED) or {}):
            logger.warning(
                "%s: neighbourhoods are standardised by the run's own slides again. Run wsiad "
                "export --scales-from again when all slides are scored.",
                self.results,
            )
        write_config(self.results / CONFIG, config)
        self._write_calibration()
        if self.maps:
            self.maps.write(self.results / HEALTHY_MAPS)
        else:  # those of healthy results would be taken for those of the run
            (self.results / HEALTHY_MAPS).unlink(missing_ok=True)
        write_scales(self.results, self.spatial)

    def _write_calibration(self) -> None:
        """Write the calibration and the legend of its colours, which follows from it alone."""
        path, legend = self.results / CALIBRATION, self.results / LEGEND
        was = path.read_bytes() if path.exists() and legend.exists() else None
        write_json(path, self.calibration.to_json())
        if was != path.read_bytes():
            from wsiad.results.overlay import write_legend

            write_legend(legend, colour_scale(self.calibration))


def plan_scoring(
    paths: Sequence[Path],
    *,
    run: Path,
    results: Path,
    options: HeatmapOptions,
    reading: ReadingOptions,
    damaged_tiles: Literal["fail", "skip"],
    healthy: Path | None,
    batch: int,
    device: str,
    compute: ComputeOptions,
    limit: int | None = None,
) -> Scoring:
    """Plan the scoring of slides; nothing is written yet.

    Parameters
    ----------
    paths : sequence of Path
        Slide files, folders of them or manifests; or one store.
    run, results : Path
        Run folder, and results folder.
    options : HeatmapOptions
        Options of the results.
    reading : ReadingOptions
        Options of reading windows.
    damaged_tiles : {"fail", "skip"}
        Effect of a damaged part of a slide's file.
    healthy : Path, optional
        Results folder of healthy slides to compare the results with.
    batch : int
        Maximum number of windows that are scored at a time.
    device : str
        Name of the device, see :func:`wsiad.learning.devices.choose_device`.
    compute : ComputeOptions
        Options of the workers and of this call's part of the slides.
    limit : int, optional
        Number of slides, the first by name.

    Raises
    ------
    RunError
        The run is missing, not complete or damaged.
    InputError
        The stride leaves gaps between windows, or fits no slide of the store; no slides were
        found; or the results folder, or that of the healthy slides, contains results of another
        run or other options.
    StoreError
        The slides are a store that is damaged or was prepared differently.
    """
    folder = RunFolder.open(run, beside=paths)
    record = folder.record()
    if options.stride is not None:
        check_no_gaps(options.stride, window_px=folder.input_spec().size)
    preparation, target = _prepared(run, reading, damaged_tiles)
    quality = preparation.quality
    calibration, maps = folder.calibration(), folder.healthy_maps()
    digest = scored_digest(run, options, reading, quality)
    options = with_scales_of(results, options, digest=digest, maps=maps)
    chosen = choose_scales(maps, calibration, options, labelled=record.labelled, subject=str(run))
    mean_of = options.mean_of
    options = options.model_copy(update=chosen.options)
    asked = asked_values(run, options, reading)
    facts: dict[str, Any] = {
        "digest": digest,
        SCORED: scoring_values(options),
        DERIVED: derived_values(options, run),
        FORMATS: list(options.viewers),
        "run": str(run.absolute()),
        "detector": record.detector,
        LABELLED: record.labelled,
        # Of the detector, not of the clock: equal results give equal projects.
        MADE: (run / DETECTOR).stat().st_mtime_ns // 1_000_000,
        "versions": versions(),
    }
    warnings = [f"{run}: {why}" for why in (chosen.reason, chosen.warning) if why]
    if chosen.reason:
        facts[ALONE_BECAUSE] = chosen.reason
    if not chosen.calibration and mean_of != "auto":
        facts[MEAN_OF] = mean_of
    check_scores(results, digest, asked, remedy="Set another --out, or delete this one.")
    if healthy is not None:
        from wsiad.results.significance_comparison import check_reference

        check_reference(healthy, facts, asked)
    slides, from_store = heatmap_inputs(
        paths,
        run=run,
        preparation=preparation,
        target=target,
        staged=compute.stage_dir is not None,
    )
    if from_store and options.stride is not None:
        check_divides(options.stride, paths[0], slides)
    slides = first_slides(slides, limit)
    if options.evidence_regions and from_store and TileStore(paths[0]).encoder:
        note = "the store holds features without tiles: regions have no evidence"
        warnings.append(f"{paths[0]}: {note}")
        facts["evidence"] = note
    elif options.evidence_regions and not record.healthy_examples:
        note = "the run keeps no healthy examples: regions are shown without their nearest ones"
        logger.info("%s: %s", run, note)
        facts["evidence"] = note
    preparation = _scaled(preparation, reading)
    tasks = [
        SlideTask(
            slide=slide,
            from_store=from_store,
            results=results,
            run=run,
            options=options,
            preparation=preparation,
            target=target,
            digest=digest,
            derived=facts[DERIVED],
            batch=batch,
            device=device,
            override_mpp=reading.override_mpp,
            spatial=chosen.calibration,
        )
        for slide in slides_of_call(slides, compute)
    ]
    return Scoring(
        results=results,
        tasks=tasks,
        slides=frozenset(slide.name for slide in slides),
        facts=facts,
        asked=asked,
        calibration=calibration,
        maps=maps,
        spatial=chosen.calibration,
        warnings=tuple(warnings),
    )


def _prepared(
    run: Path, reading: ReadingOptions, damaged_tiles: Literal["fail", "skip"]
) -> tuple[Preparation, dict[str, Any]]:
    """Return the preparation of a run, changed by the options of reading, and its stains."""
    preparation, target = run_preparation(run)
    made = preparation.pictures
    if made and (made.grey_values or made.clahe):
        raise StoreMismatchError(
            "was trained on pictures that are grey or equalised, which slides are not",
            subject=str(run),
            remedy="Score imported pictures with wsiad score-tiles.",
        )
    quality = preparation.quality.changed_by(reading.quality)
    update = {"quality": quality, "damaged_tiles": damaged_tiles}
    return preparation.model_copy(update=update), target


def _scaled(preparation: Preparation, reading: ReadingOptions) -> Preparation:
    """Return a preparation with the scale of slides that the options of reading state."""
    scale = {"slide_mpp": reading.slide_mpp, "allow_upsampling": reading.allow_upsampling}
    given = {key: value for key, value in scale.items() if value is not None}
    return preparation.model_copy(update=given)


def reading_tasks(
    results: Results, names: Sequence[str], *, run: Path, device: str
) -> dict[str, SlideTask]:
    """Return tasks by which windows of scored slides are read again, with the same pixels.

    Parameters
    ----------
    results : Results
        Results folder.
    names : sequence of str
        Names of scored slides.
    run : Path
        Run that made the results.
    device : str
        Name of the device.

    Raises
    ------
    RunError
        The run is missing, not complete or damaged.
    InputError
        The results are damaged or of an earlier version, or another run made them.
    """
    options = options_of(results.facts, results.path)
    try:
        values = read_yaml(results.path / CONFIG)
        own = {key: values[key] for key in ReadingOptions.model_fields if key in values}
        reading = build(ReadingOptions, own, source=str(results.path / CONFIG))
    except ConfigError as error:
        remedy = "Run the same wsiad heatmap again, which rewrites the file."
        raise InputError(error.problem, subject=error.subject, remedy=remedy) from error
    RunFolder.open(run)
    skips = values.get("damaged_tiles") == "skip"
    preparation, target = _prepared(run, reading, "skip" if skips else "fail")
    digest = scored_digest(run, options, reading, preparation.quality)
    if digest != results.facts["digest"]:
        raise InputError(
            f"was not made by the run {run} as it is now",
            subject=str(results.path),
            remedy="Pass the run that made the results as --run, or score the slides again.",
        )
    preparation = _scaled(preparation, reading)
    tasks = {}
    for name in names:
        slide = results.slide(name)
        row, facts = slide.row, slide.facts() or {}
        tasks[name] = SlideTask(
            slide=SlideInput(name, Path(row.file), mpp=facts.get("manifest_mpp"), label=row.label),
            from_store=row.backend == "store",
            results=results.path,
            run=run,
            options=options,
            preparation=preparation,
            target=target,
            digest=digest,
            derived=results.facts[DERIVED],
            batch=1,
            device=device,
            override_mpp=reading.override_mpp,
        )
    return tasks


def heatmap_inputs(
    paths: Sequence[Path],
    *,
    run: Path,
    preparation: Preparation,
    target: dict[str, Any],
    staged: bool,
) -> tuple[list[SlideInput], bool]:
    """List the slides to score, and tell whether they come from a store.

    Parameters
    ----------
    paths : sequence of Path
        Slide files, folders of them or manifests; or one store.
    run : Path
        Run folder, for errors: it may be among the paths by mistake.
    preparation : Preparation
        Preparation of the run.
    target : dict
        Stain profile to which slides are normalised, as JSON values.
    staged : bool
        True where slides are copied to a local disk first.

    Raises
    ------
    InputError
        No slides were found, or a store is passed together with other paths or with staging.
    StoreError
        The store is damaged or was prepared differently from that of the run.
    """
    if not any(is_store(path) for path in paths):
        remedy = "Pass slide files, folders of them, a manifest, or a store."
        with other_kinds_named(paths, SLIDES, InputError, remedy=remedy, beside=[run]):
            return _named_apart(find_slides(paths)), False
    if len(paths) > 1:
        raise InputError("a store cannot be scored with other paths", remedy="Pass it alone.")
    if staged:
        raise InputError(
            "is a store, which is not copied to a local disk",
            subject=str(paths[0]),
            remedy="Leave out --stage-dir, or pass the slides themselves.",
        )
    return _named_apart(store_slides(paths[0], preparation, target)), True


def _named_apart(slides: list[SlideInput]) -> list[SlideInput]:
    """State the problem of slides whose folder would be in the place of something else."""
    problem = "has the name of a file or folder that all results have. Rename it."
    return [
        replace(slide, problem=slide.problem or problem)
        if slide.name.partition("/")[0] in RESERVED
        else slide
        for slide in slides
    ]


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
    DetectorError
        The detector does not compute in the requested precision.
    """
    waiting = (task for task in tasks if not (task.folder / SLIDE).exists())
    if (first := next(waiting, None)) is None:
        return
    from wsiad.results.scoring import load_once

    device = "cpu" if apart else first.device
    load_once(first.run, device, first.digest, first.options.precision)
    if apart:
        load_once.cache_clear()


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
