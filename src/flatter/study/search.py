"""Which configurations of a search space are tried: all of a grid, or what Optuna's samplers propose.

A search is a generator that yields rounds of configurations and is sent their values. It holds no state of its own:
played again with the values in the store it proposes the same, which is how a killed study goes on.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from flatter.stats import Better
from flatter.study.spec import Choices, Range, Space, Times, TuningSpec
from flatter.study.spec.space import Value

Configuration = dict[str, Value]
Search = Generator[list[Configuration], Sequence[float], None]


def search(space: Space, tuning: TuningSpec, trials: int | None, base: Mapping[str, Any], better: Better) -> Search:
    """Proposes configurations round by round; is sent the values of a round in its order, NaN for a failed one.

    Args:
        space: what is tuned; empty: one configuration that changes nothing.
        tuning: the sampler and its seed.
        trials: number of configurations for the samplers random and tpe.
        base: the settings that ``times`` multiply.
        better: whether lower or higher values are better.
    """
    if not space:
        yield [{}]
    elif tuning.sampler == "grid":
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
    distributions = {key: _distribution(key, dimension, base) for key, dimension in space.items()}
    for start in range(0, trials, size):
        asked = [study.ask(distributions) for _ in range(min(size, trials - start))]
        values = yield [dict(trial.params) for trial in asked]
        for trial, value in zip(asked, values, strict=True):
            if math.isfinite(value):
                study.tell(trial, value)
            else:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)


def _distribution(key: str, dimension: Choices | Times | Range, base: Mapping[str, Any]) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if isinstance(dimension, Range):
        return FloatDistribution(dimension.low, dimension.high, log=dimension.log)
    with warnings.catch_warnings():
        return CategoricalDistribution(_listed(key, dimension, base))
