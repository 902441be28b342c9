"""The comparison on the terminal: two tables and a sentence for each method."""

from __future__ import annotations

from rich.console import Console

from flatter.report.flatness_sentences import flatness_headline, method_lines
from flatter.report.sentences import warnings
from flatter.report.table import comparison_table, control_table, summary_lines
from flatter.study.comparison import Comparison


def show(comparison: Comparison, console: Console) -> None:
    """Prints a comparison.

    Args:
        comparison: what to print.
        console: where.
    """
    console.print(comparison_table(comparison))
    if any(arm.control is not None for arm in comparison.arms):
        console.print(control_table(comparison))
    for line in warnings(comparison):
        console.print(f"! {line}", highlight=False, markup=False, style="yellow")
    for line in summary_lines(comparison):
        console.print(f"• {line}", highlight=False, markup=False)
    if comparison.flatness is not None:
        console.print("\nFlatness (lower is flatter; it does not decide whether a method helps)", style="bold")
        console.print(flatness_headline(comparison, comparison.flatness), highlight=False, markup=False)
        for name, line in method_lines(comparison, comparison.flatness):
            console.print(f"• {name}: {line}", highlight=False, markup=False)
