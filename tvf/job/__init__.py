"""One job from its validated config to its summary."""

from tvf.job.checkpoint import Checkpoints
from tvf.job.resources import JobContext, import_libraries
from tvf.job.run import run_job

__all__ = ["Checkpoints", "JobContext", "import_libraries", "run_job"]
