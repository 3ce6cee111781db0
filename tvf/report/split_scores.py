"""Mean scores of configurations over splits, with the errors of their differences.

A configuration's results are a matrix (trainings, images): 1 where a training classified an image
that it validated correctly, 0 where not, NaN where it did not validate the image. Where the matrix
has values tells seeds (same images), folds (disjoint images) and random splits (overlapping images)
apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np


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
    unit: Literal["image", "group", "split", "training"]


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
    splits = shared_splits(results)
    if not splits:
        raise ValueError("the configurations share no split: they validated different images")
    rounds = _rounds(splits)
    if len(rounds) > 1 and len(splits) < 2 * len(rounds):
        return _from_random_splits(splits, train_images)
    labels = None if groups is None else np.unique(groups, return_inverse=True)[1]
    return _from_folds(rounds, labels)


def contrast_variance(covariance: np.ndarray, a: int, b: int) -> float:
    """The variance of the difference between two of the means."""
    return float(covariance[a, a] + covariance[b, b] - 2 * covariance[a, b])


class Split(NamedTuple):
    """Images (n,) that trainings of all configurations validated.

    `results` has one (seeds, n) for each configuration, `scores` (C, n) their means over seeds,
    `means` (C,) those over images as well.
    """

    images: np.ndarray
    results: list[np.ndarray]
    scores: np.ndarray
    means: np.ndarray


class Component(NamedTuple):
    """A variance added to each mean, and the mean square that it was estimated from."""

    variance: float
    square: float
    df: float


def shared_splits(results: Sequence[np.ndarray]) -> list[Split]:
    """The splits that all configurations trained, by which images they validated.

    `results` holds one matrix (trainings, images) for each configuration.
    """
    rows: list[dict[bytes, list[np.ndarray]]] = [{} for _ in results]
    for by_split, matrix in zip(rows, results, strict=True):
        for row, validated in zip(matrix, ~np.isnan(matrix), strict=True):
            if validated.any():
                by_split.setdefault(validated.tobytes(), []).append(row)
    splits = []
    for key in rows[0]:
        if all(key in by_split for by_split in rows):
            images = np.flatnonzero(np.frombuffer(key, dtype=bool))
            values = [np.array([row[images] for row in by_split[key]]) for by_split in rows]
            scores = np.array([seeds.mean(axis=0) for seeds in values])
            splits.append(Split(images, values, scores, scores.mean(axis=1)))
    return splits


def _rounds(splits: Sequence[Split]) -> list[list[Split]]:
    """Collect splits into rounds that validate no image twice; each joins the first that it can."""
    rounds: list[tuple[set[int], list[Split]]] = []
    for split in splits:
        images = set(split.images.tolist())
        for used, members in rounds:
            if used.isdisjoint(images):
                used |= images
                members.append(split)
                break
        else:
            rounds.append((images, [split]))
    return [members for _, members in rounds]


def _from_random_splits(splits: Sequence[Split], train_images: float | None) -> Scores:
    validated = float(np.mean([len(split.images) for split in splits]))
    pool = len(np.unique(np.concatenate([split.images for split in splits])))
    trained = train_images or max(pool - validated, 1.0)
    scores = np.array([split.means for split in splits])
    between = np.atleast_2d(np.cov(scores, rowvar=False))
    floor = between * (validated / trained)
    df, number = len(splits) - 1, len(splits)
    covariance = between / number + floor
    return Scores(scores.mean(axis=0), covariance, df, floor, df, number, unit="split")


def _from_folds(rounds: Sequence[Sequence[Split]], groups: np.ndarray | None) -> Scores:
    splits = [split for members in rounds for split in members]
    folds = max(map(len, rounds))
    images, units, means = _average_rounds(splits, groups, folds)
    images_df = float(units - folds)
    betweens = [_between_folds(members) for members in rounds if len(members) > 1]
    if images_df < 1 and betweens:  # each fold is one group: folds are all that varies
        images, images_df = np.mean(betweens, axis=0) / len(rounds), folds - 1.0
    added = max(_added_by_folds(rounds, groups), _added_by_seeds(splits))
    covariance, df = add_component(images, images_df, added)
    return Scores(
        means=means,
        covariance=covariance,
        df=df,
        images_covariance=images,
        images_df=images_df,
        rounds=len(rounds) * float(np.mean([len(rows) for s in splits for rows in s.results])),
        unit="image" if groups is None else "group",
    )


def add_component(
    images: np.ndarray, images_df: float, added: Component
) -> tuple[np.ndarray, float]:
    """Add a variance to each mean: the new covariance, with Satterthwaite's degrees of freedom."""
    if added.variance <= 0 or images_df < 1:
        return images, images_df
    typical = typical_variance(images)
    weights = np.array([typical, added.square]) / (typical + added.variance)
    df = 1 / float(np.square(weights) @ (1 / np.array([images_df, added.df])))
    # Each part has one or more; the approximation may fall short of that.
    return images + added.variance * np.eye(len(images)), max(df, 1.0)


def _average_rounds(
    splits: Sequence[Split], groups: np.ndarray | None, folds: int
) -> tuple[np.ndarray, int, np.ndarray]:
    """The means' covariance over images or groups (C, C), the number of these, and the means."""
    pool = 1 + max(int(split.images.max()) for split in splits)
    counts = np.zeros(pool)
    sums, residuals = np.zeros((2, len(splits[0].scores), pool))
    for split in splits:
        counts[split.images] += 1
        sums[:, split.images] += split.scores
        residuals[:, split.images] += _residuals(split)
    covered = np.flatnonzero(counts)
    labels = None if groups is None else groups[covered]
    covariance, units = _cluster_covariance(residuals[:, covered] / counts[covered], labels, folds)
    return covariance, units, (sums[:, covered] / counts[covered]).mean(axis=1)


def _residuals(split: Split) -> np.ndarray:
    return split.scores - split.means[:, None]


def _cluster_covariance(
    residuals: np.ndarray, labels: np.ndarray | None, folds: int
) -> tuple[np.ndarray, int]:
    """Covariance of the means (C, C) from residuals summed by image or group; their number."""
    sums, images = residuals, residuals.shape[1]
    units = images
    if labels is not None:
        sums = np.array([np.bincount(labels, weights=row) for row in residuals])
        units = int(np.count_nonzero(np.bincount(labels)))
    return sums @ sums.T / images**2 * (units / max(units - folds, 1)), units


def _between_folds(folds: Sequence[Split]) -> np.ndarray:
    sizes = np.array([len(split.images) for split in folds])
    return between_folds(np.array([split.means for split in folds]), sizes)


def between_folds(means: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Covariance of the means (C, C) from those of whole folds (folds, C) and their images."""
    sums = sizes[:, None] * (means - sizes @ means / sizes.sum())
    return sums.T @ sums / sizes.sum() ** 2 * (len(means) / (len(means) - 1))


def _added_by_folds(rounds: Sequence[Sequence[Split]], groups: np.ndarray | None) -> Component:
    """What folds differ by beyond their images: repeated training, pooled over all pairs."""
    added, squares, df = [], [], 0
    for folds in (members for members in rounds if len(members) > 1):
        residuals = np.concatenate([_residuals(split) for split in folds], axis=1)
        images = np.concatenate([split.images for split in folds])
        labels = None if groups is None else groups[images]
        within, units = _cluster_covariance(residuals, labels, len(folds))
        square = typical_variance(_between_folds(folds))
        squares.append(square)
        added.append(square - typical_variance(within) if units > len(folds) else 0.0)
        df += (len(folds) - 1) * max(len(within) - 1, 1)
    return _mean_component(added, squares, df, trainings=len(rounds))


def _added_by_seeds(splits: Sequence[Split]) -> Component:
    """What seeds move whole trainings by, beyond what they change in each image by itself."""
    added, squares, df = [], [], 0
    for rows in (rows for split in splits for rows in split.results if len(rows) > 1):
        square = float(rows.mean(axis=1).var(ddof=1)) / len(rows)
        squares.append(square)
        added.append(square - float(rows.var(axis=0, ddof=1).mean()) / rows.size)
        df += len(rows) - 1
    return _mean_component(added, squares, df, trainings=len(splits))


def _mean_component(
    added: Sequence[float], squares: Sequence[float], df: int, trainings: int
) -> Component:
    if not df:
        return Component(0.0, 0.0, 1.0)
    return Component(float(np.mean(added)) / trainings, float(np.mean(squares)) / trainings, df)


def typical_variance(covariance: np.ndarray) -> float:
    """Half the mean variance of a difference; the variance itself for one configuration."""
    number = len(covariance)
    diagonal = float(np.trace(covariance)) / number
    if number == 1:
        return diagonal
    return diagonal - float(covariance.sum() - np.trace(covariance)) / (number * (number - 1))
