"""The launchers of tvf, in the package where Hydra looks for plugins."""

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher


# The classes are defined here, not in tvf.sweep, because every Hydra program in the environment
# imports this module at startup: it must not load tvf.
class ClusterLauncher(Launcher):
    """What launchers that run jobs on other machines have in common."""

    def __init__(self, **options: Any) -> None:
        self.options = options

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        """Keep what composes the jobs; their own processes have the task function."""
        self.config, self.loader = config, hydra_context.config_loader


class SlurmLauncher(ClusterLauncher):
    """Runs jobs on a SLURM cluster (see tvf/sweep/slurm.py)."""

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Submit the jobs that are not done, and wait for them to end."""
        from tvf.sweep import launch_on_slurm, plan_jobs

        jobs = plan_jobs(self.config, self.loader, job_overrides, initial_job_idx)
        return launch_on_slurm(jobs, self.config, self.options)


class RayLauncher(ClusterLauncher):
    """Runs jobs on a Ray cluster (see tvf/sweep/ray_cluster.py)."""

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run the jobs that are not done, and wait for them to end."""
        from tvf.sweep import launch_on_ray, plan_jobs

        jobs = plan_jobs(self.config, self.loader, job_overrides, initial_job_idx)
        return launch_on_ray(jobs, self.config, self.options)
