"""The next trial, and the end of hopeless ones: Optuna, asked anew for each trial.

The study of Optuna lives in memory only as long as it takes to ask it, and is made from the
trials that are kept. What is tried next therefore depends on the seed, the trial's number and
the trials before it, and on nothing that a killed process could lose.
"""

from __future__ import annotations

import types
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Any

import numpy as np

from wsiad.core.errors import SearchError
from wsiad.tuning.space import Choices, Params, Range, Space, Tied, key, size, values_of
from wsiad.tuning.trials import COMPLETE, FAILED, PRUNED, Trial

_TRIES = 16
"""How often a setting that was tried before is drawn anew, before those left are counted."""

_COUNTED = 100_000
"""A space of more settings is not exhausted by so many draws in vain."""

_LEAST_COMPLETE = 5
"""So many complete trials are needed before one is given up for being worse than them."""


def optuna() -> types.ModuleType:
    """Return the package.

    Raises
    ------
    SearchError
        It is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise SearchError(
            f"needs a package that cannot be imported ({error})",
            subject="wsiad tune",
            remedy="Install it: pip install 'wsiad[tune]' (or: pip install optuna).",
        ) from error
    return optuna


def suggest(
    space: Space, trials: Sequence[Trial], *, seed: int, random_trials: int
) -> Params | None:
    """Choose the setting that is tried next; ``None`` if all have been tried.

    By a tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011), once
    ``random_trials`` have ended; before, at random. No setting is tried twice: the same seed
    gives the same result.

    Parameters
    ----------
    space : mapping of str to parameter
    trials : sequence of Trial
        All so far, those that are running included.
    seed : int
        With the number of trials it names the draw.
    random_trials : int
    """
    tried = {key(trial.params) for trial in trials}
    count = size(space)
    if count is not None and len(tried) >= count:
        return None
    number = len(trials) + 1
    with _quiet():
        for attempt in range(_TRIES):
            draw = _draw_of(seed, number, attempt)
            params = _asked(space, trials, draw=draw, random_trials=random_trials)
            if key(params) not in tried:
                return params
    if count is None or count > _COUNTED:
        return params
    left = [params for params in _all(space) if key(params) not in tried]
    return left[np.random.default_rng([seed, number]).integers(len(left))]


def falls_behind(trial: Trial, trials: Sequence[Trial]) -> bool:
    """Whether a trial is to be given up: worse than the median of complete ones by now.

    After each fold the mean so far is compared with theirs after as many folds.

    Parameters
    ----------
    trial : Trial
        With at least one fold.
    trials : sequence of Trial
        All others.
    """
    package = optuna()
    pruner = package.pruners.MedianPruner(n_startup_trials=_LEAST_COMPLETE, n_warmup_steps=0)
    with _quiet():
        study = package.create_study(direction="maximize", pruner=pruner)
        study.add_trials([_frozen(other, {}) for other in trials if other.state == COMPLETE])
        return bool(pruner.prune(study, _frozen(trial, {})))


def _draw_of(*names: int) -> int:
    return int(np.random.SeedSequence(names).generate_state(1)[0])


def _asked(space: Space, trials: Sequence[Trial], *, draw: int, random_trials: int) -> Params:
    package = optuna()
    distributions = {name: _distribution(parameter) for name, parameter in space.items()}
    sampler = package.samplers.TPESampler(
        seed=draw, n_startup_trials=random_trials, constant_liar=True
    )
    study = package.create_study(direction="maximize", sampler=sampler)
    study.add_trials([_frozen(trial, space) for trial in trials])
    found = study.ask(fixed_distributions=distributions).params
    return {name: _value(parameter, found[name]) for name, parameter in space.items()}


def _distribution(parameter: Choices | Tied | Range) -> Any:
    found = optuna().distributions
    match parameter:
        case Range(low=low, high=high, log=log, step=step):
            if parameter.whole:
                return found.IntDistribution(low, high, log=log, step=step or 1)
            return found.FloatDistribution(float(low), float(high), log=log, step=step)
        case _:
            # Optuna's choices are plain values; ours may be mappings.
            return found.CategoricalDistribution([key(v) for v in values_of(parameter) or ()])


def _value(parameter: Choices | Tied | Range, found: Any) -> Any:
    if isinstance(parameter, Range):
        return found
    return next(v for v in values_of(parameter) or () if key(v) == found)


def _frozen(trial: Trial, space: Space) -> Any:
    """Return a trial as Optuna keeps it; with an empty space without its parameters."""
    package = optuna()
    states = package.trial.TrialState
    state = {COMPLETE: states.COMPLETE, PRUNED: states.PRUNED, FAILED: states.FAIL}
    ended = trial.state in (COMPLETE, PRUNED)
    shown = {
        n: trial.params[n] if isinstance(p, Range) else key(trial.params[n])
        for n, p in space.items()
    }
    means, total = {}, 0.0
    for count, fold in enumerate(trial.folds, 1):
        total += fold.auroc
        means[count] = total / count
    return package.trial.create_trial(
        state=state.get(trial.state, states.RUNNING),
        value=trial.auroc if ended else None,
        params=shown,
        distributions={name: _distribution(parameter) for name, parameter in space.items()},
        intermediate_values=means,
    )


def _all(space: Space) -> Iterator[Params]:
    names = list(space)
    for values in product(*(values_of(parameter) or () for parameter in space.values())):
        yield dict(zip(names, values, strict=True))


@contextmanager
def _quiet() -> Iterator[None]:
    """Let Optuna tell what is wrong, and not what it does."""
    package = optuna()
    before = package.logging.get_verbosity()
    package.logging.set_verbosity(package.logging.WARNING)
    try:
        with warnings.catch_warnings():
            # Before its version 5 one argument of the sampler is not final.
            warnings.simplefilter("ignore", package.exceptions.ExperimentalWarning)
            yield
    finally:
        package.logging.set_verbosity(before)
