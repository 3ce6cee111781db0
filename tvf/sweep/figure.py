"""The main figure for papers: score against fraction, and against cost, as PNG and SVG (matplotlib)."""

import io
from collections.abc import Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from tvf.sweep.charts import FRACTION, colours
from tvf.sweep.comparison import Comparison

MARKS = ("o", "s", "^", "D", "v", "X")  # in the order of the page's


def draw(comparisons: Sequence[Comparison], kind: str) -> bytes:
    """The figure as a file of `kind` png or svg: a row for each comparison. Text in an SVG stays text."""
    figure = Figure(figsize=(10, 4.2 * max(len(comparisons), 1)), layout="constrained")
    axes = figure.subplots(max(len(comparisons), 1), 2, squeeze=False)
    for row, comparison in zip(axes, comparisons, strict=False):
        _row(row, comparison)
    content = io.BytesIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "tvf"}):
        metadata = {"Date": None} if kind == "svg" else None
        figure.savefig(content, format=kind, dpi=200, metadata=metadata)
    return content.getvalue()


def _row(axes: Sequence[Any], comparison: Comparison) -> None:
    by_fraction, by_cost = axes
    fractions = sorted({each.fraction for each in comparison.configurations})
    palette, marks = colours(fractions), {each: MARKS[i % len(MARKS)] for i, each in enumerate(fractions)}
    series: dict[str, list[tuple[float, float]]] = {}
    for each in comparison.configurations:
        if each.val is None:
            continue
        colour, mark = palette[each.fraction], marks[each.fraction]
        series.setdefault(each.label.partition(", ")[2], []).append((each.fraction, each.val.mean))
        reach = None if each.val.high is None else each.val.high - each.val.mean
        style = {"color": colour, "marker": mark, "linestyle": "none", "zorder": 3}
        by_fraction.errorbar(
            [each.fraction], [each.val.mean], None if reach is None else [reach], **style, markersize=8
        )
        values = list(each.scores.values())
        style |= {"markerfacecolor": "none", "alpha": 0.7, "markersize": 4}
        by_fraction.plot([each.fraction] * len(values), values, **style)
        if each.seconds:
            ring = {"markeredgecolor": "black"} if each.label in comparison.front else {}
            by_cost.plot([each.seconds], [each.val.mean], marker=mark, color=colour, markersize=9, **ring)
            near = {"textcoords": "offset points", "xytext": (8, -12), "fontsize": 8}
            by_cost.annotate(each.label, (each.seconds, each.val.mean), **near)
    for points in series.values():
        by_fraction.plot(*zip(*points, strict=True), color="gray", alpha=0.5, zorder=1)
    by_fraction.set(xlabel=FRACTION, ylabel=f"validation {comparison.word}", xticks=fractions)
    by_cost.set(xlabel="training, seconds a job", ylabel=f"validation {comparison.word}", title=comparison.title)
    by_cost.margins(0.1)
    if any(each.seconds for each in comparison.configurations):
        by_cost.set_xscale("log")
        by_cost.xaxis.set_major_formatter(lambda seconds, _: f"{seconds:g}")
    for axis in axes:
        axis.grid(alpha=0.2)
        axis.spines[["top", "right"]].set_visible(False)
