"""One job, from its validated config to its summary."""

from tvf.job.changed_images import describe_changed_images
from tvf.job.checkpoint import Checkpoints
from tvf.job.heads import SharedSetups, shared_setup
from tvf.job.resources import JobContext, import_libraries
from tvf.job.run import run_job

__all__ = [
    "Checkpoints",
    "JobContext",
    "SharedSetups",
    "describe_changed_images",
    "import_libraries",
    "run_job",
    "shared_setup",
]
