"""The comparison's charts in Altair, and their Vega-Lite specifications for the page."""

from collections.abc import Sequence
from math import ceil, floor, log10
from typing import Any

import altair as alt

from tvf.report.comparison import Comparison
from tvf.report.curves import count_epochs, learning_curves
from tvf.report.data_chart import score_by_images
from tvf.report.encodings import (
    INK,
    LayeredChart,
    Palette,
    Points,
    colour,
    fraction_title,
    fractions_of,
    mean_points,
    mean_tooltip,
    score_axis,
    score_axis_across,
    score_title,
    shape,
    to_vega_lite,
    training_points,
    training_tooltip,
    unchecked,
)

ROW, LOW_ROW = 26, 15  # pixels: the height of a row, and where there are
MANY_ROWS = 30  # of them
MOST_TICKS = 6  # of the axis of costs
LONG_PAIR = 25  # characters; the two labels of a longer pair get a line each


@unchecked
def page_charts(comparison: Comparison, palette: Palette) -> dict[str, dict[str, Any]]:
    """The page's charts by name, as specifications, without charts that have no data.

    All but the chart of training images show the candidates only.
    """
    charts: dict[str, LayeredChart] = {}
    if comparison.data:
        charts["data"] = score_by_images(comparison, palette)
    comparison = comparison.of_candidates()
    configurations = comparison.configurations
    if any(configuration.val for configuration in configurations):
        charts["score"] = score_by_choice(comparison, palette)
        charts["cost"] = score_by_cost(comparison, palette)
    if count_epochs(comparison) > 1:
        key = comparison.score_key.removeprefix("val_")
        charts["curves"] = learning_curves(comparison, palette, key, comparison.word)
        charts["losses"] = learning_curves(comparison, palette, "loss", "loss (cross-entropy)")
    if any(pair.low is not None for pair in comparison.differences):
        charts["differences"] = paired_differences(comparison)
    return {name: page_specification(chart) for name, chart in charts.items()}


def score_by_choice(comparison: Comparison, palette: Palette) -> LayeredChart:
    """Mean scores with intervals, and a point for each training.

    By fraction; by configuration where all have the same fraction.
    """
    if varies_elsewhere(comparison):
        return _score_by_configuration(comparison, palette)
    return _score_by_fraction(comparison, palette)


def varies_elsewhere(comparison: Comparison) -> bool:
    """Whether only other settings than the fraction vary."""
    return len(fractions_of(comparison)) == 1 < len(comparison.configurations)


def _score_by_fraction(comparison: Comparison, palette: Palette) -> LayeredChart:
    x = alt.X(
        "place:Q",
        title=fraction_title(comparison),
        axis=alt.Axis(values=fractions_of(comparison), format=".3~f"),
        scale=alt.Scale(padding=16),
    )
    means = alt.Chart(Points(values=mean_points(comparison)))
    base = means.encode(x=x, y=score_axis(comparison))
    line = base.mark_line(color=INK, opacity=0.35).encode(detail=alt.Detail("series:N"))
    trainings = _trainings(comparison).encode(
        x=x,
        y=score_axis(comparison),
        color=colour(comparison, palette),
        shape=shape(comparison),
    )
    intervals = _intervals(base, comparison, palette)
    return alt.layer(line, *intervals, trainings, _means(base, comparison, palette)).properties(
        height=320
    )


def _score_by_configuration(comparison: Comparison, palette: Palette) -> LayeredChart:
    """A row for each configuration, in their order."""
    means, points = mean_points(comparison), training_points(comparison)
    labels = [*dict.fromkeys(point["label"] for point in (*means, *points))]
    rows = {
        "x": score_axis_across(comparison),
        "y": alt.Y("label:N", title=None, sort=labels, axis=alt.Axis(labelLimit=250)),
        "color": colour(comparison, palette).legend(None),
    }
    base = alt.Chart(Points(values=means)).encode(**rows)
    intervals = base.mark_rule(strokeWidth=2).encode(
        x=score_axis_across(comparison, "low:Q"), x2=alt.X2("high:Q")
    )
    filled = base.mark_point(size=110, filled=True, opacity=1).encode(
        tooltip=mean_tooltip(comparison)
    )
    has_intervals = any(point["low"] is not None for point in means)
    layers = [_trainings(comparison).encode(**rows), filled]
    height = len(labels) * (ROW if len(labels) <= MANY_ROWS else LOW_ROW)
    return alt.layer(*([intervals] if has_intervals else []), *layers).properties(height=height)


def _trainings(comparison: Comparison) -> alt.Chart:
    """An open mark for each training, to be placed."""
    points = alt.Chart(Points(values=training_points(comparison)))
    return points.mark_point(size=50, strokeWidth=1.2, filled=False, opacity=0.8).encode(
        tooltip=training_tooltip(comparison)
    )


def score_by_cost(comparison: Comparison, palette: Palette) -> LayeredChart:
    """Mean scores by training seconds; the Pareto front is ringed and joined by a line."""
    means = [point for point in mean_points(comparison) if point["seconds"]]
    x = alt.X(
        "seconds:Q",
        title="own training seconds per job (log scale)",
        scale=alt.Scale(type="log" if means else "linear", padding=24, nice=False),
        axis=alt.Axis(
            values=cost_ticks([point["seconds"] for point in means]),
            format=",.3~f",
            labelOverlap="greedy",
            labelSeparation=4,
        ),
    )
    base = alt.Chart(Points(values=means)).encode(x=x, y=score_axis(comparison))
    front = base.transform_filter("datum.front")
    steps = front.mark_line(interpolate="step-after", strokeDash=[5, 4], color=INK, opacity=0.35)
    rings = front.mark_point(size=330, color=INK, strokeWidth=1.5)
    intervals = _intervals(base, comparison, palette)
    return alt.layer(steps, *intervals, rings, _means(base, comparison, palette)).properties(
        height=320
    )


def cost_ticks(seconds: Sequence[float]) -> list[float]:
    """Round numbers for a logarithmic axis, few enough for a phone.

    1, 2 and 5 times powers of ten, or 1 and 3 times, or these alone; equal steps in short ranges.
    """
    if not seconds or min(seconds) <= 0:
        return []
    low, high = min(seconds), max(seconds)
    if high <= 1.01 * low:  # all cost the same
        return [low]
    powers = [10.0**power for power in range(floor(log10(low)), ceil(log10(high)) + 1)]
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = [factor * power for power in powers for factor in factors]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if 3 <= len(ticks) <= MOST_TICKS:
            return ticks
    if len(ticks) > MOST_TICKS:
        return ticks[:: ceil(len(ticks) / MOST_TICKS)]
    span = high - low
    steps = (factor * 10.0 ** floor(log10(span) - 1) for factor in (1, 2, 5, 10, 20, 50))
    step = next(step for step in steps if span / step < MOST_TICKS)
    return [step * number for number in range(ceil(low / step), floor(high / step) + 1)]


def _intervals(base: alt.Chart, comparison: Comparison, palette: Palette) -> list[alt.Chart]:
    """Bars of the 95 % intervals; none if no configuration has one."""
    if all(group.val is None or group.val.low is None for group in comparison.configurations):
        return []
    bars = base.mark_rule(strokeWidth=2).encode(
        y=alt.Y("low:Q", title=score_title(comparison)),
        y2=alt.Y2("high:Q"),
        color=colour(comparison, palette),
    )
    return [bars]


def _means(base: alt.Chart, comparison: Comparison, palette: Palette) -> alt.Chart:
    return base.mark_point(size=110, filled=True, opacity=1).encode(
        color=colour(comparison, palette),
        shape=shape(comparison),
        tooltip=mean_tooltip(comparison),
    )


def paired_differences(comparison: Comparison) -> LayeredChart:
    """The mean difference of each pair with its interval, and a line at zero."""
    values = [
        {
            "pair": f"{pair.a} − {pair.b}",
            "difference": pair.mean,
            "low": pair.low,
            "high": pair.high,
            "p": pair.p,
            "p_holm": pair.p_holm,
        }
        for pair in comparison.differences
    ]
    two_lines = any(len(value["pair"]) > LONG_PAIR for value in values)
    pair_label = "split(datum.label, '− ')" if two_lines else "datum.label"
    title = f"difference in validation {comparison.word}"
    axis = alt.Axis(tickCount=6, titleAnchor="end")  # the labels leave little room on a phone
    base = alt.Chart(Points(values=values)).encode(
        x=alt.X("difference:Q", title=title, axis=axis),
        y=alt.Y(
            "pair:N",
            title=None,
            sort=None,
            axis=alt.Axis(labelLimit=250, labelExpr=pair_label),
        ),
    )
    zero = (
        alt.Chart(Points(values=[{"zero": 0}]))
        .mark_rule(strokeDash=[4, 4], color=INK, opacity=0.35)
        .encode(x=alt.X("zero:Q"))
    )
    intervals = base.mark_rule(strokeWidth=2, color=INK).encode(
        x=alt.X("low:Q", title=title, axis=axis), x2=alt.X2("high:Q")
    )
    tooltip = [
        alt.Tooltip("pair:N"),
        alt.Tooltip("difference:Q", format="+.4f"),
        alt.Tooltip("low:Q", title="95 % from", format="+.4f"),
        alt.Tooltip("high:Q", title="95 % to", format="+.4f"),
        alt.Tooltip("p:Q", format=".3g"),
        alt.Tooltip("p_holm:Q", title="p (Holm)", format=".3g"),
    ]
    means = base.mark_point(size=90, filled=True, opacity=1, color=INK).encode(tooltip=tooltip)
    row_height = 40 if two_lines else 26
    return alt.layer(zero, intervals, means).properties(height=row_height * len(values))


def chart_config(font: str) -> dict[str, Any]:
    """The style of text, axes and legends, on the page and in pictures."""
    text = {"labelColor": INK, "titleColor": INK, "labelFontSize": 12, "titleFontSize": 12}
    return {
        "font": font,
        "axis": {
            **text,
            "titleFontWeight": "normal",
            "domainColor": INK,
            "tickColor": INK,
            "gridColor": INK,
            "gridOpacity": 0.15,
        },
        "legend": {
            **text,
            "orient": "bottom",
            "symbolSize": 90,
            "symbolOpacity": 1,
            "symbolBaseFillColor": INK,
            "symbolBaseStrokeColor": INK,
        },
        "view": {"stroke": None},
    }


def page_specification(chart: LayeredChart) -> dict[str, Any]:
    """A chart in Vega-Lite, as wide as its place on the page."""
    chart = chart.properties(width="container", background="transparent")
    specification = to_vega_lite(chart)
    return specification | {"config": chart_config("system-ui, sans-serif")}
