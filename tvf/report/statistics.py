"""Statistics that need no images: Student's t, Holm's correction, the Pareto front."""

from collections.abc import Mapping, Sequence
from functools import cache

LEVEL = 0.95  # of confidence intervals
ROUNDING = 1e-12  # means of the same scores in a different order differ in their last digits


@cache
def t_quantile(df: float) -> float:
    """How many standard errors half of a 95 % interval has, by Student's t (1908)."""
    from scipy.special import stdtrit  # slow to import

    return float(stdtrit(df, (1 + LEVEL) / 2))


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


def pareto_front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Names of the (cost, score) points that no other point dominates, cheapest first."""
    front: list[str] = []
    for name in sorted(points, key=lambda name: (points[name][0], -points[name][1])):
        if not front or points[name][1] > points[front[-1]][1]:
            front.append(name)
    return front
