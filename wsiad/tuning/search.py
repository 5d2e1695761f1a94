"""Choose the next trial and stop hopeless ones, with Optuna.

A study of Optuna is made from the stored trials for each question, and is not kept. The next trial
therefore depends only on the seed, its number and the trials before it, and on nothing that a
killed process could lose.
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
"""Maximum draws to find a setting that was not tried before; then the remaining are listed."""

_COUNTED = 100_000
"""Maximum settings of a space whose remaining settings are listed."""

_LEAST_COMPLETE = 5
"""Minimum complete trials before a worse trial is stopped."""


def optuna() -> types.ModuleType:
    """Return the package Optuna.

    Raises
    ------
    SearchError
        Optuna is not installed.
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
    """Choose the next setting to try; ``None`` if all have been tried.

    The first ``random_trials`` settings are drawn at random. Later ones come from a
    tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011). No setting is tried twice,
    because the same seed would give the same result.

    Parameters
    ----------
    space : mapping of str to parameter
        Search space.
    trials : sequence of Trial
        All trials so far, including those that are running.
    seed : int
        Seed; together with the number of trials it determines the draw.
    random_trials : int
        Number of trials that must have ended before the estimator chooses.
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
    """Tell whether to stop a trial because it is worse than the median of complete ones.

    After each fold, the trial's mean so far is compared with theirs after as many folds.

    Parameters
    ----------
    trial : Trial
        Trial with at least one fold.
    trials : sequence of Trial
        All other trials.
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
    """Return a trial as an object of Optuna; an empty space leaves out its parameters."""
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
    """Let Optuna log warnings and errors, but not its progress."""
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
