"""How many GPUs there are, found out without touching one.

A process in which CUDA was initialised cannot fork one that uses it, and jobs are forks: of a
sweep's process, of a launcher's worker, of a process of heads. `torch.cuda.is_available()`
initialises it by default; `torch.cuda.device_count()` does where NVML cannot count: without its
library, and with parts of GPUs (MIG). So does a backward pass, on the CPU too.
"""

import os
from collections.abc import Callable
from functools import cache

VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")


def count_gpus() -> int:
    """How many GPUs torch can use here. Does not initialise CUDA in this process."""
    import torch  # which `tvf --help` does not need

    count = torch.cuda.device_count
    if not hasattr(os, "fork") or torch.cuda.is_initialized():
        return count()
    return _call_in_fork(count, *map(os.environ.get, VISIBLE))


@cache
def _call_in_fork(count: Callable[[], int], *visible: str | None) -> int:
    """What `count` returns in a fork of this process; 0 if it fails there."""
    child = os.fork()
    if child == 0:
        found = 0
        try:
            found = count()
        finally:
            os._exit(found)
    return max(0, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
