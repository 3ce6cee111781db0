"""One job of a sweep as a command of its own: it must be the job that the sweep would have run."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.conf import ConfigSourceInfo
from omegaconf import DictConfig, open_dict

from helpers import IMPORTABLE, ROOT, forks
from helpers.jobs import metrics
from tvf.config import conf_dir
from tvf.sweep.remote import job_command, remote_environment

QUICK = ("epochs=1", "data.limit=40", "data.image_size=32", "data.batch_size=8", "tracker=none")
# A launcher that runs each job by its command, for Hydra to find.
LAUNCHER = """
import subprocess
from hydra._internal.core_plugins.basic_launcher import BasicLauncher

class Elsewhere(BasicLauncher):
    def __init__(self, anything, remote):
        super().__init__()
        self.remote = remote

    def launch(self, job_overrides, initial_job_idx):
        if not self.remote:
            return super().launch(job_overrides, initial_job_idx)
        from tvf.sweep.remote import job_return, remote_environment, remote_job

        returns = []
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            job = remote_job(self.config, self.hydra_context.config_loader, overrides, number)
            subprocess.run(job.command, env=remote_environment(), check=True)
            returns.append(job_return(job))
            assert 0 <= returns[-1].return_value <= 1
        return returns
"""
# An experiment as a user writes it: it sweeps, and chooses what is allowed for the launcher.
EXPERIMENT = """
# @package _global_
backbone:
  _target_: user_code.make
hydra:
  launcher:
    anything: 1
  sweeper:
    params:
      model.pct_unfreeze: 0.5,1.0
"""


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


def _results(sweep: Path) -> dict[str, Any]:
    """What each job's folder says of it, apart from times."""
    return {
        path.parent.name: (
            json.loads(path.read_text()),
            yaml.safe_load((path.parent / ".hydra" / "overrides.yaml").read_text()),
            metrics(path.parent),
        )
        for path in sweep.glob("*/config.json")
    }


@pytest.mark.slow
def test_commands_train_the_jobs_that_the_sweep_would_have_run(tmp_path: Path) -> None:
    """With a swept experiment, a config folder of the user's, and names that need quotes."""
    plugins, conf, start = (tmp_path / name for name in ("plugins", "my conf", "start"))
    for folder in (plugins / "hydra_plugins", conf / "hydra" / "launcher", start):
        folder.mkdir(parents=True)
    (plugins / "hydra_plugins" / "elsewhere.py").write_text(LAUNCHER)
    target = "_target_: hydra_plugins.elsewhere.Elsewhere\nremote: true\n"
    (conf / "hydra" / "launcher" / "elsewhere.yaml").write_text(target)
    (conf / "experiment").mkdir()
    (conf / "experiment" / "mine.yaml").write_text(EXPERIMENT)
    (conf / "user_code.py").write_text("from helpers import small_backbone as make\n")
    path = os.pathsep.join([str(plugins), IMPORTABLE])
    common = (
        "-m",
        "--config-dir",
        str(conf),
        *QUICK,
        "+experiment=mine",
        "hydra/launcher=elsewhere",
    )
    common += ("name='job, \\'of\\' ${model.pct_unfreeze}'",)
    for name, remote in {"there": "true", "here": "false"}.items():
        own = (f"hydra.launcher.remote={remote}", f"hydra.sweep.dir='a {name}'")
        process = forks.train(*common, *own, cwd=start, PYTHONPATH=path)
        output, _ = process.communicate()
        assert process.returncode == 0, output
    there, here = (_results(start / f"a {name}") for name in ("there", "here"))
    assert there == here and len(there) == 2
