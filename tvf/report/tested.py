"""Differences between configurations on the test images, which no choice depends on."""

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from tvf.metrics import METRICS
from tvf.records import Row
from tvf.report.bootstrap import bootstrap_scores, scores_from_bootstrap
from tvf.report.configuration import Configuration, training_of
from tvf.report.images import Interval, compare_scores
from tvf.report.split_scores import Scores
from tvf.report.validated import DRAWS, Validated, gather, score_function


class McNemar(NamedTuple):
    """Images that only one of two networks classifies correctly; p None without any."""

    only_a: int
    only_b: int
    p: float | None


class DifferenceOnTest(NamedTuple):
    """The test score of one configuration minus that of another, with its 95 % interval.

    The interval is for other images (with groups: of other groups) and, if the configurations have
    several `trainings`, for other trainings. `mcnemar` is None where the test does not apply.
    """

    interval: Interval
    trainings: int
    mcnemar: McNemar | None


def compare_tests(
    configurations: Sequence[Configuration], metric: str
) -> dict[tuple[str, str], DifferenceOnTest]:
    """The test differences of all pairs, by their labels, over the trainings that all share.

    A test image counts with its mean over trainings. The standard error is that of a bootstrap over
    images, or their groups (Efron and Tibshirani 1993; Field and Welsh 2007), with what trainings
    differ by added to it, as in `scores_from_bootstrap`. The interval uses Student's t: with 11
    groups, it covered 95 % in simulations, the percentile interval 91 %.

    McNemar's test is about two networks and assumes independent images. So it is left out with
    groups, and with several trainings, whose variation it does not know (Dietterich 1998); it is
    about accuracy only. Empty if any job lacks test predictions, if validation used the test
    images, or if trainings share some test images but not all.
    """
    tested = [group for group in configurations if group.test]
    jobs = _shared_jobs(tested, metric)
    validated = gather(jobs, "test") if len(jobs) > 1 and jobs[0] else None
    scores = _score(validated, jobs, metric) if validated else None
    if validated is None or scores is None:
        return {}
    trainings = len(jobs[0])
    exact = trainings == 1 and validated.groups is None and metric == "accuracy"
    right = [matrix[0] == 1 for matrix in validated.correct]
    return {
        (tested[a].label, tested[b].label): DifferenceOnTest(
            compare_scores(scores, a, b).interval,
            trainings,
            compare_predictions(right[a], right[b]) if exact else None,
        )
        for b, a in combinations(range(len(tested)), 2)
    }


def compare_predictions(a: np.ndarray, b: np.ndarray) -> McNemar:
    """McNemar's exact test of two predictions for the same images (images,), True where correct.

    Under no difference, each image that only one classifies correctly favours either with
    probability 1/2 (McNemar 1947). It concerns these two trained networks, not their training.
    """
    from scipy.stats import binomtest  # slow to import

    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    number = only_a + only_b
    return McNemar(only_a, only_b, float(binomtest(only_a, number).pvalue) if number else None)


def _shared_jobs(configurations: Sequence[Configuration], metric: str) -> list[list[Row]]:
    """The tested jobs of each configuration, for the trainings that all have, in one order."""
    key = f"test_{METRICS[metric]}"
    tested = [
        {training_of(job): job for job in group.done if job[key] is not None}
        for group in configurations
    ]
    shared = [each for each in tested[0] if all(each in jobs for jobs in tested)] if tested else []
    return [[jobs[each] for each in shared] for jobs in tested]


def _score(validated: Validated, jobs: Sequence[Sequence[Row]], metric: str) -> Scores | None:
    """Test scores with the errors of their differences; None if test images partly overlap."""
    by_training = np.array([[job[f"test_{METRICS[metric]}"] for job in group] for group in jobs]).T
    keys = [places.tobytes() for places, _ in validated.predictions[0]]
    sizes = {places.tobytes(): len(places) for places, _ in validated.predictions[0]}
    if sum(sizes.values()) != validated.images:
        return None
    by_set = np.array([by_training[[other == key for other in keys]].mean(axis=0) for key in sizes])
    score = score_function(validated, metric)
    values = np.asarray(score(np.arange(validated.images)), dtype=float)
    draws = bootstrap_scores(score, validated.images, validated.groups, DRAWS)
    by_seed = by_training if len(sizes) == 1 else None
    try:
        return scores_from_bootstrap(
            values, draws, validated.images, validated.groups, by_set, by_seed
        )
    except ValueError:  # undefined on nearly all samples
        return None
