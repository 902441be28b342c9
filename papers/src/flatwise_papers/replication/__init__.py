"""Replication: the papers' tables as data, studies that repeat them, and a ledger of what became of each claim."""

from flatwise_papers.replication.claims import (
    Claim,
    PaperRow,
    PaperTableError,
    Reported,
    find_claims,
    find_row,
    read_paper_tables,
)
from flatwise_papers.replication.ledger import (
    Entry,
    Ledger,
    LedgerError,
    build_ledger,
    write_ledger_csv,
)
from flatwise_papers.replication.rules import BaselineCheck, Measured
from flatwise_papers.replication.section import ledger_markdown

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
    "build_ledger",
    "find_claims",
    "find_row",
    "ledger_markdown",
    "read_paper_tables",
    "write_ledger_csv",
]
