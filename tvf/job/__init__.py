"""One job from its validated config to its summary."""

from tvf.job.checkpoint import Checkpoints
from tvf.job.run import run_job
from tvf.job.setup import JobContext, import_libraries

__all__ = ["Checkpoints", "JobContext", "import_libraries", "run_job"]
