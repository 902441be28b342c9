"""Tasks and studies by name: flatwise's own task, and what other packages add.

A package adds tasks, packaged studies, and a section of a study's report by naming a :class:`Plugin` in its
``pyproject.toml``::

    [project.entry-points."flatwise.plugins"]
    mine = "my_package.plugin:PLUGIN"

``flatwise compare`` and ``flatwise run`` then know its tasks and studies by name. flatwise-papers, which has the
papers' experiments, is such a package.
"""

from __future__ import annotations

import functools
import importlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from markupsafe import Markup
from rich.console import RenderableType

from flatwise.exceptions import FlatwiseError
from flatwise.study.comparison import Comparison
from flatwise.study.hints import did_you_mean
from flatwise.study.spec import StudySpec
from flatwise.study.study_file import parse_study
from flatwise.study.task import Task
from flatwise.study.tasks.classification import DIGITS_MLP

GROUP = "flatwise.plugins"


class UnknownTaskError(FlatwiseError, LookupError):
    """There is no task of that name, or it cannot be imported. The message is one line."""


class UnknownStudyError(FlatwiseError, LookupError):
    """No packaged study has that name. The message is one line."""


class PluginError(FlatwiseError):
    """A package that extends flatwise cannot be loaded, or clashes with another. The message is one line."""


class Section(Protocol):
    """A section that a plugin adds to the report of a study."""

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
        tasks: tasks; each is known by its own name.
        studies: returns the text of study files by the studies' names. Default: no studies.
        check: called before a study is run; raises :class:`flatwise.study.spec.StudyError` if the section cannot be
            made for this study. Default: no check.
        section: makes the report's section from a study and the comparisons so far, by cell; ``None`` if it has
            nothing to say about the study. Default: no section.
    """

    tasks: Sequence[Task] = ()
    studies: Callable[[], Mapping[str, str]] = dict
    check: Callable[[StudySpec], None] | None = None
    section: Callable[[StudySpec, Mapping[str, Comparison]], Section | None] | None = None


TASKS: dict[str, Task] = {DIGITS_MLP.name: DIGITS_MLP}


@functools.cache
def plugins() -> Mapping[str, Plugin]:
    """The installed plugins, by their entry points' names.

    Raises:
        PluginError: one cannot be imported, is no :class:`Plugin`, or has the name or a task's name of another one.
    """
    found: dict[str, Plugin] = {}
    owners = dict.fromkeys(TASKS, "flatwise")
    for point in sorted(metadata.entry_points(group=GROUP)):
        package = f"{point.dist.name} {point.dist.version}" if point.dist else point.value
        plugin = _loaded(point, package)
        if point.name in found:
            raise PluginError(
                f"two packages have a plugin named '{point.name}', {package} is one: uninstall one of them"
            )
        for task in plugin.tasks:
            _claim(owners, "task", task.name, package)
        # A trial is known by the version of the package that its task comes from.
        found[point.name] = replace(plugin, tasks=[replace(task, code=package) for task in plugin.tasks])
    return found


def _loaded(point: metadata.EntryPoint, package: str) -> Plugin:
    try:
        plugin = point.load()
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise PluginError(
            f"the plugin '{point.name}' of {package} cannot be imported from {point.value} ({reason}): repair the "
            "package, or uninstall it"
        ) from error
    if not isinstance(plugin, Plugin):
        raise PluginError(
            f"the plugin '{point.name}' of {package} must be a flatwise.study.registry.Plugin, but {point.value} is a "
            f"{type(plugin).__name__}: repair the package, or uninstall it"
        )
    return plugin


def _claim(owners: dict[str, str], what: str, name: str, package: str) -> None:
    """Note whose a name is; every name must be one package's alone."""
    if name in owners:
        both = f"twice in {package}" if owners[name] == package else f"in {owners[name]} and in {package}"
        raise PluginError(f"there is a {what} '{name}' {both}: rename one of the two, or uninstall a package")
    owners[name] = package


def all_tasks() -> dict[str, Task]:
    """The built-in task and those of all plugins, by name."""
    return TASKS | {task.name: task for plugin in plugins().values() for task in plugin.tasks}


def packaged_studies() -> dict[str, str]:
    """The text of the study files of all plugins, by name: table 2 before table 10.

    Raises:
        PluginError: two plugins have a study of the same name.
    """
    texts: dict[str, str] = {}
    owners: dict[str, str] = {}
    for plugin_name, plugin in plugins().items():
        for name, text in plugin.studies().items():
            _claim(owners, "study", name, f"the plugin '{plugin_name}'")
            texts[name] = text
    return {name: texts[name] for name in sorted(texts, key=_numbers_by_value)}


def study_text(name: str) -> str:
    """Return a packaged study's file as it stands, as a start for your own study.

    Raises:
        UnknownStudyError: there is none of that name; the message has the closest, and all names.
    """
    texts = packaged_studies()
    if name not in texts:
        raise UnknownStudyError(f"there is no study {name!r}: {did_you_mean(name, texts)}{known_studies(texts)}")
    return texts[name]


def known_studies(names: Iterable[str]) -> str:
    """A sentence with the packaged studies' names, and where to get the papers' if they are not installed."""
    listed = ", ".join(names)
    return (f"The studies are {listed}." if listed else "No studies are installed.") + _more("studies")


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
    """Where to get the papers' tasks and studies, if they are not installed."""
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
    if ":" in name:  # the user's own; the plugins, which take long to import, are not asked
        remembered = _REMEMBERED.get()
        if remembered is None:
            return _import_task(name)
        if name not in remembered:
            raise UnknownTaskError(f"nothing of the task {name!r} was run yet, and only `flatwise run` imports it")
        return remembered[name]
    known = all_tasks()
    if name in known:
        return known[name]
    raise UnknownTaskError(
        f"there is no task {name!r}: {did_you_mean(name, known)}The tasks are {', '.join(known)}.{_more('tasks')}"
    )


def _import_task(name: str) -> Task:
    module, _, attribute = name.partition(":")
    folder = str(Path.cwd())
    if folder not in sys.path:  # as `python -m` does
        sys.path.insert(0, folder)
    if not all(part.isidentifier() for part in [*module.split("."), attribute]):
        raise UnknownTaskError(f"{name!r} names no task: expected module:attribute, as in my_tasks:RIDGE")
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
