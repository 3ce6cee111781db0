"""From job folders to a recommendation: which jobs count, what is compared, and the wording."""

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.sweeps import add_job
from tvf.records.rows import read_sweep
from tvf.report import tables
from tvf.report.comparison import Comparison, compare
from tvf.report.sentences import about_seeds, describe_test_score


def compared(*folders: Path) -> Comparison:
    (comparison,) = compare([row for folder in folders for row in read_sweep(folder)])
    return comparison


def grid(folder: Path, scores: dict[float, list[float]], **more: Any) -> None:
    """Add one job per score: seeds 1, 2, ... of every fraction."""
    for fraction, values in scores.items():
        for seed, value in enumerate(values, 1):
            add_job(folder, fraction, seed, [value - 0.1, value], **more)


CLEAR = {
    0.0: [0.80, 0.81, 0.82],
    0.25: [0.898, 0.900, 0.905],
    0.5: [0.90, 0.92, 0.94],
    1.0: [0.90, 0.91, 0.92],
}


def test_the_cheapest_within_one_standard_error_of_the_best_is_recommended(tmp_path: Path) -> None:
    grid(tmp_path, CLEAR | {0.25: [0.907, 0.91, 0.913]})
    choice = compared(tmp_path).choice
    assert choice.chosen and choice.best
    assert (choice.chosen.label, choice.best.label) == (
        "0.25",
        "0.5",
    )  # 1 is within too, and dearer
    # Own seconds: 10 + 100 * fraction, without 8 in frozen layers.
    for words in (
        "Train pct_unfreeze=0.25",
        "0.910 (95 % interval",
        "3 seeds",
        "one standard error (0.012)",
    ):
        assert words in choice.text
    assert (
        "the best, 0.920 of pct_unfreeze=0.5, which takes 1.9 times as long "
        "(52 s instead of 27 s per job)" in choice.text
    )
    assert (
        "Paired by seed, 0.25 minus 0.5 is -0.010 (95 % interval -0.052 to +0.032), "
        "which includes 0" in choice.text
    )


def test_the_best_is_recommended_with_its_runner_up_if_nothing_cheaper_is_close(
    tmp_path: Path,
) -> None:
    grid(tmp_path, CLEAR)
    choice = compared(tmp_path).choice
    assert choice.chosen is choice.best and choice.chosen and choice.chosen.label == "0.5"
    assert "no cheaper configuration is within one standard error (0.012) of it" in choice.text
    assert (
        "The runner-up is pct_unfreeze=1 with 0.910, which takes 2 times as long "
        "(102 s instead of 52 s per job)" in choice.text
    )


def test_at_equal_seconds_the_one_that_trains_fewer_parameters_is_chosen(tmp_path: Path) -> None:
    grid(tmp_path, {0.5: [0.9, 0.92], 0.25: [0.9, 0.92], 1.0: [0.5, 0.6]}, seconds=30.04)
    choice = compared(tmp_path).choice
    assert choice.chosen and choice.chosen.label == "0.25"
    assert "ties with pct_unfreeze=0.5" in choice.text
    assert (
        "With two seeds (pct_unfreeze=0.25; pct_unfreeze=0.5), the standard error itself"
        in choice.text
    )


def test_the_text_says_if_seeds_cannot_tell_configurations_apart(tmp_path: Path) -> None:
    grid(tmp_path, {0.0: [0.8, 0.9, 0.85], 1.0: [0.9, 0.8, 0.86]})
    comparison = compared(tmp_path)
    assert "these seeds cannot tell them apart" in comparison.choice.text
    assert comparison.choice.chosen and comparison.choice.chosen.label == "0"


def test_test_scores_affect_no_choice(tmp_path: Path) -> None:
    for folder, test_acc in (("low", 0.1), ("high", 0.99)):
        (tmp_path / folder).mkdir()
        grid(tmp_path / folder, {0.0: CLEAR[0.0]}, test_acc=test_acc)
        grid(tmp_path / folder, {0.5: CLEAR[0.5]})
    low, high = (compared(tmp_path / folder) for folder in ("low", "high"))
    assert (
        low.choice.text == high.choice.text
        and low.front == high.front
        and low.differences == high.differences
    )
    assert low.configurations[0].test != high.configurations[0].test


def test_one_seed_gives_advice_instead_of_a_recommendation(tmp_path: Path) -> None:
    grid(tmp_path, {0.0: [0.8], 0.5: [0.9]})
    choice = compared(tmp_path).choice
    assert choice.chosen is None
    for words in ("pct_unfreeze=0.5 has the highest", "no estimate of uncertainty", "seed=1,2,3"):
        assert words in choice.text
    assert compared(tmp_path).differences == []


def test_a_configuration_with_one_seed_is_excluded_if_others_have_more(tmp_path: Path) -> None:
    grid(tmp_path, {0.0: [0.8, 0.81], 0.5: [0.9, 0.91], 1.0: [0.99]})
    choice = compared(tmp_path).choice
    assert choice.chosen and choice.chosen.label == "0.5"
    assert "Excluded (one seed only): pct_unfreeze=1." in choice.text


@pytest.mark.parametrize("values", [[0.8], [0.8, 0.82]])
def test_a_single_configuration_gives_no_recommendation(
    tmp_path: Path, values: list[float]
) -> None:
    grid(tmp_path, {0.5: values})
    assert compared(tmp_path).choice.chosen is None


def test_unfinished_jobs_are_reported_but_not_used(tmp_path: Path) -> None:
    grid(tmp_path, CLEAR)
    for seed, state in ((7, "failed"), (8, "waiting"), (9, "running")):
        add_job(tmp_path, 0.5, seed, [0.99], state=state, epochs=2)
    comparison = compared(tmp_path)
    assert [group.label for group in comparison.configurations] == ["0", "0.25", "0.5", "1"]
    assert set(comparison.configurations[2].scores) == {1, 2, 3}
    assert comparison.notes == [
        f"{state}: 1 of 15 jobs." for state in ("failed", "interrupted", "waiting")
    ]
    assert "Not counted (not done): 3 of 6 jobs of pct_unfreeze=0.5." in comparison.choice.text
    assert [row["state"] for row in tables.jobs(comparison)].count("done") == 12


def test_the_text_says_if_no_job_has_finished(tmp_path: Path) -> None:
    add_job(tmp_path, 0.5, 1, state="waiting")
    assert "No job has finished yet" in compared(tmp_path).choice.text


@pytest.mark.parametrize("score", [float("nan"), float("inf"), None])
def test_a_score_that_is_not_finite_is_not_counted(tmp_path: Path, score: float | None) -> None:
    grid(tmp_path, {0.0: [0.8, 0.81, 0.82]})
    add_job(tmp_path, 0.0, 4, val_acc=score)
    comparison = compared(tmp_path)
    assert set(comparison.configurations[0].scores) == {1, 2, 3}
    assert "fine-tuning-0.0-seed4 does not count: its scores are not finite." in comparison.notes


def test_labels_name_what_else_varies_but_not_values_that_follow_the_seed(
    tmp_path: Path,
) -> None:
    for seed in (1, 2):
        for lr in (0.01, 0.1):
            add_job(tmp_path, 0.5, seed, changes={"optimizer.lr": lr, "augment.seed": seed})
    comparison = compared(tmp_path)
    assert [group.label for group in comparison.configurations] == [
        "0.5, optimizer.lr=0.01",
        "0.5, optimizer.lr=0.1",
    ]
    assert [sorted(group.scores) for group in comparison.configurations] == [[1, 2], [1, 2]]
    assert (
        "their augmented views (augment.seed)."
        in about_seeds(comparison).partition("All seeds share")[0]
    )


def test_seeds_share_the_split_and_the_views_by_default(tmp_path: Path) -> None:
    grid(tmp_path, CLEAR)
    text = about_seeds(compared(tmp_path))
    shared = text.partition("All seeds share")[2]
    assert "data.split_seed" in shared and "augment.seed=${seed}" in shared
    # 0.8825 of 393 images: sqrt(0.8825 * 0.1175 / 393)
    assert "±0.016: one standard error of an accuracy over 393 images" in text


@pytest.mark.parametrize(
    ("key", "values", "title"),
    [
        ("data.limit", [100, None], "data.limit=100"),
        ("data.metric", ["accuracy", "macro_f1"], "data.metric=accuracy"),
        ("data.task", ["binary", "four_class"], "data.task=binary"),
    ],
)
def test_different_data_or_metrics_are_compared_separately(
    tmp_path: Path, key: str, values: list[Any], title: str
) -> None:
    for value in values:
        for seed in (1, 2):
            add_job(
                tmp_path,
                0.5,
                seed,
                changes={key: value},
                metric=value if key == "data.metric" else "accuracy",
            )
    first, second = compare(read_sweep(tmp_path))
    assert first.title == title and first.title != second.title
    assert len(first.configurations) == len(second.configurations) == 1


def test_different_image_sizes_are_validated_on_the_same_images(tmp_path: Path) -> None:
    for size in (64, 96):
        for seed in (1, 2):
            add_job(tmp_path, 0.5, seed, changes={"data.image_size": size})
    assert [group.label for group in compared(tmp_path).configurations] == [
        "0.5, data.image_size=64",
        "0.5, data.image_size=96",
    ]


def test_a_job_in_two_sweeps_counts_once(tmp_path: Path) -> None:
    for folder, seeds in (("a", (1, 2)), ("b", (2, 3))):
        (tmp_path / folder).mkdir()
        for seed in seeds:
            add_job(tmp_path / folder, 0.5, seed)
    comparison = compared(tmp_path / "a", tmp_path / "b")
    assert sorted(comparison.configurations[0].scores) == [1, 2, 3]
    assert comparison.notes == [
        "fine-tuning-0.5-seed2 appears twice (a, b): only the first counts."
    ]


def test_many_configurations_are_compared_only_with_the_best(tmp_path: Path) -> None:
    grid(tmp_path, {number / 10: [0.8 + number / 100, 0.81 + number / 90] for number in range(10)})
    comparison = compared(tmp_path)
    assert len(comparison.differences) == 9
    assert {pair.a for pair in comparison.differences} == {"0.9"}
    few = tmp_path / "few"
    few.mkdir()
    grid(few, {number / 10: [0.8 + number / 100, 0.81 + number / 90] for number in range(4)})
    assert len(compared(few).differences) == 6


def test_the_metric_of_the_data_is_compared(tmp_path: Path) -> None:
    for seed in (1, 2):
        add_job(
            tmp_path,
            0.5,
            seed,
            [0.8, 0.9],
            changes={"data.metric": "auroc"},
            metric="auroc",
            val_auroc=0.97,
        )
    comparison = compared(tmp_path)
    assert comparison.configurations[0].scores == {1: 0.97, 2: 0.97}
    assert (comparison.score_key, comparison.word) == ("val_auroc", "AUROC")


def test_the_overview_has_learning_dynamics_and_costs(tmp_path: Path) -> None:
    add_job(tmp_path, 0.5, 1, [0.5, 0.79, 0.8, 0.75], seconds=60.0, peak_memory_mb=500.0)
    add_job(tmp_path, 0.5, 2, [0.5, 0.6, 0.9, 0.85], seconds=80.0, peak_memory_mb=700.0)
    (row,) = tables.overview(compared(tmp_path))
    assert (
        row["best_epoch"] == 3 and row["epochs_to_95_percent"] == 2.5
    )  # 0.79 >= 0.76; 0.9 >= 0.855
    assert row["gap"] == pytest.approx(0.05)  # both train 0.05 above validation
    assert row["loss_gap"] == pytest.approx(0.6 / 4 - 0.5 / 4)
    assert row["seconds"] == (52 + 72) / 2 and row["prefix_seconds"] == 16.0
    assert row["peak_memory_mb"] == 700.0 and row["trainable_params"] == 502562


def test_without_a_store_frozen_layers_are_part_of_a_jobs_own_seconds(tmp_path: Path) -> None:
    add_job(tmp_path, 0.5, 1, seconds=60.0, prefix_kept=False)
    assert compared(tmp_path).configurations[0].seconds == 60.0


def test_scores_by_class_are_means_and_confusion_counts_are_sums(tmp_path: Path) -> None:
    add_job(tmp_path, 0.5, 1, val_recall=[0.9, None], val_confusion=[[1, 2], [3, 4]])
    add_job(tmp_path, 0.5, 2, val_recall=[0.7, 0.5], val_confusion=[[5, 6], [7, 8]])
    val, test = tables.by_class(compared(tmp_path).configurations[0])
    assert val["recall"] == pytest.approx([0.8, 0.5]) and val["confusion"] == [[6, 8], [10, 12]]
    assert val["scores"]["macro F1"] == pytest.approx(0.7) and test["split"] == "test"


def test_a_job_without_a_config_is_in_no_comparison(tmp_path: Path) -> None:
    folder = add_job(tmp_path, 0.5, 1)
    (folder / "config.json").write_text(json.dumps([]))
    (tmp_path / "sweep.json").unlink()
    assert compare(read_sweep(tmp_path)) == []


def test_equal_scores_are_a_tie(tmp_path: Path) -> None:
    grid(tmp_path, {0.25: [0.9, 0.91, 0.92], 1.0: [0.92, 0.91, 0.9], 0.0: [0.5, 0.51, 0.52]})
    choice = compared(tmp_path).choice
    assert choice.chosen and choice.chosen.label == "0.25"
    assert "ties with pct_unfreeze=1, which takes 3.8 times as long" in choice.text
    one = tmp_path / "one"
    one.mkdir()
    grid(one, {0.25: [0.9], 1.0: [0.9], 0.0: [0.5]})
    assert "pct_unfreeze=0.25; pct_unfreeze=1 share the highest" in compared(one).choice.text


def test_configurations_without_results_and_missing_seeds_are_named(tmp_path: Path) -> None:
    grid(tmp_path, {0.0: [0.80, 0.81, 0.82], 0.25: [0.90, 0.92]})
    add_job(tmp_path, 0.25, 3, state="failed", epochs=2)
    add_job(tmp_path, 1.0, 1, state="waiting", epochs=2)
    text = compared(tmp_path).choice.text
    assert "Excluded (no finished job): pct_unfreeze=1." in text
    assert "Not counted (not done): 1 of 3 jobs of pct_unfreeze=0.25." in text
    assert "Over the 2 seeds that both have, 0.25 minus 0 is" in text


def test_the_text_says_that_the_rule_needs_a_spread(tmp_path: Path) -> None:
    grid(tmp_path, {0.0: [0.8, 0.8, 0.8], 0.5: [0.7, 0.7, 0.7]})
    text = compared(tmp_path).choice.text
    assert "All seeds of pct_unfreeze=0 score the same" in text
    assert "is the best, and it is also the cheapest." in text


def test_overlapping_seconds_are_not_a_difference_in_cost(tmp_path: Path) -> None:
    for seed, (small, large) in enumerate([(30, 28), (31, 32), (36, 30)], 1):
        add_job(tmp_path, 0.0, seed, [0.9, 0.9 + seed / 100], seconds=small)
        add_job(tmp_path, 0.5, seed, [0.9, 0.9 + seed / 100], seconds=large)
    choice = compared(tmp_path).choice
    assert choice.chosen and choice.chosen.label == "0"
    assert "which takes about as long" in choice.text or "which takes 0.9" in choice.text


def test_jobs_whose_views_follow_the_seed_are_one_configuration_beside_others(
    tmp_path: Path,
) -> None:
    for seed in (0, 1, 2, 3):
        add_job(tmp_path, 0.5, seed, changes={"augment.seed": seed})
        add_job(tmp_path, 0.5, seed)
    comparison = compared(tmp_path)
    assert sorted(sorted(group.scores) for group in comparison.configurations) == [
        [0, 1, 2, 3],
        [1, 2, 3],
    ]
    assert comparison.following == frozenset()


def test_splits_that_follow_the_seed_are_one_comparison(tmp_path: Path) -> None:
    for fraction in (0.0, 0.5):
        for seed in (1, 2, 3):
            add_job(tmp_path, fraction, seed, changes={"data.split_seed": seed})
    comparison = compared(tmp_path)
    assert [sorted(group.scores) for group in comparison.configurations] == [[1, 2, 3], [1, 2, 3]]
    assert "A seed decides" in about_seeds(comparison) and "other than these" not in about_seeds(
        comparison
    )


def test_validation_on_the_test_images_is_noted_and_no_test_score_is_quoted(tmp_path: Path) -> None:
    grid(tmp_path, CLEAR, changes={"data.val_fraction": 0.3})
    assert describe_test_score(compared(tmp_path))
    for path in tmp_path.glob("*/config.json"):
        config = json.loads(path.read_text())
        config["data"]["validate_on"] = "test"
        path.write_text(json.dumps(config))
    (tmp_path / "sweep.json").unlink()
    comparison = compared(tmp_path)
    assert describe_test_score(comparison) == "" and any(
        "validate_on=test" in note for note in comparison.notes
    )


def test_differences_besides_the_fraction_are_noted(
    tmp_path: Path,
) -> None:
    for seed in (1, 2):
        add_job(tmp_path, 0.0, seed)
        add_job(tmp_path, 0.5, seed, changes={"optimizer.lr": 0.1})
    assert (
        "Configurations differ in more than the fraction: optimizer.lr." in compared(tmp_path).notes
    )


def test_an_accuracy_no_better_than_the_majority_class_is_noted(tmp_path: Path) -> None:
    grid(tmp_path, {0.0: [0.70, 0.71, 0.69]})  # of 393 images 270 are functional: 0.687
    assert any(
        "Always predicting functional has a validation accuracy of 0.687" in n
        for n in compared(tmp_path).notes
    )
    good = tmp_path / "good"
    good.mkdir()
    grid(good, CLEAR)
    assert compared(good).notes == []


def test_pairs_with_the_best_of_many_are_corrected_for_all_pairs(tmp_path: Path) -> None:
    """Chance must not find a difference more often than the level: shown by the smallest p."""
    grid(
        tmp_path,
        {
            number / 10: [0.8 + number / 100, 0.81 + number / 90, 0.8 + number / 80]
            for number in range(10)
        },
    )
    comparison = compared(tmp_path)
    smallest = min(comparison.differences, key=lambda pair: pair.p or 1.0)
    assert smallest.p and smallest.p_holm and smallest.p_holm >= min(1.0, smallest.p * (45 - 36))
    assert "corrected for all 45 pairs" in comparison.pairs


def test_records_without_a_metric_were_chosen_by_accuracy(tmp_path: Path) -> None:
    grid(tmp_path, {0.5: [0.8, 0.9]})
    old = next(tmp_path.glob("*seed2*/config.json"))
    config = json.loads(old.read_text())
    del config["data"]["metric"]
    old.write_text(json.dumps(config))
    assert [sorted(group.scores) for group in compared(tmp_path).configurations] == [[1, 2]]
