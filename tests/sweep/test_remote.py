"""One job of a sweep as a command of its own: it must be the job that the sweep would have run."""

import os
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.conf import ConfigSourceInfo
from omegaconf import DictConfig, open_dict

from helpers import ROOT
from tvf.config import conf_dir
from tvf.files import write_json
from tvf.sweep.remote import RemoteJob, job_command, job_return, remote_environment


def sweep_config(*overrides: str) -> DictConfig:
    """The config of a sweep, as launchers see it."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("config", list(overrides), return_hydra_config=True)
    with open_dict(config):
        config.hydra.runtime.config_sources = [ConfigSourceInfo(str(conf_dir()), "file", "main")]
        config.hydra.job.config_name = "config"
    return config


def test_the_command_keeps_hydras_settings_but_those_that_choose_jobs() -> None:
    config = sweep_config(
        "hydra/sweeper=halving",
        "hydra.sweeper.eta=3",
        "hydra/launcher=basic",
        "hydra.sweep.dir=a sweep",
        "hydra.sweep.subdir=x${hydra.job.num}",
    )
    command = job_command(config, ["seed=1", "name='a, b'"], 7)
    assert command == [
        *(sys.executable, "-m", "tvf", "train", "-m"),
        "hydra/launcher=basic",
        "hydra.sweep.subdir=x${hydra.job.num}",
        "seed=1",
        "name='a, b'",
        f"hydra.sweep.dir='{os.getcwd()}/a sweep'",
        "hydra/sweeper=one",
        "hydra.sweeper.number=7",
        "~hydra.callbacks.sweep",
    ]


def test_variables_of_this_process_are_kept_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("WANDB_RUN_ID", "WANDB_NAME", "WANDB_SERVICE"):
        monkeypatch.setenv(variable, "of the sweep")
    monkeypatch.setenv("WANDB_PROJECT", "kept")
    monkeypatch.syspath_prepend("relative")
    environment = remote_environment()
    assert not {"WANDB_RUN_ID", "WANDB_NAME", "WANDB_SERVICE"} & environment.keys()
    assert environment["WANDB_PROJECT"] == "kept"
    folders = environment["PYTHONPATH"].split(os.pathsep)
    assert str(ROOT / "tests") in folders and os.path.dirname(pytest.__file__) not in folders


@pytest.mark.parametrize("state, score", [("done", 0.75), ("failed", None)])
def test_only_a_job_that_is_done_has_a_score(
    state: str, score: float | None, tmp_path: Path
) -> None:
    write_json(tmp_path / "status.json", {"state": state, "name": "a", "error": None})
    write_json(tmp_path / "config.json", {"data": {"metric": "accuracy"}})
    write_json(tmp_path / "summary.json", {"metric": "accuracy", "val_acc": 0.75})
    assert job_return(RemoteJob(tmp_path, [], {}, [])).return_value == score
