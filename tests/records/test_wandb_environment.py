"""W&B's environment variables: obeyed where nothing else is given, but not as a job's identity."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import wandb

from helpers.configs import compose_once
from tvf.config import to_plain
from tvf.errors import InputError
from tvf.records import forget_run_variables
from tvf.records.sweep import note_group, tracker_group, write_manifest
from tvf.records.tracking import RUN_VARIABLES, WandbTracker


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The arguments of each call to wandb.init, which fails."""
    calls: list[dict[str, Any]] = []

    def init(**arguments: Any) -> Any:
        calls.append(arguments)
        raise RuntimeError("no run in this test")

    monkeypatch.setattr(wandb, "init", init)
    return calls


def _start(tracker: WandbTracker, folder: Path, group: str | None) -> None:
    with tracker.start(folder, "n", group, {}):
        pass


def test_each_run_of_a_group_has_an_id_of_its_own_whatever_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: list[dict[str, Any]]
) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "abc123")
    tracker = WandbTracker("p", mode="offline")
    for _ in range(2):
        _start(tracker, tmp_path, "a-sweep")
    ids = [call["id"] for call in started]
    assert None not in ids and len({*ids, "abc123"}) == 3
    assert all(call["settings"].sagemaker_disable for call in started)
    _start(tracker, tmp_path, None)
    assert started[-1]["id"] is None  # so that W&B reads WANDB_RUN_ID


@pytest.mark.slow
def test_a_single_job_has_the_run_that_the_environment_names(tmp_path: Path) -> None:
    """In a process of its own: W&B reads the environment once."""
    code = """
import wandb
from pathlib import Path
from tvf.records.tracking import WandbTracker
with WandbTracker("p", mode="dryrun").start(Path("."), "n", None, {}) as run:
    print(run.id, run.mode, *wandb.run.tags)
"""
    environment = os.environ | {"WANDB_RUN_ID": "abc123", "WANDB_TAGS": "night,quick"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"PYTHONPATH": str(Path(__file__).parents[2])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "abc123 offline night quick" in done.stdout


@pytest.mark.parametrize("variable", RUN_VARIABLES)
def test_what_makes_a_run_this_one_is_forgotten_in_a_sweep(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "x")
    monkeypatch.setenv("WANDB_TAGS", "x")
    assert forget_run_variables() == [variable]
    assert variable not in os.environ and os.environ["WANDB_TAGS"] == "x"
    assert forget_run_variables() == []


@pytest.mark.parametrize(
    ("variables", "mode"),
    [
        ({"WANDB_MODE": "dryrun"}, "offline"),
        ({"WANDB_MODE": "run"}, "online"),
        ({"WANDB_MODE": "offline"}, "offline"),
        ({"WANDB_MODE": "shared"}, "shared"),
        ({"WANDB_MODE": ""}, "online"),
        ({"WANDB_MODE": "online", "WANDB_DISABLED": "true"}, "disabled"),
        ({"WANDB_DISABLED": "false"}, "online"),
    ],
)
def test_the_mode_means_what_it_means_to_wandb(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], mode: str
) -> None:
    monkeypatch.setattr(wandb, "login", lambda **_: True)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert WandbTracker("p")._mode() == mode
    assert WandbTracker("p", mode="offline")._mode() == "offline"  # what is given wins


def test_an_unknown_mode_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "on")
    with pytest.raises(InputError, match="WANDB_MODE=on must be one of online, offline"):
        WandbTracker("p")
    with pytest.raises(InputError, match="tracker.mode=off must be one of"):
        WandbTracker("p", mode="off")


def test_project_entity_and_name_come_from_the_command_then_the_environment_then_the_yaml(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def tracked(*overrides: str) -> tuple[str, str, str | None]:
        compose_once.cache_clear()
        config = to_plain(compose_once(*overrides))
        tracker = config["tracker"]
        return config["name"], tracker["project"], tracker["entity"]

    try:
        assert tracked() == ("fine-tuning-0.5", "tvf", None)
        for variable in ("WANDB_PROJECT", "WANDB_ENTITY", "WANDB_NAME"):
            monkeypatch.setenv(variable, variable.lower())
        assert tracked() == ("wandb_name", "wandb_project", "wandb_entity")
        assert tracked("+experiment=cifar10_tutorial")[1] == "wandb_project"
        own = ("project=p", "tracker.entity=e", "name=n")
        assert tracked(*own) == ("n", "p", "e")
        monkeypatch.setenv("WANDB_PROJECT", "")
        assert tracked()[1] == "tvf"
    finally:
        compose_once.cache_clear()


def test_settings_of_the_client_that_the_environment_chooses_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: list[dict[str, Any]]
) -> None:
    monkeypatch.setenv("WANDB_CONSOLE", "wrap")
    _start(WandbTracker("p", mode="offline", tags=["a"]), tmp_path, None)
    settings = started[0]["settings"].model_fields_set
    assert "silent" in settings and "console" not in settings
    assert started[0]["tags"] == ["a"]


def test_a_group_that_the_environment_names_is_that_of_the_sweep_for_good(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    write_manifest(folder, {})
    assert tracker_group(folder) == "demo"
    for group in (None, "nightly"):  # jobs that are added later stay in the group
        note_group(folder, group)
        assert tracker_group(folder) == "demo"
    other = tmp_path / "other"
    for group in ("nightly", "another", None):
        note_group(other, group)
        assert tracker_group(other) == "nightly"
    begun = tmp_path / "begun"  # by a version that noted no group
    write_manifest(begun, {"a-job": {}})
    note_group(begun, "nightly")
    assert tracker_group(begun) == "begun"
