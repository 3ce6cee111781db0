"""The power law: recovered where it holds, silent where it does not."""

import numpy as np
import pytest

from tvf.report.learning_curve import fit_power_law, predict_score

SIZES = np.repeat([100, 200, 400, 800, 1600], 5)


def scores(a: float, b: float, c: float, sd: float, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, sd, len(SIZES))
    return 1 - (a * SIZES**-b + c) + noise


@pytest.mark.parametrize("c", [0.0, 0.05])
def test_the_law_is_recovered_and_predicts_larger_sizes(c: float) -> None:
    law = fit_power_law(SIZES, scores(2.0, 0.5, c, sd=1e-4))
    assert law is not None
    assert law.b == pytest.approx(0.5, rel=0.05)
    assert law.c == pytest.approx(c, abs=0.01)
    found = predict_score(law, 3200)
    assert found.mean == pytest.approx(1 - 2 * 3200**-0.5 - c, abs=0.003)
    assert found.low is not None and found.high is not None
    assert found.low <= found.mean <= found.high


def test_the_interval_at_a_measured_size_covers_the_law() -> None:
    covered = []
    for seed in range(100):
        law = fit_power_law(SIZES, scores(1.5, 0.4, 0.02, sd=0.005, seed=seed), draws=200)
        if law is not None:
            _, _, low, high = predict_score(law, 800)
            assert low is not None and high is not None
            covered.append(low <= 1 - (1.5 * 800**-0.4 + 0.02) <= high)
    assert len(covered) >= 85  # a lack of fit is found in 5 %
    assert np.mean(covered) >= 0.85


def test_nothing_is_said_where_the_law_does_not_hold() -> None:
    flat = np.random.default_rng(0).normal(0.8, 0.01, len(SIZES))
    assert fit_power_law(SIZES, flat) is None
    worse = scores(2.0, 0.5, 0.05, sd=0.001)
    assert fit_power_law(SIZES, worse[::-1]) is None
    step = np.where(SIZES < 800, 0.7, 0.9) + np.random.default_rng(1).normal(0, 0.002, len(SIZES))
    assert fit_power_law(SIZES, step) is None


def test_nothing_is_said_of_too_few_trainings() -> None:
    values = scores(2.0, 0.5, 0.0, sd=0.001)
    assert fit_power_law(SIZES[:10], values[:10]) is None  # two sizes
    assert fit_power_law(SIZES[::5], values[::5]) is None  # one training each
    assert fit_power_law(SIZES, np.ones(len(SIZES))) is None  # no errors
    assert fit_power_law(SIZES, scores(2.0, 0.5, 0.0, sd=0)) is None  # no spread
