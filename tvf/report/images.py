"""How far scores would move on other images, and when the same images are trained on again.

Two errors, kept apart. Results are matrices (trainings, images), as `split_scores` describes them.
"""

from typing import NamedTuple

import numpy as np

from tvf.report.split_scores import Scores, contrast_variance, estimate_scores
from tvf.report.statistics import ROUNDING, t_quantile


class Interval(NamedTuple):
    """A mean with its standard error and 95 % interval; all but the mean None if unknown."""

    mean: float
    error: float | None
    low: float | None
    high: float | None


class ImageDifference(NamedTuple):
    """The mean score of one configuration minus that of another.

    `p` is two-sided, for no difference. `worse` is the probability that the difference is below
    minus the margin. Both are None where the spread is unknown.
    """

    interval: Interval
    p: float | None
    worse: float | None


def mean_by_image(results: np.ndarray) -> np.ndarray:
    """The share of trainings that classified each image correctly (images,); NaN for no training.

    With folds this is the out-of-fold result, averaged over seeds.
    """
    validated = ~np.isnan(results)
    counts = validated.sum(axis=0)
    sums = np.where(validated, results, 0.0).sum(axis=0)
    return np.divide(sums, counts, out=np.full(len(counts), np.nan), where=counts > 0)


def other_images(
    results: np.ndarray, groups: np.ndarray | None = None, train_images: float | None = None
) -> Interval:
    """Estimate one configuration's score on other images, as far as images or groups decide it.

    `train_images` as in `estimate_scores`. Retraining is excluded, except with random splits.
    """
    scores = estimate_scores([results], groups, train_images)
    random = scores.unit == "split"
    covariance = scores.covariance if random else scores.images_covariance
    df = scores.df if random else scores.images_df
    if df < 2:  # by Student's t(1), an interval as wide as the scale: unknown
        df = 0.0
    return _interval(float(scores.means[0]), float(covariance[0, 0]), df, limits=(0.0, 1.0))


def compare_scores(scores: Scores, a: int, b: int, margin: float = 0.0) -> ImageDifference:
    """The score of configuration `a` minus that of `b`, paired over images.

    The probability of being worse by more than `margin` is that of the t distribution around the
    estimate, a posterior under a flat prior (Corani and Benavoli 2015). Raises ValueError if
    `margin` is negative.
    """
    if margin < 0:
        raise ValueError(f"margin={margin} is negative: it is a difference of scores, such as 0.01")
    mean = float(scores.means[a] - scores.means[b])
    interval = _interval(mean, contrast_variance(scores.covariance, a, b), scores.df)
    if interval.error is None:
        return ImageDifference(interval, p=None, worse=None)
    from scipy.special import stdtr  # slow to import

    p = 2 * float(stdtr(scores.df, -abs(mean) / interval.error))
    worse = float(stdtr(scores.df, (-margin - mean) / interval.error))
    return ImageDifference(interval, p, worse)


def _interval(
    mean: float, variance: float, df: float, limits: tuple[float, float] = (-1.0, 1.0)
) -> Interval:
    if df < 1 or variance <= ROUNDING**2:
        return Interval(mean, error=None, low=None, high=None)
    error = float(np.sqrt(variance))
    margin = t_quantile(df) * error
    return Interval(mean, error, max(mean - margin, limits[0]), min(mean + margin, limits[1]))
