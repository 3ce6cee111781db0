"""What `tvf resume` runs again."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tvf.cli import commands

GIVEN = ["-m", "hydra/launcher=slurm", "hydra.launcher.partition=gpu", "+hydra.launcher.x=1"]
JOBS = ["model.pct_unfreeze=0,1", "hydra.sweeper.max_batch_size=2"]


@pytest.mark.parametrize(
    ("overrides", "kept"),
    [
        ((), [*GIVEN, *JOBS]),
        (("hydra.launcher.detach=false",), [*GIVEN, *JOBS, "hydra.launcher.detach=false"]),
        (
            ("hydra/launcher=local", "hydra.launcher.n_jobs=2"),
            ["-m", *JOBS, "hydra/launcher=local", "hydra.launcher.n_jobs=2"],
        ),
    ],
)
def test_another_launcher_is_not_given_the_options_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...], kept: list[str]
) -> None:
    command = {"folder": os.getcwd(), "arguments": [*GIVEN, *JOBS]}
    (tmp_path / "sweep.json").write_text(json.dumps({"commands": [command], "jobs": {}}))
    ran: list[Any] = []
    monkeypatch.setattr(commands, "launch", lambda arguments, *how: ran.append(arguments))
    commands.resume(tmp_path, overrides)
    assert ran == [[*kept, f"hydra.sweep.dir={tmp_path}"]]
