"""A study file is checked before anything runs, and what is wrong is said with file, line and field."""

import pytest
from studies import TUNED, study

from flatter.study.check import check_study
from flatter.study.spec import Choices, Range, StudyError, Times, parse_study, read_study


def test_a_study_file_is_read(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(TUNED)
    read = read_study(path)
    assert read.name == "mine"
    assert [cell.task for cell in read.cells] == ["quick_tasks:QUICK"]
    assert read.tuning.seeds == (1000, 1001)
    assert read.final.seeds == (0, 1, 2, 3, 4, 5)
    assert read.tuning.baseline == {"learning_rate": Choices(values=(0.1, 0.2))}
    assert read.arms[0].space == {"learning_rate": Times(times=(0.5, 1.0, 2.0))}
    assert [arm.name for arm in read.arms] == ["vanilla", "leap", "lr_dropout"]
    assert read.trials_per_arm == 3
    check_study(read)


def test_a_range_is_for_samplers():
    text = TUNED.replace("seeds = 2", 'seeds = 2\nsampler = "tpe"\ntrials = 4\nbaseline_trials = 3')
    read = study(text.replace("[0.5, 0.1, 0.01]", "{ low = 0.01, high = 1, log = true }"))
    assert read.arms[1].space == {"sigma": Range(low=0.01, high=1.0, log=True)}
    assert read.trials_per_arm == 4


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[final]", "[final", r"mine.toml is not valid TOML: .*line 15"),
        ("seeds = 6", "sedes = 6", r"mine.toml, line 16: there is no field final.sedes, did you mean seeds\?"),
        ("seeds = 6", "seeds = 0", r"line 16: final.seeds = 0: expected 1 to 10,000 seeds"),
        ("seeds = 6", "seeds = [1, 2, 1]", r"line 16: final.seeds: a seed stands twice"),
        ("seeds = 6", "seeds = [1000]", r"tuning.seeds and final.seeds share a seed"),
        ("seeds = 6", "seeds = true", r"line 16: final.seeds = True: expected a number of seeds"),
        ("seeds = 6", "level = 1.5", r"line 16: final.level = 1.5: input should be less than 1"),
        ("[0.5, 0.1, 0.01]", "[]", r"line 11: arms.1.space.sigma.values is empty"),
        ("[0.5, 0.1, 0.01]", "[0.5, 0.5, 0.1]", r"line 11: arms.1.space.sigma: a value stands twice"),
        ("[0.5, 0.1, 0.01]", "0.5", r"line 11: arms.1.space.sigma = 0.5: expected a list of values"),
        ("[0.5, 0.1, 0.01]", "{ low = 1, high = 0 }", r"line 11: arms.1.space.sigma: low must be below high"),
        ("[0.5, 0.1, 0.01]", "{ low = 0, high = 1 }", r"arm 'leap': space.sigma is a range, which has no grid"),
        ("[0.5, 0.1, 0.01]", "{ low = 0, high = 1, log = true }", r"needs low above 0"),
        ("[0.5, 0.1, 0.01]", "[0.5, 0.1]", r"unequal tuning budgets \(vanilla 3, leap 2, lr_dropout 3 configur"),
        ("seeds = 2", "trials = 4", r"'vanilla': space has a grid of 3 configurations, but the budget is 4"),
        ("[0.1, 0.2]", "{ times = [1, 2] }", r"baseline.learning_rate: times are factors of the baseline's choice"),
        ("seeds = 2", 'sampler = "gird"', r"line 4: tuning.sampler = 'gird': input should be 'grid', 'random' or"),
        ("seeds = 2", 'sampler = "tpe"', r"baseline_trials is missing"),
        ("seeds = 2", 'sampler = "tpe"\nbaseline_trials = 2', r"tuning.trials is missing"),
        (
            'method = "vanilla"',
            'method = "vanilla"\nsettings.momentum = 0.5',
            r"vanilla is the training without a method",
        ),
        ('method = "leap"', 'method = "lr_dropout"', r"two arms are named 'lr_dropout'"),
        ('"vanilla"', '"ralr"', r"no arm vanilla to compare with"),
        ('task = "quick_tasks:QUICK"', "", r"mine.toml: cells is missing"),
        ('task = "quick_tasks:QUICK"', 'task = "a"\ncells = [{ task = "b" }]', r"either task = '...' or \[\[cells\]\]"),
        ('task = "quick_tasks:QUICK"', 'task = "a"\nname = "a/b"', r"line 3: name = 'a/b'"),
    ],
)
def test_what_is_wrong_is_said(old, new, message):
    assert old in TUNED
    with pytest.raises(StudyError, match=message) as error:
        parse_study(TUNED.replace(old, new, 1), name="mine", source="mine.toml")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("quick_tasks:QUICK", "mnist-mpl-3", r"cell 'mnist-mpl-3': there is no task .* did you mean 'mnist-mlp-3'"),
        ("quick_tasks:QUICK", "no_such_module:TASK", r"there is no module 'no_such_module'|no module 'no_such_module'"),
        ("quick_tasks:QUICK", "quick_tasks:TASK", r"the module 'quick_tasks' has no 'TASK'"),
        ("quick_tasks:QUICK", "quick_tasks:train", r"is a function, not a flatter.Task"),
        ('"leap"', '"laep"', r"arm 'laep'.*there is no method 'laep': did you mean 'leap'"),
        ("sigma", "sigam", r"arm 'leap': there is nothing to tune called 'sigam': did you mean 'sigma'"),
        ("[0.5, 0.1, 0.01]", "[0.5, -0.1, 0.01]", r"arm 'leap': Normal: the standard deviation"),
        ("[0.3, 0.5, 0.7]", "[0.3, 0.5, 1.7]", r"arm 'lr_dropout'.*keep"),
        (
            "baseline.learning_rate = [0.1, 0.2]",
            "baseline.learning_rate = [0.1, -0.2]",
            r"tuning.baseline.*greater than 0",
        ),
        ("baseline.learning_rate", "baseline.rate", r"nothing to tune called 'rate'"),
        ("space.learning_rate = ", "space.schedule = ", r"schedule = 'constant' is no number"),
        ("[tuning]", "[settings]\nepoch = 3\n[tuning]", r"there is no setting 'epoch', did you mean 'epochs'"),
    ],
)
def test_what_cannot_be_built_is_said_before_the_first_trial(old, new, message):
    assert old in TUNED
    with pytest.raises(StudyError, match=message) as error:
        check_study(study(TUNED.replace(old, new, 1)))
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path):
    with pytest.raises(StudyError, match=r"cannot read the study file .*none.toml: No such file"):
        read_study(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b"name = '\xe9'")
    with pytest.raises(StudyError, match="not a text file in UTF-8"):
        read_study(tmp_path / "latin.toml")
