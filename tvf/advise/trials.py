"""One short run per fraction, the start of an ordinary job: does training more gain anything?"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tvf.data import DataSplits, Split
from tvf.job import Job
from tvf.records import Predictions, predictions_of
from tvf.report import Scores, match_images, probability_worse, score_images
from tvf.training import Direct, EarlyStopping, TrainingLoop, predict

# The standard deviation of what a short run's score says wrongly of a fraction. In the grids of
# docs/advise.md the first epoch of a fold misplaced pairs of fractions by 0.065, or √2 × 0.046.
RUN_ERROR = 0.05
DF = 3.0  # heavy tails: on single tasks that was between 0.015 and 0.12


@dataclass(frozen=True)
class Trial:
    """What a fraction did in its short run: groups that trained, validation predictions, cost."""

    fraction: float
    groups: tuple[str, ...]
    predictions: Predictions
    seconds: float


def run_trial(job: Job, fraction: float, data: DataSplits, images: int) -> Trial:
    """Train `job` for one epoch on `images` of the training images; predict the validation images.

    All fractions start from the same head, and train on the same images in the same order.
    """
    start, phases = time.perf_counter(), job.phases
    nothing = Split(data.val.pool, data.val.places[:0])  # validated once, below
    few = replace(data, train=take(data.train, images), val=nothing)
    phases.data, phases.phases = few, Direct()(1, len(phases.model.trained_groups), EarlyStopping())
    for _ in TrainingLoop(phases.fabric, phases.model, phases, job.steps, job.loop):
        pass
    phases.data = data
    with job.steps.averaged():
        logits, _, _ = predict(
            phases.fabric,
            phases.pixels().evaluate("val"),
            data.val.labels,
            job.steps.batch_size,
        )
    names = tuple(group.name for group in phases.model.trained_groups)
    seconds = time.perf_counter() - start
    return Trial(fraction, names, predictions_of(data.val, logits.numpy()), seconds)


def take(split: Split, images: int) -> Split:
    """At most so many images of a split, drawn at random: a part of those that more would be."""
    if len(split) <= images:
        return split
    order = np.random.default_rng(0).permutation(len(split))
    return Split(split.pool, np.sort(split.places[order[:images]]))


def score_trials(trials: Sequence[Trial], metric: str) -> Scores:
    """The trials' scores on the validation images, with errors wide enough for what they are.

    The covariance over images (or groups of them) is that of the comparison of a sweep. It knows
    nothing of what longer training, other splits and other seeds would change, so RUN_ERROR is
    added to each fraction's standard error (as variances), with tails as heavy as DF says.
    """
    scores = score_images(match_images([[each.predictions] for each in trials]), metric, None, None)
    added = RUN_ERROR**2 * np.eye(len(trials))
    return replace(scores, covariance=scores.covariance + added, df=DF)


def within_margin(scores: Scores, margin: float) -> tuple[float, ...]:
    """The probability of each fraction to be at most `margin` below the best of them."""
    worse = probability_worse(scores, margin)
    assert worse is not None, "the added error is positive"
    return tuple(1 - chance for chance in worse)
