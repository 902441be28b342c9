"""Comparisons for the report's tests: hand-made, deterministic, with every kind of arm and of outcome."""

from __future__ import annotations

import dataclasses
import math
import random
import statistics
from collections.abc import Mapping, Sequence

from flatwise.stats import Judgement, Verdict
from flatwise.study.comparison import ArmSummary, Comparison
from flatwise.study.store import Record

NAN = math.nan
SEEDS = (0, 1, 2, 3, 4, 5, 6, 7)
EPOCHS = 20
T_95 = 2.365  # the 97.5 % quantile of Student's t with 7 degrees of freedom

# Final test errors in %: vanilla's by seed, and by how much each arm moves them on average.
VANILLA = (8.70, 8.92, 8.61, 8.79, 8.88, 8.53, 8.74, 8.83)
SHIFTS = {
    "vanilla": 0.0,
    "leap": 0.04,
    "lr_dropout": -0.42,
    "lr_dropout (control)": -0.39,
    "random_lr": 0.55,
    "random_lr (control)": 0.30,
    "ralr": -0.31,
    "ralr (control)": -0.05,
    "gaussian_peak": 0.06,
    "gaussian_peak (control)": 0.02,
    "diverging": 0.1,
}
DESCRIPTIONS = {
    "vanilla": "the scheduled rate, unchanged",
    "leap": "every element, every step: rate × Normal(1, 0.05²)",
    "lr_dropout": "every element, every step: updated with probability 0.5",
    "random_lr": "last 60 % of the epochs: rate × Uniform(0, 8)",
    "ralr": "every epoch with probability 0.5: rate × Uniform(1, 3)",
    "gaussian_peak": "a Gaussian peak in the middle of training, 3 × the usual maximum",
    "diverging": "rate × Normal(1, 4²): three seeds end in NaN",
}


def wobble(arm: str, seed: int, epoch: int = 0) -> float:
    """A number in [−1, 1] that depends on its arguments alone."""
    return random.Random(f"{arm}, {seed}, {epoch}").uniform(-1, 1)


def factor(arm: str, seed: int, epoch: int, epochs: int) -> float:
    """What the arm multiplies the scheduled rate by at an epoch."""
    late = epoch >= 0.4 * epochs
    u = (wobble(arm, seed, epoch) + 1) / 2
    return {
        "lr_dropout": 0.5,
        "lr_dropout (control)": 0.5,
        "random_lr": 8 * u if late else 1.0,
        "random_lr (control)": 4.0 if late else 1.0,
        "ralr": 1 + 4 * max(0.0, u - 0.5),
        "ralr (control)": 1.5,
        "gaussian_peak": 3 * math.exp(-((epoch / epochs - 0.5) ** 2) / 0.05) + 0.01,
        "gaussian_peak (control)": 1.2,
    }.get(arm, 1.0)


def record(arm: str, seed: int, position: int, epochs: int, failed: bool) -> Record:
    """One trial of the sample: a curve that falls to the arm's final error, or one that ends in NaN half-way."""
    final = VANILLA[position % len(VANILLA)] + SHIFTS.get(arm, 0.0) + 0.16 * wobble(arm, seed)
    history: list[Mapping[str, float]] = []
    for epoch in range(epochs):
        left = 1 - (epoch + 1) / epochs
        rate = 0.05 * (1 + math.cos(math.pi * epoch / epochs))
        broken = failed and epoch >= epochs // 2
        noise = 1 + 0.1 * left * wobble(arm, seed, epoch)
        history.append(
            {
                "train_loss": NAN if broken else (0.05 + 2.2 * left**3) * noise,
                "test_loss": NAN if broken else (0.31 + 2.0 * left**3) * noise,
                "test_error": NAN if broken else final + 60 * left**4 * noise,
                "scheduled_lr": rate,
                "effective_lr": rate * factor(arm, seed, epoch, epochs),
                "seconds": 1.5 + 0.1 * wobble(arm, seed, epoch),
            }
        )
    return Record(
        key=f"{arm}-{seed}",
        task="digits",
        arm=arm,
        seed=seed,
        status="failed" if failed else "finished",
        epochs=tuple(history),
        error=f"test_error is nan after epoch {epochs // 2 + 1}" if failed else None,
        versions={"flatwise": "0.1.0", "torch": "2.13.0"},
    )


def judgement(
    verdict: Verdict, differences: Sequence[float] = (-0.2, -0.1, 0.0), p: float = 0.5, needed: int | None = None
) -> Judgement:
    """A judgement over ``differences``; like a real one, all NaN where the verdict is "failed".

    ``needed`` is the most seeds that are needed, at least a third of it.
    """
    n = len(differences)
    if verdict == "failed":
        return Judgement("failed", n, tuple(differences), NAN, NAN, NAN, NAN, NAN, NAN, None)
    mean, sd = statistics.fmean(differences), statistics.stdev(differences)
    half = T_95 * sd / math.sqrt(n)
    if verdict == "not tested":
        return Judgement(verdict, n, tuple(differences), mean, sd, mean - half, mean + half, NAN, NAN, None)
    reach = (12, None) if needed is None else (needed // 3, needed)
    return Judgement(
        verdict,
        n,
        tuple(differences),
        mean,
        sd,
        mean - half,
        mean + half,
        p / 2,
        p,
        needed,
        p / 2,
        reach if verdict == "inconclusive" and n > 1 else None,
    )


def arm_summary(
    name: str,
    control: str | None = None,
    is_control: bool = False,
    finals: Sequence[float] = (8.7, 8.9, 8.6),
    failed: int = 0,
    vs_vanilla: Judgement | None = None,
    vs_control: Judgement | None = None,
    time_ratio: float = 1.0,
) -> ArmSummary:
    """A summary with the mean and spread of ``finals``."""
    return ArmSummary(
        name=name,
        description=DESCRIPTIONS.get(name, f"the mean rate of {name.removesuffix(' (control)')}, no randomness"),
        control=control,
        is_control=is_control,
        n=len(finals),
        failed=failed,
        mean=statistics.fmean(finals) if finals else NAN,
        sd=statistics.stdev(finals) if len(finals) > 1 else NAN,
        best_mean=statistics.fmean(finals) - 0.11 if finals else NAN,
        vs_vanilla=vs_vanilla,
        vs_control=vs_control,
        time_ratio=time_ratio,
    )


def sample(epochs: int = EPOCHS) -> Comparison:
    """Vanilla, five methods (four with controls of their own), and one arm of which three seeds fail."""
    diverged = {("diverging", seed) for seed in (1, 4, 5)}
    records = tuple(
        record(arm, seed, position, epochs, (arm, seed) in diverged)
        for arm in SHIFTS
        for position, seed in enumerate(SEEDS)
    )
    finals = {arm: [r.epochs[-1]["test_error"] for r in records if r.arm == arm] for arm in SHIFTS}

    def against(arm: str, baseline: str, verdict: Verdict, p: float, needed: int | None = None) -> Judgement:
        differences = [a - b for a, b in zip(finals[arm], finals[baseline], strict=True)]
        return judgement(verdict, differences, p, needed)

    def method(
        name: str,
        control: str,
        verdict: Verdict,
        p: float,
        needed: int | None,
        time: float,
        vs_control: Judgement | None,
    ) -> ArmSummary:
        vs_vanilla = against(name, "vanilla", verdict, p, needed)
        finite = [value for value in finals[name] if math.isfinite(value)]
        failed = len(SEEDS) - len(finite)
        return arm_summary(name, control, False, finite, failed, vs_vanilla, vs_control, time)

    def control(of: str, verdict: Verdict, p: float, needed: int | None = None) -> ArmSummary:
        name = f"{of} (control)"
        vs_vanilla = against(name, "vanilla", verdict, p, needed)
        return arm_summary(name, None, True, finals[name], vs_vanilla=vs_vanilla)

    def beside(name: str, verdict: Verdict, p: float, needed: int | None = None) -> Judgement:
        return against(name, f"{name} (control)", verdict, p, needed)

    return Comparison(
        task="digits",
        metric="test_error",
        unit="%",
        better="lower",
        level=0.05,
        seeds=SEEDS,
        settings={"epochs": epochs, "batch_size": 128, "lr": 0.1, "schedule": "cosine", "augment": True},
        arms=(
            arm_summary("vanilla", finals=finals["vanilla"]),
            method("leap", "vanilla", "inconclusive", 0.61, 140, 1.04, None),
            method(
                "lr_dropout",
                "lr_dropout (control)",
                "helps",
                0.0156,
                None,
                1.06,
                beside("lr_dropout", "inconclusive", 0.8, 95),
            ),
            control("lr_dropout", "helps", 0.0156),
            method("random_lr", "random_lr (control)", "hurts", 0.0156, None, 1.0, beside("random_lr", "hurts", 0.031)),
            control("random_lr", "hurts", 0.0156),
            method("ralr", "ralr (control)", "helps", 0.0156, None, 1.01, beside("ralr", "helps", 0.0234)),
            control("ralr", "inconclusive", 0.4, 37),
            method(
                "gaussian_peak",
                "gaussian_peak (control)",
                "inconclusive",
                0.52,
                None,
                1.0,
                beside("gaussian_peak", "not tested", NAN, None),
            ),
            control("gaussian_peak", "not tested", NAN, None),
            method("diverging", "vanilla", "failed", NAN, None, NAN, None),
        ),
        records=records,
    )


def with_verdicts(method: Verdict, against_control: Verdict, control: Verdict) -> Comparison:
    """A comparison without records in which one method, "m", and its control have the given verdicts."""
    sign = {"helps": -1.0, "hurts": 1.0, "failed": NAN}

    def verdict(name: Verdict) -> Judgement:
        differences = [sign.get(name, 0.1) * size for size in (0.3, 0.5, 0.4)]
        return judgement(name, differences, 0.01, 60 if name == "inconclusive" else None)

    return dataclasses.replace(
        sample(epochs=1),
        arms=(
            arm_summary("vanilla"),
            arm_summary("m", "m (control)", vs_vanilla=verdict(method), vs_control=verdict(against_control)),
            arm_summary("m (control)", is_control=True, vs_vanilla=verdict(control)),
        ),
        records=(),
    )
