"""From job folders to a recommendation: which jobs count, what is compared, and the wording."""

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.sweeps import add_job
from tvf.records.rows import read_sweep
from tvf.report import tables
from tvf.report.commands import confirm_command
from tvf.report.comparison import Comparison, compare
from tvf.report.configuration import Configuration
from tvf.report.decide import EVIDENCE
from tvf.report.sentences import describe_errors, describe_test_score


def compared(*folders: Path) -> Comparison:
    (comparison,) = compare([row for folder in folders for row in read_sweep(folder)])
    return comparison


def seeds(configuration: Configuration) -> list[int]:
    return sorted(training.seed for training in configuration.scores)


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


def test_the_cheapest_that_is_shown_to_be_good_enough_is_recommended(tmp_path: Path) -> None:
    grid(tmp_path, {0.0: CLEAR[0.0], 0.25: [0.909, 0.914, 0.911], 0.5: [0.912, 0.916, 0.914]})
    choice = compared(tmp_path).choice
    assert choice.chosen and choice.best
    assert (choice.chosen.label, choice.best.label) == ("0.25", "0.5")
    # Own seconds: 10 + 100 * fraction, without 8 in frozen layers.
    for words in (
        "train pct_unfreeze=0.25, with a validation accuracy of 0.911 (retraining ±0.006",
        "It is the cheapest that is shown to be good enough: the probability that it is more than "
        "0.01 worse than the best is below 1 %.",
        "The highest score is 0.914 of pct_unfreeze=0.5, which takes 1.9 times as long "
        "(52 s and 27 s per job).",
        "0.25 minus 0.5 is -0.003 (95 % interval -0.004 to -0.001, repeated training).",
    ):
        assert words in choice.text


def test_the_best_is_recommended_with_its_runner_up_if_nothing_cheaper_is_good_enough(
    tmp_path: Path,
) -> None:
    grid(tmp_path, {0.0: CLEAR[0.0], 0.5: [0.92, 0.925, 0.93], 1.0: [0.90, 0.91, 0.905]})
    choice = compared(tmp_path).choice
    assert choice.chosen is choice.best and choice.chosen and choice.chosen.label == "0.5"
    assert choice.decision and choice.decision.decided
    assert "It has the highest score; the probability that it is more than 0.01 worse" in (
        choice.text
    )
    assert (
        "The runner-up is pct_unfreeze=1 with 0.905, which takes 2 times as long "
        "(102 s and 52 s per job)." in choice.text
    )


def test_at_equal_cost_the_one_that_trains_fewer_parameters_is_chosen(tmp_path: Path) -> None:
    grid(tmp_path, {0.5: [0.9, 0.91, 0.9], 0.25: [0.9, 0.91, 0.901], 1.0: [0.5] * 3}, seconds=30.04)
    choice = compared(tmp_path).choice
    assert choice.chosen and choice.chosen.label == "0.25"


def test_an_undecided_choice_says_so_and_what_would_decide_it(tmp_path: Path) -> None:
    grid(tmp_path, {0.0: [0.85, 0.9, 0.87], 1.0: [0.9, 0.86, 0.88]})
    choice = compared(tmp_path).choice
    assert choice.chosen and choice.chosen.label == "1"
    assert choice.decision and not choice.decision.decided
    assert "not decided; best so far is pct_unfreeze=1" in choice.text
    assert "pct_unfreeze=0 may do as well" in choice.text
    assert choice.decision.worse and choice.decision.worse[1] > EVIDENCE
    assert "above the limit of 10 %" in choice.text
    assert choice.more and f"To decide, add {choice.more} to the sweep." in choice.text


def test_a_margin_decides_what_counts_as_equal(tmp_path: Path) -> None:
    grid(tmp_path, {0.0: [0.88, 0.885, 0.883], 1.0: [0.9, 0.905, 0.904]})
    rows = read_sweep(tmp_path)
    for margin, label in ((0.01, "1"), (0.05, "0")):
        (comparison,) = compare(rows, margin)
        assert comparison.choice.chosen and comparison.choice.chosen.label == label
        assert f"more than {margin} worse" in comparison.choice.text
    for path in tmp_path.glob("*/config.json"):
        config = json.loads(path.read_text())
        path.write_text(json.dumps(config | {"report": {"margin": 0.05}}))
    choice = compared(tmp_path).choice
    assert choice.chosen and choice.chosen.label == "0"


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


def test_one_training_gives_advice_instead_of_a_recommendation(tmp_path: Path) -> None:
    grid(tmp_path, {0.0: [0.8], 0.5: [0.9]})
    choice = compared(tmp_path).choice
    assert choice.chosen is None
    for words in (
        "pct_unfreeze=0.5 has the highest",
        "a single training of each configuration does not show",
        "data.folds=5 data.fold=0,1,2,3,4",
    ):
        assert words in choice.text
    assert compared(tmp_path).differences == []


def test_a_configuration_with_few_trainings_is_excluded_if_others_have_more(
    tmp_path: Path,
) -> None:
    grid(tmp_path, {0.0: [0.8, 0.81, 0.805], 0.5: [0.9, 0.91, 0.905], 1.0: [0.99]})
    choice = compared(tmp_path).choice
    assert choice.chosen and choice.chosen.label == "0.5"
    assert "Excluded (too few finished jobs): pct_unfreeze=1." in choice.text


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
    assert seeds(comparison.configurations[2]) == [1, 2, 3]
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
    assert seeds(comparison.configurations[0]) == [1, 2, 3]
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
    assert [seeds(group) for group in comparison.configurations] == [[1, 2], [1, 2]]
    said = describe_errors(comparison)
    assert "dropout and the images' augmented views (augment.seed)." in said
    assert "all seeds share" not in said


def test_seeds_share_the_split_and_the_views_by_default(tmp_path: Path) -> None:
    grid(tmp_path, CLEAR)
    comparison = compared(tmp_path)
    text = describe_errors(comparison)
    assert "all seeds share the images' augmented views (augment.seed)" in text
    assert "All trainings share one division" in text
    # As if images were independent: 0.81 of 393, 1.96 * sqrt(0.81 * 0.19 / 393)
    val = comparison.configurations[0].val
    assert val and val.images == pytest.approx(0.0388, abs=5e-5)
    assert val.retraining == pytest.approx(4.303 * 0.01 / 3**0.5, abs=5e-5)
    assert comparison.choice.text.startswith("By a single validation split: ")


def test_an_interval_wider_than_the_scale_is_no_interval(tmp_path: Path) -> None:
    for seed, score in ((1, 0.6), (2, 0.9)):  # 12.7 * 0.15 = 1.9
        add_job(tmp_path, 0.5, seed, [score])
    val = compared(tmp_path).configurations[0].val
    assert val and val.retraining is None and "retraining" not in val.errors


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
    for folder, trained in (("a", (1, 2)), ("b", (2, 3))):
        (tmp_path / folder).mkdir()
        for seed in trained:
            add_job(tmp_path / folder, 0.5, seed)
    comparison = compared(tmp_path / "a", tmp_path / "b")
    assert seeds(comparison.configurations[0]) == [1, 2, 3]
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
    assert [*comparison.configurations[0].scores.values()] == [0.97, 0.97]
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


def test_equal_means_of_single_trainings_share_the_highest(tmp_path: Path) -> None:
    grid(tmp_path, {0.25: [0.9], 1.0: [0.9], 0.0: [0.5]})
    assert (
        "pct_unfreeze=0.25 and pct_unfreeze=1 share the highest" in compared(tmp_path).choice.text
    )


def test_of_equal_means_the_one_that_trains_least_is_the_best_so_far(tmp_path: Path) -> None:
    for fraction, parameters in ((0.25, 60), (0.5, 20), (1.0, 70)):
        add_job(tmp_path, fraction, 1, [0.7, 0.9], trainable_params=parameters)
    best = compared(tmp_path).choice.best
    assert best is not None and best.fraction == 0.5


def test_configurations_without_results_and_missing_seeds_are_named(tmp_path: Path) -> None:
    grid(tmp_path, {0.0: [0.80, 0.81, 0.82], 0.25: [0.90, 0.92]})
    add_job(tmp_path, 0.25, 3, state="failed", epochs=2)
    add_job(tmp_path, 1.0, 1, state="waiting", epochs=2)
    text = compared(tmp_path).choice.text
    assert "Excluded (no finished job): pct_unfreeze=1." in text
    assert "Not counted (not done): 1 of 3 jobs of pct_unfreeze=0.25." in text
    assert "0.25 minus 0 is +0.105" in text  # over the two seeds that both have


def test_equal_repetitions_mean_that_the_spread_is_unknown(tmp_path: Path) -> None:
    grid(tmp_path, {0.0: [0.8, 0.8, 0.8], 0.5: [0.7, 0.7, 0.7]})
    comparison = compared(tmp_path)
    assert "the spread is unknown" in comparison.choice.text
    assert comparison.choice.decision and not comparison.choice.decision.decided
    (pair,) = comparison.differences
    assert (pair.low, pair.high, pair.p) == (None, None, None)
    for group in comparison.configurations:
        assert group.val and group.val.retraining is None


def test_two_seeds_with_the_same_difference_give_no_interval_of_width_zero(tmp_path: Path) -> None:
    grid(tmp_path, {0.0: [0.8, 0.82], 0.5: [0.85, 0.87]})
    (pair,) = compared(tmp_path).differences
    assert pair.mean == pytest.approx(0.05) and pair.low is None and pair.p is None


def test_one_slow_job_does_not_change_what_is_cheap(tmp_path: Path) -> None:
    """Cost is the median, with a tolerance: 98 s is never as cheap as 12 s."""
    for seed, (small, large) in enumerate([(12, 98), (12.5, 98), (200, 99)], 1):
        add_job(tmp_path, 0.0, seed, [0.8, 0.9 + seed / 1000], seconds=small + 8)
        add_job(tmp_path, 0.5, seed, [0.8, 0.901 + seed / 1000 + seed % 2 / 1e4], seconds=large + 8)
    choice = compared(tmp_path).choice
    assert choice.chosen and choice.chosen.label == "0"
    assert "which takes 7.8 times as long (98 s and 12.5 s per job)" in choice.text


def test_jobs_whose_views_follow_the_seed_are_one_configuration_beside_others(
    tmp_path: Path,
) -> None:
    for seed in (0, 1, 2, 3):
        add_job(tmp_path, 0.5, seed, changes={"augment.seed": seed})
        add_job(tmp_path, 0.5, seed)
    comparison = compared(tmp_path)
    assert sorted(map(seeds, comparison.configurations)) == [
        [0, 1, 2, 3],
        [1, 2, 3],
    ]
    assert comparison.following == frozenset()


def test_splits_that_follow_the_seed_are_one_comparison(tmp_path: Path) -> None:
    for fraction in (0.0, 0.5):
        for seed in (1, 2, 3):
            add_job(tmp_path, fraction, seed, changes={"data.split_seed": seed})
    comparison = compared(tmp_path)
    assert [seeds(group) for group in comparison.configurations] == [[1, 2, 3], [1, 2, 3]]
    assert "There are 3 divisions into training, validation and test" in describe_errors(comparison)
    assert "over 3 validation splits" in comparison.choice.text


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


def test_below_the_majority_class_the_note_says_so_and_what_may_help(tmp_path: Path) -> None:
    for folder, confusion in (("skewed", [[200, 70], [40, 83]]), ("equal", [[90, 60], [60, 90]])):
        sweep = tmp_path / folder
        sweep.mkdir()
        grid(sweep, {0.0: [0.40, 0.41, 0.39]})
        for path in sweep.glob("*/summary.json"):
            summary = json.loads(path.read_text()) | {"val_confusion": confusion}
            path.write_text(json.dumps(summary))
    (skewed,), (equal,) = (compared(tmp_path / each).notes for each in ("skewed", "equal"))
    assert "the best configuration is worse: data.metric=macro_f1" in skewed
    assert "the best configuration is worse: training longer" in equal


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
    assert [seeds(group) for group in compared(tmp_path).configurations] == [[1, 2]]


def test_the_best_of_each_fraction_is_named_if_fractions_were_trained_in_several_ways(
    tmp_path: Path,
) -> None:
    grid(tmp_path, {0.0: [0.8, 0.81]})
    assert not any("at its best" in note for note in compared(tmp_path).notes)
    for lr, score in ((0.01, 0.9), (0.1, 0.7)):
        for seed in (1, 2):
            changes = {"optimizer.lr": lr}
            add_job(tmp_path, 0.5, seed, [0.5, score + seed / 100], changes=changes)
    (note,) = [note for note in compared(tmp_path).notes if "at its best" in note]
    assert "0.915 of pct_unfreeze=0.5, optimizer.lr=0.01 (best of 2)" in note
    assert "(best of 1); " in note
    assert confirm_command(tmp_path, [compared(tmp_path)]) == (
        f"tvf confirm {tmp_path} --each-fraction"
    )
