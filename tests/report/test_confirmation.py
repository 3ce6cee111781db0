"""What the report of a sweep says about its confirmation, from simulated sweep folders."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.sweeps import add_job, add_training
from tvf.records import CONFIRMATION, note_halving, note_rung, read_sweep
from tvf.report.commands import confirm_command
from tvf.report.comparison import Comparison, compare
from tvf.report.confirmation import to_confirm
from tvf.report.formats import render_report
from tvf.report.terminal import print_result

IMAGES = 600


def train(
    sweep: Path,
    accuracies: dict[float, float],
    *,
    seeds: Sequence[int] = (1337,),
    split_seed: int = 0,
    folds: int = 5,
    only: int | None = None,
    changes: dict[str, Any] | None = None,
) -> None:
    """Fractions × folds, right at random with these chances; with `only`, just so many folds."""
    rng = np.random.default_rng(split_seed)
    for fraction, accuracy in accuracies.items():
        for seed in seeds:
            for fold in range(folds if only is None else only):
                places = np.flatnonzero(np.arange(IMAGES) % folds == fold)
                add_training(
                    sweep,
                    fraction,
                    (rng.random(len(places)) < accuracy).tolist(),
                    seed=seed,
                    places=places.tolist(),
                    changes={
                        "data.folds": folds,
                        "data.fold": fold,
                        "data.split_seed": split_seed,
                        **(changes or {}),
                    },
                )


def confirmed(sweep: Path, accuracies: dict[float, float], **more: Any) -> Comparison:
    """The comparison of the sweep after a confirmation on fresh folds."""
    more = {"seeds": (1338,), "split_seed": 1} | more
    train(sweep / CONFIRMATION, accuracies, **more)
    return compared(sweep)


def compared(sweep: Path) -> Comparison:
    (comparison,) = compare(read_sweep(sweep))
    return comparison


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep that chooses 0.5, before 0.25."""
    folder = tmp_path_factory.mktemp("original")
    train(folder, {0.0: 0.6, 0.25: 0.85, 0.5: 0.93})
    return folder


@pytest.fixture
def sweep(original: Path, tmp_path: Path) -> Path:
    """A copy of `original` that a test may change."""
    return shutil.copytree(original, tmp_path / "demo")


def test_the_chosen_one_and_the_next_best_are_confirmed_or_the_best_of_each_fraction(
    sweep: Path,
) -> None:
    comparison = compared(sweep)
    pair = to_confirm(comparison.evidence, comparison.choice)
    assert [group.label for group in pair] == ["0.5", "0.25"]
    train(sweep, {0.5: 0.9, 0.25: 0.5}, changes={"optimizer.lr": 0.01})
    comparison = compared(sweep)
    pair = to_confirm(comparison.evidence, comparison.choice)
    assert [group.label for group in pair] == ["0.5", "0.5, optimizer.lr=0.01"]
    each = to_confirm(comparison.evidence, comparison.choice, each_fraction=True)
    assert [group.label.partition(",")[0] for group in each] == ["0.5", "0.25", "0"]


def test_a_cheaper_choice_has_the_best_as_its_runner_up(tmp_path: Path) -> None:
    train(tmp_path, {0.0: 0.9, 1.0: 0.9, 0.25: 0.9})
    rows = read_sweep(tmp_path)
    (comparison,) = compare(rows, margin=0.5)
    chosen, runner_up = to_confirm(comparison.evidence, comparison.choice)
    assert chosen.label == "0" and comparison.choice.best is not None
    assert runner_up.label == comparison.choice.best.label != "0"


def test_a_confirmation_is_quoted_with_its_own_scores_and_difference(sweep: Path) -> None:
    before = compared(sweep)
    after = confirmed(sweep, {0.5: 0.9, 0.25: 0.84})
    assert before.confirmation is None and after.confirmation is not None
    chosen, runner_up = after.confirmation.configurations
    assert chosen.val and runner_up.val and after.confirmation.difference
    interval = after.confirmation.difference.interval
    assert interval.mean == pytest.approx(chosen.val.mean - runner_up.val.mean)
    assert interval.low and interval.high and interval.low < interval.mean < interval.high
    text = after.confirmation.text
    assert text.startswith(
        "Confirmed on 5 fresh folds with a fresh seed: pct_unfreeze=0.5 has a validation accuracy "
        f"of {chosen.val.mean:.3f} ({chosen.val.errors}); pct_unfreeze=0.25 "
        f"{runner_up.val.mean:.3f} ({runner_up.val.errors}). 0.5 minus 0.25 is "
        f"{interval.mean:+.3f} (95 % interval {interval.low:+.3f} to {interval.high:+.3f}, other "
        "images and trainings)"
    )
    assert "not that of the images" in text and "test score" not in text
    assert after.confirmation.confirmed is True
    # The choice and its own scores stay those of the sweep.
    assert after.choice.text == before.choice.text
    assert [group.val for group in after.configurations] == [
        group.val for group in before.configurations
    ]


def test_a_better_runner_up_contradicts_the_choice(sweep: Path) -> None:
    found = confirmed(sweep, {0.5: 0.91, 0.25: 0.97}).confirmation
    assert found and found.difference and found.confirmed is False
    assert found.difference.worse and found.difference.worse >= 0.9
    assert found.text.startswith("Contradicted on 5 fresh folds")
    assert "the probability that it is more than 0.01 worse is above 99 %" in found.text


def test_the_margin_decides_what_contradicts(sweep: Path) -> None:
    confirmed(sweep, {0.5: 0.91, 0.25: 0.97})
    (comparison,) = compare(read_sweep(sweep), margin=0.2)
    assert comparison.choice.chosen and comparison.choice.chosen.label == "0.25"
    found = comparison.confirmation
    assert found and found.configurations[0].label == "0.25" and found.confirmed is True


def test_a_score_below_the_first_interval_was_too_high_but_the_choice_may_hold(sweep: Path) -> None:
    first = compared(sweep).configurations[-1].val
    found = confirmed(sweep, {0.5: 0.7, 0.25: 0.6}).confirmation
    assert first and first.low and found and found.confirmed is True
    val = found.configurations[0].val
    assert val and (
        f"Its score in the sweep was too high: {val.mean:.3f} is below the 95 % interval given "
        f"there ({first.low:.3f} to {first.high:.3f})." in found.text
    )


def test_an_open_choice_is_trained_again_with_its_rivals_but_never_confirmed(
    tmp_path: Path,
) -> None:
    train(tmp_path, {0.25: 0.9, 0.5: 0.88})
    before = compared(tmp_path).choice
    assert before.decision and not before.decision.decided and before.chosen
    assert confirm_command(tmp_path, [compared(tmp_path)]) is None
    best, other = before.chosen.fraction, {0.5: 0.25, 0.25: 0.5}[before.chosen.fraction]
    found = confirmed(tmp_path, {best: 0.95, other: 0.8}).confirmation
    assert found and found.text.startswith("Trained again on 5 fresh folds")
    assert found.confirmed is None
    pair = to_confirm(compared(tmp_path).evidence, before)
    assert [group.fraction for group in pair] == [best, other]


def test_what_may_do_as_well_is_trained_again_with_an_open_choice(tmp_path: Path) -> None:
    train(tmp_path, {0.0: 0.9, 0.25: 0.9, 0.5: 0.92, 1.0: 0.5})
    comparison = compared(tmp_path)
    decision, evidence = comparison.choice.decision, comparison.evidence
    assert decision and evidence and not decision.decided and len(decision.open) == 2
    again = {group.label for group in to_confirm(evidence, comparison.choice)}
    assert again == {"0", "0.25", "0.5"}


def test_a_choice_without_rivals_is_trained_again_but_not_confirmed(tmp_path: Path) -> None:
    train(tmp_path, {0.5: 0.9})
    dropped = add_job(tmp_path, 0.25, 1337, state="paused", changes={"data.folds": 5})
    note_halving(tmp_path, eta=2, budgets=[1, 2])
    note_rung(tmp_path, {"epochs": 1}, [dropped.name])
    found = confirmed(tmp_path, {0.5: 0.9}).confirmation
    assert found and found.confirmed is None
    assert found.text.startswith("Trained again on 5 fresh folds with a fresh seed: pct_unfreeze")


def test_the_same_seed_on_a_new_division_is_a_new_training(sweep: Path) -> None:
    """The sweep may be extended later by the seed that its confirmation used."""
    found = confirmed(sweep, {0.5: 0.9, 0.25: 0.6}, seeds=(1337,)).confirmation
    assert found and found.confirmed is True


def test_a_second_name_of_the_same_trainings_is_no_runner_up(tmp_path: Path) -> None:
    """At fraction 0 nothing of the backbone trains, at whatever learning rate."""
    for rate in (1e-4, 1e-3):
        train(tmp_path, {0.0: 0.9}, changes={"optimizer.backbone_lr": rate})
    train(tmp_path, {1.0: 0.5}, changes={"optimizer.backbone_lr": 1e-4})
    comparison = compared(tmp_path)
    pair = to_confirm(comparison.evidence, comparison.choice)
    assert [group.fraction for group in pair] == [0, 1]
    assert "The runner-up is pct_unfreeze=1" in comparison.choice.text
    (note,) = [note for note in comparison.notes if "at its best" in note] or [""]
    assert note == ""  # one training of each fraction


def test_an_unfinished_confirmation_gives_no_verdict(sweep: Path) -> None:
    add_job(
        sweep / CONFIRMATION,
        0.25,
        1338,
        state="waiting",
        changes={"data.folds": 5, "data.split_seed": 1},
    )
    found = confirmed(sweep, {0.5: 0.5, 0.25: 0.9}, only=4).confirmation
    assert found and found.confirmed is None
    assert found.text.startswith("On 4 fresh folds with a fresh seed so far (8 jobs are done): ")
    assert "contradicts" not in found.text


def test_a_confirmation_that_ended_with_a_failed_job_is_not_so_far(sweep: Path) -> None:
    changes = {"data.folds": 5, "data.split_seed": 1}
    add_job(sweep / CONFIRMATION, 0.25, 1338, state="failed", changes=changes)
    found = confirmed(sweep, {0.5: 0.5, 0.25: 0.9}, only=4).confirmation
    assert found and found.confirmed is None and "so far" not in found.text
    assert "There is no verdict, because 1 of its jobs failed: tvf confirm" in found.text


def test_scores_too_close_to_tell_neither_confirm_nor_contradict(sweep: Path) -> None:
    found = confirmed(sweep, {0.5: 0.9, 0.25: 0.92}).confirmation
    assert found and found.confirmed is None and found.difference
    assert found.difference.worse and 0.1 < found.difference.worse < 0.9
    assert found.text.startswith("Neither confirmed nor contradicted on 5 fresh folds")


def test_without_its_runner_up_the_choice_is_not_confirmed_yet(sweep: Path) -> None:
    found = confirmed(sweep, {0.5: 0.9}).confirmation
    assert found and found.confirmed is None and found.difference is None
    assert found.text.startswith(
        "Trained again on 5 fresh folds with a fresh seed: pct_unfreeze=0.5"
    )
    assert "no verdict, because pct_unfreeze=0.25 has no finished job there" in found.text


def test_every_configuration_of_the_sweep_that_was_trained_again_is_quoted(sweep: Path) -> None:
    found = confirmed(sweep, {0.5: 0.9, 0.25: 0.6, 0.0: 0.8}).confirmation
    assert found and [group.label for group in found.configurations] == ["0.5", "0", "0.25"]
    assert found.text.index("0.5 minus 0 is") > 0


@pytest.mark.parametrize(
    "other",
    [{"seeds": (1337,), "split_seed": 0}, {"changes": {"optimizer.lr": 0.5}}],
    ids=["seed and division of the sweep", "other settings"],
)
def test_jobs_that_are_no_fresh_training_of_the_choice_do_not_count(
    sweep: Path, other: dict[str, Any]
) -> None:
    found = confirmed(sweep, {0.5: 0.9, 0.25: 0.8}, **other).confirmation
    assert found and found.confirmed is None and found.configurations == []
    assert "has no finished job of pct_unfreeze=0.5" in found.text


def test_jobs_on_other_images_do_not_count(sweep: Path) -> None:
    confirmed(sweep, {0.5: 0.9, 0.25: 0.8})
    for summary in (sweep / CONFIRMATION).glob("*/summary.json"):
        values = json.loads(summary.read_text())
        summary.write_text(json.dumps(values | {"images": {"pool": 9, "digest": "other"}}))
    found = compared(sweep).confirmation
    assert found and found.configurations == []


def test_a_sweep_on_one_split_is_confirmed_by_folds(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for fraction, accuracy in ((0.0, 0.6), (0.5, 0.9)):
        usual = rng.random(60) < accuracy
        for seed in (1, 2, 3):
            hits = usual ^ (rng.random(60) < 0.02)
            add_training(tmp_path, fraction, hits.tolist(), seed=seed)
    found = confirmed(tmp_path, {0.0: 0.6, 0.5: 0.9}, seeds=(4,)).confirmation
    assert found and found.text.startswith("Confirmed on 5 fresh folds with a fresh seed")


def test_two_folds_are_called_few(sweep: Path) -> None:
    found = confirmed(sweep, {0.5: 0.9, 0.25: 0.84}, only=2).confirmation
    assert found and "from only 2 folds: data.folds=5 has more); the prob" in found.text
    again = confirmed(sweep, {0.5: 0.9, 0.25: 0.84}, folds=5, seeds=(1339,)).confirmation
    assert again and "which are few" not in again.text


def test_with_seeds_alone_the_report_says_what_that_leaves_open(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    hits = {0.0: rng.random(200) < 0.7, 0.5: rng.random(200) < 0.9}
    for folder, seeds in ((tmp_path, (1, 2)), (tmp_path / CONFIRMATION, (3, 4))):
        for fraction, usual in hits.items():
            for seed in seeds:
                flipped = usual ^ (rng.random(200) < 0.05)
                add_training(folder, fraction, flipped.tolist(), seed=seed)
    found = compared(tmp_path).confirmation
    assert found and found.text.startswith("Confirmed on 2 fresh seeds: pct_unfreeze=0.5")
    assert "The validation images are the same ones" in found.text


def test_images_that_tested_and_now_validate_are_mentioned(tmp_path: Path) -> None:
    train(tmp_path, {0.0: 0.7, 0.5: 0.9})
    places = np.arange(1000, 1004)  # the test images of every simulated job
    for fraction in (0.0, 0.5):
        for seed in (1338, 1339):
            add_training(
                tmp_path / CONFIRMATION,
                fraction,
                [True, True, fraction > 0, seed > 1338],
                seed=seed,
                places=places.tolist(),
                changes={"data.folds": 5, "data.split_seed": 1},
            )
    found = compared(tmp_path).confirmation
    assert found and "no test score of the new trainings is quoted" in found.text


def test_the_table_quotes_it_and_the_json_has_its_numbers(sweep: Path) -> None:
    comparison = confirmed(sweep, {0.5: 0.9, 0.25: 0.84})
    found = comparison.confirmation
    assert found and found.difference
    rows = read_sweep(sweep)
    (markdown,) = render_report([sweep], rows, "md").values()
    assert found.text in markdown.decode()
    (content,) = render_report([sweep], rows, "json").values()
    (data,) = json.loads(content)["comparisons"]
    assert data["confirmation"]["text"] == found.text and data["confirmation"]["confirmed"] is True
    assert data["confirmation"]["difference"]["mean"] == found.difference.interval.mean
    assert [group["n"] for group in data["confirmation"]["configurations"]] == [5, 5]
    assert {row["sweep"] for row in data["jobs"]} == {"demo"}


def test_its_jobs_are_not_jobs_of_the_sweep_and_its_name_is_its_own(sweep: Path) -> None:
    before = [row["folder"] for row in read_sweep(sweep)]
    confirmed(sweep, {0.5: 0.9, 0.25: 0.84})
    assert [row["folder"] for row in read_sweep(sweep)] == before
    assert {row["sweep"] for row in read_sweep(sweep / CONFIRMATION)} == {"demo-confirm"}


@pytest.fixture
def no_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Name the report's folder without drawing its page, which takes seconds."""
    monkeypatch.setattr(
        "tvf.report.terminal._write_reports", lambda folder, *known: print(f"report: {folder}")
    )


@pytest.mark.usefixtures("no_pages")
def test_the_end_of_a_confirmation_shows_the_report_of_its_sweep(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    confirmed(sweep, {0.5: 0.9, 0.25: 0.84})
    assert print_result(sweep / CONFIRMATION, frozenset()) is False
    printed = capsys.readouterr().out
    assert "Train pct_unfreeze=0.5" in printed and "Confirmed on 5 fresh folds" in printed
    assert f"report: {sweep}\n" in printed and "tvf confirm" not in printed


@pytest.mark.usefixtures("no_pages")
def test_the_command_is_offered_until_it_ran(
    sweep: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    print_result(sweep, frozenset())
    assert f"fresh divisions and seeds: tvf confirm {sweep}\n" in capsys.readouterr().out
    train(sweep / CONFIRMATION, {0.5: 0.9, 0.25: 0.8}, seeds=(1338,), split_seed=1)
    assert confirm_command(sweep, [compared(sweep)]) is None
    shutil.rmtree(sweep / CONFIRMATION)
    assert confirm_command(sweep, [compared(sweep)]) is not None
    add_job(tmp_path / "single", 0.5, 1)
    assert confirm_command(tmp_path / "single", [compared(tmp_path / "single")]) is None
