"""Jobs on several devices, here two processes on the CPU.

They have the numbers of one process, one record and one W&B run.
"""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from helpers import IMPORTABLE, SMALL, Outcome, forks
from helpers.jobs import epochs_done, metrics, summary

# 39 images in batches of 16: shares of 8 and 8, and of 4 and 3.
QUICK = (
    "epochs=2",
    "data.limit=64",
    "data.image_size=32",
    "data.batch_size=16",
    "model.pct_unfreeze=0.25",
)
DDP = ("fabric=ddp", "fabric.accelerator=cpu")
RICH = (
    "mix=cutmix",
    "optimizer.clip_norm=1.0",
    "data.class_weights=balanced",
    "average=ema",
    "recipe=gradual",
    "epochs=4",
)


def _train(*arguments: str, cwd: Path) -> tuple[str, int | None]:
    process = forks.train(
        *arguments,
        cwd=cwd,
        TVF_STORE=str(cwd / "store"),
        OMP_NUM_THREADS="1",
        PYTHONPATH=IMPORTABLE,
    )
    output, _ = process.communicate()
    return output, process.returncode


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one_with_the_same_global_batch(tmp_path: Path) -> None:
    """In float64, where rounding hides no difference.

    The test below is in float32, and tests/distributed/test_ranks.py has other networks.
    """
    small = (SMALL, "model.pct_unfreeze=0.5")
    common = (*QUICK, *small, "fabric.precision=64-true", "tracker=none", *RICH)
    for name, fabric in (("one", ("fabric=cpu",)), ("two", DDP)):
        output, code = _train(*fabric, *common, f"hydra.run.dir={tmp_path / name}", cwd=tmp_path)
        assert code == 0, output
        assert output.count("epoch 2/") == 1  # only one rank logs
    for one, two in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        assert two == {
            key: value if value is None else pytest.approx(value, rel=1e-6)
            for key, value in one.items()
        }
    one, two = summary(tmp_path / "one"), summary(tmp_path / "two")
    assert two["test_loss"] == pytest.approx(one["test_loss"], rel=1e-6)
    for key in ("best_epoch", "val_confusion", "test_confusion", "trainable_params"):
        assert two[key] == one[key]


@pytest.mark.slow
def test_every_job_of_a_multirun_has_its_ranks_one_record_and_one_wandb_run(tmp_path: Path) -> None:
    """In float32, with a store that all ranks of all jobs share."""
    multirun = ("-m", "seed=1,2", "tracker.mode=offline", "store.mode=on")
    for name, fabric in (("one", ("fabric=cpu", "hydra/launcher=basic")), ("two", DDP)):
        output, code = _train(
            *multirun, *QUICK, *fabric, f"hydra.sweep.dir={tmp_path / name}", cwd=tmp_path
        )
        assert code == 0, output
    ones, twos = (
        {summary(path.parent)["seed"]: path.parent for path in sweep.glob("*/summary.json")}
        for sweep in (tmp_path / "one", tmp_path / "two")
    )
    assert len(ones) == len(twos) == len(list((tmp_path / "two").glob("*/summary.json"))) == 2
    for seed, two in twos.items():
        for row, expected in zip(metrics(two), metrics(ones[seed]), strict=True):
            assert row == pytest.approx(expected, rel=1e-5)
        assert len(list(two.glob("wandb/offline-run-*"))) == 1
        assert summary(two)["prefix_images"] == 0  # the jobs of one process had cached them


@pytest.mark.slow
def test_a_job_that_is_told_to_stop_or_loses_a_rank_resumes_from_its_checkpoint(
    tmp_path: Path,
) -> None:
    common = (
        *QUICK,
        *DDP,
        "tracker=none",
        "epochs=8",
        "model.head_dropout=0.5",
        "average=ema",
        "threads=2",
    )
    output, code = _train(*common, f"hydra.run.dir={tmp_path / 'whole'}", cwd=tmp_path)
    assert code == 0, output
    arguments = (*common, f"hydra.run.dir={tmp_path / 'killed'}")

    process, rank = _start_and_wait(*arguments, epochs=2, cwd=tmp_path)
    for pid in (rank, process.pid):  # as a scheduler that preempts the job
        os.kill(pid, signal.SIGTERM)
    output, _ = process.communicate()
    assert process.returncode == 1 and "its checkpoint is kept" in output, output

    process, rank = _start_and_wait(*arguments, epochs=4, cwd=tmp_path)
    os.kill(rank, signal.SIGKILL)
    killed = time.monotonic()
    output, _ = process.communicate()
    assert process.returncode == 1 and time.monotonic() - killed < 30
    status = json.loads((tmp_path / "killed" / "status.json").read_text())
    assert status["state"] == "failed"
    assert "rank 1 of the job was killed by SIGKILL" in status["error"]
    output, code = _train(*arguments, cwd=tmp_path)
    assert code == 0 and "resumes after epoch" in output
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")


def _start_and_wait(*arguments: str, epochs: int, cwd: Path) -> tuple[forks.Process, int]:
    """Start the job in the folder `killed`; return it and its rank 1 after so many epochs."""
    process = forks.train(*arguments, cwd=cwd, TVF_STORE=str(cwd / "store"))
    while process.poll() is None and epochs_done(cwd / "killed") < epochs:
        time.sleep(0.01)
    (rank,) = (
        child.pid
        for child in psutil.Process(process.pid).children()
        if "tvf.distributed.ranks" in child.cmdline()
    )
    return process, rank


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            "fabric.devices=auto",
            "fabric.devices=auto must be the number of devices that a job trains on",
        ),
        ("fabric.devices=0", "fabric.devices=0 must be the number of devices that a job trains on"),
        (
            "fabric=ddp fabric.accelerator=cpu fabric.devices=999",
            "fabric.devices=999 must be at most ",
        ),
        ("+fabric.strategy=fsdp", "fabric.strategy=fsdp must be one of auto, ddp"),
    ],
)
def test_devices_that_a_job_cannot_train_on_are_named(
    shell: Callable[..., Outcome], wrong: str, message: str
) -> None:
    outcome = shell(*QUICK, "tracker=none", *wrong.split())
    output = outcome.out + outcome.err
    assert outcome.code == 1 and f"error: {message}" in output and "Traceback" not in output
