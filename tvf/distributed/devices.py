"""A job's share of the machine (GPUs, threads, memory), and a description of the machine."""

import getpass
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from tvf.errors import InputError
from tvf.memory import return_freed_memory
from tvf.store import processor_model

_claimed: dict[int, FileLock] = {}


def available_cores() -> int:
    """The cores of this process: those that SLURM gave its task, or all of the machine."""
    given = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return int(given) if given.isdecimal() and int(given) else os.cpu_count() or 1


_all_threads = min(torch.get_num_threads(), available_cores())


def claim_gpus(count: int, sharing: int = 1) -> list[int]:
    """Claim `count` GPUs for this process until it ends, and return their indices.

    If enough are free, these are GPUs that no other tvf process of this user trains on, or that
    fewer than `sharing` do. Raises InputError if the machine has fewer than `count`.
    """
    names = gpu_names()
    if count > len(names):
        raise InputError(
            f"fabric.devices={count} must be at most {len(names)}, the GPUs of this machine. "
            "Choose fewer."
        )
    return [place % len(names) for place in claim(places_on(names, sharing), count)]


def gpu_names() -> list[str]:
    """The UUIDs of this process's GPUs, which CUDA_VISIBLE_DEVICES may number anew."""
    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [str(getattr(gpu, "uuid", index)) for index, gpu in enumerate(gpus)]


def places_on(names: Sequence[str], sharing: int) -> list[str]:
    """Names for `sharing` places on each device: one place on every device, then the next."""
    later = [f"{name}-{number}" for number in range(1, sharing) for name in names]
    return [*names, *later]


def claim(names: Sequence[str], count: int = 1, folder: Path | None = None) -> list[int]:
    """The indices of the first `count` of `names` that no other process of this user has claimed.

    There must be at least `count` names. If too few are free, the process shares others, chosen by
    process id. A process keeps its claims, so a second call returns the same ones. `folder` holds
    the lock files.
    """
    for index in range(len(names)):
        if len(_claimed) >= count:
            break
        with suppress(OSError):
            take(names, index, folder)
    others = [index for index in range(len(names)) if index not in _claimed]
    missing = max(0, count - len(_claimed))
    shared = [others[(os.getpid() + number) % len(others)] for number in range(missing)]
    return [*_claimed, *shared][:count]


def take(names: Sequence[str], index: int, folder: Path | None = None) -> bool:
    """Claim `names[index]` for this process; return whether the claim succeeded.

    Raises OSError where files cannot be locked.
    """
    if index not in _claimed:
        lock = FileLock(lock_path(names[index], folder))
        with suppress(Timeout):
            lock.acquire(timeout=0)
            _claimed[index] = lock
    return index in _claimed


def release(index: int) -> None:
    """Give a claim of this process back."""
    _claimed.pop(index).release()


def claimed() -> Set[int]:
    """The indices of the names that this process has claimed."""
    return _claimed.keys()


def lock_path(name: str, folder: Path | None = None) -> Path:
    """The file whose lock is this user's claim of a name."""
    return (folder or Path(tempfile.gettempdir())) / f"tvf-{_user()}-{name}.lock"


def _user() -> str:
    """The user's name, or number if it has no name."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # the latter before Python 3.13
        return str(os.getuid())


def count_devices(devices: object) -> int:
    """The number of devices in `fabric.devices`, which is a number or a list of device indices.

    Raises InputError for anything else, including "auto" and -1: the jobs of a sweep share the
    machine's devices.
    """
    if isinstance(devices, int) and not isinstance(devices, bool) and devices > 0:
        return devices
    if isinstance(devices, list) and all(type(index) is int and index >= 0 for index in devices):
        if 0 < len({*devices}) == len(devices):
            return len(devices)
    raise InputError(
        f"fabric.devices={devices} must be the number of devices that a job trains on, such as 2, "
        "or a list of their indices, such as [0,1]."
    )


def require_devices(accelerator: str, devices: int | list[int], gpus: int) -> None:
    """Raise InputError unless a job finds these devices on this machine, which has `gpus` GPUs."""
    count = count_devices(devices)
    apple = not gpus and torch.backends.mps.is_available()
    if not gpus and (accelerator == "cuda" or (accelerator in ("gpu", "mps") and not apple)):
        raise InputError(
            f"fabric.accelerator={accelerator} needs a GPU, and torch finds none here. "
            "fabric=auto takes a GPU only if there is one."
        )
    if apple and accelerator != "cpu":
        return  # Fabric knows which of its devices there are
    gpus = 0 if accelerator == "cpu" else gpus
    if isinstance(devices, list) and not gpus:
        raise InputError(
            f"fabric.devices={devices} names GPUs, but here a job trains on the CPU. Give the "
            "number of its processes instead, such as fabric.devices=1."
        )
    if isinstance(devices, list) and max(devices) >= gpus:
        raise InputError(
            f"fabric.devices={devices} must be indices of this machine's GPUs, 0 to {gpus - 1}."
        )
    available = gpus or available_cores()
    if count > available:
        what = "GPUs" if gpus else "cores and no usable GPU"
        raise InputError(
            f"fabric.devices={count} must be at most {available}: here, a job has {available} "
            f"{what}."
        )


def set_threads(
    threads: int | None,
    device: torch.device,
    *,
    in_sweep: bool,
    ranks: int = 1,
    jobs: int = 1,
) -> None:
    """Set the CPU threads of this process.

    By default a job uses all its cores, or one thread if it trains on the CPU in a sweep; the
    `jobs` that share the machine with GPUs divide its cores. The `ranks` processes of a job divide
    its threads evenly. Each has at least one.

    Results depend on the number of threads in the last digits, so this default makes a sweep's
    results independent of how many of its jobs run at once.
    """
    alone = _all_threads // jobs if device.type != "cpu" or not in_sweep else 1
    torch.set_num_threads(max(1, (threads or alone) // ranks))


@contextmanager
def single_thread() -> Iterator[None]:
    """Make torch compute only in the calling thread: its other threads do not survive a fork."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def reset_peak_memory(device: torch.device) -> None:
    """Restart the measurement of peak memory: a sweep's worker runs several jobs in one process."""
    if device.type == "cuda":
        torch.cuda.init()
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        return_freed_memory()
        with suppress(OSError):  # some containers forbid it: the peak then covers all earlier jobs
            Path("/proc/self/clear_refs").write_text("5")


def peak_device_memory_mb(device: torch.device) -> float | None:
    """The most of a GPU's memory in use since `reset_peak_memory`, in MiB; None on a CPU."""
    return peak_memory_mb(device) if device.type == "cuda" else None


def peak_memory_mb(device: torch.device) -> float:
    """The most memory in use since `reset_peak_memory`, in MiB.

    On a GPU it is the GPU's memory, on the CPU resident memory. Outside Linux, resident memory
    counts from the start of the process.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text().splitlines()
        peak_kib = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
        return peak_kib / 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def describe_machine(device: torch.device) -> dict[str, str | int | None]:
    """The machine on which a job's times were measured."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "host": platform.node(),
        "processor": processor_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
    }


@cache
def library_versions() -> dict[str, str]:
    """The versions of the libraries that affect a job's numbers."""
    found = {"python": platform.python_version()}
    for name in ("tvf", "torch", "torchvision", "timm", "numpy"):
        with suppress(PackageNotFoundError):  # a checkout that is not installed
            found[name] = version(name)
    return found


@cache
def source_commit() -> str | None:
    """The git commit of the checkout that tvf runs from; None if it is installed from a package."""
    package = Path(__file__).parent
    try:
        git = ["git", "-C", str(package)]
        # The package may be in an environment inside another repository, which does not track it.
        subprocess.run(
            [*git, "ls-files", "--error-unmatch", Path(__file__).name],
            capture_output=True,
            check=True,
        )
        found = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, check=True, text=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
