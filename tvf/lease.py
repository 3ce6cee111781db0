"""Leases: claims that hold on shared disks, where the system's file locks may not cross machines.

A lease is a small file that names its holder. It is created only where there is none, touched every
HEARTBEAT seconds while it is held, and removed at the end. It is taken over at once from a process
of this machine that has ended, and from one elsewhere if it has not been touched for EXPIRY
seconds. A holder that was stopped for longer finds out before it writes: see `Lease.check`.
"""

import errno
import json
import math
import os
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

from tvf.owners import Owner, has_dead_writer, is_temporary, temporary_beside, this_process

HEARTBEAT = 10.0  # seconds
EXPIRY = 60.0  # seconds; several heartbeats, because one may take long on a busy file server
POLL = 0.05  # seconds


@dataclass(frozen=True)
class Holder:
    """What a lease's file says: its holder, a token of this claim, and when it was last touched.

    The owner of a file that is being written, or was when its machine lost power, is not known.
    """

    owner: Owner | None
    token: str
    touched: int  # in nanoseconds, by the clock of the file system

    def __str__(self) -> str:
        return "an unknown process" if self.owner is None else str(self.owner)

    def lives(self) -> bool | None:
        """Whether the holder runs; None if only its heartbeats can tell."""
        return None if self.owner is None else self.owner.lives()


class LeaseBusy(Exception):
    """Another process has the lease."""

    def __init__(self, path: Path, holder: Holder) -> None:
        super().__init__(f"{path} is held by {holder}")
        self.holder = holder


class LeaseLost(Exception):
    """Another process has taken over the lease, because this one stopped for too long."""

    def __init__(self, path: Path, holder: Holder | None) -> None:
        super().__init__(f"{path} was taken over by {holder or 'a process that has ended'}")
        self.holder = holder


class Lease:
    """A claim on the file `path`, which is no one else's file. For a context, or until `release`.

    Ends with its process, and does not pass to a fork of it.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._token = path, ""

    def __enter__(self) -> "Lease":
        self.acquire()
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    @property
    def held(self) -> bool:
        """Whether this process has acquired it and not released it."""
        return self in _heartbeats.leases

    def acquire(self, timeout: float = math.inf, *, certain: bool = False) -> None:
        """Wait for the lease at most `timeout` seconds; raises LeaseBusy.

        If `certain`, waits longer until the holder shows that it lives: on another machine, until
        it touches its lease. Raises OSError if the file cannot be written.
        """
        begun, seen, expires, touched = time.monotonic(), None, math.inf, False
        while not self._create():
            holder = _read(self.path)
            if holder is None:  # released just now
                time.sleep(POLL / 50)
                continue
            lives = holder.lives()
            if holder != seen and lives is None:
                touched = seen is not None
                seen, expires = holder, time.monotonic() + EXPIRY - _age(self.path, holder.touched)
            now = time.monotonic()
            if lives is False or (lives is None and now >= expires):
                self._remove(holder)
            elif now - begun >= timeout and (lives or touched or not certain):
                raise LeaseBusy(self.path, holder)
            else:
                time.sleep(POLL)

    def release(self) -> None:
        """End the claim, if there is one."""
        if not self.held:
            return
        _heartbeats.remove(self)
        with suppress(OSError):
            if self._is_ours():
                self.path.unlink()

    def check(self) -> None:
        """Raise LeaseLost if another process has taken over the lease."""
        for _ in range(3):  # a process that is mistaken about it puts it back
            if self._is_ours():
                return
            time.sleep(POLL)
        raise LeaseLost(self.path, _read(self.path))

    def beat(self) -> None:
        """Touch the file, if it is still this lease's."""
        with suppress(OSError):  # the next one may succeed
            if self._is_ours():
                os.utime(self.path)

    def _is_ours(self) -> bool:
        holder = _read(self.path)
        return holder is not None and holder.token == self._token

    def _create(self) -> bool:
        """Create the file; return False if there is one."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        try:
            file = os.open(self.path, flags, 0o666)
        except FileExistsError:
            return False
        except FileNotFoundError:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return False
        try:
            token = uuid4().hex
            with open(file, "w") as record:
                json.dump({**asdict(this_process()), "token": token}, record)
            self._token = token
            _heartbeats.add(self)
        except BaseException as error:
            self.path.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno is not None:
                error.filename = str(self.path)  # the error for a full disk has no file name
            raise
        return True

    def _remove(self, holder: Holder) -> None:
        """Remove the file that `holder` left; of several processes, one succeeds."""
        aside = temporary_beside(self.path)
        try:
            self.path.rename(aside)
        except FileNotFoundError:
            return
        try:
            if _read(aside) != holder:  # another process was faster, or the holder has woken up
                with suppress(OSError):
                    os.link(aside, self.path)
        finally:
            aside.unlink(missing_ok=True)


def lease_holder(path: Path) -> Holder | None:
    """Return who holds the lease `path`; None if it is free or can be taken over."""
    holder = _read(path)
    if holder is None:
        return None
    lives = holder.lives()
    return holder if lives or (lives is None and _age(path, holder.touched) < EXPIRY) else None


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files in `folder` of processes that were killed while they wrote them.

    Those of other machines and of earlier versions count as left over after EXPIRY seconds.
    """
    for path in folder.glob(".*"):
        if is_temporary(path.name):
            with suppress(FileNotFoundError):
                if has_dead_writer(path.name) or _age(path, path.stat().st_mtime_ns) >= EXPIRY:
                    path.unlink()


class _Heartbeats:
    """The leases that this process holds, and the thread that touches them while there are any."""

    def __init__(self) -> None:
        self.leases = set[Lease]()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def add(self, lease: Lease) -> None:
        with self._changed:
            self.leases.add(lease)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="heartbeats", daemon=True)
                self._thread.start()

    def remove(self, lease: Lease) -> None:
        """Renew this lease no more; the last one ends the thread."""
        with self._changed:
            self.leases.discard(lease)
            thread = None if self.leases else self._thread
            if thread is not None:
                self._thread = None
                self._changed.notify_all()
        if thread is not None:
            thread.join()  # a process with threads should not fork

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._thread is not threading.current_thread():
                    return
                if self._changed.wait(HEARTBEAT):
                    continue
                leases = [*self.leases]
            for lease in leases:
                lease.beat()


_heartbeats = _Heartbeats()


def _forget() -> None:
    """In a fork, which has neither the thread nor the leases."""
    global _heartbeats
    _heartbeats = _Heartbeats()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _read(path: Path) -> Holder | None:
    """Read a lease's file; None if there is none. Opening it makes a network disk look anew."""
    try:
        with open(path, "rb") as file:
            content, touched = file.read(), os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ESTALE:  # replaced meanwhile, by another machine
            return None
        raise
    try:
        record = json.loads(content)
        token = str(record.pop("token"))
        return Holder(Owner(**record), token, touched)
    except (ValueError, TypeError, KeyError, AttributeError):
        return Holder(None, "", touched)


def _age(path: Path, touched: int) -> float:
    """How many seconds ago a file in the folder of `path` was touched.

    By the clock that dates the files there, which may be a server's, or this machine's if the
    folder cannot be written.
    """
    probe, now = temporary_beside(path.with_name("clock")), time.time()
    with suppress(OSError):
        try:
            probe.touch(exist_ok=False)
            os.utime(probe)
            now = probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)
    return now - touched / 1e9
