"""How a score grows with the number of training images: a power law, with its uncertainty.

error = a * images ** -b + c, where the error is 1 minus the score. Learning curves of many tasks
follow such a law (Hestness et al. 2017, Deep learning scaling is predictable, empirically), but not
all do: Viering and Loog 2022, The shape of learning curves: a review. Extrapolated far, it misleads
(Mahmood et al. 2022, How much more data do I need?), and so it is used here for twice the images
only, and only where the scores do not contradict it.
"""

from dataclasses import dataclass

import numpy as np

from tvf.report.images import Interval
from tvf.report.split_scores import Scores
from tvf.report.statistics import LEVEL, ROUNDING

MIN_SIZES = 4  # three parameters fit any three sizes
POOR_FIT = 0.05  # p of the lack-of-fit test below which the law is rejected
LARGEST_EXPONENT, STEPS, ZOOMS = 3.0, 20, 3  # of the search for b
DRAWS = 1000


@dataclass(frozen=True, eq=False)
class PowerLaw:
    """error = a * images ** -b + c.

    `draws` (draws, 3) are the a, b and c of fits to simulated scores. `fit` is the p-value of the
    lack-of-fit test.
    """

    a: float
    b: float
    c: float
    draws: np.ndarray
    fit: float


def fit_power_law(sizes: np.ndarray, scores: Scores, seed: int = 0) -> PowerLaw | None:
    """Fit the law to the mean scores (S,) at distinct `sizes` (S,), numbers of training images.

    Least squares, with b in [0, 3]. The uncertainty comes from fits to scores that are simulated
    around the law with the scores' covariance (multivariate t), in which sizes are paired over
    images; so does the lack-of-fit test, which compares the squared misfit with that of the
    simulated scores (parametric bootstrap: Efron and Tibshirani 1993, chapter 6). A negative c is
    allowed: the law is not extrapolated to where it matters, and with c >= 0 the 95 % intervals of
    gains covered only 80 % of the true gains in simulations with small c.

    None where nothing should be said: fewer than four sizes, an unknown spread, a poor fit, or a
    gain from the smallest to the largest size whose 95 % interval includes 0.
    """
    unknown = scores.df < 1 or np.diag(scores.covariance).min() <= ROUNDING**2
    if len(sizes) < MIN_SIZES or unknown:
        return None
    rng = np.random.default_rng(seed)
    errors = 1 - scores.means
    law = _fit(sizes, errors[None])
    fitted = _errors(law, sizes)
    simulated = fitted + _noise(scores, rng)
    laws = _fit(sizes, simulated)
    misfit = np.square(errors - fitted).sum()
    misfits = np.square(simulated - _errors(laws, sizes)).sum(axis=1)
    p = float((misfits >= misfit).mean())
    a, b, c = map(float, law[0])
    found = PowerLaw(a, b, c, draws=laws, fit=p)
    shown = predict_gain(found, float(sizes.min()), float(sizes.max())).low
    return found if p >= POOR_FIT and shown is not None and shown > 0 else None


def predict_score(law: PowerLaw, images: float) -> float:
    """The score that the law predicts for a number of training images; at most 1."""
    return min(1 - (law.a * images**-law.b + law.c), 1.0)


def predict_gain(law: PowerLaw, images: float, more: float) -> Interval:
    """How much higher the law's score is with `more` training images than with `images`."""
    drawn = _scores(law.draws, more) - _scores(law.draws, images)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    mean = predict_score(law, more) - predict_score(law, images)
    return Interval(mean, float(drawn.std(ddof=1)), float(low), float(high))


def _noise(scores: Scores, rng: np.random.Generator) -> np.ndarray:
    """Errors of the means (draws, S): multivariate t."""
    values, vectors = np.linalg.eigh(scores.covariance)
    normal = rng.standard_normal((DRAWS, len(values)))
    scale = np.sqrt(rng.chisquare(scores.df, (DRAWS, 1)) / scores.df)
    return normal @ (vectors * np.sqrt(np.maximum(values, 0))).T / scale


def _scores(laws: np.ndarray, images: float) -> np.ndarray:
    return np.minimum(1 - _errors(laws, np.array([images]))[:, 0], 1.0)


def _errors(laws: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    a, b, c = laws.T[..., None]
    return a * sizes**-b + c


def _fit(sizes: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Fit each row of mean errors (samples, S); the a, b and c of each (samples, 3).

    For each b on a grid, a and c are linear least squares; the grid zooms in on the best b.
    """
    scale = np.exp(np.log(sizes).mean())
    middle = reach = LARGEST_EXPONENT / 2
    laws = np.array([[0.0, middle, 0.0]] * len(errors))
    for _ in range(ZOOMS):
        steps = np.linspace(-reach, reach, STEPS + 1)
        b = np.clip(laws[:, 1:2] + steps, 0, LARGEST_EXPONENT)
        laws = _best_on_grid(sizes / scale, errors, b)
        reach *= 2 / STEPS
    return laws * np.stack([scale ** laws[:, 1], *np.ones((2, len(laws)))], axis=1)


def _best_on_grid(sizes: np.ndarray, errors: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The a, b and c (samples, 3) of the smallest squared misfit; `b` is (samples, steps)."""
    powers = sizes ** -b[..., None]
    a, c = _fit_linear(powers, errors[:, None])
    fitted = a[..., None] * powers + c[..., None]
    best = np.square(fitted - errors[:, None]).sum(axis=2).argmin(axis=1)
    rows = np.arange(len(errors))
    return np.stack([a[rows, best], b[rows, best], c[rows, best]], axis=1)


def _fit_linear(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The a and c of least squares for y = a * x + c, over the last axis; a is 0 for equal x."""
    deviation = x - x.mean(axis=-1, keepdims=True)
    squares = np.square(deviation).sum(axis=-1)
    products = (deviation * y).sum(axis=-1)
    slope = np.divide(products, squares, out=np.zeros_like(products), where=squares > 0)
    return slope, y.mean(axis=-1) - slope * x.mean(axis=-1)
