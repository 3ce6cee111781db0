"""Claiming GPUs, counting devices, threads and peak memory."""

import getpass
import os
import sys
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from joblib.externals.loky.backend import context as loky
from omegaconf import OmegaConf

from helpers import ROOT, forks
from tvf.distributed import devices
from tvf.errors import InputError
from tvf.memory import keep_freed_memory
from tvf.sweep.launchers import HERE, default_workers, jobs_at_once


@pytest.mark.slow
def test_processes_claim_different_names_and_keep_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def claim_in_another_process() -> str:
        code = (
            "import pathlib, sys\n"
            "from tvf.distributed import devices\n"
            "print(devices.claim('ab', folder=pathlib.Path(sys.argv[1])))"
        )
        process = forks.python(code, str(tmp_path), cwd=ROOT)
        printed, _ = process.communicate()
        assert process.returncode == 0, printed
        return printed

    monkeypatch.setattr(devices, "_claimed", {})
    assert devices.claim("ab", folder=tmp_path) == devices.claim("ab", folder=tmp_path) == [0]
    assert claim_in_another_process() == "[1]\n"
    assert claim_in_another_process() == "[1]\n"  # the first one released it when it ended


def test_a_name_is_shared_if_all_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _take(tmp_path, "a")
    monkeypatch.setattr(devices, "_claimed", {})
    assert devices.claim("a", folder=tmp_path) == [0]
    assert devices.claim("ab", folder=tmp_path) == [1]


def _take(folder: Path, name: str) -> None:
    """Make a name's lock unavailable, as if another user held it."""
    (folder / f"tvf-{getpass.getuser()}-{name}.lock").mkdir()


def test_a_process_claims_several_names_at_once_and_shares_only_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _take(tmp_path, "a")
    monkeypatch.setattr(devices, "_claimed", {})
    assert devices.claim("abcd", 2, tmp_path) == [1, 2]
    assert devices.claim("abcd", 1, tmp_path) == [1]
    assert devices.claim("abcd", 3, tmp_path) == [1, 2, 3]
    assert sorted(devices.claim("abcd", 4, tmp_path)) == [0, 1, 2, 3]
    monkeypatch.setattr(
        devices, "_claimed", {}
    )  # as another process, while this one holds its locks
    _take(tmp_path, "e")
    assert len({*devices.claim("ae", 2, tmp_path)}) == 2


@pytest.mark.parametrize("devices_of_a_job, count", [(1, 1), (2, 2), ([1], 1), ([0, 3], 2)])
def test_devices_are_counted(devices_of_a_job: object, count: int) -> None:
    assert devices.count_devices(devices_of_a_job) == count


@pytest.mark.parametrize(
    "value", [None, 0, -1, True, "auto", "2", [], [0, 0], [-1], ["a"], [[0]], 1.0]
)
def test_devices_that_cannot_be_counted_are_named(value: object) -> None:
    with pytest.raises(InputError, match=r"fabric.devices=.* must be the number of devices"):
        devices.count_devices(value)


@pytest.mark.parametrize(
    "threads, in_sweep, ranks, expected", [(None, False, 2, 4), (None, True, 2, 1), (6, True, 4, 1)]
)
def test_ranks_divide_a_jobs_threads(
    threads: int | None, in_sweep: bool, ranks: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "_all_threads", 8)
    before = torch.get_num_threads()
    devices.set_threads(threads, torch.device("cpu"), in_sweep=in_sweep, ranks=ranks)
    try:
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)


def test_a_job_has_the_cores_that_slurm_gave_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
    assert devices.available_cores() == 3
    monkeypatch.delenv("SLURM_CPUS_PER_TASK")
    assert devices.available_cores() == os.cpu_count()


def test_a_sweep_inside_an_allocation_runs_a_job_per_core_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loky, "_cpu_count_affinity", lambda count: 8)
    monkeypatch.setattr(loky, "_cpu_count_cgroup", lambda count: 8)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "8")  # so that what follows is undone
    monkeypatch.delenv("LOKY_MAX_CPU_COUNT")
    launcher = OmegaConf.create({"_target_": HERE[1], "n_jobs": -1})
    assert default_workers("cpu") == jobs_at_once(launcher) == joblib.effective_n_jobs(-1) == 8
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
    assert default_workers("cpu") == jobs_at_once(launcher) == joblib.effective_n_jobs(-1) == 3


def test_a_machine_runs_as_many_jobs_at_once_as_it_has_devices_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("joblib.cpu_count", lambda: 5)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    assert default_workers("auto") == 8
    assert default_workers("gpu", 2) == 4
    assert default_workers("auto", [0, 1, 2]) == 1  # these, and no others
    assert default_workers("auto", 16) == 1
    assert default_workers("cpu") == default_workers("cpu", [3]) == 5
    assert default_workers("cpu", 2) == 2
    for wrong in ("auto", -1, None):  # the jobs raise an error that names it
        assert default_workers("cpu", wrong) == 5
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert default_workers("auto", 2) == 2


@pytest.mark.parametrize(
    "accelerator, wanted, gpus, message",
    [
        ("gpu", 1, 0, "fabric.accelerator=gpu needs a GPU, and torch finds none here"),
        ("cuda", 1, 0, "fabric.accelerator=cuda needs a GPU"),
        ("auto", [0], 0, r"fabric.devices=\[0\] names GPUs, but here a job trains on the CPU"),
        ("cpu", [0], 2, "names GPUs, but here a job trains on the CPU"),
        ("auto", [0, 2], 2, r"fabric.devices=\[0, 2\] must be indices .* 0 to 1"),
        ("gpu", 3, 2, "fabric.devices=3 must be at most 2: here, a job has 2 GPUs"),
        ("auto", 9999, 0, "cores and no usable GPU"),
        ("auto", 1, 0, None),
        ("gpu", [1], 2, None),
        ("cpu", 1, 2, None),
        ("mps", 1, 0, "fabric.accelerator=mps needs a GPU"),
        ("auto", [], 2, r"fabric.devices=\[\] must be the number of devices"),
    ],
)
def test_a_job_finds_its_devices_or_says_which_are_missing(
    accelerator: str,
    wanted: int | list[int],
    gpus: int,
    message: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    if message is None:
        devices.require_devices(accelerator, wanted, gpus)
    else:
        with pytest.raises(InputError, match=message):
            devices.require_devices(accelerator, wanted, gpus)


def test_fabric_decides_about_the_devices_of_a_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    for accelerator in ("auto", "gpu", "mps"):
        devices.require_devices(accelerator, [0], 0)
    with pytest.raises(InputError, match="needs a GPU"):
        devices.require_devices("cuda", 1, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can reset the peak")
def test_peak_memory_counts_from_the_reset() -> None:
    cpu = torch.device("cpu")
    keep_freed_memory()
    block = np.ones(2**25)  # 256 MiB
    high = devices.peak_memory_mb(cpu)
    del block
    devices.reset_peak_memory(cpu)
    before = devices.peak_memory_mb(cpu)
    assert high - before > 200
    block = np.ones(2**24)  # 128 MiB
    assert 100 < devices.peak_memory_mb(cpu) - before < 160
    del block
