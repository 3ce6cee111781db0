"""Configurations that differ in data.train_limit: how scores depend on the training images.

Fewer images are no alternative for somebody who has more, so the recommendation is among the
configurations with the most images; the others show what more images would change.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from math import inf
from statistics import fmean

import numpy as np

from tvf.report.configuration import Configuration
from tvf.report.decide import EVIDENCE, probability_worse
from tvf.report.evidence import Evidence, collect_evidence
from tvf.report.images import Interval, compare_scores
from tvf.report.power_law import MIN_SIZES, PowerLaw, fit_power_law, predict_gain
from tvf.report.seeds import FlatConfig

TRAIN_LIMIT = "data.train_limit"
MORE = 2  # times as many images: how far a power law is extrapolated


@dataclass(frozen=True, eq=False)
class DataCurve:
    """Configurations that differ only in their training images: `points`, fewest images first.

    `label` is theirs without the limit. `law` is None where nothing should be said.
    """

    label: str
    fraction: float
    points: list[Configuration]
    law: PowerLaw | None


@dataclass(frozen=True, eq=False)
class DataSize:
    """What is known with one number of training images, the mean over jobs.

    `highest` is the label of the curve with the highest score; None if there is only one.
    `worse` holds by label the probability of being more than the margin worse than the truly best;
    None if the spread is unknown.
    """

    images: float
    limit: float
    highest: str | None
    worse: dict[str, float] | None

    @property
    def rivals(self) -> list[str]:
        """The labels of the others that are not shown to be worse than the best."""
        if self.worse is None:
            return []
        others = (label for label in self.worse if label != self.highest)
        return [label for label in others if self.worse[label] < 1 - EVIDENCE]


@dataclass(frozen=True, eq=False)
class Outlook:
    """What more images would add to a score, beside the best other configuration.

    `gain` is how much higher the score of `curve` would be with `images` training images, if its
    power law holds, `other` the best other configuration with the most images there are, and
    `difference` its score minus that of `curve`; None without another one.
    """

    curve: DataCurve
    images: float
    gain: Interval
    other: Configuration | None
    difference: Interval | None


@dataclass(frozen=True, eq=False)
class DataCurves:
    """All curves of a comparison, its numbers of training images, and what more would change."""

    curves: list[DataCurve]
    sizes: list[DataSize]
    outlook: Outlook | None
    margin: float


def train_limit(configuration: Configuration) -> float:
    """The most images that its jobs may train on; infinity without a limit."""
    limit = configuration.jobs[0]["config"]["data"].get("train_limit")
    return limit if isinstance(limit, int | float) else inf


def train_images(configuration: Configuration) -> float | None:
    """The number of images that its finished jobs trained on, their mean; None if unknown."""
    images = [job["summary"].get("images") for job in configuration.done]
    counts = [each.get("train") for each in images if isinstance(each, dict)]
    known = [count for count in counts if isinstance(count, int) and count > 0]
    return fmean(known) if known else None


def without_limit(label: str) -> str:
    """A configuration's label without the limit."""
    parts = label.split(", ")
    return ", ".join(part for part in parts if part.lstrip("+").partition("=")[0] != TRAIN_LIMIT)


def with_largest_limit(configurations: Sequence[Configuration]) -> list[Configuration]:
    """The configurations to choose among: those with the largest limit; all without scores.

    While a sweep runs, the largest limit at which at least half as many have a score as at any.
    """
    limits = [train_limit(group) for group in configurations if group.val]
    if not limits:
        return [*configurations]
    most = max(map(limits.count, limits))
    largest = max(limit for limit in limits if 2 * limits.count(limit) >= most)
    return [group for group in configurations if train_limit(group) == largest]


def without_largest_limit(configurations: Sequence[Configuration]) -> list[Configuration]:
    """The same configurations, those with the largest limit labelled without it.

    Only where limits differ, so that a label without a limit means the largest.
    """
    largest = with_largest_limit(configurations)
    if len(largest) == len(configurations):
        return [*configurations]
    return [
        replace(group, label=without_limit(group.label)) if group in largest else group
        for group in configurations
    ]


def collect_data_curves(
    configurations: Sequence[Configuration],
    configs: Sequence[FlatConfig],
    metric: str,
    margin: float,
) -> DataCurves | None:
    """Collect the curves; None with a single number of training images.

    `configs` belong to `configurations`. The outlook is that of `look_ahead`.
    """
    limits = _distinct_limits(configurations)
    if len(limits) < 2:
        return None
    shown = [
        (repr(sorted((k, repr(v)) for k, v in config.items() if k != TRAIN_LIMIT)), group)
        for group, config in zip(configurations, configs, strict=True)
        if group.val and train_images(group) and train_limit(group) in limits
    ]
    shown.sort(key=lambda pair: (pair[1].fraction, pair[0], train_limit(pair[1])))
    curves = [
        _build_curve([group for _, group in pairs], metric)
        for _, pairs in groupby(shown, key=lambda pair: pair[0])
    ]
    sizes = [_build_size(curves, limit, images, metric, margin) for limit, images in limits.items()]
    return DataCurves(curves, sizes, outlook=None, margin=margin)


def look_ahead(
    data: DataCurves, reference: Configuration | None, evidence: Evidence | None
) -> Outlook | None:
    """What twice the images would add to the score of `reference`, which has the most images.

    `evidence` is about the configurations with the most images, if there are several. None where
    nothing useful can be said: without a power law, or with a gain that may be below as well as
    above the margin, and as large as that of another configuration as well as not.
    """
    curve = next((curve for curve in data.curves if curve.points[-1] is reference), None)
    images = train_images(reference) if reference else None
    if curve is None or curve.law is None or images is None:
        return None
    gain = predict_gain(curve.law, images, MORE * images)
    other, difference = _best_other(curve.points[-1], evidence) if evidence else (None, None)
    outlook = Outlook(curve, MORE * images, gain, other, difference)
    return outlook if what_helps(outlook, data.margin) else None


def what_helps(outlook: Outlook, margin: float) -> str | None:
    """What would likely help more; None if that is open and the gain may be small or large.

    "neither": both add at most the margin; "other": the other configuration; "little": more images
    would add at most the margin; "images": more images, more than the other configuration; "some":
    more images, by more than the margin.
    """
    gain, difference = outlook.gain, outlook.difference
    assert gain.low is not None and gain.high is not None, "a fitted law has an interval"
    limit = difference.high if difference is not None else None
    if limit is not None and max(limit, gain.high) <= margin:
        return "neither"
    if difference is not None and difference.low is not None and difference.low > gain.high:
        return "other"
    if gain.high <= margin:
        return "little"
    if difference is not None and difference.high is not None:
        if gain.low > max(difference.high, 0):
            return "images"
    return "some" if gain.low > margin else None


def _distinct_limits(configurations: Sequence[Configuration]) -> dict[float, float]:
    """The mean number of training images by limit, both ascending.

    Leaves out a limit with as many images as a larger one: it has not limited anything.
    """
    counts: dict[float, list[float]] = {}
    for group in configurations:
        if group.val and (images := train_images(group)):
            counts.setdefault(train_limit(group), []).append(images)
    distinct: dict[float, float] = {}
    for limit in sorted(counts, reverse=True):
        images = fmean(counts[limit])
        if round(images) < min(map(round, distinct.values()), default=inf):
            distinct[limit] = images
    return dict(reversed(distinct.items()))


def _build_curve(points: list[Configuration], metric: str) -> DataCurve:
    law = None
    if len(points) >= MIN_SIZES:
        evidence = collect_evidence(points, metric, optimism=False)
        if evidence is not None:
            sizes = np.array([train_images(group) for group in evidence.configurations], float)
            law = fit_power_law(sizes, evidence.scores)
    return DataCurve(without_limit(points[-1].label), points[0].fraction, points, law)


def _build_size(
    curves: Sequence[DataCurve], limit: float, images: float, metric: str, margin: float
) -> DataSize:
    labels = {
        point.label: curve.label
        for curve in curves
        for point in curve.points
        if train_limit(point) == limit
    }
    points = [point for curve in curves for point in curve.points if point.label in labels]
    if len(points) < 2:
        return DataSize(images, limit, highest=None, worse=None)
    evidence = collect_evidence(points, metric, optimism=False)
    if evidence is None:
        best = max(points, key=lambda point: point.val.mean if point.val else -inf)
        return DataSize(images, limit, labels[best.label], worse=None)
    compared = [labels[group.label] for group in evidence.configurations]
    worse = probability_worse(evidence.scores, margin)
    by_label = None if worse is None else dict(zip(compared, worse, strict=True))
    return DataSize(images, limit, compared[int(evidence.scores.means.argmax())], by_label)


def _best_other(
    reference: Configuration, evidence: Evidence
) -> tuple[Configuration | None, Interval | None]:
    """The highest of the other configurations, and its score minus that of `reference`."""
    groups = evidence.configurations
    others = [index for index, group in enumerate(groups) if group is not reference]
    if reference not in groups or not others:
        return None, None
    other = max(others, key=lambda index: evidence.scores.means[index])
    return groups[other], compare_scores(evidence.scores, other, groups.index(reference)).interval
