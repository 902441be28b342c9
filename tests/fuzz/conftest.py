"""The seed of every fuzz test, and how to repeat a failure."""

import hypothesis.core
import pytest
from fuzzing import seed


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Let ``FLATWISE_FUZZ_SEED`` do what hypothesis's ``--hypothesis-seed`` does, in xdist's workers too."""
    if seed() is not None:
        hypothesis.core.global_force_seed = seed()
