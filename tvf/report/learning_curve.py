"""How a score grows with the number of training images: a power law, with its uncertainty.

error = a * images ** -b + c, the form that learning curves of many tasks follow (Hestness et al.
2017; Viering and Loog 2022).
"""

from dataclasses import dataclass

import numpy as np

from tvf.report.images import Interval
from tvf.report.statistics import LEVEL

MIN_SIZES = 3  # a line through two points always fits
FLOOR_SIZES = 4  # from how many sizes on the floor c is fitted; below, it is 0
POOR_FIT = 0.05  # p of the lack-of-fit test below which the law is rejected
FLOORS = np.linspace(0, 0.95, 20)  # of the smallest mean error: values of c that are tried


@dataclass(frozen=True, eq=False)
class PowerLaw:
    """error = a * images ** -b + c, and the same (draws, 3) for each bootstrap sample."""

    a: float
    b: float
    c: float
    draws: np.ndarray


def fit_power_law(
    sizes: np.ndarray, scores: np.ndarray, draws: int = 2000, seed: int = 0
) -> PowerLaw | None:
    """Fit the law to trainings with `sizes` images and `scores` in [0, 1], both (trainings,).

    Least squares for log(error - c) of the mean at each size. Trainings are resampled within each
    size. None where nothing should be said: fewer than three sizes, a size trained once, a mean
    error of 0, an exponent whose 95 % interval includes 0, or means that miss the law by more than
    trainings vary (the lack-of-fit F test: Draper and Smith 1998, section 2.1).
    """
    distinct = np.unique(sizes)
    errors = [1 - scores[sizes == size] for size in distinct]
    means = np.array([values.mean() for values in errors])
    if len(distinct) < MIN_SIZES or min(map(len, errors)) < 2 or means.min() <= 0:
        return None
    law = _fit(distinct, means[None])[0]
    if _lack_of_fit(law, distinct, errors) < POOR_FIT:
        return None
    rng = np.random.default_rng(seed)
    resampled = [rng.choice(values, (draws, len(values))).mean(axis=1) for values in errors]
    samples = np.stack(resampled, axis=1)
    laws = _fit(distinct, samples[samples.min(axis=1) > 0])
    if np.quantile(laws[:, 1], (1 - LEVEL) / 2) <= 0:
        return None
    return PowerLaw(*map(float, law), draws=laws)


def predict_score(law: PowerLaw, images: float) -> Interval:
    """The score that the law predicts for a number of training images, with its 95 % interval."""
    a, b, c = law.draws.T
    drawn = 1 - (a * images**-b + c)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    mean = 1 - (law.a * images**-law.b + law.c)
    return Interval(mean, float(drawn.std(ddof=1)), float(low), float(high))


def _fit(sizes: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Fit each row of mean errors (samples, sizes); the a, b and c of each (samples, 3)."""
    shares = FLOORS if len(sizes) >= FLOOR_SIZES else FLOORS[:1]
    floors = shares * errors.min(axis=1, keepdims=True)  # (samples, floors)
    logs = np.log(errors[:, None] - floors[..., None])
    x = np.log(sizes) - np.log(sizes).mean()
    slopes = logs @ x / (x @ x)
    levels = logs.mean(axis=2)
    fitted = np.exp(levels[..., None] + slopes[..., None] * x) + floors[..., None]
    misfit = np.square(fitted - errors[:, None]).sum(axis=2)
    best = (np.arange(len(errors)), misfit.argmin(axis=1))
    slope = slopes[best]
    return np.stack(
        [np.exp(levels[best] - slope * np.log(sizes).mean()), -slope, floors[best]], axis=1
    )


def _lack_of_fit(law: np.ndarray, sizes: np.ndarray, errors: list[np.ndarray]) -> float:
    """The p-value of the law against means that vary freely; 1 where it cannot be tested."""
    from scipy.stats import f  # slow to import

    a, b, c = law
    fitted = a * sizes**-b + c
    means = np.array([values.mean() for values in errors])
    counts = np.array([len(values) for values in errors])
    free = len(sizes) - (2 if len(sizes) < FLOOR_SIZES else 3)
    within = sum(float(np.square(values - values.mean()).sum()) for values in errors)
    df = int(counts.sum()) - len(sizes)
    if within == 0:
        return 1.0
    return float(f.sf((counts @ np.square(means - fitted)) / free / (within / df), free, df))
