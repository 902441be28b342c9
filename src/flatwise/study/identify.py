"""Identify a training function by its content, so that no trial of an older version is reused.

The function and everything that it names are nodes of a graph: its code, the values that it closes over, the globals
that its code loads, and what these name in turn. Every node gets a hash of its own content and its neighbours' hashes,
round after round until the farthest node has reached the first. So the result depends neither on the order of a walk
nor on addresses, and cycles do no harm.
"""

from __future__ import annotations

import copyreg
import dis
import enum
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import pickle
import site
import sys
import sysconfig
import types
import warnings
from argparse import Namespace
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel

from flatwise.exceptions import FlatwiseError

_EXACT = (type(None), bool, int, float, complex, str, bytes, type(...), type(NotImplemented))
_NAMED = (torch.device, torch.dtype, torch.layout, torch.memory_format)

# What is known by the functions that it holds, and where it holds them.
_WRAPPERS: dict[type, tuple[str, ...]] = {
    functools.partial: ("func", "args", "keywords"),
    types.MethodType: ("__func__", "__self__"),
    classmethod: ("__func__",),
    staticmethod: ("__func__",),
    property: ("fget", "fset", "fdel"),
    functools.cached_property: ("func",),
}


class NotIdentifiableError(FlatwiseError, ValueError):
    """The training function depends on a value that cannot be identified. The message is one line."""


def identify(function: Callable[..., Any], *, stored: bool) -> str:
    """A text that changes when the function does, and is the same in every process.

    It covers the function's code, defaults, the values it closes over, and the globals that the code names: constants,
    functions, classes and modules of the user's own files, and what these name in turn. Data count by their value,
    objects by their class and state (as ``pickle`` sees it), installed packages by name and version. Comments and
    layout do not count. What is reached by a computed name only, such as ``globals()[name]``, is not seen. Torch's
    default dtype counts if it is not float32.

    Args:
        function: the training function.
        stored: whether trials are kept. If not, a function that cannot be identified is known by its name alone.

    Raises:
        NotIdentifiableError: ``stored``, and the function depends on a value without a state that can be read, such as
            a lock or an open file.
    """
    name = getattr(function, "__qualname__", type(function).__qualname__)
    try:
        digest = _Graph(function).digest()
    except NotIdentifiableError:
        if stored:
            raise
        return f"{name}{_default_dtype()}"
    return f"{name} {digest[:12]}{_default_dtype()}"


def _default_dtype() -> str:
    """What a process-wide setting adds to every function's identity: nothing for torch's own default."""
    dtype = torch.get_default_dtype()
    return "" if dtype == torch.float32 else f" {dtype}"


def plain_data(value: Any) -> Any:
    """A setting as JSON has it: numbers, texts, lists and mappings.

    Dataclasses, pydantic models and argparse namespaces become mappings; paths, torch devices and dtypes become text;
    an enum's member becomes its value; a numpy scalar becomes a number.

    Raises:
        TypeError: the value has no such form; the message names its type.
    """
    if isinstance(value, enum.Enum):
        return plain_data(value.value)
    if isinstance(value, np.generic):
        return plain_data(value.item())
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (PurePath, *_NAMED)):
        return str(value)
    if isinstance(value, np.dtype):
        return value.name
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain_data(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, BaseModel):
        return {name: plain_data(item) for name, item in value}
    if isinstance(value, Namespace):
        return plain_data(vars(value))
    if isinstance(value, Mapping):
        return {_key(key): plain_data(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_data(item) for item in value]
    raise TypeError(f"a {type(value).__name__} is not plain data")


def _key(key: Any) -> str:
    """A mapping's key as JSON has it: text."""
    plain = plain_data(key)
    return plain if isinstance(plain, str) else json.dumps(plain)


@dataclass(slots=True)
class _Edge:
    """A dependency of a node.

    Attributes:
        child: position of the node that is depended on.
        strict: whether the dependent node cannot be identified without it.
        name: its name in error messages; may be empty.
    """

    child: int
    strict: bool
    name: str


@dataclass(slots=True)
class _Node:
    """A value of the graph.

    Attributes:
        label: its own content.
        edges: what it depends on.
        ordered: whether the order of these counts.
        unknown: name of its type if nothing else is known of it, else empty.
    """

    label: str = ""
    edges: list[_Edge] = field(default_factory=list)
    ordered: bool = True
    unknown: str = ""


class _Graph:
    """What a function depends on.

    Args:
        root: the function.
    """

    def __init__(self, root: Any) -> None:
        self._nodes: list[_Node] = []
        self._positions: dict[int, int] = {}
        self._values: list[Any] = []  # by position; kept alive, so that no address is used twice
        self._waiting: deque[int] = deque()
        self._position(root)
        while self._waiting:
            position = self._waiting.popleft()
            self._look_at(self._nodes[position], self._values[position])

    def digest(self) -> str:
        """The root's hash.

        Raises:
            NotIdentifiableError: something that it depends on is unknown.
        """
        self._check_known()
        hashes = [_hash(node.label) for node in self._nodes]
        for _ in range(self._depth()):
            hashes = [_hash(node.label, *self._of_children(node, hashes)) for node in self._nodes]
        return hashes[0]

    @staticmethod
    def _of_children(node: _Node, hashes: list[str]) -> list[str]:
        found = [hashes[edge.child] for edge in node.edges]
        return found if node.ordered else sorted(found)

    def _depth(self) -> int:
        """Steps from the root to the node that is farthest from it."""
        seen, ring, depth = {0}, [0], 0
        while True:
            ring = list({edge.child for position in ring for edge in self._nodes[position].edges} - seen)
            if not ring:
                return depth
            seen.update(ring)
            depth += 1

    def _check_known(self) -> None:
        seen, waiting = {0}, deque([(0, "")])
        while waiting:
            position, name = waiting.popleft()
            node = self._nodes[position]
            if node.unknown:
                what = f"{name}, a {node.unknown}" if name else f"a {node.unknown}"
                raise NotIdentifiableError(
                    f"the training function depends on {what}, which flatwise cannot recognise when the comparison is "
                    "continued: create it inside the function, or omit out= (then no trials are kept)"
                )
            for edge in node.edges:
                if edge.strict and edge.child not in seen:
                    seen.add(edge.child)
                    waiting.append((edge.child, edge.name or name))

    def _position(self, value: Any) -> int:
        """The value's node, made at its first sight."""
        known = self._positions.get(id(value))
        if known is not None:
            return known
        position = len(self._nodes)
        self._positions[id(value)] = position
        self._values.append(value)
        self._nodes.append(_Node())
        self._waiting.append(position)
        return position

    def _add(self, node: _Node, value: Any, name: str = "", *, strict: bool = True) -> None:
        node.edges.append(_Edge(self._position(value), strict, name))

    def _look_at(self, node: _Node, value: Any) -> None:
        """Fills a node: its label, and edges to what the value depends on."""
        if type(value) in _EXACT:
            node.label = _constant(value)
        elif isinstance(value, enum.Enum):
            node.label = _label("enum", value.name)
            self._add(node, type(value))
        elif type(value) in (list, tuple, dict, set, frozenset):
            self._look_at_container(node, value)
        elif isinstance(value, (torch.Tensor, np.ndarray)):
            self._look_at_array(node, value)
        elif isinstance(value, np.generic):
            node.label = _label("scalar", str(value.dtype), value.tobytes().hex())
        elif isinstance(value, _NAMED):
            node.label = _label("torch", str(value))
        elif isinstance(value, torch.Generator):
            node.label = _label("generator", str(value.device))
            self._add(node, value.get_state())
        elif isinstance(value, types.ModuleType):
            self._look_at_module(node, value)
        elif isinstance(value, type):
            self._look_at_class(node, value)
        else:
            self._look_at_callable(node, value)

    def _look_at_container(self, node: _Node, value: Any) -> None:
        kind = type(value).__name__
        if isinstance(value, dict):
            node.label = _label(kind, len(value))  # the order counts: loops follow it
            for key, item in value.items():
                self._add(node, (key, item))
        elif all(type(item) in _EXACT for item in value):
            found = [_constant(item) for item in value]
            node.label = _label(kind, sorted(found) if isinstance(value, (set, frozenset)) else found)
        else:
            node.label, node.ordered = _label(kind, len(value)), isinstance(value, (list, tuple))
            for item in value:
                self._add(node, item)

    def _look_at_array(self, node: _Node, value: torch.Tensor | np.ndarray[Any, Any]) -> None:
        node.label = _label("array", str(value.dtype), list(value.shape))
        if isinstance(value, np.ndarray):
            if value.dtype.hasobject:
                self._add(node, value.tolist())
            else:
                node.label += hashlib.sha256(value.tobytes()).hexdigest()
        elif value.is_meta:
            node.label += "meta"
        elif value.layout != torch.strided or value.is_quantized:
            node.unknown = f"{type(value).__name__} of layout {value.layout}"
        else:
            content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            node.label += hashlib.sha256(content.numpy().tobytes()).hexdigest()
        if isinstance(value, torch.Tensor) and value.requires_grad:
            node.label += "requires grad"
        if type(value) in (np.ndarray, np.memmap):  # a memmap's attributes say where the data lie
            return
        if type(value) not in (torch.Tensor, torch.nn.Parameter):
            self._add(node, type(value))
        for name, item in sorted(vars(value).items()):
            if not name.startswith("_dynamo"):  # notes of torch.compile
                node.label += _label(name)
                self._add(node, item, strict=_is_own_class(type(value)))

    def _look_at_module(self, node: _Node, module: types.ModuleType) -> None:
        """A module that the code uses as a whole, not only by attributes that it names: all of it counts."""
        if not _is_own(getattr(module, "__file__", None)):
            node.label = _installed(module.__name__)
            return
        node.label = _label("module", sorted(vars(module)))
        for name, value in sorted(vars(module).items()):
            if not name.startswith("__"):
                self._add(node, value, strict=False)

    def _look_at_class(self, node: _Node, value: type) -> None:
        if not _is_own_class(value):
            node.label = _installed(value.__module__, value.__qualname__)
            return
        members = {name: member for name, member in sorted(vars(value).items()) if _counts(name, member)}
        node.label = _label("class", value.__qualname__, list(members))
        for base in value.__bases__:
            self._add(node, base)
        if type(value) is not type:
            self._add(node, type(value))
        if issubclass(value, enum.Enum):
            for name, member in value.__members__.items():
                self._add(node, (name, member.value))
        for name, member in members.items():
            is_code = isinstance(member, (types.FunctionType, classmethod, staticmethod, property))
            self._add(node, member, f"{value.__qualname__}.{name}", strict=is_code)
        if issubclass(value, BaseModel):
            for name, info in value.model_fields.items():
                node.label += _label(name, str(info.annotation), info.is_required())
                for each in (info.default, info.default_factory, info.metadata):
                    self._add(node, each, strict=False)

    def _look_at_callable(self, node: _Node, value: Any) -> None:
        wrapper = next((kind for kind in _WRAPPERS if isinstance(value, kind)), None)
        if wrapper is not None:
            node.label = wrapper.__name__.replace("_", " ")
            for part in _WRAPPERS[wrapper]:
                self._add(node, getattr(value, part))
        elif isinstance(value, types.FunctionType):
            self._look_at_function(node, value)
        elif isinstance(value, types.BuiltinFunctionType):
            owner = value.__self__
            node.label = _installed(value.__module__ or "", value.__qualname__)
            if owner is not None and not isinstance(owner, types.ModuleType):
                self._add(node, owner)
        elif callable(getattr(value, "__wrapped__", None)) and not isinstance(value, BaseModel):
            # functools.cache, a function that numba compiles: known by the function inside.
            node.label = _installed(type(value).__module__, type(value).__qualname__)
            self._add(node, value.__wrapped__)
        else:
            self._look_at_object(node, value)

    def _look_at_function(self, node: _Node, function: types.FunctionType) -> None:
        code = function.__code__
        cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
        own = _is_own(code.co_filename)
        compiled = getattr(function, "_torchdynamo_orig_callable", None)  # torch.compile's caches are not its content
        if compiled is not None:
            node.label = "torch.compile"
            self._add(node, compiled)
            return
        if not own:
            # A decorator's wrapper has the module of what it wraps; the code knows better where it comes from.
            module = function.__globals__.get("__name__") or function.__module__
            node.label = _installed(str(module), code.co_name)
            for cell in cells.values():
                self._add(node, _content_of(cell), strict=False)
            return
        node.label = _label("function", _code(code))
        self._add(node, function.__defaults__, f"a default of {function.__qualname__}")
        self._add(node, function.__kwdefaults__, f"a default of {function.__qualname__}")
        for attribute, item in sorted(vars(function).items()):
            if attribute != "__wrapped__":  # what a wrapper calls it closes over
                node.label += _label(attribute)
                self._add(node, item, strict=False)
        for name, attributes in sorted(_loaded(code)):
            if name in cells:
                found, where = _content_of(cells[name]), f"{name!r} around {function.__qualname__}"
            else:
                found, where = _global(function, name), f"the global {name!r}"
            self._add_attributes(node, found, attributes, name, where)
        for module, names in sorted(_imported(code)):
            self._add_import(node, function, module, names)

    def _add_attributes(self, node: _Node, value: Any, attributes: tuple[str, ...], name: str, where: str) -> None:
        """The value, or of a module of the user's own only the attribute that the code names."""
        node.label += _label(name)
        for attribute in attributes:
            is_module = isinstance(value, types.ModuleType) and _is_own(getattr(value, "__file__", None))
            if not is_module or not hasattr(value, attribute):
                break
            value = getattr(value, attribute)
            node.label += _label(attribute)
        self._add(node, value, where)

    def _add_import(self, node: _Node, function: types.FunctionType, name: str, names: tuple[str, ...]) -> None:
        """What a function imports while it runs, where that is the user's own."""
        node.label += _label("import", name, list(names))
        package = str(function.__globals__.get("__package__") or "")
        try:
            absolute = importlib.util.resolve_name(name, package)
            if not _is_own(_file_of(absolute)):
                return
            module = importlib.import_module(absolute)
        except Exception:  # the function itself will meet it, and may be prepared
            return
        for each in names or ("",):
            value = getattr(module, each, sys.modules.get(f"{absolute}.{each}", module)) if each else module
            self._add(node, value, f"{absolute}.{each}" if each else absolute)

    def _look_at_object(self, node: _Node, value: Any) -> None:
        """Any other object: its class, and its state as pickle and copy see it."""
        if isinstance(value, BaseModel):
            node.label = "model"
            self._add(node, type(value))
            self._add(node, dict(value))
            return
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                reducer = copyreg.dispatch_table.get(type(value))
                reduced = value.__reduce_ex__(pickle.HIGHEST_PROTOCOL) if reducer is None else reducer(value)
        except Exception:
            name = getattr(value, "__name__", None)
            if callable(value) and isinstance(name, str) and not _is_own_class(type(value)):
                node.label = _installed(str(getattr(value, "__module__", None)), name)  # a compiled operator
            else:
                node.label, node.unknown = _label("unknown", type(value).__qualname__), type(value).__qualname__
            return
        if isinstance(reduced, str):
            node.label = _installed(str(getattr(value, "__module__", None) or type(value).__module__), reduced)
            return
        node.label = "object"
        self._add(node, type(value))
        make, arguments, state, items, pairs = (*reduced, None, None, None)[:5]
        self._add(node, make)
        for part in (*arguments, state):
            self._add(node, part)
        self._add(node, None if items is None else list(items))
        self._add(node, None if pairs is None else dict(pairs))


def _label(*parts: Any) -> str:
    return json.dumps(parts)


def _hash(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode(errors="surrogatepass")).hexdigest()


def _constant(value: Any) -> str:
    """A constant as text; sets without the order of this process."""
    if isinstance(value, (frozenset, set)):
        return f"frozenset {sorted(map(_constant, value))}"
    if isinstance(value, tuple):
        return f"tuple {[_constant(item) for item in value]}"
    if isinstance(value, types.CodeType):
        return _code(value)
    if isinstance(value, bytes):
        return f"bytes {hashlib.sha256(value).hexdigest()}"
    if type(value) is int:
        return f"int {value:x}"  # without the limit on decimal digits
    return f"{type(value).__name__} {value!r}"


def _code(code: types.CodeType) -> str:
    """What a code object does; neither where it stands nor what its comments say."""
    content = [
        code.co_code.hex(),
        code.co_flags,
        [code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount],
        [code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars],
        getattr(code, "co_exceptiontable", b"").hex(),
        [_constant(constant) for constant in code.co_consts],
    ]
    return json.dumps(content)


def _all_codes(code: types.CodeType) -> Iterable[types.CodeType]:
    """A code object, and those of the functions, classes and comprehensions inside."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _all_codes(constant)


_FROM_OUTSIDE = {"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS", "LOAD_DEREF", "LOAD_CLASSDEREF"}
_FROM_OUTSIDE |= {"LOAD_CLOSURE", "LOAD_FROM_DICT_OR_DEREF"}
_ATTRIBUTES = {"LOAD_ATTR", "LOAD_METHOD"}


def _loaded(code: types.CodeType) -> set[tuple[str, tuple[str, ...]]]:
    """Names that code takes from outside of itself, each with the attributes that follow: ``("np", ("pi",))``.

    An attribute that happens to have a global's name is not among them, nor is an inner function's own variable.
    """
    found: set[tuple[str, tuple[str, ...]]] = set()
    for each in _all_codes(code):
        name, attributes = "", list[str]()
        for instruction in dis.get_instructions(each):
            if instruction.opname in ("EXTENDED_ARG", "CACHE"):
                continue
            if name and instruction.opname in _ATTRIBUTES:
                attributes.append(str(instruction.argval))
                continue
            if name:
                found.add((name, tuple(attributes)))
            name, attributes = "", []
            if instruction.opname in _FROM_OUTSIDE:
                name = str(instruction.argval)
        if name:
            found.add((name, tuple(attributes)))
    inner = {name for each in _all_codes(code) for name in (*each.co_cellvars, *_stored_names(each))}
    free = set(code.co_freevars)
    return {(name, attributes) for name, attributes in found if name in free or name not in inner}


def _stored_names(code: types.CodeType) -> Iterable[str]:
    """Names that a class's body gives values to: its own, though it loads them as if they were globals."""
    return {str(each.argval) for each in dis.get_instructions(code) if each.opname == "STORE_NAME"}


def _imported(code: types.CodeType) -> set[tuple[str, tuple[str, ...]]]:
    """Modules that code imports while it runs, relative ones with their dots, and the names it takes from each."""
    found = set()
    for each in _all_codes(code):
        before: list[Any] = []
        for instruction in dis.get_instructions(each):
            if instruction.opname == "IMPORT_NAME":
                level, names = before[-2:] if len(before) > 1 else (0, None)
                dots = "." * level if isinstance(level, int) else ""
                found.add((f"{dots}{instruction.argval}", tuple(names or ())))
            if instruction.opname not in ("EXTENDED_ARG", "CACHE"):
                before.append(instruction.argval)
    return found


def _global(function: types.FunctionType, name: str) -> Any:
    """What a function's code finds under a name; a builtin, or nothing yet, by the name alone."""
    if name in function.__globals__:
        return function.__globals__[name]
    builtins = function.__globals__.get("__builtins__", {})
    known = builtins if isinstance(builtins, dict) else vars(builtins)
    return ("builtin" if name in known else "missing", name)


def _content_of(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return "empty"


# What Python, typing, dataclasses and pydantic keep in a class; some of it says where the class stands.
_CLASS_MACHINERY = (
    "__module__ __doc__ __firstlineno__ __static_attributes__ __annotations__ __annotations_cache__ __orig_bases__ "
    "__parameters__ __type_params__ __abstractmethods__ __dataclass_fields__ __class_vars__ __private_attributes__ "
    "__hash__ __weakref__ __dict__ __slots__ __protocol_attrs__ __non_callable_proto_members__"
)


def _counts(name: str, member: Any) -> bool:
    """Whether a class's member is the user's: not what Python, abc or pydantic keep there."""
    if name.startswith("__") and name.endswith("__"):
        is_data = type(member) in (*_EXACT, list, tuple, dict, set, frozenset) and name not in _CLASS_MACHINERY.split()
        is_code = isinstance(member, (types.FunctionType, classmethod, staticmethod, property))
        return is_code or (is_data and not name.startswith("__pydantic_"))
    machinery = ("_abc_impl", "_member_map_", "_member_names_", "_value2member_map_", "_hashable_values_")
    is_machinery = name in machinery or name in ("model_fields", "model_computed_fields", "_unhashable_values_map_")
    if isinstance(member, (types.MemberDescriptorType, types.GetSetDescriptorType)) or is_machinery:
        return False
    return not (isinstance(member, enum.Enum) or type(member).__module__ == "enum")


def _is_own_class(value: type) -> bool:
    module = sys.modules.get(value.__module__)
    if module is None or value.__module__ == "builtins":
        return module is None
    return _is_own(getattr(module, "__file__", None) or ("" if value.__module__ == "__main__" else None))


@functools.cache
def _installed_folders() -> tuple[Path, ...]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    found = [sysconfig.get_path(name) for name in names]
    found += [*site.getsitepackages(), site.getusersitepackages(), str(Path(__file__).parents[1])]
    return tuple(Path(each).resolve() for each in found if each)


@functools.lru_cache(maxsize=4096)
def _is_own(file: str | None) -> bool:
    """Whether code of that file is the user's, to be looked into: it is neither Python's nor an installed package's.

    Args:
        file: its name; ``None`` for what has none, such as compiled modules. Names in angle brackets are what a
            terminal or a notebook calls its inputs.
    """
    if file is None or file.startswith("<frozen"):
        return False
    if not file or file.startswith("<"):
        return True
    path = Path(file)
    if path.suffix not in (".py", ".pyc", ".ipynb", "") or {"site-packages", "dist-packages"} & set(path.parts):
        return False
    path = path.resolve()
    if any(folder in path.parents for folder in _installed_folders()):
        return False
    # A folder that packages were installed into with `pip install --target`.
    return not any(_has_distributions(folder) for folder in list(path.parents)[:4])


@functools.lru_cache(maxsize=1024)
def _has_distributions(folder: Path) -> bool:
    return next(folder.glob("*.dist-info"), None) is not None


def _file_of(module: str) -> str | None:
    """The file that a module comes from, without importing it."""
    if module in sys.modules:
        return getattr(sys.modules[module], "__file__", None)
    spec = importlib.util.find_spec(module)
    return None if spec is None else spec.origin


def _installed(module: str, name: str = "") -> str:
    """Something of an installed package: its name, and the version of what it was installed with."""
    return _label("installed", module, name, _version(module.partition(".")[0]))


@functools.lru_cache(maxsize=1024)
def _version(package: str) -> str:
    """The version of the distribution with a package's name, else what the package calls its version; else empty."""
    if not package or package in sys.stdlib_module_names:
        return ""  # Python's own
    try:
        return importlib.metadata.version(package)
    except Exception:
        return str(getattr(sys.modules.get(package), "__version__", ""))
