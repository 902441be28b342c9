"""Study files near their schema: each is a study with exactly the trials that it says, or an error with its place."""

import json
import math
import re

from fuzzing import fuzz
from hypothesis import event, given
from hypothesis import strategies as st

from flatwise.study.check import check_study
from flatwise.study.plan import plan_cell
from flatwise.study.registry import get_task
from flatwise.study.spec import StudyError
from flatwise.study.study_file import parse_study

SETTINGS = {
    "learning_rate": [0.2, 0.1, 0.05, 0.01],
    "weight_decay": [0.0, 1e-4, 1e-3],
    "epochs": [1, 3, 20],
    "momentum": [0.0, 0.5, 0.95],
    "batch_size": [16, 64],
}
ARGUMENTS = {
    "leap": {"sigma": [0.5, 0.1, 0.05, 0.01]},
    "lr_dropout": {"keep": [0.3, 0.5, 0.9, 1.0]},
    "random_lr": {"alpha": [2.0, 4.0, 8.0], "beta": [0.3, 0.6]},
    "ralr": {"high": [1.5, 2.0, 3.0], "p": [0.2, 0.5]},
    "gaussian_peak": {"height": [1.5, 3.0, 5.0]},
    "vanilla": {},
}
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.integers(-3, 12),
    st.floats(),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    st.sampled_from(
        ["vanilla", "leap", "leep", "fair", "grid", "gird", "digits-mlp", "nowhere:TASK", "..:x", "1/0", "é"]
    ),
    st.lists(st.one_of(st.integers(-3, 5), st.floats(), st.text(max_size=3), st.booleans()), max_size=4),
    st.dictionaries(
        st.sampled_from(["times", "low", "high", "log", "sigma", "a b", "é", "a\nb"]), st.floats(0, 3), max_size=3
    ),
    st.builds(lambda: [[]]),  # a new one each time: a further change may be inside of it
)
UNKNOWN = ["sedes", "learning_rate", "", "a.b", "é", "name", "trials", "threads", "a\nb", "\x1b[0m"]


# Writing TOML.


def toml(document):
    """The document; tables of the first level have headers, what is deeper stands on one line."""
    lines = [f"{key(name)} = {value(item)}" for name, item in document.items() if not is_table(item)]
    for name, item in document.items():
        if isinstance(item, dict):
            lines += [f"[{key(name)}]", *(f"{key(inner)} = {value(each)}" for inner, each in item.items())]
        elif is_table(item):
            for each in item:
                lines += [f"[[{key(name)}]]", *(f"{key(inner)} = {value(deep)}" for inner, deep in each.items())]
    return "\n".join(lines) + "\n"


def is_table(item):
    return isinstance(item, dict) or (isinstance(item, list) and item != [] and all(isinstance(e, dict) for e in item))


def key(name):
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else value(name)


def value(item):
    if item is None:
        return '""'
    if isinstance(item, bool):
        return "true" if item else "false"
    if isinstance(item, str):
        return json.dumps(item, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(item, float):
        return repr(item)
    if isinstance(item, list):
        return f"[{', '.join(map(value, item))}]"
    if isinstance(item, dict):
        return "{ " + ", ".join(f"{key(name)} = {value(each)}" for name, each in item.items()) + " }"
    return str(item)


# Documents: right ones, and a few changes to them.


@st.composite
def spaces(draw, names, size, ranges):
    """A space over one or two names; of `size` configurations where it has no range."""
    space = {}
    name = draw(st.sampled_from(sorted(names)))
    if ranges and name not in ("epochs", "batch_size") and draw(st.booleans()):
        low = min(names[name]) or 0.001
        space[name] = {"low": low, "high": max(names[name]) * 1.01}
        return space
    chosen = draw(st.permutations(names[name]))[:size]
    if len(chosen) == size:
        space[name] = list(chosen)
        return space
    return {"learning_rate": {"times": draw(st.permutations([0.5, 1.0, 2.0, 0.35, 4.0]))[:size]}}


@st.composite
def documents(draw):
    sampler = draw(st.sampled_from(["grid", "grid", "random", "tpe"]))
    size = draw(st.integers(1, 4))
    tuned = draw(st.integers(0, 3)) > 0
    ranges = sampler != "grid"
    arms = []
    for method in ["vanilla", *draw(st.lists(st.sampled_from(sorted(ARGUMENTS)), max_size=3, unique=True))]:
        arm = {"method": method}
        if method == "vanilla" and arms:
            arm |= {"name": "comparator", "settings": {"weight_decay": 0.01}}
        if tuned:
            names = ARGUMENTS[method] if ARGUMENTS[method] and draw(st.booleans()) else SETTINGS
            if "settings" in arm:
                names = {name: values for name, values in names.items() if name != "weight_decay"}
            arm["space"] = draw(spaces(names, size, ranges))
        arms.append(arm)
    document = {"arms": arms}
    if draw(st.booleans()):
        document["task"] = draw(st.sampled_from(["digits-mlp", "mnist-mlp-3"]))
    else:
        count = draw(st.integers(1, 3))
        document["cells"] = [{"task": "digits-mlp", "name": f"cell {number}"} for number in range(count)]
        for cell in document["cells"]:
            if draw(st.booleans()):
                cell["settings"] = {"epochs": draw(st.integers(1, 9))}
    document["final"] = {"seeds": draw(st.one_of(st.integers(1, 5), st.just([3, 1])))}
    if draw(st.booleans()):
        document["final"]["controls"] = draw(st.booleans())
    if tuned:
        tuning = document["tuning"] = {"sampler": sampler}
        if draw(st.booleans()):
            tuning["seeds"] = draw(st.integers(1, 3))
        if sampler != "grid":
            tuning["trials"] = size
        if draw(st.booleans()):
            tuning["baseline"] = draw(spaces(SETTINGS, draw(st.integers(1, 3)), ranges))
            if any("times" in dimension for dimension in tuning["baseline"].values() if isinstance(dimension, dict)):
                tuning["baseline"] = {"learning_rate": [0.1, 0.2]}
            if sampler != "grid":
                tuning["baseline_trials"] = 1
    return document


def places(document, path=()):
    """Every key and position of the document."""
    for step, item in document.items() if isinstance(document, dict) else enumerate(document):
        yield (*path, step)
        if isinstance(item, (dict, list)):
            yield from places(item, (*path, step))


@st.composite
def changed(draw):
    document = json.loads(json.dumps(draw(documents())))
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 2, 3]))):
        found = list(places(document))
        if not found:
            break
        *path, last = draw(st.sampled_from(found))
        table = document
        for step in path:
            table = table[step]
        how = draw(st.sampled_from(["junk", "junk", "remove", "rename", "twice", "unknown"]))
        if how == "junk":
            table[last] = draw(JUNK)
        elif how == "remove":
            del table[last]
        elif how == "rename" and isinstance(table, dict):
            letters = list(last)
            draw(st.randoms(use_true_random=False)).shuffle(letters)
            table["".join(letters)] = table.pop(last)
        elif how == "twice" and isinstance(table, list):
            table.append(json.loads(json.dumps(table[last])))
        elif isinstance(table, dict):
            table[draw(st.sampled_from(UNKNOWN))] = draw(JUNK)
    return document


# What a right document runs.


def settings_of(cell, *changes):
    """Settings that a trial has, as numbers: 1 and 1.0 are one."""
    values = get_task(cell.task).settings.model_dump()
    for change in changes:
        values |= change
    return tuple(
        sorted(
            (name, repr(float(item)) if isinstance(item, (int, float)) else str(item)) for name, item in values.items()
        )
    )


def size_of(space):
    """Configurations of a space; infinity for a range."""
    sizes = [
        math.inf if isinstance(each, dict) and "low" in each else len(each["times"] if isinstance(each, dict) else each)
        for each in space.values()
    ]
    return math.prod(sizes)


def has_own_control(arm, choice):
    """Whether a method's control is not simply vanilla with the same settings: its mean factor is not 1."""
    given = {**arm.get("arguments", {}), **choice}
    mean = {
        "leap": 1.0,
        "lr_dropout": given.get("keep", 0.5),
        "random_lr": given.get("alpha", 8.0) / 2,
        "ralr": 1 + given.get("p", 0.2) * ((given.get("low", 1.0) + given.get("high", 4.0)) / 2 - 1),
        "gaussian_peak": math.nan,
    }[arm["method"]]
    return mean != 1


def played(study, cell):
    """The cell's plan, told a value by each trial's key; how many trials each of its rounds has."""
    plan, rounds = plan_cell(study, cell), []
    try:
        asked = next(plan)
        while True:
            rounds.append(asked)
            asked = plan.send({spec.key: float(int(spec.key[:6], 16)) for spec in asked})
    except StopIteration as end:
        return end.value, rounds


def check_trials(document, study):
    tuning = document.get("tuning", {})
    given = tuning.get("seeds", 1)
    tuning_seeds = given if isinstance(given, int) else len(given)
    given = document.get("final", {}).get("seeds", 10)
    final_seeds = given if isinstance(given, int) else len(given)
    cells = document.get("cells") or [{"task": document["task"]}]
    for cell, written in zip(study.cells, cells, strict=True):
        result, rounds = played(study, cell)
        base = {**document.get("settings", {}), **written.get("settings", {})}
        searches = (
            [] if result.baseline is None else [(result.baseline, tuning["baseline"], tuning.get("baseline_trials"))]
        )
        searches += [
            (tuned, arm.get("space", {}), tuning.get("trials"))
            for tuned, arm in zip(result.tuned, document["arms"], strict=True)
        ]
        for tuned, space, trials in searches:
            if not space:
                assert tuned.configurations == ({},)
            elif tuning.get("sampler", "grid") == "grid":
                assert len(tuned.configurations) == size_of(space)
            else:
                assert len(tuned.configurations) - tuned.known == min(trials, size_of(space) - tuned.known)
            shown = [repr(configuration) for configuration in tuned.configurations]
            assert len(set(shown)) == len(shown)
        # Every configuration is trained on every seed; each arm, in the end, and each control that is not vanilla.
        asked = [spec for each in rounds[:-1] for spec in each]
        assert len(asked) == tuning_seeds * sum(len(tuned.configurations) for tuned, space, _ in searches if space)
        start = result.baseline.choice if result.baseline else {}
        vanilla, count = None, 0
        trained = {}
        for tuned, arm in zip(result.tuned, document["arms"], strict=True):
            own = {name: each for name, each in tuned.choice.items() if name not in ARGUMENTS.get(arm["method"], {})}
            trained[arm.get("name") or arm["method"]] = settings_of(cell, base, start, arm.get("settings", {}), own)
        vanilla = trained["vanilla"]
        for tuned, arm in zip(result.tuned, document["arms"], strict=True):
            count += 1
            if arm["method"] != "vanilla" and document.get("final", {}).get("controls", True):
                same = trained[arm.get("name") or arm["method"]] == vanilla
                count += has_own_control(arm, tuned.choice) or not same
        assert len(rounds[-1]) == count * final_seeds


@fuzz(300)
@given(changed())
def test_a_file_is_a_study_or_an_error_with_its_place(document):
    text = toml(document)
    try:
        study = parse_study(text, name="fuzz", source="fuzz.toml")
        check_study(study, source="fuzz.toml", text=text)
    except StudyError as error:
        message = str(error)
        event("an error")
        assert message.startswith("fuzz.toml"), (message, text)
        # What is missing altogether is on no line.
        assert re.search(r"\bline \d+|^fuzz.toml: (arms|cells) is missing(; |$)", message), (message, text)
        assert message.isprintable(), (message, text)
    else:
        event("a study")
        tuning = document.get("tuning", {})
        if max(tuning.get("trials", 0), tuning.get("baseline_trials", 0)) <= 100:  # TPE's time grows with their square
            check_trials(document, study)
