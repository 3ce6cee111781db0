"""Many jobs: checked before the first, each run in its own process, compared after the last."""

from tvf.sweep.callback import SweepCallback, finish, interrupt, launched, planned_batches
from tvf.sweep.launchers import workers
from tvf.sweep.processes import can_fork, interruptible, run_in_subprocess
from tvf.sweep.repetitions import Repetitions, choose_repetitions
from tvf.sweep.wandb_agents import read_grid, wandb_sweep_yaml

__all__ = [
    "Repetitions",
    "SweepCallback",
    "can_fork",
    "choose_repetitions",
    "finish",
    "interrupt",
    "interruptible",
    "launched",
    "planned_batches",
    "read_grid",
    "run_in_subprocess",
    "wandb_sweep_yaml",
    "workers",
]
