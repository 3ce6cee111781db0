"""How much the choice of each job's best epoch flatters its score: a winner's curse of epochs.

In each bootstrap sample of the images every job's epoch is chosen anew, and scored on the images
left out, as `bootstrap.estimate_optimism` does for the choice between configurations.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from tvf.records import Predictions, Row
from tvf.report.bootstrap import resample_images
from tvf.report.validated import Validated, gather

DRAWS = 500


class EpochChoice(NamedTuple):
    """Scores of C configurations whose jobs choose their epochs anew in D bootstrap samples.

    `reported` (C,) are the scores on all images, which choose the epochs too. `inside` (D, C) are
    those on the sample that chooses, `outside` (D, C) those on the images left out; NaN if
    undefined.
    """

    reported: np.ndarray
    inside: np.ndarray
    outside: np.ndarray

    def optimism(self) -> float | None:
        """What choosing epochs and then the best configuration adds to its score, at least 0.

        With one configuration, what the choice of epochs adds. None if no sample leaves out images
        of a job that has others in the sample.
        """
        decided = np.isfinite(self.inside).any(axis=1)
        inside, outside = self.inside[decided], self.outside[decided]
        if not len(inside):
            return None
        corrected = outside[np.arange(len(inside)), np.nanargmax(inside, axis=1)]
        if not np.isfinite(corrected).any():
            return None
        return max(float(np.nanmax(self.reported) - np.nanmean(corrected)), 0.0)


def estimate_epoch_optimism(jobs: Sequence[Row], metric: str) -> float | None:
    """How much the choice of epochs flatters the score of one configuration with these jobs.

    None if it has no choice, or if `choose_epochs` cannot tell.
    """
    validated = gather([jobs], "val")
    choice = choose_epochs(validated, metric) if validated else None
    return choice.optimism() if choice else None


def choose_epochs(
    validated: Validated, metric: str, draws: int = DRAWS, seed: int = 0
) -> EpochChoice | None:
    """Choose each job's epoch in each bootstrap sample of the images, or of their groups.

    Every epoch of a job is a candidate; on ties the earlier one wins (in a job, the lower loss).
    How long jobs trained is taken as given. None for AUROC, which classes do not determine, if a
    job has not recorded the classes of its epochs, or if no job has more than one.
    """
    jobs = [job for group in validated.predictions for job in group]
    epochs = [each.epoch_classes for _, each in jobs if each.epoch_classes is not None]
    if metric == "auroc" or len(epochs) < len(jobs) or max(map(len, epochs)) < 2:
        return None
    groups = None if validated.groups is None else tuple(validated.groups.tolist())
    counts = _count_images(validated.images, groups, draws, seed)
    scores = [_score(group, counts, metric) for group in validated.predictions]
    inside, outside = (np.array(side).T for side in zip(*scores, strict=True))
    return EpochChoice(inside[0], inside[1:], outside[1:])


@lru_cache(maxsize=1)  # configurations that share their images share the samples
def _count_images(images: int, groups: tuple[int, ...] | None, draws: int, seed: int) -> np.ndarray:
    """How often each sample has each image, (samples, images); the first row has all images."""
    samples = resample_images(images, None if groups is None else np.array(groups), draws, seed)
    counts = np.ones((draws + 1, images), np.uint16)
    for row, (drawn, _) in zip(counts[1:], samples, strict=True):
        row[:] = np.bincount(drawn, minlength=images)
    return counts


def _score(
    trainings: Sequence[tuple[np.ndarray, Predictions]], counts: np.ndarray, metric: str
) -> tuple[np.ndarray, np.ndarray]:
    """A configuration's scores, (samples,) each, inside and outside the samples `counts`.

    The accuracy is the mean over all images of all trainings, macro F1 the mean over trainings.
    """
    sums, weights = np.zeros((2, 2, len(counts)))
    for places, seen in trainings:
        drawn = counts[:, places]
        scores = [_score_epochs(seen, part, metric) for part in (drawn, drawn == 0)]
        number = np.array([drawn.sum(axis=1), (drawn == 0).sum(axis=1)], float)
        number[1, number[0] == 0] = 0  # nothing to choose an epoch by
        if metric != "accuracy":
            number = np.minimum(number, 1)
        best = scores[0].argmax(axis=1)[:, None]
        chosen = [np.take_along_axis(score, best, axis=1)[:, 0] for score in scores]
        sums += np.where(number > 0, chosen, 0) * number
        weights += number
    with np.errstate(invalid="ignore"):
        inside, outside = sums / weights
    return inside, outside


def _score_epochs(seen: Predictions, counts: np.ndarray, metric: str) -> np.ndarray:
    """The score of each epoch in each sample, (samples, epochs); 0 in a sample without images.

    `counts` (samples, images) says how often a sample has an image. Matrix products in float32 are
    exact for sums of integers up to 2**24.
    """
    classes, labels = seen.epoch_classes, seen.labels
    assert classes is not None, "the caller has checked it"
    times = counts.astype(np.float32)
    images = np.maximum(times.sum(axis=1, keepdims=True), 1)
    if metric == "accuracy":
        return (times @ (classes == labels).T.astype(np.float32) / images).astype(float)
    f1, occurring = np.zeros((2, len(times), len(classes)))
    for label in np.union1d(labels, classes):
        own = labels == label
        hits = times[:, own] @ (classes[:, own] == label).T.astype(np.float32)
        predicted = times @ (classes == label).T.astype(np.float32)
        either = predicted + times[:, own].sum(axis=1, keepdims=True)
        f1 += 2 * hits / np.maximum(either, 1)
        occurring += either > 0
    return f1 / np.maximum(occurring, 1)
