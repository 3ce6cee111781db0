"""What `tvf refit` would train, what it rejects, and what it writes at the end."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.sweeps import add_job, add_training
from tvf.cli.refit import RefitPlan, finish_refit, plan_refit
from tvf.errors import InputError
from tvf.files import BEST_WEIGHTS, MODEL_CARD, read_json, write_json
from tvf.records import fit_temperature, read_predictions

GRID = ("-m", "model.pct_unfreeze=0,0.5", "seed=1,2", "data.folds=2", "data.fold=0,1")


def train(
    sweep: Path,
    fraction: float,
    chance: float,
    best: tuple[int, ...] = (1, 2, 2, 3),
    seeds: tuple[int, ...] = (1, 2),
    **more: Any,
) -> None:
    """Simulate trainings, two folds for each seed, whose best epochs are `best`."""
    changes = {"data.folds": 2, "early_stopping.patience": 3} | more.pop("changes", {})
    for number, epoch in enumerate(best[: 2 * len(seeds)]):
        fold = number % 2
        folder = add_training(
            sweep,
            fraction,
            [image % 10 < 10 * chance for image in range(40)],
            seed=seeds[number // 2],
            places=[2 * image + fold for image in range(40)],
            changes=changes | {"data.fold": fold},
            epochs=3,
            best_epoch=epoch,
            images={"train": 40, "val": 40},
            **more,
        )
        scores = [1.0 if number + 1 == epoch else 0.5 for number in range(3)]
        _write_epochs(folder, *((1, score) for score in scores))


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """A sweep of two fractions, seeds and folds, which chooses 0.5."""
    train(tmp_path / "demo", 0.0, 0.6)
    train(tmp_path / "demo", 0.5, 0.8)
    return tmp_path / "demo"


def plan(sweep: Path, *overrides: str, arguments: tuple[str, ...] = GRID) -> RefitPlan:
    return plan_refit(sweep, arguments, overrides)


def test_the_choice_is_trained_to_the_median_best_epoch_of_its_jobs(sweep: Path) -> None:
    planned = plan(sweep, "tracker=none")
    assert sorted(planned.arguments) == sorted(
        [
            "model.pct_unfreeze=0.5",
            "data.folds=2",
            "early_stopping.patience=3",
            "seed=1",
            "refit_epochs=[2]",
            "tracker=none",
            f"hydra.run.dir={sweep / 'refit' / 'seed1'}",
        ]
    )
    assert planned.text.splitlines() == [
        f"{sweep} chose pct_unfreeze=0.5.",
        "To train it once more on all 80 images of train + validation: 2 of 3 epochs (best epochs "
        "of its jobs: 1, 2, 2, 3).",
    ]


def test_a_sweep_that_recommends_nothing_has_not_chosen(tmp_path: Path) -> None:
    for fraction, chance in ((0.0, 0.8), (0.5, 0.6)):  # a single training of each
        hits = [image % 10 < 10 * chance for image in range(40)]
        add_training(tmp_path, fraction, hits, epochs=3, best_epoch=2)
    text = plan(tmp_path).text
    assert text.startswith(f"{tmp_path} has not decided; best so far is pct_unfreeze=0.")


def test_another_seed_goes_to_another_folder(sweep: Path) -> None:
    planned = plan(sweep, "seed=7")
    assert planned.folder == sweep / "refit" / "seed7" and "seed=7" in planned.arguments


def test_different_test_images_are_mentioned_and_those_of_the_first_division_left_out(
    tmp_path: Path,
) -> None:
    for seed in (4, 3):
        train(tmp_path, 0.0, 0.6, changes={"data.split_seed": seed})
        train(tmp_path, 0.5, 0.8, changes={"data.split_seed": seed})
    planned = plan(tmp_path)
    assert "data.split_seed=3" in planned.arguments
    assert "have different test images. Those of the first one" in planned.text


def test_each_phase_gets_its_median_length_up_to_the_best_epoch(tmp_path: Path) -> None:
    lp_ft = {
        "recipe": {
            "_target_": "tvf.training.LpFt",
            "head_epochs": None,
            "head_patience": 2,
            "lr": 1e-4,
            "backbone_lr": None,
        }
    }
    for fraction, chance in ((0.0, 0.6), (0.5, 0.8)):
        train(tmp_path, fraction, chance, changes=lp_ft, best_phase=2)
    for status in tmp_path.glob("*/status.json"):
        overrides = status.parent / ".hydra" / "overrides.yaml"
        given = yaml.safe_load(overrides.read_text())
        kept = [text for text in given if not text.startswith("recipe=")]
        overrides.write_text(yaml.safe_dump(["recipe=lp_ft", *kept]))
        _write_epochs(status.parent, (1, 0.5), (2, 0.7), (2, 0.6))
    assert "refit_epochs=[1,1]" in plan(tmp_path).arguments
    # Half of the jobs were best with the head alone: the fraction trains all the same.
    for status in sorted(tmp_path.glob("*/status.json"))[::2]:
        summary = read_json(status.parent / "summary.json")
        write_json(status.parent / "summary.json", summary | {"best_phase": 1})
    assert "refit_epochs=[1,1]" in plan(tmp_path).arguments


def _write_epochs(folder: Path, *epochs: tuple[int, float]) -> None:
    """Epochs of these phases and scores."""
    rows = [
        {"epoch": number, "phase": phase, "val_acc": score, "val_loss": 1.0}
        for number, (phase, score) in enumerate(epochs, 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def test_the_division_is_that_of_the_first_job_whatever_the_seed(tmp_path: Path) -> None:
    for seed in (4, 3):
        train(tmp_path, 0.0, 0.6, changes={"data.split_seed": seed}, seeds=(seed,))
        train(tmp_path, 0.5, 0.8, changes={"data.split_seed": seed}, seeds=(seed,))
    for overrides in tmp_path.glob("*/.hydra/overrides.yaml"):
        text = overrides.read_text()
        overrides.write_text(re.sub(r"split_seed=.", "split_seed=${seed}", text))
    arguments = plan(tmp_path, "seed=7").arguments
    assert "data.split_seed=3" in arguments and "seed=7" in arguments


def test_a_single_jobs_tracker_replaces_all_of_the_sweeps(tmp_path: Path) -> None:
    for fraction, chance in ((0.0, 0.6), (0.5, 0.8)):
        train(tmp_path, fraction, chance)
    for overrides in tmp_path.glob("*/.hydra/overrides.yaml"):
        given = yaml.safe_load(overrides.read_text())
        overrides.write_text(yaml.safe_dump([*given, "tracker=wandb", "tracker.mode=offline"]))
    arguments = plan(tmp_path, "tracker=none").arguments
    assert [text for text in arguments if text.startswith("tracker")] == ["tracker=none"]


def test_a_model_of_other_epochs_is_not_overwritten(sweep: Path) -> None:
    folder = plan(sweep).folder
    folder.mkdir(parents=True)
    write_json(folder / "config.json", {"refit_epochs": [3]})
    with pytest.raises(InputError, match=r"holds a model of \[3\] epochs, but .* \[2\] now"):
        plan(sweep)
    assert plan(sweep, "seed=2").folder != folder


def test_a_schedule_that_follows_scores_is_an_error_before_anything_is_trained(
    tmp_path: Path,
) -> None:
    plateau = {
        "scheduler": {
            "_target_": "tvf.training.plateau",
            "_partial_": True,
            "factor": 0.1,
            "patience": 2,
            "min_delta": 0.0,
        }
    }
    for fraction, chance in ((0.0, 0.6), (0.5, 0.8)):
        train(tmp_path, fraction, chance, changes=plateau)
    for overrides in tmp_path.glob("*/.hydra/overrides.yaml"):
        given = yaml.safe_load(overrides.read_text())
        kept = [text for text in given if not text.startswith("scheduler=")]
        overrides.write_text(yaml.safe_dump(["scheduler=plateau", *kept]))
    with pytest.raises(InputError, match="the scheduler follows validation scores"):
        plan(tmp_path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.fold=1", "tvf refit sets data.fold itself, to those of one of the sweep's jobs"),
        ("seed=1,2", "seed=1,2 must have a single value"),
        ("epochs=3", "epochs would change the configurations"),
        ("refit_epochs=[3]", "refit_epochs would change the configurations"),
        ("stop_after=1", "Ctrl-C interrupts, and tvf refit resumes"),
        ("hydra.run.dir=x", "tvf refit decides which jobs run, and in which folder"),
        ("seed=-1", "seed=-1 must be a whole number of at least 0"),
    ],
)
def test_an_override_that_would_change_what_was_chosen_is_an_error(
    sweep: Path, override: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        plan(sweep, override)


def test_a_sweep_without_a_finished_job_has_nothing_to_train_again(tmp_path: Path) -> None:
    add_job(tmp_path, 0.5, 1, state="failed")
    with pytest.raises(InputError, match=r"no finished job, so there is nothing to refit.*resume"):
        plan(tmp_path)


def test_phases_that_are_left_out_and_unfinished_jobs_are_mentioned(tmp_path: Path) -> None:
    for fraction, chance in ((0.0, 0.6), (0.5, 0.8)):
        train(tmp_path, fraction, chance, changes={"recipe._target_": "tvf.training.Gradual"})
    for folder in (status.parent for status in tmp_path.glob("*/status.json")):
        config = read_json(folder / "config.json")
        config["recipe"] |= {"epochs_each": 1}
        config["optimizer"]["layer_decay"] = 0.4
        write_json(folder / "config.json", config)
        given = yaml.safe_load((folder / ".hydra" / "overrides.yaml").read_text())
        kept = [text for text in given if not text.startswith("recipe")]
        (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(["recipe=gradual", *kept]))
    add_job(tmp_path, 1.0, 1, state="failed", changes={"data.folds": 2})
    text = plan(tmp_path).text
    assert "in the first 1 of 3 phases" in text
    assert "note: 1 of the sweep's 9 jobs did not finish" in text


def test_a_job_that_is_not_done_is_no_model(sweep: Path) -> None:
    with pytest.raises(InputError, match="is not done: run tvf refit again"):
        finish_refit(plan(sweep))


def test_the_record_and_the_card_quote_the_sweeps_estimate(sweep: Path) -> None:
    planned = plan(sweep)
    add_job(sweep / "refit", 0.5, 1, manifest=False, changes={"refit_epochs": [2]})  # finished
    (job,) = (sweep / "refit").glob("*/status.json")
    job.parent.rename(planned.folder)
    (planned.folder / BEST_WEIGHTS).parent.mkdir()
    text = finish_refit(planned)
    assert "has no score of its own" in text
    assert "estimate for pct_unfreeze=0.5: validation accuracy 0.800 (" in text
    summary = read_json(planned.folder / "summary.json")
    assert summary["refit"]["scores"] == {"validation": 0.8, "test": 0.75}
    predictions = [
        read_predictions(folder.parent)["val"]
        for folder in sweep.glob("fine-tuning-0.5*/status.json")
    ]
    expected = [fit_temperature(each.logits, each.labels) for each in predictions]
    assert min(expected) <= summary["calibration"]["temperature"] <= max(expected)
    card = (planned.folder / MODEL_CARD).read_text()
    assert "Not measured: it was trained on its validation images too." in card
    assert "chosen by the best epochs of the sweep's jobs (1, 2, 2, 3)" in card


def test_relative_places_are_those_of_the_record(tmp_path: Path) -> None:
    """Commands of one sweep may have been given in several folders."""
    store = tmp_path / "my store"
    for fraction, chance in ((0.0, 0.6), (0.5, 0.8)):
        train(tmp_path / "demo", fraction, chance, changes={"store.dir": str(store)})
    for overrides in tmp_path.glob("demo/*/.hydra/overrides.yaml"):
        given = [each for each in yaml.safe_load(overrides.read_text()) if "store" not in each]
        overrides.write_text(yaml.safe_dump([*given, "store.dir='my store'"]))
    assert f"store.dir='{store}'" in plan(tmp_path / "demo").arguments
