"""Differences on the test images: McNemar's test, intervals, and that they choose nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from helpers.sweeps import add_training
from tvf.records import read_sweep
from tvf.report.bootstrap import bootstrap_scores, percentile_interval, scores_from_bootstrap
from tvf.report.comparison import Comparison, compare
from tvf.report.formats import render_report
from tvf.report.images import compare_scores
from tvf.report.tested import compare_predictions

PAIR = ("0.5", "0")
RIGHT = [True] * 60


def compared(folder: Path) -> Comparison:
    (comparison,) = compare(read_sweep(folder))
    return comparison


def hits(accuracy: float, rng: np.random.Generator, images: int = 200) -> list[bool]:
    return (rng.random(images) < accuracy).tolist()


def json_pairs(folder: Path) -> list[dict[str, float | None]]:
    content = render_report([folder], read_sweep(folder), "json")["report.json"]
    return json.loads(content)["comparisons"][0]["differences"]


def test_mcnemars_test_counts_the_images_that_only_one_classifies_correctly() -> None:
    """5 against 15 of 20: 2 * P(Binomial(20, 1/2) <= 5) = 0.0414."""
    a, b = np.zeros(100, bool), np.zeros(100, bool)
    a[:35], b[5:50] = True, True
    a[50:], b[50:] = True, True
    found = compare_predictions(a, b)
    assert found[:2] == (5, 15)
    assert found.p == pytest.approx(2 * scipy.stats.binom.cdf(5, 20, 0.5))
    assert found.p == pytest.approx(scipy.stats.binomtest(5, 20).pvalue)
    assert compare_predictions(a, a) == (0, 0, None)


def test_single_trainings_are_compared_on_the_test_images_by_mcnemars_test(tmp_path: Path) -> None:
    """With one training each, validation says nothing of differences, so only the test does."""
    rng = np.random.default_rng(0)
    low, high = hits(0.7, rng), hits(0.85, rng)
    add_training(tmp_path, 0.0, RIGHT, tested=low)
    add_training(tmp_path, 0.5, RIGHT, tested=high)
    comparison = compared(tmp_path)
    found = comparison.tested[PAIR]
    a, b = np.array(high), np.array(low)
    assert found.mcnemar and found.mcnemar[:2] == ((a & ~b).sum(), (b & ~a).sum())
    difference = a.astype(float) - b
    assert found.interval.mean == pytest.approx(difference.mean())
    assert found.interval.error == pytest.approx(scipy.stats.sem(difference), rel=0.08)
    assert comparison.choice.chosen is None and comparison.differences == []
    (row,) = json_pairs(tmp_path)
    assert (row["mean"], row["p"]) == (None, None)
    assert row["test_mean"] == pytest.approx(difference.mean())
    assert row["test_p"] == pytest.approx(found.mcnemar.p)
    page = render_report([tmp_path], read_sweep(tmp_path), "html")["report.html"].decode()
    assert "On the test images, intervals are for other images. No choice depends on" in page
    assert ">test p<" in page and ">p (Holm)<" not in page


def test_several_trainings_count_by_their_mean_and_add_their_spread(tmp_path: Path) -> None:
    """Folds share the test images. Their networks differ, which McNemar's test would ignore."""
    rng = np.random.default_rng(0)
    right = {0.0: [hits(0.7, rng) for _ in range(5)], 0.5: [hits(0.8, rng) for _ in range(5)]}
    for fraction, folds in right.items():
        for fold, tested in enumerate(folds):
            add_training(
                tmp_path,
                fraction,
                RIGHT,
                places=range(60 * fold, 60 * fold + 60),
                tested=tested,
                changes={"data.folds": 5, "data.fold": fold},
                test_acc=float(np.mean(tested)),
            )
    found = compared(tmp_path).tested[PAIR]
    assert found.mcnemar is None and found.trainings == 5
    trainings = np.array([right[0.0], right[0.5]], float)
    by_image, by_training = trainings.mean(axis=1), trainings.mean(axis=2)
    difference = by_image[1] - by_image[0]
    assert found.interval.mean == pytest.approx(difference.mean())
    added = by_training.var(axis=1, ddof=1).mean() / 5 * 2
    expected = np.sqrt(scipy.stats.sem(difference) ** 2 + added)
    assert found.interval.error == pytest.approx(expected, rel=0.06)
    (row,) = json_pairs(tmp_path)
    assert row["test_low"] == found.interval.low and row["test_p"] is None
    page = render_report([tmp_path], read_sweep(tmp_path), "html")["report.html"].decode()
    assert "On the test images, intervals are for other images and other trainings." in page
    assert ">test difference<" in page and ">test p<" not in page


def test_with_groups_the_interval_is_over_groups_and_mcnemars_test_is_left_out(
    tmp_path: Path,
) -> None:
    """All images of a group are right or wrong together: 20 groups are 20 images."""
    rng = np.random.default_rng(3)
    groups, right = np.repeat(np.arange(20), 10), {}
    for fraction, accuracy in ((0.0, 0.6), (0.5, 0.8)):
        right[fraction] = (rng.random(20) < accuracy)[groups]
        tested = right[fraction].tolist()
        members = groups.tolist()
        add_training(tmp_path, fraction, [True] * 200, groups=members, tested=tested)
    found = compared(tmp_path).tested[PAIR]
    assert found.mcnemar is None
    by_group = (right[0.5].astype(float) - right[0.0])[::10]
    assert found.interval.error == pytest.approx(scipy.stats.sem(by_group), rel=0.12)
    assert found.interval.low == pytest.approx(
        by_group.mean() - scipy.stats.t.ppf(0.975, 19) * (found.interval.error or 0)
    )


@pytest.mark.slow
def test_with_few_groups_students_t_covers_what_percentiles_do_not() -> None:
    """Two equally accurate networks on 11 groups of 60 images, 300 times."""
    rng, groups = np.random.default_rng(0), np.repeat(np.arange(11), 60)
    covered = np.zeros(2)
    for number in range(300):
        latent = 0.8 * rng.standard_normal(660) + 0.3 * rng.standard_normal(11)[groups]
        own = 0.35 * rng.standard_normal((2, 660)) + 0.12 * rng.standard_normal((2, 11))[:, groups]
        right = (latent + own < 1).astype(float)
        draws = bootstrap_scores(
            lambda index, right=right: right[:, index].mean(axis=1), 660, groups, 100, seed=number
        )
        scores = scores_from_bootstrap(right.mean(axis=1), draws, 660, groups)
        percentiles = percentile_interval(0.0, draws[:, 0] - draws[:, 1])
        for index, interval in enumerate((compare_scores(scores, 0, 1).interval, percentiles)):
            assert interval.low is not None and interval.high is not None
            covered[index] += interval.low <= 0 <= interval.high
    student, percentile = covered / 300
    assert 0.92 <= student <= 0.98 and percentile < student - 0.02


def test_outer_folds_are_scored_on_their_own_test_images_and_say_what_these_did(
    tmp_path: Path,
) -> None:
    """Test images are those of the other fold's training: they validated there."""
    rng, right = np.random.default_rng(0), {}
    for fraction, accuracy in ((0.0, 0.7), (0.5, 0.8)):
        right[fraction] = [hits(accuracy, rng, 100) for _ in range(4)]
        for fold in range(4):
            add_training(
                tmp_path,
                fraction,
                hits(accuracy, rng, 100),
                places=range(1000 + 100 * ((fold + 1) % 4), 1100 + 100 * ((fold + 1) % 4)),
                tested=right[fraction][fold],
                first_tested=1000 + 100 * fold,
                changes={"data.outer_folds": 4, "data.outer_fold": fold},
                test_acc=float(np.mean(right[fraction][fold])),
            )
    found = compared(tmp_path).tested[PAIR]
    assert found.trainings == 4 and found.mcnemar is None
    assert found.interval.mean == pytest.approx(np.mean(right[0.5]) - np.mean(right[0.0]))
    rows = np.array([np.concatenate(right[fraction]) for fraction in right], float)
    by_fold = np.array([np.mean(right[fraction], axis=1) for fraction in right]).T
    draws = bootstrap_scores(lambda index: rows[:, index].mean(axis=1), 400, draws=500)
    scores = scores_from_bootstrap(rows.mean(axis=1), draws, 400, by_fold=by_fold)
    assert found.interval == pytest.approx(compare_scores(scores, 1, 0).interval)
    page = render_report([tmp_path], read_sweep(tmp_path), "html")["report.html"].decode()
    assert "Some of these images validated other trainings and so took part in the choice." in page


def test_test_images_that_overlap_or_validate_are_not_compared(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, changes in (
        ("overlapping", [{"data.split_seed": 0}, {"data.split_seed": 1}]),
        ("validating", [{"data.validate_on": "test"}] * 2),
    ):
        for fraction in (0.0, 0.5):
            for number, change in enumerate(changes):
                add_training(
                    tmp_path / name,
                    fraction,
                    hits(0.8, rng, 60),
                    seed=1 + number * (name == "validating"),
                    places=range(60 * number, 60 * number + 60),
                    tested=hits(0.8, rng, 60),
                    first_tested=1000 + 10 * number,
                    changes=change,
                )
        comparison = compared(tmp_path / name)
        assert comparison.tested == {}
        assert all(row["test_mean"] is None for row in json_pairs(tmp_path / name))


def test_the_test_images_change_no_choice(tmp_path: Path) -> None:
    choices = []
    for number, accuracy in enumerate((0.2, 0.99)):
        rng = np.random.default_rng(0)
        for fraction, chance in ((0.0, 0.8), (0.5, 0.85)):
            for seed in (1, 2):
                right = hits(chance, rng, 300)
                tested = hits(accuracy if fraction else 0.6, np.random.default_rng(seed))
                add_training(tmp_path / str(number), fraction, right, seed=seed, tested=tested)
        comparison = compared(tmp_path / str(number))
        choices.append((comparison.choice.text, comparison.differences))
        assert comparison.tested[PAIR].interval.mean * (accuracy - 0.6) > 0
    assert choices[0] == choices[1]


@pytest.mark.parametrize("metric", ["macro_f1", "auroc"])
def test_other_metrics_have_an_interval_but_not_mcnemars_test(tmp_path: Path, metric: str) -> None:
    rng = np.random.default_rng(0)
    for fraction, accuracy in ((0.0, 0.6), (0.5, 0.9)):
        tested = hits(accuracy, rng)
        add_training(tmp_path, fraction, RIGHT, tested=tested, changes={"data.metric": metric})
    found = compared(tmp_path).tested[PAIR]
    assert found.mcnemar is None
    assert found.interval.low is not None and 0.15 < found.interval.low < 0.3


def test_of_many_configurations_only_pairs_with_the_best_are_shown(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(10):
        right = [True] * (50 + number) + [False] * (10 - number)
        add_training(tmp_path, number / 10, right, tested=hits(0.7, rng))
    found = compared(tmp_path).tested
    assert len(found) == 9 and all("0.9" in pair for pair in found)
