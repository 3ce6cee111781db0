"""What `tvf confirm` would train, and what it rejects, on simulated sweep folders."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from helpers.sweeps import add_job, add_training
from tvf.cli import commands
from tvf.cli.chosen import overrides_of
from tvf.cli.confirm import Plan, plan_confirmation
from tvf.errors import InputError
from tvf.records import CONFIRMATION

GRID = ("-m", "model.pct_unfreeze=0,0.5", "seed=1,2", "data.folds=2", "data.fold=0,1")


def train(
    sweep: Path,
    fraction: float,
    *,
    chance: float,
    seeds: Sequence[int] = (1, 2),
    folds: int | None = 2,
    epochs: int = 3,
    changes: dict[str, Any] | None = None,
) -> None:
    """Simulate the trainings of one configuration, with two folds or one split."""
    for seed in seeds:
        for fold in range(folds or 1):
            add_training(
                sweep,
                fraction,
                [image % 10 < 10 * chance for image in range(40)],
                seed=seed,
                places=[2 * image + fold for image in range(40)],
                changes=({"data.folds": folds, "data.fold": fold} if folds else {})
                | (changes or {}),
                epochs=epochs,
                seconds=12.0,
            )


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of two fractions, seeds and folds, which chooses 0.5."""
    folder = tmp_path_factory.mktemp("original")
    train(folder, 0.0, chance=0.6)
    train(folder, 0.5, chance=0.8)
    return folder


@pytest.fixture
def sweep(original: Path, tmp_path: Path) -> Path:
    """A copy of `original` that a test may change."""
    return shutil.copytree(original, tmp_path / "demo")


def plan(sweep: Path, *overrides: str, arguments: tuple[str, ...] = GRID, **more: Any) -> Plan:
    return plan_confirmation(sweep, arguments, overrides, **more)


def test_a_sweep_by_folds_is_repeated_with_new_divisions_and_seeds(sweep: Path) -> None:
    planned = plan(sweep)
    assert [sorted(command) for command in planned.commands] == [
        sorted(
            [
                "-m",
                "model.pct_unfreeze=0.5,0.0",
                "data.folds=2",
                "data.split_seed=1",
                "data.fold=0,1",
                "seed=3,4",
            ]
        )
    ]
    lines = planned.text.splitlines()
    assert lines[0] == f"{sweep} chose pct_unfreeze=0.5."
    assert lines[1:] == [
        "To train it and pct_unfreeze=0 again: 8 jobs (data.split_seed=1 data.fold=0,1 seed=3,4), "
        "about 32 s of training by the seconds per job of the sweep."
    ]


def test_a_sweep_on_one_split_is_confirmed_by_five_folds(tmp_path: Path) -> None:
    for fraction, chance in ((0.0, 0.6), (0.5, 0.8)):
        train(tmp_path, fraction, chance=chance, seeds=(7, 8, 9), folds=None)
    planned = plan(tmp_path)
    (command,) = planned.commands
    assert {"data.folds=5", "data.fold=0,1,2,3,4", "seed=10", "data.split_seed=1"} < {*command}
    assert "The sweep used one validation split: 5 folds confirm it." in planned.text
    assert "10 jobs" in planned.text


def test_several_random_splits_are_confirmed_by_as_many(tmp_path: Path) -> None:
    for fraction, chance in ((0.0, 0.6), (0.5, 0.8)):
        for split_seed in (4, 6):
            changes = {"data.split_seed": split_seed}
            train(tmp_path, fraction, chance=chance, seeds=(1,), folds=None, changes=changes)
    (command,) = plan(tmp_path).commands
    assert {"data.split_seed=7,8", "seed=2"} < {*command}
    assert not any(text.startswith(("data.fold=", "data.folds=5")) for text in command)


def test_another_number_of_folds_may_be_given(sweep: Path) -> None:
    (command,) = plan(sweep, "data.folds=3").commands
    assert {"data.folds=3", "data.fold=0,1,2"} < {*command} and "data.folds=2" not in command


def test_configurations_that_differ_in_several_options_are_two_sweeps(tmp_path: Path) -> None:
    train(tmp_path, 0.0, chance=0.6)
    train(tmp_path, 0.5, chance=0.8, changes={"optimizer.lr": 0.01})
    first, second = plan(tmp_path).commands
    assert {"model.pct_unfreeze=0.5", "optimizer.lr=0.01", "seed=3,4"} < {*first}
    assert {"model.pct_unfreeze=0.0", "seed=3,4"} < {*second}
    assert not any("optimizer.lr" in text for text in second)


def test_the_best_of_each_fraction_may_be_confirmed(sweep: Path) -> None:
    train(sweep, 0.25, chance=0.5)
    (command,) = plan(sweep, each_fraction=True).commands
    assert "model.pct_unfreeze=0.5,0.0,0.25" in command


def test_values_that_follow_the_seed_follow_the_new_one(tmp_path: Path) -> None:
    for seed in (1, 2):
        for fraction, chance in ((0.0, 0.6), (0.5, 0.8)):
            train(tmp_path, fraction, chance=chance, seeds=(seed,), changes={"augment.seed": seed})
    (command,) = plan(tmp_path).commands
    assert "augment.seed=${seed}" in command


def test_hydras_settings_are_kept_except_for_which_jobs_run(sweep: Path) -> None:
    arguments = (*GRID, "hydra/launcher=basic", "hydra/sweeper=halving", "hydra.sweeper.eta=3")
    (command,) = plan(sweep, arguments=(*arguments, "hydra.sweep.dir=x")).commands
    assert [text for text in command if text.startswith("hydra")] == ["hydra/launcher=basic"]
    (command,) = plan(sweep, "hydra/launcher=local", arguments=arguments).commands
    assert [text for text in command if text.startswith("hydra")] == ["hydra/launcher=local"]


def test_swept_values_of_an_option_file_do_not_multiply_the_jobs(sweep: Path) -> None:
    (command,) = plan(sweep, arguments=("-m", "+experiment=own")).commands
    assert "hydra.sweeper.params=null" in command


def test_another_tracker_replaces_all_of_the_sweeps(tmp_path: Path) -> None:
    for fraction, chance in ((0.0, 0.6), (0.5, 0.8)):
        train(tmp_path, fraction, chance=chance)
    for path in tmp_path.glob("*/.hydra/overrides.yaml"):
        path.write_text(path.read_text() + "- tracker.mode=offline\n")
    (command,) = plan(tmp_path, "tracker=none").commands
    assert [text for text in command if "tracker" in text] == ["tracker=none"]


def test_jobs_of_an_earlier_confirmation_are_counted(sweep: Path) -> None:
    train(sweep / CONFIRMATION, 0.5, chance=0.7, seeds=(3, 5), changes={"data.split_seed": 1})
    text = plan(sweep).text
    assert "seed=3,4), of which 2 are done, about 24 s of training by" in text


def test_jobs_of_the_sweep_that_are_not_done_are_mentioned(sweep: Path) -> None:
    add_job(sweep, 1.0, 1, state="failed", changes={"data.folds": 2})
    assert "note: 1 of the sweep's 9 jobs did not finish, which may change" in plan(sweep).text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=3", "tvf confirm sets seed itself, to values that the sweep has not used"),
        ("data.fold=1", "data.fold=1 must be left out: tvf confirm sets data.fold itself"),
        ("data.split_seed=1,2", "tvf confirm sets data.split_seed itself"),
        ("model.pct_unfreeze=0.5", "model.pct_unfreeze would change the configurations"),
        ("+experiment=smoke", "experiment would change the configurations"),
        ("hydra.sweep.dir=x", "tvf confirm decides which jobs run, and in which folder"),
        ("hydra/sweeper=halving", "tvf confirm decides which jobs run"),
        ("tracker=none,wandb", "must have a single value"),
        ("data.folds=1", "data.folds=1 must be a whole number of at least 2"),
        ("data.folds=99", "groups of images cannot be divided into 99 sides"),
    ],
)
def test_an_override_that_would_change_what_is_confirmed_is_an_error(
    sweep: Path, override: str, message: str
) -> None:
    with pytest.raises(InputError, match=message.replace("+", r"\+")):
        plan(sweep, override)


def test_a_sweep_that_chose_nothing_cannot_be_confirmed(tmp_path: Path) -> None:
    add_job(tmp_path, 0.5, 1, state="failed")
    with pytest.raises(InputError, match="has no finished job.*tvf resume"):
        plan(tmp_path)
    add_training(tmp_path, 0.5, [True, False])
    with pytest.raises(InputError, match="nothing to confirm. Only one configuration has finished"):
        plan(tmp_path)
    add_training(tmp_path, 0.0, [True, False])
    with pytest.raises(InputError, match="nothing is recommended. Run the sweep with data.folds=5"):
        plan(tmp_path)


def test_jobs_that_are_compared_separately_have_no_choice_to_confirm(sweep: Path) -> None:
    train(sweep, 0.5, chance=0.8, changes={"data.limit": 100})
    with pytest.raises(InputError, match=r"compared separately \(data.limit=100; data.limit=None"):
        plan(sweep)


def test_a_confirmation_is_not_confirmed_again(sweep: Path) -> None:
    train(sweep / CONFIRMATION, 0.5, chance=0.8)
    with pytest.raises(InputError, match=f"is itself a confirmation.*tvf confirm {sweep}"):
        plan(sweep / CONFIRMATION)


def test_settings_that_today_give_other_jobs_are_an_error(tmp_path: Path) -> None:
    for fraction, chance in ((0.0, 0.6), (0.5, 0.8)):
        train(tmp_path, fraction, chance=chance, epochs=9)  # recorded, but by no override
    with pytest.raises(
        InputError, match=r"cannot be trained again as it was: epochs was 9, is now"
    ):
        plan(tmp_path)


@pytest.mark.parametrize("damage", ["missing", "empty", "no command"])
def test_a_folder_that_is_no_sweep_is_an_error_without_a_traceback(
    sweep: Path, damage: str
) -> None:
    manifest = sweep / "sweep.json"
    if damage == "missing":
        manifest.unlink()
    elif damage == "empty":
        manifest.write_text("")
    else:
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"commands": []}))
    expected = "is not the folder of a sweep" if damage == "missing" else "records no command"
    with pytest.raises(SystemExit, match=f"^error: .*{expected}"):
        commands.confirm(sweep, [])


def test_the_newest_sweep_is_not_a_confirmation(sweep: Path) -> None:
    train(sweep / CONFIRMATION, 0.5, chance=0.8)
    with pytest.raises(SystemExit, match=f"the newest is {sweep}\\."):
        commands.status(sweep.parent)


def test_relative_places_are_those_of_the_record() -> None:
    given = ["data.path=imgs", "data.root=imgs/", "data=hf", "+backbone.name=a/b", "epochs=3"]
    places = {"path": "/from/here/imgs", "root": "/from/here/imgs"}
    config = {"data": places, "backbone": {"name": "a/b"}, "epochs": 3, "seed": 1}
    group: Any = SimpleNamespace(done=[{"config": config, "overrides": given}])
    comparison: Any = SimpleNamespace(following=())
    assert [*overrides_of(group, comparison).values()] == [
        "data.path=/from/here/imgs",
        "data.root=/from/here/imgs",
        "data=hf",
        "+backbone.name=a/b",
        "epochs=3",
    ]
