"""A process for each job of a sweep: whatever ends it, an exception or the system, ends no other job.

And what Ctrl-C does to them.
"""

import contextlib
import faulthandler
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import psutil
from tqdm import tqdm

from tvf.records import read_status

QUIET = "TVF_QUIET"  # in the environment: jobs write to their logs alone, since a live table has the terminal
PATIENCE = 5.0  # seconds that an interrupted job has to end by itself before it is told once more


def can_fork() -> bool:
    """Whether jobs can have processes of their own: on Linux, where a process that has imported torch may be forked."""
    return sys.platform == "linux"


def run_in_subprocess(job: Callable[[], int], log_file: Path) -> int:
    """Call `job` in a process of its own and wait for it; the number it returns, or minus the signal that killed it.

    What it prints goes to `log_file`, and what it logs to the terminal as well, unless a live table is there. Ctrl-C
    reaches the job, which is waited for, and is then raised here.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    parent, child = os.getpid(), os.fork()
    if child == 0:
        code = 1
        try:
            from tvf.distributed import die_with_parent  # with torch, which a job needs anyway

            die_with_parent(parent)
            tqdm.set_lock(
                threading.RLock()
            )  # its own is one between processes, which nobody would remove
            with contextlib.suppress(OSError):  # of a disk that is full
                _print_to(log_file)
            faulthandler.enable()
            with interruptible():
                code = job()
        except BaseException:
            traceback.print_exc()
        finally:
            try:
                for number in (signal.SIGINT, signal.SIGTERM):
                    signal.signal(number, signal.SIG_IGN)
                logging.shutdown()
                for stream in (sys.stdout, sys.stderr):
                    with contextlib.suppress(OSError, ValueError):
                        stream.flush()
            finally:
                # Not sys.exit: what the parent has registered for its own end is not this process's to run.
                os._exit(code)
    try:
        status = os.waitpid(child, 0)[1]
    except KeyboardInterrupt:
        _stop(child)
        raise
    return os.waitstatus_to_exitcode(status)


@contextmanager
def interruptible(first: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Ctrl-C and SIGTERM raise KeyboardInterrupt in here, once `first` has been called.

    Both may come at once, or twice, from a terminal and from a parent: what comes within two seconds is one. Python
    drops what is raised while it removes an object, so that is waited for.
    """
    raised = -2.0

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal raised
        if any(each.f_code.co_name == "__del__" for each, _ in traceback.walk_stack(frame)):
            threading.Timer(0.05, signal.raise_signal, [number]).start()
        elif time.monotonic() - raised >= 2:
            raised = time.monotonic()
            first()
            raise KeyboardInterrupt

    earlier = {
        number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def stop_jobs(folder: Path) -> None:
    """Interrupt the jobs of the sweep in `folder` that descend from this process, and wait until they have said so."""
    told, deadline = set(), time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        ours = {each.pid: each for each in psutil.Process().children(recursive=True)}
        statuses = [read_status(path.parent) for path in folder.glob("*/status.json")]
        live = {
            ours[each["pid"]]
            for each in statuses
            if each.get("state") == "running" and each.get("pid") in ours
        }
        if not live:
            return
        for job in live - told:
            with contextlib.suppress(psutil.Error):
                worker = job.parent()
                for each in (worker, job) if worker and worker.pid in ours else (job,):
                    each.send_signal(signal.SIGINT)  # a worker that is told starts no other job
        told |= live
        time.sleep(0.05)


def _print_to(log_file: Path) -> None:
    """Put all that this process prints into `log_file`; a thread of the parent may hold the streams that it had."""
    file = os.open(log_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    terminal = open(os.devnull if os.environ.get(QUIET) else os.dup(1), "w", buffering=1)
    for number in (1, 2):
        os.dup2(file, number)
    sys.stdout = open(1, "w", buffering=1, closefd=False)
    sys.stderr = open(2, "w", buffering=1, closefd=False)
    for handler in logging.getLogger().handlers:
        if type(handler) is logging.StreamHandler:
            handler.stream = terminal


def _stop(child: int) -> None:
    """Wait for a job that Ctrl-C has reached, as it does every process of a terminal; tell it again if it lingers."""
    for told in (signal.SIGINT, signal.SIGKILL):
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            with contextlib.suppress(KeyboardInterrupt):
                if os.waitpid(child, os.WNOHANG)[0]:
                    return
                time.sleep(0.05)
        os.kill(child, told)
    os.waitpid(child, 0)
