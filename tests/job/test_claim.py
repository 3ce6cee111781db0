"""A job's claim on its folder: who else may train it, and when a process must stop writing."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.elsewhere import beating, claim_elsewhere
from helpers.training import small_config, small_context
from tvf import lease as leases
from tvf.errors import InputError
from tvf.job.checkpoint import Checkpoints
from tvf.job.head_phase import HeadPhase
from tvf.job.run import run_job
from tvf.records import is_running, read_status
from tvf.report import print_status
from tvf.store import Store

MESSAGE = "process 7 on n2"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "EXPIRY", 0.6)
    monkeypatch.setattr("tvf.job.claim.DYING", 0.0)


def _config(**changes: Any) -> dict[str, Any]:
    return small_config(epochs=3, store__mode="off", **changes)


@pytest.mark.parametrize("alone", [False, True])
def test_a_job_that_runs_elsewhere_is_left_to_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, alone: bool
) -> None:
    lease = tmp_path / "job" / ".lease"
    claim_elsewhere(lease)
    context = small_context(tmp_path / "job", None if alone else tmp_path)
    with caplog.at_level(logging.INFO), beating(lease):
        if alone:
            with pytest.raises(InputError, match=f"training in .*job: {MESSAGE}. Choose another"):
                run_job(_config(), context)
        else:
            assert run_job(_config(), context) is None
            assert f"another process is training this job: {MESSAGE}." in caplog.text
    assert [file.name for file in (tmp_path / "job").iterdir()] == [".lease"]


def test_a_job_whose_machine_died_is_taken_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    lease, status = tmp_path / "job" / ".lease", tmp_path / "job" / "status.json"
    claim_elsewhere(lease)
    status.write_text(json.dumps({"state": "running", "name": "a", "error": None, "attempt": 1}))
    assert is_running(tmp_path / "job")
    print_status(tmp_path)
    assert f"running: a ({MESSAGE})" in capsys.readouterr().out
    with caplog.at_level(logging.INFO):
        assert run_job(_config(), small_context(tmp_path / "job", tmp_path)) is not None
    assert f"claimed by {MESSAGE}: waiting up to" in caplog.text
    status = read_status(tmp_path / "job")
    assert (status["state"], status["attempt"]) == ("done", 2) and not lease.exists()


def _robbed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception | None = None
) -> dict[str, bytes]:
    """Let another machine take over the job after its first epoch; the files that it then has.

    The job then fails with `error`.
    """
    save, files = Checkpoints.save, dict[str, bytes]()

    def save_and_stop(checkpoints: Checkpoints, state: dict[str, Any]) -> None:
        save(checkpoints, state)
        if not files:  # this process is stopped here for longer than a lease lasts
            claim_elsewhere(folder / ".lease")
            (folder / "status.json").write_text('{"theirs": 1}')
            held = [file for file in folder.rglob("*") if file.is_file()]
            files.update({str(file): file.read_bytes() for file in held})
            if error:
                raise error

    monkeypatch.setattr(Checkpoints, "save", save_and_stop)
    return files


@pytest.mark.parametrize("alone", [False, True])
def test_a_process_that_has_lost_its_job_writes_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, alone: bool
) -> None:
    folder = tmp_path / "job"
    folder.mkdir()
    files = _robbed(folder, monkeypatch)
    context = small_context(folder, None if alone else tmp_path)
    if alone:
        with pytest.raises(InputError, match=f"{MESSAGE} has taken over this job"):
            run_job(_config(), context)
    else:
        assert run_job(_config(), context) is None
        assert f"{MESSAGE} has taken over this job, because" in caplog.text
    assert len(files) > 4  # status, config, epochs, a checkpoint and the lease
    now = [file for file in folder.rglob("*") if file.is_file()]
    assert {str(file): file.read_bytes() for file in now} == files


def test_a_failure_of_a_job_that_was_lost_is_not_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "job"
    folder.mkdir()
    _robbed(folder, monkeypatch, RuntimeError("it broke"))
    with pytest.raises(RuntimeError, match="it broke"):
        run_job(_config(), small_context(folder, tmp_path))
    assert (folder / "status.json").read_text() == '{"theirs": 1}'


def test_a_head_phase_that_was_lost_is_not_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with_lease = HeadPhase(Store(tmp_path, 10**9), "fingerprint", torch.nn.Module())  # type: ignore[arg-type]
    with with_lease as head:
        assert head.take(tmp_path / "best", "accuracy") is None and head.holds
        (lease,) = tmp_path.rglob("trains.lease")
        claim_elsewhere(lease)
        head.keep({}, tmp_path / "best")
    assert f"not caching the head phase: {lease} was taken over by {MESSAGE}" in caplog.text
    assert lease.exists()
