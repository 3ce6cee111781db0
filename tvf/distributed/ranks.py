"""The processes of a job that trains on several devices: one per device, started by rank 0.

The job's own process is rank 0. The others read from standard input which function to call, and run
it with rank 0's interpreter, import path and environment. They end when rank 0 ends for any reason;
if one of them fails, so does the job.
"""

import ctypes
import faulthandler
import importlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from tvf.errors import InputError

log = logging.getLogger(__name__)

# A rank imports nothing from tvf before it knows the import path. The module's name is passed as an
# argument so that it shows in process lists. A scheduler sends SIGTERM to all processes of a job;
# rank 0 keeps a checkpoint and ends the others.
ENTRY = (
    "import json, signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "sys.path[:] = json.loads(sys.stdin.readline()); "
    "from tvf.distributed.ranks import serve; serve()"
)
HOST = "127.0.0.1"
PATIENCE = 10.0  # seconds that a process has to end by itself once another process is gone

Ranks = Mapping[int, subprocess.Popen[str]]


@contextmanager
def start_ranks(count: int, function: str, arguments: Mapping[str, Any]) -> Iterator[None]:
    """Make this process rank 0 of `count` in a context, while the other ranks call `function`.

    `function` is "module:name", `arguments` are JSON data. Inside, `RankStrategy` makes Fabric join
    the ranks into one process group. On exit, the other ranks are awaited, or stopped if this
    process failed; the environment is restored and the process group destroyed, so that another
    job can follow.

    Raises RuntimeError if a rank does not return normally, which collectives over gloo notice. If
    nothing has been raised PATIENCE seconds later, because this process waits for a GPU that waits
    for the lost rank, this process exits with code 1.
    """
    from torch import distributed
    from torch.distributed import TCPStore  # type: ignore[reportPrivateImportUsage]

    environment, fabric_log = {**os.environ}, logging.getLogger("lightning_fabric")
    level = fabric_log.level
    fabric_log.setLevel(logging.WARNING)  # it logs every process group
    # This store keeps its port open, while a port that was merely found free could be taken in the
    # meantime. Fabric's store shares its server.
    store = TCPStore(HOST, 0, count, is_master=True, wait_for_workers=False, multi_tenant=True)
    shared = _group_environment(count, store.port)
    message = {"parent": os.getpid(), "function": function, "arguments": dict(arguments)}
    ranks: dict[int, subprocess.Popen[str]] = {}
    over = threading.Event()
    try:
        for rank in range(1, count):
            ranks[rank] = _start_rank(environment | shared | {"LOCAL_RANK": str(rank)}, message)
        while not store.check([f"ready/{rank}" for rank in ranks]):
            _require_all(ranks)
            time.sleep(0.02)
        threading.Thread(target=_exit_if_lost, args=(ranks, over), daemon=True).start()
        os.environ.update(shared | {"LOCAL_RANK": "0"})
        try:
            yield
        except RuntimeError as error:
            # Collectives raise it when a rank is lost, whose process may still be exiting.
            if lost := _describe_lost(ranks, wait=2):
                raise RuntimeError(lost) from error
            raise
        _await_end(ranks)
        _require_all(ranks)
    finally:
        over.set()
        _stop(ranks)
        if distributed.is_initialized():
            distributed.destroy_process_group()
        _restore_environment(environment)
        fabric_log.setLevel(level)


def serve() -> None:
    """Run this process as a rank: read a function's name from standard input, call it, exit."""
    message = json.loads(sys.stdin.readline())
    _end_with_rank_0(message["parent"])
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    logging.disable(logging.WARNING)  # rank 0 reports on the job
    warnings.simplefilter("ignore")
    faulthandler.enable()
    rank, code = int(os.environ["LOCAL_RANK"]), 1
    try:
        _call(rank, message)
        code = 0
    except InputError as error:
        # Rank 0 makes the same mistake, and reports it before it ends this process.
        time.sleep(6 * PATIENCE)
        log.error("rank %d: %s", rank, error)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        # Not sys.exit: torch takes a second or two to shut down, and rank 0 waits.
        os._exit(code)


def die_with_parent(parent: int) -> None:
    """Have Linux kill this process when its parent dies; otherwise it would train on unnoticed."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the call
        os._exit(1)


def _group_environment(count: int, port: int) -> dict[str, str]:
    """The environment variables through which the ranks find each other."""
    shared = {
        "NODE_RANK": "0",
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": HOST,
        "MASTER_PORT": str(port),
    }
    if sys.platform == "linux":
        # By default gloo resolves the host name, which may have no address.
        shared["GLOO_SOCKET_IFNAME"] = os.environ.get("GLOO_SOCKET_IFNAME", "lo")
    return shared


def _restore_environment(environment: Mapping[str, str]) -> None:
    for key in {*os.environ} - {*environment}:  # Fabric adds some too
        del os.environ[key]
    os.environ.update(environment)


def _start_rank(
    environment: Mapping[str, str], message: Mapping[str, Any]
) -> subprocess.Popen[str]:
    """Start a process that serves `message`.

    It has its own session: Ctrl-C in the terminal reaches only rank 0, which ends the others.
    """
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", ENTRY, "tvf.distributed.ranks"],
        stdin=subprocess.PIPE,
        env=environment,
        text=True,
        start_new_session=True,
    )
    assert process.stdin
    path = [os.path.abspath(folder) for folder in sys.path]
    with suppress(BrokenPipeError):  # if it has already ended, start_ranks notices
        print(json.dumps(path), json.dumps(message), sep="\n", file=process.stdin, flush=True)
    return process


def _require_all(ranks: Ranks) -> None:
    """Raise RuntimeError if a rank has failed."""
    if lost := _describe_lost(ranks):
        raise RuntimeError(lost)


def _describe_lost(ranks: Ranks, wait: float = 0) -> str | None:
    """How a rank failed; None if none fails within `wait` seconds."""
    deadline = time.monotonic() + wait
    while True:
        for rank, process in ranks.items():
            if code := process.poll():
                return f"rank {rank} of the job {_describe_exit(code)}"
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.02)


def _describe_exit(code: int) -> str:
    if code >= 0:
        return f"exited with code {code}"
    killed = f"was killed by {signal.Signals(-code).name}"
    if code == -signal.SIGKILL:
        return f"{killed}, as the system does when memory runs out"
    return killed


def _exit_if_lost(ranks: Ranks, over: threading.Event) -> None:
    """Exit this process if a rank is lost and the main thread does not notice."""
    while not over.wait(0.5):
        if lost := _describe_lost(ranks):
            if not over.wait(PATIENCE):
                log.error("%s. Ending the job.", lost)
                logging.shutdown()
                os._exit(1)
            return


def _await_end(ranks: Ranks) -> None:
    """Wait for the ranks, which are about to return."""
    deadline = time.monotonic() + PATIENCE
    for rank, process in ranks.items():
        try:
            process.wait(max(0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            log.warning("rank %d of the job did not exit by itself. Stopping it.", rank)


def _stop(ranks: Ranks) -> None:
    """End all ranks that are still running; they write no files."""
    for process in ranks.values():
        process.kill()
    for process in ranks.values():
        process.wait()
        assert process.stdin
        with suppress(BrokenPipeError):
            process.stdin.close()


def _call(rank: int, message: Mapping[str, Any]) -> None:
    """Import the function that `message` names, report that this rank is ready, and call it."""
    module, _, name = message["function"].partition(":")
    function = getattr(importlib.import_module(module), name)
    from torch import distributed
    from torch.distributed import TCPStore  # type: ignore[reportPrivateImportUsage]

    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    store.set(f"ready/{rank}", "")
    function(**message["arguments"])
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _end_with_rank_0(parent: int) -> None:
    """Make this process end when rank 0 does."""
    if sys.platform == "linux":
        die_with_parent(parent)
    else:  # standard input closes only when rank 0 ends
        threading.Thread(target=lambda: (sys.stdin.read(), os._exit(1)), daemon=True).start()
