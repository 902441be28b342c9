"""The configurations of a search space to try: all of a grid, or the proposals of Optuna's samplers.

A search is a generator that yields rounds of configurations and is sent their values. It has no other state: replayed
with the values in the store it proposes the same configurations, which is how a killed study resumes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Any

from flatwise.stats import Better
from flatwise.study.spec import Choices, Range, Space, Times, TuningSpec, Value

_ATTEMPTS = 100
Configuration = dict[str, Value]
Search = Generator[list[Configuration], Sequence[float], None]


def search(
    space: Space,
    tuning: TuningSpec,
    trials: int | None,
    base: Mapping[str, Any],
    better: Better,
    *,
    stream: str = "",
    is_known: Callable[[Configuration], bool] = lambda configuration: False,
) -> Search:
    """Propose configurations round by round; each round is sent its values in the same order, NaN for a failed one.

    The samplers random and tpe propose no configuration twice. A configuration that the baseline's search trained may
    be proposed but does not count, because its value is in the store. They end early if no others are left.

    Args:
        space: what is tuned.
        tuning: the sampler and its seed.
        trials: for the samplers random and tpe, the number of configurations that are trained.
        base: the settings that ``times`` multiply.
        better: whether lower or higher values are better.
        stream: a text that tells the study's searches apart, such as cell, arm and stage: each draws independently,
            from the study's seed and this text. Default: empty.
        is_known: whether a configuration was trained before the search. Default: none was.
    """
    if tuning.sampler == "grid":
        yield list(_grid(space, base))
    else:
        assert trials is not None  # the study file has been checked
        yield from _sampled(space, tuning, trials, base, better, stream, is_known)


def best(values: Sequence[float], better: Better) -> int:
    """Position of the best finite value, the first of equals; 0 where none is finite."""
    sign = 1 if better == "lower" else -1
    return min(range(len(values)), key=lambda i: sign * values[i] if math.isfinite(values[i]) else math.inf)


def _listed(key: str, dimension: Choices | Times | Range, base: Mapping[str, Any]) -> list[Value]:
    if isinstance(dimension, Choices):
        return list(dimension.values)
    assert isinstance(dimension, Times)
    return [base[key] * factor for factor in dimension.times]


def _grid(space: Space, base: Mapping[str, Any]) -> Iterator[Configuration]:
    values = [_listed(key, dimension, base) for key, dimension in space.items()]
    return (dict(zip(space, chosen, strict=True)) for chosen in itertools.product(*values))


def sampler_seed(seed: int, stream: str) -> int:
    """A search's own seed, below 2³², from the study's seed and the search's stream."""
    return int.from_bytes(sha256(f"{seed} {stream}".encode()).digest()[:4], "big")


def _sampled(
    space: Space,
    tuning: TuningSpec,
    trials: int,
    base: Mapping[str, Any],
    better: Better,
    stream: str,
    is_known: Callable[[Configuration], bool],
) -> Search:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    seed = sampler_seed(tuning.sampler_seed, stream)
    sampler: optuna.samplers.BaseSampler
    if tuning.sampler == "random":
        sampler = optuna.samplers.RandomSampler(seed=seed)
        size = trials  # what it proposes does not depend on values: one round
    else:
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=min(10, max(4, trials // 3)))
        size = tuning.round_size
    study = optuna.create_study(sampler=sampler, direction="minimize" if better == "lower" else "maximize")
    # In the order of their names: what is proposed must not depend on the order in which a file gives them.
    ordered = {key: space[key] for key in sorted(space)}
    distributions = {key: _distribution(key, dimension, base) for key, dimension in ordered.items()}
    is_finite = not any(isinstance(dimension, Range) for dimension in space.values())
    tried: set[str] = set()
    trained = 0
    while trained < trials:
        asked: list[Any] = []
        wanted = min(size, trials - trained)
        while wanted and (trial := _ask_new(study, distributions, tried, ordered if is_finite else {}, base)):
            asked.append(trial)
            known = is_known(dict(trial.params))
            wanted, trained = wanted - (not known), trained + (not known)
        if asked:
            values = yield [dict(trial.params) for trial in asked]
            for trial, value in zip(asked, values, strict=True):
                if math.isfinite(value):
                    study.tell(trial, value)
                else:
                    study.tell(trial, state=optuna.trial.TrialState.FAIL)
        if wanted:
            return  # there are no others


def _ask_new(
    study: Any, distributions: Mapping[str, Any], tried: set[str], finite: Space, base: Mapping[str, Any]
) -> Any | None:
    """A proposal that was not made before; ``None`` where there is no other.

    Args:
        study: Optuna's.
        distributions: what it draws from.
        tried: what was proposed; the new one is added.
        finite: the space if it is finite, else empty.
        base: the settings that ``times`` multiply.
    """
    import optuna

    for _ in range(_ATTEMPTS):
        trial = study.ask(distributions)
        if repr(trial.params) not in tried:
            break
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
    else:
        # The sampler may hardly ever propose the last few configurations of a nearly exhausted space.
        left = next((each for each in _grid(finite, base) if repr(each) not in tried), {}) if finite else {}
        if not left:
            return None
        study.enqueue_trial(left)
        trial = study.ask(distributions)
    tried.add(repr(trial.params))
    return trial


def _distribution(key: str, dimension: Choices | Times | Range, base: Mapping[str, Any]) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if isinstance(dimension, Range):
        return FloatDistribution(dimension.low, dimension.high, log=dimension.log)
    return CategoricalDistribution(_listed(key, dimension, base))
