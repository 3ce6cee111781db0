"""Scores over seeds: means with their uncertainty, differences paired by seed, and the one-standard-error rule.

Plain functions on lists of numbers. What they say is about seeds: about training anew on the same images, not about
other images.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean, stdev

from scipy.stats import t as student

LEVEL = 0.95  # of intervals


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` seeds. `sd` is the sample standard deviation, n - 1 below; None for one seed, as are the rest."""

    n: int
    mean: float
    sd: float | None
    error: float | None
    low: float | None
    high: float | None


def estimate(values: Sequence[float], low: float = -math.inf, high: float = math.inf) -> Estimate:
    """Mean, standard deviation, standard error sd / sqrt(n), and Student's interval mean ± t(n - 1) * error.

    The interval ends where values must: `low` and `high` are the least and the greatest that there can be.

    Student 1908, The probable error of a mean, Biometrika 6. Assumes that seeds are a sample of a normal distribution.
    """
    n, mean = len(values), fmean(values)
    if n < 2:
        return Estimate(n, mean, None, None, None, None)
    sd = stdev(values)
    error = sd / math.sqrt(n)
    reach = _quantile(n - 1) * error
    return Estimate(n, mean, sd, error, max(mean - reach, low), min(mean + reach, high))


@cache
def _quantile(degrees: int) -> float:
    return float(student.ppf((1 + LEVEL) / 2, degrees))


@dataclass(frozen=True)
class Difference:
    """The score of `a` minus that of `b` over the seeds that both have. The interval is of this pair by itself.

    `p` is two-sided, of a difference of 0; None where there are fewer than two seeds, or all differ by the same.
    `p_holm` is corrected for all the pairs that were compared.
    """

    a: str
    b: str
    estimate: Estimate
    p: float | None
    p_holm: float | None = None


def paired_difference(
    a: str, b: str, scores: Mapping[str, Mapping[int, float]]
) -> Difference | None:
    """Student's paired t-test of two rows of `scores`, given by seed; None if they share no seed.

    Pairing removes what a seed does to both alike (Gosset's paired comparison; Montgomery, Design and Analysis of
    Experiments, section 2.5).
    """
    shared = sorted(scores[a].keys() & scores[b].keys())
    if not shared:
        return None
    found = estimate([scores[a][seed] - scores[b][seed] for seed in shared])
    p = None
    if (
        found.error is not None and found.error > 1e-12
    ):  # below it is rounding: the same difference for every seed
        p = float(2 * student.sf(abs(found.mean) / found.error, found.n - 1))
    return Difference(a, b, found, p)


def holm(values: Sequence[float]) -> list[float]:
    """P-values corrected for their number, in the given order: the chance of any false rejection stays below the level.

    Holm 1979, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6.
    """
    corrected, running = [0.0] * len(values), 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        running = max(running, min(1.0, (len(values) - rank) * values[index]))
        corrected[index] = running
    return corrected


def within_one_error(scores: Mapping[str, Estimate]) -> tuple[str, list[str]]:
    """The best mean, and all that lie within one standard error of it, the error being the best one's own.

    Breiman, Friedman, Olshen and Stone 1984, Classification and Regression Trees, section 3.4.3: of these, choose the
    simplest. Theirs is an error over cases, here it is one over seeds. Raises ValueError if the best has one seed only.
    """
    best = max(scores, key=lambda name: scores[name].mean)
    error = scores[best].error
    if error is None:
        raise ValueError(f"{best} has one seed: it has no standard error")
    # Means of the same scores in another order differ in their last digit.
    return best, [
        name for name, each in scores.items() if each.mean >= scores[best].mean - error - 1e-12
    ]


def pareto_front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Of (cost, score) those that no other beats in one without losing in the other, cheap ones first."""
    front: list[str] = []
    for name in sorted(points, key=lambda name: (points[name][0], -points[name][1])):
        if not front or points[name][1] > points[front[-1]][1]:
            front.append(name)
    return front
