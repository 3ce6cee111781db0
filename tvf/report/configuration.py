"""A configuration: the jobs that differ only in seed and division, with their scores and costs.

Only finished jobs with finite scores count, one for each seed of each division.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, median, stdev
from typing import Any, NamedTuple

from tvf.metrics import METRICS
from tvf.records import DROPPED, TRIAL, Row
from tvf.report.bootstrap import bootstrap_scores, percentile_interval
from tvf.report.epoch_choice import estimate_epoch_optimism
from tvf.report.images import other_images
from tvf.report.statistics import ROUNDING, t_quantile
from tvf.report.validated import DRAWS, gather, score_function

NORMAL = 1.96  # standard errors in half of a 95 % interval


class Training(NamedTuple):
    """What distinguishes one training of a configuration from another; None if not in its config.

    Its division of the images, by split seed, outer fold and fold, and its own seed.
    """

    split_seed: Any
    outer_fold: Any
    fold: Any
    seed: Any

    @property
    def division(self) -> tuple[Any, Any, Any]:
        """What says which images it trained on."""
        return self[:3]


@dataclass(frozen=True)
class Score:
    """The mean score over trainings, with its errors as halves of 95 % intervals.

    `retraining` is how far the mean may be from that of many trainings on the same images, `images`
    how far from that on other images of the same kind (with groups: of other groups). Both are None
    where they cannot be estimated. `sd` is the standard deviation between single trainings, with
    whatever differs between them. `low` and `high` are the ends of the interval for other images,
    or else, if that is unknown, of the one for repeated training; `covers` says which.
    """

    mean: float
    trainings: int
    sd: float | None
    retraining: float | None
    images: float | None
    low: float | None
    high: float | None

    @property
    def covers(self) -> str:
        """What the interval is about; empty if there is none."""
        if self.images is not None:
            return "other images"
        return "repeated training" if self.retraining is not None else ""

    @property
    def errors(self) -> str:
        """Both errors in words: retraining ±0.006, other images ±0.035."""
        known = (("retraining", self.retraining), ("other images", self.images))
        return ", ".join(f"{name} ±{margin:.3f}" for name, margin in known if margin is not None)

    def __str__(self) -> str:
        errors = f" ({self.errors})" if self.errors else ""
        return f"{self.mean:.3f}{errors}, n = {self.trainings}"


@dataclass(frozen=True, eq=False)
class Configuration:
    """Jobs that differ only in seed and division.

    `label` starts with the fraction. `jobs` are all its jobs, `done` those that count, one for each
    training. The rest comes from `done`: validation `scores` by training, the validation and test
    scores by `metric`, and the median of the jobs' own training seconds.
    """

    label: str
    fraction: float
    jobs: list[Row]
    done: list[Row]
    scores: dict[Training, float]
    val: Score | None
    test: Score | None
    seconds: float | None
    metric: str

    @cached_property
    def epoch_optimism(self) -> float | None:
        """How much the choice of each job's epoch flatters the validation score.

        None if unknown, or if there was no choice.
        """
        return estimate_epoch_optimism(self.done, self.metric) if self.done else None

    @property
    def dropped(self) -> bool:
        """Whether successive halving or a search dropped it before its last epoch."""
        return not self.done and any(job[DROPPED] for job in self.jobs)

    @property
    def pruned(self) -> bool:
        """Whether it was a search that dropped it."""
        return self.dropped and any(job[TRIAL] == "pruned" for job in self.jobs)

    @property
    def parameters(self) -> int:
        """The number of parameters that train."""
        return max((job["trainable_params"] or 0 for job in self.done), default=0)

    def __str__(self) -> str:
        return f"pct_unfreeze={self.label}"


def training_of(job: Row) -> Training:
    """What distinguishes the job from others of its configuration."""
    data = job["config"].get("data") or {}
    return Training(data.get("split_seed"), data.get("outer_fold"), data.get("fold"), job["seed"])


def name_trainings(trainings: Sequence[Training]) -> dict[Training, str]:
    """A short name for each training, from what differs between them: "1", "fold 2, seed 1"."""
    divided = [
        name
        for name in ("split_seed", "outer_fold", "fold")
        if len({getattr(training, name) for training in trainings}) > 1
    ]
    if not divided:
        return {training: str(training.seed) for training in trainings}
    if len({training.seed for training in trainings}) > 1:
        divided.append("seed")
    return {
        training: ", ".join(
            f"{name.replace('_', ' ')} {getattr(training, name)}" for name in divided
        )
        for training in trainings
    }


def build_configuration(
    label: str, jobs: list[Row], metric: str
) -> tuple[Configuration, list[str]]:
    """Build a configuration from its jobs; also return warnings about jobs that do not count."""
    key = METRICS[metric]
    done, warnings = _jobs_that_count(jobs, key)
    seconds = [value for value in map(own_seconds, done) if value is not None]
    configuration = Configuration(
        label=label,
        fraction=jobs[0]["pct_unfreeze"] or 0,
        jobs=jobs,
        done=done,
        scores={training_of(job): job[f"val_{key}"] for job in done},
        val=_summarise(done, "val", metric),
        test=_summarise([job for job in done if _has_test(job, key)], "test", metric),
        seconds=median(seconds) if seconds else None,
        metric=metric,
    )
    return configuration, warnings


def own_seconds(job: Row) -> float | None:
    """Training seconds, excluding time in frozen layers if the store keeps their results."""
    total, prefix = job["train_seconds"], job["prefix_seconds"] or 0.0
    if total is None:
        return None
    return max(total - prefix, 0.0) if job["summary"].get("prefix_kept") else total


def _has_test(job: Row, key: str) -> bool:
    """Whether the job has a test score that is none of its validation scores."""
    return job[f"test_{key}"] is not None and job["config"]["data"].get("validate_on") != "test"


def _summarise(jobs: Sequence[Row], split: str, metric: str) -> Score | None:
    """The score of some finished jobs on a split; None if there are no jobs."""
    if not jobs:
        return None
    values = {training_of(job): job[f"{split}_{METRICS[metric]}"] for job in jobs}
    mean, sd = fmean(values.values()), stdev(values.values()) if len(values) > 1 else None
    retraining, images = _retraining(values), None
    if metric == "accuracy":
        mean, images = _over_images(jobs, split, mean)
    elif (validated := gather([jobs], split)) is not None:
        score = score_function(validated, metric)
        draws = bootstrap_scores(score, validated.images, validated.groups, DRAWS)[:, 0]
        interval = percentile_interval(mean, draws)
        images = interval.error and NORMAL * interval.error
    margin = images if images is not None else retraining
    low = None if margin is None else max(mean - margin, 0.0)
    high = None if margin is None else min(mean + margin, 1.0)
    return Score(mean, len(values), sd, retraining, images, low, high)


def _retraining(values: Mapping[Training, float]) -> float | None:
    """Half the 95 % interval of the mean, from the spread of seeds within each division.

    None if no division has two seeds, if all seeds score the same, or if the interval is wider than
    the scale, as of two seeds that differ much: the spread is unknown then.
    """
    by_division: dict[tuple[Any, ...], list[float]] = {}
    for training, value in values.items():
        by_division.setdefault(training.division, []).append(value)
    divisions = list(by_division.values())
    df = sum(len(scores) - 1 for scores in divisions)
    squares = sum(sum((value - fmean(scores)) ** 2 for value in scores) for scores in divisions)
    if squares <= ROUNDING**2:
        return None
    variance = squares / df * sum(1 / len(scores) for scores in divisions) / len(divisions) ** 2
    margin = t_quantile(df) * math.sqrt(variance)
    return margin if margin < 1 else None


def _over_images(jobs: Sequence[Row], split: str, mean: float) -> tuple[float, float | None]:
    """The mean accuracy over images, and half its 95 % interval for other images."""
    validated = gather([jobs], split)
    if validated is not None:
        interval = other_images(validated.correct[0], validated.groups, validated.trained)
        mean = interval.mean
        if interval.low is None or interval.high is None:
            return mean, None
        return mean, max(mean - interval.low, interval.high - mean)  # one end may be clipped
    # Without predictions, as if each image were right or wrong independently of the others.
    images = sum(map(sum, jobs[0]["summary"].get(f"{split}_confusion") or []))
    return mean, (NORMAL * math.sqrt(mean * (1 - mean) / images) or None) if images else None


def _jobs_that_count(jobs: Sequence[Row], key: str) -> tuple[list[Row], list[str]]:
    """Finished jobs with finite scores, the first of each training."""
    counting: dict[Training, Row] = {}
    warnings = []
    for job in jobs:
        if job["state"] != "done":
            continue
        training = training_of(job)
        if job[f"val_{key}"] is None or job["val_loss"] is None:
            warnings.append(f"{job['name']} does not count: its scores are not finite.")
        elif training in counting:
            sweeps = f"{counting[training]['sweep']}, {job['sweep']}"
            warnings.append(f"{job['name']} appears twice ({sweeps}): only the first counts.")
        else:
            counting[training] = job
    return list(counting.values()), warnings
