"""The predictions of a comparison's jobs, image by image, and the scores that follow from them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from tvf.records import PREDICTIONS, Predictions, Row, read_predictions
from tvf.report.bootstrap import bootstrap_scores, scores_from_bootstrap
from tvf.report.images import mean_by_image
from tvf.report.split_scores import Scores, estimate_scores

DRAWS = 500  # of the bootstrap, for scores that are not means over images


@dataclass(frozen=True, eq=False)
class Validated:
    """What the trainings of several configurations predicted for the images of one split.

    `correct` holds for each configuration a matrix (trainings, images): 1 where the training
    classified the image correctly, 0 where not, NaN where it did not see it. `predictions` holds
    for each training its columns and its predictions. `groups`
    (images,) is None without groups. `trained` is the mean number of images trained on.
    """

    correct: list[np.ndarray]
    predictions: list[list[tuple[np.ndarray, Predictions]]]
    groups: np.ndarray | None
    trained: float | None

    @property
    def images(self) -> int:
        """The number of distinct images."""
        return self.correct[0].shape[1]

    @property
    def group_count(self) -> int | None:
        """The number of groups; None without groups."""
        return None if self.groups is None else len(np.unique(self.groups))


def gather(jobs: Sequence[Sequence[Row]], split: str) -> Validated | None:
    """Read the predictions of each configuration's jobs; None if any job has none.

    Images are told apart by their content, wherever they are stored.
    """
    read = [[read_job(job).get(split) for job in group] for group in jobs]
    found = [[each for each in group if each is not None] for group in read]
    if not all(read) or [len(group) for group in found] != [len(group) for group in read]:
        return None
    trained = [job["summary"].get("images", {}).get("train") for group in jobs for job in group]
    known = [count for count in trained if count]
    return match_images(found, float(np.mean(known)) if known else None)


def match_images(found: Sequence[Sequence[Predictions]], trained: float | None = None) -> Validated:
    """Put together what the trainings of each configuration predicted, image by image.

    `trained` is the mean number of images trained on, if it is known.
    """
    columns: dict[tuple[bytes, str], int] = {}
    groups: dict[int, int] = {}
    placed = []
    for group in found:
        placed.append([])
        for predictions in group:
            # A pool may hold the same content twice, under two names.
            keys = zip(predictions.ids.tolist(), predictions.names.tolist(), strict=True)
            places = np.array([columns.setdefault(key, len(columns)) for key in keys])
            placed[-1].append((places, predictions))
            if predictions.groups is not None:
                groups |= dict(zip(places.tolist(), predictions.groups.tolist(), strict=True))
    correct = []
    for group in placed:
        matrix = np.full((len(group), len(columns)), np.nan)
        for row, (places, predictions) in zip(matrix, group, strict=True):
            row[places] = predictions.logits.argmax(1) == predictions.labels
        correct.append(matrix)
    whole = len(groups) == len(columns)
    return Validated(
        correct,
        placed,
        np.array([groups[place] for place in range(len(columns))]) if whole else None,
        trained,
    )


def read_job(job: Row) -> Mapping[str, Predictions]:
    """The predictions of a job by split; empty if it has none."""
    path = Path(job["path"] or "")
    try:
        return _read(path, (path / PREDICTIONS).stat().st_mtime_ns)
    except OSError:
        return {}


@cache  # the terminal, the page and the tracker each compare the same jobs
def _read(path: Path, modified: int) -> Mapping[str, Predictions]:
    return read_predictions(path)


def score_images(
    validated: Validated,
    metric: str,
    by_division: np.ndarray | None,
    by_seed: np.ndarray | None,
) -> Scores:
    """Estimate the configurations' mean scores with the errors of their differences.

    For scores that are not means over images, `by_division` (divisions, C) are their scores on each
    division, `by_seed` (seeds, C) those of single trainings if there is only one division. Raises
    ValueError if they share no split, or if the score is undefined on most samples of the images.
    """
    if metric == "accuracy":
        return estimate_scores(validated.correct, validated.groups, validated.trained)
    score = score_function(validated, metric)
    values = np.array(score(np.arange(validated.images)))
    draws = bootstrap_scores(score, validated.images, validated.groups, DRAWS)
    return scores_from_bootstrap(
        values, draws, validated.images, validated.groups, by_division, by_seed
    )


def standard_errors(validated: Validated, metric: str) -> np.ndarray:
    """Standard errors (C, C) of the differences between scores, on the diagonal of each score.

    By a bootstrap of the validation images, or of their groups: they are about other images, and
    know nothing of other trainings. NaN where the score is undefined on all samples.
    """
    score = score_function(validated, metric)
    draws = bootstrap_scores(score, validated.images, validated.groups, DRAWS)
    draws = draws[np.isfinite(draws).all(axis=1)]
    if len(draws) < 2:
        return np.full((draws.shape[1], draws.shape[1]), np.nan)
    errors = (draws[:, :, None] - draws[:, None, :]).std(axis=0, ddof=1)
    return errors + np.diag(draws.std(axis=0, ddof=1))


def score_function(validated: Validated, metric: str) -> Callable[[np.ndarray], np.ndarray]:
    """The function from images, repeats included, to the score of each configuration (C,)."""
    if metric == "accuracy":
        means = np.array([mean_by_image(matrix) for matrix in validated.correct])
        mean = np.nanmean if np.isnan(means).any() else np.mean  # equal; without NaN far faster
        return lambda drawn: mean(means[:, drawn], axis=1)

    function = {"macro_f1": _macro_f1, "auroc": _auroc}[metric]
    trainings = [
        [(places, function(seen)) for places, seen in group] for group in validated.predictions
    ]

    def score(drawn: np.ndarray) -> np.ndarray:
        weights = np.bincount(drawn, minlength=validated.images).astype(float)
        return np.array([_mean_score(group, weights) for group in trainings])

    return score


def _mean_score(
    trainings: Sequence[tuple[np.ndarray, Callable[[np.ndarray], float]]], weights: np.ndarray
) -> float:
    """The mean over trainings of a score in which images have weights (images,).

    Leaves out trainings for which it is undefined; NaN if it is for all.
    """
    scores = [score(weights[places]) for places, score in trainings]
    defined = [score for score in scores if not np.isnan(score)]
    return float(np.mean(defined)) if defined else float("nan")


def _macro_f1(predictions: Predictions) -> Callable[[np.ndarray], float]:
    """Macro F1 over the classes that occur or were predicted, as `tvf.training` defines it.

    Returns the function from the images' weights (images,) to it.
    """
    classes = predictions.logits.shape[1]
    cells = predictions.labels * classes + predictions.logits.argmax(1)

    def score(weights: np.ndarray) -> float:
        confusion = np.bincount(cells, weights, minlength=classes**2).reshape(classes, classes)
        occurring = confusion.sum(0) + confusion.sum(1)
        if not occurring.any():
            return float("nan")
        return float((2 * confusion.diagonal()[occurring > 0] / occurring[occurring > 0]).mean())

    return score


def _auroc(predictions: Predictions) -> Callable[[np.ndarray], float]:
    """The area under the ROC curve of class 1; NaN without weight on both classes.

    Returns the function from the images' weights (images,) to it.
    """
    margin = np.nan_to_num(predictions.logits[:, 1] - predictions.logits[:, 0])
    order = np.argsort(margin, kind="stable")
    is_positive = predictions.labels[order] == 1
    # Ties count half: sum the weights of equal margins first.
    first = np.flatnonzero(np.diff(margin[order], prepend=-np.inf))

    def score(weights: np.ndarray) -> float:
        ordered = weights[order]
        positive = np.add.reduceat(np.where(is_positive, ordered, 0.0), first)
        negative = np.add.reduceat(np.where(is_positive, 0.0, ordered), first)
        if not positive.sum() or not negative.sum():
            return float("nan")
        below = np.cumsum(negative) - negative
        return float((positive * (below + negative / 2)).sum() / positive.sum() / negative.sum())

    return score
