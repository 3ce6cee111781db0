"""What signals do to a job in its own process: a cluster's, and SIGTERM while it trains."""

import os
import signal
from pathlib import Path

import pytest

from helpers import forks
from tvf.errors import InputError
from tvf.job.stopping import stopped_after_batches
from tvf.sweep.processes import PATIENCE, seconds_to_checkpoint

# As submitit does: the process that runs jobs handles the signal, which all processes receive.
HANDLED_ABOVE = """
import os, pathlib, signal, sys
from tvf.sweep.processes import run_in_subprocess

def handle(number, frame):
    pathlib.Path(f"handled-by-{os.getpid()}").touch()

def job():
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        os.kill(os.getpid(), number)
        os.kill(os.getppid(), number)
    return 7

for number in (signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, handle)
print(os.getpid(), run_in_subprocess(job, pathlib.Path("job.log")))
"""


@pytest.mark.slow
def test_signals_for_the_process_above_do_not_run_its_handlers_in_the_job(tmp_path: Path) -> None:
    output, _ = forks.python(HANDLED_ABOVE, cwd=tmp_path).communicate()
    above, code = output.split()
    assert code == "7", output
    assert [path.name for path in tmp_path.glob("handled-*")] == [f"handled-by-{above}"]


# A job in the middle of a batch that takes two seconds, when its command is told to stop, which has
# only just started it.
BATCH = """
import os, pathlib, signal, time
from tvf.sweep import processes

def job():
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(2)
    pathlib.Path("checkpoint").touch()
    return 0

terminable = processes._terminable

def slowly():
    time.sleep(0.5)
    return terminable()

processes._terminable = slowly  # whatever comes between the start of a job and the wait for it
processes.CHECKPOINT_SECONDS = processes.GRACE_SECONDS = 0.1
try:
    with processes.interruptible():
        processes.run_in_subprocess(job, pathlib.Path("job.log"))
except KeyboardInterrupt:
    print("interrupted")
"""


# A command that is told to stop while logging unlocks its handlers after a fork.
FORKING = """
import os, pathlib, signal, time
from tvf.sweep import processes

def stop():
    os.kill(os.getpid(), signal.SIGTERM)

os.register_at_fork(after_in_parent=stop)
try:
    with processes.interruptible():
        processes.run_in_subprocess(lambda: time.sleep(2) or 0, pathlib.Path("job.log"))
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.slow
def test_a_signal_during_a_fork_is_not_lost(tmp_path: Path) -> None:
    assert forks.python(FORKING, cwd=tmp_path).communicate() == ("interrupted\n", None)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", ["0.1", "20"])
def test_a_cluster_says_how_long_a_job_may_take_for_its_checkpoint(
    seconds: str, tmp_path: Path
) -> None:
    process = forks.python(BATCH, cwd=tmp_path, **{PATIENCE: seconds})
    assert process.communicate() == ("interrupted\n", None)
    assert (tmp_path / "checkpoint").exists() == (seconds == "20")


@pytest.mark.parametrize("seconds", ["20s", "-1", "inf", "nan"])
def test_a_time_for_checkpoints_that_is_no_number_of_seconds_is_an_error(seconds: str) -> None:
    with pytest.raises(InputError, match=f"{PATIENCE}={seconds} must be a number of seconds"):
        seconds_to_checkpoint({PATIENCE: seconds})
    assert seconds_to_checkpoint({PATIENCE: ""}) == seconds_to_checkpoint({}) == 20


def test_sigterm_waits_for_the_batch_while_a_job_trains_and_only_then() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stopped_after_batches() as stopped:
        assert not stopped()
        for _ in range(2):  # from SLURM, and from the process above
            os.kill(os.getpid(), signal.SIGTERM)
            assert stopped()
    assert signal.getsignal(signal.SIGTERM) is before
