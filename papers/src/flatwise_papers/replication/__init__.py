"""The papers' tables as data, studies that repeat them, and a ledger of what became of each claim."""
