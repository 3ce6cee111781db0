"""What the machine gives a job: a GPU of its own beside other jobs, memory, and a count of what it took."""

import ctypes
import platform
import resource
import sys
import tempfile
from pathlib import Path

import torch
from filelock import FileLock, Timeout

_claimed: dict[int, FileLock] = {}


def claim_device(count: int, folder: Path | None = None) -> int:
    """The number, below `count`, of a device that no other process of this machine claims, held until this one ends.

    If all are taken, the first is shared. `folder` holds the lock files.
    """
    if _claimed:
        return next(iter(_claimed))
    for number in range(count):
        lock = FileLock((folder or Path(tempfile.gettempdir())) / f"tvf-gpu-{number}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        _claimed[number] = lock
        return number
    return 0


def keep_freed_memory() -> None:
    """Have glibc keep freed activations for the next step instead of returning them to the kernel.

    Training steps on a CPU otherwise spend a tenth of their time on page faults. Values do not change.
    """
    if platform.libc_ver()[0] == "glibc":
        trim_threshold, mmap_threshold = -1, -3  # their numbers in malloc.h
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 2**30)
        libc.mallopt(trim_threshold, 2**31 - 1)


def reset_peak_memory() -> None:
    """Start counting anew: a sweep's worker runs several jobs in one process."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb(device: torch.device) -> float:
    """The most memory in use since `reset_peak_memory`, in MiB: the GPU's where there is one, else resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
