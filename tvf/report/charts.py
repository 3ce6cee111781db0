"""The comparison's charts, as Vega-Lite specifications for a page. A fraction has the same colour and mark in all.

Colours of text and axes are `currentColor`, so that a page's own, light or dark, are theirs.
"""

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

import altair as alt

from tvf.report.comparison import Comparison, own_seconds

# Far apart (more than 20 in CIELAB) for normal, deuteranopic, protanopic and tritanopic sight, and all at 2.4:1 or more
# against white and near-black alike.
COLOURS = {0.0: "#3caa96", 0.25: "#ad8bf2", 0.5: "#873ac6", 0.75: "#d19013", 1.0: "#b63036"}
MORE_COLOURS = (
    "#5c683e",
    "#55a5c6",
    "#a23985",
    "#b5996e",
    "#802bfc",
)  # of other fractions, told apart by marks too
SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross")
TICKS = 10  # on an axis of epochs, at most
SINGLE_LINES = 100  # with more jobs the curves show means alone
FAINT = {"color": "currentColor", "opacity": 0.35}


def colours(fractions: Iterable[float]) -> dict[float, str]:
    """The colour of each fraction; those that everybody tries have theirs for good."""
    distinct = sorted({*fractions})
    others = [each for each in distinct if each not in COLOURS]
    if len(others) > len(MORE_COLOURS):
        return {each: _between(each) for each in distinct}
    return {each: COLOURS.get(each) or MORE_COLOURS[others.index(each)] for each in distinct}


def _between(fraction: float) -> str:
    """Of many fractions: mixed from the two of COLOURS beside it, so that no two are the same."""
    low = max(each for each in COLOURS if each <= fraction)
    high = min(each for each in COLOURS if each >= fraction)
    part = (fraction - low) / (high - low) if high > low else 0.0
    ends = [[int(COLOURS[each][i : i + 2], 16) for i in (1, 3, 5)] for each in (low, high)]
    return "#" + "".join(f"{round(a + part * (b - a)):02x}" for a, b in zip(*ends, strict=True))


def fraction_title(comparison: Comparison) -> str:
    """What the axis of fractions is called: groups are counted, or parameters."""
    units = {
        (row["config"].get("model") or {}).get("unit")
        for each in comparison.configurations
        for row in each.jobs
    }
    return f"fraction of the {'parameters' if 'params' in units else 'groups'} that trains (pct_unfreeze)"


def charts(comparison: Comparison, palette: dict[float, str]) -> dict[str, dict[str, Any]]:
    """Specifications by what the page calls the charts; one that there is no data for is left out."""
    drawn = {}
    if any(each.val for each in comparison.configurations):
        drawn["score"] = score_by_fraction(comparison, palette)
        drawn["cost"] = score_by_cost(comparison, palette)
    key = comparison.score_key.removeprefix("val_")
    if any(row["history"] for each in comparison.configurations for row in each.jobs):
        drawn["curves"] = learning_curves(comparison, palette, key, comparison.word)
        drawn["losses"] = learning_curves(comparison, palette, "loss", "loss (cross-entropy)")
    if any(each.estimate.low is not None for each in comparison.differences):
        drawn["differences"] = differences(comparison)
    return {name: _finish(chart) for name, chart in drawn.items()}


def score_range(comparison: Comparison) -> list[float]:
    """What the axis of scores has to show: every seed and every interval, and some room where they are all alike."""
    shown = [score for each in comparison.configurations for score in each.scores.values()]
    for each in comparison.configurations:
        shown += (
            [end for end in (each.val.low, each.val.high) if end is not None] if each.val else []
        )
    room = max(0.02 * (max(shown) - min(shown)), 0.005)
    return [max(min(shown) - room, 0.0), min(max(shown) + room, 1.0)]


def score_by_fraction(comparison: Comparison, palette: dict[float, str]) -> Any:
    """Means with their intervals, joined by a line, and every seed's point."""
    means, jobs = _means(comparison), _jobs(comparison)
    x = alt.X(
        "fraction:Q",
        title=fraction_title(comparison),
        axis=alt.Axis(values=_fractions(comparison), format=".3~f"),
        scale=alt.Scale(padding=16),
    )
    title = f"validation {comparison.word}"
    y = alt.Y("score:Q", title=title, scale=alt.Scale(domain=score_range(comparison), nice=True))
    base = alt.Chart(alt.InlineData(values=means)).encode(x=x, y=y)
    line = base.mark_line(**FAINT).encode(detail="series:N")
    rule = base.mark_rule(strokeWidth=2).encode(
        y=alt.Y("low:Q", title=title), y2="high:Q", color=_colour(comparison, palette)
    )
    mean = base.mark_point(size=110, filled=True, opacity=1).encode(
        color=_colour(comparison, palette),
        shape=_shape(comparison),
        tooltip=_mean_tooltip(comparison),
    )
    seed = alt.Chart(alt.InlineData(values=jobs)).mark_point(
        size=50, strokeWidth=1.2, filled=False, opacity=0.8
    )
    seeds = seed.encode(
        x=x,
        y=y,
        color=_colour(comparison, palette),
        shape=_shape(comparison),
        tooltip=_job_tooltip(comparison),
    )
    intervals = [rule] if any(each["low"] is not None for each in means) else []
    return alt.layer(line, *intervals, seeds, mean).properties(height=320)


def score_by_cost(comparison: Comparison, palette: dict[float, str]) -> Any:
    """Means against seconds of training; what nothing else beats in both is joined by a line and ringed."""
    means = [each for each in _means(comparison) if each["seconds"]]
    title = f"validation {comparison.word}"
    scale = alt.Scale(type="log" if means else "linear", padding=24, nice=False)
    base = alt.Chart(alt.InlineData(values=means)).encode(
        x=alt.X(
            "seconds:Q",
            title="training, own seconds of a job (logarithmic)",
            scale=scale,
            axis=alt.Axis(format=".3~g"),
        ),
        y=alt.Y("score:Q", title=title, scale=alt.Scale(domain=score_range(comparison), nice=True)),
    )
    front = base.transform_filter("datum.front")
    steps = front.mark_line(interpolate="step-after", strokeDash=[5, 4], **FAINT)
    rings = front.mark_point(size=330, color="currentColor", strokeWidth=1.5)
    rule = base.mark_rule(strokeWidth=2).encode(
        y=alt.Y("low:Q", title=title), y2="high:Q", color=_colour(comparison, palette)
    )
    mean = base.mark_point(size=110, filled=True, opacity=1).encode(
        color=_colour(comparison, palette),
        shape=_shape(comparison),
        tooltip=_mean_tooltip(comparison),
    )
    intervals = [rule] if any(each["low"] is not None for each in means) else []
    return alt.layer(steps, *intervals, rings, mean).properties(height=320)


def learning_curves(comparison: Comparison, palette: dict[float, str], key: str, word: str) -> Any:
    """Means over the seeds that count for each epoch; training is dashed, thin lines are single seeds."""
    lines, means = [], []
    for configuration in comparison.configurations:
        who = {
            "label": configuration.label,
            "fraction": configuration.fraction,
            "series": series_of(configuration.label),
        }
        for part, name in (("validation", f"val_{key}"), ("training", f"train_{key}")):
            by_epoch: dict[int, list[float]] = {}
            for row in configuration.done or configuration.jobs:
                for epoch in row["history"]:
                    if (value := epoch.get(name)) is not None:
                        by_epoch.setdefault(epoch["epoch"], []).append(value)
                        lines.append(
                            who
                            | {
                                "part": part,
                                "epoch": epoch["epoch"],
                                "value": value,
                                "seed": row["seed"],
                            }
                        )
            for number, values in sorted(by_epoch.items()):
                means.append(
                    who
                    | {"part": part, "epoch": number, "value": fmean(values), "seeds": len(values)}
                )
    epochs = sorted({each["epoch"] for each in means})
    ticks = epochs[:: max(1, -(-len(epochs) // TICKS))]
    x = alt.X("epoch:Q", title="epoch", axis=alt.Axis(values=ticks, format="d"))
    y = alt.Y("value:Q", title=word, scale=alt.Scale(zero=False))
    dashes = alt.Scale(domain=["validation", "training"], range=[[1, 0], [5, 4]])
    dash = alt.StrokeDash("part:N", title=None, scale=dashes, legend=alt.Legend(orient="top"))
    single = len({(each["label"], each["seed"]) for each in lines}) <= SINGLE_LINES
    base = alt.Chart(alt.InlineData(values=means)).encode(
        x=x, y=y, color=_colour(comparison, palette)
    )
    mean = base.mark_line(strokeWidth=2.5).encode(strokeDash=dash, detail="label:N")
    points = base.mark_point(filled=True, opacity=1, size=30).encode(
        shape=_shape(comparison), detail=["label:N", "part:N"]
    )
    nearest = alt.selection_point(
        nearest=True, on="pointerover", clear="pointerout", fields=["epoch", "label", "part"]
    )
    tooltip = [
        alt.Tooltip("label:N", title="pct_unfreeze"),
        alt.Tooltip("part:N"),
        alt.Tooltip("epoch:Q"),
        alt.Tooltip("value:Q", title=f"mean {word}", format=".4f"),
        alt.Tooltip("seeds:Q"),
    ]
    hover = base.mark_point(filled=True, size=70).encode(
        opacity=alt.condition(nearest, alt.value(1), alt.value(0), empty=False), tooltip=tooltip
    )
    seeds = alt.Chart(alt.InlineData(values=lines if single else [])).encode(
        x=x, y=y, color=_colour(comparison, palette)
    )
    thin = seeds.mark_line(strokeWidth=0.8, opacity=0.4).encode(
        strokeDash=dash, detail=["label:N", "seed:N"]
    )
    return alt.layer(thin, mean, points, hover.add_params(nearest)).properties(height=300)


def differences(comparison: Comparison) -> Any:
    """Each pair's mean difference with its interval, and zero."""
    values = [
        {
            "pair": f"{each.a} − {each.b}",
            "difference": each.estimate.mean,
            **{key: getattr(each.estimate, key) for key in ("low", "high", "n")},
            **{"p": each.p, "p_holm": each.p_holm},
        }
        for each in comparison.differences
    ]
    title = f"difference in validation {comparison.word}, paired by seed"
    long = any(len(each["pair"]) > 25 for each in values)
    lines = alt.Axis(
        labelLimit=250, labelExpr="split(datum.label, '− ')" if long else "datum.label"
    )
    base = alt.Chart(alt.InlineData(values=values)).encode(
        y=alt.Y("pair:N", title=None, sort=None, axis=lines),
        x=alt.X("difference:Q", title=title, axis=alt.Axis(tickCount=6)),
    )
    zero = (
        alt.Chart(alt.InlineData(values=[{"zero": 0}]))
        .mark_rule(strokeDash=[4, 4], **FAINT)
        .encode(x="zero:Q")
    )
    rule = base.mark_rule(strokeWidth=2, color="currentColor").encode(
        x=alt.X("low:Q", title=title, axis=alt.Axis(tickCount=6)), x2="high:Q"
    )
    tooltip = [
        "pair:N",
        *(alt.Tooltip(f"{key}:Q", format="+.4f") for key in ("difference", "low", "high")),
    ]
    tooltip += [
        alt.Tooltip("n:Q", title="seeds"),
        *(alt.Tooltip(f"{key}:Q", format=".3g") for key in ("p", "p_holm")),
    ]
    mean = base.mark_point(size=90, filled=True, opacity=1, color="currentColor").encode(
        tooltip=tooltip
    )
    return alt.layer(zero, rule, mean).properties(height=(40 if long else 26) * len(values))


def _finish(chart: Any) -> dict[str, Any]:
    plain = {
        "labelColor": "currentColor",
        "titleColor": "currentColor",
        "labelFontSize": 12,
        "titleFontSize": 12,
    }
    lines = {
        "domainColor": "currentColor",
        "tickColor": "currentColor",
        "gridColor": "currentColor",
    }
    symbols = {"symbolBaseFillColor": "currentColor", "symbolBaseStrokeColor": "currentColor"}
    return (
        chart.properties(width="container", background="transparent")
        .configure(font="system-ui, sans-serif")
        .configure_axis(**plain, **lines, gridOpacity=0.15, titleFontWeight="normal")
        .configure_legend(**plain, orient="bottom", symbolSize=90, symbolOpacity=1, **symbols)
        .configure_view(stroke=None)
        .to_dict()
    )


def _means(comparison: Comparison) -> list[dict[str, Any]]:
    return [
        {
            **{
                "label": each.label,
                "fraction": each.fraction,
                "series": series_of(each.label),
                "score": each.val.mean,
            },
            **{
                "low": each.val.low,
                "high": each.val.high,
                "n": each.val.n,
                "seconds": each.seconds,
            },
            "front": each.label in comparison.front,
        }
        for each in comparison.configurations
        if each.val
    ]


def _jobs(comparison: Comparison) -> list[dict[str, Any]]:
    return [
        {
            **{"label": each.label, "fraction": each.fraction, "series": series_of(each.label)},
            **{"seed": row["seed"], "score": each.scores[row["seed"]], "seconds": own_seconds(row)},
        }
        for each in comparison.configurations
        for row in each.done
    ]


def series_of(label: str) -> str:
    """What a configuration is besides its fraction."""
    return label.partition(", ")[2] or "default"


def _fractions(comparison: Comparison) -> list[float]:
    return sorted({each.fraction for each in comparison.configurations})


def _colour(comparison: Comparison, palette: dict[float, str]) -> Any:
    fractions = _fractions(comparison)
    scale = alt.Scale(domain=fractions, range=[palette[each] for each in fractions])
    return alt.Color("fraction:N", title="pct_unfreeze", scale=scale)


def _shape(comparison: Comparison) -> Any:
    """By what else varies, where something does; else by fraction, so that colour is not all there is to see."""
    series = sorted({series_of(each.label) for each in comparison.configurations})
    if len(series) > 1:
        scale = alt.Scale(domain=series, range=_shapes(series))
        return alt.Shape(
            "series:N", title="besides", scale=scale, legend=alt.Legend(columns=1, labelLimit=300)
        )
    fractions = _fractions(comparison)
    return alt.Shape(
        "fraction:N",
        title="pct_unfreeze",
        scale=alt.Scale(domain=fractions, range=_shapes(fractions)),
    )


def _shapes(values: Sequence[Any]) -> list[str]:
    return [SHAPES[index % len(SHAPES)] for index in range(len(values))]


def _mean_tooltip(comparison: Comparison) -> list[Any]:
    return [
        alt.Tooltip("label:N", title="pct_unfreeze"),
        alt.Tooltip("score:Q", title=f"mean {comparison.word}", format=".4f"),
        alt.Tooltip("low:Q", title="95 % from", format=".4f"),
        alt.Tooltip("high:Q", title="95 % to", format=".4f"),
        alt.Tooltip("n:Q", title="seeds"),
        alt.Tooltip("seconds:Q", title="own seconds", format=".3~g"),
    ]


def _job_tooltip(comparison: Comparison) -> list[Any]:
    return [
        alt.Tooltip("label:N", title="pct_unfreeze"),
        alt.Tooltip("seed:N"),
        alt.Tooltip("score:Q", title=comparison.word, format=".4f"),
        alt.Tooltip("seconds:Q", title="own seconds", format=".3~g"),
    ]
