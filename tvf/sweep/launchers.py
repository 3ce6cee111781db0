"""The sweep's beginning and end, in the process that launches the jobs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import joblib

if TYPE_CHECKING:
    pass


def default_workers(accelerator: str, devices: Any = 1) -> int:
    """How many jobs to run at once on this machine: one a GPU, or one a core where there is none or none is wanted.

    Jobs with several `devices`, a number or a list of them, take so many each; other values are for them to refuse.
    """
    each = (
        len(devices) if isinstance(devices, Sequence) and not isinstance(devices, str) else devices
    )
    there = joblib.cpu_count()
    if accelerator != "cpu":
        import torch

        there = torch.cuda.device_count() or there
    return max(1, there // each) if isinstance(each, int) and each > 0 else there
