"""Whether a costlier configuration is worth it: two of them on the trainings that they share."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np

from tvf.metrics import METRICS
from tvf.records import Row
from tvf.report.configuration import Configuration, Training, training_of
from tvf.report.evidence import collect_evidence
from tvf.report.images import compare_scores
from tvf.report.split_scores import Scores

# The standard deviation of a score between trainings of the same images, on the default data
# (EfficientNet-Lite0). Assumed where there is a single training, which cannot show it.
RETRAINING = 0.0075
EVIDENCE = 0.05  # stricter than a recommendation, as duels are judged again after every training


@dataclass(frozen=True)
class Duel:
    """The challenger's mean score minus the champion's, over `trainings` that both have.

    `better` is the probability that the challenger is better by more than the margin, `lower` that
    it is worse at all; both are None if the spread of the difference is unknown.
    """

    trainings: int
    mean: float
    better: float | None
    lower: float | None

    @property
    def decided(self) -> bool:
        """Whether it is shown that the challenger is worth its cost, or that it is not."""
        return self.better is not None and not EVIDENCE < self.better < 1 - EVIDENCE


def compare_trainings(
    champion: Sequence[Row], challenger: Sequence[Row], metric: str, margin: float
) -> Duel | None:
    """Compare the finished jobs of two configurations, by the statistics of the comparison.

    A single training of each is compared image by image, with `RETRAINING` added to its error. None
    if they share no training. Raises ValueError if `margin` is negative.
    """
    groups = [_configuration(jobs, metric) for jobs in (champion, challenger)]
    shared = [training for training in groups[0].scores if training in groups[1].scores]
    if not shared:
        return None
    mean = fmean(groups[1].scores[each] - groups[0].scores[each] for each in shared)
    if _losses(champion, shared) == _losses(challenger, shared):  # two names of one training
        return Duel(len(shared), mean, better=0.0, lower=0.0)
    evidence = collect_evidence(groups, metric, optimism=False, single=True)
    if evidence is None or len(evidence.configurations) < 2:
        return Duel(len(shared), mean, better=None, lower=None)
    duel = judge(evidence.scores, len(shared), margin)
    equal = all(groups[0].scores[each] == groups[1].scores[each] for each in shared)
    if duel.better is None and equal and len(shared) > 1:  # all images are right, say
        return replace(duel, better=0.0, lower=0.0)
    return duel


def judge(scores: Scores, trainings: int, margin: float) -> Duel:
    """The duel of a champion and a challenger by their mean scores, in this order."""
    mean = float(scores.means[1] - scores.means[0])
    if trainings == 1 and compare_scores(scores, 0, 1).p is not None:
        scores = replace(scores, covariance=scores.covariance + RETRAINING**2 * np.eye(2))
    worth, lower = compare_scores(scores, 0, 1, margin), compare_scores(scores, 1, 0)
    return Duel(trainings, mean, worth.worse, lower.worse)


def _losses(jobs: Sequence[Row], trainings: Collection[Training]) -> dict[Training, float]:
    return {each: job["val_loss"] for job in jobs if (each := training_of(job)) in trainings}


def _configuration(jobs: Sequence[Row], metric: str) -> Configuration:
    scores = {training_of(job): job[f"val_{METRICS[metric]}"] for job in jobs}
    done = list(jobs)
    return Configuration("", 0.0, done, done, scores, None, None, None, metric)
