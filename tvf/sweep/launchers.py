"""How many jobs of a sweep run at once, on the CPU or on each GPU."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tvf.errors import InputError
from tvf.gpus import count_gpus

# What fabric.jobs_per_gpu=auto assumes of a job: rough, and on the safe side. A training step of
# ResNet50 in float32 keeps about 2,000 bytes for each pixel of its batch, ViT-B/16 3,000.
JOB_BYTES = 2.5e9  # CUDA's context, libraries' workspaces, weights, gradients and optimizer
BYTES_PER_PIXEL = 6000  # a step, and its copy in a CUDA graph
STEP_SHARE = 0.45  # of a GPU's memory, for the training steps of all jobs: data take the rest
# Launchers whose jobs share this machine; a cluster's give each job cores and GPUs of its own.
HERE = (
    "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
    "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher",
)
MOST_JOBS = 4  # on a GPU: processes take turns on it


def shield_workers() -> None:
    """Let SIGTERM to the whole process group leave joblib's workers to the command.

    It would end idle workers at once, whereupon joblib kills the others, with jobs that are about
    to keep a checkpoint.
    """
    from joblib import register_parallel_backend
    from joblib.parallel import LokyBackend

    class Shielded(LokyBackend):
        def configure(self, *args: Any, **options: Any) -> int:
            ignored = (signal.SIGTERM, signal.SIG_IGN)
            options |= {"initializer": signal.signal, "initargs": ignored}
            return super().configure(*args, **options)

    register_parallel_backend("loky", Shielded)


def require_launcher(launcher: DictConfig) -> None:
    """Raise InputError if this machine lacks what the launcher needs."""
    if launcher._target_ == "hydra_plugins.tvf_launchers.SlurmLauncher":
        require_slurm()
    elif launcher._target_ == "hydra_plugins.tvf_launchers.RayLauncher":
        require_ray()


def require_devices_of(jobs: Iterable[dict[str, Any]], launcher: DictConfig) -> None:
    """Raise InputError unless these jobs find their devices, if they train on this machine."""
    if runs_elsewhere(launcher):
        return
    from tvf.distributed import require_devices  # with torch

    fabrics = (job["fabric"] for job in jobs)
    wanted = [(f.get("accelerator", "auto"), f.get("devices", 1)) for f in fabrics]
    for each in {repr(each): each for each in wanted}.values():
        require_devices(*each, count_gpus())


def require_slurm() -> None:
    """Raise InputError without SLURM's commands."""
    if missing := [name for name in ("sbatch", "squeue", "scancel") if not shutil.which(name)]:
        raise InputError(
            f"hydra/launcher=slurm needs SLURM's commands, but there is no {missing[0]} on the "
            "PATH. Start the sweep on a login node of the cluster, or use hydra/launcher=local."
        )


def require_ray() -> None:
    """Raise InputError without Ray."""
    if find_spec("ray") is None:
        raise InputError("hydra/launcher=ray needs Ray: pip install 'tvf[ray]'.")


def runs_in_parallel(launcher: DictConfig) -> bool:
    """Whether jobs of a sweep run at the same time. Raises InputError for no job at a time."""
    return runs_elsewhere(launcher) or jobs_at_once(launcher) != 1


def jobs_at_once(launcher: DictConfig) -> int:
    """How many jobs share this machine: 1 if a scheduler gives each job its part of a machine.

    Raises InputError for no job at a time.
    """
    if runs_elsewhere(launcher):
        return 1
    jobs = launcher.get("n_jobs", 1)
    if jobs == 0:
        raise InputError(
            "hydra.launcher.n_jobs=0 must be the number of jobs to run at once: at least 1, or -1 "
            "for one per core."
        )
    return jobs if jobs > 0 else max(1, _cores() + 1 + jobs)


def runs_elsewhere(launcher: DictConfig) -> bool:
    """Whether a scheduler gives the jobs their parts of machines, and decides how many run."""
    return launcher._target_ not in HERE


def _cores() -> int:
    """The cores for this machine's jobs, as joblib counts them for n_jobs=-1.

    Not every SLURM keeps a task to its cores, so joblib is told of them.
    """
    import joblib  # takes 0.3 s, which `tvf --help` need not spend

    if (given := os.environ.get("SLURM_CPUS_PER_TASK", "")).isdecimal() and int(given):
        os.environ.setdefault("LOKY_MAX_CPU_COUNT", given)
    return joblib.cpu_count()


def workers(*, _root_: DictConfig) -> int:
    """How many jobs of this sweep to run at once: the value of hydra.launcher.n_jobs."""

    def option(key: str, default: Any) -> Any:
        found = OmegaConf.select(_root_, key, default=default)
        return OmegaConf.to_container(found) if OmegaConf.is_config(found) else found

    per_gpu = option("fabric.jobs_per_gpu", 1)
    if per_gpu == "auto":
        size = option("data.image_size", None) or _made_for(option("backbone", {}))
        sizes = option("data.batch_size", 32), size
        per_gpu = jobs_that_fit(gpu_bytes(), *sizes) if all(map(_is_count, sizes)) else 1
    accelerator, devices = option("fabric.accelerator", "auto"), option("fabric.devices", 1)
    return default_workers(accelerator, devices, per_gpu)


def _made_for(backbone: dict[str, Any]) -> int:
    """Pixels per side of the images that a backbone is made for; jobs check its name themselves."""
    from tvf.models import images_made_for  # with torch

    try:
        return images_made_for(backbone)[0]
    except InputError:
        return 224


def default_workers(accelerator: str, devices: Any = 1, jobs_per_gpu: Any = 1) -> int:
    """Return how many jobs to run at once on this machine: so many per GPU, else one per core.

    `devices` is what each job uses: a number of devices, or a list of GPUs, which are then the only
    ones. Jobs that use several share none. Other values are not checked here, because each job
    checks its own config.
    """
    several = isinstance(devices, Sequence) and not isinstance(devices, str)
    per_job = len(devices) if several else devices
    available = _cores()
    if accelerator != "cpu":
        gpus = count_gpus()
        if gpus and several:
            gpus = len(devices)
        if gpus and per_job == 1 and _is_count(jobs_per_gpu):
            gpus *= jobs_per_gpu
        available = gpus or available
    return max(1, available // per_job) if isinstance(per_job, int) and per_job > 0 else available


def jobs_that_fit(memory: float, batch_size: int, image_size: int) -> int:
    """How many jobs likely fit on a GPU with `memory` bytes: at least 1, at most MOST_JOBS.

    An estimate that does not know the network.
    """
    job = JOB_BYTES + BYTES_PER_PIXEL * batch_size * image_size**2
    return max(1, min(MOST_JOBS, int(STEP_SHARE * memory / job), os.cpu_count() or 1))


@cache
def gpu_bytes() -> float:
    """The memory of the smallest GPU; 0 if it is not known.

    Asks the driver's own tool: torch would occupy the GPU, and the jobs are forks of this process.
    Not the free memory: every worker of a sweep asks, and has to get the same answer.
    """
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    with suppress(OSError, ValueError, subprocess.SubprocessError):
        printed = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return 2**20 * min(map(float, printed.stdout.split()), default=0)
    return 0


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
