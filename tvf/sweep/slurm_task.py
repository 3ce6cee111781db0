"""What a node runs for each task of a SLURM array: one job of a sweep, by its command.

Run by its path and with the standard library alone, so that it is there before anything can fail.
SIGUSR1, shortly before the time limit, makes the job keep a checkpoint and the task requeue itself.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Any

FRUITLESS = 3  # attempts at the time limit, after which a job that got no further is not requeued
TOO_SHORT = 93  # the exit code then; the batch script has others


def main(commands: Path) -> int:
    """Run the job that the array's task is for, from the file that `hydra/launcher=slurm` wrote."""
    spec = json.loads(commands.read_text())
    task = int(os.environ["SLURM_ARRAY_TASK_ID"])
    job = spec["jobs"][task]
    task_id = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{task}"
    before = _checkpoint_time(job)
    received = _run(job["command"])
    code = 0
    if signal.SIGUSR1 in received and not _has_ended(job):
        counter = commands.with_suffix(f".{task}.fruitless")
        if before != _checkpoint_time(job) or _count(counter, before) < FRUITLESS:
            return subprocess.run(["scontrol", "requeue", task_id]).returncode
        print(f"{job['folder']}: {too_short()}", file=sys.stderr)
        code = TOO_SHORT
    if signal.SIGTERM not in received and spec["report"] and _is_last(commands, spec, task):
        return subprocess.run(spec["report"]).returncode or code
    return code


def too_short() -> str:
    """Why a job was not requeued, and what helps."""
    return (
        f"no checkpoint before the time limit in {FRUITLESS} attempts: raise hydra.launcher.time, "
        "or hydra.launcher.stop_seconds if a batch takes longer than that."
    )


def _count(counter: Path, checkpoint: float | None) -> int:
    """Count one more attempt that met its time limit with only the checkpoint it began with."""
    try:
        known, attempts = json.loads(counter.read_text())
    except (OSError, ValueError):
        known, attempts = checkpoint, 0
    attempts = attempts + 1 if known == checkpoint else 1
    counter.write_text(json.dumps([checkpoint, attempts]))
    return attempts


def _run(command: list[str]) -> set[int]:
    """Run the command; return the signals that asked for its end, which it is told of."""
    received: set[int] = set()
    process: subprocess.Popen[bytes] | None = None

    def stop(number: int, frame: FrameType | None) -> None:
        received.add(number)
        if process is not None:
            process.terminate()

    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, stop)
    process = subprocess.Popen(command)
    if received:
        process.terminate()
    process.wait()
    return received


def _has_ended(job: dict[str, Any]) -> bool:
    """Whether the job's record says that it ended by itself."""
    try:
        status = json.loads(Path(job["folder"], "status.json").read_text())
    except (OSError, ValueError):
        return False
    interrupted = status["state"] == "running" or status["error"] == "interrupted"
    return not interrupted


def _checkpoint_time(job: dict[str, Any]) -> float | None:
    try:
        return Path(job["folder"], "checkpoints", "last.pt").stat().st_mtime
    except OSError:
        return None


def _is_last(commands: Path, spec: dict[str, Any], task: int) -> bool:
    """Whether no other task of the array is still to end.

    Each task says so in a file before it looks, so of two that end together, the later one sees
    both; killed ones are no longer queued.
    """
    ended = commands.with_suffix(f".{task}.ended")
    ended.touch()
    command = ["squeue", "-h", "-r", "-o", "%K", "-j", os.environ["SLURM_ARRAY_JOB_ID"]]
    listed = subprocess.run(command, capture_output=True, text=True)
    queued = listed.stdout.split() if listed.returncode == 0 else map(str, range(len(spec["jobs"])))
    return all(commands.with_suffix(f".{other}.ended").exists() for other in queued)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
