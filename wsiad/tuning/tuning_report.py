"""Report a search in ``run.json`` and in a summary, and write configurations for ``wsiad train``.

Each complete trial gets a configuration that trains its setting, and so does the best one.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsiad.core.config import build, idle_options_allowed, write_config
from wsiad.core.terminal import counted
from wsiad.detectors import registry
from wsiad.runs.healthy_tiles import TrainingOptions
from wsiad.tuning.space import SearchOptions, options_of
from wsiad.tuning.trials import COMPLETE, FAILED, PRUNED, Trial, best, lowest_loss, trial_folder

if TYPE_CHECKING:
    from wsiad.tuning.search_tiles import SearchTiles

BEST = "best.yaml"
"""File in the folder of a search: configuration of ``wsiad train`` for the best setting."""


def search_record(config: SearchOptions, trials: list[Trial], tiles: SearchTiles) -> dict[str, Any]:
    """Return the entry of a search in ``run.json``, as JSON values."""
    states = (COMPLETE, PRUNED, FAILED)
    counts = {state: sum(trial.state == state for trial in trials) for state in states}
    return {
        "detector": config.detector,
        "seed": config.seed,
        "trials": counts | {"not_ended": len(trials) - sum(counts.values())},
        "best": _facts(best(trials)),
        "best_by_healthy_loss": _facts(lowest_loss(trials)),
        "warnings": list(tiles.warnings),
        **tiles.note(),
    }


def _facts(trial: Trial | None) -> dict[str, Any] | None:
    if trial is None:
        return None
    return {
        "trial": trial.number,
        "params": trial.params,
        "auroc": trial.auroc,
        "auroc_spread": trial.spread,
        "healthy_loss": trial.healthy_loss,
    }


def search_summary(config: SearchOptions, trials: list[Trial], tiles: SearchTiles) -> str:
    """Return the summary of a search for the terminal."""
    states = {state: sum(t.state == state for t in trials) for state in (COMPLETE, PRUNED, FAILED)}
    shown = [f"{count} {state}" for state, count in states.items() if count]
    if left := len(trials) - sum(states.values()):
        shown.append(f"{left} not finished: run the same command to continue them")
    lines = [
        f"{config.out}: {counted(len(trials), 'trial')} ({', '.join(shown) or 'none finished'})"
    ]
    found, unlabelled = best(trials), lowest_loss(trials)
    if found is None:
        lines.append("no trial is complete, so there is no best trial")
    else:
        values = ", ".join(f"{name} {value}" for name, value in found.params.items())
        lines.append(f"best: trial {found.number}, AUROC {_shown(found)}: {values}")
        if unlabelled is not None and unlabelled.number != found.number:
            lines.append(
                f"without anomalies, the lowest healthy loss would have chosen trial "
                f"{unlabelled.number}, AUROC {_shown(unlabelled)}"
            )
        lines.append(f"to train it: wsiad train --config {config.out / BEST}")
    return "\n".join([*lines, *(f"WARNING: {text}" for text in tiles.warnings)])


def _shown(trial: Trial) -> str:
    return (
        f"{trial.auroc or 0.0:.3f} ± {trial.spread or 0.0:.3f} (of "
        f"{counted(len(trial.folds), 'fold')})"
    )


TRAIN = "train.yaml"


def write_train_configs(
    config: SearchOptions, trials: list[Trial], found: Trial | None, *, tiles: SearchTiles
) -> None:
    """Write the configurations of ``wsiad train`` for each complete trial and for the best."""
    for trial in trials:
        if trial.state == COMPLETE:
            folder = trial_folder(config.out, trial.number)
            training = _training(config, trial, out=folder / "run", tiles=tiles)
            write_config(folder / TRAIN, training)
    if found is not None:
        training = _training(config, found, out=config.out / "best", tiles=tiles)
        write_config(config.out / BEST, training)


def _training(
    config: SearchOptions, trial: Trial, *, out: Path, tiles: SearchTiles
) -> TrainingOptions:
    """Return the configuration that trains a trial at its scale, on all healthy slides.

    Options that did nothing in the trial are left out.
    """
    used = tiles.at(trial.params)
    options = {**config.options, **options_of(config.space, trial.params)}
    with idle_options_allowed():
        options = build(registry.load(config.detector).Options, options).without_idle(options)
    same = ("detector", "weights", "split", "quality", "seed", "device")
    values = {name: getattr(config, name) for name in same}
    if used.learns:
        values["anomalies"] = used.anomalous.resolve()
        values |= {name: getattr(config, name) for name in ("anomaly_types", "anomaly_tiles")}
    if config.weights is not None and Path(config.weights).is_file():
        values["weights"] = str(Path(config.weights).resolve())
    return build(
        TrainingOptions,
        values
        | {
            "store": used.healthy.resolve(),
            "out": out.resolve(),
            "options": options,
            "max_steps": config.fit_steps,
            "max_minutes": config.fit_minutes,
        },
    )
