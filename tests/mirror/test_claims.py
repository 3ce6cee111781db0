"""Jobs in a mirror: one holder at a time, and always a whole set of files."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tvf.files import write_whole
from tvf.mirror import claims, timing
from tvf.mirror.agent import Agent
from tvf.mirror.claims import Busy, Clock, MirroredJob, Taken
from tvf.mirror.snapshot import open_snapshot
from tvf.mirror.stores import FolderStore, ObjectStore, Store, Unreachable
from tvf.owners import this_process

NAME = "fine-tuning-0.5"


@pytest.fixture(params=["folder", "objects"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return FolderStore(tmp_path / "mirror")
    return ObjectStore(f"memory://{uuid4().hex}")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(timing, "EXPIRY", 0.3)
    monkeypatch.setattr(timing, "HEARTBEAT", 0.0)
    monkeypatch.setattr(timing, "POLL", 0.02)
    yield


class Machine:
    """A machine with a folder of its own; only one at a time is this process's."""

    def __init__(self, store: Store, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self._patch = folder, patch
        self._owner = replace(this_process(), host=folder.name, machine=folder.name)
        self.job = MirroredJob(store, Clock(store), NAME, folder)

    def __enter__(self) -> MirroredJob:
        self._patch.setattr(claims, "this_process", lambda: self._owner)
        return self.job

    def __exit__(self, *error: object) -> None:
        self._patch.undo()

    def write(self, **contents: str) -> None:
        for name, content in contents.items():
            path = self.folder / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, content.encode())

    def read(self) -> dict[str, str]:
        paths = (path for path in self.folder.rglob("[!.]*") if path.is_file())
        return {path.name: path.read_text() for path in paths}


@pytest.fixture
def machines(store: Store, tmp_path: Path, quick: None) -> Iterator[tuple[Machine, Machine]]:
    with pytest.MonkeyPatch.context() as patch:
        yield Machine(store, tmp_path / "a", patch), Machine(store, tmp_path / "b", patch)


def test_of_many_that_create_an_object_one_succeeds(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "mirror")
    with ThreadPoolExecutor(16) as pool:
        for number in range(10):
            create = [pool.submit(store.create, f"o{number}", b"%d" % i) for i in range(16)]
            won = [i for i, made in enumerate(create) if made.result()]
            assert len(won) == 1 and store.read(f"o{number}") == b"%d" % won[0]


def test_a_store_that_ignores_conditions_is_refused(tmp_path: Path) -> None:
    class Careless(FolderStore):
        def create(self, name: str, content: bytes) -> bool:
            self.write(name, content)
            return True

    with pytest.raises(Unreachable, match="no conditional writes"):
        Clock(Careless(tmp_path))


def test_what_one_machine_leaves_another_gets(machines: tuple[Machine, Machine]) -> None:
    a, b = machines
    a.write(metrics="1", checkpoints__last="epoch 1", wandb__run="W&B's own")
    with a as job:
        job.settle(job.acquire())
        a.write(metrics="1 2", checkpoints__last="epoch 2")
        assert job.push() and not job.push()
        job.release()
    b.write(old="of an earlier attempt")
    with b as job:
        job.settle(job.acquire())
    assert b.read() == {"metrics": "1 2", "last": "epoch 2"}


def test_a_job_is_taken_over_after_the_expiry_alone(machines: tuple[Machine, Machine]) -> None:
    a, b = machines
    a.write(metrics="1")
    with a as job:
        job.settle(job.acquire())
    with b as job, pytest.raises(Busy):
        job.acquire()
    begun = time.monotonic()
    with b as job:
        job.settle(job.acquire(certain=True))  # no one touches the claim meanwhile
    assert time.monotonic() - begun > 0.1 and b.read() == {"metrics": "1"}
    a.write(metrics="1 2")
    with a as job, pytest.raises(Taken, match="on b"):
        job.push()  # it was stopped, and wakes up
    with a as job, pytest.raises(Taken):
        job.beat()
    with b as job:
        latest = job.latest()
        assert latest is not None and latest.owner.host == "b"
        assert latest.files.keys() == {"metrics"} and job.agrees(latest)


def test_a_holder_that_shows_it_lives_keeps_the_job(machines: tuple[Machine, Machine]) -> None:
    a, b = machines
    with a as job:
        job.acquire()
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(0.05):
            a.job.beat()

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with b as job, pytest.raises(Busy, match="on a"):
            job.acquire(certain=True)
    finally:
        ended.set()
        thread.join()


def test_which_files_are_newer(machines: tuple[Machine, Machine]) -> None:
    a, b = machines
    a.write(metrics="1")
    with a as job:
        job.settle(job.acquire())
        job.release()
        before = job.latest()
        assert before is not None and not job.is_newer(before)  # it had the job last
    a.write(metrics="1 2")
    with a as job:
        job.settle(job.acquire())
        job.release()
        latest = job.latest()
        assert latest is not None
    with b as job:
        assert job.is_newer(latest)
        b.write(**{"status.json": '{"state": "done"}', "summary.json": "{}"})
        assert not job.is_newer(latest) and job.is_newer(replace(latest, done=True))


def test_files_that_are_damaged_or_go_astray_are_not_taken(
    machines: tuple[Machine, Machine], store: Store
) -> None:
    a, b = machines
    a.write(metrics="1")
    with a as job:
        job.settle(job.acquire())
        job.release()
        latest = job.latest()
    assert latest is not None
    store.write(f"{NAME}/files/{latest.files['metrics']}", b"half of i")
    b.write(metrics="mine")
    with b as job:
        with pytest.raises(Unreachable, match="is damaged"):
            job.pull(latest)
        with pytest.raises(Unreachable, match="not the name"):
            job.pull(replace(latest, files={"../a/metrics": "0"}))
    assert b.read() == {"metrics": "mine"}


class _Silent:
    """A job's connection that ends at once."""

    def say(self, message: object) -> None:
        """Nobody listens."""

    def ends_within(self, seconds: float) -> bool:
        return True


def test_files_that_cannot_be_fetched_are_not_overwritten(
    machines: tuple[Machine, Machine], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = machines
    with one as job:
        job.settle(job.acquire())
        one.write(weights="one's")
        job.push()
        job.release()
    before = job.latest()

    def fail(*how: object) -> None:
        raise Unreachable("no answer")

    monkeypatch.setattr(type(store), "download", fail)
    monkeypatch.setattr("tvf.mirror.agent.time.sleep", lambda _: None)
    other.write(weights="another's")
    agent: Any = Agent(store, other.folder.parent)
    monkeypatch.setattr("tvf.mirror.agent.MirroredJob", lambda *_: other.job)
    with other as job:
        agent.claim(NAME, True, _Silent())
        latest = job.latest()
    assert before is not None and latest is not None
    assert latest.files == before.files and latest.number == before.number + 1


def test_a_snapshot_holds_files_that_belong_together(tmp_path: Path) -> None:
    ended = threading.Event()

    def train() -> None:
        for epoch in range(10_000):
            for name in ("checkpoint", "weights"):
                write_whole(tmp_path / name, b"%d" % epoch)
            if ended.wait(0.003):
                return

    thread = threading.Thread(target=train)
    thread.start()
    try:
        time.sleep(0.05)
        for _ in range(20):
            with open_snapshot(tmp_path) as snapshot:
                time.sleep(0.002)  # while it is uploaded
                found = {name: int(file.read()) for name, file in snapshot.files.items()}
            assert found["checkpoint"] - found["weights"] in (0, 1)
    finally:
        ended.set()
        thread.join()
