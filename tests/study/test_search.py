"""Which configurations are tried."""

import math

import pytest

from flatwise.report.tuning import search_warnings
from flatwise.study.plan import plan_cell
from flatwise.study.search import best, search
from studies import TUNED, study


def play(space, tuning, trials, base, value, **options):
    """All rounds of a search that is told `value(configuration)`."""
    rounds = []
    searching = search(space, tuning, trials, base, "lower", **options)
    asked = next(searching)
    while True:
        rounds.append(asked)
        try:
            asked = searching.send([value(configuration) for configuration in asked])
        except StopIteration:
            return rounds


def test_a_grid_tries_all_in_its_order():
    text = TUNED.replace("space.sigma = [0.5, 0.1, 0.01]", "space = { sigma = [0.5, 0.1, 0.01], momentum = [0.9] }")
    read = study(text)
    rounds = play(read.arms[1].space, read.tuning, None, {}, lambda c: 1.0)
    assert rounds == [[{"sigma": s, "momentum": 0.9} for s in (0.5, 0.1, 0.01)]]


def test_times_multiply_the_base():
    read = study()
    rounds = play(read.arms[0].space, read.tuning, None, {"learning_rate": 0.2}, lambda c: 1.0)
    assert rounds == [[{"learning_rate": 0.1}, {"learning_rate": 0.2}, {"learning_rate": 0.4}]]


def sampled(sampler, trials=24):
    text = TUNED.replace("seeds = 2", f'sampler = "{sampler}"\ntrials = {trials}\nbaseline_trials = 2')
    text = text.replace("[0.5, 0.1, 0.01]", "{ low = 0.001, high = 1, log = true }")
    text = text.replace("{ times = [0.5, 1, 2] }", "{ low = 0.01, high = 1 }")
    return study(text.replace("[0.3, 0.5, 0.7]", "{ low = 0.3, high = 0.7 }"))


def bowl(configuration):
    return (math.log10(configuration["sigma"]) + 2) ** 2


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_samplers_are_played_again_the_same(sampler):
    read = sampled(sampler)
    first, second = (play(read.arms[1].space, read.tuning, 24, {}, bowl) for _ in range(2))
    assert first == second
    tried = [configuration["sigma"] for asked in first for configuration in asked]
    assert len(tried) == len(set(tried)) == 24
    assert all(0.001 <= sigma <= 1 for sigma in tried)


def test_tpe_learns_and_random_does_not():
    def late(sampler, value):
        read = sampled(sampler)
        return [c["sigma"] for asked in play(read.arms[1].space, read.tuning, 24, {}, value) for c in asked][12:]

    assert late("random", bowl) == late("random", lambda c: 1.0)
    near = sum(abs(math.log10(sigma) + 2) < 0.75 for sigma in late("tpe", bowl))
    assert near >= 9  # of 12; half of the range is that near


def test_a_failed_configuration_is_told_to_tpe():
    read = sampled("tpe", trials=12)
    rounds = play(read.arms[1].space, read.tuning, 12, {}, lambda c: math.nan if c["sigma"] > 0.1 else bowl(c))
    assert sum(map(len, rounds)) == 12


def test_the_best_is_finite_and_first_of_equals():
    assert best([3.0, math.nan, 1.0, 1.0], "lower") == 2
    assert best([3.0, math.nan, 1.0, 3.0], "higher") == 0
    assert best([math.nan, math.nan], "lower") == 0
    assert best([math.inf, 2.0], "lower") == 1


def test_the_order_of_names_in_a_file_changes_nothing():
    read = sampled("random", trials=6)
    space = {**read.arms[1].space, "learning_rate": read.arms[1].space["sigma"]}
    turned = dict(reversed(space.items()))
    first, second = (play(each, read.tuning, 6, {}, lambda c: 1.0) for each in (space, turned))
    assert first == second


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_no_configuration_is_tried_twice(sampler):
    text = TUNED.replace("seeds = 2", f'sampler = "{sampler}"\ntrials = 3\nbaseline_trials = 2')
    read = study(text)
    rounds = play(read.arms[1].space, read.tuning, 3, {}, lambda c: c["sigma"])
    assert sorted(c["sigma"] for asked in rounds for c in asked) == [0.01, 0.1, 0.5]


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_every_search_draws_for_itself(sampler):
    """One space, searched in other arms, cells or stages, and with another seed of the sampler."""
    read = sampled(sampler, trials=5)
    space, other_seed = read.arms[1].space, read.tuning.model_copy(update={"sampler_seed": 1})
    found = [
        play(space, tuning, 5, {}, bowl, stream=stream)
        for tuning, stream in ((read.tuning, "a arm leap"), (read.tuning, "b arm leap"), (other_seed, "a arm leap"))
    ]
    first = {configuration["sigma"] for rounds in found for asked in rounds for configuration in asked}
    assert len(first) == 3 * 5
    plan = plan_cell(read, read.cells[0])
    rounds = [next(plan)]
    rounds.append(plan.send({spec.key: 1.0 for spec in rounds[0]}))
    keeps = [spec.settings["learning_rate"] for spec in rounds[1] if spec.arm.name == "vanilla"]
    shares = [
        (spec.arm.perturbations[0].distribution.mean - 0.3) / 0.4 for spec in rounds[1] if "drop" in spec.arm.name
    ]
    rates = [(rate - 0.01) / 0.99 for rate in keeps]
    assert len(rates) == len(shares) > 0
    assert all(abs(rate - share) > 1e-9 for rate, share in zip(rates, shares, strict=True))


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_what_was_trained_before_does_not_count(sampler):
    text = TUNED.replace("seeds = 2", f'sampler = "{sampler}"\ntrials = 3\nbaseline_trials = 2')
    text = text.replace("[0.5, 0.1, 0.01]", "[0.5, 0.1, 0.05, 0.01, 0.005]").replace(
        "[0.3, 0.5, 0.7]", "[0.2, 0.3, 0.5, 0.7]"
    )
    read = study(text.replace("[0.5, 1, 2]", "[0.5, 1, 2, 4]"))
    known = {0.5, 0.1}
    for trials, new in ((2, 2), (3, 3), (4, 3)):  # three are left: then it ends
        rounds = play(
            read.arms[1].space,
            read.tuning,
            trials,
            {},
            bowl,
            is_known=lambda configuration: configuration["sigma"] in known,
        )
        tried = [configuration["sigma"] for asked in rounds for configuration in asked]
        assert len(tried) == len(set(tried))
        assert len(set(tried) - known) == new
    # In a whole plan: the baseline tried 0.1 and 0.2, which are among vanilla's multiples of 0.1.
    vanilla = next(tuned for tuned in plan_of(read).tuned if tuned.arm == "vanilla")
    assert (len(vanilla.configurations), vanilla.known, vanilla.budget) == (4, 2, 3)
    assert vanilla.choice["learning_rate"] == 0.05
    assert search_warnings(vanilla, read.arms[0].space)[-2:] == [
        "The baseline's search had trained 2 of the 4 configurations already: 2 are new.",
        "The search trained 2 of 3 configurations, and its space has no others: its budget was smaller than planned.",
    ]


def plan_of(read):
    """The played cell; a trial's value is its rate."""
    plan, values = plan_cell(read, read.cells[0]), None
    try:
        asked = next(plan)
        while True:
            values = {spec.key: spec.settings["learning_rate"] for spec in asked}
            asked = plan.send(values)
    except StopIteration as end:
        return end.value
