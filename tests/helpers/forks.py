"""Run commands in their own processes without waiting for imports, by forking one server process.

A fork has what a command started in a shell has: its own arguments, folder, environment, streams
and session, and an interpreter that exits normally. The workers of a sweep, which joblib would
start as new Python processes, are forks as well: children of the sweep's process, made before its
command begins. Forks do not show that the imports work, nor that nothing depends on the order of
sets of strings, because they share one hash seed. Tests of these have to start Python.
"""

import atexit
import contextlib
import fcntl
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[2]
IMPORTED = (
    "tvf.cli.commands",
    "tvf.job",
    "tvf.data",
    "tvf.training",
    "timm",
    "scipy.stats",
    "tvf.report.charts",
    "tvf.report",
    "joblib",
)
REQUEST_BYTES = 1 << 20
WORKERS = 4  # of a sweep that are forks, twice what two cores use, as one may be killed


class Process:
    """A forked process with the interface of subprocess.Popen."""

    def __init__(self, report: int, output: int | None) -> None:
        self.returncode: int | None = None
        self._report, self._output, self._said = os.fdopen(report, "rb"), output, b""
        self.pid = int(self._report.readline())

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._report], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            with self._report:
                self.returncode = int(self._report.readline())
        return self.returncode

    def read_line(self) -> str:
        """Return the next line that the process prints."""
        assert self._output is not None
        line = b""
        while not line.endswith(b"\n") and (byte := os.read(self._output, 1)):
            line += byte
        self._said += line
        return line.decode()

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """Wait for the process and all others that hold its output stream to end.

        Returns what they printed, stderr included.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._output is not None:
            left = None if deadline is None else max(0, deadline - time.monotonic())
            if not select.select([self._output], [], [], left)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0, self._said)
            if chunk := os.read(self._output, 65536):
                self._said += chunk
            else:
                os.close(self._output)
                self._output = None
        self.wait(None if deadline is None else max(0, deadline - time.monotonic()))
        return self._said.decode(), None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def train(*arguments: str, cwd: Path, terminal: int | None = None, **environment: str) -> Process:
    """`python train.py ARGUMENTS`, with `environment` added to this process's variables."""
    script = str(ROOT / "train.py")
    return _fork({"script": script, "argv": [script, *arguments]}, cwd, terminal, environment)


def tvf(*arguments: str, cwd: Path, **environment: str) -> Process:
    """`tvf ARGUMENTS`, as the installed command runs it."""
    return python(
        "import sys; from tvf.cli import main; sys.argv[0] = 'tvf'; main()",
        *arguments,
        cwd=cwd,
        **environment,
    )


def python(code: str, *arguments: str, cwd: Path, **environment: str) -> Process:
    """`python -c CODE ARGUMENTS`."""
    return _fork({"code": code, "argv": ["-c", *arguments]}, cwd, None, environment)


def _fork(
    request: dict[str, Any], cwd: Path, terminal: int | None, environment: dict[str, str]
) -> Process:
    request |= {"cwd": str(cwd), "environment": os.environ | environment}
    nothing, output = os.open(os.devnull, os.O_RDONLY), None
    streams = [nothing, terminal, terminal]
    if terminal is None:
        output, streams[1] = os.pipe()
        streams[2] = streams[1]
    report, reporting = os.pipe()
    message = json.dumps(request).encode()
    assert len(message) < REQUEST_BYTES
    socket.send_fds(_server()[0], [message], [*streams, reporting])
    for descriptor in {nothing, reporting, *([] if terminal is not None else streams[1:])}:
        os.close(descriptor)
    return Process(report, output)


@cache
def _server() -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """Start the process that forks, which ends with this one; return the socket to it as well."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        command = [sys.executable, __file__, str(theirs.fileno())]
        server = subprocess.Popen(command, cwd=ROOT, pass_fds=[theirs.fileno()])
    atexit.register(server.wait)
    atexit.register(ours.close)  # runs before the wait
    return ours, server


def _serve(asked: socket.socket) -> dict[str, Any]:
    """Fork for each request until the socket closes.

    Only the forks return, each with its request.
    """
    children: dict[int, int] = {}
    while True:
        ready = select.select([asked], [], [], 0.02 if children else None)[0]
        for child in [*children]:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                with open(children.pop(child), "w") as report, contextlib.suppress(BrokenPipeError):
                    print(os.waitstatus_to_exitcode(status), file=report, flush=True)
        if not ready:
            continue
        message, files, _, _ = socket.recv_fds(asked, REQUEST_BYTES, 4)
        if not message:
            for child in children:
                os.kill(child, signal.SIGKILL)
            os._exit(0)
        child = os.fork()
        if child == 0:
            for number, file in enumerate(files[:3]):
                os.dup2(file, number)
            for descriptor in {*files, *children.values()}:
                os.close(descriptor)
            asked.close()
            return json.loads(message)
        for descriptor in set(files[:3]):
            os.close(descriptor)
        children[child] = files[3]
        os.write(files[3], f"{child}\n".encode())


def _become(request: dict[str, Any]) -> None:
    """Become the process that the request describes."""
    os.setsid()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=stream.isatty() or stream is sys.stderr)  # type: ignore[union-attr]
    sys.argv = request["argv"]
    more = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:1] = [str(ROOT) if "script" in request else "", *filter(None, more)]
    if {"-m", "resume", "confirm"} & {*sys.argv} and "hydra/launcher=basic" not in sys.argv:
        _fork_workers()
    if "script" in request:
        runpy.run_path(request["script"], run_name="__main__")
    else:
        sys.modules["__main__"] = module = ModuleType("__main__")
        exec(request["code"], module.__dict__)


def _fork_workers() -> None:
    """Fork processes that wait until joblib starts a worker. When they are used up, it starts one.

    Only the forks that become workers return, when these are done.
    """
    from joblib.externals.loky.backend import fork_exec

    start, waiting = fork_exec.fork_exec, list[tuple[int, socket.socket]]()

    def start_worker(command: list[str], keep: list[int], env: dict[str, str] | None = None) -> int:
        while waiting:
            child, asked = waiting.pop()
            request = {"argv": command[2:], "keep": keep, "environment": os.environ | (env or {})}
            with asked, contextlib.suppress(OSError):  # it was killed, with its process group
                socket.send_fds(asked, [json.dumps(request).encode()], [0, 1, 2, *keep])
                return child
        return start(command, keep, env)

    for _ in range(WORKERS):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        child = os.fork()
        if child == 0:
            for _, asked in [*waiting, (0, ours)]:
                asked.close()
            _work(theirs)
        theirs.close()
        waiting.append((child, ours))
    fork_exec.fork_exec = start_worker


def _work(asked: socket.socket) -> None:
    """Wait for a request of `start_worker`, then run its module and exit."""
    interrupt = signal.signal(signal.SIGINT, signal.SIG_DFL)
    message, files, _, _ = socket.recv_fds(asked, REQUEST_BYTES, 16)
    if not message:  # no worker was needed
        os._exit(0)
    asked.close()
    signal.signal(signal.SIGINT, interrupt)
    request = json.loads(message)
    copies = [fcntl.fcntl(file, fcntl.F_DUPFD, 1000) for file in files]  # out of the way
    for file in files:
        os.close(file)
    for copy, number in zip(copies, [0, 1, 2, *request["keep"]], strict=True):
        os.dup2(copy, number)
        os.close(copy)
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = request["argv"]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    # timm would import wandb, which creates folders when imported: the first fork to end would
    # remove them for all others.
    sys.modules["wandb"] = None  # type: ignore[assignment]
    for module in IMPORTED:
        importlib.import_module(module)
    del sys.modules["wandb"]
    sys.path[0] = ""
    gc.collect()
    gc.freeze()  # or every fork would walk all that was imported, and copy its memory
    _become(_serve(socket.socket(fileno=int(sys.argv[1]))))
