"""Identity of results: everything that decides the scores, and everything derived from them.

``run.json`` of a results folder states both. ``digest`` covers the run and all options that
decide the scores; ``derived`` has the options that decide regions, detections and evidence, by
name. Other scores need another folder, but derived parts can be derived again. The record of each
slide states the same values, so that a slide that was derived with other options than its folder
states is noticed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from wsiad.core.config import build, differences, read_yaml
from wsiad.core.errors import ConfigError, InputError
from wsiad.core.files import fingerprint, new_file, write_json
from wsiad.exports.export_format import chosen
from wsiad.heatmaps.heatmap_task import (
    DerivedOptions,
    HeatmapOptions,
    ReadingOptions,
    RegionOptions,
    ScoringOptions,
    SlideTask,
)
from wsiad.heatmaps.space_options import ALONE, MeanOf
from wsiad.results.file_names import CONFIG, FACTS, SCALES, SLIDES_TABLE
from wsiad.results.folder import Results
from wsiad.results.records import results_facts
from wsiad.slides.folder_kinds import RESULTS, refuse_other
from wsiad.tissue.tissue_options import QualityThresholds

if TYPE_CHECKING:
    from wsiad.heatmaps.scale_space import SpatialCalibration
    from wsiad.runs.healthy_maps import HealthyMaps

logger = logging.getLogger(__name__)

DERIVED, SCORED, FORMATS, EXAMPLES = "derived", "scored", "formats", "examples"
"""Keys of ``run.json`` and of a slide's record."""

STANDARDISED_BY = "standardised_by"
"""Key of ``run.json``, healthy slides that standardise the scales in place of those of the run:
their folder and names. Among derived values it is a digest of the scales."""

ALONE_BECAUSE = "single_windows_because"
"""Key of ``run.json``: reason why regions come from single windows, if nobody asked for them."""

LABELLED = "labelled"
"""Key of ``run.json``: whether the method learnt from labelled anomalies."""

MEAN_OF = "mean_of"
"""Key of ``run.json`` of single windows: what is averaged where neighbourhoods are looked at again,
as it was before, or as the user set it."""

_ANEW = "Run wsiad heatmap or wsiad export again with the options that you want."

ALIKE_BY_EXPORT = (
    "Set these options alike with wsiad export (standardised_by: --scales-from); nothing is scored "
    "again."
)
"""Remedy for results with equal scores whose regions were derived with different options."""


def scored_digest(
    run: Path, options: HeatmapOptions, reading: ReadingOptions, quality: QualityThresholds
) -> str:
    """Return the digest of scores: of the run's files and of the options that decide scores.

    Parameters
    ----------
    run : Path
        Run folder.
    options : HeatmapOptions
        Options of the results.
    reading : ReadingOptions
        Options of reading windows.
    quality : QualityThresholds
        Quality thresholds of the run, changed by those that the user sets.
    """
    from wsiad.runs.claim import WEIGHTS
    from wsiad.runs.run import CALIBRATION, DETECTOR

    parts = [fingerprint(run / name) for name in (DETECTOR, WEIGHTS, CALIBRATION)]
    values = {
        **reading.model_dump(exclude={"quality"}),
        "quality": quality.given,
        **scoring_values(options),
    }
    text = json.dumps([*parts, values], sort_keys=True)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def scoring_values(options: HeatmapOptions) -> dict[str, Any]:
    """Return the options that decide scores, as JSON values."""
    values = options.model_dump(mode="json", include=set(ScoringOptions.model_fields))
    if options.precision == "run":
        del values["precision"]  # results of before there was a choice have no such key
    return values


def derived_values(options: HeatmapOptions, run: Path | None) -> dict[str, Any]:
    """Return the values that decide what is derived from scores, as JSON values.

    Parameters
    ----------
    options : HeatmapOptions
        Options of the results; `auto` is replaced by the scales that it amounts to.
    run : Path, optional
        Run folder, whose healthy examples are shown as evidence.
    """
    values = options.model_dump(mode="json", include=set(DerivedOptions.model_fields))
    # Results of before there was a choice have no such keys.
    if options.scales_um == ALONE:
        del values["scales_um"], values["mean_of"]
    elif options.mean_of == "percentiles":
        del values["mean_of"]
    values[EXAMPLES] = ""
    if run is not None and options.evidence_regions:
        from wsiad.runs.claim import EXAMPLES as FILE

        values[EXAMPLES] = fingerprint(run / FILE) if (run / FILE).exists() else ""
    return values


def stated(derived: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of :func:`derived_values` with those that it leaves out."""
    usual = {"scales_um": list(ALONE), "mean_of": "percentiles", STANDARDISED_BY: "the run"}
    return {**usual, **derived}


def options_of(facts: Mapping[str, Any], results: Path) -> HeatmapOptions:
    """Return the options of results, from the content of their ``run.json``.

    Raises
    ------
    InputError
        The file does not state them, because it is damaged or from a version of wsiad that did
        not separate scores and derived parts.
    """
    check_parted(facts, results)
    others = (EXAMPLES, STANDARDISED_BY)
    derived = {key: value for key, value in stated(facts[DERIVED]).items() if key not in others}
    if derived["scales_um"] == list(ALONE):
        del derived["mean_of"]  # nothing was averaged
    values = {**facts[SCORED], **derived, "viewers": facts[FORMATS]}
    try:
        return build(HeatmapOptions, values, source=str(results / FACTS))
    except ConfigError as error:
        raise InputError(
            f"is damaged: {error.problem}",
            subject=str(results / FACTS),
            remedy="Run the same wsiad heatmap again, which rewrites the file.",
        ) from error


def kept_mean(facts: Mapping[str, Any], results: Path) -> Literal["auto"] | MeanOf:
    """Return what is averaged in results, or was before they came from single windows.

    Raises
    ------
    InputError
        The file does not state the options of the results, or is damaged.
    """
    before = options_of(facts, results)
    if before.scales_um != ALONE:
        return before.mean_of
    kept = facts.get(MEAN_OF, "auto")
    if kept != "auto" and kept not in get_args(MeanOf):
        raise InputError(
            f"is damaged: {MEAN_OF} is {kept!r}, and not {' or '.join(get_args(MeanOf))}",
            subject=str(results / FACTS),
            remedy="Run the same wsiad heatmap again, which rewrites the file.",
        )
    return cast('Literal["auto"] | MeanOf', kept)


def with_scales_of(
    results: Path, options: HeatmapOptions, *, digest: str, maps: HealthyMaps | None
) -> HeatmapOptions:
    """Return options whose `auto` is what the results already have, whatever is usual today.

    Where ``run.json`` is gone or damaged, the records of the slides say what that is.

    Parameters
    ----------
    results : Path
        Results folder, which need not exist.
    options : HeatmapOptions
        Options of a call.
    digest : str
        Digest of the requested scores, see :func:`scored_digest`.
    maps : HealthyMaps or None
        Maps of the run's healthy slides.

    Raises
    ------
    ConfigError
        A mean is requested, and the results have single windows because somebody asked for them.
    """
    if options.scales_um not in ("auto", ALONE):
        return options
    facts: Mapping[str, Any]
    try:
        facts = results_facts(results)
    except InputError:
        facts = _facts_of_slides(results, options, digest=digest, maps=maps)
    try:
        if facts["digest"] != digest or DERIVED not in facts:
            return options
        before, mean_of = options_of(facts, results), kept_mean(facts, results)
    except InputError:  # of an earlier version, see `check_scores`
        return options
    kept: dict[str, Any] = {} if options.mean_of != "auto" else {"mean_of": mean_of}
    # The healthy slides of other results serve no longer.
    usable = bool(maps) or STANDARDISED_BY not in facts[DERIVED]
    if options.scales_um == "auto" and usable and ALONE_BECAUSE not in facts:
        kept["scales_um"] = before.scales_um
        if before.scales_um == ALONE and "mean_of" not in kept:
            raise ConfigError(
                "`mean_of` does nothing where `scales_um` is 0, as in these results",
                subject=str(results),
                remedy="Set --scales-um too, such as 100 200, or leave out --mean-of.",
            )
    return options.model_copy(update=kept)


def _facts_of_slides(
    results: Path, options: HeatmapOptions, *, digest: str, maps: HealthyMaps | None
) -> dict[str, Any]:
    """Return what the records of slides with these scores say in place of ``run.json``.

    They say nothing of the derived values where they state different scales, or single windows
    that too few healthy slides explain.
    """
    from wsiad.heatmaps.chosen_scales import FEWEST_SLIDES

    found = list[dict[str, Any]]()
    for slide in Results(results) if (results / SLIDES_TABLE).exists() else ():
        with contextlib.suppress(InputError):  # damaged: it is scored again
            there = slide.facts()
            if there and there["digest"] == digest and isinstance(there.get(DERIVED), dict):
                found.append(there[DERIVED])
    scales = [
        [stated(one)[key] for key in ("scales_um", "mean_of", STANDARDISED_BY)] for one in found
    ]
    if not found or any(one != scales[0] for one in scales):
        return {"digest": digest}
    if scales[0][0] == list(ALONE) and (maps is None or len(maps) < FEWEST_SLIDES):
        return {"digest": digest}
    return {"digest": digest, DERIVED: found[0], SCORED: scoring_values(options), FORMATS: []}


def check_parted(facts: Mapping[str, Any], results: Path) -> None:
    """Check that results separate scores and derived parts.

    Raises
    ------
    InputError
        The results are from a version of wsiad that did not.
    """
    kinds = {DERIVED: dict, SCORED: dict, FORMATS: list}
    if any(not isinstance(facts.get(key), kind) for key, kind in kinds.items()):
        raise InputError(
            "holds results of an earlier version of wsiad, which can be evaluated and viewed, "
            "but not continued or derived again",
            subject=str(results),
            remedy="Score the slides into another --out.",
        )


def write_scales(results: Path, spatial: SpatialCalibration | None) -> None:
    """Write the calibration of neighbourhoods; ``None`` deletes that of other options."""
    if spatial is None:
        (results / SCALES).unlink(missing_ok=True)
    else:
        write_json(results / SCALES, spatial.to_json())


def asked_values(run: Path, options: HeatmapOptions, reading: ReadingOptions) -> dict[str, Any]:
    """Return the run and options of requested scores, to compare them with existing ones."""
    scoring = options.model_dump(mode="json", include=set(ScoringOptions.model_fields))
    return {"run": str(run), **scoring, **reading.model_dump(mode="json")}


def stated_options(results: Path) -> dict[str, Any]:
    """Return the options of scoring and reading in a ``config.yaml``, as JSON values.

    Results of before there was an option do not state it: they have its default.

    Raises
    ------
    ConfigError
        The file is missing or damaged.
    """
    path = results / CONFIG
    there, values = read_yaml(path), dict[str, Any]()
    for kind in (ScoringOptions, ReadingOptions):
        given = {key: value for key, value in there.items() if key in kind.model_fields}
        values |= build(kind, given, source=str(path)).model_dump(mode="json")
    return values


def check_scores(results: Path, digest: str, asked: Mapping[str, Any], *, remedy: str) -> None:
    """Refuse a folder with the scores of another run or of other options, and name them.

    Parameters
    ----------
    results : Path
        Results folder, which need not exist yet.
    digest : str
        Digest of the requested scores, see :func:`scored_digest`.
    asked : mapping
        Run and options of the requested scores, see :func:`asked_values`.
    remedy : str
        Remedy that the error states.

    Raises
    ------
    InputError
        The folder contains other scores, or something else, or cannot say whose scores it holds.
    """
    path = results / FACTS
    # Looked for first: other shards, which may be starting now, write it second.
    table = (results / SLIDES_TABLE).exists()
    if not path.exists():
        if table and not _slides_have(results, digest):
            raise InputError(
                f"holds a {SLIDES_TABLE}, but not one of wsiad heatmap",
                subject=str(results),
                remedy=remedy,
            )
        return
    refuse_other(results, RESULTS, InputError, remedy=remedy)
    try:
        facts = results_facts(results)
    except InputError as error:
        if _slides_have(results, digest):
            logger.warning("%s: %s; it is written anew", path, error.problem)
            return
        raise InputError(
            f"{error.problem}, and no slide's record says that its scores are those of this call",
            subject=str(path),
            remedy=remedy,
        ) from error
    check_parted(facts, results)
    if facts["digest"] != digest:
        raise InputError(
            "holds the scores of another run or of other options: "
            f"{difference(results, facts, asked)}",
            subject=str(results),
            remedy=remedy,
        )


def _slides_have(results: Path, digest: str) -> bool:
    """Tell whether all slides of results that say whose their scores are have those of a digest."""
    found = set()
    if (results / SLIDES_TABLE).exists():
        for slide in Results(results):
            with contextlib.suppress(InputError):  # damaged: it is scored again
                if (facts := slide.facts()) is not None:
                    found.add(facts["digest"])
    return found == {digest}


def begin_results(
    results: Path, facts: Mapping[str, Any], asked: Mapping[str, Any]
) -> Mapping[str, Any] | None:
    """Write ``run.json``, unless another call has begun other scores a moment ago.

    Returns
    -------
    mapping or None
        Previous content of the file; ``None`` if it did not exist.

    Raises
    ------
    InputError
        Another call has begun other scores.
    """
    path = results / FACTS
    try:
        with new_file(path) as partial:
            write_json(partial, dict(facts))
    except FileExistsError:
        check_scores(results, facts["digest"], asked, remedy="Set another --out.")
        try:
            there = results_facts(results)
        except InputError:  # damaged, and its slides say that they are of these scores
            write_json(path, dict(facts))
            return None
        formats = sorted({*there[FORMATS], *facts[FORMATS]})
        write_json(path, {**facts, FORMATS: formats})
        return there
    return None


def difference(results: Path, facts: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """Return the options in which scores differ from the requested ones, with both values.

    Parameters
    ----------
    results : Path
        Results folder.
    facts : mapping
        Content of its ``run.json``.
    asked : mapping
        Run and options of the requested scores, see :func:`asked_values`.
    """
    try:
        was = stated_options(results)
    except ConfigError:
        return f"its {CONFIG} does not state which"
    told = differences(was, {key: asked[key] for key in was})
    before, after = (Path(str(run)).absolute() for run in (facts.get("run"), asked["run"]))
    if before != after:
        told.append(f"run {before} (now {after})")
    return ", ".join(told) or f"the run {after} has been trained again since"


def region_differences(
    one: Mapping[str, Any], two: Mapping[str, Any], *, slide_score: str = "top_k_mean"
) -> list[str]:
    """Return the differing options of regions of two ``run.json``, as ``top_k is 3 and not 10``.

    The list is empty for results of earlier versions, which do not state these options. It has
    `top_k` only for the slide score that depends on it.
    """
    first, second = one.get(DERIVED), two.get(DERIVED)
    if not (isinstance(first, dict) and isinstance(second, dict)):
        return []
    first, second = stated(first), stated(second)
    return [
        f"{key} is {first.get(key)} and not {second.get(key)}"
        for key in (*RegionOptions.model_fields, STANDARDISED_BY)
        if first.get(key) != second.get(key) and (key != "top_k" or slide_score == "top_k_mean")
    ]


def derived_by(results: Path, *, exclude: Collection[str] = ()) -> dict[str, Any] | None:
    """Return the values that decide the regions and detections of results, for all slides.

    Parameters
    ----------
    results : Path
        Results folder.
    exclude : collection of str
        Slides to ignore.

    Returns
    -------
    dict or None
        Values as from :func:`derived_values`; ``None`` for results that do not state them.

    Raises
    ------
    InputError
        The values differ between slides, for example after an interruption while they were
        derived again; the error names the first such slide.
    """
    if not (results / FACTS).exists():
        return None  # evaluation needs no more than the table
    folder = Results(results)
    derived = folder.facts.get(DERIVED)
    if not isinstance(derived, dict):
        return None
    for slide in folder:
        if not slide.is_scored or slide.name in exclude or (facts := slide.facts()) is None:
            continue
        if facts.get(DERIVED) != derived:
            raise InputError(
                "its regions and detections were not derived with the options of the other slides",
                subject=str(slide.folder),
                remedy=_ANEW,
            )
    return derived


def format_names(task: SlideTask) -> list[str]:
    """Return the names of the formats that a task requests, aliases resolved."""
    return [kind.name for kind in chosen(task.options.viewers)]
