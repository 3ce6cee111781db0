"""A job that waits for its share of a GPU has not begun."""

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.jobs import metrics
from helpers.training import small_config, small_context
from tvf.distributed import sharing
from tvf.errors import InputError
from tvf.job import resources, run, run_job
from tvf.lease import lease_holder
from tvf.records import LEASE, is_running, read_status, waiting_holder


@pytest.fixture
def claims(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Which GPUs jobs claim, on a machine with one."""
    found: list[tuple[Any, ...]] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(resources, "claim_gpus", lambda *how: found.append(how) or [0])
    monkeypatch.setattr(resources, "claim_shared_gpu", lambda *how: found.append(how) or [0])
    return found


def _context(folder: Path, workers: int = 3) -> resources.JobContext:
    context = small_context(folder, folder.parent)
    return resources.replace(context, parallel=True, workers=workers)


def _config(**changes: Any) -> dict[str, Any]:
    options = {"epochs": 1, "store__mode": "off", "fabric__jobs_per_gpu": "auto"}
    return small_config(**options | {"fabric__accelerator": "auto"} | changes)


@pytest.mark.parametrize(
    "gpus, jobs, workers, devices, claim, own",
    [
        (1, "auto", 3, 1, (3, "a", None), None),
        (1, "auto", 1, 1, (1, 1), None),
        (1, 3, 3, 1, (1, 3), None),
        (2, "auto", 3, 1, (2, "a", None), [0]),
        (2, "auto", 2, 1, (1, 1), [0]),
        (2, 2, 4, 1, (1, 2), [0]),
        (2, "auto", 1, 2, (2, 1), [0]),
        (2, "auto", 3, [1], (3, "a", [1]), None),
    ],
)
def test_only_auto_waits_where_jobs_share_a_gpu(
    gpus: int,
    jobs: object,
    workers: int,
    devices: int | list[int],
    claim: tuple[Any, ...] | None,
    own: list[int] | None,
    claims: list[tuple[Any, ...]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    config = _config(name="a", fabric__jobs_per_gpu=jobs, fabric__devices=devices)
    context = resources.claim_devices(config, _context(tmp_path, workers))
    assert claims == ([claim] if claim else [])
    assert context.devices == own


def test_a_job_that_waits_leaves_its_folder_alone(
    tmp_path: Path, claims: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, seen = tmp_path / "job", list[Any]()

    def wait(places: int, job: str, among: list[int] | None) -> list[int]:
        seen.append([path.name for path in folder.iterdir()])
        seen.append(waiting_holder(folder) == lease_holder(folder / LEASE) is not None)
        seen.append(is_running(folder))
        raise KeyboardInterrupt

    monkeypatch.setattr(resources, "claim_shared_gpu", wait)
    with pytest.raises(KeyboardInterrupt):
        run_job(_config(), _context(folder))
    assert seen == [[LEASE], True, False]
    assert [*folder.iterdir()] == []


def test_a_job_begins_when_it_has_its_gpu_and_says_when_it_trains(
    tmp_path: Path, claims: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, trains = tmp_path / "job", list[Any]()

    def training_begins() -> None:
        trains.append((len(claims), waiting_holder(folder), is_running(folder)))

    monkeypatch.setattr(run, "training_begins", training_begins)
    monkeypatch.setattr("lightning_fabric.accelerators.cuda.num_cuda_devices", lambda: 0)
    assert run_job(_config(), _context(folder)) is not None
    assert trains == [(1, None, True)] and len(metrics(folder)) == 1


@pytest.mark.parametrize("error", [InputError("two"), RuntimeError("CUDA error")])
def test_an_error_of_claiming_a_gpu_is_recorded(
    error: Exception,
    tmp_path: Path,
    claims: list[tuple[Any, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail() -> list[str]:
        raise error

    monkeypatch.setattr(resources, "claim_shared_gpu", sharing.claim_shared_gpu)
    monkeypatch.setattr(sharing, "gpu_names", fail)
    with pytest.raises(type(error)):
        run_job(_config(), _context(tmp_path / "job"))
    status = read_status(tmp_path / "job")
    assert status["state"] == "failed" and str(error) in status["error"]
