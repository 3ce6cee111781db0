"""What the machine gives a job: a GPU of its own beside other jobs, threads, memory, and a count of what it took."""

import ctypes
import getpass
import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from tvf.errors import InputError

_claimed: dict[int, FileLock] = {}
_all_threads = torch.get_num_threads()


def claim_gpus(count: int) -> list[int]:
    """The indices of `count` GPUs that no other tvf process of this user trains on, held until this process ends.

    Raises InputError where there are fewer.
    """
    properties = [
        torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())
    ]
    if count > len(properties):
        raise InputError(
            f"fabric.devices={count} is refused: this machine has {len(properties)} GPUs."
        )
    return claim(
        [str(getattr(each, "uuid", index)) for index, each in enumerate(properties)], count
    )


def claim(names: Sequence[str], count: int = 1, folder: Path | None = None) -> list[int]:
    """The indices of the first `count` of `names` that no other process of this user claims.

    If too few are left, processes share by their numbers what is missing. There must be `count` names. `folder` holds
    the lock files. What a process has claimed once it gets again.
    """
    for index, name in enumerate(names):
        if len(_claimed) >= count:
            break
        if index not in _claimed:
            lock = FileLock(
                (folder or Path(tempfile.gettempdir())) / f"tvf-{getpass.getuser()}-{name}.lock"
            )
            with suppress(Timeout, OSError):
                lock.acquire(timeout=0)
                _claimed[index] = lock
    others = [index for index in range(len(names)) if index not in _claimed]
    missing = max(0, count - len(_claimed))
    shared = [others[(os.getpid() + each) % len(others)] for each in range(missing)]
    return [*_claimed, *shared][:count]


def count_devices(devices: object) -> int:
    """How many devices a job trains on by `fabric.devices`: a number, or a list of their numbers.

    Raises InputError for anything else, and so for "auto" and -1: a sweep's jobs share what the machine has.
    """
    if isinstance(devices, int) and not isinstance(devices, bool) and devices > 0:
        return devices
    if (
        isinstance(devices, list)
        and devices
        and all(type(each) is int and each >= 0 for each in devices)
    ):
        if len({*devices}) == len(devices):
            return len(devices)
    raise InputError(
        f"fabric.devices={devices} is refused: write how many a job trains on, as 2, or their numbers, as [0,1]."
    )


def set_threads(
    threads: int | None, device: torch.device, *, in_sweep: bool, ranks: int = 1
) -> None:
    """CPU threads of this process. By default all cores for a job by itself, and one for each in a sweep on the CPU.

    The processes of a job that has `ranks` of them divide its threads among themselves, and have one each at least.

    Results differ in the last digits with the number of threads: so a sweep gives the same ones however many of its
    jobs run at once.
    """
    alone = _all_threads if device.type != "cpu" or not in_sweep else 1
    torch.set_num_threads(max(1, (threads or alone) // ranks))


@contextmanager
def single_thread() -> Iterator[None]:
    """Torch computes with the calling thread alone: threads that it started here would be lost to forked jobs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def keep_freed_memory() -> None:
    """Have glibc keep freed activations for the next step instead of returning them to the kernel.

    Training steps on a CPU otherwise spend a tenth of their time on page faults. Values do not change.
    """
    if platform.libc_ver()[0] == "glibc":
        trim_threshold, mmap_threshold = -1, -3  # their numbers in malloc.h
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 2**30)
        libc.mallopt(trim_threshold, 2**31 - 1)


def return_freed_memory() -> None:
    """Give back what `keep_freed_memory` kept: between jobs, so that the next one starts small."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def reset_peak_memory(device: torch.device) -> None:
    """Start counting anew: a sweep's worker runs several jobs in one process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        return_freed_memory()
        with suppress(OSError):  # a container may not allow it: then the peak is the process's
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb(device: torch.device) -> float:
    """The most memory in use since `reset_peak_memory`, in MiB: the GPU's where there is one, else resident memory.

    Outside Linux resident memory counts from the start of the process.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text()
        return (
            next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
            / 2**10
        )
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def describe_machine(device: torch.device) -> dict[str, str | int | None]:
    """What a job's seconds were measured on."""
    processor = platform.processor() or platform.machine()
    with suppress(OSError, StopIteration):  # Linux keeps the name elsewhere
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(
            line.partition(":")[2].strip() for line in lines if line.startswith("model name")
        )
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {"host": platform.node(), "processor": processor, "cores": os.cpu_count(), "gpu": gpu}


def library_versions() -> dict[str, str]:
    """Of what computes a job's numbers."""
    found = {"python": platform.python_version()}
    for name in ("tvf", "torch", "torchvision", "timm", "numpy"):
        with suppress(PackageNotFoundError):  # a checkout that is not installed
            found[name] = version(name)
    return found
