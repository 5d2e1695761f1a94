"""What a search says of itself: in ``run.json``, and for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wsiad.tuning.trials import COMPLETE, FAILED, PRUNED, Trial, best, lowest_loss

if TYPE_CHECKING:
    from wsiad.tuning.tune_tiles import SearchTiles
    from wsiad.verbs.tune import TuneConfig

BEST = "best.yaml"
"""In the folder of a search: config for ``wsiad train``."""


def search_record(config: TuneConfig, trials: list[Trial], tiles: SearchTiles) -> dict[str, Any]:
    """Return what ``run.json`` says of the search."""
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


def search_summary(config: TuneConfig, trials: list[Trial], tiles: SearchTiles) -> str:
    """Return what the command line prints."""
    states = {state: sum(t.state == state for t in trials) for state in (COMPLETE, PRUNED, FAILED)}
    shown = [f"{count} {state}" for state, count in states.items() if count]
    if left := len(trials) - sum(states.values()):
        shown.append(f"{left} not ended: the same command goes on with them")
    lines = [f"{config.out}: {len(trials)} trials ({', '.join(shown) or 'none ended'})"]
    found, unlabelled = best(trials), lowest_loss(trials)
    if found is None:
        lines.append("no trial is complete: there is no best one")
    else:
        values = ", ".join(f"{name} {value}" for name, value in found.params.items())
        lines.append(f"best: trial {found.number}, AUROC {_shown(found)}: {values}")
        if unlabelled is not None and unlabelled.number != found.number:
            lines.append(
                f"without anomalies the lowest healthy loss would have chosen trial "
                f"{unlabelled.number}, AUROC {_shown(unlabelled)}"
            )
        lines.append(f"train it: wsiad train --config {config.out / BEST}")
    return "\n".join([*lines, *(f"WARNING: {text}" for text in tiles.warnings)])


def _shown(trial: Trial) -> str:
    return f"{trial.auroc or 0.0:.3f} ± {trial.spread or 0.0:.3f} (of {len(trial.folds)} folds)"
