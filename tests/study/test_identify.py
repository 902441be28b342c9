"""What a training function is known by: whatever it depends on counts, nothing else does, in every process the same."""

import copy
import importlib
import json
import os
import random
import subprocess
import sys
import threading
from argparse import Namespace
from collections import OrderedDict, defaultdict
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import BaseModel

from flatwise.study.identify import NotIdentifiableError, _version, identify, plain_data

PROGRAM = '''
import dataclasses, enum, functools, threading
import numpy as np, torch
from argparse import Namespace
from pathlib import Path
from pydantic import BaseModel, Field
import {library} as library
from {library} import taken, Taken

RATE = 1                                          # constant
NAMES = {{"a", "b", "c"}}                         # constant in a set
SETTINGS = {{"rate": 0.1, "inner": [1, (2, 3)]}}  # nested
WEIGHTS = torch.ones(3)
ARRAY = np.arange(3.0)
SCALAR = np.float32(0.5)
PATH = Path("data") / "mine"
SPACE = Namespace(rate=0.1)
DEVICE = torch.device("cpu")
DTYPE = torch.float32
GENERATOR = torch.Generator().manual_seed(5)
CLASS_DEFAULT = 11
LOCK = threading.Lock()
UNUSED = 7

class Colour(enum.Enum):
    RED = 21
    BLUE = 22

@dataclasses.dataclass(frozen=True)
class Config:
    rate: float = CLASS_DEFAULT
    layers: list = dataclasses.field(default_factory=lambda: [64, 65])
CONFIG = Config(rate=0.31)

class Model(BaseModel):
    width: int = Field(default=41, gt=0)
MODEL = Model(width=43)

class Base:
    slope = 51
    def __init__(self):
        self.value = 52
    def shared(self):
        return 53
class Net(Base):
    def forward(self, x):
        def inner():
            return [helper(i) for i in range(3)]
        return inner() + x.unused_attribute + [self.UNUSED]
    @property
    def size(self):
        return 54
    @staticmethod
    def static():
        return 55
    @classmethod
    def made(cls):
        return cls()
NET = Net()
NET.value = 56

def helper(x):
    return deeper(x) + 61
def deeper(x, offset=62, *, scale=63):
    return (lambda: x + RATE + offset)() if x < 2 else even(x)
def even(n):
    return n == 0 or odd(n - 1) or 64
def odd(n):
    return n == 1 or even(n - 1) or 65
def unused():
    return 66

@functools.lru_cache
def cached():
    return 71
def decorate(f):
    @functools.wraps(f)
    def wrapper(*given):
        return f(*given) + 72
    return wrapper
@decorate
def decorated():
    return 73
@torch.no_grad()
def without_gradients():
    return 74
PARTIAL = functools.partial(deeper, 75)

def make(captured):
    def closure():
        return captured
    return closure
CLOSURE = make(81)

def train(trial):
    """Uses everything above but LOCK and what is called unused."""
    from {library} import imported_inside
    UNUSED_ATTRIBUTE = trial.UNUSED + trial.unused
    used = [NAMES, SETTINGS, WEIGHTS, ARRAY, SCALAR, PATH, SPACE, DEVICE, DTYPE, GENERATOR, Colour.RED, CONFIG, MODEL]
    used += [NET, helper(3), cached(), decorated(), without_gradients(), PARTIAL(), CLOSURE(), Config(), Net()]
    return used + [library.constant, library.function(91), library.inner.constant, taken, Taken.value, imported_inside]
'''
LIBRARY = """
import {library}_inner as inner
constant = 101
unused_constant = 102
taken = 103
imported_inside = 104
def function(x):
    return x + function_constant
function_constant = 105
def unused_function():
    return 106
class Taken:
    value = 107
"""
INNER = "constant = 108\nunused_constant = 109\n"


IDENTIFY = """
import json, sys
from flatwise.study.identify import identify
sys.path[:0] = sys.argv[2:]
print(json.dumps([identify(__import__(name).train, stored=True) for name in sys.argv[1].split(",")]))
"""


def in_a_fresh_process(names, *folders, hash_seed="1"):
    """The identities of `train` of these modules."""
    done = subprocess.run(
        [sys.executable, "-c", IDENTIFY, ",".join(names), *map(str, folders)],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def load(folder, name="program", edit=("", "")):
    """The module, freshly imported from files with the edit made."""
    library = f"{name}_library"
    files = {
        name: PROGRAM.format(library=library),
        library: LIBRARY.format(library=library),
        f"{library}_inner": INNER,
    }
    for file, text in files.items():
        sys.modules.pop(file, None)
        (folder / f"{file}.py").write_text(text.replace(*edit) if edit[0] else text)
    importlib.invalidate_caches()
    return importlib.import_module(name)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # two edits within a second would not be told apart
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("program")]:
        del sys.modules[name]


USED = [
    ("RATE = 1 ", "RATE = 2 "),
    ("RATE = 1 ", "RATE = 1.0"),
    ("RATE = 1 ", "RATE = True"),
    ('{{"a", "b", "c"}}', '{{"a", "b", "d"}}'),
    ("(2, 3)", "(2, 4)"),
    ("torch.ones(3)", "torch.zeros(3)"),
    ("torch.ones(3)", "torch.ones(3, dtype=torch.bfloat16)"),
    ("np.arange(3.0)", "np.arange(4.0)"),
    ("np.float32(0.5)", "np.float64(0.5)"),
    ('Path("data")', 'Path("date")'),
    ("Namespace(rate=0.1)", "Namespace(rate=0.2)"),
    ('torch.device("cpu")', 'torch.device("meta")'),
    ("torch.float32", "torch.float64"),
    ("manual_seed(5)", "manual_seed(6)"),
    ("CLASS_DEFAULT = 11", "CLASS_DEFAULT = 12"),
    ("RED = 21", "RED = 29"),
    ("[64, 65]", "[64, 64]"),
    ("rate=0.31", "rate=0.32"),
    ("default=41", "default=49"),
    ("gt=0", "gt=1"),
    ("width=43", "width=44"),
]
NUMBERS = [51, 53, 54, 55, 56, 61, 62, 63, 64, 65, 71, 72, 73, 74, 75, 81, 91, 101, 103, 104, 105, 107, 108]
USED += [(f"{number}", f"{number}0") for number in NUMBERS]
NOT_USED = [
    ("UNUSED = 7", "UNUSED = 8"),
    ("return 66", "return 67"),
    ("= 102", "= 112"),
    ("return 106", "return 116"),
    ("= 109", "= 119"),
    ("threading.Lock()", "threading.RLock()"),
    ("# constant in a set", "# another comment"),
    ("def unused():", "\n\ndef unused():"),
]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("original")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        return identify(load(folder).train, stored=True)


@pytest.mark.parametrize("edit", USED)
def test_what_a_function_uses_is_part_of_its_identity(folder, original, edit):
    assert edit[0] in PROGRAM + LIBRARY + INNER
    old, new = (part.replace("{{", "{").replace("}}", "}") for part in edit)
    assert identify(load(folder, edit=(old, new)).train, stored=True) != original


@pytest.mark.parametrize("edit", NOT_USED)
def test_what_it_does_not_use_is_not(folder, original, edit):
    assert edit[0] in PROGRAM + LIBRARY + INNER
    assert identify(load(folder, edit=edit).train, stored=True) == original


def test_every_process_gives_the_same(folder, original):
    load(folder)
    assert in_a_fresh_process(["program"], folder, hash_seed="7") == [original]
    # As a program, from another folder, and compiled beforehand.
    script = folder / "elsewhere" / "program.py"
    script.parent.mkdir()
    ending = "\nfrom flatwise.study.identify import identify\nprint(identify(train, stored=True))"
    script.write_text((folder / "program.py").read_text() + ending)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == original


def test_a_value_without_a_state_is_refused_only_where_it_is_used(folder):
    used = load(folder, edit=("used = [NAMES", "used = [LOCK, NAMES"))
    with pytest.raises(
        NotIdentifiableError, match="depends on the global 'LOCK', a lock, which flatwise cannot"
    ) as error:
        identify(used.train, stored=True)
    assert "\n" not in str(error.value)
    assert identify(used.train, stored=False) == "train"
    deeper = load(folder, edit=("return 53", "return LOCK"))
    with pytest.raises(NotIdentifiableError, match="the global 'LOCK'"):
        identify(deeper.train, stored=True)


def test_a_module_that_is_handed_on_counts_as_a_whole(folder):
    identities = set()
    for number in (102, 112):
        loaded = load(folder, edit=("used = [NAMES", "used = [vars(library), NAMES"))
        loaded.library.unused_constant = number
        identities.add(identify(loaded.train, stored=True))
    assert len(identities) == 2


def test_installed_packages_count_by_their_version(folder, monkeypatch):
    """Of one that pip put into a folder of its own too."""
    (folder / "site").mkdir()
    monkeypatch.syspath_prepend(str(folder / "site"))
    information = folder / "site" / "program_peer-1.0.dist-info"
    information.mkdir()
    (folder / "program_user.py").write_text("from program_peer import f\ndef train(trial):\n    return f()\n")
    identities = []
    for version, number in (("1.0", 1), ("1.0", 2), ("1.1", 2)):
        (folder / "site" / "program_peer.py").write_text(f"def f():\n    return {number}\n")
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: program_peer\nVersion: {version}\n")
        for module in ("program_user", "program_peer"):
            sys.modules.pop(module, None)
        importlib.invalidate_caches()
        _version.cache_clear()  # of one process, installed versions do not change
        identities.append(identify(importlib.import_module("program_user").train, stored=True))
    _version.cache_clear()
    assert identities[0] == identities[1] != identities[2]


def test_an_object_can_say_what_counts():
    class Log(list):
        def __reduce__(self):
            return Log, ()

    log = Log()

    def train(trial):
        log.append(trial)

    before = identify(train, stored=True)
    train("an entry")
    assert identify(train, stored=True) == before


def identity_of(value):
    def train(trial):
        return value

    return identify(train, stored=True)


class MarkedArray(np.ndarray):
    pass


class MarkedTensor(torch.Tensor):
    pass


def marked(value, mark):
    value.mark = mark
    return value


def frozen(freeze):
    layer = torch.nn.Linear(1, 1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
    return layer.requires_grad_(not freeze)


def modules(names):
    made = {"a": torch.nn.ReLU(), "b": torch.nn.Flatten()}
    return {name: made[name] for name in names}


DIFFERENT = {
    "dict": ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    "nested": ([{"a": 1, "b": {1: 2, 3: 4}}], [{"a": 1, "b": {3: 4, 1: 2}}]),
    "OrderedDict": (OrderedDict(a=1, b=2), OrderedDict(b=2, a=1)),
    "defaultdict": (defaultdict(int, a=1, b=2), defaultdict(int, b=2, a=1)),
    "namespace": (Namespace(a=1, b=2), Namespace(b=2, a=1)),
    "partial": (partial(dict, a=1, b=2), partial(dict, b=2, a=1)),
    "ModuleDict": (torch.nn.ModuleDict(modules("ab")), torch.nn.ModuleDict(modules("ba"))),
    "Sequential": (
        torch.nn.Sequential(OrderedDict(modules("ab"))),
        torch.nn.Sequential(OrderedDict(modules("ba"))),
    ),
    "tensor": (marked(torch.ones(2), 1), marked(torch.ones(2), 2)),
    "tensor subclass": (
        marked(torch.ones(2).as_subclass(MarkedTensor), 1),
        marked(torch.ones(2).as_subclass(MarkedTensor), 2),
    ),
    "array subclass": (marked(np.ones(2).view(MarkedArray), 1), marked(np.ones(2).view(MarkedArray), 2)),
    "array of a class": (np.ones(2), np.ones(2).view(MarkedArray)),
    "masked array": (np.ma.array([1, 2], mask=[0, 1]), np.ma.array([1, 2], mask=[1, 0])),
    "frozen layer": (frozen(True), frozen(False)),
    "dunder data": tuple(type("C", (), {"__module__": __name__ + "_own", "__rate__": rate}) for rate in (0.1, 0.2)),
}


@pytest.mark.parametrize("kind", DIFFERENT)
def test_order_and_attributes_count(kind):
    first, second = DIFFERENT[kind]
    assert identity_of(first) != identity_of(second)
    assert identity_of(first) == identity_of(first)
    if kind != "dunder data" and "subclass" not in kind:  # these copies are no copies
        assert identity_of(copy.deepcopy(first)) == identity_of(first)


def test_a_memmap_counts_by_its_values(tmp_path):
    found = []
    for name in ("a", "b"):
        mapped = np.memmap(tmp_path / name, dtype="f4", mode="w+", shape=3)
        mapped[:] = 1
        found.append(identity_of(mapped))
    assert found[0] == found[1]
    mapped[:] = 2
    assert identity_of(mapped) != found[0]


def test_where_a_class_stands_and_what_it_says_of_itself_do_not_count(folder):
    text = "{}class C:\n    {}\n    x: int = 1\ndef train(trial):\n    return C.x\n"
    texts = [text.format(*parts) for parts in (("", "'one'"), ("\n\n", "'another'"))]
    texts += ["import dataclasses\n@dataclasses.dataclass\n" + each for each in texts]
    texts += [each.replace("dataclasses\n", "pydantic\n").replace("dataclasses.", "pydantic.dataclasses.") for each in
              texts[2:]]  # fmt: skip
    found = []
    for each in texts:
        (folder / "program_class.py").write_text(each)
        sys.modules.pop("program_class", None)
        importlib.invalidate_caches()
        found.append(identify(importlib.import_module("program_class").train, stored=True))
    assert found[0::2] == found[1::2]


def test_another_default_dtype_is_another_training():
    before = identity_of(1)
    try:
        torch.set_default_dtype(torch.float64)
        assert identity_of(1) == f"{before} torch.float64"
    finally:
        torch.set_default_dtype(torch.float32)
    assert identity_of(1) == before


# A random program: whatever its training function reaches counts, nothing else does.


class Program:
    """Two modules of constants, functions and classes that name one another at random, cycles among them."""

    def __init__(self, seed, name):
        self.random = random.Random(seed)
        self.name = name
        count = self.random.randint(4, 14)
        self.parts = [f"part{i}" for i in range(count)]
        self.homes = {part: self.random.choice(("", "_library")) for part in self.parts}
        self.kinds = {part: self.random.choice(("constant", "function", "class")) for part in self.parts}
        self.values = {part: i for i, part in enumerate(self.parts)}
        self.uses = {
            part: [] if self.kinds[part] == "constant" else self.random.sample(self.parts, self.random.randint(0, 3))
            for part in self.parts
        }
        self.forms = {part: self.random.randrange(5) for part in self.parts}
        self.entry = self.random.sample(self.parts, self.random.randint(1, 3))

    def reached(self):
        found, waiting = set(), list(self.entry)
        while waiting:
            part = waiting.pop()
            if part not in found:
                found.add(part)
                waiting += self.uses[part]
        return found

    def files(self):
        """The text of every module."""
        texts = {"": f"import {self.name}_library as other\n", "_library": f"import {self.name} as other\n"}
        for part in self.parts:
            texts[self.homes[part]] += self._written(part)
        names = ", ".join(self._named(part, "") for part in self.entry)
        texts[""] += f"def train(trial):\n    return [{names}]\n"
        return {f"{self.name}{home}": text for home, text in texts.items()}

    def _written(self, part):
        value, form = self.values[part], self.forms[part]
        if self.kinds[part] == "constant":
            shapes = ("{}", "[1, {{'a': {}}}]", "{{'x', 'y', {}}}", "frozenset(['p', 'q', 'r', '{}'])", "b'{}'")
            return f"{part} = {shapes[form].format(value)}\n"
        home = self.homes[part]
        # Other names' attributes, variables and texts are no references.
        decoys = "; ".join(f"x.{each}, '{each}'" for each in self.parts if each not in self.uses[part]) or "None"
        bodies = [
            "[{}]",
            "(lambda: [{}])()",
            "[[{}] for _ in range(2)]",
            "next(iter(lambda: [{}], None))",
            "{{1: [{}]}}",
        ]
        used = ", ".join(self._named(each, home) for each in self.uses[part])
        body = bodies[form].format(used)
        if self.kinds[part] == "function":
            return f"def {part}(x=0):\n    {decoys}\n    return {body}, {value}\n"
        return f"class {part}:\n    def method(self, x):\n        {decoys}\n        return {body}, {value}\n"

    def _named(self, part, home):
        return part if self.homes[part] == home else f"other.{part}"

    def identity(self, folder):
        for name, text in self.files().items():
            (folder / f"{name}.py").write_text(text)
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        return identify(importlib.import_module(self.name).train, stored=True)


def test_of_random_programs_what_is_reached_counts_and_nothing_else(folder):
    programs = [Program(seed, f"program{seed}") for seed in range(30)]
    identities, edits = [], {True: 0, False: 0}
    for program in programs:
        identities.append(program.identity(folder))
        reached = program.reached()
        for part in program.parts:
            program.values[part] += 1000
            changed = program.identity(folder) != identities[-1]
            assert changed == (part in reached), (program.files(), part)
            edits[changed] += 1
            program.values[part] -= 1000
        assert program.identity(folder) == identities[-1]
    assert min(edits.values()) > 100
    assert in_a_fresh_process([program.name for program in programs], folder) == identities


# Settings.


class Kind(str, Enum):
    A = "a"


class Inner(BaseModel):
    path: Path = Path("a")
    kind: Kind = Kind.A


@dataclass
class Everything:
    inner: Inner = field(default_factory=Inner)
    dtype: torch.dtype = torch.float16
    device: torch.device = field(default_factory=lambda: torch.device("cuda:1"))
    number: np.floating = field(default_factory=lambda: np.float64(0.25))
    whole: np.integer = field(default_factory=lambda: np.int32(3))
    numpy_dtype: np.dtype = field(default_factory=lambda: np.dtype("int8"))
    namespace: Namespace = field(default_factory=lambda: Namespace(a=(1, None)))


def test_settings_become_plain_data():
    plain = plain_data({"all": Everything(), 3: True})
    assert plain == {
        "all": {
            "inner": {"path": "a", "kind": "a"},
            "dtype": "torch.float16",
            "device": "cuda:1",
            "number": 0.25,
            "whole": 3,
            "numpy_dtype": "int8",
            "namespace": {"a": [1, None]},
        },
        "3": True,
    }
    assert json.loads(json.dumps(plain)) == plain
    assert type(plain["all"]["inner"]["kind"]) is str
    with pytest.raises(TypeError, match="a lock is not plain data"):
        plain_data([threading.Lock()])
