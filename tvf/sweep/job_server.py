"""A process that has imported what jobs need, and forks one for each command that it is given.

A worker of a cluster keeps one, because starting Python for each job takes longer than a short job
trains. Workers have threads of their own, so they cannot fork jobs themselves.
"""

import contextlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tvf.sweep.processes import GRACE_SECONDS, seconds_to_checkpoint

ENTRY = "from tvf.sweep.job_server import serve; serve()"
POLL_SECONDS = 0.1  # a worker is interrupted between system calls only


class JobServer:
    """The server as its worker sees it. It ends with the worker, and its job with it.

    `environment` is that of the first command: the import path is read from it.
    """

    def __init__(self, folder: str, environment: Mapping[str, str]) -> None:
        self.folder = folder
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            [sys.executable, "-c", ENTRY],
            cwd=folder,
            env={**environment},
            stdin=pipe,
            stdout=pipe,
            text=True,
            start_new_session=True,
        )

    def run(
        self,
        command: Sequence[str],
        backbone: str,
        environment: Mapping[str, str],
        gently: Callable[[], bool] = lambda: False,
    ) -> int:
        """Run `python -m tvf ARGUMENTS`, the `command`, and return its exit code.

        `backbone` is the `_target_` whose library is imported first. KeyboardInterrupt interrupts
        the command, or if `gently` then is true lets its job keep a checkpoint; it is raised when
        the command has ended. Raises RuntimeError if the server is killed.
        """
        assert self._process.stdin and self._process.stdout
        request = {"arguments": command[3:], "backbone": backbone, "environment": {**environment}}
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            self._wait(None)
            return int(self._process.stdout.readline())
        except (BrokenPipeError, ValueError):
            code = self._process.wait()
            raise RuntimeError(f"the process that forks jobs ended with code {code}") from None
        except KeyboardInterrupt:
            patience = GRACE_SECONDS + 1  # the command itself gives its job GRACE_SECONDS
            if gently():
                self._terminate_command()
                patience += seconds_to_checkpoint(environment)
            else:
                self._signal(signal.SIGINT)
            if not self._wait(patience):
                self._signal(signal.SIGKILL)
            self._process.stdout.readline()
            raise

    def is_alive(self) -> bool:
        """Whether the server can run another command."""
        return self._process.poll() is None

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _terminate_command(self) -> None:
        """Send SIGTERM to the command, which passes it to its job, and not to the server."""
        import psutil

        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self._process.pid).children():
                child.terminate()

    def _wait(self, seconds: float | None) -> bool:
        """Wait for an answer or the server's end; return whether there is one in `seconds`."""
        assert self._process.stdout
        deadline = None if seconds is None else time.monotonic() + seconds
        while not select.select([self._process.stdout], [], [], POLL_SECONDS)[0]:
            if deadline is not None and time.monotonic() > deadline:
                return False
        return True


def serve() -> None:
    """Run the command of each line of standard input, and answer with its exit code."""
    from tvf.distributed import die_with_parent
    from tvf.job import import_libraries

    worker, server = os.getppid(), os.getpid()
    die_with_parent(worker)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what commands print goes to the worker's log
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is for the command
    for line in sys.stdin:
        request = json.loads(line)
        import_libraries(request["backbone"])
        child = os.fork()
        if child == 0:
            die_with_parent(server)
            _run_and_exit(request)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


def _run_and_exit(request: dict[str, Any]) -> None:
    """Become the command that was asked for."""
    code: Any = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # Ray blocks it in workers
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.clear()
        os.environ.update(request["environment"])
        sys.argv = ["tvf", *request["arguments"]]
        runpy.run_module("tvf", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as error:
        code = error.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        # Not sys.exit: torch takes a second to shut down.
        os._exit(code if isinstance(code, int) else 1 if code else 0)
