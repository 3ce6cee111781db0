"""What hydra/launcher=slurm asks of SLURM, and what its tasks do when SLURM tells them to stop."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from helpers import ROOT
from tvf.errors import InputError
from tvf.records import mark_failed
from tvf.records.sweep import read_commands, write_manifest
from tvf.sweep import launchers, processes, remote, slurm, slurm_task
from tvf.sweep.remote import read_options
from tvf.sweep.slurm_options import SlurmOptions


def test_directives_hold_what_was_asked_for_and_no_more() -> None:
    plain = [*SlurmOptions().directives]
    assert plain == [
        "--nodes=1",
        "--ntasks=1",
        "--cpus-per-task=1",
        "--requeue",
        "--signal=B:USR1@60",
        "--open-mode=append",
    ]
    asked = SlurmOptions(partition="a", memory="8G", gpus="h100:2", sbatch=["--exclude=n7"])
    added = {"--partition=a", "--mem=8G", "--gres=gpu:h100:2", "--exclude=n7"}
    assert {*asked.directives} == {*plain} | added
    assert asked.gpu_count == 2


@pytest.mark.parametrize(
    "options, message",
    [
        ({"cpus": 0}, "hydra.launcher.cpus=0 must be a whole number"),
        ({"time": 1}, "time=1 .* must be longer than hydra.launcher.stop_seconds=60"),
        ({"time": "2", "stop_seconds": 150}, "time=2 .* must be longer"),
        (OmegaConf.create("time: 1:00:00"), "time=3600 .* must be written .* as '2-12:00:00'"),
        ({"gpus": "all"}, "gpus=all must be a number of GPUs"),
        ({"store": "mine"}, "store=mine must be one of node, shared"),
        ({"setup": "module load cuda"}, "setup must be a list of lines"),
        ({"sbatch": ["-N 2"]}, "all its devices are on one node"),
        ({"sbatch": ["-N2"]}, "all its devices are on one node"),
        ({"sbatch": [" --nodes=2"]}, "all its devices are on one node"),
        ({"sbatch": ["--arr=0-3"]}, "all its devices are on one node"),
        ({"partitoin": "a"}, "did you mean hydra.launcher.partition"),
    ],
)
def test_options_that_break_a_rule_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_options(SlurmOptions, options)


def test_a_job_has_as_long_for_its_checkpoint_as_slurm_gives_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sbatch").write_text(f"#!/bin/sh\necho ${processes.PATIENCE}\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for given, left in ((600, "590"), (5, "3")):
        options = SlurmOptions(stop_seconds=given)
        assert slurm._submit([], tmp_path, options) == left


@pytest.mark.parametrize("reachable", [True, False])
def test_a_machine_without_a_cluster_is_told_apart_from_jobs_that_are_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reachable: bool
) -> None:
    for name, code in (("sbatch", 1), ("squeue", 0 if reachable else 1)):
        text = f"#!/bin/sh\necho {name}: error: lookup failed >&2\necho {name}: fatal: no >&2\n"
        (tmp_path / name).write_text(f"{text}exit {code}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(InputError) as error:
        slurm._submit([], tmp_path / "slurm", SlurmOptions())
    assert ("SLURM does not take the jobs" in str(error.value)) == reachable
    assert ("use hydra/launcher=local. sbatch said: sbatch: fatal" in str(error.value)) != reachable
    assert ("lookup failed" in str(error.value)) == reachable
    assert [*(tmp_path / "slurm").iterdir()] == []


# sbatch takes one array; with the next one something happens. A terminal signals its process group.
SBATCH = """#!/bin/sh
cd {folder}
[ $(cut -d" " -f5 /proc/$$/stat) != {group} ] || exit 9
if [ ! -e taken ]; then touch taken; echo 7; exit; fi
{event}
"""


@pytest.mark.parametrize(
    "event, expected, cancelled",
    [
        ("exit 1", InputError, "7"),
        ("kill -INT $PPID; sleep 0.1; echo 8", KeyboardInterrupt, "7 8"),
        ("kill -TERM $PPID; sleep 0.1; echo 8", KeyboardInterrupt, "7 8"),
    ],
)
def test_all_jobs_are_submitted_or_none(
    event: str,
    expected: type[BaseException],
    cancelled: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    programs = {
        "sbatch": SBATCH.format(folder=tmp_path, event=event, group=os.getpgrp()),
        "squeue": "#!/bin/sh\n",
        "scancel": f'#!/bin/sh\necho "$@" > {tmp_path}/cancelled\n',
    }
    for name, script in programs.items():
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(slurm, "LARGEST_ARRAY", 1)
    jobs = [remote.RemoteJob(tmp_path / name, [], {}, []) for name in "abc"]
    with pytest.raises(expected), processes.interruptible():
        slurm._submit_all(jobs, tmp_path / "slurm", SlurmOptions())
    assert (tmp_path / "cancelled").read_text() == f"{cancelled}\n"


def test_each_node_has_a_store_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVF_STORE", "/shared")
    remote.use_node_store()
    assert os.environ["TVF_STORE"] == "/shared"
    monkeypatch.setenv("SLURMD_NODENAME", "n7")
    monkeypatch.setenv(remote.NODE_STORE, remote.remote_environment()[remote.NODE_STORE])
    remote.use_node_store()
    assert os.environ["TVF_STORE"] == "/shared/node-n7"
    assert remote.NODE_STORE not in remote.remote_environment(node_store=False)


def test_jobs_share_this_machine_only_under_its_own_launchers() -> None:
    def jobs(target: str, **options: int) -> tuple[int, bool]:
        launcher = launchers.OmegaConf.create({"_target_": target, **options})
        return launchers.jobs_at_once(launcher), launchers.runs_in_parallel(launcher)

    basic, joblib = launchers.HERE
    assert jobs(basic) == (1, False)
    assert jobs(joblib, n_jobs=1) == (1, False)
    assert jobs(joblib, n_jobs=3) == (3, True)
    assert jobs(joblib, n_jobs=-1) == (os.cpu_count(), True)
    assert jobs("hydra_plugins.tvf_launchers.SlurmLauncher", n_jobs=3) == (1, True)
    with pytest.raises(InputError, match="n_jobs=0 must be"):
        jobs(joblib, n_jobs=0)


def test_another_launcher_is_not_another_command(tmp_path: Path) -> None:
    for more in ([], ["hydra/launcher=slurm", "++hydra.launcher.time=5"], ["seed=2"]):
        write_manifest(tmp_path, {}, {"folder": "/", "arguments": ["-m", "seed=1", *more]})
    given = [command["arguments"] for command in read_commands(tmp_path)]
    assert given == [["-m", "seed=1"], ["-m", "seed=1", "seed=2"]]


# A job that keeps a checkpoint when it is told to stop, unless it has just ended.
JOB = """
import json, pathlib, signal, sys, time
folder, state, keeps = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "keeps"

def stop(number, frame):
    if keeps:
        (folder / "checkpoints").mkdir(exist_ok=True)
        (folder / "checkpoints" / "last.pt").write_text(str(time.time()))
    status = {"state": state, "error": "interrupted" if state == "failed" else None}
    (folder / "status.json").write_text(json.dumps(status))
    sys.exit()

signal.signal(signal.SIGTERM, stop)
(folder / "began").touch()
time.sleep(60)
"""


@pytest.mark.parametrize(
    "state, keeps, fruitless, number, requeued",
    [
        ("failed", "keeps", 2, signal.SIGUSR1, True),
        ("done", "keeps", 0, signal.SIGUSR1, False),
        ("failed", "loses", 1, signal.SIGUSR1, True),
        ("failed", "loses", 2, signal.SIGUSR1, False),
        ("failed", "keeps", 0, signal.SIGTERM, False),  # SLURM requeues it, if at all
    ],
)
def test_a_task_requeues_itself_before_its_time_limit_if_that_helps(
    state: str, keeps: str, fruitless: int, number: int, requeued: bool, tmp_path: Path
) -> None:
    (tmp_path / "scontrol").write_text('#!/bin/sh\necho "$@" > "$(dirname "$0")/asked"\n')
    (tmp_path / "scontrol").chmod(0o755)
    job = {"folder": str(tmp_path)}
    job["command"] = [sys.executable, "-c", JOB, str(tmp_path), state, keeps]  # type: ignore[assignment]
    commands = tmp_path / "commands.json"
    report = ["touch", str(tmp_path / "report")]
    commands.write_text(json.dumps({"jobs": [None, job], "report": report}))
    (tmp_path / "squeue").write_text("#!/bin/sh\necho 1\n")
    (tmp_path / "squeue").chmod(0o755)
    variables = {"SLURM_ARRAY_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "1"}
    (tmp_path / "commands.1.fruitless").write_text(f"[null, {fruitless}]")
    variables |= {"SLURM_RESTART_COUNT": "9", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    task = subprocess.Popen(
        [sys.executable, str(ROOT / "tvf" / "sweep" / "slurm_task.py"), str(commands)],
        env=os.environ | variables,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 30
    while not (tmp_path / "began").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    task.send_signal(number)
    said = task.communicate(timeout=30)[1]
    given_up = keeps == "loses" and not requeued
    assert task.returncode == (slurm_task.TOO_SHORT if given_up else 0), said
    asked = tmp_path / "asked"
    assert (asked.read_text() if asked.exists() else "") == ("requeue 9_1\n" if requeued else "")
    assert ("raise hydra.launcher.time" in said) == given_up
    ended = number == signal.SIGUSR1 and not requeued
    assert (tmp_path / "report").exists() == ended


def test_attempts_are_fruitless_only_with_the_checkpoint_they_began_with(tmp_path: Path) -> None:
    counter = tmp_path / "fruitless"
    counted = [slurm_task._count(counter, time) for time in (None, None, 7.5, 7.5, 7.5, 8.25)]
    assert counted == [1, 2, 1, 2, 3, 1]


def test_the_command_says_that_the_time_limit_is_too_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "scontrol").write_text('#!/bin/sh\necho "JobState=FAILED ExitCode=9${4#_}:0"\n')
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    jobs = {}
    for name in ("given up", "cancelled"):
        (tmp_path / name).mkdir()
        mark_failed(tmp_path / name, name, "interrupted")
        jobs[name] = remote.RemoteJob(tmp_path / name, [], {}, [])
    slurm._explain({"": {"0": "cancelled", "3": "given up"}}, jobs)
    (said,) = caplog.messages
    assert said.startswith("error: given up: ") and "raise hydra.launcher.time" in said


def test_the_last_task_to_end_knows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = tmp_path / "queue"
    (tmp_path / "squeue").write_text(f'#!/bin/sh\ncat "{queue}"\n')
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "9")
    commands, spec = tmp_path / "commands.json", {"jobs": [None] * 3}
    queue.write_text("0\n1\n")  # task 2 was killed
    assert not slurm_task._is_last(commands, spec, 0)
    assert slurm_task._is_last(commands, spec, 1)
