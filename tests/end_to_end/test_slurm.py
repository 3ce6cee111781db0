"""Sweeps on a real SLURM cluster of this machine, and what happens to their jobs there."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers import IMPORTABLE, forks
from helpers.jobs import metrics
from helpers.slurm import PROGRAMS, Cluster, slurm_cluster, wait_for

QUICK = (
    "data.limit=40",
    "data.image_size=32",
    "data.batch_size=8",
    "tracker=none",
    "store.mode=on",
)
# A backbone whose training steps take long until a file says otherwise, so that there is time to
# disturb its job.
SLOW = """
import os, time
from helpers import small_backbone

def linger(module, inputs):
    if module.training and len(inputs[0]) > 2 and not os.path.exists("hurry"):
        time.sleep(0.5)

def make(num_classes):
    backbone = small_backbone(num_classes)
    backbone.module.register_forward_pre_hook(linger)
    return backbone
"""
SLOW_BACKBONE = "backbone._target_=slow_backbone.make"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(shutil.which(program) is None for program in PROGRAMS) or os.getuid() != 0,
        reason="a SLURM cluster needs slurm-wlm and munge, and root to start it",
    ),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with slurm_cluster() as started:
        yield started


@pytest.fixture
def start(tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which commands are started, which talk to the cluster."""
    (tmp_path / "slow_backbone.py").write_text(SLOW)
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    monkeypatch.setenv("PYTHONPATH", IMPORTABLE)
    return tmp_path


def launch(start: Path, *arguments: str) -> forks.Process:
    return forks.train("-m", *QUICK, SLOW_BACKBONE, *arguments, cwd=start)


def ended(process: forks.Process, code: int = 0) -> str:
    """What a command printed that ends with `code`."""
    output, _ = process.communicate(timeout=150)
    assert process.returncode == code, output
    return output


def statuses(sweep: Path) -> dict[float, dict[str, Any]]:
    """The status of each job, by its fraction."""
    found = {}
    for path in sweep.glob("*/status.json"):
        config = json.loads((path.parent / "config.json").read_text())
        found[config["model"]["pct_unfreeze"]] = json.loads(path.read_text())
    return found


def records(sweep: Path) -> dict[str, Any]:
    """The epochs of each job, and its scores, by its folder."""
    found = {}
    for path in sweep.glob("*/summary.json"):
        summary = json.loads(path.read_text())
        scores = {key: summary[key] for key in summary if key.startswith(("val_", "test_"))}
        del scores["test_seconds"]
        found[path.parent.name] = (metrics(path.parent), scores, summary["calibration"])
    return found


def task_of(sweep: Path, fraction: float) -> str:
    """The id of the task that trains this fraction."""
    (commands,) = sweep.glob("slurm/commands-*.json")
    (array,) = sweep.glob("slurm/array-*.json")
    for task, name in json.loads(array.read_text()).items():
        if f"fine-tuning-{fraction}-" in name:
            return f"{array.stem.removeprefix('array-')}_{task}"
    raise AssertionError(f"{commands} has no job with {fraction}")


def has_trained(sweep: Path, fraction: float, attempt: int = 1) -> bool:
    """Whether this attempt at a job has got to an epoch of its own."""
    (folder,) = [*sweep.glob(f"fine-tuning-{fraction}-*")] or [sweep]
    status = statuses(sweep).get(fraction, {})
    log = (folder / "job.log").read_text() if status else ""
    return status.get("attempt") == attempt and "epoch" in log.rpartition(" trains ")[2]


def test_jobs_that_are_disturbed_end_like_those_of_one_machine(
    start: Path, cluster: Cluster
) -> None:
    """One job meets its time limit twice, one is preempted, and one is on a node that dies."""
    (start / "hurry").touch()
    common = ("model.pct_unfreeze=0,0.25,0.5,1.0", "epochs=3")
    ended(launch(start, *common, "hydra/launcher=basic", "hydra.sweep.dir=here"))
    (start / "hurry").unlink()
    process = launch(start, *common, "hydra/launcher=slurm", "hydra.sweep.dir=there")
    sweep = start / "there"
    # The longest jobs begin first, on the two nodes.
    wait_for(lambda: has_trained(sweep, 1.0) and has_trained(sweep, 0.5), 60)
    limited = task_of(sweep, 1.0)
    cluster.run("scancel", "--signal=USR1", "--batch", limited)  # what SLURM does before the limit
    high = ("sbatch", "-p", "high", "--parsable", "-o", "/dev/null", "--wrap", "sleep 1")
    nodes = [cluster.run("squeue", "-h", "-j", task_of(sweep, 0.5), "-o", "%N")]
    cluster.run(*high, "-w", *nodes)
    wait_for(lambda: has_trained(sweep, 1.0, attempt=2), 90)
    cluster.run("scancel", "--signal=USR1", "--batch", limited)
    wait_for(lambda: has_trained(sweep, 0.25) or has_trained(sweep, 0), 60)
    dying = 0.25 if has_trained(sweep, 0.25) else 0
    node = cluster.run("squeue", "-h", "-j", task_of(sweep, dying), "-o", "%N")
    cluster.kill_node(node, statuses(sweep)[dying]["pid"])
    (start / "hurry").touch()
    wait_for(lambda: "down" in cluster.run("sinfo", "-h", "-n", node, "-o", "%T"), 60)
    cluster.start_node(node)
    output = ended(process)
    assert records(sweep) == records(start / "here") and len(records(sweep)) == 4
    attempts = {fraction: status["attempt"] for fraction, status in statuses(sweep).items()}
    assert attempts[1.0] == 3 and attempts[0.5] == 2 and attempts[dying] == 2, output
    logs = [path.read_text() for path in sweep.glob("fine-tuning-1.0-*/job.log")]
    assert logs[0].count("was asked to stop: its checkpoint is kept") == 2
    again = launch(start, *common, "hydra/launcher=slurm", "hydra.sweep.dir=there")
    assert "Submitted" not in ended(again)


def test_a_sweep_is_left_taken_up_again_cancelled_and_resumed(
    start: Path, cluster: Cluster
) -> None:
    detached = ("hydra/launcher=slurm", "hydra.launcher.detach=true", "hydra.sweep.dir=sweep")
    output = ended(launch(start, "model.pct_unfreeze=0.5,1.0", "epochs=3", *detached))
    assert "tvf status" in output and "never started" not in output
    sweep = start / "sweep"
    resume = ("resume", "sweep", "hydra/launcher=slurm", "hydra.launcher.detach=false")
    process = forks.tvf(*resume, cwd=start)
    wait_for(lambda: has_trained(sweep, 1.0) and has_trained(sweep, 0.5), 60)
    wait_for(lambda: process.poll() is not None or "queued" in process.read_line(), 60)
    os.killpg(process.pid, signal.SIGINT)
    output = ended(process, 1)
    assert "2 jobs are queued as SLURM's array" in output and "Submitted" not in output
    assert {status["error"] for status in statuses(sweep).values()} == {"interrupted"}
    assert cluster.run("squeue", "-h") == ""
    (start / "hurry").touch()
    ended(forks.tvf("resume", "sweep", cwd=start))  # as it was launched: detached
    wait_for((sweep / "report.html").exists, 90)
    wait_for(lambda: cluster.run("squeue", "-h") == "", 30)
    found = statuses(sweep)
    assert {status["state"] for status in found.values()} == {"done"}
    assert {status["attempt"] for status in found.values()} == {2}
    assert len(json.loads((sweep / "sweep.json").read_text())["commands"]) == 1


def test_halving_runs_its_rungs_as_arrays(start: Path) -> None:
    (start / "hurry").touch()
    halving = ("hydra/sweeper=halving", "hydra/launcher=slurm", "hydra.sweep.dir=sweep")
    output = ended(launch(start, "model.pct_unfreeze=0.5,1.0", "epochs=2", *halving))
    assert output.count("Submitted") == 2 and "kept" in output
    states = sorted(status["state"] for status in statuses(start / "sweep").values())
    assert states == ["done", "paused"]


@pytest.mark.parametrize(
    "options, message",
    [
        (("hydra.launcher.partition=nope",), "invalid partition specified: nope"),
        (("hydra.launcher.gpus=1",), "Invalid generic resource"),
        (("hydra.launcher.cpus=2",), "Requested node configuration is not available"),
        (("fabric.devices=2",), "its devices are on one node"),
        (("hydra.launcher.sbatch=[--nodes=2]",), "all its devices are on one node"),
    ],
)
def test_what_the_cluster_lacks_is_said_before_anything_runs(
    start: Path, cluster: Cluster, options: tuple[str, ...], message: str
) -> None:
    arguments = ("seed=1", "hydra/launcher=slurm", "hydra.sweep.dir=sweep", *options)
    assert message in ended(launch(start, *arguments), 1)
    assert cluster.run("squeue", "-h") == ""


def test_a_folder_that_a_node_cannot_see_is_named(start: Path, cluster: Cluster) -> None:
    hidden = cluster.folder / "hidden" / "sweep"
    arguments = ("seed=1", "hydra/launcher=slurm", "hydra.launcher.partition=blind")
    output = ended(launch(start, *arguments, f"hydra.sweep.dir={hidden}"), 1)
    assert f"n3 cannot see {hidden}" in output and "nodes share" in output, output


def test_without_slurms_commands_there_is_a_clear_error(start: Path) -> None:
    path = str(Path(shutil.which("git") or "").parent / "none")
    arguments = ("-m", *QUICK, SLOW_BACKBONE, "seed=1", "hydra/launcher=slurm")
    process = forks.train(*arguments, cwd=start, PATH=path)
    assert "there is no sbatch on the PATH" in ended(process, 1)
