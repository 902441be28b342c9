"""How often the interval of a rank correlation holds the true value: `python benchmarks/rank_correlation.py`."""

import math

import numpy as np

from flatwise.stats import rank_correlation

SAMPLES = 4000

if __name__ == "__main__":
    rng = np.random.default_rng(0)
    print("points  true Spearman  share of intervals that hold it")
    for n in (6, 10, 15):
        for r in (0.0, 0.5, 0.9):
            # Of two normal variables with correlation r, in the limit of many points.
            true = 6 / math.pi * math.asin(r / 2)
            held = 0
            for _ in range(SAMPLES):
                x = rng.standard_normal(n)
                y = r * x + math.sqrt(1 - r * r) * rng.standard_normal(n)
                found = rank_correlation(x, y)
                held += found.low <= true <= found.high
            print(f"{n:6}  {true:13.2f}  {held / SAMPLES:.3f}")
