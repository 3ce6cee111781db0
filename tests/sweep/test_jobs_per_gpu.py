"""How many jobs share a GPU: arithmetic, and the launcher's setting that follows from it."""

from types import SimpleNamespace
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from tvf.config import conf_dir
from tvf.errors import InputError
from tvf.sweep import heads, launchers
from tvf.sweep.launchers import MOST_JOBS, default_workers, jobs_that_fit

GB = 1e9


@pytest.mark.parametrize(
    "memory, batch_size, image_size, jobs",
    [
        (80 * GB, 32, 128, 4),
        (80 * GB, 128, 224, 1),
        (24 * GB, 32, 128, 1),
        (40 * GB, 32, 128, 3),
        (8 * GB, 32, 128, 1),
        (0, 32, 128, 1),
    ],
)
def test_as_many_jobs_share_a_gpu_as_likely_fit(
    memory: float, batch_size: int, image_size: int, jobs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launchers.os, "cpu_count", lambda: 16)
    assert jobs_that_fit(memory, batch_size, image_size) == jobs <= MOST_JOBS
    monkeypatch.setattr(launchers.os, "cpu_count", lambda: 1)
    assert jobs_that_fit(memory, batch_size, image_size) == 1


def test_jobs_per_gpu_multiply_the_gpus_for_jobs_of_one_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("joblib.cpu_count", lambda: 5)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert default_workers("auto", 1, 3) == 6
    assert default_workers("gpu", [1], 3) == 3  # this one alone
    assert default_workers("gpu", [0, 1], 3) == 1
    assert default_workers("gpu", 2, 3) == 1
    assert default_workers("cpu", 1, 3) == 5
    for wrong in (True, 0, "three", None):  # the jobs raise an error that names it
        assert default_workers("auto", 1, wrong) == 2
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert default_workers("auto", 1, 3) == 5


@pytest.mark.parametrize(
    "override, jobs",
    [("fabric=auto", 1), ("fabric.jobs_per_gpu=3", 3), ("fabric.jobs_per_gpu=auto", 4)],
)
def test_the_launcher_runs_so_many_jobs_at_once(
    override: str, jobs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr(launchers, "gpu_bytes", lambda: 80 * GB)
    monkeypatch.setattr(launchers.os, "cpu_count", lambda: 16)
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("config", [override], return_hydra_config=True)
        assert config.hydra.launcher.n_jobs == jobs


def test_the_driver_says_how_much_memory_the_smallest_gpu_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def ask(*command: Any, **more: Any) -> Any:
        return SimpleNamespace(stdout="81559\n24576\n")

    monkeypatch.setattr(launchers.subprocess, "run", ask)
    assert launchers.gpu_bytes.__wrapped__() == 24576 * 2**20

    def missing(*command: Any, **more: Any) -> Any:
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(launchers.subprocess, "run", missing)
    assert launchers.gpu_bytes.__wrapped__() == 0


@pytest.mark.parametrize(
    "gpus, fabric, processes",
    [
        (0, {"jobs_per_gpu": "auto"}, 4),
        (1, {"jobs_per_gpu": "auto"}, 1),
        (2, {"jobs_per_gpu": "auto"}, 2),
        (2, {"jobs_per_gpu": "auto", "accelerator": "cpu"}, 4),
        (1, {"jobs_per_gpu": 4}, 4),
    ],
)
def test_heads_share_one_process_per_gpu_where_others_would_wait(
    gpus: int, fabric: dict[str, Any], processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "count_gpus", lambda: gpus)
    monkeypatch.setattr(launchers, "count_gpus", lambda: gpus)
    target = "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"
    sweep: Any = OmegaConf.create({"hydra": {"launcher": {"_target_": target, "n_jobs": 4}}})
    head: Any = SimpleNamespace(
        checked=SimpleNamespace(config={"fabric": {"devices": 1, "accelerator": "auto"} | fabric})
    )
    assert heads._count_processes(sweep, head) == processes


def test_a_sweep_on_this_machine_needs_the_devices_of_all_its_jobs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(launchers, "count_gpus", lambda: 0)
    jobs = [{"fabric": {"accelerator": each, "devices": 1}} for each in ("auto", "gpu")]
    here = OmegaConf.create({"_target_": launchers.HERE[0]})
    launchers.require_devices_of(jobs[:1], here)
    with pytest.raises(InputError, match="fabric.accelerator=gpu needs a GPU"):
        launchers.require_devices_of(jobs, here)
    cluster = OmegaConf.create({"_target_": "hydra_plugins.tvf_launchers.SlurmLauncher"})
    launchers.require_devices_of(jobs, cluster)  # whose nodes may have some
