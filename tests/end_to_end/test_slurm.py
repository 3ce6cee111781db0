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
from helpers.jobs import folders, records, statuses
from helpers.slurm import PROGRAMS, Cluster, slurm_cluster, wait_for
from tvf.records import read_race, read_trials

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
        time.sleep(0.3)

def make(num_classes):
    backbone = small_backbone(num_classes)
    backbone.module.register_forward_pre_hook(linger)
    return backbone
"""
# An experiment as a user writes it: it sweeps.
EXPERIMENT = """
# @package _global_
backbone:
  _target_: slow_backbone.make
hydra:
  sweeper:
    params:
      model.pct_unfreeze: 0.5,1.0
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
def start(tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder in which commands are started, which talk to the cluster."""
    (tmp_path / "slow_backbone.py").write_text(SLOW)
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    monkeypatch.setenv("PYTHONPATH", IMPORTABLE)
    yield tmp_path
    cluster.run("scancel", "--user=root")
    wait_for(lambda: cluster.run("squeue", "-h") == "", 30)


def launch(start: Path, *arguments: str) -> forks.Process:
    return forks.train("-m", *QUICK, SLOW_BACKBONE, *arguments, cwd=start)


def ended(process: forks.Process, code: int = 0) -> str:
    """What a command printed that ends with `code`."""
    output, _ = process.communicate(timeout=300)
    assert process.returncode == code, output
    return output


def recommendation(sweep: Path) -> list[Any]:
    """What the report recommends, among which configurations."""
    options = ("report", sweep.name, "--format", "json", "--output", "-")
    (compared,) = json.loads(ended(forks.tvf(*options, cwd=sweep.parent)))["comparisons"]
    return [compared[key] for key in ("recommendation", "chosen", "candidates")]


def task_of(sweep: Path, fraction: float) -> str:
    """The id of the task that trains this fraction."""
    (array,) = sweep.glob("slurm/array-*.json")
    names = json.loads(array.read_text())
    (task,) = (task for task, name in names.items() if name == folders(sweep)[fraction].name)
    return f"{array.stem.removeprefix('array-')}_{task}"


def has_trained(sweep: Path, fraction: float, attempt: int = 1) -> bool:
    """Whether this attempt at a job has trained an epoch."""
    if statuses(sweep).get(fraction, {}).get("attempt") != attempt:
        return False
    log = (folders(sweep)[fraction] / "job.log").read_text()
    _, *attempts = log.split(" trains ")  # the status comes before the log
    return len(attempts) == attempt and " epoch " in attempts[-1].replace("resumes after epoch", "")


def test_jobs_that_are_disturbed_end_like_those_of_one_machine(
    start: Path, cluster: Cluster
) -> None:
    """One job meets its time limit twice; the other is preempted, then its node dies.

    The sweep is an experiment in a folder of the user's, with code beside it, and a name that needs
    quotes.
    """
    experiment = start / "my conf" / "experiment" / "mine.yaml"
    experiment.parent.mkdir(parents=True)
    experiment.write_text(EXPERIMENT)
    (start / "slow_backbone.py").rename(start / "my conf" / "slow_backbone.py")
    (start / "hurry").touch()
    common = ("--config-dir", "my conf", "+experiment=mine", "epochs=25")
    common += ("name='a, \\'b\\' ${model.pct_unfreeze}'",)

    def begin(launcher: str, folder: str) -> forks.Process:
        arguments = (*common, *QUICK, f"hydra/launcher={launcher}", f"hydra.sweep.dir='{folder}'")
        return forks.train("-m", *arguments, cwd=start)

    ended(begin("basic", "on this machine"))
    (start / "hurry").unlink()
    process, sweep = begin("slurm", "on a cluster"), start / "on a cluster"
    wait_for(lambda: has_trained(sweep, 1.0) and has_trained(sweep, 0.5), 120)
    limited, preempted = task_of(sweep, 1.0), task_of(sweep, 0.5)
    cluster.run("scancel", "--signal=USR1", "--batch", limited)  # as SLURM does before the limit
    node = cluster.run("squeue", "-h", "-j", preempted, "-o", "%N")
    cluster.run("sbatch", "-p", "high", "-w", node, "-o", "/dev/null", "--wrap", "sleep 1")
    wait_for(lambda: has_trained(sweep, 1.0, 2) and has_trained(sweep, 0.5, 2), 150)
    cluster.run("scancel", "--signal=USR1", "--batch", limited)
    node = cluster.run("squeue", "-h", "-j", preempted, "-o", "%N")
    cluster.kill_node(node, statuses(sweep)[0.5]["pid"])
    (start / "hurry").touch()
    wait_for(lambda: "down" in cluster.run("sinfo", "-h", "-n", node, "-o", "%T"), 120)
    cluster.start_node(node)
    output = ended(process)
    assert records(sweep) == records(start / "on this machine") and len(records(sweep)) == 2
    attempts = {fraction: status["attempt"] for fraction, status in statuses(sweep).items()}
    assert attempts == {0.5: 3, 1.0: 3}, output
    log = (folders(sweep)[1.0] / "job.log").read_text()
    assert log.count("was asked to stop: its checkpoint is kept") == 2
    assert "Submitted" not in ended(begin("slurm", "on a cluster"))


def test_a_sweep_is_left_taken_up_again_cancelled_and_resumed(
    start: Path, cluster: Cluster
) -> None:
    detached = ("hydra/launcher=slurm", "hydra.launcher.detach=true", "hydra.sweep.dir=sweep")
    output = ended(launch(start, "model.pct_unfreeze=0.5,1.0", "epochs=25", *detached))
    assert "tvf status" in output and "never started" not in output
    sweep = start / "sweep"
    resume = ("resume", "sweep", "hydra/launcher=slurm", "hydra.launcher.detach=false")
    process = forks.tvf(*resume, cwd=start)
    wait_for(lambda: has_trained(sweep, 1.0) and has_trained(sweep, 0.5), 120)
    wait_for(lambda: process.poll() is not None or "queued" in process.read_line(), 120)
    os.killpg(process.pid, signal.SIGINT)
    output = ended(process, 1)
    assert "2 jobs are queued as SLURM's array" in output and "Submitted" not in output
    assert {status["error"] for status in statuses(sweep).values()} == {"interrupted"}
    assert cluster.run("squeue", "-h") == ""
    (start / "hurry").touch()
    ended(forks.tvf("resume", "sweep", cwd=start))  # as it was launched: detached
    wait_for(lambda: cluster.run("squeue", "-h") == "", 150)
    last = max(path.stat().st_mtime for path in sweep.glob("*/summary.json"))
    assert (sweep / "report.html").stat().st_mtime > last
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


def test_a_race_trains_its_blocks_as_arrays(start: Path) -> None:
    """The same jobs, and the same decisions, as on this machine alone."""
    (start / "hurry").touch()
    race = ("hydra/sweeper=race", "model.pct_unfreeze=0,1.0", "data.folds=2", "data.fold=0,1")
    output = ended(launch(start, *race, "hydra/launcher=slurm", "hydra.sweep.dir=sweep"))
    assert output.count("Submitted") >= 1 and "The race is over" in output
    ended(launch(start, *race, "hydra/launcher=basic", "hydra.sweep.dir=here"))
    assert records(start / "sweep") == records(start / "here")
    assert read_race(start / "sweep") == read_race(start / "here") is not None


def test_a_search_that_is_interrupted_and_resumed_ends_as_on_this_machine(start: Path) -> None:
    """The trials, the jobs and the recommendation are those of hydra/launcher=local."""
    search = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=4", "hydra.sweeper.batch_size=2")
    search += ("model.pct_unfreeze=0.5,1.0", "optimizer.lr=interval(1e-3,1e-1)", "epochs=2")
    search += ("data.metric=auroc",)  # which the small network's scores move at once
    process = launch(start, *search, "hydra/launcher=slurm", "hydra.sweep.dir=sweep")
    sweep = start / "sweep"
    wait_for(lambda: len([*sweep.glob("*/metrics.jsonl")]) > 2, 120)  # in the second batch
    os.killpg(process.pid, signal.SIGINT)
    output = ended(process, 1)
    assert "tvf resume" in output and "Traceback" not in output
    before = records(sweep)
    assert 2 <= len(before) < 4 and len(read_trials(sweep)) == 4
    (start / "hurry").touch()
    output = ended(forks.tvf("resume", "sweep", cwd=start))
    assert "Trial 4 of 4" in output and "Trial 2 of 4" not in output
    ended(launch(start, *search, "hydra/launcher=local", "hydra.sweep.dir=here"))
    assert read_trials(sweep) == read_trials(start / "here")
    assert records(sweep) == records(start / "here") and len(records(sweep)) == 4
    attempts = {
        path.parent.name: json.loads(path.read_text())["attempt"]
        for path in sweep.glob("*/status.json")
    }
    assert {attempts[name] for name in before} == {1}
    assert recommendation(sweep) == recommendation(start / "here")


@pytest.mark.parametrize(
    "options, message",
    [
        (("hydra.launcher.partition=nope",), "invalid partition specified: nope"),
        (("hydra.launcher.gpus=1",), "Invalid generic resource"),
        (("hydra.launcher.cpus=2",), "Requested node configuration is not available"),
        (("fabric.devices=2",), "all of them on one node"),
        (("hydra.launcher.sbatch=['--nodes=2']",), "all its devices are on one node"),
        (("hydra/sweeper=halving", "hydra.launcher.detach=true"), "the command has to stay"),
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
