"""A study file is checked before anything runs, and what is wrong is said with file, line and field."""

from pathlib import Path

import pytest

from flatwise.study.check import check_study
from flatwise.study.spec import Choices, Range, StudyError, Times
from flatwise.study.study_file import parse_study, read_study, read_study_text
from studies import TUNED, study


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
    text = TUNED.replace("seeds = 2", 'seeds = 2\nsampler = "tpe"\ntrials = 3\nbaseline_trials = 2')
    read = study(text.replace("[0.5, 0.1, 0.01]", "{ low = 0.01, high = 1, log = true }"))
    assert read.arms[1].space == {"sigma": Range(low=0.01, high=1.0, log=True)}
    assert read.trials_per_arm == 3
    check_study(read)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[final]", "[final", r"mine.toml is not valid TOML: .*line 15"),
        ("seeds = 6", "sedes = 6", r"mine.toml, line 16: there is no field final.sedes, did you mean seeds\?"),
        ("seeds = 6", r'"see\nds" = 6', r"line 16: there is no field final.'see\\nds', did you mean seeds\?"),
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
        ('method = "leap"', 'method = "leap"\nname = ""', r"line 11: arms.1.name = '': string should have at least 1"),
        ('task = "quick_tasks:QUICK"', 'cells = [{ task = "a", name = "" }]', r"line 2: cells.0.name = '': string"),
        ("seeds = 2", 'sampler = "random"\ntrials = 3\nbaseline_trials = 8', r"tuning.baseline has only 2 .* 8: widen"),
        ("seeds = 2", "sampler_seed = 1", r"line 3: tuning: sampler_seed is for the samplers random and tpe"),
        ("seeds = 2", "round_size = 2", r"line 3: tuning: round_size is for the sampler tpe, not for grid"),
        ("seeds = 2", 'sampler = "random"\nround_size = 2', r"line 3: tuning: round_size .* not for random"),
        ("baseline.learning_rate = [0.1, 0.2]", "baseline_trials = 2", r"baseline_trials is given, but no baseline"),
        ("seeds = 2", "trials = true", r"line 4: tuning.trials = True: input should be a valid integer"),
        ('"leap"', '"leap"\narguments.sigma = 1', r"line 9: arms.1: arguments.sigma is fixed beside space.sigma"),
        ('"leap"', '"leap"\nsettings.epochs = 1\nspace.epochs = [1]', r"settings.epochs is fixed beside space.epochs"),
        ('"leap"', '"leap"\narguments.sigma = true', r"arguments.sigma = True: input should be a valid number"),
        (
            "[tuning]",
            "threads = 100000000000\n[tuning]",
            r"line 3: threads = 100000000000: expected 1 to 1024, or 'fair'$",
        ),
        ("[tuning]", "threads = true\n[tuning]", r"threads = True: expected 1 to 1024, or 'fair'$"),
        ("[0.1, 0.2]", "[" * 3000 + "]" * 3000, r"mine.toml is not a study: its lists or tables are nested too deeply"),
        ("[0.1, 0.2]", "1" * 5000, r"mine.toml is not valid TOML: "),
        (
            "seeds = 6",
            "seeds = [100000000000000000000]",
            r"line 16: final.seeds: a seed is a whole number from 0 to 2\*",
        ),
        ("seeds = 6", "seeds = [9223372036854775808]", r"a seed is a whole number from 0 to 2\*\*63 - 1; got 92"),
        ("seeds = 6", 'seeds = [1, 1.0, "1", true, 2]', r"final.seeds: a seed is a whole number .*; got 1.0$"),
        ("seeds = 6", "seeds = [1, true]", r"; got True$"),
        ("seeds = 6", "seeds = [-1]", r"; got -1$"),
        ("[tuning]", "settings.x = nan\n[tuning]", r"^mine.toml, line 3: settings.x = nan: expected a finite number$"),
        ("[tuning]", "settings.x = [1, inf]\n[tuning]", r"^mine.toml, line 3: settings.x: expected a finite number$"),
        ("[tuning]", "settings.x = 2020-01-01\n[tuning]", r"settings.x: expected a number, a text, true or false$"),
        (
            "[0.5, 0.1, 0.01]",
            "[nan]",
            r"^mine.toml, line 11: arms.1.space.sigma.values.0 = nan: expected a finite number$",
        ),
        ("[0.5, 0.1, 0.01]", f"[{2**70}]", r"expected a number of at most 64 bits$"),
        ("[0.5, 1, 2]", "[nan]", r"^mine.toml, line 8: arms.0.space.learning_rate.times.0 = nan: [^;]*$"),
    ],
)
def test_what_is_wrong_is_said(old, new, message):
    assert old in TUNED
    with pytest.raises(StudyError, match=message) as error:
        parse_study(TUNED.replace(old, new, 1), name="mine", source="mine.toml")
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("quick_tasks:QUICK", "mnist-mpl-3", r"cell 'mnist-mpl-3': there is no task .* did you mean 'mnist-mlp-3'"),
        ("quick_tasks:QUICK", r"digits-mlp\u001b[0m", r"there is no task 'digits-mlp\\x1b\[0m': did you mean"),
        ("quick_tasks:QUICK", r"quick_tasks\n:QUICK", r"'quick_tasks\\n:QUICK' names no task"),
        ("quick_tasks:QUICK", "no_such_module:TASK", r"there is no module 'no_such_module'|no module 'no_such_module'"),
        ("quick_tasks:QUICK", "quick_tasks:TASK", r"the module 'quick_tasks' has no 'TASK'"),
        ("quick_tasks:QUICK", "quick_tasks:train", r"is a function, not a flatwise.Task"),
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
        ("[0.5, 0.1, 0.01]", '["a", "b", "c"]', r"arm 'leap': sigma = 'a' is no number"),
        ("[tuning]", "[settings]\nepoch = 3\n[tuning]", r"there is no setting 'epoch', did you mean 'epochs'"),
        ("[tuning]", '[settings]\n"ep\\noch" = 3\n[tuning]', r"there is no setting 'ep\\noch', did you mean 'epochs'"),
    ],
)
def test_what_cannot_be_built_is_said_before_the_first_trial(old, new, message):
    assert old in TUNED
    with pytest.raises(StudyError, match=message) as error:
        check_study(study(TUNED.replace(old, new, 1)))
    assert str(error.value).isprintable()


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path):
    with pytest.raises(StudyError, match=r"cannot read the study file .*none.toml: No such file"):
        read_study(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b"name = '\xe9'")
    with pytest.raises(StudyError, match="not a text file in UTF-8"):
        read_study(tmp_path / "latin.toml")


def test_a_sampler_is_not_given_more_trials_than_an_arm_has_configurations():
    text = TUNED.replace("seeds = 2", 'sampler = "random"\ntrials = 8\nbaseline_trials = 2')
    text = text.replace("{ times = [0.5, 1, 2] }", "{ low = 0.1, high = 1 }").replace("[0.5, 0.1, 0.01]", "[0.1]")
    message = "arm 'leap' has only 1 configuration, but the budget is 8: widen its space, or use sampler = 'grid'"
    with pytest.raises(StudyError, match=message):
        study(text)
    assert study(text.replace("[0.1]", "{ low = 0.1, high = 1 }").replace("[0.3, 0.5, 0.7]", "{ low = 0.1, high = 1 }"))


@pytest.mark.parametrize("given", ["seeds = 2", "trials = 4", 'sampler = "random"'])
def test_what_is_said_of_a_tuning_that_there_is_not_is_refused(given):
    text = f'task = "quick_tasks:QUICK"\narms = [{{ method = "vanilla" }}]\n[tuning]\n{given}'
    with pytest.raises(StudyError, match=rf"tuning.{given.split()[0]} is given, but nothing is tuned"):
        study(text)
    if given == "trials = 4":
        with pytest.raises(StudyError, match=r"tuning.trials is given, but no arm has a space"):
            study(text + "\nbaseline.learning_rate = [1, 2, 3, 4]")


IMAGES = """
task = "cifar10-resnet20"
[[arms]]
method = "vanilla"
{arm}
[tuning]
{tuning}
"""


def images(arm="", tuning=""):
    return study(IMAGES.format(arm=arm, tuning=tuning))


@pytest.mark.parametrize(
    ("arm", "tuning", "message"),
    [
        (
            "",
            'baseline = { optimizer = ["sgd", "adagrad"], momentum = [0.5, 0.9] }',
            r"tuning.baseline: momentum = 0.5: a",
        ),
        (
            "space = { cutmix = [0, 1], mixup = [0, 1] }",
            "",
            r"arm 'vanilla': cutmix = 1: mixup is on.*\(with cutmix = 1, m",
        ),
        ('settings.optimizer = "adagrad"\nname = "other"', "baseline.momentum = [0.9]", "adagrad has no momentum"),
        ("space.optimizer = ['sgd', 'adagrad']", "baseline.momentum = [0.9]", "adagrad has no momentum"),
        (
            "space.momentum = { times = [1, 1.5] }",
            "baseline.momentum = [0.5, 0.9]",
            r"momentum = 1.35: input should be less",
        ),
        ("space.momentum = { times = [1, 1.1] }", "", r"momentum = None is no number"),
        ("space.epochs = { low = 1, high = 5 }", "sampler = 'random'\ntrials = 2", r"epochs cannot be a range"),
        ("space.augment = { low = 0, high = 1 }", "sampler = 'random'\ntrials = 2", r"augment cannot be a range"),
        (
            "space.momentum = { low = 0.1, high = 1 }",
            "sampler = 'random'\ntrials = 2",
            r"momentum = 1.0: input should be less",
        ),
    ],
)
def test_configurations_are_checked_as_they_would_run(arm, tuning, message):
    if "name" in arm:
        arm += '\n[[arms]]\nmethod = "vanilla"'
    with pytest.raises(StudyError, match=message):
        check_study(images(arm, tuning))


@pytest.mark.parametrize(
    ("arm", "tuning"),
    [
        ("space.momentum = { times = [0.5, 1] }", "baseline.momentum = [0.5, 0.9]"),
        ("space = { cutmix = [1.0], cutmix_probability = [0.3] }", ""),
        ("", "baseline = { cutmix = [1.0], cutmix_probability = [0.3, 0.4] }"),
        ("space.momentum = { low = 0.1, high = 0.9 }", "sampler = 'random'\ntrials = 2"),
    ],
)
def test_values_that_are_right_together_are_accepted(arm, tuning):
    check_study(images(arm, tuning))


def test_of_a_large_grid_every_value_is_checked():
    rates = [0.1 + i / 1000 for i in range(50)]
    large = f"baseline = {{ learning_rate = {rates}, weight_decay = {rates}, label_smoothing = [0, 0.5, X] }}"
    check_study(images("", large.replace("X", "0.9")))
    with pytest.raises(StudyError, match="label_smoothing = 1: input should be less than 1"):
        check_study(images("", large.replace("X", "1")))
    with pytest.raises(StudyError, match="cutmix = 1: mixup is on too"):
        check_study(images("space = { mixup = [0, 1], cutmix = [0, 1] }", large.replace("X", "0.9")))


def test_arms_may_not_be_called_as_their_controls():
    two = TUNED.replace('method = "lr_dropout"', 'method = "lr_dropout"\nname = "leap (control)"')
    two = two.replace("space.sigma = [0.5, 0.1, 0.01]", "space.learning_rate = [0.5, 0.1, 0.01]")
    with pytest.raises(StudyError, match=r"two arms are named 'leap \(control\)': give each its own name"):
        check_study(study(two))
    check_study(study(two.replace("seeds = 6", "seeds = 6\ncontrols = false")))


def test_an_argument_outside_its_default_range_needs_its_partner():
    """What an arm is with its arguments' defaults is not what is tuned: only its configurations are built."""
    text = TUNED.replace('"leap"', '"ralr"\narguments.low = 5').replace("sigma = [0.5, 0.1, 0.01]", "high = [6, 7, 8]")
    check_study(study(text))


def test_a_text_as_an_argument_of_a_peak_is_refused():
    text = TUNED.replace('"leap"', '"gaussian_peak"').replace("sigma = [0.5, 0.1, 0.01]", "height = ['a', 'b', 'c']")
    with pytest.raises(StudyError, match="arm 'gaussian_peak': height = 'a' is no number"):
        check_study(study(text))


@pytest.mark.parametrize(
    ("stem", "name"),
    [("my study", "my-study"), ("-a+b", "a-b"), ("größe", "gr--e"), ("...", "study"), ("v1.2_x", "v1.2_x")],
)
def test_a_file_can_be_called_anything(tmp_path, stem, name):
    path = tmp_path / f"{stem}.toml"
    path.write_text(TUNED)
    assert read_study(path).name == name
    assert read_study_text(Path(path)) == TUNED


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("quick_tasks:QUICK", "mnist-mpl-3", 2),
        ("[0.1, 0.2]", "[0.1, -0.2]", 5),
        ("baseline.learning_rate", "baseline.rate", 5),
        ('"leap"', '"laep"', 10),
        ("sigma", "sigam", 11),
        ("[0.5, 0.1, 0.01]", "[0.5, -0.1, 0.01]", 11),
        ("space.keep", "settings.epochs = 0\nspace.keep", 14),
        ("[tuning]", "settings.epoch = 3\n[tuning]", 3),
        (
            '"leap"',
            '"leap"\nname = "ralr (control)"\nspace.sigma = [1, 2, 3]\n'
            '[[arms]]\nmethod = "ralr"\nspace.low = [1, 1.1, 1.2]',
            11,
        ),
    ],
)
def test_what_cannot_be_built_is_said_with_its_line(old, new, line):
    assert old in TUNED
    text = TUNED.replace(old, new, 1)
    if "control" in new:
        text = text.replace("space.sigma = [0.5, 0.1, 0.01]\n", "")
    with pytest.raises(StudyError, match=rf"^my.toml, line {line}: study test, cell "):
        check_study(study(text), source="my.toml", text=text)


def test_the_line_of_a_cell_is_that_of_the_file_when_others_are_left_out():
    cells = '[[cells]]\ntask = "digits-mlp"\n[[cells]]\ntask = "digits-mlp"\nname = "b"\nsettings.epochs = 0\n'
    text = f'{cells}[[arms]]\nmethod = "vanilla"'
    with pytest.raises(StudyError, match=r"^my.toml, line 6: study test, cell 'b': epochs = 0: input should be"):
        check_study(study(text).with_cells(["b"]), source="my.toml", text=text)
