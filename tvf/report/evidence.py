"""What the jobs of a comparison say about differences between its configurations.

Jobs with predictions are compared image by image. Those of older versions have none; they are
compared by their scores, training by training, which says nothing about other images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tvf.records import Row
from tvf.report.bootstrap import estimate_optimism
from tvf.report.configuration import Configuration, Training, training_of
from tvf.report.epoch_choice import choose_epochs
from tvf.report.split_scores import Scores
from tvf.report.validated import Validated, gather, read_job, score_function, score_images


@dataclass(frozen=True, eq=False)
class Evidence:
    """The mean scores of `configurations`, in this order, with the errors of their differences.

    `excluded` have finished jobs, but too few that match the others'. `images` and `groups` count
    what was validated; None if the jobs have no predictions, or no groups. `divisions` counts the
    divisions into training and validation images that all configurations share. `optimism` is how
    much the best score flatters because it was chosen, `epoch_optimism` what the choice of each
    job's epoch adds to that; None if unknown. `test_validated` says that images which test some
    jobs validated others.
    """

    configurations: list[Configuration]
    excluded: list[Configuration]
    scores: Scores
    images: int | None
    groups: int | None
    divisions: int
    optimism: float | None
    epoch_optimism: float | None
    test_validated: bool


def collect_evidence(
    configurations: Sequence[Configuration],
    metric: str,
    *,
    optimism: bool = True,
    single: bool = False,
) -> Evidence | None:
    """Collect what finished jobs say; None if they share too little, or nothing is repeated.

    `optimism` says whether to estimate that, which is slow. With `single`, one training of each is
    enough if it has predictions; the errors are then those of other images alone.
    """
    scored = [group for group in configurations if group.done]
    most = max((len(group.done) for group in scored), default=0)
    included = [group for group in scored if 2 * len(group.done) >= most]
    if most < (1 if single else 2) or len(included) < 2:
        return None
    shared = sorted(set.intersection(*(set(group.scores) for group in included)), key=repr)
    divisions = set.intersection(
        *({training.division for training in group.scores} for group in included)
    )
    jobs = [[job for job in g.done if training_of(job).division in divisions] for g in included]
    validated = gather(jobs, "val") if divisions else None
    if len(shared) < 2 and (validated is None or not (single or metric == "accuracy")):
        return None
    by_training = np.array([[group.scores[each] for group in included] for each in shared])
    try:
        if validated is None:
            scores = _score_trainings(by_training)
        else:
            repeated = _by_division(by_training, shared) if len(shared) > 1 else (None, None)
            scores = score_images(validated, metric, *repeated)
    except ValueError:  # the same options, but other images or groups
        return None
    chosen, epochs = _optimism(validated, metric) if validated and optimism else (None, None)
    return Evidence(
        included,
        [group for group in scored if group not in included],
        scores,
        validated.images if validated else None,
        validated.group_count if validated else None,
        divisions=len(divisions),
        optimism=chosen,
        epoch_optimism=epochs,
        test_validated=_test_validated(jobs),
    )


def _by_division(
    by_training: np.ndarray, trainings: Sequence[Training]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Mean scores by division (divisions, C), and those of each seed if there is one division."""
    divisions = list(dict.fromkeys(training.division for training in trainings))
    if len(divisions) == 1:
        return by_training.mean(axis=0, keepdims=True), by_training
    number = np.array([divisions.index(training.division) for training in trainings])
    means = [by_training[number == index].mean(axis=0) for index in range(len(divisions))]
    return np.array(means).reshape(len(divisions), -1), None


def _test_validated(jobs: Sequence[Sequence[Row]]) -> bool:
    """Whether images that test some jobs validated others, and so took part in the choice."""
    read = [read_job(job) for group in jobs for job in group]
    ids = {
        split: {identity for each in read if split in each for identity in each[split].ids.tolist()}
        for split in ("val", "test")
    }
    return bool(ids["val"] & ids["test"])


def _optimism(validated: Validated, metric: str) -> tuple[float | None, float | None]:
    """What the choice of a configuration adds to the best score, and what that of epochs adds."""
    score = score_function(validated, metric)
    found = estimate_optimism(score, validated.images, validated.groups, draws=500)
    choice = choose_epochs(validated, metric)
    together = choice.optimism() if choice else None
    if found is None or together is None:
        return found.optimism if found else None, None
    return found.optimism, max(together - found.optimism, 0.0)


def _score_trainings(values: np.ndarray) -> Scores:
    """Mean scores from those of single trainings (trainings, C).

    For jobs without predictions: the errors are those of repeated training alone.
    """
    covariance = np.atleast_2d(np.cov(values, rowvar=False)) / len(values)
    df = len(values) - 1.0
    nothing = np.zeros_like(covariance)
    return Scores(values.mean(0), covariance, df, nothing, df, len(values), unit="training")
