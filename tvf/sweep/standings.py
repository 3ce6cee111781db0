"""Candidates that are compared before their jobs end, and how they stand by the jobs' files."""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from tvf.config import REPETITIONS
from tvf.errors import InputError
from tvf.metrics import METRICS, metric_of
from tvf.records import (
    STOPPED,
    has_reached,
    is_done,
    is_running,
    read_history,
    read_status,
)
from tvf.report import judged_by, without_seeds

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """A configuration: jobs that only differ in their seed, as overrides by folder name.

    `label` distinguishes it from the other candidates.
    """

    label: str
    jobs: dict[str, list[str]]


@dataclass(frozen=True)
class Standing:
    """A candidate's result at the end of a rung.

    `score` is the mean over seeds of the best validation score so far, None if a job has failed;
    `seconds` is the training time of all its jobs.
    """

    candidate: Candidate
    score: float | None
    seconds: float

    def __str__(self) -> str:
        score = "failed" if self.score is None else format(self.score, ".3f")
        return f"{self.candidate.label} ({score})"


def group_candidates(
    overrides: Mapping[str, list[str]], configs: Mapping[str, dict[str, Any]]
) -> list[Candidate]:
    """Group jobs that only differ in seed and division; `overrides` and `configs` are by folder."""
    groups: dict[str, dict[str, list[str]]] = {}
    for name, flat in zip(configs, without_seeds([*configs.values()]), strict=True):
        options = repr(sorted((key, repr(value)) for key, value in flat.items()))
        groups.setdefault(options, {})[name] = overrides[name]
    common = set.intersection(*map(set, overrides.values()))
    return [Candidate(_label(jobs, common), jobs) for jobs in groups.values()]


def _label(jobs: Mapping[str, list[str]], common: set[str]) -> str:
    name, overrides = next(iter(jobs.items()))
    own = [
        text
        for text in overrides
        if text not in common and text.partition("=")[0].lstrip("+") not in REPETITIONS
    ]
    return " ".join(own) or name


def common_epochs(configs: Iterable[dict[str, Any]], setting: str) -> int:
    """Return the epochs of all jobs; InputError if they differ.

    `setting` is the option that decides how long each job trains.
    """
    lengths = sorted({config["epochs"] for config in configs})
    if len(lengths) > 1:
        raise InputError(
            f"epochs={', '.join(map(str, lengths))} must be a single value with {setting}, which "
            "decides how long each job trains."
        )
    return lengths[0]


def check_comparable(configs: Sequence[dict[str, Any]], sweeper: str) -> None:
    """Raise InputError unless all jobs use the same metric on the same validation images.

    Nor may they be given more or fewer training images, which would drop those with fewer.
    """
    if any(config["stop_after"] is not None for config in configs):
        raise InputError(
            f"stop_after must be null with hydra/sweeper={sweeper}, which decides itself how long "
            "each job trains: leave it out."
        )
    limits = {config["data"].get("train_limit") for config in configs}
    if len(limits) > 1:
        raise InputError(
            f"data.train_limit cannot be swept with hydra/sweeper={sweeper}, which would drop the "
            "jobs with fewer training images: use hydra/sweeper=grid."
        )
    judged = [
        judged_by(metric_of(config), flat)
        for config, flat in zip(configs, without_seeds(configs), strict=True)
    ]
    differing = {
        key
        for options in judged
        for key in {*options, *judged[0]}
        if options.get(key) != judged[0].get(key)
    }
    if differing:
        raise InputError(
            f"{', '.join(sorted(differing))} cannot be swept with hydra/sweeper={sweeper}, which "
            "compares candidates by one metric on the same images. Sweep it separately."
        )


def first_decision(configs: Iterable[dict[str, Any]]) -> int:
    """Return the first epoch that compares jobs: all are in the last phase of their recipe."""
    from tvf.config import build_phases

    return 1 + max(
        sum(phase.epochs for phase in build_phases(config, 1)[:-1]) for config in configs
    )


def unfinished(
    folder: Path,
    configs: Mapping[str, dict[str, Any]],
    candidates: Sequence[Candidate],
    budget: int | None,
) -> list[list[str]]:
    """Return the overrides of the candidates' jobs that have not verifiably reached `budget`.

    It is an epoch, or None for the end. Candidates that share a job launch it once.
    """

    def finished(name: str) -> bool:
        job, config = folder / name, configs[name]
        paused = read_status(job).get("state") == "paused" and has_reached(
            job, config | {"stop_after": budget}
        )
        return paused or is_done(job, config)

    jobs = {name: job for candidate in candidates for name, job in candidate.jobs.items()}
    return [job for name, job in jobs.items() if not finished(name)]


def read_standing(folder: Path, metric: str, candidate: Candidate, budget: int) -> Standing:
    """Read the standing of `candidate` after `budget` epochs from its jobs' files.

    A job with fewer epochs that is not done counts as failed.
    """
    key = f"val_{METRICS[metric]}"
    scores: list[float | None] = []
    seconds = 0.0
    for name in candidate.jobs:
        epochs = read_history(folder / name)[:budget]
        known = [epoch[key] for epoch in epochs if epoch.get(key) is not None]
        complete = len(known) == budget or (
            known and read_status(folder / name).get("state") == "done"
        )
        scores.append(max(known) if complete else None)
        seconds += sum(epoch.get("epoch_seconds") or 0.0 for epoch in epochs)
    found = [score for score in scores if score is not None]
    # Means of equal scores may differ in the last digit, which must not affect the ranking.
    score = round(fmean(found), 9) if len(found) == len(scores) else None
    return Standing(candidate, score, seconds)


def are_interrupted(folder: Path, candidates: Iterable[Candidate], budget: int | None) -> bool:
    """Whether jobs were kept from reaching `budget` by no fault of their own.

    It is an epoch, or None for the end. Such jobs have not ended, and cannot be judged.
    """

    def interrupted(job: Path) -> bool:
        status = read_status(job)
        if status.get("state") == "paused":  # before `budget`: it was not started again
            return budget is None or len(read_history(job)) < budget
        failed = status.get("state") == "failed" and status["error"] not in STOPPED
        return not failed and status.get("state") != "done"

    return any(interrupted(folder / name) for each in candidates for name in each.jobs)


def wait_for(folder: Path, candidates: Sequence[Candidate]) -> None:
    """Wait for jobs that another process is training, which the launcher has skipped."""
    announced = False
    while running := [
        name for candidate in candidates for name in candidate.jobs if is_running(folder / name)
    ]:
        if not announced:
            log.info("Waiting for jobs that another process is training: %s.", ", ".join(running))
            announced = True
        time.sleep(0.5)
