"""Prepare the training of a second look: the store, the split and the method of a first run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wsiad.core.config import CONFIG, read_yaml, stated_path
from wsiad.core.errors import ConfigError, RunError
from wsiad.detectors import registry
from wsiad.runs.chosen_tiles import Chosen, choose
from wsiad.runs.claim import SECOND_LOOK
from wsiad.runs.healthy_tiles import HEALTHY_REGIONS, TrainingOptions, store_fingerprint
from wsiad.runs.run import RunFolder
from wsiad.runs.second_look import check_learns
from wsiad.runs.split import slides_by_use

_SPLIT = ("fit", "stop", "calibration")
_DEFAULTS: dict[str, dict[str, Any]] = {"linear-probe": {"strength": 1e-3}}
"""Options of methods for a second look, unless the user sets them."""


def check_first(run: RunFolder) -> None:
    """Check that a run can be the first look of a second.

    Raises
    ------
    RunError
        It is a second look itself, or its slides were not split by slide.
    """
    record = run.record()
    if SECOND_LOOK in record.notes:
        raise RunError(
            "is a second look already, and a third one drifts away from what was found first",
            subject=str(run.path),
            remedy="Refine the first run, with results of that run.",
        )
    if not record.slides.get("calibration") or not record.healthy_maps:
        raise RunError(
            "has no maps of healthy slides, against which windows could stand out",
            subject=str(run.path),
            remedy="Train on a store of at least eight healthy slides with positions.",
        )


def stated_stores(
    run: RunFolder, given: Mapping[str, Any], *, store: Path | None
) -> dict[str, Path | None]:
    """Return ``store`` and ``calibration`` of a run's training as they are found now.

    Parameters
    ----------
    run : RunFolder
        Run that was trained.
    given : mapping of str to Any
        Config that it states.
    store : Path, optional
        Store of the run's healthy tiles, in place of the one that it states.

    Raises
    ------
    RunError
        The store that the run states is not there.
    """
    found = {
        key: stated_path(Path(value), folder=run.path, out=given.get("out"))
        for key in ("store", "calibration")
        if isinstance(value := given.get(key), str)
    }
    if store is None and "store" in found and not found["store"].exists():
        raise RunError(
            f"was trained on the store {given['store']}, which is not at {found['store']} now",
            subject=str(run.path),
            remedy="Pass the store with --store.",
        )
    return {**found, **({"store": store} if store else {})}


def _stated_weights(run: RunFolder, given: Mapping[str, Any]) -> object:
    """Return ``weights`` of a run's training, a file as it is found now."""
    value = given.get("weights")
    if not isinstance(value, str):
        return value
    found = stated_path(Path(value), folder=run.path, out=given.get("out"))
    return str(found) if found.is_file() else value


def training_of(
    run: RunFolder,
    *,
    out: Path,
    store: Path | None,
    detector: str,
    options: Mapping[str, Any],
    weights: str | None,
    device: str,
    quiet: bool,
) -> tuple[TrainingOptions, Chosen]:
    """Return the training of a second look on the healthy tiles of a first run.

    Parameters
    ----------
    run : RunFolder
        First run.
    out : Path
        Folder of the new run.
    store : Path, optional
        Store of the first run's healthy tiles; by default the one that it states.
    detector : str
        Method that learns.
    options : mapping
        Options of the method.
    weights : str, optional
        Pretrained weights; by default those of the first run.
    device : str
        Name of the device.
    quiet : bool
        True for no progress.

    Raises
    ------
    RunError
        The first run does not state its training.
    StoreError
        The store does not exist or is damaged.
    InputError
        The store is not that of the run, or is not as it was.
    DetectorError
        The method is unknown or cannot learn a second look.
    """
    try:
        given = read_yaml(run.path / CONFIG)
    except ConfigError as error:
        raise RunError(
            f"does not state its training ({error})", subject=str(run.path), remedy="Train again."
        ) from error
    check_learns(registry.load(detector), name=detector)
    method = {"input_px": run.load_detector("cpu").spec.size, **_DEFAULTS.get(detector, {})}
    training = TrainingOptions.model_validate(
        {
            **stated_stores(run, given, store=store),
            "out": out,
            "detector": detector,
            "options": {**method, **options},
            "weights": weights or _stated_weights(run, given),
            "split": given.get("split"),
            "quality": given.get("quality") or {},
            "seed": run.record().seed,
            "device": device,
            "healthy_examples": given.get("healthy_examples", 512),
            "quiet": quiet,
        }
    )
    chosen = choose(training)
    check_learns(chosen.cls, name=detector, options=chosen.options)
    check_as_it_was(run, chosen)
    return training, chosen


def _what_changed(uses: Mapping[str, Mapping[str, str]], chosen: Chosen) -> str:
    """Say which slide of a run is not as it was; empty if no slide of the store was the run's."""
    was: dict[str, str] = {}
    for use in _SPLIT:
        was |= uses.get(use, {})
    now = {slide.name: slide.fingerprint for slide in chosen.all_slides}
    skipped = chosen.skipped | (chosen.others.skipped if chosen.others else {})
    if not set(was.values()) & set(now.values()):
        return ""
    for name in sorted(was):
        if name not in now:
            return f"{name} is not used now ({skipped.get(name, 'it is not there')})"
        if now[name] != was[name]:
            return f"{name} is of another file now"
    new = sorted(now.keys() - was.keys())
    return f"{new[0]} was not used then" if new else ""


def check_as_it_was(run: RunFolder, chosen: Chosen) -> None:
    """Check that a store gives the parts that a run was made from.

    Raises
    ------
    RunError
        The store is another one or has changed, so that slides of the calibration could teach.
    """
    record = run.record()
    subject, remedy = str(chosen.store.path), "Pass the store of the first run with --store."
    told = _what_changed(record.slides, chosen)
    said = f": {told}" if told else ""
    if store_fingerprint(chosen.store, chosen.slides) not in record.stores.values():
        if told:
            remedy += " If it is this one, train again."
        problem = f"is not the store of {run.path} as it was{said}"
        raise RunError(problem, subject=subject, remedy=remedy)
    tied = [*record.slides.get("anomalies", ())]
    tied += chosen.names_of(record.slides.get(HEALTHY_REGIONS, {}).values())
    parts, _, _ = chosen.begin(record.seed, only_fit=tied)
    found = slides_by_use(parts, chosen.all_slides, [])
    if any(found[use] != record.slides.get(use) for use in _SPLIT):
        raise RunError(
            f"is split into other parts than for {run.path}{said}",
            subject=subject,
            remedy="Use the version of wsiad that made the run, or train again.",
        )
