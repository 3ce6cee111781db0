"""The chart of scores by the number of training images."""

from dataclasses import replace
from math import exp, log
from typing import Any

import altair as alt
import numpy as np

from tvf.report.comparison import Comparison
from tvf.report.configuration import Score
from tvf.report.data_curves import DataCurves, Outlook, train_images
from tvf.report.encodings import (
    LayeredChart,
    Palette,
    Points,
    colour,
    identity,
    score_title,
    shape,
)
from tvf.report.power_law import predict_score

SPREAD = 0.014  # between the bars of two curves, in parts of the axis, so that all can be seen
PADDING = 0.06  # on both sides of the axis, in the same parts
STEPS = 20  # of the line that continues a curve


def score_by_images(comparison: Comparison, palette: Palette) -> LayeredChart:
    """Mean scores with intervals, a line for each curve, and the continuation of one as dashes."""
    data = comparison.data
    assert data is not None, "the caller checks"
    # The same colours and shapes as for the configurations, without the limit in their labels.
    curves = replace(
        comparison,
        configurations=[replace(curve.points[-1], label=curve.label) for curve in data.curves],
    )
    points = _points(data)
    ends = [*(size.images for size in data.sizes)]
    if data.outlook:
        ends.append(data.outlook.images)
    padding = (ends[-1] / ends[0]) ** PADDING
    x = alt.X(
        "position:Q",
        title="training images (log scale)",
        scale=alt.Scale(type="log", domain=[ends[0] / padding, ends[-1] * padding], nice=False),
        axis=alt.Axis(values=[round(end) for end in ends], format=",d", labelOverlap=True),
    )
    y = alt.Y("score:Q", title=score_title(comparison), scale=alt.Scale(zero=False, nice=True))
    base = alt.Chart(Points(values=points)).encode(x=x, y=y, color=colour(curves, palette))
    layers = [base.mark_line(strokeWidth=1.5, opacity=0.6).encode(detail=alt.Detail("label:N"))]
    if any(point["low"] is not None for point in points):
        layers.append(
            base.mark_rule(strokeWidth=2).encode(y=_end("low", comparison), y2=alt.Y2("high:Q"))
        )
    layers.append(
        base.mark_point(size=80, filled=True, opacity=1).encode(
            shape=shape(curves), tooltip=_tooltip(comparison)
        )
    )
    if data.outlook:
        ahead = alt.Chart(Points(values=_ahead(data.outlook))).encode(
            x=x, y=y, color=colour(curves, palette)
        )
        band = ahead.mark_area(opacity=0.15).encode(y=_end("low", comparison), y2=alt.Y2("high:Q"))
        layers += [band, ahead.mark_line(strokeWidth=2, strokeDash=[5, 4])]
    return alt.layer(*layers).properties(height=320)


def _end(key: str, comparison: Comparison) -> alt.Y:
    return alt.Y(f"{key}:Q", title=score_title(comparison))


def _points(data: DataCurves) -> list[dict[str, Any]]:
    """A point for each configuration; curves are shifted sideways, so that no bar hides another."""
    width = log(data.sizes[-1].images / data.sizes[0].images)
    middle = (len(data.curves) - 1) / 2
    points = []
    for index, curve in enumerate(data.curves):
        shift = exp((index - middle) * SPREAD * width)
        for point in curve.points:
            images = train_images(point)
            if point.val and images:
                position = {"images": images, "position": images * shift}
                points.append(
                    identity(replace(point, label=curve.label)) | position | _score(point.val)
                )
    return points


def _score(val: Score) -> dict[str, Any]:
    return {
        "score": val.mean,
        "low": val.low,
        "high": val.high,
        "covers": val.covers,
        "n": val.trainings,
    }


def _ahead(outlook: Outlook) -> list[dict[str, Any]]:
    """The power law from the most images there are to more; the band is that of the gain."""
    curve, gain = outlook.curve, outlook.gain
    law, start = curve.law, train_images(curve.points[-1])
    assert law and start and gain.low is not None and gain.high is not None, "an outlook has them"
    now = predict_score(law, start)
    points = []
    for images in np.geomspace(start, outlook.images, STEPS):
        score = predict_score(law, float(images))
        done = (score - now) / gain.mean if gain.mean else 0.0
        points.append(
            identity(replace(curve.points[-1], label=curve.label))
            | {"position": float(images), "score": score}
            | {"low": now + done * gain.low, "high": now + done * gain.high}
        )
    return points


def _tooltip(comparison: Comparison) -> list[alt.Tooltip]:
    return [
        alt.Tooltip("label:N", title="pct_unfreeze"),
        alt.Tooltip("images:Q", title="training images", format=",.0f"),
        alt.Tooltip("score:Q", title=f"mean {comparison.word}", format=".4f"),
        alt.Tooltip("low:Q", title="95 % from", format=".4f"),
        alt.Tooltip("high:Q", title="95 % to", format=".4f"),
        alt.Tooltip("covers:N", title="for"),
        alt.Tooltip("n:Q", title="trainings"),
    ]
