"""Running the rows of the table of detectors, and the files that keep what they scored.

A finished case is a JSON file with its figures and, beside it, its scores (npz); the JSON file
is written last. A sum is made of the files of others.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from pcam import (
    PCAM_MPP,
    as_anomalies,
    as_slides,
    centre,
    digits,
    drawn_anomalies,
    healthy_among,
    held_out_and_drawn,
    left_over,
    read_tar,
)
from sklearn.metrics import roc_auc_score
from table_rows import OWN, RANDOM, SUM, Case, Row

from wsiad.core.config import build
from wsiad.core.errors import DetectorError, InputError, RunError
from wsiad.core.files import atomic_file, fingerprint, write_json
from wsiad.core.geometry import TilePx
from wsiad.detectors import registry
from wsiad.learning.detector import (
    AnomalousTiles,
    Budget,
    Detector,
    FitContext,
    FitReport,
    HealthyTiles,
    InputSpec,
)
from wsiad.learning.trimming import fit_trimmed
from wsiad.networks.weights import SHIPPED_FILE
from wsiad.store.dataset import ArrayTiles

logger = logging.getLogger(__name__)

T = TypeVar("T")

PARTS = ("held_out", "healthy", "tumour")
"""Whose scores are kept: held-out healthy tiles of the training split, and the valid split."""

TARS = ("train_normal", "train_tumour", "valid_normal", "valid_tumour")


@dataclass(frozen=True, slots=True)
class Setting:
    """What all rows have in common.

    Parameters
    ----------
    pcam : Path
        Folder of the four tars.
    weights : dict of str to str or None
        By name: a file, ``"random"``, or ``None`` for what torchvision downloads.
    input_px, fit_tiles, stop_tiles : int
        Input of the detectors; healthy tiles to fit on and to hold out.
    score_tiles : int or None
        Of each class; ``None`` for all.
    budget : Budget
        Of each training step by step.
    device : torch.device
    environment : str
        Where it runs, for people.
    """

    pcam: Path
    weights: dict[str, str | None]
    input_px: int
    fit_tiles: int
    stop_tiles: int
    score_tiles: int | None
    budget: Budget
    device: torch.device
    environment: str

    def tar(self, name: str) -> Path:
        """Return the path of one of ``TARS``."""
        return self.pcam / f"{name}.tar"

    def budget_of(self, row: Row) -> Budget:
        """Return the bounds of a row's training; those that end by themselves have none."""
        if not row.bounded:
            return Budget()
        return Budget(self.budget.max_steps, row.max_minutes or self.budget.max_minutes)

    def scored(self, row: Row) -> int | None:
        """Return the number of tiles of each class that a row scores; ``None`` for all."""
        bounds = [most for most in (self.score_tiles, row.score_tiles) if most]
        return min(bounds, default=None)

    def files(self) -> list[Path]:
        """Return the files that must be there: tars and weights."""
        given = [value for value in self.weights.values() if value not in {None, RANDOM, OWN}]
        return [*map(self.tar, TARS), *map(Path, given)]


def made_of(case: Case, setting: Setting) -> dict[str, Any]:
    """Return, as JSON values, what the figures of a case depend on."""
    given = setting.weights[case.row.weights]
    budget = setting.budget_of(case.row)
    depends = {
        "detector": case.row.detector,
        "options": case.row.options,
        "weights": _weights(given),
        "tars": {name: _known(setting.tar(name)) for name in TARS},
        "input_px": setting.input_px,
        "tiles": [setting.fit_tiles, setting.stop_tiles, setting.scored(case.row)],
        "budget": [budget.max_steps, budget.max_minutes] if case.row.bounded else None,
    }
    # Where there are none, as in tables of before there could be.
    if case.row.labels != "tiles":
        depends["labels"] = case.row.labels
    if case.row.trimming:
        depends["trimming"] = case.row.trimming.model_dump()
    # As JSON has it: its keys are texts.
    as_json: dict[str, Any] = json.loads(json.dumps(depends))
    return as_json


def _weights(given: str | None) -> str | None:
    if given in {None, RANDOM}:
        return given
    return _known(SHIPPED_FILE if given == OWN else Path(given))


# It is asked for with every case, and the files do not change meanwhile.
_known = functools.cache(fingerprint)


def stored(case: Case, out: Path, setting: Setting) -> dict[str, Any] | None:
    """Return the figures, or the failure, of a case that was run before.

    Raises
    ------
    RunError
        They are of another setting, or the file is damaged.
    """
    path = case.path(out)
    if not path.exists():
        return None
    try:
        line = json.loads(path.read_text(encoding="utf-8"))
        before, failed = line["made_of"], line["failure"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise RunError(
            f"is damaged ({error})", subject=str(path), remedy="Remove it and run again."
        ) from error
    same = before == made_of(case, setting)
    if failed and not same:
        return None
    if not same:
        raise RunError(
            "holds figures of other tiles, weights, bounds or options",
            subject=str(path),
            remedy="Give another --out, or remove it.",
        )
    if not failed and not path.with_suffix(".npz").is_file():
        raise RunError("lacks its scores", subject=str(path), remedy="Remove it and run again.")
    return line


def run(case: Case, out: Path, setting: Setting) -> dict[str, Any]:
    """Run a case, and keep its figures and scores, or what made it fail."""
    path = case.path(out)
    line: dict[str, Any] = {
        "row": case.row.name,
        "kind": case.row.kind,
        "anomalies": case.anomalies,
        "seed": case.seed,
        "made_of": made_of(case, setting),
        "environment": setting.environment,
    }
    try:
        found, scores = _figures(case, setting)
    except Exception as error:  # one row must not end the table; it is reported in it
        logger.exception("%s, seed %d failed", case.row.name, case.seed)
        line |= {"failure": str(error) or type(error).__name__}
    else:
        line |= found
        with atomic_file(path.with_suffix(".npz")) as partial:
            np.savez(partial, **scores)
    write_json(path, line)
    return line


def _figures(case: Case, setting: Setting) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    row, seed = case.row, case.seed
    held_out, drawn = held_out_and_drawn(
        setting.tar("train_normal"), stop=setting.stop_tiles, fit=setting.fit_tiles, seed=seed
    )
    cls = registry.load(row.detector)
    options = build(cls.Options, row.options)

    def unfitted() -> Detector:
        return cls(options, InputSpec(TilePx(options.input_px or setting.input_px), PCAM_MPP))

    with tempfile.TemporaryDirectory() as folder:
        context = FitContext(
            seed=seed,
            device=setting.device,
            folder=Path(folder),
            budget=setting.budget_of(row),
            weights=setting.weights[row.weights],
            quiet=True,
            anomalies=_anomalies(case, setting),
        )
        with _minutes_of(context.device):
            (detector, report), fit_time = _timed(
                lambda: _fitted(unfitted, drawn, held_out, row=row, context=context)
            )
    most = setting.scored(row)
    asked = [
        held_out[: row.score_tiles],
        *(read_tar(setting.tar(name), most) for name in TARS[2:]),
    ]
    cut = [centre(part, detector.spec.size) for part in asked]
    scores, score_time = _scored(detector, cut)
    named = dict(zip(PARTS, scores, strict=True))
    notes = report.notes.get("weights")
    return {
        "auroc": area(named),
        "fit_seconds": fit_time,
        "score_seconds": score_time,
        "tiles_scored": sum(map(len, scores)),
        "ended_by": report.ended_by,
        "steps": report.steps,
        "weights": notes,
        "failure": None,
    }, named


def _anomalies(case: Case, setting: Setting) -> AnomalousTiles | None:
    """Return the labelled tiles that a case learns from."""
    if case.row.labels == "digits":
        return digits(setting.input_px)
    if not case.anomalies:
        return None
    tumour = read_tar(setting.tar("train_tumour"), None)
    tumour, _ = drawn_anomalies(tumour, case.anomalies, seed=case.seed)
    if case.row.labels == "tiles":
        return as_anomalies(tumour)
    healthy = left_over(
        setting.tar("train_normal"),
        healthy_among(len(tumour)),
        stop=setting.stop_tiles,
        fit=setting.fit_tiles,
        seed=case.seed,
    )
    return as_slides(tumour, healthy)


def _fitted(
    unfitted: Callable[[], Detector],
    drawn: np.ndarray,
    held_out: np.ndarray,
    *,
    row: Row,
    context: FitContext,
) -> tuple[Detector, FitReport]:
    """Return a fitted detector and its report; a trimming takes all tiles for one slide's."""
    stop = ArrayTiles(held_out)
    if not row.trimming:
        detector = unfitted()
        return detector, detector.fit(HealthyTiles(ArrayTiles(drawn), stop), context)
    trimmed = fit_trimmed(
        unfitted,
        {"all": len(drawn)},
        lambda kept: ArrayTiles(drawn[kept["all"]]),
        stop=stop,
        context=context,
        options=row.trimming,
    )
    return trimmed.detector, trimmed.report


def _scored(detector: Detector, parts: list[np.ndarray]) -> tuple[list[np.ndarray], dict]:
    scores, seconds = _timed(lambda: [detector.score(part) for part in parts])
    if not all(np.isfinite(part).all() for part in scores):
        raise DetectorError("scores are not finite")
    return scores, seconds


@contextlib.contextmanager
def _minutes_of(device: torch.device) -> Iterator[None]:
    """Bound trainings by the processor's time on a CPU: others on the machine take none of it."""
    clock, wall = time.process_time, time.monotonic
    if device.type == "cpu":
        time.monotonic = clock
    try:
        yield
    finally:
        time.monotonic = wall


def _timed(call: Callable[[], T]) -> tuple[T, dict[str, float]]:
    wall, processor = time.perf_counter(), time.process_time()
    value = call()
    passed = time.perf_counter() - wall
    return value, {"wall": passed, "processor": time.process_time() - processor}


def area(scores: dict[str, np.ndarray]) -> float:
    """AUROC of the valid split; below 0.5 stays below 0.5: an inverted score is a finding."""
    healthy, tumour = scores["healthy"], scores["tumour"]
    labels = np.repeat([0, 1], [len(healthy), len(tumour)])
    return float(roc_auc_score(labels, np.concatenate([healthy, tumour])))


def add_up(case: Case, lines: Sequence[dict[str, Any]], files: Sequence[Path]) -> dict[str, Any]:
    """Return the figures of a sum from those of its members, and from their files of scores.

    Parameters
    ----------
    case : Case
        Of a sum.
    lines : sequence of dict
        Figures of the members' cases.
    files : sequence of Path
        Their npz files.
    """
    line: dict[str, Any] = {
        "row": case.row.name,
        "kind": SUM,
        "anomalies": case.anomalies,
        "seed": case.seed,
        "environment": lines[0]["environment"],
    }
    if failed := [own["row"] for own in lines if own["failure"]]:
        return line | {"failure": f"{', '.join(failed)} failed"}
    try:
        loaded = [standardised(_scores(file)) for file in files]
    except InputError as error:
        return line | {"failure": str(error)}
    added = {name: np.mean([scores[name] for scores in loaded], axis=0) for name in PARTS}
    return line | {
        "auroc": area(added),
        **{
            key: {clock: sum(own[key][clock] for own in lines) for clock in ("wall", "processor")}
            for key in ("fit_seconds", "score_seconds")
        },
        "tiles_scored": lines[0]["tiles_scored"],
        "ended_by": SUM,
        "steps": 0,
        "weights": None,
        "failure": None,
    }


def _scores(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in PARTS}


def standardised(scores: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return scores less the mean of the held-out healthy ones, by their standard deviation.

    Raises
    ------
    InputError
        All held-out healthy tiles have the same score.
    """
    usual = scores["held_out"].astype(np.float64)
    if not usual.std() > 0:
        raise InputError("all held-out healthy tiles of a row have the same score")
    return {name: (own - usual.mean()) / usual.std() for name, own in scores.items()}
