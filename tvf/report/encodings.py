"""Shared parts of the charts: data, colours, shapes, titles and tooltips.

Text and lines have the colour `currentColor`, which a page resolves to its own, light or dark.
"""

from typing import Any

import altair as alt
from altair.utils.schemapi import debug_mode

from tvf.report.comparison import Comparison
from tvf.report.configuration import (
    Configuration,
    name_trainings,
    own_seconds,
    training_of,
)
from tvf.report.palette import SHAPES, shapes
from tvf.report.raced import beside_winner
from tvf.report.words import numerically

Palette = dict[float, str]  # colours by fraction
LayeredChart = alt.LayerChart | alt.FacetChart  # the return type of alt.layer
INK = "currentColor"
SPREAD = 0.03  # between marks of one fraction, in parts of the axis: about the width of a mark
MOST_SERIES = len(SHAPES)  # with shapes of their own


# A decorator: Altair checks every part of a chart against its schema when it is made, which takes
# longer than all else on a page. tests/report/test_chart_schema.py checks every chart.
unchecked = debug_mode(False)


class Points(alt.InlineData):
    """A chart's data, which its layers and copies share: Altair would copy every value."""

    def __deepcopy__(self, memo: Any) -> "Points":
        return self


def to_vega_lite(chart: LayeredChart) -> dict[str, Any]:
    """A chart's specification, unchecked as well."""
    return chart.to_dict(validate=False)


def series_of(label: str) -> str:
    """The part of a configuration's label after the fraction: with LoRA, model.rank=4."""
    return label.lstrip("0123456789.e-").removeprefix(",").strip() or "default"


def identity(configuration: Configuration) -> dict[str, Any]:
    """The values that identify a configuration in a chart's data."""
    return {
        "label": configuration.label,
        "fraction": configuration.fraction,
        "series": series_of(configuration.label),
    }


def positions(comparison: Comparison) -> dict[str, float]:
    """Places on the axis of fractions, by label: side by side where several have one fraction.

    Where there are many, they come closer, so as to stay nearer to their fraction than to the next.
    """
    fractions, places = fractions_of(comparison), {}
    width = fractions[-1] - fractions[0]
    shown = [group for group in comparison.configurations if group.done]
    for fraction in fractions:
        beside = [each.label for each in shown if each.fraction == fraction]
        room = min((abs(other - fraction) for other in fractions if other != fraction), default=0)
        step = min(SPREAD * width, 0.7 * room / max(1, len(beside)))
        middle = (len(beside) - 1) / 2
        places |= {label: fraction + (n - middle) * step for n, label in enumerate(beside)}
    return places


def mean_points(comparison: Comparison) -> list[dict[str, Any]]:
    """A point for each configuration's mean score, of those that compare."""
    places = positions(comparison)
    return [
        {
            **identity(configuration),
            "place": places[configuration.label],
            "score": configuration.val.mean,
            "low": configuration.val.low,
            "high": configuration.val.high,
            "n": configuration.val.trainings,
            "covers": configuration.val.covers,
            "seconds": configuration.seconds,
            "front": configuration.label in comparison.front,
        }
        for configuration in beside_winner(comparison.configurations)
        if configuration.val
    ]


def training_points(comparison: Comparison) -> list[dict[str, Any]]:
    """A point for each job that counts."""
    names = name_trainings([each for group in comparison.configurations for each in group.scores])
    places = positions(comparison)
    return [
        {
            **identity(configuration),
            "place": places[configuration.label],
            "training": names[training_of(job)],
            "score": configuration.scores[training_of(job)],
            "seconds": own_seconds(job),
        }
        for configuration in comparison.configurations
        for job in configuration.done
    ]


def fractions_of(comparison: Comparison) -> list[float]:
    """The distinct fractions, in order."""
    return sorted({configuration.fraction for configuration in comparison.configurations})


def fraction_title(comparison: Comparison) -> str:
    """Title of the fraction axis, which counts groups or parameters."""
    units = {
        (job["config"].get("model") or {}).get("unit")
        for configuration in comparison.configurations
        for job in configuration.jobs
    }
    unit = "parameters" if "params" in units else "groups"
    return f"fraction of the {unit} that trains (pct_unfreeze)"


def score_axis(comparison: Comparison) -> alt.Y:
    """The score upwards, on an axis that shows every training and every interval."""
    return alt.Y("score:Q", title=score_title(comparison), scale=_score_scale(comparison))


def score_axis_across(comparison: Comparison, field: str = "score:Q") -> alt.X:
    """The same axis from left to right, for any of its fields."""
    return alt.X(field, title=score_title(comparison), scale=_score_scale(comparison))


def score_title(comparison: Comparison) -> str:
    """Title of the score axis."""
    return f"validation {comparison.word}"


def _score_scale(comparison: Comparison) -> alt.Scale:
    """The range of scores and intervals, with a margin even if all are equal."""
    shown: list[float] = []
    for configuration in comparison.configurations:
        shown += configuration.scores.values()
        if val := configuration.val:
            shown += [end for end in (val.low, val.high) if end is not None]
    margin = max(0.02 * (max(shown) - min(shown)), 0.005)
    domain = [max(min(shown) - margin, 0.0), min(max(shown) + margin, 1.0)]
    return alt.Scale(domain=domain, nice=True)


def colour(comparison: Comparison, palette: Palette) -> alt.Color:
    """Colour by fraction."""
    fractions = fractions_of(comparison)
    scale = alt.Scale(domain=fractions, range=[palette[fraction] for fraction in fractions])
    return alt.Color("fraction:N", title="pct_unfreeze", scale=scale)


def shape(comparison: Comparison) -> alt.Shape:
    """Shape by the other settings that vary; if none or too many do, by fraction, like the colour.

    Tooltips name the settings.
    """
    labels = {series_of(group.label) for group in comparison.configurations}
    series = sorted(labels, key=numerically)
    if 1 < len(series) <= MOST_SERIES:
        return alt.Shape(
            "series:N",
            title="other settings",
            scale=alt.Scale(domain=series, range=shapes(series)),
            legend=alt.Legend(columns=1, labelLimit=300),
        )
    fractions = fractions_of(comparison)
    scale = alt.Scale(domain=fractions, range=shapes(fractions))
    return alt.Shape("fraction:N", title="pct_unfreeze", scale=scale)


def mean_tooltip(comparison: Comparison) -> list[alt.Tooltip]:
    """The tooltip of a mean."""
    return [
        alt.Tooltip("label:N", title="pct_unfreeze"),
        alt.Tooltip("score:Q", title=f"mean {comparison.word}", format=".4f"),
        alt.Tooltip("low:Q", title="95 % from", format=".4f"),
        alt.Tooltip("high:Q", title="95 % to", format=".4f"),
        alt.Tooltip("covers:N", title="for"),
        alt.Tooltip("n:Q", title="trainings"),
        alt.Tooltip("seconds:Q", title="own seconds", format=".3~g"),
    ]


def training_tooltip(comparison: Comparison) -> list[alt.Tooltip]:
    """The tooltip of a single training."""
    return [
        alt.Tooltip("label:N", title="pct_unfreeze"),
        alt.Tooltip("training:N"),
        alt.Tooltip("score:Q", title=comparison.word, format=".4f"),
        alt.Tooltip("seconds:Q", title="own seconds", format=".3~g"),
    ]
