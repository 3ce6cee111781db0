"""Sweeps that meet one thing under two names, or two things under one."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers import IMPORTABLE, SMALL, forks
from tvf.records.rows import read_jobs
from tvf.report.comparison import compare

pytestmark = pytest.mark.slow
QUICK = ("data=image_folder", "data.image_size=32", "epochs=1", SMALL)


@pytest.fixture(autouse=True)
def wandb_as_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove W&B settings of the machine that runs the tests."""
    for key in [*os.environ]:
        if key.startswith("WANDB"):
            monkeypatch.delenv(key)


def _train(cwd: Path, *arguments: str, tracker: str = "none", **environment: Any) -> str:
    launcher = ["hydra/launcher=basic"] if "-m" in arguments else []
    command = (*arguments, *QUICK, *launcher, f"tracker={tracker}")
    process = forks.train(*command, cwd=cwd, PYTHONPATH=IMPORTABLE, **environment)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output


def _jobs(sweep: Path) -> list[dict[str, Any]]:
    return sorted(read_jobs(sweep), key=lambda row: row["folder"])


def _more_images(root: Path, number: int) -> None:
    rng = np.random.default_rng(number)
    for name in ("cats", "dogs"):
        for i in range(number):
            pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "train" / name / f"more{i}.png")


def test_equal_numbers_and_equal_places_are_trained_once(tmp_path: Path, image_root: Path) -> None:
    (tmp_path / "link").symlink_to("images")
    folder = "hydra.sweep.dir=sweep"
    _train(tmp_path, "-m", "model.pct_unfreeze=0,0.25", f"data.root={image_root}", folder)
    for fractions, root in (
        ("range(0,0.5,0.25)", "images/"),
        ("0.0,0.250", "./images"),
        ("0,0.25", "link"),
    ):
        output = _train(
            tmp_path, "-m", f"model.pct_unfreeze={fractions}", f"data.root={root}", folder
        )
        assert "epoch 1/1" not in output
    (comparison,) = compare(_jobs(tmp_path / "sweep"))
    assert [group.label for group in comparison.configurations] == ["0", "0.25"]


def test_jobs_in_their_own_working_directory_read_what_the_command_named(
    tmp_path: Path, image_root: Path
) -> None:
    chdir, root = "hydra.job.chdir=true", "data.root=images"
    _train(tmp_path, "-m", root, "seed=1,2", chdir, "hydra.sweep.dir=sweep", TVF_STORE="kept")
    first, second = _jobs(tmp_path / "sweep")
    assert [first["state"], second["state"]] == ["done", "done"]
    assert (tmp_path / "kept").is_dir() and not [*tmp_path.glob("sweep/*/kept")]
    origin = f"model.init_from=sweep/{first['folder']}"
    _train(tmp_path, root, origin, chdir, "hydra.run.dir=later", "store.dir=own")
    config = json.loads((tmp_path / "later" / "config.json").read_text())
    assert config["data"]["root"] == str(image_root)
    assert config["model"]["init_from"] == str(tmp_path / "sweep" / first["folder"])
    assert (tmp_path / "own").is_dir()


def test_images_added_between_two_launches_are_compared_apart(
    tmp_path: Path, image_root: Path
) -> None:
    arguments = ("-m", f"data.root={image_root}", "hydra.sweep.dir=sweep")
    _train(tmp_path, *arguments, "seed=1,2")
    _more_images(image_root, 16)
    _train(tmp_path, *arguments, "seed=1,2,3")
    comparisons = compare(_jobs(tmp_path / "sweep"))
    found = {c.title.partition(" (")[0]: len(c.configurations[0].done) for c in comparisons}
    assert found == {"images=48": 2, "images=80": 1}


@pytest.mark.parametrize("spelling", ["{job}", "{job}/", "{job}/checkpoints/best.safetensors"])
def test_a_job_does_not_start_from_weights_that_have_seen_its_test_images(
    tmp_path: Path, image_root: Path, spelling: str
) -> None:
    _train(tmp_path, f"data.root={image_root}", "hydra.run.dir=first")
    _more_images(image_root, 16)
    origin = f"model.init_from={spelling.format(job='first')}"
    command = (*QUICK, "tracker=none", "data.root=images/", origin, "hydra.run.dir=second")
    process = forks.train(*command, cwd=tmp_path, PYTHONPATH=IMPORTABLE)
    output, _ = process.communicate()
    assert process.returncode == 1
    assert "that job trained on" in output and "images. Use its division" in output


def test_the_jobs_of_a_sweep_are_runs_of_their_own_whatever_the_environment_says(
    tmp_path: Path, image_root: Path
) -> None:
    variables = {
        "WANDB_MODE": "dryrun",
        "WANDB_RUN_ID": "abc123",
        "WANDB_NAME": "mine",
        "WANDB_RESUME": "must",
        "WANDB_SWEEP_ID": "s",
        "WANDB_PROJECT": "elsewhere",
    }
    root = f"data.root={image_root}"
    swept = ("-m", root, "seed=1,2", "hydra.sweep.dir=sweep")
    output = _train(tmp_path, *swept, tracker="wandb", **variables)
    assert "WANDB_RUN_ID, WANDB_NAME, WANDB_RESUME, WANDB_SWEEP_ID ignored: a sweep" in output
    jobs = _jobs(tmp_path / "sweep")
    assert len({job["wandb_run_id"] for job in jobs} | {"abc123"}) == 3
    assert [job["name"] for job in jobs] == ["fine-tuning-0.5-seed1", "fine-tuning-0.5-seed2"]
    assert {job["config"]["project"] for job in jobs} == {"elsewhere"}
    alone = {k: v for k, v in variables.items() if k not in ("WANDB_SWEEP_ID", "WANDB_RESUME")}
    _train(tmp_path, root, "hydra.run.dir=alone", tracker="wandb", **alone)
    status = json.loads((tmp_path / "alone" / "status.json").read_text())
    assert (status["wandb_run_id"], status["name"]) == ("abc123", "mine")
