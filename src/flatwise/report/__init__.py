"""A comparison or a study in; tables for the terminal, and pages, out. Nothing is computed here.

These modules are internal to flatwise. A plugin that adds a section to a study's report may use
:mod:`flatwise.report.table` and :func:`flatwise.report.page.templates`.
"""
