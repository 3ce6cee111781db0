"""Runs a sweep's jobs on a SLURM cluster: hydra/launcher=slurm.

The jobs' commands are written to the sweep's folder and submitted as an array of tasks, which
`squeue` is asked for until it lists none. The jobs' own records say how they ended.
"""

import logging
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from hydra.core.utils import JobReturn
from omegaconf import DictConfig

from tvf.errors import InputError
from tvf.files import read_json, write_json
from tvf.records import STOPPED, is_done, is_running, mark_failed, read_status
from tvf.sweep.callback import leave
from tvf.sweep.launchers import require_slurm
from tvf.sweep.processes import PATIENCE, uninterrupted
from tvf.sweep.remote import (
    NODE,
    RemoteJob,
    check_devices,
    job_return,
    read_options,
    remote_environment,
    sweep_folder,
)
from tvf.sweep.slurm_options import SlurmOptions
from tvf.sweep.slurm_task import TOO_SHORT, too_short

log = logging.getLogger(__name__)

FOLDER = "slurm"  # in the sweep's folder: commands, output of tasks, arrays that may be queued
LARGEST_ARRAY = 1000  # SLURM's MaxArraySize is 1001 by default
FASTEST, SLOWEST = 1.0, 10.0  # seconds between two calls of squeue, at first and after a while
GRACE_SECONDS = 30.0  # for cancelled tasks, as SLURM gives them by default
KEPT = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT")  # of a job in which the sweep is started
# Exit codes of the batch script. SLURM's own is 0:53 if it cannot write a task's output.
NO_COMMANDS, NO_FOLDER, NO_PYTHON = 90, 91, 92
REPORT = "import sys; from tvf.sweep import report_sweep; report_sweep(sys.argv[1])"


def launch_on_slurm(
    jobs: Sequence[RemoteJob], config: DictConfig, options: Mapping[str, Any]
) -> list[JobReturn]:
    """Submit the jobs that are neither done nor queued, and wait for all of them to end.

    `config` is the sweep's, `options` are the launcher's. Raises InputError, in SLURM's words, if
    it does not take the jobs; in tvf's, if there is no cluster to take them.
    """
    slurm = read_options(SlurmOptions, options)
    _check(jobs, config, slurm)
    folder = sweep_folder(config) / FOLDER
    arrays = _queued_arrays(folder)
    queued = {name for names in arrays.values() for name in names.values()}
    waiting = [job for job in jobs if not is_done(job.folder, job.config)]
    waiting = [job for job in waiting if job.folder.name not in queued]
    waiting = [*{job.folder: job for job in waiting}.values()]  # equal jobs share a folder
    try:
        arrays |= _submit_all(waiting, folder, slurm)
        if slurm.detach:
            leave(f"SLURM runs the jobs. To look at them: {_command('status', folder.parent)}")
            return [job_return(job) for job in jobs]
        _wait(arrays)
    except KeyboardInterrupt:
        _cancel(arrays)
        raise
    _explain(arrays, {job.folder.name: job for job in jobs})
    for array in arrays:
        (folder / f"array-{array}.json").unlink(missing_ok=True)
    return [job_return(job) for job in jobs]


def _check(jobs: Sequence[RemoteJob], config: DictConfig, slurm: SlurmOptions) -> None:
    """Raise InputError for what SLURM would only show in tasks."""
    require_slurm()
    for job in jobs:
        check_devices(job.config, f"{NODE}.gpus and cpus", slurm.cpus, slurm.gpu_count or 0)
    if slurm.detach and not config.hydra.sweeper._target_.endswith(("GridSweeper", "BasicSweeper")):
        raise InputError(
            f"{NODE}.detach must be false with this hydra/sweeper, whose later jobs depend on the "
            "results of earlier ones: the command has to stay."
        )


def _submit_all(
    jobs: Sequence[RemoteJob], folder: Path, slurm: SlurmOptions
) -> dict[str, dict[str, str]]:
    """Submit and record all jobs, or none: return the folders' names by task and array."""
    arrays = {}
    try:
        for first in range(0, len(jobs), LARGEST_ARRAY):
            part = jobs[first : first + LARGEST_ARRAY]
            with uninterrupted():  # or an array would be queued of which nobody knows
                array = _submit(part, folder, slurm)
                arrays[array] = {str(task): job.folder.name for task, job in enumerate(part)}
                write_json(folder / f"array-{array}.json", arrays[array])
            log.info(
                "Submitted %d jobs as SLURM's array %s; their output: %s", len(part), array, folder
            )
    except BaseException:
        _cancel(arrays)
        raise
    return arrays


def _submit(jobs: Sequence[RemoteJob], folder: Path, slurm: SlurmOptions) -> str:
    """Submit an array with a task for each job, and return its id."""
    folder.mkdir(parents=True, exist_ok=True)
    commands = folder / f"commands-{uuid4().hex[:8]}.json"
    report = [sys.executable, "-c", REPORT, str(folder.parent)] if slurm.detach else None
    tasks = [{"folder": str(job.folder), "command": job.command} for job in jobs]
    write_json(commands, {"jobs": tasks, "report": report})
    environment = {
        key: value
        for key, value in remote_environment(node_store=slurm.store == "node").items()
        if key in KEPT or not key.startswith(("SLURM_", "SBATCH_"))
    }
    environment[PATIENCE] = str(slurm.checkpoint_seconds)
    script = _script(commands, len(jobs), slurm)
    options = {"env": environment, "start_new_session": True}  # a terminal's Ctrl-C is not for it
    done = _run(["sbatch", "--parsable"], input=script, **options)
    if done.returncode:
        commands.unlink()
        said = done.stderr.strip()
        if _run(["squeue", "-h"]).returncode:  # nothing answers, whatever is asked
            raise InputError(
                "hydra/launcher=slurm reaches no SLURM cluster from this machine. Start the sweep "
                "on a login node of the cluster, or use hydra/launcher=local. sbatch said: "
                + said.rpartition("\n")[2]
            )
        raise InputError(
            f"SLURM does not take the jobs: {said}. The options of hydra.launcher: "
            f"{_command('train', '--cfg', 'hydra', '-p', NODE, 'hydra/launcher=slurm')}"
        )
    return done.stdout.strip().partition(";")[0]


def _script(commands: Path, jobs: int, slurm: SlurmOptions) -> str:
    throttle = f"%{slurm.max_running}" if slurm.max_running else ""
    name = re.sub(r"\W", "_", commands.parent.parent.name)
    output = str(commands.parent).replace("\\", "\\\\").replace("%", "%%")
    directives = [
        f"--job-name=tvf-{name}",
        f"--array=0-{jobs - 1}{throttle}",
        f"--output={output}/%A_%a.log",
        "--export=ALL",
        *slurm.directives,
    ]
    here, python = shlex.quote(os.getcwd()), shlex.quote(sys.executable)
    task = Path(__file__).with_name("slurm_task.py")
    lines = [
        *(f"#SBATCH {_quoted(text)}" for text in directives),
        f"[ -r {shlex.quote(str(commands))} ] || exit {NO_COMMANDS}",
        f"cd {here} || exit {NO_FOLDER}",
        *slurm.setup,
        f"[ -x {python} ] || exit {NO_PYTHON}",
        f"exec {python} {shlex.quote(str(task))} {shlex.quote(str(commands))}",
    ]
    return "\n".join(["#!/bin/bash", *lines, ""])


def _queued_arrays(folder: Path) -> dict[str, dict[str, str]]:
    """The arrays of earlier launches that still have tasks queued: folders' names by task."""
    arrays = {}
    for path in sorted(folder.glob("array-*.json")):
        array = path.stem.removeprefix("array-")
        names = read_json(path)
        if tasks := {task: names[task] for task in _tasks(array) if task in names}:
            log.info("%d jobs are queued as SLURM's array %s already.", len(tasks), array)
            arrays[array] = tasks
        else:
            path.unlink()
    return arrays


def _tasks(array: str) -> list[str]:
    return [task.partition("_")[2] for task in _read_queue([array])]


def _wait(arrays: Mapping[str, Mapping[str, str]], patience: float = float("inf")) -> None:
    """Wait until no task is queued, at most `patience` seconds; say what SLURM waits for."""
    begun, said = time.monotonic(), set[str]()
    while arrays and (queue := _read_queue([*arrays])) and time.monotonic() - begun < patience:
        reasons = {reason for state, reason in queue.values() if state == "PENDING"}
        if reasons and all(state == "PENDING" for state, _ in queue.values()):
            for reason in sorted(reasons - said - {"None", "Priority", "Resources"}):
                log.info("SLURM: %d jobs wait (%s).", len(queue), reason)
            said |= reasons
        time.sleep(min(SLOWEST, FASTEST + (time.monotonic() - begun) / 20))


def _read_queue(arrays: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Tasks that are queued or running, with their state and its reason.

    Keeps asking while SLURM does not answer.
    """
    command = ["squeue", "-h", "-r", "-o", "%F_%K|%T|%r", "-j", ",".join(arrays)]
    warned = False
    while True:
        done = _run(command)
        if done.returncode == 0:
            rows = (line.split("|") for line in done.stdout.splitlines())
            return {task: (state, reason) for task, state, reason in rows}
        if "Invalid job id" in done.stderr:  # SLURM forgets jobs a while after their end
            return {}
        if not warned:
            log.warning("squeue: %s. Waiting for SLURM.", done.stderr.strip())
            warned = True
        time.sleep(SLOWEST)


def _cancel(arrays: Mapping[str, Mapping[str, str]]) -> None:
    """Cancel all tasks, and wait for the running ones to keep a checkpoint."""
    if not arrays:
        return
    log.info("Cancelling SLURM's array %s.", ", ".join(arrays))
    _run(["scancel", *arrays])
    _wait(arrays, GRACE_SECONDS)


def _explain(arrays: Mapping[str, Mapping[str, str]], jobs: Mapping[str, RemoteJob]) -> None:
    """Say why tasks ended whose jobs have not recorded an end, or could not get to one."""
    faults, limited = {}, []
    tasks = {
        f"{array}_{task}": name for array, names in arrays.items() for task, name in names.items()
    }
    for task, name in tasks.items():
        if name not in jobs:  # of an earlier launch
            continue
        folder = jobs[name].folder
        status = read_status(folder)
        if not status:
            faults[name] = _fault(task, folder.parent)
        elif status["state"] == "running" and not is_running(folder):
            fault = _fault(task, folder.parent)
            log.error("%s: %s", status["name"], fault)
            # It was lost, which is not the job's fault, unless it took too much memory.
            own = "OUT_OF_MEMORY" in fault
            mark_failed(folder, status["name"], fault if own else STOPPED[1])
        elif status["error"] == STOPPED[0] and _fault(task, folder.parent) == too_short():
            limited.append(name)
    if limited:
        log.error("error: %s: %s", ", ".join(sorted(limited)), too_short())
    for fault in sorted({*faults.values()}):
        log.error("error: %d jobs did not start: %s", [*faults.values()].count(fault), fault)


def _fault(task: str, sweep: Path) -> str:
    """Why a task ended, as SLURM has it."""
    shown = _run(["scontrol", "show", "job", "-o", task]).stdout
    facts = dict(re.findall(r"(\w+)=(\S*)", shown))
    node = facts.get("NodeList", "its node")
    output = sweep / FOLDER / f"{task}.log"
    code = facts.get("ExitCode")
    if code in (f"{NO_COMMANDS}:0", "0:53"):
        return f"{node} cannot see {sweep}: hydra.sweep.dir must be on a disk that nodes share."
    if code == f"{NO_FOLDER}:0":
        return f"{node} cannot see {os.getcwd()}: start the sweep on a disk that nodes share."
    if code == f"{NO_PYTHON}:0":
        return f"{node} has no {sys.executable}: install tvf on a disk that nodes share."
    if code == f"{TOO_SHORT}:0":
        return too_short()
    if not facts:
        return f"SLURM no longer knows how its task ended: {output}"
    return f"its task ended: {facts.get('JobState')} ({facts.get('Reason')}): {output}"


def _quoted(text: str) -> str:
    return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"' if re.search(r"[\s\"']", text) else text


def _command(*words: object) -> str:
    return shlex.join(["tvf", *map(str, words)])


def _run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, **options)
