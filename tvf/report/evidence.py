"""What the jobs of a comparison say about differences between its configurations.

Jobs with predictions are compared image by image. Those of older versions have none; they are
compared by their scores, training by training, which says nothing about other images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tvf.report.bootstrap import estimate_optimism
from tvf.report.configuration import Configuration
from tvf.report.splits import Scores
from tvf.report.validated import Validated, gather, score_function, score_images


@dataclass(frozen=True, eq=False)
class Evidence:
    """The mean scores of `configurations`, in this order, with the errors of their differences.

    `excluded` have finished jobs, but too few that match the others'. `images` and `groups` count
    what was validated; None if the jobs have no predictions, or no groups. `divisions` counts the
    divisions into training and validation images that all configurations share. `optimism` is how
    much the best score flatters because it was chosen; None if unknown.
    """

    configurations: list[Configuration]
    excluded: list[Configuration]
    scores: Scores
    images: int | None
    groups: int | None
    divisions: int
    optimism: float | None


def collect_evidence(configurations: Sequence[Configuration], metric: str) -> Evidence | None:
    """Collect what finished jobs say; None if they share too little, or nothing is repeated."""
    scored = [group for group in configurations if group.done]
    most = max((len(group.done) for group in scored), default=0)
    included = [group for group in scored if 2 * len(group.done) >= most]
    if most < 2 or len(included) < 2:
        return None
    shared = set.intersection(*(set(group.scores) for group in included))
    divisions = set.intersection(
        *({training.division for training in group.scores} for group in included)
    )
    by_training = np.array(
        [[group.scores[each] for group in included] for each in sorted(shared, key=repr)]
    )
    validated = gather([group.done for group in included], "val") if divisions else None
    if len(shared) < 2 and (validated is None or metric != "accuracy"):
        return None
    if validated is None:
        scores, optimism = _score_trainings(by_training), None
    else:
        scores = score_images(validated, metric, by_training)
        optimism = _optimism(validated, metric)
    return Evidence(
        included,
        [group for group in scored if group not in included],
        scores,
        validated.images if validated else None,
        validated.group_count if validated else None,
        divisions=len(divisions),
        optimism=optimism,
    )


def _optimism(validated: Validated, metric: str) -> float | None:
    score = score_function(validated, metric)
    found = estimate_optimism(score, validated.images, validated.groups, draws=500)
    return found.optimism if found else None


def _score_trainings(values: np.ndarray) -> Scores:
    """Mean scores from those of single trainings (trainings, C).

    For jobs without predictions: the errors are those of repeated training alone.
    """
    covariance = np.atleast_2d(np.cov(values, rowvar=False)) / len(values)
    df = len(values) - 1.0
    nothing = np.zeros_like(covariance)
    return Scores(values.mean(0), covariance, df, nothing, df, len(values), unit="training")
