"""How many jobs of a sweep run at once."""

from collections.abc import Sequence
from typing import Any


def default_workers(accelerator: str, devices: Any = 1) -> int:
    """Return how many jobs to run at once on this machine: one per GPU, else one per core.

    `devices` is what each job uses: a number of devices or a list of them. Other values are not
    checked here, because each job checks its own config.
    """
    import joblib  # takes 0.3 s, which `tvf --help` need not spend

    several = isinstance(devices, Sequence) and not isinstance(devices, str)
    per_job = len(devices) if several else devices
    available = joblib.cpu_count()
    if accelerator != "cpu":
        import torch

        available = torch.cuda.device_count() or available
    return max(1, available // per_job) if isinstance(per_job, int) and per_job > 0 else available
