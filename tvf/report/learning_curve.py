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
LARGEST_EXPONENT, STEPS, ZOOMS = 3.0, 40, 3  # of the search for b


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

    Least squares over the mean error at each size. Trainings are resampled within each size. None
    where nothing should be said: fewer than three sizes, a size trained once, trainings that do not
    vary, a gain from the smallest to the largest size whose 95 % interval includes 0, or means that
    miss the law by more than trainings vary (the lack-of-fit F test: Draper and Smith 1998, section
    2.1).
    """
    distinct = np.unique(sizes)
    errors = [1 - scores[sizes == size] for size in distinct]
    means = np.array([values.mean() for values in errors])
    if len(distinct) < MIN_SIZES or min(map(len, errors)) < 2:
        return None
    law = _fit(distinct, means[None])[0]
    if _lack_of_fit(law, distinct, errors) < POOR_FIT:
        return None
    rng = np.random.default_rng(seed)
    resampled = [rng.choice(values, (draws, len(values))).mean(axis=1) for values in errors]
    samples = np.stack(resampled, axis=1)
    laws = _fit(distinct, samples)
    a, b, _ = laws.T
    gains = a * (float(distinct[0]) ** -b - float(distinct[-1]) ** -b)
    if np.quantile(gains, (1 - LEVEL) / 2) <= 0:
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
    """Fit each row of mean errors (samples, sizes); the a, b and c of each (samples, 3).

    For each b on a grid, a and c >= 0 are linear least squares; the grid zooms in on the best b.
    """
    scale = np.exp(np.log(sizes).mean())
    middle = reach = LARGEST_EXPONENT / 2
    laws = np.array([[0.0, middle, 0.0]] * len(errors))
    for _ in range(ZOOMS):
        b = np.maximum(laws[:, 1:2] + np.linspace(-reach, reach, STEPS + 1), 0)
        laws = _best_on_grid(sizes / scale, errors, b)
        reach *= 2 / STEPS
    return laws * np.stack([scale ** laws[:, 1], *np.ones((2, len(laws)))], axis=1)


def _best_on_grid(sizes: np.ndarray, errors: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The a, b and c (samples, 3) of the smallest squared misfit; `b` is (samples, steps)."""
    powers = sizes ** -b[..., None]
    a, c = _fit_linear(powers, errors[:, None], floor=len(sizes) >= FLOOR_SIZES)
    fitted = a[..., None] * powers + c[..., None]
    best = np.square(fitted - errors[:, None]).sum(axis=2).argmin(axis=1)
    rows = np.arange(len(errors))
    return np.stack([a[rows, best], b[rows, best], c[rows, best]], axis=1)


def _fit_linear(x: np.ndarray, y: np.ndarray, floor: bool) -> tuple[np.ndarray, np.ndarray]:
    """The a and c of least squares for y = a * x + c, c >= 0, over the last axis; c = 0 without."""
    through_zero = (x * y).sum(axis=-1) / np.square(x).sum(axis=-1)
    if not floor:
        return through_zero, np.zeros_like(through_zero)
    deviation = x - x.mean(axis=-1, keepdims=True)
    squares = np.square(deviation).sum(axis=-1)
    slope = np.divide(
        (deviation * y).sum(axis=-1), squares, out=np.zeros_like(squares), where=squares > 0
    )
    intercept = y.mean(axis=-1) - slope * x.mean(axis=-1)
    negative = intercept < 0
    return np.where(negative, through_zero, slope), np.where(negative, 0.0, intercept)


def _lack_of_fit(law: np.ndarray, sizes: np.ndarray, errors: list[np.ndarray]) -> float:
    """The p-value of the law against means that vary freely; 0 where trainings do not vary."""
    from scipy.stats import f  # slow to import

    a, b, c = law
    fitted = a * sizes**-b + c
    means = np.array([values.mean() for values in errors])
    counts = np.array([len(values) for values in errors])
    free = len(sizes) - (2 if len(sizes) < FLOOR_SIZES else 3)
    within = sum(float(np.square(values - values.mean()).sum()) for values in errors)
    df = int(counts.sum()) - len(sizes)
    if within == 0:
        return 0.0
    return float(f.sf((counts @ np.square(means - fitted)) / free / (within / df), free, df))
