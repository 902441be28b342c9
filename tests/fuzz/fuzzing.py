"""How many random cases a fuzz test runs, and from which seed.

Every hypothesis test of this folder takes its settings from here::

    from fuzzing import fuzz, fuzz_settings
    from hypothesis import given, strategies as st

    @fuzz(300)  # outermost: 300 cases in `make test`
    @given(st.integers())
    def test_something(number): ...

    class Machine(RuleBasedStateMachine): ...

    TestMachine = Machine.TestCase
    TestMachine.settings = fuzz_settings(100, stateful_step_count=20)

Two environment variables change them, for `make fuzz` and for a failure that is to be repeated:

``FLATWISE_FUZZ_EXAMPLES``
    cases per test, instead of each test's own default.
``FLATWISE_FUZZ_SEED``
    a whole number: other cases than the default ones, and the same for the same number. Without it every run draws the
    same cases (hypothesis derandomizes), so that `make test` is deterministic.

A test that checks its own cases without hypothesis may use ``examples(default)`` and ``seed()``. Nothing is kept
between runs (no example database), and there is no deadline: on a busy machine a case that compiles takes seconds.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import hypothesis
from hypothesis import HealthCheck

Test = TypeVar("Test", bound=Callable[..., Any])


def examples(default: int, *, slower: int = 1) -> int:
    """Return the number of cases to run: ``FLATWISE_FUZZ_EXAMPLES`` if set, else ``default``.

    Args:
        default: cases in `make test`.
        slower: what the variable's number is divided by, for a test whose cases take that much longer than others'.
    """
    given = os.environ.get("FLATWISE_FUZZ_EXAMPLES")
    if not given:
        return default
    if int(given) < 1:
        raise ValueError(f"FLATWISE_FUZZ_EXAMPLES must be a positive integer, got {given}")
    return max(1, int(given) // slower)


def seed() -> int | None:
    """Return ``FLATWISE_FUZZ_SEED``, or ``None`` where the default cases are to be run."""
    given = os.environ.get("FLATWISE_FUZZ_SEED")
    return int(given) if given else None


def fuzz_settings(default: int, *, slower: int = 1, **more: Any) -> hypothesis.settings:
    """Return hypothesis settings with ``default`` cases (see ``examples``), for a state machine's ``TestCase``.

    Args:
        default: cases in `make test`.
        slower: as for ``examples``.
        more: further arguments of ``hypothesis.settings``, such as ``stateful_step_count``.
    """
    return hypothesis.settings(
        max_examples=examples(default, slower=slower),
        derandomize=seed() is None,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=[
            HealthCheck.too_slow,
            HealthCheck.data_too_large,
            HealthCheck.filter_too_much,
            HealthCheck.function_scoped_fixture,
        ],
        **more,
    )


def fuzz(default: int, *, slower: int = 1, **more: Any) -> Callable[[Test], Test]:
    """Return the decorator that gives a ``@given`` test these settings; it stands above ``@given``."""
    return fuzz_settings(default, slower=slower, **more)
