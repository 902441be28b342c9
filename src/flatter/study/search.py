"""Which configurations of a search space are tried: all of a grid, or what Optuna's samplers propose.

A search is a generator that yields rounds of configurations and is sent their values. It holds no state of its own:
played again with the values in the store it proposes the same, which is how a killed study goes on.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from flatter.stats import Better
from flatter.study.spec import Choices, Range, Space, Times, TuningSpec
from flatter.study.spec.space import Value

_ATTEMPTS = 100
Configuration = dict[str, Value]
Search = Generator[list[Configuration], Sequence[float], None]


def search(space: Space, tuning: TuningSpec, trials: int | None, base: Mapping[str, Any], better: Better) -> Search:
    """Proposes configurations round by round; is sent the values of a round in its order, NaN for a failed one.

    Args:
        space: what is tuned.
        tuning: the sampler and its seed.
        trials: number of configurations for the samplers random and tpe.
        base: the settings that ``times`` multiply.
        better: whether lower or higher values are better.
    """
    if tuning.sampler == "grid":
        values = [_listed(key, dimension, base) for key, dimension in space.items()]
        yield [dict(zip(space, chosen, strict=True)) for chosen in itertools.product(*values)]
    else:
        assert trials is not None  # the study file has been checked
        yield from _sampled(space, tuning, trials, base, better)


def best(values: Sequence[float], better: Better) -> int:
    """Position of the best finite value, the first of equals; 0 where none is finite."""
    sign = 1 if better == "lower" else -1
    return min(range(len(values)), key=lambda i: sign * values[i] if math.isfinite(values[i]) else math.inf)


def _listed(key: str, dimension: Choices | Times | Range, base: Mapping[str, Any]) -> list[Value]:
    if isinstance(dimension, Choices):
        return list(dimension.values)
    assert isinstance(dimension, Times)
    return [base[key] * factor for factor in dimension.times]


def _sampled(space: Space, tuning: TuningSpec, trials: int, base: Mapping[str, Any], better: Better) -> Search:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler: optuna.samplers.BaseSampler
    if tuning.sampler == "random":
        sampler = optuna.samplers.RandomSampler(seed=tuning.sampler_seed)
        size = trials  # what it proposes does not depend on values: one round
    else:
        sampler = optuna.samplers.TPESampler(seed=tuning.sampler_seed, n_startup_trials=min(10, max(4, trials // 3)))
        size = tuning.round_size
    study = optuna.create_study(sampler=sampler, direction="minimize" if better == "lower" else "maximize")
    # In the order of their names: what is proposed must not depend on the order in which a file gives them.
    distributions = {key: _distribution(key, space[key], base) for key in sorted(space)}
    tried: set[str] = set()
    for start in range(0, trials, size):
        asked = [_ask_new(study, distributions, tried) for _ in range(min(size, trials - start))]
        values = yield [dict(trial.params) for trial in asked]
        for trial, value in zip(asked, values, strict=True):
            if math.isfinite(value):
                study.tell(trial, value)
            else:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)


def _ask_new(study: Any, distributions: Mapping[str, Any], tried: set[str]) -> Any:
    """A proposal that was not made before: a repeated one would take from the budget and tell nothing."""
    import optuna

    for _ in range(_ATTEMPTS):
        trial = study.ask(distributions)
        if repr(trial.params) not in tried:
            break
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
    else:
        trial = study.ask(distributions)
    tried.add(repr(trial.params))
    return trial


def _distribution(key: str, dimension: Choices | Times | Range, base: Mapping[str, Any]) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if isinstance(dimension, Range):
        return FloatDistribution(dimension.low, dimension.high, log=dimension.log)
    return CategoricalDistribution(_listed(key, dimension, base))
