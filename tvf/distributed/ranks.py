"""The processes of a job that trains on several devices: one a device, started by the job's own, which is rank 0.

A rank calls a function that it is told of on its standard input, with the interpreter, the import path and the
environment of rank 0. It ends with rank 0, whatever ends that; and what ends it ends the job.
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

# A rank imports nothing from tvf before it knows where to import from. As an option of -c, for lists of processes.
ENTRY = "import json, sys; sys.path[:] = json.loads(sys.stdin.readline()); from tvf.distributed.ranks import serve; serve()"
HOST = "127.0.0.1"
PATIENCE = 10.0  # seconds that a process has to end by itself once another of the job is gone


@contextmanager
def start_ranks(count: int, function: str, arguments: Mapping[str, Any]) -> Iterator[None]:
    """In here this process is rank 0 of `count`, and the others call `function`, "module:name", with `arguments`.

    `arguments` are plain data, as JSON has it. In here Fabric's strategy `tvf.collectives.Ranks` joins the ranks into
    one process group. At the end the others are waited for, or stopped if this process fails. Then the environment is
    as before and the process group gone, so that another job may follow.

    Raises RuntimeError if a rank ends otherwise than by returning, which collectives over gloo notice. If PATIENCE
    seconds later nothing has been raised, because this process waits for a GPU that waits for the rank, it ends with
    code 1.
    """
    from torch import distributed
    from torch.distributed import TCPStore  # type: ignore[reportPrivateImportUsage]

    environment, fabric_log = {**os.environ}, logging.getLogger("lightning_fabric")
    level = fabric_log.level
    fabric_log.setLevel(logging.WARNING)  # it tells of each process group
    # A store that has its port already, unlike one whose port was free a moment ago; Fabric's will share its server.
    store = TCPStore(HOST, 0, count, is_master=True, wait_for_workers=False, multi_tenant=True)
    shared = {
        "NODE_RANK": "0",
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": HOST,
        "MASTER_PORT": str(store.port),
    }
    if (
        sys.platform == "linux"
    ):  # gloo would look for the address of the machine's name, which may have none
        shared["GLOO_SOCKET_IFNAME"] = environment.get("GLOO_SOCKET_IFNAME", "lo")
    message = {"parent": os.getpid(), "function": function, "arguments": dict(arguments)}
    ranks: dict[int, subprocess.Popen[str]] = {}
    over = threading.Event()
    try:
        for rank in range(1, count):
            ranks[rank] = _start(
                environment | shared | {"LOCAL_RANK": str(rank), "TQDM_DISABLE": "1"}, message
            )
        while not store.check([f"ready/{rank}" for rank in ranks]):
            if lost := _lost(ranks):
                raise RuntimeError(lost)
            time.sleep(0.02)
        threading.Thread(target=_watch, args=(ranks, over), daemon=True).start()
        os.environ.update(shared | {"LOCAL_RANK": "0"})
        try:
            yield
        except (
            RuntimeError
        ) as error:  # as collectives raise when a rank is gone, which may not quite have ended yet
            if lost := _lost(ranks, wait=2):
                raise RuntimeError(lost) from error
            raise
        _wait(ranks)
        if lost := _lost(ranks):
            raise RuntimeError(lost)
    finally:
        over.set()
        for process in ranks.values():
            process.terminate()
        for process in ranks.values():
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdin
            with suppress(BrokenPipeError):
                process.stdin.close()
        if distributed.is_initialized():
            distributed.destroy_process_group()
        for key in {*os.environ} - {*environment}:  # Fabric adds some, too
            del os.environ[key]
        os.environ.update(environment)
        fabric_log.setLevel(level)


def _start(environment: Mapping[str, str], message: Mapping[str, Any]) -> subprocess.Popen[str]:
    """A process that serves `message`. Ctrl-C in the terminal is for rank 0 alone, which ends the others."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", ENTRY, "tvf.distributed.ranks"],
        stdin=subprocess.PIPE,
        env=environment,
        text=True,
        start_new_session=True,
    )
    assert process.stdin
    path = [os.path.abspath(each) for each in sys.path]
    with suppress(BrokenPipeError):  # if it has ended already, whoever waits for it will see
        print(json.dumps(path), json.dumps(message), sep="\n", file=process.stdin, flush=True)
    return process


def _lost(ranks: Mapping[int, subprocess.Popen[str]], wait: float = 0) -> str | None:
    """How a rank ended that should not have; None if there is none within `wait` seconds."""
    deadline = time.monotonic() + wait
    while True:
        for rank, process in ranks.items():
            if code := process.poll():
                how = (
                    f"was killed by {signal.Signals(-code).name}"
                    if code < 0
                    else f"ended with code {code}"
                )
                more = (
                    ", as the system does when memory runs out" if code == -signal.SIGKILL else ""
                )
                return f"rank {rank} of the job {how}{more}"
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.02)


def _wait(ranks: Mapping[int, subprocess.Popen[str]]) -> None:
    """Let the ranks return, which are about to."""
    deadline = time.monotonic() + PATIENCE
    for rank, process in ranks.items():
        try:
            process.wait(max(0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            log.warning("rank %d of the job does not end by itself: it is stopped.", rank)


def _watch(ranks: Mapping[int, subprocess.Popen[str]], over: threading.Event) -> None:
    """End this process if a rank is lost and the main thread does not notice."""
    while not over.wait(0.5):
        if lost := _lost(ranks):
            if not over.wait(PATIENCE):
                log.error("%s: the job ends.", lost)
                logging.shutdown()
                os._exit(1)
            return


def serve() -> None:
    """Be a rank: read what to call from standard input, call it, and end."""
    message = json.loads(sys.stdin.readline())
    _end_with(message["parent"])
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    logging.disable(logging.WARNING)  # rank 0 tells of the job
    warnings.simplefilter("ignore")
    faulthandler.enable()
    rank, code = int(os.environ["LOCAL_RANK"]), 1
    try:
        module, _, name = message["function"].partition(":")
        function = getattr(importlib.import_module(module), name)
        from torch import distributed
        from torch.distributed import TCPStore  # type: ignore[reportPrivateImportUsage]

        store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
        store.set(f"ready/{rank}", "")
        function(**message["arguments"])
        if distributed.is_initialized():
            distributed.destroy_process_group()
        code = 0
    except (
        InputError
    ) as error:  # a mistake that rank 0 finds as well, and tells of before it ends this process
        time.sleep(6 * PATIENCE)
        log.error("rank %d: %s", rank, error)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        # Not sys.exit: it takes a second or two to put torch away, and rank 0 waits.
        os._exit(code)


def _end_with(parent: int) -> None:
    """Have this process end when rank 0 does."""
    if sys.platform == "linux":
        die_with_parent(parent)
    else:  # rank 0 never closes it while it lives
        threading.Thread(target=lambda: (sys.stdin.read(), os._exit(1)), daemon=True).start()


def die_with_parent(parent: int) -> None:
    """Have the system kill this process when its parent dies: else it would train on, unseen."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
