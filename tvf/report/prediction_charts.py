"""Charts of one configuration's predictions: a reliability diagram and a confusion heat map."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import altair as alt
import numpy as np

from tvf.report.calibration import reliability, splits_of
from tvf.report.configuration import Configuration
from tvf.report.encodings import INK, LayeredChart, Points
from tvf.report.palette import shapes

MOST_CLASSES = 30  # of a heat map; beyond, the most confused pairs are listed
LISTED_PAIRS = 20
DIGIT_WIDTH = 8  # pixels
SERIES = {
    "validation, before scaling": ("val", False),
    "validation, after scaling": ("val", True),
    "test, after scaling": ("test", True),
}


class ConfusedPair(NamedTuple):
    """How often images of a class are predicted as another one, and which share of them that is."""

    label: str
    predicted: str
    images: int
    share: float


def count_confusion(configuration: Configuration, classes: Sequence[str]) -> np.ndarray | None:
    """Validation images by class and predicted class, int [C, C], summed over trainings.

    Records of jobs have it for up to 100 classes. None if a training has no predictions, or if
    they have other classes.
    """
    size = len(classes)
    total = np.zeros((size, size), np.int64)
    for job in configuration.done:
        recorded = job["summary"].get("val_confusion")
        if recorded:
            matrix = np.array(recorded)
        elif (seen := splits_of(job).get("val")) is not None:
            matrix = np.zeros((seen.logits.shape[1],) * 2, np.int64)
            np.add.at(matrix, (seen.labels, seen.logits.argmax(1)), 1)
        else:
            return None
        if matrix.shape != total.shape:
            return None
        total += matrix
    return total if size > 1 and total.any() else None


def confused_pairs(classes: Sequence[str], confusion: np.ndarray) -> list[ConfusedPair]:
    """The pairs of classes with the most mistakes, most frequent first, of counts [C, C]."""
    totals = confusion.sum(1)
    pairs = [
        ConfusedPair(
            classes[label],
            classes[predicted],
            int(confusion[label, predicted]),
            float(confusion[label, predicted] / totals[label]),
        )
        for label, predicted in np.argwhere(confusion).tolist()
        if label != predicted
    ]
    return sorted(pairs, key=lambda pair: -pair.images)[:LISTED_PAIRS]


def confusion_heat_map(classes: Sequence[str], confusion: np.ndarray, colour: str) -> LayeredChart:
    """Counts [C, C]; the larger their share of the true class, the stronger the colour."""
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    cells = [
        {
            "label": classes[label],
            "predicted": classes[predicted],
            "count": int(confusion[label, predicted]),
            "share": float(shares[label, predicted]),
        }
        for label, predicted in np.ndindex(confusion.shape)
    ]
    angle = 0 if len(classes) <= 4 else -45 if len(classes) <= 12 else -90
    axis = {"labelLimit": 110, "domain": False, "ticks": False, "grid": False}
    base = alt.Chart(Points(values=cells)).encode(
        x=alt.X(
            "predicted:N",
            sort=None,
            title="predicted",
            axis=alt.Axis(labelAngle=angle, labelOverlap=True, **axis),
            scale=alt.Scale(paddingInner=0.04),
        ),
        y=alt.Y(
            "label:N",
            sort=None,
            title="true",
            axis=alt.Axis(**axis),
            scale=alt.Scale(paddingInner=0.04),
        ),
        tooltip=[
            alt.Tooltip("label:N", title="true"),
            alt.Tooltip("predicted:N"),
            alt.Tooltip("count:Q", title="images", format=",d"),
            alt.Tooltip("share:Q", title="share of the true class", format=".1%"),
        ],
    )
    # Opacity rather than a colour scale: the cells are readable on a light and on a dark page. The
    # square root makes rare mistakes visible.
    scale = alt.Scale(type="sqrt", domain=[0, 1], range=[0.03, 0.7])
    opacity = alt.Opacity("share:Q", legend=None, scale=scale)
    rectangles = base.mark_rect(color=colour).encode(opacity=opacity)
    needed = DIGIT_WIDTH * len(f"{int(confusion.max()):,}") * len(classes)
    # Counts are hidden where the page is too narrow for them.
    counts = base.mark_text(
        color=INK, fontSize=12, opacity=alt.ExprRef(expr=f"width > {needed} ? 1 : 0")
    ).encode(text=alt.Text("count:Q", format=",d"))
    height = min(max(320, 40 * len(classes)), 560)
    return alt.layer(rectangles, counts).properties(height=height)


def reliability_diagram(configuration: Configuration, colour: str) -> LayeredChart | None:
    """The share of correct predictions by confidence; None without predictions."""
    points = [
        {"series": series, **point}
        for series, (split, scaled) in SERIES.items()
        for point in reliability(configuration.done, split, scaled=scaled)
    ]
    if not points:
        return None
    names = list(dict.fromkeys(point["series"] for point in points))
    lowest = min(min(point["confidence"], point["correct"]) for point in points)
    start = int(lowest * 10) / 10
    diagonal = [{"confidence": end, "correct": end} for end in (start, 1.0)]
    scale, axis = alt.Scale(domain=[start, 1]), alt.Axis(tickCount=6)
    x = alt.X("confidence:Q", title="probability of the predicted class", scale=scale, axis=axis)
    y = alt.Y("correct:Q", title="share that is correct", scale=scale, axis=axis)
    ideal = (
        alt.Chart(Points(values=diagonal))
        .mark_line(color=INK, opacity=0.35, strokeDash=[2, 3], strokeWidth=1.5)
        .encode(x=x, y=y)
    )
    legend = alt.Legend(columns=1, labelLimit=300)
    colours: list[Any] = [INK if name.startswith("test") else colour for name in names]
    base = alt.Chart(Points(values=points)).encode(
        x=x,
        y=y,
        color=alt.Color(
            "series:N", title=None, scale=alt.Scale(domain=names, range=colours), legend=legend
        ),
    )
    lines = base.mark_line(strokeWidth=1.5, opacity=0.7).encode(
        strokeDash=alt.StrokeDashValue(
            **alt.condition(
                alt.FieldOneOfPredicate("series", [name for name in names if "before" in name]),
                alt.value([5, 4]),
                alt.value([1, 0]),
            )
        )
    )
    marks = base.mark_point(size=60, filled=True, opacity=1).encode(
        shape=alt.Shape(
            "series:N",
            title=None,
            scale=alt.Scale(domain=names, range=shapes(names)),
        ),
        tooltip=[
            alt.Tooltip("series:N", title="images"),
            alt.Tooltip("confidence:Q", title="mean probability", format=".3f"),
            alt.Tooltip("correct:Q", title="correct", format=".1%"),
            alt.Tooltip("predictions:Q", format=",d"),
        ],
    )
    return alt.layer(ideal, lines, marks).properties(height=320)
