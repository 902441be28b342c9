"""The studies that come with the package: each replicates a table of a paper, or a part of one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib import resources

from flatter.study.hints import did_you_mean
from flatter.study.spec import StudySpec, parse_study

_FOLDER = resources.files("flatter.replication").joinpath("studies")


class UnknownStudyError(LookupError):
    """No packaged study has that name."""


@dataclass(frozen=True, slots=True)
class StudyInfo:
    """What a list of studies says about one.

    Attributes:
        name: what it is called on the command line, such as ``"leap-table-3"``.
        summary: one line: what is replicated.
        on_gpu: whether a cell runs on a GPU unless its setting ``device`` is changed: on a CPU it would take days.
    """

    name: str
    summary: str
    on_gpu: bool


@cache
def study_names() -> tuple[str, ...]:
    """The names of all packaged studies, table 2 before table 10."""
    names = [file.name.removesuffix(".toml") for file in _FOLDER.iterdir() if file.name.endswith(".toml")]
    return tuple(sorted(names, key=lambda name: [int(part) if part.isdigit() else part for part in _parts(name)]))


def list_studies() -> tuple[StudyInfo, ...]:
    """Name, summary and need of a GPU of every packaged study."""
    studies = [load_study(name) for name in study_names()]
    return tuple(StudyInfo(study.name, study.title, _on_gpu(study)) for study in studies)


def load_study(name: str) -> StudySpec:
    """Return a packaged study.

    Raises:
        UnknownStudyError: there is none of that name; the message has the closest, and all names.
    """
    return parse_study(study_text(name), name=name, source=f"studies/{name}.toml")


def study_text(name: str) -> str:
    """Return a packaged study's file as it stands, as a start for your own study.

    Raises:
        UnknownStudyError: as for :func:`load_study`.
    """
    if name not in study_names():
        hint = did_you_mean(name, study_names())
        raise UnknownStudyError(f"there is no study '{name}': {hint}The studies are {', '.join(study_names())}.")
    return _FOLDER.joinpath(f"{name}.toml").read_text(encoding="utf-8")


def _on_gpu(study: StudySpec) -> bool:
    return any((study.settings | cell.settings).get("device") == "cuda" for cell in study.cells)


def _parts(name: str) -> list[str]:
    return re.split(r"(\d+)", name)
