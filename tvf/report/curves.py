"""The chart of learning curves: training and validation by epoch."""

from statistics import fmean
from typing import Any

import altair as alt

from tvf.report.comparison import Comparison
from tvf.report.encodings import LayeredChart, Palette, Points, colour, identity, shape

MAX_TICKS = 10  # on the axis of epochs
MAX_SINGLE_LINES = 100  # with more jobs, only means are drawn


def count_epochs(comparison: Comparison) -> int:
    """The most epochs that a job has trained: a single one makes no curve."""
    jobs = [job for configuration in comparison.configurations for job in configuration.jobs]
    return max((len(job["history"]) for job in jobs), default=0)


def learning_curves(comparison: Comparison, palette: Palette, key: str, word: str) -> LayeredChart:
    """Means over trainings by epoch, dashed for training; thin lines are single trainings.

    `key` is the score's name in records without its prefix (acc, loss), `word` its name in text.
    """
    single, means = _curve_points(comparison, key)
    epochs = sorted({point["epoch"] for point in means})
    ticks = epochs[:: max(1, -(-len(epochs) // MAX_TICKS))]
    x = alt.X("epoch:Q", title="epoch", axis=alt.Axis(values=ticks, format="d"))
    y = alt.Y("value:Q", title=word, scale=alt.Scale(zero=False))
    dash = alt.StrokeDash(
        "split:N",
        title=None,
        scale=alt.Scale(domain=["validation", "training"], range=[[1, 0], [5, 4]]),
        legend=alt.Legend(orient="top"),
    )
    jobs = {(point["label"], point["job"]) for point in single}
    thin = (
        alt.Chart(Points(values=single if len(jobs) <= MAX_SINGLE_LINES else []))
        .mark_line(strokeWidth=0.8, opacity=0.4)
        .encode(
            x=x,
            y=y,
            color=colour(comparison, palette),
            strokeDash=dash,
            detail=[alt.Detail("label:N"), alt.Detail("job:N")],
        )
    )
    base = alt.Chart(Points(values=means)).encode(x=x, y=y, color=colour(comparison, palette))
    lines = base.mark_line(strokeWidth=2.5).encode(strokeDash=dash, detail=alt.Detail("label:N"))
    points = base.mark_point(filled=True, opacity=1, size=30).encode(
        shape=shape(comparison), detail=[alt.Detail("label:N"), alt.Detail("split:N")]
    )
    return alt.layer(thin, lines, points, _points_on_hover(base, word)).properties(height=300)


def _points_on_hover(base: alt.Chart, word: str) -> alt.Chart:
    """Points that show, with a tooltip, when the pointer is nearest to them."""
    nearest = alt.selection_point(
        nearest=True, on="pointerover", clear="pointerout", fields=["epoch", "label", "split"]
    )
    visible = alt.condition(nearest, alt.value(1), alt.value(0), empty=False)
    opacity = alt.OpacityValue(**visible)
    tooltip = [
        alt.Tooltip("label:N", title="pct_unfreeze"),
        alt.Tooltip("split:N"),
        alt.Tooltip("epoch:Q"),
        alt.Tooltip("value:Q", title=f"mean {word}", format=".4f"),
        alt.Tooltip("trainings:Q"),
    ]
    points = base.mark_point(filled=True, size=70).encode(opacity=opacity, tooltip=tooltip)
    return points.add_params(nearest)


def _curve_points(
    comparison: Comparison, key: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The points of single trainings, and those of the means over trainings."""
    single, means = [], []
    for configuration in comparison.configurations:
        for split, name in (("validation", f"val_{key}"), ("training", f"train_{key}")):
            common = identity(configuration) | {"split": split}
            by_epoch: dict[int, list[float]] = {}
            for job in configuration.done or configuration.jobs:
                for epoch in job["history"]:
                    if (value := epoch.get(name)) is None:
                        continue
                    by_epoch.setdefault(epoch["epoch"], []).append(value)
                    point = {"epoch": epoch["epoch"], "value": value, "job": job["folder"]}
                    single.append(common | point)
            for number, values in sorted(by_epoch.items()):
                point = {"epoch": number, "value": fmean(values), "trainings": len(values)}
                means.append(common | point)
    return single, means
