"""What a study file says, checked before anything runs."""

from flatwise.study.spec.read import StudyError, parse_study, read_study, read_study_text
from flatwise.study.spec.space import Choices, Range, Space, Times
from flatwise.study.spec.study_spec import ArmSpec, CellSpec, FinalSpec, PaperSpec, StudySpec, TuningSpec

__all__ = [
    "ArmSpec",
    "CellSpec",
    "Choices",
    "FinalSpec",
    "PaperSpec",
    "Range",
    "Space",
    "StudyError",
    "StudySpec",
    "Times",
    "TuningSpec",
    "parse_study",
    "read_study",
    "read_study_text",
]
