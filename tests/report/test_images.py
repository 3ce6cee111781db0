"""What is said of scores on other images and of retraining: formulas against scipy."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from tvf.report.images import (
    compare_scores,
    mean_by_image,
    other_images,
)
from tvf.report.split_scores import estimate_scores

NAN = np.nan


def test_the_mean_by_image_is_over_the_trainings_that_validated_it() -> None:
    results = np.array([[1, 0, NAN, NAN], [0, 0, NAN, NAN], [NAN, NAN, 1, NAN]])
    assert mean_by_image(results)[:3].tolist() == [0.5, 0, 1]
    assert np.isnan(mean_by_image(results)[3])


@given(seed=st.integers(0, 999), margin=st.sampled_from([0.0, 0.01, 0.1]))
def test_a_minus_b_is_minus_b_minus_a(seed: int, margin: float) -> None:
    a, b = (np.random.default_rng(seed).random((2, 1, 30)) < 0.7).astype(float)
    scores = estimate_scores([a, b])
    ab, ba = compare_scores(scores, 0, 1, margin), compare_scores(scores, 1, 0, margin)
    assert ab.interval.mean == -ba.interval.mean and ab.p == ba.p
    if ab.worse is not None and ba.worse is not None:
        assert ab.worse + ba.worse <= 1 + 1e-12
        if margin == 0:
            assert ab.worse + ba.worse == pytest.approx(1)


def test_the_probability_of_being_worse_is_that_of_the_t_distribution() -> None:
    a, b = (np.random.default_rng(0).random((2, 1, 40)) < 0.7).astype(float)
    found = compare_scores(estimate_scores([a, b]), 0, 1, margin=0.05)
    mean, error = (a - b).mean(), scipy.stats.sem((a - b)[0])
    assert found.worse == pytest.approx(scipy.stats.t(39, mean, error).cdf(-0.05))
    with pytest.raises(ValueError, match="margin=-1 is negative"):
        compare_scores(estimate_scores([a, b]), 0, 1, margin=-1)


@pytest.mark.parametrize(
    ("a", "b", "groups"),
    [
        ([[1, 0, 1, 1]], [[1, 0, 1, 1]], None),  # the same predictions
        ([[1, 1, 1, 1]], [[0, 0, 0, 0]], None),  # the same difference for every image
        ([[1, 0, 1, 1]], [[0, 0, 1, 1]], [0, 0, 0, 0]),  # one group
        ([[1, NAN, NAN], [NAN, 1, 0]], [[1, NAN, NAN], [NAN, 1, 0]], None),
        # two random splits with equal differences
        ([[1, 1, 0, NAN], [NAN, 1, 1, 0]], [[1, 0, 0, NAN], [NAN, 0, 1, 0]], None),
    ],
)
def test_without_a_spread_there_is_no_interval(
    a: list[list[float]], b: list[list[float]], groups: list[int] | None
) -> None:
    labels = None if groups is None else np.array(groups)
    scores = estimate_scores([np.array(a, float), np.array(b, float)], labels)
    found = compare_scores(scores, 0, 1)
    assert found == (found.interval, None, None)
    assert found.interval[1:] == (None, None, None)


def test_other_images_is_students_interval_over_images_within_possible_scores() -> None:
    results = np.array([[1.0] * 45 + [0.0] * 5])
    found = other_images(results)
    error = scipy.stats.sem(results[0])
    assert (found.mean, found.error) == (0.9, pytest.approx(error))
    assert found.low == pytest.approx(0.9 - scipy.stats.t.ppf(0.975, 49) * error)
    assert other_images(np.array([[1.0] * 9 + [0.0]])).high == 1


def test_seeds_do_not_narrow_what_is_said_of_other_images() -> None:
    row = (np.random.default_rng(0).random(50) < 0.8).astype(float)
    assert other_images(np.array([row] * 5)) == other_images(row[None])


def test_two_random_splits_do_not_show_how_scores_move_on_other_images() -> None:
    """By Student's t with one degree of freedom the interval would span the whole scale."""
    results = np.full((3, 60), NAN)
    for row, places in enumerate([range(30), range(10, 40), range(30, 60)]):
        results[row, list(places)] = np.random.default_rng(row).random(30) < 0.7 + 0.05 * row
    assert other_images(results[:2, :40]).error is None
    three = np.full((3, 60), NAN)
    for row in range(3):
        three[row, 10 * row : 10 * row + 40] = np.random.default_rng(row).random(40) < 0.7
    assert other_images(three).error is not None
