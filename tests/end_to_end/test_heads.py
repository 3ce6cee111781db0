"""Jobs that only train heads share a process in a sweep, and are the jobs that they are alone."""

import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from helpers import IMPORTABLE, forks
from helpers.devices import GPU
from helpers.jobs import digests, metrics

HEADS = (
    "model=transfer",
    "tracker=none",
    "data.limit=60",
    "data.image_size=32",
    "data.batch_size=8",
    "augment=flips",
    "store.mode=on",
    "model.head_dropout=0.2",
    "fabric=cpu",
)
NUMBERS = ("val_loss", "val_acc", "test_loss", "test_acc", "best_epoch", "calibration")


def _train(folder: Path, *arguments: str, debug: str = "") -> tuple[int, str]:
    """Run a command beside `folder`; return its exit code and its output."""
    process = forks.train(
        *HEADS,
        *arguments,
        f"store.dir={folder.parent / 'store'}",
        cwd=folder.parent,
        PYTHONPATH=IMPORTABLE,
        TVF_DEBUG=debug,
    )
    output, _ = process.communicate()
    return process.returncode or 0, output


def _said(job: Path) -> list[str]:
    """The lines of a job's log up to its end, without times, tags and numbers."""
    lines = (job / "job.log").read_text().partition("results: ")[0].splitlines()
    words = (re.sub(r"\[.*\]|[0-9.,]+", "", line).strip() for line in lines)
    return sorted(filter(None, words))


def _states(sweep: Path) -> dict[str, Any]:
    """The overrides and the status of each job."""
    return {
        (path.parent / ".hydra" / "overrides.yaml").read_text(): json.loads(path.read_text())
        for path in sweep.glob("*/status.json")
    }


@pytest.mark.slow
@pytest.mark.parametrize("device", [GPU])
def test_heads_in_one_process_on_a_gpu_are_those_alone(tmp_path: Path, device: str) -> None:
    _compare_on(tmp_path, "gpu")


def _compare_on(folder: Path, fabric: str) -> None:
    """Train heads in a sweep, whose process forks theirs, and one of them alone."""
    sweep, alone = folder / "sweep", folder / "alone"
    own = (f"fabric={fabric}", "deterministic=true", "threads=1", "epochs=3")
    grid = ("-m", "seed=1,2", "optimizer.lr=0.01,0.1", "hydra/launcher=basic")
    code, output = _train(sweep, *grid, *own, f"hydra.sweep.dir={sweep}")
    assert code == 0 and "Training 4 heads in 1 process." in output, output
    assert "Launching" not in output
    code, output = _train(alone, *own, "seed=2", "optimizer.lr=0.1", f"hydra.run.dir={alone}")
    assert code == 0, output
    (one,) = (path.parent for path in sweep.glob("*seed2-lr0.1*/summary.json"))
    assert metrics(one) == metrics(alone) and digests(one) == digests(alone)


@pytest.mark.slow
@pytest.mark.parametrize("pretrained", ["true", "false"])  # the seed draws the whole network
def test_heads_in_one_process_are_those_alone_and_fail_alone(
    tmp_path: Path, pretrained: str
) -> None:
    sweep, alone = tmp_path / "sweep", tmp_path / "alone"
    network = f"+backbone.pretrained={pretrained}"
    average = ["average=ema"] if pretrained == "true" else []
    code, output = _train(
        sweep,
        "-m",
        network,
        "epochs=3",
        "seed=1,2",
        "optimizer.lr=1e38,0.01,0.1",
        *average,
        "hydra/launcher=basic",
        f"hydra.sweep.dir={sweep}",
        debug="1" if pretrained == "true" else "",
    )
    assert code == 1 and "Training 6 heads in 1 process." in output
    assert "Launching" not in output  # no job is left for the launcher
    statuses = _states(sweep)
    assert sorted(each["state"] for each in statuses.values()) == 4 * ["done"] + 2 * ["failed"]
    assert all(("38" in of) == (each["state"] == "failed") for of, each in statuses.items())
    assert len({each["pid"] for each in statuses.values()}) == 1
    logs = [path.read_text() for path in sweep.glob("*lr1e*38*/job.log")]
    assert len(logs) == 2 and all("error: training diverged" in text for text in logs)
    assert all(("Traceback" in text) == (pretrained == "true") for text in logs)
    # What they share, which takes most of the time, counts for all of them.
    done = [json.loads(path.read_text()) for path in sweep.glob("*/summary.json")]
    own = [job["train_seconds"] - job["prefix_seconds"] for job in done]
    assert max(own) < 2 * min(own)
    assert all(job["prefix_kept"] for job in done)
    (folder,) = (path.parent for path in sweep.glob("*seed2-lr0.1*/summary.json"))
    own = ("seed=2", "optimizer.lr=0.1", "threads=1", "epochs=3", *average)
    code, output = _train(alone, network, *own, f"hydra.run.dir={alone}")
    assert code == 0, output
    one, other = (json.loads((each / "summary.json").read_text()) for each in (folder, alone))
    assert [one[key] for key in NUMBERS] == [other[key] for key in NUMBERS]
    assert metrics(folder) == metrics(alone)
    weights = "checkpoints/best.safetensors"
    assert (folder / weights).read_bytes() == (alone / weights).read_bytes()
    with np.load(folder / "predictions.npz") as here, np.load(alone / "predictions.npz") as there:
        assert all(np.array_equal(here[name], there[name]) for name in there.files)
    config = ".hydra/config.yaml"
    ours, hydras = (OmegaConf.load(each / config) for each in (folder, alone))
    assert dict(ours) == dict(hydras) | {"threads": None}
    assert _said(folder) == _said(alone)


@pytest.mark.slow
def test_a_killed_process_of_heads_costs_no_job(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    process = forks.train(
        *HEADS,
        "-m",
        "epochs=40",
        "seed=1,2,3,4,5",
        "hydra/launcher=basic",
        f"hydra.sweep.dir={sweep}",
        f"store.dir={tmp_path / 'store'}",
        cwd=tmp_path,
        PYTHONPATH=IMPORTABLE,
    )
    while not (lines := [*sweep.glob("*/metrics.jsonl")]):
        assert process.poll() is None
        time.sleep(0.05)
    status = json.loads((lines[0].parent / "status.json").read_text())
    assert status["pid"] != process.pid
    os.kill(status["pid"], signal.SIGKILL)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert sorted(each["state"] for each in _states(sweep).values()) == 5 * ["done"]
    pids = {each["pid"] for each in _states(sweep).values()}
    assert status["pid"] not in pids and len(pids) == 2  # the others share a new process
