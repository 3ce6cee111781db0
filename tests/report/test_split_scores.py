"""Mean scores and their errors: formulas against scipy, and intervals against simulated truth."""

from itertools import combinations

import numpy as np
import pytest
import scipy.stats

from helpers.simulation import ACCURACY, BY_GROUP, BY_IMAGE, Effects, simulate
from tvf.report.images import ImageDifference, compare_scores
from tvf.report.split_scores import Component, add_component, estimate_scores
from tvf.report.statistics import holm

NAN = np.nan
DESIGNS = [(BY_IMAGE, 5), (BY_IMAGE, 10), (BY_GROUP, 5), (BY_GROUP, 10)]
NAMES = ["5 folds", "10 folds", "5 folds of groups", "10 folds of groups"]


def folds(*values: list[float]) -> np.ndarray:
    """A matrix in which each list is what one training of the next images scored."""
    ends = np.cumsum([0, *map(len, values)])
    matrix = np.full((len(values), ends[-1]), NAN)
    for row, start, end, found in zip(matrix, ends, ends[1:], values, strict=False):
        row[start:end] = found
    return matrix


def includes_zero(difference: ImageDifference) -> bool:
    low, high = difference.interval.low, difference.interval.high
    return low is not None and high is not None and low <= 0 <= high


def random_results(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return (rng.random(shape) < 0.8).astype(float)


def test_one_split_is_the_paired_t_test_over_images() -> None:
    a, b = random_results(np.random.default_rng(0), 2, 1, 50)
    found = compare_scores(estimate_scores([a, b]), 0, 1)
    expected = scipy.stats.ttest_rel(a[0], b[0])
    assert found.p == pytest.approx(expected.pvalue)
    assert found.interval[2:4] == pytest.approx(tuple(expected.confidence_interval()))


def test_groups_of_equal_size_are_the_t_test_over_their_means() -> None:
    """Few groups: t with groups - 1 degrees of freedom (Cameron, Gelbach and Miller 2008)."""
    a, b = random_results(np.random.default_rng(1), 2, 1, 48)
    groups = np.arange(48) % 6
    found = compare_scores(estimate_scores([a, b], groups), 0, 1)
    by_group = [(a - b)[0, groups == group].mean() for group in range(6)]
    expected = scipy.stats.ttest_rel(by_group, np.zeros(6))
    assert found.p == pytest.approx(expected.pvalue)
    assert found.interval[2:4] == pytest.approx(tuple(expected.confidence_interval()))


def test_folds_that_differ_more_than_their_images_explain_add_retraining() -> None:
    """Means of the folds' differences 1, 0, 0: variance 1/3, over 3 folds 1/9, with 2 df.

    Within folds nothing varies, so all of it is retraining.
    """
    a = folds([1, 1, 1, 1], [1, 0, 1, 0], [0, 1, 1, 1])
    b = folds([0, 0, 0, 0], [1, 0, 1, 0], [0, 1, 1, 1])
    scores = estimate_scores([a, b])
    found = compare_scores(scores, 0, 1)
    assert found.interval.mean == pytest.approx(1 / 3)
    assert found.interval.error == pytest.approx(1 / 3)
    assert scores.df == pytest.approx(2)
    assert found.p == pytest.approx(scipy.stats.ttest_rel([1, 0, 0], [0, 0, 0]).pvalue)


def test_the_degrees_of_freedom_are_satterthwaites() -> None:
    """Differences (1 1 1 0), (0 0 0 0), (0 0 0 0) by fold; 12 images, 9 df within folds.

    Within: squares 0.75, times 12 / 9 / 12^2 = 0.00694. Between: means 0.75, 0, 0, variance 0.1875,
    / 3 = 0.0625, 2 df. Total = between; df = 1 / ((0.00694 / 0.0625)^2 / 9 + 1 / 2).
    """
    a = folds([1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0])
    b = folds([0, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0])
    scores = estimate_scores([a, b])
    found = compare_scores(scores, 0, 1)
    assert found.interval.error == pytest.approx(0.25)
    assert scores.df == pytest.approx(1 / ((0.75 / 108 / 0.0625) ** 2 / 9 + 1 / 2))


def test_folds_that_differ_less_than_their_images_explain_add_nothing() -> None:
    a, b = folds([1, 0, 1], [1, 0, 1], [1, 0, 1]), folds([0, 0, 1], [0, 0, 1], [0, 0, 1])
    scores = estimate_scores([a, b])
    within = 3 * (2 / 3) / 9**2 * 9 / 6
    assert compare_scores(scores, 0, 1).interval.error == pytest.approx(np.sqrt(within))
    assert scores.df == 6


def test_retraining_is_pooled_over_all_pairs() -> None:
    """A third configuration that retraining moves widens the interval of the other two."""
    a, b = folds([1, 0, 1], [1, 0, 1], [1, 0, 1]), folds([0, 0, 1], [0, 0, 1], [0, 0, 1])
    moved = folds([1, 1, 1], [0, 0, 0], [1, 1, 1])
    pair, pooled = (compare_scores(estimate_scores(s), 0, 1) for s in ([a, b], [a, b, moved]))
    assert pair.interval.error and pooled.interval.error
    assert pooled.interval.error > pair.interval.error


def test_folds_of_one_group_each_are_the_t_test_over_folds() -> None:
    a, b = (
        folds(*random_results(rng, 5, 8).tolist()) for rng in map(np.random.default_rng, (2, 3))
    )
    found = compare_scores(estimate_scores([a, b], np.arange(40) // 8), 0, 1)
    expected = scipy.stats.ttest_rel(np.nanmean(a, axis=1), np.nanmean(b, axis=1))
    assert found.p == pytest.approx(expected.pvalue)
    assert found.interval[2:4] == pytest.approx(tuple(expected.confidence_interval()))


def test_random_splits_use_the_variance_of_nadeau_and_bengio() -> None:
    """(1 / 4 splits + 10 validated / 30 trained) times the variance of the differences."""
    rng = np.random.default_rng(4)
    a, b = random_results(rng, 2, 4, 40)
    for row in range(4):
        hidden = rng.permutation(40)[:30]
        a[row, hidden] = b[row, hidden] = NAN
    differences = np.nanmean(a, axis=1) - np.nanmean(b, axis=1)
    scores = estimate_scores([a, b], train_images=30)
    found = compare_scores(scores, 0, 1)
    assert scores.unit == "split" and found.interval.error is not None
    assert found.interval.error**2 == pytest.approx((1 / 4 + 10 / 30) * differences.var(ddof=1))
    t = abs(differences.mean()) / found.interval.error
    assert found.p == pytest.approx(2 * scipy.stats.t.sf(t, 3))


def test_seeds_of_a_split_add_what_moves_whole_trainings() -> None:
    """All four images of a training move together: between two seeds, scores 1 and 0.

    Their variance 1/2, over 2 seeds 1/4; images that varied by themselves would make 1/16 of it.
    """
    a = np.array([[1.0, 1, 1, 1], [0, 0, 0, 0]])
    b = np.array([[1.0, 0, 1, 0], [1, 0, 1, 0]])
    scores = estimate_scores([a, b])
    images = np.square([0.5, -0.5, 0.5, -0.5]).sum() / 4 / 3
    assert compare_scores(scores, 0, 1).interval.error == pytest.approx(
        np.sqrt(images + 2 * np.mean([1 / 4 - 1 / 16, 0]))
    )
    assert scores.rounds == 2


def test_only_splits_that_all_configurations_share_count() -> None:
    rows = folds([1, 1, 0, 1], [1, 0, 0, 0], [0, 0, 1, 1])
    scores = estimate_scores([rows, rows[:2], rows[[1, 0]]])
    assert scores.means.tolist() == [0.5, 0.5, 0.5]
    nothing = np.full((1, 12), NAN)
    assert estimate_scores([rows, np.concatenate([rows[:2], nothing])]).means.tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match="share no split"):
        estimate_scores([rows[:1], rows[1:]])


def test_a_repetition_of_folds_is_a_round() -> None:
    rng = np.random.default_rng(5)
    matrix = np.concatenate([_repetition(rng) for _ in range(3)])
    scores = estimate_scores([matrix])
    assert (scores.unit, scores.rounds) == ("image", 3)
    assert scores.means[0] == pytest.approx(np.nanmean(matrix))


def _repetition(rng: np.random.Generator) -> np.ndarray:
    fold = rng.permutation(40) % 4
    return np.where(fold == np.arange(4)[:, None], random_results(rng, 40), NAN)


@pytest.mark.parametrize("effects", [BY_IMAGE, BY_GROUP], ids=["images", "groups"])
def test_the_simulation_has_the_variances_of_the_default_data(effects: Effects) -> None:
    """Seed sd 0.0075; between-split sd of a difference 0.013, with a fifth of the pool validated.

    Disjoint folds of one pool vary by 1 / 0.8 as much as random splits of it.
    """
    rng, seeds = np.random.default_rng(0), 8
    within, between, correct = [], [], []
    for _ in range(60):
        sweep = simulate(effects, np.array([ACCURACY] * 2), folds=5, rng=rng, seeds=seeds)
        inside = (sweep.fold == np.arange(5)[:, None]).astype(float)
        scores = sweep.correct @ inside.T / inside.sum(axis=1)  # (configurations, seeds, folds)
        within.append(scores.var(axis=1, ddof=1).mean())
        between.append((scores[0] - scores[1]).mean(axis=0).var(ddof=1))
        correct.append(sweep.correct.mean())
    seed_variance = np.mean(within)
    split_variance = 0.8 * (np.mean(between) - 2 * seed_variance / seeds)
    assert np.mean(correct) == pytest.approx(ACCURACY, abs=0.003)
    assert np.sqrt(seed_variance) == pytest.approx(0.0075, rel=0.05)
    assert np.sqrt(split_variance) == pytest.approx(0.013, rel=0.08)


@pytest.mark.parametrize(("effects", "folds"), DESIGNS, ids=NAMES)
def test_intervals_cover_the_truth_and_equal_configurations_are_called_equal(
    effects: Effects, folds: int
) -> None:
    """Four configurations of equal true accuracy; a sweep errs if any Holm-corrected p <= 0.05."""
    rng, sweeps = np.random.default_rng(folds), 300
    covered, wrong = [], 0
    for _ in range(sweeps):
        sweep = simulate(effects, np.array([ACCURACY] * 4), folds, rng)
        scores = estimate_scores(sweep.results(), sweep.group if effects.group else None)
        pairs = [compare_scores(scores, a, b) for a, b in combinations(range(4), 2)]
        p = [pair.p for pair in pairs if pair.p is not None]
        covered += map(includes_zero, pairs)
        wrong += min(holm(p)) <= 0.05
    assert 0.92 <= np.mean(covered) <= 0.97
    assert wrong / sweeps <= 0.08


@pytest.mark.parametrize(("seeds", "kept"), [(2, 5), (4, 1)], ids=["folds", "one split"])
def test_intervals_with_seeds_cover_at_least_as_often(seeds: int, kept: int) -> None:
    """The larger of two estimates of retraining is taken: the error is on the cautious side."""
    rng, covered = np.random.default_rng(1), []
    for _ in range(100):
        sweep = simulate(BY_IMAGE, np.array([ACCURACY] * 3), 5, rng, seeds)
        scores = estimate_scores([m[np.arange(5 * seeds) % 5 < kept] for m in sweep.results()])
        for a, b in combinations(range(3), 2):
            covered.append(includes_zero(compare_scores(scores, a, b)))
    assert np.mean(covered) >= 0.93


def test_two_folds_that_differ_by_more_than_their_images_keep_their_difference() -> None:
    """Satterthwaite's approximation alone gives 0.9998 degrees of freedom here."""
    images, one = np.diag([1e-4, 1e-4]), 1.0
    covariance, df = add_component(images, 50.0, Component(9e-4, 1e-3, one))
    assert df == one
    assert covariance == pytest.approx(images + 9e-4 * np.eye(2))
