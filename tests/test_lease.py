"""Leases: one holder at a time, on whatever machine, and what happens when it dies or stops."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from helpers import IMPORTABLE
from helpers.elsewhere import beating, claim_elsewhere, grow_old
from tvf import lease as leases
from tvf import owners
from tvf.files import write_whole
from tvf.lease import Lease, LeaseBusy, LeaseLost, lease_holder, remove_leftovers
from tvf.owners import temporary_beside, this_process


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(leases, "_heartbeats", leases._Heartbeats())  # not those of earlier tests
    return tmp_path / "folder" / ".lease"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "HEARTBEAT", 0.05)
    monkeypatch.setattr(leases, "EXPIRY", 0.6)


def _start(code: str, path: Path) -> "subprocess.Popen[str]":
    """A process that runs `code`, in which `lease` is a lease on `path`."""
    prelude = "import os, sys, time; from pathlib import Path; from tvf.lease import Lease\n"
    prelude += "lease = Lease(Path(sys.argv[1]))\n"
    environment = os.environ | {"PYTHONPATH": IMPORTABLE}
    return subprocess.Popen(
        [sys.executable, "-c", prelude + code, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )


@contextmanager
def _held_by_a_process(path: Path) -> Iterator["subprocess.Popen[str]"]:
    holder = _start("lease.acquire(); print('held', flush=True); time.sleep(60)", path)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    try:
        yield holder
    finally:
        holder.kill()
        holder.communicate()


def test_one_holds_it_at_a_time_and_the_file_says_who(path: Path) -> None:
    first, second = Lease(path), Lease(path)
    first.acquire()
    with pytest.raises(LeaseBusy, match=f"process {os.getpid()} on"):
        second.acquire(timeout=0)
    assert first.held and not second.held
    first.check()
    holder = lease_holder(path)
    assert holder is not None and holder.owner == this_process()
    second.release()  # which it does not hold
    assert path.exists()
    first.release()
    assert not first.held and not path.exists() and lease_holder(path) is None
    with second:
        assert second.held


def test_it_waits_for_a_live_process_however_long_that_is_silent(path: Path, quick: None) -> None:
    with _held_by_a_process(path) as holder:
        os.kill(holder.pid, signal.SIGSTOP)
        grow_old(path, 3600)
        with pytest.raises(LeaseBusy, match=f"process {holder.pid} on"):
            Lease(path).acquire(timeout=0.1)
        assert lease_holder(path) is not None


def test_a_process_that_was_killed_here_is_succeeded_at_once(path: Path) -> None:
    with _held_by_a_process(path) as holder:
        assert lease_holder(path) is not None
        holder.kill()
        os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # it is not waited for yet
        begun = time.monotonic()
        assert lease_holder(path) is None
        Lease(path).acquire()
        assert time.monotonic() - begun < 1


def test_another_process_with_the_number_of_a_dead_one_is_not_the_holder(path: Path) -> None:
    own = this_process()
    assert own.start is not None
    record = {"host": own.host, "pid": own.pid, "machine": own.machine}
    claim_elsewhere(path, **record, start=own.start - 1)
    assert lease_holder(path) is None
    Lease(path).acquire(timeout=0)


def test_a_holder_elsewhere_keeps_it_until_it_has_not_been_touched_for_long(path: Path) -> None:
    claim_elsewhere(path, age=leases.EXPIRY - 5)
    with pytest.raises(LeaseBusy, match="process 7 on n2"):
        Lease(path).acquire(timeout=0)
    assert lease_holder(path) is not None
    grow_old(path, leases.EXPIRY + 1)
    assert lease_holder(path) is None
    lease = Lease(path)
    lease.acquire(timeout=0)
    assert lease.held and [file.name for file in path.parent.iterdir()] == [".lease"]


@pytest.mark.slow
@pytest.mark.parametrize("hours", [-1, 1])
def test_clocks_that_differ_do_not_matter(
    path: Path, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    claim_elsewhere(path)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 3600 * hours)
    assert lease_holder(path) is not None
    with pytest.raises(LeaseBusy):
        Lease(path).acquire(timeout=0)


def test_waiting_ends_when_the_holder_elsewhere_falls_silent(path: Path, quick: None) -> None:
    claim_elsewhere(path)
    ends: list[float] = []

    def wait() -> None:
        Lease(path).acquire()
        ends.append(time.monotonic())

    thread = threading.Thread(target=wait)
    with beating(path):
        thread.start()
        time.sleep(0.8)
        assert not ends
    silent = time.monotonic()
    thread.join()
    assert 0.4 < ends[0] - silent < 5


def test_to_be_certain_it_waits_for_a_sign_of_life_from_elsewhere(path: Path, quick: None) -> None:
    claim_elsewhere(path)
    with beating(path), pytest.raises(LeaseBusy):
        Lease(path).acquire(timeout=0, certain=True)
    claim_elsewhere(path, age=0.3)
    begun = time.monotonic()
    Lease(path).acquire(timeout=0, certain=True)
    assert 0.2 < time.monotonic() - begun < 0.6


def test_it_is_touched_while_the_process_computes(path: Path, quick: None) -> None:
    with Lease(path):
        grow_old(path, 3600)
        begun = time.monotonic()
        while time.time() - path.stat().st_mtime > 60 and time.monotonic() - begun < 5:
            sum(range(10_000))
        assert time.time() - path.stat().st_mtime < 60


def test_a_holder_that_was_succeeded_notices_and_leaves_the_file_alone(
    path: Path, quick: None
) -> None:
    lease = Lease(path)
    lease.acquire()
    claim_elsewhere(path, age=0.3)
    with pytest.raises(LeaseLost, match="taken over by process 7 on n2"):
        lease.check()
    before = path.stat().st_mtime_ns
    time.sleep(0.2)  # several heartbeats
    assert path.stat().st_mtime_ns == before
    lease.release()
    assert json.loads(path.read_text())["token"] == "theirs"
    path.unlink()
    with pytest.raises(LeaseLost, match="a process that has ended"):
        lease.check()


def test_a_holder_that_wakes_up_while_it_is_removed_keeps_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim_elsewhere(path, age=3600)
    rename = Path.rename

    def wake_up_first(source: Path, target: Path) -> Path:
        os.utime(source)
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", wake_up_first)
    with pytest.raises(LeaseBusy):
        Lease(path).acquire(timeout=0)
    assert json.loads(path.read_text())["token"] == "theirs"


def test_a_fork_holds_nothing_and_can_claim_for_itself(path: Path) -> None:
    with Lease(path) as lease:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                lease.release()
                other = Lease(path.with_name("other"))
                other.acquire(timeout=0)
                owner = lease_holder(other.path)
                assert not lease.held and owner and owner.owner == this_process()
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        lease.check()
    assert lease_holder(path.with_name("other")) is None  # its process has ended


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"token": "a", "pid": 1}'])
def test_a_file_without_a_record_is_a_claim_until_it_expires(path: Path, content: str) -> None:
    """As between creating and writing it, or after its machine lost power."""
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(LeaseBusy, match="an unknown process"):
        Lease(path).acquire(timeout=0)
    grow_old(path, leases.EXPIRY + 1)
    Lease(path).acquire(timeout=0)


def test_of_several_processes_one_at_a_time_takes_over_and_goes_on(path: Path) -> None:
    """None of their additions to a number in a file is lost."""
    claim_elsewhere(path, age=3600)
    number = path.with_name("number")
    number.write_text("0")
    add = """
number = Path(sys.argv[1]).with_name("number")
for _ in range(50):
    with lease:
        number.write_text(str(int(number.read_text()) + 1))
        lease.check()
"""
    processes = [_start(add, path) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    for process in processes:
        process.communicate()
    assert number.read_text() == "150"
    assert [file.name for file in path.parent.iterdir()] == ["number"]


def test_a_full_disk_leaves_no_claim(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(record: object, file: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(json, "dump", fail)
    with pytest.raises(OSError, match="No space left") as raised:
        Lease(path).acquire()
    assert raised.value.filename == str(path) and not path.exists()


def test_who_holds_it_is_known_where_nothing_can_be_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    claim_elsewhere(path)
    monkeypatch.setattr(Path, "touch", fail)
    assert lease_holder(path) is not None
    grow_old(path, leases.EXPIRY + 1)
    assert lease_holder(path) is None


def test_temporary_files_of_others_stay_until_they_are_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "last.new"
    ours = temporary_beside(target)
    dead = _start(
        "from tvf.owners import temporary_beside; print(temporary_beside(lease.path))", target
    )
    ended = Path(dead.communicate()[0].strip())
    with monkeypatch.context() as patch:
        patch.setattr(owners, "_machine", lambda: 16 * "0")
        fresh, old = temporary_beside(target), temporary_beside(target)
    earlier = [tmp_path / f".last.new.{number:032x}" for number in (1, 2)]  # of earlier versions
    others = [tmp_path / ".lease", tmp_path / ".hydra", target]
    for file in (ours, ended, fresh, old, *earlier, *others):
        file.write_text("half")
    grow_old(old, leases.EXPIRY + 1)
    grow_old(earlier[1], leases.EXPIRY + 1)
    remove_leftovers(tmp_path)
    assert {*tmp_path.iterdir()} == {ours, fresh, earlier[0], *others}


def test_a_file_is_written_under_its_writers_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = []
    monkeypatch.setattr(os, "fsync", lambda file: names.extend(os.listdir(tmp_path)))
    write_whole(tmp_path / "status.json", b"{}")
    (name,) = names
    assert owners.is_temporary(name) and f"-{os.getpid()}-" in name
    assert os.listdir(tmp_path) == ["status.json"]
