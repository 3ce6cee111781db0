"""Sentences about how scores depend on the number of training images, the same in every format."""

from collections.abc import Sequence
from itertools import groupby
from math import inf

from tvf.report.configuration import Configuration
from tvf.report.data_curves import (
    TRAIN_LIMIT,
    DataCurves,
    DataSize,
    Outlook,
    train_images,
    train_limit,
    what_helps,
)
from tvf.report.decide import EVIDENCE
from tvf.report.images import Interval
from tvf.report.power_law import MIN_SIZES
from tvf.report.words import enumerate_words, percent, signed

DATA_HEADING = "How much data?"


def describe_candidates(
    configurations: Sequence[Configuration], candidates: Sequence[Configuration]
) -> str:
    """What the recommendation is among, if not among all configurations; else empty."""
    if len(candidates) == len(configurations):
        return ""
    limit = train_limit(candidates[0])
    counts = [images for images in map(train_images, candidates) if images]
    many = f"about {count(sum(counts) / len(counts))}, " if counts else ""
    text = (
        f"Only configurations with the most training images ({many}{_override(limit)}) are "
        "candidates; the others show what more images change."
    )
    others = [group for group in configurations if group not in candidates]
    if larger := [group for group in others if train_limit(group) > limit]:
        more = ", ".join(map(_override, sorted(set(map(train_limit, larger)))))
        some = any(group.val for group in larger)
        have = "Too few jobs with more ({}) have" if some else "No job with more ({}) has"
        text += f" {have.format(more)} finished yet."
    most = max(counts, default=inf)
    if idle := sorted({train_limit(g) for g in others if (train_images(g) or 0) >= most}):
        text += f" {', '.join(map(_override, idle))} limits nothing here and is left out."
    return text


def describe_data(data: DataCurves, word: str) -> list[str]:
    """Which configuration scores highest with how many images, and what more would change.

    `word` is the score's name in text.
    """
    sentences = [*_describe_highest(data)]
    if not sentences:
        sizes = _range([size.images for size in data.sizes])
        sentences = [f"The number of training images ranges from {sizes}."]
    if data.outlook is not None:
        return sentences + _describe_outlook(data.outlook, data.margin, word)
    return [*sentences, _describe_no_outlook(data)]


def count(images: float) -> str:
    """A number of images in text."""
    return f"{round(images):,}"


def _override(limit: float) -> str:
    return f"{TRAIN_LIMIT}={'null' if limit == inf else f'{limit:.0f}'}"


def _describe_highest(data: DataCurves) -> list[str]:
    sizes = [size for size in data.sizes if size.highest is not None]
    if len(sizes) < 2:
        return []
    runs = [(label, list(run)) for label, run in groupby(sizes, key=lambda size: size.highest)]
    if len(runs) == 1:
        images = _range([size.images for size in sizes])
        text = f"pct_unfreeze={runs[0][0]} scores highest with every number of training images"
        return [f"{text}, {images}.", *_describe_doubt(sizes, data.margin)]
    parts = [f"pct_unfreeze={label} with {_range([s.images for s in run])}" for label, run in runs]
    text = "Which configuration scores highest depends on the number of training images: "
    return [f"{text}{', '.join(parts)}.", *_describe_change(sizes, data.margin)]


def _describe_change(sizes: Sequence[DataSize], margin: float) -> list[str]:
    """Whether two configurations are shown to change places, and where the highest is not shown."""
    for few, many in _pairs_of_sizes(sizes):
        a, b = few.highest, many.highest
        if a is None or b is None or a == b or few.worse is None or many.worse is None:
            continue
        if min(few.worse.get(b, 0.0), many.worse.get(a, 0.0)) >= 1 - EVIDENCE:
            shown = (
                "The evidence supports this change: the probability of being more than "
                f"{margin:g} worse than the best is at least {percent(1 - EVIDENCE)} for {b} with "
                f"{count(few.images)} images and for {a} with {count(many.images)}."
            )
            numbers = _enumerate([size for size in sizes if size.rivals])
            return (
                [shown, f"With {numbers} images, others may do as well as the highest."]
                if numbers
                else [shown]
            )
    return [
        "The evidence does not show this change, which may be chance: with at least one of these "
        "numbers of images, the other one may do as well."
    ]


def _pairs_of_sizes(sizes: Sequence[DataSize]) -> list[tuple[DataSize, DataSize]]:
    """Pairs of a smaller and a larger size, those farthest apart first."""
    pairs = [(few, many) for i, few in enumerate(sizes) for many in sizes[i + 1 :]]
    return sorted(pairs, key=lambda pair: pair[0].images / pair[1].images)


def _describe_doubt(sizes: Sequence[DataSize], margin: float) -> list[str]:
    """With how many images others may do as well as the one that scores highest everywhere."""
    open_sizes = [size for size in sizes if size.worse is None or size.rivals]
    if not open_sizes:
        return [f"The others are shown to be more than {margin:g} worse with each of them."]
    labels = list(dict.fromkeys(label for size in open_sizes for label in size.rivals))
    named = " or ".join(f"pct_unfreeze={label}" for label in labels) or "others"
    if len(open_sizes) == len(sizes):
        return [f"The evidence does not show that with any of them: {named} may do as well."]
    numbers = _enumerate(open_sizes)
    return [f"The evidence does not show that with {numbers} images: {named} may do as well."]


def _describe_outlook(outlook: Outlook, margin: float, word: str) -> list[str]:
    name = f"pct_unfreeze={outlook.curve.label}"
    sentences = [
        f"If the scores of {name} continue to follow a power law, twice as many training images "
        f"({count(outlook.images)}) would raise its validation {word} by about "
        f"{outlook.gain.mean:.3f} ({_interval(outlook.gain, plus=False)})."
    ]
    if outlook.other is not None and outlook.difference is not None:
        known = outlook.difference.low is not None
        interval = f" ({_interval(outlook.difference, plus=True)})" if known else ""
        sentences.append(
            f"With the images there are, the best alternative, {outlook.other}, changes it by "
            f"{signed(outlook.difference.mean)}{interval}."
        )
    sentences.append(_conclude(outlook, margin))
    return sentences


def _describe_no_outlook(data: DataCurves) -> str:
    """Why nothing is said about more images than there are."""
    if max((len(curve.points) for curve in data.curves), default=0) < MIN_SIZES:
        return f"What more images would add is estimated from {MIN_SIZES} numbers of them on."
    return (
        "What more images would add is not estimated: the scores are too uncertain, or do not rise "
        "with the number of images as a power law does."
    )


def _conclude(outlook: Outlook, margin: float) -> str:
    verdict = what_helps(outlook, margin)
    change = "another configuration"
    if outlook.other is not None and outlook.other.fraction != outlook.curve.fraction:
        more = outlook.other.fraction > outlook.curve.fraction
        change = "unfreezing more" if more else "unfreezing less"
    if verdict == "neither":
        return f"So neither more images nor {change} would likely add more than {margin:g}."
    if verdict == "other":
        return f"So {change} would likely help more than more images."
    if verdict == "little":
        return f"So more images of the same kind would likely add no more than {margin:g}."
    if verdict == "images" and outlook.other is not None:
        return f"So more images would likely help more than {change}."
    text = f"So more images would likely help by more than {margin:g}"
    return f"{text}." if outlook.other is None else f"{text}; {change} may help as much."


def _interval(interval: Interval, *, plus: bool) -> str:
    form = signed if plus else "{:.3f}".format
    assert interval.low is not None and interval.high is not None, "checked by the caller"
    return f"95 % interval {form(interval.low)} to {form(interval.high)}"


def _enumerate(sizes: Sequence[DataSize]) -> str:
    return enumerate_words([count(size.images) for size in sizes])


def _range(images: Sequence[float]) -> str:
    numbers = [count(number) for number in images]
    return numbers[0] if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
