"""What is known by name: tasks and studies, flatwise's own and those of other packages.

Other packages add tasks, packaged studies, and a section of a study's report.

A package names a :class:`Plugin` in its ``pyproject.toml``::

    [project.entry-points."flatwise.plugins"]
    mine = "my_package.plugin:PLUGIN"

From then on ``flatwise compare`` and ``flatwise run`` know its tasks and studies by name. flatwise-papers, which has
the papers' experiments, is found in this way.
"""

from __future__ import annotations

import functools
import importlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from markupsafe import Markup
from rich.console import RenderableType

from flatwise.study.comparison import Comparison
from flatwise.study.hints import did_you_mean
from flatwise.study.spec import StudySpec
from flatwise.study.study_file import parse_study
from flatwise.study.task import Task
from flatwise.study.tasks.classification import DIGITS_MLP

GROUP = "flatwise.plugins"


class UnknownTaskError(LookupError):
    """There is no task of that name, or it cannot be imported. The message is one line."""


class UnknownStudyError(LookupError):
    """No packaged study has that name. The message is one line."""


class PluginError(Exception):
    """A package that extends flatwise cannot be loaded, or clashes with another. The message is one line."""


class Section(Protocol):
    """What a plugin adds to the report of a study."""

    @property
    def headline(self) -> str:
        """A sentence for the top of the page."""

    @property
    def table(self) -> RenderableType:
        """What the terminal shows."""

    @property
    def content(self) -> Any:
        """The same as data, for :attr:`flatwise.StudyOutcome.sections`."""

    def html(self, link: Callable[[str], Markup]) -> Markup:
        """Return the section of the page.

        Args:
            link: turns the name of a cell into a link to its page.
        """


@dataclass(frozen=True, slots=True)
class Plugin:
    """What a package adds.

    Attributes:
        tasks: by name.
        studies: gives the text of study files by the studies' names. Default: none.
        check: called before a study is run; raises :class:`flatwise.study.spec.StudyError` for one that the section
            could not be made of. Default: nothing is checked.
        section: makes the report's section of a study and of what is judged so far, by cell; ``None`` where it has
            nothing to say. Default: no section.
    """

    tasks: Mapping[str, Task] = field(default_factory=dict)
    studies: Callable[[], Mapping[str, str]] = dict
    check: Callable[[StudySpec], None] | None = None
    section: Callable[[StudySpec, Mapping[str, Comparison]], Section | None] | None = None


@functools.cache
def plugins() -> Mapping[str, Plugin]:
    """The installed plugins, by their entry points' names.

    Raises:
        PluginError: one cannot be imported or is no :class:`Plugin`.
    """
    found = {}
    for point in sorted(metadata.entry_points(group=GROUP)):
        try:
            plugin = point.load()
        except Exception as error:
            raise PluginError(
                f"the plugin '{point.name}' ({point.value}) cannot be loaded: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(plugin, Plugin):
            raise PluginError(f"the plugin '{point.name}' ({point.value}) is a {type(plugin).__name__}, not a Plugin")
        code = f"{point.dist.name} {point.dist.version}" if point.dist else point.value
        named = {name: replace(task, code=code) for name, task in plugin.tasks.items()}
        found[point.name] = replace(plugin, tasks=named)
    return found


TASKS: dict[str, Task] = {DIGITS_MLP.name: DIGITS_MLP}


def all_tasks() -> dict[str, Task]:
    """The built-in task and those of all plugins, by name."""
    return TASKS | {name: task for plugin in plugins().values() for name, task in plugin.tasks.items()}


def packaged_studies() -> dict[str, str]:
    """The text of the study files of all plugins, by name: table 2 before table 10."""
    texts = {name: text for plugin in plugins().values() for name, text in plugin.studies().items()}
    return {name: texts[name] for name in sorted(texts, key=_numbers_by_value)}


def study_text(name: str) -> str:
    """Return a packaged study's file as it stands, as a start for your own study.

    Raises:
        UnknownStudyError: there is none of that name; the message has the closest, and all names.
    """
    texts = packaged_studies()
    if name not in texts:
        names = f"The studies are {', '.join(texts)}." if texts else "No package with studies is installed."
        raise UnknownStudyError(f"there is no study '{name}': {did_you_mean(name, texts)}{names}{_more('studies')}")
    return texts[name]


def load_study(name: str) -> StudySpec:
    """Return a packaged study.

    Raises:
        UnknownStudyError: as for :func:`study_text`.
    """
    return parse_study(study_text(name), name=name, source=f"studies/{name}.toml")


def _numbers_by_value(name: str) -> list[tuple[bool, int, str]]:
    parts = re.split(r"(\d+)", name)
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]


def _more(what: str) -> str:
    """Where the papers' tasks and studies are, for whoever looks for them without the package that has them."""
    return "" if "papers" in plugins() else f" The papers' {what} are in flatwise-papers: pip install flatwise-papers"


_REMEMBERED: ContextVar[Mapping[str, Task] | None] = ContextVar("remembered", default=None)


@contextmanager
def without_imports(tasks: Mapping[str, Task]) -> Iterator[None]:
    """In the block :func:`get_task` imports nothing: tasks of the user's own are those that a store remembers."""
    token = _REMEMBERED.set(tasks)
    try:
        yield
    finally:
        _REMEMBERED.reset(token)


def get_task(name: str) -> Task:
    """Return the task of that name, built in or a plugin's, or the user's own that ``"module:attribute"`` names.

    Raises:
        UnknownTaskError: there is none; the message has the closest name and all names.
    """
    if name in TASKS:
        return TASKS[name]
    for plugin in plugins().values():
        if name in plugin.tasks:
            return plugin.tasks[name]
    remembered = _REMEMBERED.get()
    if ":" in name and remembered is not None:
        if name not in remembered:
            raise UnknownTaskError(f"nothing of the task '{name}' was run yet, and only `flatwise run` imports it")
        return remembered[name]
    if ":" in name:
        return _import_task(name)
    known = list(all_tasks())
    raise UnknownTaskError(
        f"there is no task '{name}': {did_you_mean(name, known)}The tasks are {', '.join(known)}.{_more('tasks')}"
    )


def _import_task(name: str) -> Task:
    module, _, attribute = name.partition(":")
    folder = str(Path.cwd())
    if folder not in sys.path:  # as `python -m` does
        sys.path.insert(0, folder)
    if not all(part.isidentifier() for part in [*module.split("."), attribute]):
        raise UnknownTaskError(f"'{name}' names no task: expected module:attribute, as in my_tasks:RIDGE")
    try:
        imported = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UnknownTaskError(
            f"the task '{name}' cannot be imported: no module '{error.name}' is in the current folder or installed"
        ) from None
    except Exception as error:
        raise UnknownTaskError(f"the task '{name}' cannot be imported: {type(error).__name__}: {error}") from None
    _check_unchanged(imported)
    if not hasattr(imported, attribute):
        raise UnknownTaskError(f"the module '{module}' has no '{attribute}', which the task '{name}' names")
    task = getattr(imported, attribute)
    if not isinstance(task, Task):
        raise UnknownTaskError(f"'{name}' is a {type(task).__name__}, not a flatwise.Task")
    return replace(task, name=name, is_own=True)


_IMPORTED: dict[str, bytes] = {}  # content of the files of modules with tasks, as they were imported


def _check_unchanged(module: ModuleType) -> None:
    """A trial is known by the source that it is trained by: that must be what this process has imported."""
    path = Path(getattr(module, "__file__", None) or "")
    if path.suffix == ".py":
        content = path.read_bytes()
        if _IMPORTED.setdefault(module.__name__, content) != content:
            raise UnknownTaskError(f"{path.name} was changed after it was imported: start the program again")
