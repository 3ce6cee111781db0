"""How a sweep's command starts the mirror's agent, and how its jobs claim themselves there."""

import json
import logging
import math
import os
import select
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tvf.errors import InputError
from tvf.lease import Holder, Lease, LeaseBusy, LeaseLost
from tvf.mirror import timing
from tvf.mirror.stores import Unreachable, check_mirror
from tvf.owners import Owner

log = logging.getLogger(__name__)

SOCKET = "TVF_MIRROR_SOCKET"  # environment variable, for the jobs of a sweep: its agent's
ENTRY = "from tvf.mirror.agent import main; main()"


class Mirror:
    """The agent of a sweep's mirror, as the command sees it that starts it.

    Raises InputError if the mirror cannot be used, and Unreachable later.
    """

    def __init__(self, url: str, folder: Path) -> None:
        check_mirror(url)
        self.url = url
        address = os.path.join(tempfile.mkdtemp(prefix="tvf-mirror-"), "agent")
        seconds = map(str, (timing.HEARTBEAT, timing.EXPIRY, timing.INTERVAL))
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            [sys.executable, "-c", ENTRY, url, str(folder.absolute()), address, *seconds],
            stdin=pipe,
            stdout=pipe,
            text=True,
            start_new_session=True,  # Ctrl-C is for the jobs
        )
        assert self._process.stdout
        try:
            said = json.loads(self._process.stdout.readline() or '{"error": "its process ended"}')
            if error := said.get("error"):
                raise InputError(error if said.get("input") else _cannot_be_used(url, error))
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.connect(address)
        except BaseException:
            self._end()
            raise
        self._answers = self._socket.makefile("r")
        os.environ[SOCKET] = address

    def ask(self, do: str, **arguments: Any) -> Any:
        """Ask the agent for one of its actions, and return its answer. Raises Unreachable."""
        try:
            self._socket.sendall(json.dumps({"do": do, **arguments}).encode() + b"\n")
            said = json.loads(self._answers.readline())
        except (OSError, ValueError) as error:
            raise Unreachable("the mirror's process has ended") from error
        if "error" in said:
            raise Unreachable(said["error"])
        return said["answer"]

    def close(self) -> None:
        """End the agent, after it has uploaded what ended jobs have left."""
        os.environ.pop(SOCKET, None)
        self._answers.close()
        self._socket.close()
        self._end()

    def _end(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


class MirroredLease(Lease):
    """A job's lease, on its folder and in the mirror of its sweep."""

    def __init__(self, path: Path, name: str, address: str) -> None:
        super().__init__(path)
        self._name, self._address = name, address
        self._connection: socket.socket | None = None

    def acquire(self, timeout: float = math.inf, *, certain: bool = False) -> None:
        """Like `Lease.acquire`; the job's files in the mirror are here if they are newer.

        Without an agent the job trains, and is not mirrored.
        """
        super().acquire(timeout, certain=certain)
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(self._address)
            request = {"claim": self._name, "certain": certain}
            connection.sendall(json.dumps(request).encode() + b"\n")
            said = _read_line(connection)
        except OSError:
            said = None
        except BaseException:
            connection.close()
            super().release()
            raise
        if said is not None and said["state"] == "held":
            self._connection = connection
            return
        connection.close()
        if said is None:
            log.warning("%s is not mirrored: the mirror's process has ended.", self._name)
        else:
            super().release()
            raise LeaseBusy(self.path, _holder(said))

    def check(self) -> None:
        """Raise LeaseLost if another process has taken over the job, here or in the mirror."""
        super().check()
        if self._connection is not None and select.select([self._connection], [], [], 0)[0]:
            said = _read_line(self._connection)
            self._close()
            if said is None:
                log.warning("%s is not mirrored further: the mirror's process ended.", self._name)
            else:
                raise LeaseLost(self.path, _holder(said))

    def release(self) -> None:
        """End the claim, if there is one; the agent uploads what is left."""
        super().release()
        self._close()

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def job_lease(path: Path, sweep: Path | None) -> Lease:
    """The lease of the job in whose folder `path` is, which is in the folder of a `sweep`."""
    address = os.environ.get(SOCKET)
    if address is None or sweep is None:
        return Lease(path)
    name = path.parent.absolute().relative_to(sweep.absolute()).as_posix()
    return MirroredLease(path, name, address)


def _read_line(connection: socket.socket) -> dict[str, Any] | None:
    """A line of JSON; None if the other side has ended."""
    line = b""
    while not line.endswith(b"\n"):
        if not (byte := connection.recv(1)):
            return None
        line += byte
    return json.loads(line)


def _holder(said: dict[str, Any]) -> Holder:
    return Holder(Owner(**said["owner"]), said["token"], 0)


def _cannot_be_used(url: str, error: str) -> str:
    check = "that it is a folder which can be written"
    if not url.startswith("file:"):
        check = "its bucket, the credentials and the network"
    return f"mirror={url} cannot be used: {error}. Check {check}, or leave it out."
