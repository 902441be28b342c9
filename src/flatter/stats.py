"""Paired comparison over seeds: differences, intervals, exact tests, correction, power. Numbers in, numbers out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Better = Literal["lower", "higher"]
Verdict = Literal["helps", "hurts", "inconclusive", "failed"]


@dataclass(frozen=True, slots=True)
class Judgement:
    """One arm against one baseline, paired by seed.

    Attributes:
        verdict: ``"helps"`` or ``"hurts"`` where ``p_corrected`` is at most the level, ``"inconclusive"`` where not,
            ``"failed"`` where a seed of either arm has no finite value: then nothing is tested and the numbers are NaN.
        n: number of pairs.
        differences: arm − baseline, one per seed, in the metric's unit.
        mean, sd: mean and standard deviation (n − 1) of the differences.
        low, high: 95 % interval of the mean difference.
        p: two-sided p value of the sign-flip test.
        p_corrected: the same after Holm's correction over the family of comparisons.
        seeds_needed: how many seeds would settle an inconclusive comparison (80 % power at the observed effect and
            spread); ``None`` where the verdict stands already or no reachable number would.
    """

    verdict: Verdict
    n: int
    differences: tuple[float, ...]
    mean: float
    sd: float
    low: float
    high: float
    p: float
    p_corrected: float
    seeds_needed: int | None
