"""What ``wsiad train`` is given to train what a search has tried: a file for each setting."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from wsiad.core.config import build, write_config
from wsiad.tuning.space import options_of
from wsiad.tuning.trials import COMPLETE, Trial, trial_folder
from wsiad.tuning.tuning_report import BEST
from wsiad.verbs.train import TrainConfig

if TYPE_CHECKING:
    from wsiad.verbs.tune import TuneConfig

TRAIN = "train.yaml"


def write_train_configs(
    config: TuneConfig, trials: list[Trial], found: Trial | None, *, learns: bool
) -> None:
    """Write by which config each complete trial, and the best, is trained."""
    for trial in trials:
        if trial.state == COMPLETE:
            folder = trial_folder(config.out, trial.number)
            training = _train_config(config, trial, out=folder / "run", learns=learns)
            write_config(folder / TRAIN, training)
    if found is not None:
        training = _train_config(config, found, out=config.out / "best", learns=learns)
        write_config(config.out / BEST, training)


def _train_config(config: TuneConfig, trial: Trial, *, out: Path, learns: bool) -> TrainConfig:
    """Return the config by which a trial's setting is trained on all healthy slides."""
    same = ("detector", "weights", "split", "quality", "seed", "device")
    values = {name: getattr(config, name) for name in same}
    if learns:
        values["anomalies"] = config.anomalies.resolve()
        values |= {name: getattr(config, name) for name in ("anomaly_types", "anomaly_tiles")}
    if config.weights is not None and Path(config.weights).is_file():
        values["weights"] = str(Path(config.weights).resolve())
    return build(
        TrainConfig,
        values
        | {
            "store": config.store.resolve(),
            "out": out.resolve(),
            "options": {**config.options, **options_of(config.space, trial.params)},
            "max_steps": config.fit_steps,
            "max_minutes": config.fit_minutes,
        },
    )
