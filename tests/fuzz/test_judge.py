"""Random comparisons against a small reference of the statistics, written from their definitions.

The reference imports nothing of flatwise's statistics: it enumerates the sign flips in whole numbers, takes Student's t
and the skewness from scipy, and plays the gated procedure level by level instead of computing corrected p values.
"""

import itertools
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from fuzzing import fuzz
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from typer.testing import CliRunner

from flatwise.cli import app
from flatwise.stats import judge
from flatwise.study.analysis import analyse, judged_comparison
from flatwise.study.arms import parse_arm, with_controls
from flatwise.study.provenance import versions
from flatwise.study.registry import TASKS
from flatwise.study.store import Record, Store
from flatwise.study.subjects import Subject, TrialSpec
from flatwise.study.task import Settings, Task

# The reference.


def flips(differences):
    """Share of all sign patterns that are at least as extreme, in whole numbers."""
    observed = abs(sum(differences))
    patterns = itertools.product((1, -1), repeat=len(differences))
    sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in patterns]
    return sum(value >= observed for value in sums) / len(sums)


def adjusted(differences):
    """Student's t, divided where the skewness is opposite to the mean; 0 where the skewness is no objection."""
    n = len(differences)
    if n == 1 or sum(differences) == 0:
        return 1.0
    skewness = 0.0 if len(set(differences)) == 1 else float(scipy_stats.skew(differences))
    if abs(skewness) < 1e-7 or skewness * sum(differences) > 0:
        return 0.0
    t = abs(float(scipy_stats.ttest_1samp(differences, 0).statistic)) / (1 + 16 * abs(skewness) / n)
    return 2 * float(scipy_stats.t.sf(t, n - 1))


def rejected(branches, level):
    """Names of the comparisons that the gated procedure rejects at a level; ``branches`` are (name, p) lists."""
    left = [list(branch) for branch in branches if branch]
    opened = [False] * len(left)
    found = set()
    while True:
        alive = [i for i, branch in enumerate(left) if branch]
        for i in alive:
            candidates = left[i] if opened[i] else left[i][:1]
            name, p = min(candidates, key=lambda item: item[1])
            if p * len(candidates) * len(alive) <= level * (1 + 1e-12):
                found.add(name)
                left[i] = [item for item in left[i] if item[0] != name]
                opened[i] = True
                break
        else:
            return found


# Families of paired values.

SHAPES = {
    "ties": st.integers(-3, 3),
    "coarse": st.integers(-20, 20),
    "fine": st.integers(-10_000, 10_000),
    "shifted": st.integers(-60, 140),
    "clear": st.integers(5, 30),
    "skewed": st.sampled_from([-1, -1, -2, -3, -1, 9, 30]),
    "nothing": st.just(0),
    "outlier": st.sampled_from([1, 1, 1, 2, 3, 1_000_000]),
}
BAD = (math.nan, math.inf, -math.inf)


@st.composite
def families(draw):
    n = draw(st.integers(1, 10))
    size = draw(st.integers(1, 5))
    sign = draw(st.sampled_from([1, -1]))
    found = {}
    for index in range(size):
        shape = SHAPES[draw(st.sampled_from(sorted(SHAPES)))]
        found[f"a{index}"] = [sign * draw(shape) for _ in range(n)]
    behind = {}
    for index in range(size):
        for child in range(draw(st.integers(0, 2))):
            name = f"a{index} c{child}"
            behind[name] = f"a{index}"
            found[name] = [draw(SHAPES[draw(st.sampled_from(["shifted", "ties", "clear"]))]) for _ in range(n)]
    names = draw(st.permutations(sorted(found)))
    broken = draw(st.dictionaries(st.sampled_from(names), st.sampled_from(BAD), max_size=1 if size > 1 else 0))
    return {name: found[name] for name in names}, behind, broken


@fuzz(200)
@given(
    family=families(),
    better=st.sampled_from(["lower", "higher"]),
    level=st.sampled_from([0.01, 0.05, 0.2]),
    unit=st.sampled_from([1.0, 1 / 360, 1e-300, 1e290, 100 / 1563]),
    absent=st.integers(0, 2),
)
def test_judge_agrees_with_its_definition(family, better, level, unit, absent):
    whole, behind, broken = family
    pairs = {name: ([d * unit for d in values], [0.0] * len(values)) for name, values in whole.items()}
    for name, bad in broken.items():
        pairs[name][0][0] = bad
    judged = judge(pairs, better=better, level=level, behind=behind, absent=absent)
    assert list(judged) == list(whole)

    known = [name for name in whole if name not in broken]
    p_values = {name: (flips(whole[name]), adjusted(whole[name])) for name in known}
    first = [name for name in known if name not in behind]
    order = [[name, *(c for c in known if behind.get(c) == name)] for name in first]

    def procedure(level, weaker=None):
        branches = [[(n, p_values[n][0] if n == weaker else max(p_values[n])) for n in branch] for branch in order] + [
            [(f"absent {i}", 1.0)] for i in range(absent)
        ]
        return rejected(branches, level)

    shown = procedure(level)
    for name, found in judged.items():
        gate = behind.get(name)
        if name in broken:
            assert (found.verdict, found.seeds_range) == ("failed", None)
            assert all(map(math.isnan, (found.mean, found.low, found.high, found.p, found.p_corrected)))
            continue
        values = np.array(whole[name], float)
        assert found.mean == pytest.approx(values.mean() * unit, rel=1e-9, abs=1e-9 * unit)
        if len(values) > 1 and values.std() > 0:
            reference = scipy_stats.ttest_1samp(values, 0).confidence_interval()
            bounds = [reference.low * unit, reference.high * unit]
            assert [found.low, found.high] == pytest.approx(bounds, rel=1e-7, abs=1e-9 * unit)
        if gate is not None and (gate in broken or gate not in shown):
            assert found.verdict == "not tested"
            assert math.isnan(found.p)
            continue
        p, p_skewness = p_values[name]
        assert found.p == pytest.approx(p, rel=1e-12)
        assert found.p_skewness == pytest.approx(p_skewness, rel=1e-6, abs=1e-12)
        if name in shown:
            expected = "helps" if (values.mean() < 0) == (better == "lower") else "hurts"
        elif name in procedure(level, weaker=name):
            expected = "skewed"
        else:
            expected = "inconclusive"
        assert found.verdict == expected
        # The corrected p value is the smallest level at which the procedure rejects.
        if found.p_corrected < 1:
            assert name in procedure(found.p_corrected * (1 + 1e-6))
        assert name not in procedure(found.p_corrected * (1 - 1e-6))
        if expected == "inconclusive" and len(values) > 1:
            fewest, most = found.seeds_range
            assert fewest > len(values)
            assert most is None or most >= fewest
            # The range is that of the effect size: if it may be none, no number of seeds is enough.
            t = (
                abs(scipy_stats.ttest_1samp(values, 0).statistic)
                if values.std() > 0
                else (math.inf if values[0] else 0)
            )
            if t < scipy_stats.t.ppf(0.975, len(values) - 1) * (1 - 1e-6):
                assert most is None
            if found.seeds_needed is not None and fewest < 10_000:
                assert fewest <= found.seeds_needed
        else:
            assert found.seeds_range is None


# Records of whole comparisons.

SUBJECT = Subject("task", "err", "", "lower", {})
METHODS = ("leap", "lr_dropout", "ralr", "gaussian_peak")


@st.composite
def comparisons(draw):
    """Arms, seeds, the final values in whole numbers, and what is wrong with the records."""
    n = draw(st.integers(2, 9))
    methods = draw(st.lists(st.sampled_from(METHODS), min_size=1, max_size=3, unique=True))
    arms = with_controls([parse_arm(name) for name in methods], controls=draw(st.booleans()))
    names = [arm.name for arm in arms]
    finals = {}
    for name in names:
        shift = 0 if name == "vanilla" else draw(st.sampled_from([0, 0, 12, 40, -40]))
        finals[name] = [draw(st.integers(-10, 10)) + shift for _ in range(n)]
    kinds = st.sampled_from(["crash", "nan", "repeat", "tie", "epochs", "same", "none", "none"])
    faults = draw(st.lists(st.tuples(kinds, st.sampled_from(names), st.integers(0, n - 1)), max_size=2))
    return arms, n, finals, faults, draw(st.sampled_from(["lower", "higher"])), draw(st.integers(1, 4))


def records_of(arms, n, finals, faults, epochs, rng):
    """Records as they would be kept, and which arms repeat a seed, fail, run longer, or are vanilla."""
    curves = {
        (arm.name, seed): [{"err": float(rng.normal()), "loss": float(rng.normal())} for _ in range(epochs - 1)]
        + [{"err": finals[arm.name][seed] / 8, "loss": float(rng.normal())}]
        for arm in arms
        for seed in range(n)
    }
    failed, repeats, longer, same = set(), set(), set(), set()
    for kind, name, seed in faults:
        if kind == "same" and name != "vanilla":
            same.add(name)
    for kind, name, seed in faults:
        other = (seed + 1) % n
        if kind in ("crash", "nan"):
            failed.add((name, seed))
        elif kind == "repeat":
            repeats.add((name, seed, other))
        elif kind == "tie":  # one metric is the same, the other is not: two trainings
            for epoch, twin in zip(curves[name, seed], curves[name, other], strict=True):
                twin["err"] = epoch["err"]
        elif kind == "epochs":
            longer.add(name)
    for name in longer:
        for seed in range(n):
            curves[name, seed] = [{"err": 0.123456789 * seed, "loss": 0.987654321 * seed}, *curves[name, seed]]
    for name, seed, other in sorted(repeats):
        curves[name, other] = [dict(epoch) for epoch in curves[name, seed]]
    for name in same:
        for seed in range(n):
            curves[name, seed] = [dict(epoch) for epoch in curves["vanilla", seed]]
    found = []
    for arm in arms:
        for seed in range(n):
            epochs_of = [{**e, "scheduled_lr": 0.1, "effective_lr": rng.random(), "seconds": rng.random()}
                         for e in curves[arm.name, seed]]  # fmt: skip
            crashed = (arm.name, seed) in failed
            found.append(
                Record(
                    key=f"{arm.name} {seed}",
                    task="task",
                    arm=arm.name,
                    seed=seed,
                    status="failed" if crashed else "finished",
                    epochs=tuple(epochs_of),
                    versions=versions(),
                )
            )
    return found


@fuzz(200)
@given(case=comparisons(), seed=st.integers(0, 2**32 - 1))
def test_analysis_agrees_with_its_definition(case, seed):
    arms, n, finals, faults, better, epochs = case
    found = records_of(arms, n, finals, faults, epochs + 1, np.random.default_rng(seed))
    subject = replace(SUBJECT, better=better)
    result = analyse(subject, found, arms, range(n))
    curves = {(r.arm, r.seed): [(e["err"], e["loss"]) for e in r.epochs] for r in found}
    crashed = {r.arm for r in found if r.status == "failed"}
    finished = {(r.arm, r.seed) for r in found if r.status == "finished"}
    repeated = {
        arm.name
        for arm in arms
        for a, b in itertools.combinations(range(n), 2)
        if {(arm.name, a), (arm.name, b)} <= finished and curves[arm.name, a] == curves[arm.name, b]
    }

    def reason(arm, base):
        if {arm, base} & crashed:
            return "failed"
        if {arm, base} & repeated:
            return "not independent"
        if any(len(curves[arm, s]) != len(curves[base, s]) for s in range(n)):
            return "not comparable"
        return None

    branches, p_values, differences = [], {}, {}
    for arm in arms:
        if arm.name == "vanilla" or arm.is_control:
            continue
        branch = [(arm.name, "vanilla")]
        if arm.control not in (None, "vanilla"):
            branch += [(arm.name, arm.control), (arm.control, "vanilla")]
        for pair in branch:
            differences[pair] = [round(8 * (curves[pair[0], s][-1][0] - curves[pair[1], s][-1][0])) for s in range(n)]
            p_values[pair] = flips(differences[pair]), adjusted(differences[pair])
        if reason(*branch[0]) is None:
            branches.append([pair for pair in branch if reason(*pair) is None])
    shown = rejected([[(pair, max(p_values[pair])) for pair in branch] for branch in branches], 0.05)

    for arm in result.arms:
        assert bool(arm.repeats) == (arm.name in repeated)
        for judgement, base in ((arm.vs_vanilla, "vanilla"), (arm.vs_control, arm.control)):
            if judgement is None:
                continue
            pair = arm.name, base
            first = next(branch[0] for branch in _branches(arms) if pair in branch)
            if reason(*pair) is not None:
                expected = reason(*pair)
            elif pair != first and first not in shown:
                expected = "not tested"
            elif pair in shown:
                expected = "helps" if (sum(differences[pair]) < 0) == (better == "lower") else "hurts"
            elif all(curves[arm.name, s] == curves[base, s] for s in range(n)):
                expected = "does nothing"
            else:
                weaker = [[(p, p_values[p][0] if p == pair else max(p_values[p])) for p in b] for b in branches]
                expected = "skewed" if pair in rejected(weaker, 0.05) else "inconclusive"
            assert judgement.verdict == expected, (pair, differences[pair])


def _branches(arms):
    for arm in arms:
        if arm.name != "vanilla" and not arm.is_control:
            own = arm.control not in (None, "vanilla")
            yield [(arm.name, "vanilla"), *([(arm.name, arm.control), (arm.control, "vanilla")] if own else [])]


@fuzz(20, slower=10)
@given(case=comparisons(), seed=st.integers(0, 2**32 - 1), keep=st.integers(0, 6))
def test_arms_that_were_judged_before_stay_in_the_family(case, seed, keep):
    """Fewer arms later: the same judgements of those that are left, from the records in the store."""
    arms, n, finals, faults, better, epochs = case
    subject = replace(SUBJECT, better=better)
    found = records_of(arms, n, finals, faults, epochs + 1, np.random.default_rng(seed))
    specs = [TrialSpec(subject, arm, s) for arm in arms for s in range(n)]
    found = [replace(record, key=spec.key) for record, spec in zip(found, specs, strict=True)]
    methods = [arm for arm in arms if arm.name != "vanilla" and not arm.is_control]
    kept = {methods[keep % len(methods)].name}
    kept |= {arm.control for arm in methods if arm.name in kept} | {"vanilla"}
    fewer = [arm for arm in arms if arm.name in kept]
    with Store(None) as store:
        for record in found:
            store.put(record)
        whole = analyse(subject, found, arms, range(n), store=store)
        store.remember_judged(subject.family, judged_comparison(specs, arms, range(n)))
        again = analyse(subject, found, arms, range(n), store=store)
        part = analyse(subject, [r for r in found if r.arm in kept], fewer, range(n), store=store)
    assert repr(whole.arms) == repr(again.arms)
    assert repr(part.arms) == repr(tuple(arm for arm in whole.arms if arm.name in kept))
    assert len(part.earlier_arms) == len(methods) - 1


# Random command lines.


def _train(trial, chosen, data):
    """A millisecond; at some rates it crashes or ends in a NaN."""
    if chosen.learning_rate == 0.3 and trial.arm.name != "vanilla":
        raise RuntimeError("out of memory")
    noise = torch.Generator().manual_seed(trial.seed)
    weight = torch.randn(2, generator=noise).requires_grad_()
    optimizer = torch.optim.SGD([weight], lr=chosen.learning_rate)
    scheduler = trial.attach(optimizer, steps_per_epoch=1, epochs=chosen.epochs)
    for _ in range(chosen.epochs):
        weight.grad = weight.detach() + torch.randn(2, generator=noise)
        optimizer.step()
        scheduler.step()
        error = math.nan if chosen.learning_rate == 0.4 else float(weight.detach().square().sum())
        trial.report(test_error=error)


QUICK = Task("fuzz", "trivial", Settings(epochs=2, batch_size=1, learning_rate=0.1), lambda folder: None, _train)
OPTIONS = st.one_of(
    st.tuples(
        st.just("--arms"), st.sampled_from(["leap", "leap,ralr", "lr_dropout(keep=0.3)", "leep", "", "leap,leap"])
    ),
    st.tuples(st.just("--seeds"), st.sampled_from(["1", "2", "3", "0", "-1", "x"])),
    st.tuples(st.just("--epochs"), st.sampled_from(["1", "2", "3", "0", "many"])),
    st.tuples(st.just("--lr"), st.sampled_from(["0.1", "0.3", "0.4", "-1", "nan"])),
    st.tuples(st.just("--level"), st.sampled_from(["0.05", "0", "1.5", "0.2"])),
    st.tuples(st.just("--no-controls")),
    st.tuples(st.just("--retry-failed")),
    st.tuples(st.just("--max-batches"), st.sampled_from(["2"])),
    st.tuples(st.just("--unknown")),
)


@fuzz(15, slower=20)
@given(lines=st.lists(st.lists(OPTIONS, max_size=3), min_size=1, max_size=2))
def test_random_command_lines_end_as_they_should(tmp_path_factory, monkeypatch, lines):
    monkeypatch.setitem(TASKS, "fuzz", QUICK)
    folder = tmp_path_factory.mktemp("fuzz")
    kept = Counter()
    for options in lines:
        words = [word for option in options for word in option]
        quick = [] if "--seeds" in words else ["--seeds", "2"]
        chosen = [] if "--arms" in words else ["--arms", "leap"]
        arguments = ["compare", "fuzz", "--out", str(folder), "--quiet", *quick, *chosen, *words]
        result = CliRunner().invoke(app, arguments)
        assert result.exception is None or isinstance(result.exception, SystemExit), (arguments, result.exception)
        assert "Traceback" not in result.output
        assert result.exit_code in (0, 1, 2), (arguments, result.output)
        if result.exit_code == 2:
            assert "error" in result.output.lower()
        given = dict(option for option in options if len(option) == 2)
        # At 0.3 the methods crash and vanilla does not: alone, without a method, it has nothing that fails.
        failing = given.get("--lr") == "0.4" or (given.get("--lr") == "0.3" and given.get("--arms") != "")
        if result.exit_code != 2:
            assert result.exit_code == failing, (arguments, result.output)
            assert (folder / "report.html").is_file()
        if (folder / "trials.sqlite").exists():
            with Store(folder / "trials.sqlite", read_only=True) as store:
                now = Counter(record.key for record in store.records())
            assert not kept - now  # no trial is lost
            kept = now
