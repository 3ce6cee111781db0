"""Runs each job of a sweep in its own process, and stops such jobs on Ctrl-C.

An exception or a signal that ends one job does not affect the other jobs of the sweep.
"""

import contextlib
import faulthandler
import gc
import io
import logging
import math
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import BinaryIO, TextIO

from tvf.errors import InputError
from tvf.findings import give, take
from tvf.records import LEASE, read_status, waiting_holder

QUIET = (
    "TVF_QUIET"  # environment variable: jobs only write to their logs, for the live table's sake
)
ERRORS = "backslashreplace"  # of output streams: names of files may not be UTF-8
GRACE_SECONDS = 5.0  # an interrupted job may take this long to end before the next signal
CHECKPOINT_SECONDS = 20.0  # and this long to keep a checkpoint after SIGTERM, unless the cluster
PATIENCE = "TVF_CHECKPOINT_SECONDS"  # says in this environment variable how long it takes
SAME_INTERRUPT_SECONDS = 2.0  # signals closer together than this count as one Ctrl-C
_waited_for: set[int] = set()  # processes that train one job after another


def can_fork() -> bool:
    """Return whether jobs can run in forked processes.

    Only Linux can fork a process that has imported torch.
    """
    return sys.platform == "linux"


def run_in_subprocess(job: Callable[[], int], log_file: Path) -> int:
    """Call `job` in a forked process and wait for it.

    Returns what `job` returns, or minus the number of the signal that killed it. The job's output
    goes to `log_file`; its log lines also go to the terminal, unless a live table is shown there.
    Ctrl-C reaches the job too, and SIGTERM is passed on: KeyboardInterrupt is raised here after the
    job has ended.
    """
    child = 0
    with _terminable(), _open_findings() as findings:
        try:
            with uninterrupted():  # or the process would be one of which nobody knows
                child = _start_process(partial(_run_and_give, job, findings), log_file)
            status = os.waitpid(child, 0)[1]
            child = 0
            take(findings)
        except KeyboardInterrupt as interruption:
            if child:
                with contextlib.suppress(ProcessLookupError, ChildProcessError):  # has just ended
                    wait_or_kill(child, gently=signal.SIGTERM in interruption.args)
            raise
    return os.waitstatus_to_exitcode(status)


def _open_findings() -> BinaryIO:
    """What a job writes its findings to, in memory; they are lost where that is not allowed."""
    try:
        return open(os.memfd_create("findings"), "w+b")
    except OSError:
        return io.BytesIO()


def _run_and_give(job: Callable[[], int], findings: BinaryIO) -> int:
    """Run `job`, and write what it has found out."""
    code = job()
    give(findings)
    return code


def run_in_subprocesses(jobs: Sequence[Callable[[], int]]) -> None:
    """Run each of `jobs` in a forked process, all at once, and wait for them.

    They keep this process's output. KeyboardInterrupt, as in `run_in_subprocess`, ends them first.
    """
    waiting: list[int] = []
    with _terminable():
        try:
            with uninterrupted():
                waiting += [_start_process(job, Path(os.devnull)) for job in jobs]
            _waited_for.update(waiting)
            while waiting:
                os.waitpid(waiting[0], 0)
                waiting.pop(0)
        except KeyboardInterrupt as interruption:
            for child in waiting:
                with contextlib.suppress(ProcessLookupError, ChildProcessError):
                    wait_or_kill(child, gently=signal.SIGTERM in interruption.args)
            raise
        finally:
            _waited_for.clear()


def _start_process(job: Callable[[], int], log_file: Path) -> int:
    """Fork a process that ends with the code that `job` returns; return its id."""
    sys.stdout.flush()
    sys.stderr.flush()
    parent, child = os.getpid(), _fork()
    if child == 0:
        _run_and_exit(job, log_file, parent)
    return child


@contextmanager
def interruptible(first: Callable[[int], bool] = lambda number: False) -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGINT and SIGTERM in this context, after calling `first` with it.

    The exception has the signal's number, unless `first` returns that it has interrupted the jobs.

    A terminal and a parent process may both send a signal, so signals that arrive within two
    seconds count as one. Python ignores exceptions raised in `__del__` and in what other modules
    run at a fork, so a signal that arrives there is raised again a little later.
    """
    last_raised = -SAME_INTERRUPT_SECONDS

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal last_raised
        if any(_ignores_exceptions(outer) for outer, _ in traceback.walk_stack(frame)):
            threading.Timer(0.05, signal.raise_signal, [number]).start()
        elif time.monotonic() - last_raised >= SAME_INTERRUPT_SECONDS:
            last_raised = time.monotonic()
            raise KeyboardInterrupt(*([] if first(number) else [number]))

    previous = {
        number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _fork() -> int:
    return os.fork()


def _ignores_exceptions(frame: FrameType) -> bool:
    return frame.f_code.co_name == "__del__" or frame.f_code is _fork.__code__


@contextmanager
def _terminable() -> Iterator[None]:
    """Raise KeyboardInterrupt on the first SIGTERM, which a launcher's worker otherwise ignores."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt(number)

    main = threading.current_thread() is threading.main_thread()
    previous = signal.getsignal(signal.SIGTERM)
    if not main or previous not in (signal.SIG_DFL, signal.SIG_IGN):
        yield
        return
    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Put off SIGINT and SIGTERM to the end of this context, in the main thread.

    Others cannot change signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    previous = {
        number: signal.signal(number, lambda number, frame: received.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        if received:
            signal.raise_signal(received[0])


def seconds_to_checkpoint(environment: Mapping[str, str] = os.environ) -> float:
    """Return how long a job with this environment may take to keep a checkpoint after SIGTERM.

    Raises InputError if the environment says something else than a number of seconds.
    """
    given = environment.get(PATIENCE) or CHECKPOINT_SECONDS
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise InputError(f"{PATIENCE}={given} must be a number of seconds, such as 20.")
    return seconds


def stop_jobs(folder: Path, number: int = signal.SIGINT) -> None:
    """Send a signal to the running jobs of the sweep in `folder` that descend from this process.

    Jobs that wait for a GPU get it too, and a process that trains one job after another between
    jobs. SIGTERM lets them keep a checkpoint. Returns when they have recorded their end, or when
    they have had the time for it.
    """
    import psutil

    patience = GRACE_SECONDS + (seconds_to_checkpoint() if number == signal.SIGTERM else 0)
    signalled, deadline = set[Path | int](), time.monotonic() + patience
    while time.monotonic() < deadline:
        ours = {process.pid: process for process in psutil.Process().children(recursive=True)}
        statuses = {path.parent: read_status(path.parent) for path in folder.glob("*/status.json")}
        running = {
            job: ours[status["pid"]]
            for job, status in statuses.items()
            if status.get("state") == "running"
            and status.get("host") == socket.gethostname()
            and status.get("pid") in ours
        }
        holders = {path.parent: waiting_holder(path.parent) for path in folder.glob(f"*/{LEASE}")}
        running |= {
            job: ours[holder.owner.pid]
            for job, holder in holders.items()
            if holder and holder.owner and holder.owner.pid in ours
        }
        training = {process.pid for process in running.values()}
        between = {pid: ours[pid] for pid in (_waited_for & ours.keys()) - training}
        # Each job once: one that was about to end when it was asked to stop may have a successor.
        for key, process in {**running, **between}.items():
            if key in signalled:
                continue
            with contextlib.suppress(psutil.Error):
                worker = process.parent()
                if worker and worker.pid in ours:
                    worker.send_signal(number)  # so that it starts no further job
                process.send_signal(number)
            signalled.add(key)
        if not running:
            return
        time.sleep(0.05)


def _run_and_exit(job: Callable[[], int], log_file: Path, parent: int) -> None:
    """Run `job` in the forked process and exit with the code that it returns."""
    code = 1
    # A cluster's signal is for the process that waits for this one: submitit handles it there.
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    try:
        from tvf.distributed import die_with_parent  # imports torch, which a job needs anyway

        die_with_parent(parent)
        gc.freeze()  # or a collection would walk all the parent's objects, and copy their pages
        with contextlib.suppress(OSError):  # the disk may be full
            _redirect_output(log_file)
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
            # Not sys.exit: exit handlers that the parent has registered must not run here.
            os._exit(code)


def _redirect_output(log_file: Path) -> None:
    """Append everything this process prints to `log_file`; log lines also go to the terminal.

    The streams are new, because a thread of the parent may hold the locks of the old ones.
    """
    output = os.devnull if os.environ.get(QUIET) else os.dup(1)
    log_to(log_file, open(output, "w", buffering=1, errors=ERRORS))


def log_to(log_file: Path, terminal: TextIO) -> None:
    """Append everything that this process prints to `log_file`; log lines also to `terminal`."""
    file = os.open(log_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for number in (1, 2):
        os.dup2(file, number)
    os.close(file)
    sys.stdout = open(1, "w", buffering=1, closefd=False, errors=ERRORS)
    sys.stderr = open(2, "w", buffering=1, closefd=False, errors=ERRORS)
    for handler in logging.getLogger().handlers:
        if type(handler) is logging.StreamHandler:
            handler.stream = terminal


def wait_or_kill(child: int, gently: bool) -> None:
    """Wait for a job that Ctrl-C has interrupted; if it does not end, interrupt it, then kill it.

    A terminal sends Ctrl-C to all its processes, so the job has usually received it already.
    With `gently`, first let it keep a checkpoint, as on a cluster that takes its node away.
    """
    if gently:
        os.kill(child, signal.SIGTERM)
    for number in (signal.SIGINT, signal.SIGKILL):
        first = number == signal.SIGINT
        patience = seconds_to_checkpoint() if gently and first else GRACE_SECONDS
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            with contextlib.suppress(KeyboardInterrupt):
                if os.waitpid(child, os.WNOHANG)[0]:
                    return
                time.sleep(0.05)
        os.kill(child, number)
    os.waitpid(child, 0)
