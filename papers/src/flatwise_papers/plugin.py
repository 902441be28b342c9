"""What flatwise finds here: the papers' tasks, their tables as studies, and the ledger in a study's report."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources

from flatwise.study.comparison import Comparison
from flatwise.study.registry import Plugin, get_task
from flatwise.study.spec import StudyError, StudySpec
from flatwise_papers.replication.claims import find_claims
from flatwise_papers.replication.ledger import build_ledger
from flatwise_papers.replication.section import LedgerSection
from flatwise_papers.tasks.classifiers import MLP_TASKS, TEXT_TASKS
from flatwise_papers.tasks.graphs import GRAPH_TASKS
from flatwise_papers.tasks.images import IMAGE_TASKS


def study_texts() -> Mapping[str, str]:
    """The papers' tables as study files: the text of each by its name."""
    folder = resources.files("flatwise_papers.replication").joinpath("studies")
    return {
        file.name.removesuffix(".toml"): file.read_text(encoding="utf-8")
        for file in folder.iterdir()
        if file.name.endswith(".toml")
    }


def check_claims(study: StudySpec) -> None:
    """Check that the papers' results fit the study and are comparable with its own.

    Raises:
        PaperTableError, StudyError: they do not, or are not.
    """
    if not has_claims(study):
        return
    find_claims(study)
    for cell in study.cells:
        task = get_task(cell.task)
        if (task.unit, task.better) != ("%", "lower"):
            raise StudyError(
                f"cell {cell.name!r}: the papers' results are errors in percent, but {cell.task} is judged by "
                f"{task.metric} in {task.unit!r}, {task.better} is better: omit `paper` in cells and arms"
            )


def has_claims(study: StudySpec) -> bool:
    """Whether a study replicates a claim of a paper."""
    return any(arm.paper.arm is not None for arm in study.arms)


def ledger_section(study: StudySpec, compared: Mapping[str, Comparison]) -> LedgerSection | None:
    """The ledger of a study's claims; ``None`` where it replicates none."""
    return LedgerSection(build_ledger(study, compared)) if has_claims(study) else None


PLUGIN = Plugin(
    tasks=(*MLP_TASKS, *GRAPH_TASKS, *IMAGE_TASKS, *TEXT_TASKS),
    studies=study_texts,
    check=check_claims,
    section=ledger_section,
)
