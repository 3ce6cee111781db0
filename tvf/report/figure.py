"""The main figure for papers: score against fraction, and against cost, as PNG and SVG (matplotlib)."""

import io
from collections.abc import Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatter

from tvf.report.charts import colours, fraction_title, score_range, series_of
from tvf.report.comparison import Comparison

MARKS = ("o", "s", "^", "D", "v", "X")  # in the order of the page's


def draw_figure(comparisons: Sequence[Comparison], kind: str) -> bytes:
    """The figure as a file of `kind` png or svg: a row for each comparison. Text in an SVG stays text."""
    figure = Figure(figsize=(10, 4.2 * max(len(comparisons), 1)), layout="constrained")
    axes = figure.subplots(max(len(comparisons), 1), 2, squeeze=False)
    palette = colours(
        each.fraction for comparison in comparisons for each in comparison.configurations
    )
    for row, comparison in zip(axes, comparisons, strict=False):
        _row(row, comparison, palette)
    content = io.BytesIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "tvf", "text.parse_math": False}):
        figure.savefig(
            content, format=kind, dpi=200, metadata={"Date": None} if kind == "svg" else None
        )
    return content.getvalue()


def _row(axes: Sequence[Any], comparison: Comparison, palette: dict[float, str]) -> None:
    by_fraction, by_cost = axes
    scored = [each for each in comparison.configurations if each.val]
    fractions = sorted({each.fraction for each in comparison.configurations})
    series = sorted({series_of(each.label) for each in scored})
    marks = dict(zip(series if len(series) > 1 else fractions, MARKS * 100, strict=False))
    for each in scored:
        assert each.val is not None
        mark = marks[series_of(each.label) if len(series) > 1 else each.fraction]
        style = {"color": palette[each.fraction], "marker": mark, "linestyle": "none", "zorder": 3}
        bars = None
        if each.val.low is not None and each.val.high is not None:
            bars = [[each.val.mean - each.val.low], [each.val.high - each.val.mean]]
        by_fraction.errorbar([each.fraction], [each.val.mean], bars, **style, markersize=8)
        if each.seconds:
            by_cost.errorbar([each.seconds], [each.val.mean], bars, **style, markersize=8)
            near = {
                "textcoords": "offset points",
                "xytext": (8, -12),
                "fontsize": 8,
                "parse_math": False,
            }
            by_cost.annotate(each.label, (each.seconds, each.val.mean), **near)
            if each.label in comparison.front:
                by_cost.plot(
                    [each.seconds],
                    [each.val.mean],
                    "o",
                    markersize=17,
                    color="black",
                    fillstyle="none",
                )
        style |= {"markerfacecolor": "none", "alpha": 0.7, "markersize": 4}
        by_fraction.plot([each.fraction] * len(each.scores), list(each.scores.values()), **style)
    for name in series:
        points = [
            (each.fraction, each.val.mean)
            for each in scored
            if each.val and series_of(each.label) == name
        ]
        by_fraction.plot(*zip(*points, strict=True), color="gray", alpha=0.5, zorder=1)
    if len(series) > 1:
        drawn = [
            Line2D([], [], color="gray", linestyle="none", marker=marks[name]) for name in series
        ]
        by_fraction.legend(drawn, series, fontsize=8, frameon=False)
    by_fraction.set(xlabel=fraction_title(comparison), xticks=fractions)
    by_fraction.set_title(comparison.title, loc="left", fontsize=10, parse_math=False)
    by_cost.set(xlabel="training, own seconds of a job (ringed: the Pareto front)")
    if any(each.seconds for each in scored):
        by_cost.set_xscale("log")
        by_cost.xaxis.set_major_formatter(lambda seconds, _: f"{seconds:g}")
        by_cost.xaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.2, 0.6)))
        by_cost.margins(x=0.1)
    for axis in axes:
        axis.set(
            ylabel=f"validation {comparison.word}",
            **({"ylim": score_range(comparison)} if scored else {}),
        )
        axis.grid(alpha=0.2)
        axis.spines[["top", "right"]].set_visible(False)
