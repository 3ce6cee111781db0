"""Bootstrap over images or groups, for scores that are not means over images, such as macro F1.

A score is a function from image indices, repeats included, to a number or an array of numbers, one
for each configuration. Each takes one index for all, so that differences are paired.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from tvf.report.images import Interval
from tvf.report.split_scores import (
    Component,
    Scores,
    add_component,
    between_folds,
    typical_variance,
)
from tvf.report.statistics import LEVEL, ROUNDING

DRAWS = 2000
Score = Callable[[np.ndarray], ArrayLike]


class Optimism(NamedTuple):
    """What choosing the best of several configurations by their own scores adds to its score.

    `corrected` is what the choice would score on images that had no part in it; `optimism` the
    score of the best minus that, at least 0.
    """

    corrected: float
    optimism: float


def resample_images(
    images: int, groups: np.ndarray | None = None, draws: int = DRAWS, seed: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Draw images with replacement, whole groups where there are any, together with those left out.

    `groups` (images,) is an integer for each image. Efron and Tibshirani 1993, An Introduction to
    the Bootstrap; for groups, Field and Welsh 2007.
    """
    rng = np.random.default_rng(seed)
    if groups is None:
        for _ in range(draws):
            drawn = rng.integers(images, size=images)
            yield drawn, np.flatnonzero(np.bincount(drawn, minlength=images) == 0)
        return
    labels = np.unique(groups, return_inverse=True)[1]
    members = [np.flatnonzero(labels == label) for label in range(labels.max() + 1)]
    for _ in range(draws):
        chosen = rng.integers(len(members), size=len(members))
        drawn = np.concatenate([members[label] for label in chosen])
        yield drawn, np.flatnonzero(~np.isin(labels, chosen))


def bootstrap_scores(
    score: Score,
    images: int,
    groups: np.ndarray | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> np.ndarray:
    """The score of each bootstrap sample, (draws,) or (draws, configurations).

    A score may be NaN where it is undefined (AUROC of one class); `percentile_interval` and
    `scores_from_bootstrap` leave these draws out.
    """
    resampled = resample_images(images, groups, draws, seed)
    return np.array([score(drawn) for drawn, _ in resampled], dtype=float)


def percentile_interval(value: float, draws: np.ndarray) -> Interval:
    """The 95 % percentile interval around `value` (Efron and Tibshirani 1993, chapter 13).

    The spread is unknown if more than half of the draws are undefined, or if all are equal.
    """
    defined = draws[np.isfinite(draws)]
    if 2 * len(defined) <= len(draws) or float(np.ptp(defined)) <= ROUNDING:
        return Interval(value, error=None, low=None, high=None)
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(defined.std(ddof=1)), float(low), float(high))


def scores_from_bootstrap(
    values: np.ndarray,
    draws: np.ndarray,
    images: int,
    groups: np.ndarray | None = None,
    by_fold: np.ndarray | None = None,
    by_seed: np.ndarray | None = None,
) -> Scores:
    """Scores of C configurations, with the covariance (C, C) of their bootstrap draws.

    `values` (C,) are the scores of all images, `draws` comes from `bootstrap_scores`. `by_fold`
    (folds, C), the scores of each fold alone, adds retraining, as in `estimate_scores`; so does
    `by_seed` (seeds, C), the scores of trainings on one split. Without either the errors are about
    other images only. Raises ValueError if fewer than two draws are defined.
    """
    draws = draws[np.isfinite(draws).all(axis=1)]
    if len(draws) < 2:
        raise ValueError("the score is defined for fewer than two bootstrap samples")
    units = images if groups is None else len(np.unique(groups))
    over_images = np.atleast_2d(np.cov(draws, rowvar=False))
    covariance, df = over_images, units - 1.0
    if by_fold is not None and len(by_fold) > 1:
        square = typical_variance(between_folds(by_fold, np.ones(len(by_fold))))
        folds_df = (len(by_fold) - 1) * max(len(values) - 1, 1)
        added = Component(square - typical_variance(over_images), square, folds_df)
        covariance, df = add_component(over_images, df, added)
    elif by_seed is not None and len(by_seed) > 1:
        # Seeds share their images, so all that they differ by is retraining.
        square = float(by_seed.var(axis=0, ddof=1).mean()) / len(by_seed)
        seeds_df = (len(by_seed) - 1) * len(values)
        covariance, df = add_component(over_images, df, Component(square, square, seeds_df))
    unit = "image" if groups is None else "group"
    return Scores(values, covariance, df, over_images, units - 1.0, rounds=1.0, unit=unit)


def estimate_optimism(
    score: Score,
    images: int,
    groups: np.ndarray | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Optimism | None:
    """Estimate how much the best of several configurations flatters itself: the winner's curse.

    In each bootstrap sample the best is chosen, then scored on the images left out (BBC-CV:
    Tsamardinos, Greasidou and Borboudakis 2018, who find it less biased and less variable than the
    correction of Tibshirani and Tibshirani 2009). `score` must return one number for each
    configuration, from out-of-fold results. What luck in training adds to the choice is not
    included, since the images left out come from the same trainings. None if no sample leaves
    anything out, as with a single group.
    """
    corrected = []
    for drawn, left_out in resample_images(images, groups, draws, seed):
        chosen = np.asarray(score(drawn), dtype=float)
        if len(left_out) and np.isfinite(chosen).any():
            corrected.append(np.asarray(score(left_out), dtype=float)[np.nanargmax(chosen)])
    if not np.isfinite(corrected).any():
        return None
    best = float(np.nanmax(np.asarray(score(np.arange(images)), dtype=float)))
    mean = float(np.nanmean(corrected))
    return Optimism(min(mean, best), max(best - mean, 0.0))
