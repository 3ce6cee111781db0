"""A configuration: the jobs that differ only in their seed, with their scores and costs.

Only finished jobs with finite scores count, one for each seed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from tvf.metrics import METRICS
from tvf.records import Row
from tvf.report.statistics import Estimate, estimate


@dataclass(frozen=True, eq=False)
class Configuration:
    """Jobs that differ only in their seed.

    `label` starts with the fraction. `jobs` are all its jobs, `done` those that count, one for each
    seed. The rest comes from `done`: validation `scores` by seed, the estimates of the validation
    and test scores, and the median and range of the jobs' own training seconds.
    """

    label: str
    fraction: float
    jobs: list[Row]
    done: list[Row]
    scores: dict[int, float]
    val: Estimate | None
    test: Estimate | None
    seconds: float | None
    seconds_range: tuple[float, float] | None

    @property
    def dropped(self) -> bool:
        """Whether successive halving dropped it before its last epoch."""
        return not self.done and any(job["dropped"] for job in self.jobs)

    def __str__(self) -> str:
        return f"pct_unfreeze={self.label}"


def build_configuration(
    label: str, jobs: list[Row], metric: str
) -> tuple[Configuration, list[str]]:
    """Build a configuration from its jobs; also return warnings about jobs that do not count."""
    key = METRICS[metric]
    done, warnings = _jobs_that_count(jobs, key)
    tests = [job[f"test_{key}"] for job in done if job[f"test_{key}"] is not None]
    seconds = [value for value in map(own_seconds, done) if value is not None]
    configuration = Configuration(
        label=label,
        fraction=jobs[0]["pct_unfreeze"] or 0,
        jobs=jobs,
        done=done,
        scores={job["seed"]: job[f"val_{key}"] for job in done},
        val=estimate([job[f"val_{key}"] for job in done], 0, 1) if done else None,
        test=estimate(tests, 0, 1) if tests else None,
        seconds=median(seconds) if seconds else None,
        seconds_range=(min(seconds), max(seconds)) if seconds else None,
    )
    return configuration, warnings


def own_seconds(job: Row) -> float | None:
    """Training seconds, excluding time in frozen layers if the store keeps their results."""
    total, prefix = job["train_seconds"], job["prefix_seconds"] or 0.0
    if total is None:
        return None
    return max(total - prefix, 0.0) if job["summary"].get("prefix_kept") else total


def _jobs_that_count(jobs: Sequence[Row], key: str) -> tuple[list[Row], list[str]]:
    """Finished jobs with finite scores, the first of each seed."""
    by_seed: dict[int, Row] = {}
    warnings = []
    for job in jobs:
        if job["state"] != "done":
            continue
        if job[f"val_{key}"] is None or job["val_loss"] is None:
            warnings.append(f"{job['name']} does not count: its scores are not finite.")
        elif job["seed"] in by_seed:
            sweeps = f"{by_seed[job['seed']]['sweep']}, {job['sweep']}"
            warnings.append(f"{job['name']} appears twice ({sweeps}): only the first counts.")
        else:
            by_seed[job["seed"]] = job
    return list(by_seed.values()), warnings
