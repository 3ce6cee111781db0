"""Which process is which, also across machines that share a disk.

A process id is unique neither among machines nor among containers, and it is used again after its
process has ended. An `Owner` therefore also has the machine's boot and the process's start.
"""

import os
import re
import socket
import sys
import uuid
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from hashlib import blake2b
from pathlib import Path

_TEMPORARY = re.compile(r"\..+\.(?:(?P<machine>[0-9a-f]{16})-(?P<pid>\d+)-)?[0-9a-f]{16,32}")


@dataclass(frozen=True)
class Owner:
    """A process.

    `machine` stands for what shares process ids: one boot of one machine, or a container on it.
    `start` is when the process started, by the machine's own count.
    """

    host: str
    pid: int
    machine: str
    start: float | None

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    def lives(self) -> bool | None:
        """Whether the process runs; None if it belongs to another machine or container."""
        if self.machine != _machine():
            return None
        try:
            return _start_of(self.pid) in (self.start, None) or self.start is None
        except ProcessLookupError:
            return False


def this_process() -> Owner:
    """This process."""
    return _owner(os.getpid())  # another one after a fork


def temporary_beside(path: Path) -> Path:
    """A new name for a temporary file in the folder of `path`, which says whose it is."""
    token = uuid.uuid4().hex[:16]
    return path.with_name(f".{path.name}.{_machine()}-{os.getpid()}-{token}")


def is_temporary(name: str) -> bool:
    """Whether a file's name is one that `temporary_beside` gives, or gave in earlier versions."""
    return _TEMPORARY.fullmatch(name) is not None


def has_dead_writer(name: str) -> bool:
    """Whether a process of this machine gave this name to a temporary file and has ended."""
    match = _TEMPORARY.fullmatch(name)
    if match is None or match["machine"] != _machine():
        return False
    try:
        _start_of(int(match["pid"]))
    except ProcessLookupError:
        return True
    return False


@lru_cache(1)
def _owner(pid: int) -> Owner:
    return Owner(socket.gethostname(), pid, _machine(), _start_of(pid))


@cache
def _machine() -> str:
    """Sixteen hex digits for what shares process ids with this process."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:  # not on Linux
        boot = f"{socket.gethostname()} {uuid.getnode():x}"
    container = 0
    with suppress(OSError):
        container = os.stat("/proc/self/ns/pid").st_ino
    return blake2b(f"{boot} {container}".encode(), digest_size=8).hexdigest()


def _start_of(pid: int) -> float | None:
    """When a process of this machine started; None if the system does not say.

    Raises ProcessLookupError if there is none, or only one that has ended and not been waited for.
    """
    if sys.platform != "linux":
        return _start_by_psutil(pid)
    with suppress(PermissionError):
        os.kill(pid, 0)
    try:
        # The name of the program, in parentheses, may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:  # hidden from this user, or it has ended just now
        return None
    if fields[0] in (b"Z", b"X"):
        raise ProcessLookupError(pid)
    return float(fields[19])  # in ticks since the boot


def _start_by_psutil(pid: int) -> float | None:
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            raise ProcessLookupError(pid)
        return round(process.create_time())
    except psutil.NoSuchProcess:
        raise ProcessLookupError(pid) from None
    except psutil.Error:
        return None
