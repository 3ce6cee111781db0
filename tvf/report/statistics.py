"""Statistics over seeds: means with intervals, paired tests, the one-standard-error rule.

Plain functions on lists of numbers. All uncertainty is over seeds: it describes repeated training
on the same images, and says nothing about other images.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean, stdev

LEVEL = 0.95  # of confidence intervals
ROUNDING = 1e-12  # means of the same scores in a different order differ in their last digits


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` seeds with its uncertainty.

    `sd` is the sample standard deviation (n - 1), `error` the standard error of the mean, `low` and
    `high` the ends of the confidence interval. All four are None for a single seed.
    """

    n: int
    mean: float
    sd: float | None
    error: float | None
    low: float | None
    high: float | None


def estimate(values: Sequence[float], low: float = -math.inf, high: float = math.inf) -> Estimate:
    """Estimate a mean: standard error sd / sqrt(n), Student's interval mean ± t(n - 1) * error.

    The interval is clipped to [`low`, `high`], the range of possible values.

    Student 1908, The probable error of a mean, Biometrika 6. Assumes that seeds are a sample from a
    normal distribution.
    """
    n, mean = len(values), fmean(values)
    if n < 2:
        return Estimate(n, mean, sd=None, error=None, low=None, high=None)
    sd = stdev(values)
    error = sd / math.sqrt(n)
    margin = _t_quantile(n - 1) * error
    return Estimate(n, mean, sd, error, low=max(mean - margin, low), high=min(mean + margin, high))


@cache
def _t_quantile(degrees_of_freedom: int) -> float:
    from scipy.stats import t  # slow to import

    return float(t.ppf((1 + LEVEL) / 2, degrees_of_freedom))


@dataclass(frozen=True)
class Difference:
    """The score of `a` minus the score of `b` over the seeds that both have.

    The interval is for this pair alone, without correction. `p` is the two-sided p-value of the
    paired t-test; None for fewer than two seeds, or if the difference is the same for every seed.
    `p_holm` is `p` corrected for all pairs compared.
    """

    a: str
    b: str
    estimate: Estimate
    p: float | None
    p_holm: float | None = None


def paired_difference(
    a: str, b: str, scores: Mapping[str, Mapping[int, float]]
) -> Difference | None:
    """Student's paired t-test of two entries of `scores`, by seed; None if they share no seed.

    Pairing removes the effect of a seed that is common to both (Gosset's paired comparison;
    Montgomery, Design and Analysis of Experiments, section 2.5).
    """
    seeds = sorted(scores[a].keys() & scores[b].keys())
    if not seeds:
        return None
    scores_a = [scores[a][seed] for seed in seeds]
    scores_b = [scores[b][seed] for seed in seeds]
    difference = estimate([x - y for x, y in zip(scores_a, scores_b, strict=True)])
    p = None
    # An error below rounding means the same difference for every seed: t is undefined.
    if difference.error is not None and difference.error > ROUNDING:
        from scipy.stats import ttest_rel  # slow to import

        p = float(ttest_rel(scores_a, scores_b).pvalue)
    return Difference(a, b, difference, p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for multiple testing, in the given order, by Holm's step-down procedure.

    Controls the probability of any false rejection (the family-wise error rate). Holm 1979, A
    simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6.
    """
    corrected, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = running
    return corrected


def within_one_error(estimates: Mapping[str, Estimate]) -> tuple[str, list[str]]:
    """Name the best mean, and all means within one standard error (that of the best) of it.

    Breiman, Friedman, Olshen and Stone 1984, Classification and Regression Trees, section 3.4.3:
    choose the simplest of these. Their error is over cases; here it is over seeds. Raises
    ValueError if the best has a single seed.
    """
    best = max(estimates, key=lambda name: estimates[name].mean)
    error = estimates[best].error
    if error is None:
        raise ValueError(f"{best} has one seed, so no standard error")
    threshold = estimates[best].mean - error - ROUNDING
    return best, [name for name, estimate in estimates.items() if estimate.mean >= threshold]


def pareto_front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Names of the (cost, score) points that no other point dominates, cheapest first."""
    front: list[str] = []
    for name in sorted(points, key=lambda name: (points[name][0], -points[name][1])):
        if not front or points[name][1] > points[front[-1]][1]:
            front.append(name)
    return front
