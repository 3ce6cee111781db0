"""What a process gets back from the jobs that it forks."""

import io
import os
import signal
from pathlib import Path

import pytest
import torch

from tvf import findings
from tvf.findings import recall, remember
from tvf.sweep.processes import can_fork, run_in_subprocess

pytestmark = pytest.mark.skipif(not can_fork(), reason="only Linux can fork jobs")


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings, "_findings", {})
    monkeypatch.setattr(findings, "_new", set())


def test_what_a_job_finds_out_is_known_to_the_next_one(tmp_path: Path) -> None:
    def first() -> int:
        remember("answers", "first", 41, most=2)
        return 3

    def second() -> int:
        remember("answers", "second", recall("answers", "first") + 1, most=2)
        return 0

    assert run_in_subprocess(first, tmp_path / "job.log") == 3
    assert run_in_subprocess(second, tmp_path / "job.log") == 0
    assert [recall("answers", key) for key in ("first", "second")] == [41, 42]
    remember("answers", "third", 43, most=2)
    assert [recall("answers", key) for key in ("first", "second", "third")] == [None, 42, 43]


def test_what_cannot_be_written_costs_no_job(tmp_path: Path) -> None:
    def finds() -> int:
        remember("answers", "first", lambda: 1, most=2)  # cannot be pickled
        return 0

    assert run_in_subprocess(finds, tmp_path / "job.log") == 0
    assert recall("answers", "first") is None
    findings.take(io.BytesIO(b"\x80\x04cut off"))


class OnGpu(torch.Tensor):
    """Stands in for a tensor on a GPU."""

    is_cuda = True  # type: ignore[reportAssignmentType]


def test_a_process_that_forks_jobs_reads_no_tensor_on_a_gpu(tmp_path: Path) -> None:
    def finds(value: object) -> int:
        remember("answers", "first", {"of": [value]}, most=2)
        remember("numbers", "first", 1, most=2)
        return 0

    on_gpu = torch.ones(1).as_subclass(OnGpu)
    assert run_in_subprocess(lambda: finds(on_gpu), tmp_path / "job.log") == 0
    assert recall("answers", "first") is None and recall("numbers", "first") == 1
    assert run_in_subprocess(lambda: finds(torch.ones(1)), tmp_path / "job.log") == 0
    assert recall("answers", "first") == {"of": [torch.ones(1)]}


def test_a_job_that_is_killed_or_fails_leaves_nothing(tmp_path: Path) -> None:
    def killed() -> int:
        remember("answers", "first", 1, most=2)
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    def fails() -> int:
        remember("answers", "first", 1, most=2)
        raise OSError("no space left")

    assert run_in_subprocess(killed, tmp_path / "job.log") == -signal.SIGKILL
    assert run_in_subprocess(fails, tmp_path / "job.log") == 1
    assert recall("answers", "first") is None
