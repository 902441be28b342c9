"""The page's section on flatness: it stands after the verdict on the metric, and never changes it."""

from __future__ import annotations

from collections.abc import Callable

import plotly.graph_objects as go
from markupsafe import Markup

from flatwise.report.flatness_figures import against_metric_and_rate, arm_beside_arm, strip_height
from flatwise.report.flatness_rows import against_controls, against_vanilla, scale_of
from flatwise.report.flatness_sentences import coefficient, correlation_lines, flatness_headline, method_lines
from flatwise.report.html_page import templates
from flatwise.report.rows import difference_unit, metric_label
from flatwise.report.style import arm_styles
from flatwise.study.comparison import Comparison


def flatness_section(comparison: Comparison, draw: Callable[[go.Figure], str | None]) -> Markup:
    """The section as HTML; empty where no flatness was measured.

    Args:
        comparison: the comparison to show.
        draw: keeps a figure for the page and returns the id of the element that it is drawn in.
    """
    flatness = comparison.flatness
    if flatness is None:
        return Markup("")
    styles = arm_styles(comparison)
    text = (
        templates()
        .get_template("flatness.html.jinja")
        .render(
            comparison=comparison,
            flatness=flatness,
            headline=flatness_headline(comparison, flatness),
            methods=method_lines(comparison, flatness),
            correlations=correlation_lines(comparison, flatness),
            rate_with_metric=coefficient(flatness.rate_with_metric),
            tables=[
                ("minus vanilla", against_vanilla(comparison, flatness)),
                ("minus its control", against_controls(comparison, flatness)),
            ],
            headers=[(m.label.replace(" at ", "\nat ").split("\n"), scale_of(m).power) for m in flatness.measures],
            metric=metric_label(comparison),
            difference_unit=difference_unit(comparison),
            legend={arm.name: styles[arm.name] for arm in comparison.arms},
            strips=[(name, draw(figure)) for name, figure in arm_beside_arm(comparison, flatness).items()],
            strip_height=strip_height(comparison),
            scatters=[(name, draw(figure)) for name, figure in against_metric_and_rate(comparison, flatness).items()],
        )
    )
    return Markup(text)  # rendered with escaping on
