"""A process that forks jobs finds out about GPUs without initialising CUDA."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir

from helpers.sweeps import base_config
from tvf.config import conf_dir
from tvf.gpus import count_gpus
from tvf.job import describe_changed_images, import_libraries, shared_setup
from tvf.sweep import jobs_at_once
from tvf.sweep.launchers import default_workers

# Everything in torch that initialises CUDA goes through one of these.
TOUCHES = {
    torch._C: ("_cuda_getDeviceCount", "_cuda_init"),
    torch.cuda: ("is_available", "_lazy_init"),
}


@pytest.fixture
def forking(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[int], list[str]]:
    """`forking(1)`: NVML counts so many GPUs, or cannot if that is negative; CUDA finds two.

    Returns a list of what this process initialises CUDA with, which grows.
    """
    found: list[str] = []
    parent = os.getpid()

    def touched(name: str) -> Any:
        if os.getpid() == parent:
            found.append(name)
        return 2

    def count(number: int) -> list[str]:
        monkeypatch.setattr(torch.cuda, "_device_count_nvml", lambda: number)
        for module, names in TOUCHES.items():
            for name in names:
                monkeypatch.setattr(module, name, lambda *_, of=name: touched(of), raising=False)
        monkeypatch.setattr(torch.cuda, "_initialized", False)
        monkeypatch.setattr(torch.cuda, "_cached_device_count", None)
        # Counts are remembered, so each test has a number of its own visible to it.
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", f"0,1,{tmp_path}")
        return found

    return count


@pytest.mark.parametrize("by_nvml, gpus", [(3, 3), (0, 0), (-1, 2)])
def test_gpus_are_counted_without_initialising_cuda(
    forking: Callable[[int], list[str]], by_nvml: int, gpus: int
) -> None:
    touched = forking(by_nvml)
    assert count_gpus() == gpus
    assert touched == []


def test_a_process_that_uses_cuda_counts_by_itself(
    forking: Callable[[int], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    touched = forking(-1)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert count_gpus() == 2
    assert touched == ["_cuda_getDeviceCount"]


def test_no_gpu_is_counted_where_counting_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise RuntimeError("no driver")

    monkeypatch.setattr(torch.cuda, "device_count", fail)
    monkeypatch.setattr(torch.cuda, "_initialized", False)
    assert count_gpus() == 0


@pytest.mark.parametrize("by_nvml, gpus", [(1, 1), (-1, 2)])
def test_what_a_sweep_does_before_its_jobs_leaves_cuda_alone(
    forking: Callable[[int], list[str]], by_nvml: int, gpus: int, tmp_path: Path
) -> None:
    touched = forking(by_nvml)
    overrides = ["fabric=auto", "fabric.jobs_per_gpu=2", "model=transfer"]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("config", overrides, return_hydra_config=True)
        assert jobs_at_once(config.hydra.launcher) == 2 * gpus
    assert default_workers("gpu") == gpus
    head = base_config()
    head["model"]["pct_unfreeze"] = 0.0
    assert shared_setup(head) is not None
    import_libraries("tvf.models.efficientnet_lite0")
    assert describe_changed_images(tmp_path, {"job": head}) is None
    assert touched == []
