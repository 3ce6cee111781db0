"""The bootstrap against known errors, and the winner's curse against simulated truth."""

import numpy as np
import pytest
import scipy.stats

from helpers.simulation import ACCURACY, BY_GROUP, BY_IMAGE, Effects, simulate
from tvf.report.bootstrap import (
    bootstrap_scores,
    estimate_optimism,
    percentile_interval,
    resample_images,
    scores_from_bootstrap,
)
from tvf.report.images import compare_scores, mean_by_image
from tvf.report.split_scores import estimate_scores


def test_what_is_left_out_is_what_was_not_drawn_and_groups_stay_whole() -> None:
    groups = np.array([7, 7, 3, 3, 3, 9])
    for drawn, left_out in resample_images(6, groups, draws=20):
        assert {*drawn.tolist()} | {*left_out.tolist()} == {*range(6)}
        assert not {*groups[drawn].tolist()} & {*groups[left_out].tolist()}
    for drawn, left_out in resample_images(6, draws=20):
        assert len(drawn) == 6 and {*left_out.tolist()} == {*range(6)} - {*drawn.tolist()}


def test_for_means_the_bootstrap_agrees_with_the_formula() -> None:
    rng = np.random.default_rng(0)
    results = (rng.random((3, 400)) < 0.8).astype(float)
    groups = rng.integers(40, size=400)
    for labels in (None, groups):
        draws = bootstrap_scores(lambda index: results[:, index].mean(axis=1), 400, labels)
        found = scores_from_bootstrap(results.mean(axis=1), draws, 400, labels)
        expected = estimate_scores([row[None] for row in results], labels)
        assert found.df == expected.df and found.unit == expected.unit
        for b in (1, 2):
            error = compare_scores(found, 0, b).interval.error
            assert error == pytest.approx(compare_scores(expected, 0, b).interval.error, rel=0.06)


def test_folds_add_retraining_as_they_do_for_means() -> None:
    sweep = simulate(Effects(0.85, 0.1, 0.005), np.full(3, 0.8), 5, np.random.default_rng(0))
    results = sweep.results()
    rows = np.array([mean_by_image(matrix) for matrix in results])
    draws = bootstrap_scores(lambda index: rows[:, index].mean(axis=1), rows.shape[1])
    by_fold = np.array([np.nanmean(matrix, axis=1) for matrix in results]).T
    found = scores_from_bootstrap(rows.mean(axis=1), draws, rows.shape[1], by_fold=by_fold)
    expected = estimate_scores(results)
    assert expected.df < 20 and found.df == pytest.approx(expected.df, rel=0.1)
    for b in (1, 2):
        error = compare_scores(found, 0, b).interval.error
        assert error == pytest.approx(compare_scores(expected, 0, b).interval.error, rel=0.06)


def macro_f1(labels: np.ndarray, logits: np.ndarray) -> float:
    predicted = logits > 0.5
    right = [(labels == value) & (predicted == value) for value in (0, 1)]
    sizes = [(labels == value).sum() + (predicted == value).sum() for value in (0, 1)]
    return float(np.mean([2 * r.sum() / size for r, size in zip(right, sizes, strict=True)]))


def auroc(labels: np.ndarray, logits: np.ndarray) -> float:
    ones = labels.sum()
    above = scipy.stats.rankdata(logits)[labels == 1].sum() - ones * (ones + 1) / 2
    return float(above / ones / (len(labels) - ones))


def test_percentile_intervals_of_macro_f1_and_auroc_are_scipys() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(2, size=150)
    logits = labels + rng.normal(size=150)

    def scores(index: np.ndarray) -> list[float]:
        return [macro_f1(labels[index], logits[index]), auroc(labels[index], logits[index])]

    draws = bootstrap_scores(scores, 150, draws=300)
    for position in range(2):
        found = percentile_interval(scores(np.arange(150))[position], draws[:, position])
        expected = scipy.stats.bootstrap(
            (np.arange(150),),
            lambda index: scores(index)[position],  # noqa: B023
            n_resamples=300,
            vectorized=False,
            method="percentile",
            rng=np.random.default_rng(2),
        ).confidence_interval
        assert found[2:] == pytest.approx(tuple(expected), abs=0.02)


def test_undefined_draws_are_left_out_and_equal_ones_tell_nothing() -> None:
    draws = np.array([np.nan, 0.5, 0.6, 0.7])
    found = percentile_interval(0.6, draws)
    assert found.error == pytest.approx(0.1)
    assert percentile_interval(0.6, np.array([np.nan, np.nan, 0.5, 0.6])).low is None
    assert percentile_interval(0.5, np.full(10, 0.5)).low is None
    with pytest.raises(ValueError, match="fewer than two"):
        scores_from_bootstrap(np.array([0.5]), np.full((5, 1), np.nan), images=9)


def test_one_configuration_does_not_flatter_itself() -> None:
    row = (np.random.default_rng(0).random(200) < 0.8).astype(float)
    found = estimate_optimism(lambda index: [row[index].mean()], 200)
    assert found is not None and found.optimism < 0.002
    one_group = np.zeros(200, int)
    assert estimate_optimism(lambda index: [row[index].mean()], 200, one_group, draws=5) is None


@pytest.mark.parametrize("effects", [BY_IMAGE, BY_GROUP], ids=["images", "groups"])
def test_the_winners_curse_is_estimated(effects: Effects) -> None:
    """Four equal configurations: the best score exceeds the true one by what luck adds.

    The bootstrap does not see luck in training, which is part of it.
    """
    rng = np.random.default_rng(0)
    true, estimated = [], []
    for _ in range(40):
        sweep = simulate(effects, np.array([ACCURACY] * 4), 5, rng)
        results = np.array([mean_by_image(matrix) for matrix in sweep.results()])
        groups = sweep.group if effects.group else None
        found = estimate_optimism(
            lambda index, rows=results: rows[:, index].mean(axis=1), results.shape[1], groups, 40
        )
        assert found is not None
        estimated.append(found.optimism)
        true.append(results.mean(axis=1).max() - results.mean())
    assert 0.6 * np.mean(true) <= np.mean(estimated) <= 1.1 * np.mean(true)
