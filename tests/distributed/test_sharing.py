"""Jobs that wait until a GPU has time for them, with a fake nvidia-smi."""

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from helpers import forks
from helpers.smi import FakeSmi
from tvf.distributed import devices, sharing

Occupy = Callable[..., None]


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSmi:
    """The nvidia-smi of the PATH; and this process has no claim yet, and does not wait long."""
    fake = FakeSmi(tmp_path)
    monkeypatch.setenv("PATH", str(fake.folder))
    monkeypatch.setattr(devices, "_claimed", {})
    monkeypatch.setattr(sharing, "_begins", None)
    monkeypatch.setattr(sharing, "SAMPLES", 2)
    for name in ("SAMPLE_SECONDS", "PAUSE_SECONDS", "POLL_SECONDS"):
        monkeypatch.setattr(sharing, name, 0.01)
    return fake


@pytest.fixture
def occupy(tmp_path: Path) -> Iterator[Occupy]:
    """`occupy("u0")` takes places as another process would."""
    with ExitStack() as held:

        def take(*names: str) -> None:
            for name in names:
                held.enter_context(FileLock(devices.lock_path(name, tmp_path)))

        yield take


def test_first_places_are_taken_first_and_at_once(
    tmp_path: Path, smi: FakeSmi, occupy: Occupy, caplog: pytest.LogCaptureFixture
) -> None:
    occupy("u0", "u1")
    assert sharing.claim_place(["u0", "u1", "u2"], 3, "job", tmp_path) == 2
    assert sharing.claim_place(["u0", "u1", "u2"], 3, "another", tmp_path) == 2  # a process has one
    assert not caplog.text


def test_the_gpu_with_the_most_time_is_shared(
    tmp_path: Path, smi: FakeSmi, occupy: Occupy, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    smi.says(84, 99, 12)
    occupy("u0", "u1", "u2", "u2-1")
    assert sharing.claim_place(["u0", "u1", "u2"], 3, "job", tmp_path) == 2
    assert [*devices._claimed] == [8]
    assert caplog.messages == [
        "job waits until a GPU is less than 85 % busy, or one of its jobs ends.",
        "job begins on GPU 2, which is 12 % busy.",
    ]


def test_gpus_are_known_by_their_uuid_whatever_their_number(
    tmp_path: Path, smi: FakeSmi, occupy: Occupy, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    smi.says(99, 99, 50)
    occupy("U2")
    assert sharing.claim_place(["U2"], 2, "job", tmp_path) == 0
    assert "job begins on GPU 2, which is 50 % busy." in caplog.messages


def test_of_two_jobs_that_find_a_gpu_idle_at_once_one_waits_for_the_other(
    tmp_path: Path, smi: FakeSmi, occupy: Occupy, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, samples = FileLock(devices.lock_path("u0-2-begins", tmp_path)), list[int]()

    def usage() -> dict[str, tuple[str, float]]:
        samples.append(len(devices._claimed))
        if len(samples) == 2:
            other.acquire()
        elif len(samples) == 6:
            other.release()
        return {"u0": ("0", 10.0)}

    monkeypatch.setattr(sharing, "gpu_usage", usage)
    occupy("u0")
    assert sharing.claim_place(["u0"], 3, "job", tmp_path) == 0
    assert len(samples) >= 8 and not any(samples)
    assert [*devices._claimed] == [1]


@pytest.mark.parametrize(
    "percent, reason",
    [
        ("[N/A]", "nvidia-smi does not say how busy GPU u0 is"),
        (None, "nvidia-smi failed (Command "),
        ("missing", "nvidia-smi cannot be run (No such file or directory)"),
    ],
)
def test_without_a_known_utilisation_nothing_waits(
    percent: str | None,
    reason: str,
    tmp_path: Path,
    smi: FakeSmi,
    occupy: Occupy,
    caplog: pytest.LogCaptureFixture,
) -> None:
    occupy("u0", "u1")
    if percent == "missing":
        (smi.folder / "nvidia-smi").unlink()
    elif percent:
        smi.says(percent, 99)
    assert sharing.claim_place(["u0", "u1"], 2, "job", tmp_path) == 0
    assert [*devices._claimed] == [2]
    (message,) = caplog.messages
    assert message.startswith(f"job does not wait for its share of a GPU: {reason}")


def test_where_files_cannot_be_locked_nothing_waits(
    tmp_path: Path, smi: FakeSmi, caplog: pytest.LogCaptureFixture
) -> None:
    devices.lock_path("u0", tmp_path).mkdir()
    assert sharing.claim_place(["u0"], 1, "job", tmp_path) == 0
    assert "job does not wait for its share of a GPU: " in caplog.text


# `python -c JOB NAME SHARING` claims a place on GPU 0, and trains when there is a file NAME-trains.
JOB = """
import logging, sys, time
from pathlib import Path
from typing import Any
from tvf.distributed import sharing
from tvf.sweep import interruptible
sharing.SAMPLES, sharing.SAMPLE_SECONDS = 1, 0.02
sharing.PAUSE_SECONDS = sharing.POLL_SECONDS = 0.02
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
name, places = sys.argv[1:]
try:
    with interruptible():
        sharing.claim_place(["u0"], int(places), name, Path("."))
except KeyboardInterrupt:
    print(name, "interrupted")
    sys.exit(130)
print(name, "begins", flush=True)
while not Path(f"{name}-trains").exists():
    time.sleep(0.01)
sharing.training_begins()
print(name, "trains", flush=True)
time.sleep(60)
"""

WAITS = "less than 85 % busy, or one of its jobs ends."


class Job:
    """A process that trains on GPU 0."""

    def __init__(self, name: str, folder: Path, places: int = 3) -> None:
        self.name, self._folder = name, folder
        self.process = forks.python(JOB, name, str(places), cwd=folder)

    def says(self, line: str) -> None:
        """Check the next line that it prints."""
        assert self.process.read_line() == f"{self.name} {line}\n"

    def train(self) -> None:
        (self._folder / f"{self.name}-trains").touch()
        self.says("trains")

    def end(self, number: int = signal.SIGKILL) -> None:
        self.process.send_signal(number)
        self.process.wait(10)


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, smi: FakeSmi) -> Iterator[Callable]:
    """`start("a")` starts a job, which is killed at the end."""
    monkeypatch.setenv("PATH", f"{smi.folder}{os.pathsep}{os.environ['PATH']}")
    jobs: list[Job] = []

    def begin(name: str) -> Job:
        jobs.append(Job(name, tmp_path))
        return jobs[-1]

    yield begin
    for job in jobs:
        job.end()


@pytest.mark.slow
def test_jobs_share_a_gpu_one_after_another_while_it_is_not_busy(
    smi: FakeSmi, start: Callable[[str], Job]
) -> None:
    smi.says(7)
    first = start("first")
    first.says("begins")
    second = start("second")
    second.says(f"waits until its GPU is {WAITS}")
    time.sleep(0.5)  # as long as the first does not train, 7 % say nothing
    smi.says(97)
    first.train()
    second.says("waits: GPU 0 is 97 % busy.")
    time.sleep(0.3)
    smi.says(40)
    second.says("begins on GPU 0, which is 40 % busy.")
    second.says("begins")

    third = start("third")
    third.says(f"waits until its GPU is {WAITS}")
    time.sleep(0.3)  # the second does not train yet
    smi.says(61)
    second.train()
    third.says("begins on GPU 0, which is 61 % busy.")
    third.says("begins")


@pytest.mark.slow
def test_a_killed_job_frees_its_place(smi: FakeSmi, start: Callable[[str], Job]) -> None:
    smi.says(100)
    first, second = start("first"), None
    first.says("begins")
    second = start("second")
    second.says(f"waits until its GPU is {WAITS}")
    first.end()
    second.says("begins on GPU 0, where a job has ended.")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_the_wait_at_once(
    number: int, smi: FakeSmi, start: Callable[[str], Job]
) -> None:
    smi.says(100)
    first = start("first")
    first.says("begins")
    first.train()
    second = start("second")
    second.says(f"waits until its GPU is {WAITS}")
    second.says("waits: GPU 0 is 100 % busy.")
    begun = time.monotonic()
    second.end(number)
    assert time.monotonic() - begun < 3
    assert second.process.returncode == 130
    second.says("interrupted")


def test_of_named_gpus_the_index_on_the_machine_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "gpu_names", lambda: ["u0", "u1", "u2"])
    asked: list[Any] = []
    monkeypatch.setattr(sharing, "claim_place", lambda *how: asked.append(how) or 1)
    assert sharing.claim_shared_gpu(2, "job", [0, 2]) == [2]
    assert sharing.claim_shared_gpu(2, "job") == [1]
    assert asked == [(["u0", "u2"], 2, "job"), (["u0", "u1", "u2"], 2, "job")]
