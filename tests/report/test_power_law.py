"""The power law: recovered where it holds, silent where it does not."""

from typing import Any

import numpy as np
import pytest
from scipy.optimize import curve_fit

from tvf.report.power_law import fit_power_law, predict_gain, predict_score
from tvf.report.split_scores import Scores

SIZES = np.array([100.0, 200, 400, 800, 1600])
TRUE = (2.0, 0.5, 0.1)


def errors(sizes: Any, a: float, b: float, c: float) -> Any:
    return a * sizes**-b + c


def scores(means: np.ndarray, shared: float = 0.02, own: float = 0.003, df: float = 20) -> Scores:
    """Means with an error that all share and one of their own, as standard deviations."""
    covariance = shared**2 + own**2 * np.eye(len(means))
    return Scores(means, covariance, df, covariance, df, rounds=1.0, unit="image")


def test_the_fit_is_the_least_squares_of_scipy() -> None:
    means = 1 - errors(SIZES, *TRUE) + np.array([0.002, -0.003, 0.001, 0.002, -0.001])
    law = fit_power_law(SIZES, scores(means))
    assert law is not None
    found, _ = curve_fit(errors, SIZES, 1 - means, p0=TRUE, bounds=([0, 0, -1], [20, 3, 1]))
    assert (law.a, law.b, law.c) == pytest.approx(tuple(found), rel=0.02)
    assert predict_score(law, 3200) == pytest.approx(1 - errors(3200, *found), abs=1e-4)
    gain = predict_gain(law, 1600, 3200)
    assert gain.mean == pytest.approx(errors(1600, *found) - errors(3200, *found), abs=1e-4)


@pytest.mark.parametrize("true", [TRUE, (1.0, 0.3, 0.0), (5.0, 0.8, 0.15)])
def test_exact_scores_give_the_law_back(true: tuple[float, float, float]) -> None:
    law = fit_power_law(SIZES, scores(1 - errors(SIZES, *true)))
    assert law is not None and law.fit > 0.99
    assert (law.a, law.b) == pytest.approx(true[:2], rel=0.02)
    assert law.c == pytest.approx(true[2], abs=0.005)


@pytest.mark.slow
def test_intervals_of_gains_cover_the_truth_and_the_test_of_fit_keeps_its_level() -> None:
    rng = np.random.default_rng(0)
    true = errors(1600, 1.0, 0.3, 0.0) - errors(3200, 1.0, 0.3, 0.0)
    covered = []
    for _ in range(60):
        own = scores(1 - errors(SIZES, 1.0, 0.3, 0.0))
        law = fit_power_law(SIZES, scores(rng.multivariate_normal(own.means, own.covariance)))
        if law is not None:
            gain = predict_gain(law, 1600, 3200)
            assert gain.low is not None and gain.high is not None
            covered.append(gain.low <= true <= gain.high)
    assert len(covered) >= 52 and np.mean(covered) >= 0.87


def test_what_all_sizes_share_does_not_blur_the_gain() -> None:
    means = 1 - errors(SIZES, *TRUE)
    narrow, wide = (fit_power_law(SIZES, scores(means, shared)) for shared in (0.0, 0.05))
    assert narrow is not None and wide is not None
    errors_of_gain = [predict_gain(law, 1600, 3200).error for law in (narrow, wide)]
    assert errors_of_gain[0] == pytest.approx(errors_of_gain[1], rel=0.15)


def test_no_score_is_predicted_above_1() -> None:
    law = fit_power_law(SIZES, scores(np.array([0.75, 0.81, 0.87, 0.93, 0.99])))
    assert law is not None
    assert predict_score(law, 3200) == 1.0
    assert predict_gain(law, 1600, 3200).mean == pytest.approx(0.01, abs=0.003)


@pytest.mark.parametrize(
    "means",
    [
        np.array([0.8, 0.802, 0.799, 0.801, 0.8]),  # flat
        1 - errors(SIZES, *TRUE)[::-1],  # falling
        np.array([0.7, 0.7, 0.7, 0.9, 0.9]),  # a step
    ],
)
def test_nothing_is_said_where_the_law_does_not_hold(means: np.ndarray) -> None:
    assert fit_power_law(SIZES, scores(means)) is None


def test_nothing_is_said_of_three_sizes_or_without_a_spread() -> None:
    means = 1 - errors(SIZES, *TRUE)
    assert fit_power_law(SIZES[1:], scores(means[1:])) is not None
    assert fit_power_law(SIZES[2:], scores(means[2:])) is None
    assert fit_power_law(SIZES, scores(means, shared=0, own=0)) is None
    assert fit_power_law(SIZES, scores(means, df=0)) is None
