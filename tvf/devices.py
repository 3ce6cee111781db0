"""What the machine gives a job: a GPU of its own beside other jobs, and the memory that it took."""

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
