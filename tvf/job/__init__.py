"""One job, from its validated config to its summary."""

from tvf.job.changed_images import describe_changed_images
from tvf.job.checkpoint import Checkpoints
from tvf.job.heads import SharedSetups, shared_setup
from tvf.job.phases import JobPhases
from tvf.job.probe_start import probe_inputs
from tvf.job.resources import JobContext, explain_memory, import_libraries
from tvf.job.run import run_job
from tvf.job.setup import Job, open_job

__all__ = [
    "Checkpoints",
    "Job",
    "JobContext",
    "JobPhases",
    "SharedSetups",
    "describe_changed_images",
    "explain_memory",
    "import_libraries",
    "open_job",
    "probe_inputs",
    "run_job",
    "shared_setup",
]
