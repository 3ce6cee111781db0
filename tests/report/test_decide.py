"""The decision rule: what it picks, what it says of it, and how often simulated picks are bad."""

import numpy as np
import pytest

from helpers.simulation import ACCURACY, ACCURACY_SD, BY_GROUP, BY_IMAGE, Effects, simulate
from tvf.report.decide import (
    EVIDENCE,
    MARGIN,
    Cost,
    cheapest,
    decide,
    images_to_decide,
    probability_worse,
    rounds_to_decide,
)
from tvf.report.images import compare_scores
from tvf.report.split_scores import Scores, estimate_scores

COSTS = [Cost(10.0 * 2**position, position) for position in range(4)]


def scores(*means: float, error: float = 0.001, df: float = 1000, retraining: float = 0) -> Scores:
    """Means whose differences all have the standard error `error`."""
    images = np.eye(len(means)) * (error**2 / 2 - retraining)
    total = np.eye(len(means)) * error**2 / 2
    return Scores(np.array(means), total, df, images, df, rounds=1, unit="image")


def test_the_cheapest_that_is_shown_to_be_within_the_margin_is_chosen() -> None:
    found = decide(scores(0.80, 0.845, 0.85, 0.84), COSTS)
    assert (found.chosen, found.best, found.decided) == (1, 2, True)
    assert found.worse is not None and found.worse[1] <= EVIDENCE < found.worse[0]
    assert found.difference is not None
    assert found.difference.interval.mean == pytest.approx(-0.005)


def test_weak_evidence_chooses_the_highest_mean_and_leaves_the_choice_open() -> None:
    """0 costs less and may be good enough, 3 may be better; 1 is shown not to be good enough."""
    found = decide(scores(0.845, 0.80, 0.85, 0.849, error=0.01), COSTS)
    assert (found.chosen, found.best, found.decided) == (2, 2, False)
    assert found.open == (0, 3)
    assert found.difference is not None
    assert found.difference.interval.mean == pytest.approx(0.001)


def test_without_a_spread_nothing_is_decided() -> None:
    row = np.array([[1.0, 0, 1, 1]])
    found = decide(estimate_scores([row, row]), COSTS)
    assert (found.chosen, found.worse, found.decided) == (0, None, False)
    alone = decide(estimate_scores([row]), COSTS)
    assert (alone.chosen, alone.worse, alone.decided) == (0, None, False)
    with pytest.raises(ValueError, match="margin=-0.01 is negative"):
        decide(scores(0.8, 0.9), COSTS, margin=-0.01)


def test_of_two_the_probability_is_that_of_the_pair() -> None:
    pair = scores(0.84, 0.85, error=0.008, df=12)
    found = probability_worse(pair, MARGIN)
    assert found is not None
    for position in range(2):
        expected = compare_scores(pair, position, 1 - position, MARGIN).worse
        assert found[position] == pytest.approx(expected, abs=0.02)


def test_costs_within_a_tenth_are_equal_and_one_slow_job_does_not_matter() -> None:
    """98 s is not as cheap as 12 s, whatever the ranges."""
    costs = [Cost(98, 1), Cost(12, 9), Cost(13, 5), Cost(None, 0)]
    assert cheapest([0, 1], costs) == 1
    assert cheapest([0, 1, 2, 3], costs) == 2
    assert cheapest([0, 3], costs) == 0
    assert cheapest([1, 0], [Cost(None, 7), Cost(None, 7)]) == 0


def test_further_rounds_reduce_retraining_and_further_images_the_rest() -> None:
    """Difference 0, margin 0.01, z = 1.282 + 0.842: allowed variance (0.01 / 2.123)^2 = 2.218e-5.

    Images leave 1e-5; one round of retraining has 2.6e-5, so 2.6 / 1.218 = 2.13 rounds: 2 more.
    Without retraining, a variance of 1e-4 needs 1e-4 / 2.218e-5 = 4.5 times as many images.
    """
    error, retraining = np.sqrt(3.6e-5), 1.3e-5
    assert rounds_to_decide(scores(0.85, 0.85, error=error, retraining=retraining), 0, 1) == 2
    assert images_to_decide(scores(0.85, 0.85, error=error, retraining=retraining), 0, 1) is None
    assert rounds_to_decide(scores(0.85, 0.85, error=0.01), 0, 1) is None
    assert images_to_decide(scores(0.85, 0.85, error=0.01), 0, 1) == pytest.approx(4.508, rel=1e-3)


@pytest.mark.parametrize(
    ("effects", "folds"),
    [
        pytest.param(BY_IMAGE, 5, id="5 folds"),
        pytest.param(BY_IMAGE, 10, id="10 folds", marks=pytest.mark.slow),
        pytest.param(BY_GROUP, 5, id="5 folds of groups"),
        pytest.param(BY_GROUP, 10, id="10 folds of groups", marks=pytest.mark.slow),
    ],
)
def test_picks_are_rarely_bad_and_probabilities_mean_what_they_say(
    effects: Effects, folds: int
) -> None:
    """Four configurations with true accuracies around 0.85 (sd 0.015), the first the cheapest.

    The flat prior knows nothing of how alike accuracies are, so it says somewhat too much.
    """
    rng, sweeps = np.random.default_rng(folds), 300
    bad, shown, said, happened = [], [], [], []
    for _ in range(sweeps):
        true = rng.normal(ACCURACY, ACCURACY_SD, 4)
        sweep = simulate(effects, true, folds, rng)
        groups = sweep.group if effects.group else None
        choice = decide(estimate_scores(sweep.results(), groups), COSTS)
        worse = true < true.max() - MARGIN
        assert choice.worse is not None
        bad.append(worse[choice.chosen])
        shown.append(choice.worse[choice.chosen] <= EVIDENCE)
        said += choice.worse
        happened += worse.tolist()
    assert np.mean(bad) <= 0.04
    assert np.mean(np.array(bad)[shown]) <= EVIDENCE
    for low, high in ((0, 0.1), (0.1, 0.3), (0.3, 0.7), (0.7, 0.9), (0.9, 1)):
        chosen = (low <= np.array(said)) & (np.array(said) <= high)
        excess = np.array(happened)[chosen].mean() - np.array(said)[chosen].mean()
        assert -0.15 <= excess <= 0.05


def test_the_order_of_equally_expensive_configurations_does_not_matter() -> None:
    costs = [Cost(10.0, 5), Cost(10.0, 5)]
    for means in ((0.800, 0.812), (0.812, 0.800)):
        found = decide(scores(*means, error=0.004), costs)
        assert found.chosen == int(np.argmax(means)) and found.decided


def test_two_names_of_one_training_do_not_disable_the_rule() -> None:
    """Configurations 0 and 1 have no difference at all; 2 is better."""
    covariance = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]) * 1e-6
    means = np.array([0.8, 0.8, 0.85])
    found = decide(Scores(means, covariance, 50, covariance, 50, 1, unit="image"), COSTS[:3])
    assert found.worse is not None and found.chosen == 2 and found.decided
