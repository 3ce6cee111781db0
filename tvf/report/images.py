"""Scores of configurations, and how far they would move on other images.

A configuration's results are a matrix (trainings, images): 1 where a training classified an image
that it validated correctly, 0 where not, NaN where it did not validate the image. Where the matrix
has values tells seeds (same images), folds (disjoint images) and random splits (overlapping images)
apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from tvf.report.statistics import LEVEL, ROUNDING


@dataclass(frozen=True, eq=False)
class Scores:
    """Mean scores of C configurations on the same splits, with the errors of their differences.

    `means` is (C,), `covariance` (C, C) with `df` degrees of freedom. The covariance is meant for
    contrasts: what is common to all configurations in a fold cancels in a difference and is left
    out. `images_covariance`, with `images_df`, is the part that further trainings on the same pool
    do not reduce. A round is one training on each fold, or one random split. `unit` is what varies
    independently.
    """

    means: np.ndarray
    covariance: np.ndarray
    df: float
    images_covariance: np.ndarray
    images_df: float
    rounds: float
    unit: Literal["image", "group", "split"]


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


class Retraining(NamedTuple):
    """How a score varies when the same split is trained again with another seed.

    `sd` is that of one training's score, with `df` degrees of freedom; `error` is the standard
    error that it leaves in the mean over all trainings, `margin` half its 95 % interval.
    """

    sd: float
    df: int
    error: float
    margin: float


class McNemar(NamedTuple):
    """Images that only one of two configurations classifies correctly; p None without any."""

    only_a: int
    only_b: int
    p: float | None


def mean_by_image(results: np.ndarray) -> np.ndarray:
    """The share of trainings that classified each image correctly (images,); NaN for no training.

    With folds this is the out-of-fold result, averaged over seeds.
    """
    validated = ~np.isnan(results)
    counts = validated.sum(axis=0)
    sums = np.where(validated, results, 0.0).sum(axis=0)
    return np.divide(sums, counts, out=np.full(len(counts), np.nan), where=counts > 0)


def estimate_scores(
    results: Sequence[np.ndarray],
    groups: np.ndarray | None = None,
    train_images: float | None = None,
) -> Scores:
    """Estimate mean scores over the splits that all configurations share.

    `results` holds one matrix (trainings, images) for each configuration, `groups` (images,) an
    integer for each image. `train_images`, the number of images trained on, matters for random
    splits only; by default those of the pool that are not validated.

    Folds, or one split: the error over images is cluster-robust, over groups where there are any
    (Liang and Zeger 1986; Cameron, Gelbach and Miller 2008). Repeated training adds to it by as
    much as whole folds differ more than their images explain, pooled over all pairs (a one-way
    analysis of variance), or as seeds of one split do, whichever is larger. Its degrees of freedom
    are Satterthwaite's (1946). Trainings are assumed independent; folds share training images, and
    no unbiased estimate of what that adds exists (Bengio and Grandvalet 2004).

    Random splits: the corrected resampled variance, (1 / splits + validated / trained) times the
    variance between splits (Nadeau and Bengio 2003).

    Raises ValueError if the configurations share no split.
    """
    by_split = [_rows_by_split(matrix) for matrix in results]
    shared = [key for key in by_split[0] if all(key in rows for rows in by_split)]
    if not shared:
        raise ValueError("the configurations share no split: they validated different images")
    trainings = [[rows[key] for rows in by_split] for key in shared]
    values = np.array([[rows.mean(axis=0) for rows in split] for split in trainings])
    rounds = _rounds(~np.isnan(values[:, 0]))
    if len(rounds) > 1 and len(shared) < 2 * len(rounds):
        return _from_random_splits(values, train_images)
    return _from_folds(values, rounds, groups, _shift_of_seeds(trainings))


def other_images(results: np.ndarray, groups: np.ndarray | None = None) -> Interval:
    """Estimate one configuration's score on other images, as far as images or groups decide it.

    Retraining is excluded (see `estimate_retraining`), except with random splits.
    """
    scores = estimate_scores([results], groups)
    random = scores.unit == "split"
    covariance = scores.covariance if random else scores.images_covariance
    df = scores.df if random else scores.images_df
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


def estimate_retraining(results: np.ndarray) -> Retraining | None:
    """Pool the variance of a configuration's score between seeds of the same split.

    None if the spread is unknown: no split has two seeds, or all seeds score the same.
    """
    splits = [rows for rows in _rows_by_split(results).values()]
    scores = [np.nanmean(rows, axis=1) for rows in splits]
    df = sum(len(values) - 1 for values in scores)
    squares = sum(float(np.square(values - values.mean()).sum()) for values in scores)
    if df == 0 or squares <= ROUNDING**2:
        return None
    sd = float(np.sqrt(squares / df))
    error = sd * float(np.sqrt(sum(1 / len(values) for values in scores))) / len(scores)
    return Retraining(sd, df, error, margin=_t_quantile(df) * error)


def compare_predictions(a: np.ndarray, b: np.ndarray) -> McNemar:
    """McNemar's exact test of two predictions for the same images, True where correct.

    Under no difference, each image that only one classifies correctly favours either with
    probability 1/2 (McNemar 1947). It concerns these two trained networks, not their training.
    """
    from scipy.stats import binomtest  # slow to import

    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    number = only_a + only_b
    return McNemar(only_a, only_b, float(binomtest(only_a, number).pvalue) if number else None)


def contrast_variance(covariance: np.ndarray, a: int, b: int) -> float:
    """The variance of the difference between two of the means."""
    return float(covariance[a, a] + covariance[b, b] - 2 * covariance[a, b])


def _interval(
    mean: float, variance: float, df: float, limits: tuple[float, float] = (-1.0, 1.0)
) -> Interval:
    if df < 1 or variance <= ROUNDING**2:
        return Interval(mean, error=None, low=None, high=None)
    error = float(np.sqrt(variance))
    margin = _t_quantile(df) * error
    return Interval(mean, error, max(mean - margin, limits[0]), min(mean + margin, limits[1]))


def _t_quantile(df: float) -> float:
    from scipy.special import stdtrit  # slow to import

    return float(stdtrit(df, (1 + LEVEL) / 2))


def _rows_by_split(results: np.ndarray) -> dict[bytes, np.ndarray]:
    """The rows of trainings that validated the same images, keyed by these images."""
    rows: dict[bytes, list[np.ndarray]] = {}
    for row in results:
        rows.setdefault((~np.isnan(row)).tobytes(), []).append(row)
    return {key: np.array(same) for key, same in rows.items()}


def _rounds(validated: np.ndarray) -> list[list[int]]:
    """Collect splits (splits, images) into rounds: sets of splits that share no image."""
    rounds: list[tuple[np.ndarray, list[int]]] = []
    for number, images in enumerate(validated):
        for used, members in rounds:
            if not (used & images).any():
                used |= images
                members.append(number)
                break
        else:
            rounds.append((images.copy(), [number]))
    return [members for _, members in rounds]


def _from_random_splits(values: np.ndarray, train_images: float | None) -> Scores:
    validated = ~np.isnan(values[:, 0])
    in_split = float(validated.sum(axis=1).mean())
    trained = train_images or max(float(validated.any(axis=0).sum()) - in_split, 1.0)
    scores = np.nanmean(values, axis=2)
    between = np.atleast_2d(np.cov(scores, rowvar=False))
    floor = between * (in_split / trained)
    df, splits = len(scores) - 1, len(scores)
    covariance = between / splits + floor
    return Scores(scores.mean(axis=0), covariance, df, floor, df, splits, unit="split")


class _Component(NamedTuple):
    """A variance added to each mean, and the mean square that it was estimated from."""

    variance: float
    square: float
    df: float


def _from_folds(
    values: np.ndarray,
    rounds: Sequence[Sequence[int]],
    groups: np.ndarray | None,
    seeds: tuple[_Component, float],
) -> Scores:
    covered = ~np.isnan(values[:, 0]).all(axis=0)
    values = values[:, :, covered]
    labels = None if groups is None else np.unique(groups[covered], return_inverse=True)[1]
    residuals, betweens, excesses = [], [], []
    for members in rounds:
        residual, between = _split_by_fold(values[list(members)])
        within, _ = _cluster_covariance(residual, labels, len(members))
        residuals.append(residual)
        if len(members) > 1:
            betweens.append(between)
            excesses.append(_typical(between) - _typical(within))
    folds = max(map(len, rounds))
    residual = np.array([mean_by_image(rows) for rows in np.swapaxes(residuals, 0, 1)])
    images, units = _cluster_covariance(residual, labels, folds)
    images_df = float(units - folds)
    means = np.array([np.nanmean(mean_by_image(rows)) for rows in np.swapaxes(values, 0, 1)])
    if images_df < 1 and betweens:  # each fold is one group: folds are all that vary
        images, images_df = np.mean(betweens, axis=0) / len(rounds), folds - 1.0
    component, repeats = seeds
    if betweens:
        pairs = max(len(means) - 1, 1)
        component = max(component, _Component(
            float(np.mean(excesses)) / len(rounds),
            float(np.mean([_typical(between) for between in betweens])) / len(rounds),
            pairs * sum(len(members) - 1 for members in rounds),
        ))
    retraining = max(component.variance, 0.0)
    typical = _typical(images)
    total = typical + retraining
    df = images_df
    if retraining > 0:
        df = 1 / (
            (typical / total) ** 2 / images_df + (component.square / total) ** 2 / component.df
        )
    return Scores(
        means,
        images + retraining * np.eye(len(means)),
        df,
        images,
        images_df,
        rounds=len(rounds) * repeats,
        unit="image" if groups is None else "group",
    )


def _split_by_fold(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Deviations from each fold's mean (C, images), and the means' covariance between folds."""
    folds, _, _ = values.shape
    validated = ~np.isnan(values[:, 0])
    fold_means = np.nanmean(values, axis=2)
    residuals = np.full(values.shape[1:], np.nan)
    for row, images, mean in zip(values, validated, fold_means, strict=True):
        residuals[:, images] = row[:, images] - mean[:, None]
    sizes = validated.sum(axis=1)
    mean = sizes @ fold_means / sizes.sum()
    sums = sizes[:, None] * (fold_means - mean)
    return residuals, sums.T @ sums / sizes.sum() ** 2 * folds / max(folds - 1, 1)


def _cluster_covariance(
    residuals: np.ndarray, labels: np.ndarray | None, folds: int
) -> tuple[np.ndarray, int]:
    """Covariance of the means (C, C) from residuals summed by image or group; their number."""
    validated = ~np.isnan(residuals[0])
    sums = residuals[:, validated]
    images = sums.shape[1]
    if labels is not None:
        present = np.unique(labels[validated], return_inverse=True)[1]
        sums = np.array([np.bincount(present, weights=row) for row in sums])
    units = sums.shape[1]
    return sums @ sums.T / images**2 * units / max(units - folds, 1), units


def _typical(covariance: np.ndarray) -> float:
    """Half the mean variance of a difference; the variance itself for one configuration."""
    number = len(covariance)
    diagonal = float(np.trace(covariance)) / number
    if number == 1:
        return diagonal
    return diagonal - float(covariance.sum() - np.trace(covariance)) / (number * (number - 1))


def _shift_of_seeds(trainings: Sequence[Sequence[np.ndarray]]) -> tuple[_Component, float]:
    """What seeds shift a whole training by, beyond independent images; and seeds for each split.

    `trainings` has one (seeds, images) for each split and configuration.
    """
    shifts, squares, df = [], [], 0
    counts = [len(rows) for split in trainings for rows in split]
    for rows in (rows for split in trainings for rows in split if len(rows) > 1):
        rows = rows[:, ~np.isnan(rows[0])]
        square = float(rows.mean(axis=1).var(ddof=1)) / len(rows)
        squares.append(square)
        shifts.append(square - float(rows.var(axis=0, ddof=1).mean()) / rows.size)
        df += len(rows) - 1
    repeats = float(np.mean(counts))
    if not df:
        return _Component(0.0, 0.0, 1.0), repeats
    splits = len(trainings)
    return _Component(float(np.mean(shifts)) / splits, float(np.mean(squares)) / splits, df), repeats
