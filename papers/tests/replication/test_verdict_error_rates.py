"""How often the rules are wrong: a small part of `papers/benchmarks/replication_verdicts.py`.

The bounds are the rates that the rules promise plus four standard errors of so many claims.
"""

import numpy as np
import pytest
import replication_verdicts as simulation

CLAIMS = 800
AT_MOST = 0.025 + 4 * (0.025 * 0.975 / CLAIMS) ** 0.5  # 0.047


@pytest.mark.parametrize("spread", simulation.SPREADS)
@pytest.mark.parametrize("arms", [1, 4])
def test_no_effect_is_rarely_reproduced(spread, arms):
    shares = simulation.outcomes(np.random.default_rng(1), CLAIMS, 8, gain=0.0, spread=spread, arms=arms)
    assert shares["reproduced"] <= AT_MOST
    assert shares["not reproduced"] > 0.4


@pytest.mark.parametrize("spread", simulation.SPREADS)
def test_a_claim_that_is_true_is_rarely_refuted(spread):
    shares = simulation.outcomes(np.random.default_rng(2), CLAIMS, 10, gain=simulation.GAIN, spread=spread)
    assert shares["not reproduced"] <= AT_MOST
    assert shares["reproduced"] > 0.45


def test_a_loss_is_never_a_gain():
    shares = simulation.outcomes(np.random.default_rng(3), CLAIMS, 8, gain=-simulation.GAIN / 2, spread=0.45)
    assert shares["reproduced"] <= 0.005
    assert shares["not reproduced"] > 0.8


@pytest.mark.parametrize("paper", simulation.PAPERS)
def test_equal_baselines_rarely_differ(paper):
    chosen = {"spread": 0.45, "paper": simulation.PAPERS[paper]}
    at_most = 0.05 + 4 * (0.05 * 0.95 / CLAIMS) ** 0.5
    assert simulation.baseline_differs(np.random.default_rng(4), CLAIMS, 8, offset=0, **chosen) <= at_most


def test_distant_baselines_differ():
    chosen = {"spread": 0.15, "paper": simulation.PAPERS["5 runs, sd"]}
    assert simulation.baseline_differs(np.random.default_rng(5), CLAIMS, 8, offset=2, **chosen) > 0.99
    assert simulation.baseline_differs(np.random.default_rng(5), CLAIMS, 8, offset=0.5, **chosen) <= 0.025
