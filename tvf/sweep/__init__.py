"""Many jobs: checked before the first, each run in its own process, compared after the last."""

from tvf.sweep.callback import (
    SweepCallback,
    finish,
    interrupt,
    launched,
    planned_batches,
    report_sweep,
)
from tvf.sweep.heads import train_heads
from tvf.sweep.launchers import jobs_at_once, runs_in_parallel, shield_workers, workers
from tvf.sweep.mirroring import fetch_sweep, refuse_unmirrored
from tvf.sweep.outcome import BAD_INPUT, INTERRUPTED, debugging, job_outcome, log_in_file
from tvf.sweep.processes import (
    can_fork,
    interruptible,
    run_in_subprocess,
    seconds_to_checkpoint,
)
from tvf.sweep.ray_cluster import launch_on_ray
from tvf.sweep.remote import plan_jobs, use_node_store
from tvf.sweep.repetitions import Repetitions, choose_repetitions
from tvf.sweep.slurm import launch_on_slurm
from tvf.sweep.wandb_agents import read_grid, wandb_sweep_yaml

__all__ = [
    "BAD_INPUT",
    "INTERRUPTED",
    "Repetitions",
    "SweepCallback",
    "can_fork",
    "choose_repetitions",
    "debugging",
    "fetch_sweep",
    "finish",
    "interrupt",
    "interruptible",
    "job_outcome",
    "jobs_at_once",
    "launch_on_ray",
    "launch_on_slurm",
    "launched",
    "log_in_file",
    "plan_jobs",
    "planned_batches",
    "read_grid",
    "refuse_unmirrored",
    "report_sweep",
    "run_in_subprocess",
    "runs_in_parallel",
    "seconds_to_checkpoint",
    "shield_workers",
    "train_heads",
    "use_node_store",
    "wandb_sweep_yaml",
    "workers",
]
