"""Replication: the papers' tables as data, studies that repeat them, and a ledger of what became of each claim."""

from flatter.replication.catalogue import (
    StudyInfo,
    UnknownStudyError,
    list_studies,
    load_study,
    study_names,
    study_text,
)
from flatter.replication.claims import Claim, Reported, find_claims
from flatter.replication.ledger import Entry, Ledger, LedgerError, build_ledger
from flatter.replication.rules import BaselineCheck, Measured
from flatter.replication.tables import PaperRow, PaperTableError, find_row, read_paper_tables
from flatter.replication.tabulate import ledger_markdown, write_ledger_csv

__all__ = [
    "BaselineCheck",
    "Claim",
    "Entry",
    "Ledger",
    "LedgerError",
    "Measured",
    "PaperRow",
    "PaperTableError",
    "Reported",
    "StudyInfo",
    "UnknownStudyError",
    "build_ledger",
    "find_claims",
    "find_row",
    "ledger_markdown",
    "list_studies",
    "load_study",
    "read_paper_tables",
    "study_names",
    "study_text",
    "write_ledger_csv",
]
