"""How often the rules of `flatwise_papers.replication.rules` are wrong, by simulation: claims with a known truth.

Run with `python papers/benchmarks/replication_verdicts.py`; it takes about a minute. Nothing is
timed, and the generator has a fixed seed, so the numbers repeat.

A claim is a paper's: vanilla at 5.6 % and a relative gain of 8 % (0.45 points), from five runs. Ours are paired runs of
the same spread, correlated by 0.3 within a seed, and judged with the family of tests of a cell.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import replace

import numpy as np

from flatwise.stats import judge
from flatwise_papers.replication.claims import Claim, Reported
from flatwise_papers.replication.rules import Measured, check_baseline, judge_claim

VANILLA, GAIN, RUNS, CORRELATION = 5.6, 0.08, 5, 0.3
SPREADS = (0.15, 0.45)
OUTCOMES = ("reproduced", "not reproduced", "inconclusive")
CLAIM = Claim(
    cell="cell",
    arm="arm",
    paper="leap",
    table="1",
    dataset="",
    model="",
    optimizer="",
    schedule="",
    baseline=Reported(VANILLA, None, RUNS),
    result=Reported(VANILLA * (1 - GAIN), None, RUNS),
    epoch="last",
    from_accuracy=False,
    notes="",
)


def our_runs(rng, seeds, *, gain, spread, arms):
    """Return vanilla's errors and those of the arms, one row each; the first arm has the relative gain, others none."""
    shared = rng.normal(size=seeds) * CORRELATION**0.5
    own = rng.normal(size=(arms + 1, seeds)) * (1 - CORRELATION) ** 0.5
    errors = VANILLA + spread * (shared + own)
    errors[1] -= gain * VANILLA
    return errors[0], errors[1:]


def as_printed(rng, *, gain, spread, selected):
    """Return a claim as a paper would print it whose true relative gain is ``gain``.

    Args:
        rng: numpy's generator.
        gain: the true gain.
        spread: of its runs.
        selected: whether it is printed only where the gain is over two standard errors.
    """
    error = spread / RUNS**0.5
    while True:
        baseline, result = VANILLA + error * rng.normal(), VANILLA * (1 - gain) + error * rng.normal()
        if baseline != result and (not selected or baseline - result > 2 * 2**0.5 * error):
            return replace(CLAIM, baseline=Reported(baseline, spread, RUNS), result=Reported(result, spread, RUNS))


def outcomes(rng, claims, seeds, *, gain, spread, arms=1, printed="8 %"):
    """Return the share of each outcome over simulated claims.

    Args:
        rng: numpy's generator.
        claims: how many.
        seeds: ours.
        gain: the true relative gain.
        spread: of a run's error, in points.
        arms: how many the cell has; the tests are corrected over them.
        printed: what the paper prints: ``"8 %"``; ``"as it came out"`` of its own runs; ``"if it stood out"``: only
            where those show it.
    """
    counts = Counter()
    for _ in range(claims):
        vanilla, own = our_runs(rng, seeds, gain=gain, spread=spread, arms=arms)
        judgement = judge({str(i): (errors, vanilla) for i, errors in enumerate(own)}, better="lower")["0"]
        claim = CLAIM
        if printed != "8 %":
            claim = as_printed(rng, gain=gain, spread=spread, selected=printed == "if it stood out")
        counts[judge_claim(claim, float(vanilla.mean()), judgement)] += 1
    return {outcome: counts[outcome] / claims for outcome in OUTCOMES}


def baseline_differs(rng, claims, seeds, *, offset, spread, paper):
    """Return the share of claims whose baseline is said to differ.

    Args:
        rng: numpy's generator.
        claims: how many.
        seeds: ours.
        offset: our true vanilla − the paper's, as a multiple of the claimed gain.
        spread: of a run's error, in points, ours and the paper's.
        paper: whether it prints a spread (any number), and its runs; mean and spread are drawn.
    """
    differs = 0
    for _ in range(claims):
        values = VANILLA + offset * GAIN * VANILLA + spread * rng.normal(size=seeds)
        ours = Measured(float(values.mean()), float(values.std(ddof=1)), seeds)
        runs = VANILLA + spread * rng.normal(size=paper.runs or 1)
        sd = None if paper.sd is None else float(runs.std(ddof=1))
        mean = float(runs.mean())
        # The gain that is claimed stays what it is: only the place of the baseline is drawn.
        result = Reported(mean - GAIN * VANILLA, None, RUNS)
        differs += check_baseline(replace(CLAIM, baseline=Reported(mean, sd, paper.runs), result=result), ours).differs
    return differs / claims


TRUTHS = {
    "no effect, 8 % printed": {"gain": 0.0},
    "a loss of 4 %, 8 % printed": {"gain": -GAIN / 2},
    "4 %, 8 % printed": {"gain": GAIN / 2},
    "8 %, 8 % printed": {"gain": GAIN},
    "8 %, printed as it came out": {"gain": GAIN, "printed": "as it came out"},
    "4 %, printed if it stood out": {"gain": GAIN / 2, "printed": "if it stood out"},
}
PAPERS = {"5 runs, sd": Reported(0, 1, 5), "3 runs, no sd": Reported(0, None, 3), "neither": Reported(0, None, None)}


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--claims", type=int, default=4000, help="claims per line; default 4000")
    claims = parser.parse_args().claims
    rng = np.random.default_rng(0)
    print(f"share of {claims} claims\n{'truth':30} spread seeds arms  {'  '.join(OUTCOMES)}")
    for truth, chosen in TRUTHS.items():
        for spread in SPREADS:
            for seeds, arms in ((8, 1), (10, 1), (10, 5)):
                shares = outcomes(rng, claims, seeds, spread=spread, arms=arms, **chosen)
                told = "  ".join(f"{shares[outcome]:{len(outcome)}.3f}" for outcome in OUTCOMES)
                print(f"{truth:30} {spread:6.2f} {seeds:5} {arms:4}  {told}")
    print(f"\nshare of {claims} baselines that are said to differ\n{'truth':30} spread seeds  {'  '.join(PAPERS)}")
    for truth, offset in (("the same", 0.0), ("off by half the gain", 0.5), ("off by twice the gain", 2.0)):
        for spread in SPREADS:
            for seeds in (8, 20):
                shares = [
                    baseline_differs(rng, claims, seeds, offset=offset, spread=spread, paper=paper)
                    for paper in PAPERS.values()
                ]
                told = "  ".join(f"{share:{len(name)}.3f}" for name, share in zip(PAPERS, shares, strict=True))
                print(f"{truth:30} {spread:6.2f} {seeds:5}  {told}")


if __name__ == "__main__":
    main()
