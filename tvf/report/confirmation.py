"""What a sweep's confirmation says about its choice: `tvf confirm` trains the chosen one again.

The score of a choice flatters, since the choice was made by it. Divisions and seeds that the sweep
did not use give the chosen configuration and its runner-up scores that chose nothing.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvf.config import REPETITIONS, Config, result_config
from tvf.metrics import WORDS
from tvf.records import CONFIRMATION, Row, read_sweep
from tvf.report.configuration import Configuration, build_configuration, training_of
from tvf.report.evidence import Evidence, collect_evidence
from tvf.report.images import ImageDifference, compare_scores
from tvf.report.recommend import Recommendation
from tvf.report.validated import read_job

UNSTATED = (*REPETITIONS, "data.folds")  # a sweep on one split is confirmed by folds


@dataclass(frozen=True, eq=False)
class Confirmation:
    """What the jobs in SWEEP/confirm say, in sentences.

    `configurations` are the chosen one and its runner-up, as far as they have been trained again;
    `difference` is the first minus the second, None if unknown. `confirmed` is None as long as it
    is open: jobs are missing, or none of the jobs are about the present choice.
    """

    text: str
    configurations: list[Configuration]
    difference: ImageDifference | None = None
    confirmed: bool | None = None


def to_confirm(evidence: Evidence | None, choice: Recommendation) -> list[Configuration]:
    """The chosen configuration, then its runner-up if it has one; empty if none is chosen.

    The runner-up has the highest mean score of all others.
    """
    if choice.chosen is None:
        return []
    if evidence is None or choice.decision is None:
        return [choice.chosen]
    groups, means = evidence.configurations, evidence.scores.means
    others = [index for index in range(len(groups)) if index != choice.decision.chosen]
    return [choice.chosen, groups[max(others, key=lambda index: means[index])]]


def stated_settings(config: Config, following: Collection[str]) -> dict[str, Any]:
    """The options that a sweep's job and its repetition in a confirmation have in common.

    `following` are the keys whose value is the job's seed.
    """
    left_out = {*UNSTATED, *following}
    return {key: value for key, value in result_config(config).items() if key not in left_out}


def keys_of_seeds(job: Row, following: Collection[str]) -> set[str]:
    """The keys whose value is the job's seed: `following`, and overrides such as KEY=${seed}."""
    pairs = [override.partition("=") for override in job["overrides"]]
    return {*following, *(key.lstrip("+") for key, _, value in pairs if value == "${seed}")}


def jobs_again(group: Configuration, rows: Sequence[Row], following: Collection[str]) -> list[Row]:
    """The rows that train this configuration again, on images of the same pool."""
    first = group.done[0]
    keys = keys_of_seeds(first, following)
    settings, pool = stated_settings(first["config"], keys), _pool_of(first)
    return [
        row
        for row in rows
        if stated_settings(row["config"], keys) == settings
        and (row["state"] != "done" or _pool_of(row) == pool)
    ]


def read_confirmation(
    configurations: Sequence[Configuration],
    evidence: Evidence | None,
    choice: Recommendation,
    following: Collection[str],
    metric: str,
    margin: float,
) -> Confirmation | None:
    """Read what the confirmation of a sweep has found; None without any finished job.

    `configurations` are all those of the sweep, `following` the keys whose value is the seed. Only
    jobs count whose seed the sweep has not used, on the images that the sweep used.
    """
    candidates = to_confirm(evidence, choice)
    sweeps = {Path(job["path"]).parent for group in configurations for job in group.done}
    if not candidates or len(sweeps) != 1:
        return None
    folder = sweeps.pop() / CONFIRMATION
    found = read_sweep(folder) if folder.is_dir() else []
    if not any(row["state"] == "done" for row in found):
        return None
    fresh, new_divisions = _fresh_jobs(found, configurations)
    again = [jobs_again(group, fresh, following) for group in candidates]
    rows = _most_trained_division(again)
    built = [
        build_configuration(group.label, jobs, metric)[0] if jobs else None
        for group, jobs in zip(candidates, rows, strict=True)
    ]
    if built[0] is None or built[0].val is None:
        return Confirmation(
            f"{folder} holds no finished job of {candidates[0]} with these settings and images, "
            "and with a seed that this sweep did not use, so the choice is not confirmed.",
            [],
        )
    trained = [group for group in built if group and group.val]
    return _conclude(candidates, trained, rows, new_divisions, metric, margin)


def _fresh_jobs(
    rows: Sequence[Row], configurations: Sequence[Configuration]
) -> tuple[list[Row], bool]:
    """The jobs with seeds, and if possible divisions, that the sweep did not use; whether new."""
    used = [training_of(job) for group in configurations for job in group.jobs]
    seeds = {training.seed for training in used}
    divisions = {training.split_seed for training in used}
    fresh = [row for row in rows if row["config"] and row["seed"] not in seeds]
    new = [row for row in fresh if training_of(row).split_seed not in divisions]
    return new or fresh, bool(new)


def _pool_of(job: Row) -> Any:
    images = job["summary"].get("images")
    return images.get("digest") if isinstance(images, dict) else None


def _most_trained_division(rows: Sequence[Sequence[Row]]) -> list[list[Row]]:
    """Each configuration's jobs with the `data.folds` of which most jobs are done."""

    def folds(row: Row) -> Any:
        return row["config"]["data"].get("folds")

    done = [folds(row) for jobs in rows for row in jobs if row["state"] == "done"]
    most = max(dict.fromkeys(done), key=done.count, default=None)
    return [[row for row in jobs if folds(row) == most] for jobs in rows]


def _conclude(
    candidates: Sequence[Configuration],
    trained: list[Configuration],
    rows: Sequence[Sequence[Row]],
    new_divisions: bool,
    metric: str,
    margin: float,
) -> Confirmation:
    evidence = collect_evidence(trained, metric)
    difference = None
    if evidence and len(evidence.configurations) == 2:
        difference = compare_scores(evidence.scores, 0, 1, margin)
    every = [job for jobs in rows for job in jobs]
    done = sum(job["state"] == "done" for job in every)
    complete = done == len(every) and len(trained) == len(candidates)
    objections = _objections(candidates[0], trained, difference, margin)
    where = _describe_repetitions(trained[0], new_divisions)
    lead = f"{'Not confirmed' if objections else 'Confirmed'} on {where}"
    if not complete:
        missing = "" if done == len(every) else f" ({done} of {len(every)} jobs are done)"
        lead = f"On {where} so far{missing}"
    sentences = [
        f"{lead}: {_describe_scores(trained, metric)}.",
        *_describe_difference(trained, difference, about_images=evidence and evidence.images),
        *(f"This contradicts the choice: {reason}." for reason in objections if complete),
        _describe_limits(candidates, trained, new_divisions),
    ]
    confirmed = not objections if complete else None
    return Confirmation(" ".join(sentences), trained, difference, confirmed)


def _objections(
    first: Configuration,
    trained: Sequence[Configuration],
    difference: ImageDifference | None,
    margin: float,
) -> list[str]:
    """What speaks against the choice, whose score in the sweep is that of `first`."""
    again, reasons = trained[0], []
    if len(trained) == 2:
        gap = _mean(trained[0]) - _mean(trained[1])
        gap = difference.interval.mean if difference else gap
        if gap < -margin:
            reasons.append(f"{trained[1]} scores {-gap:.3f} higher, more than {margin:g}")
    if first.val and first.val.low is not None and _mean(again) < first.val.low:
        reasons.append(
            f"{again} scores below the interval of its score in the sweep "
            f"({first.val.low:.3f} to {first.val.high:.3f})"
        )
    return reasons


def _describe_repetitions(again: Configuration, new_divisions: bool) -> str:
    """Where the scores are from: 5 fresh folds with a fresh seed."""
    seeds = len({training.seed for training in again.scores})
    with_seeds = "a fresh seed" if seeds == 1 else f"{seeds} fresh seeds"
    if not new_divisions:
        return with_seeds
    divisions = len({training.division for training in again.scores})
    noun = "fold" if again.done[0]["config"]["data"].get("folds") else "split"
    return f"{divisions} fresh {noun}{'' if divisions == 1 else 's'} with {with_seeds}"


def _describe_scores(trained: Sequence[Configuration], metric: str) -> str:
    texts = []
    for group in trained:
        errors = f" ({group.val.errors})" if group.val and group.val.errors else ""
        has = "" if texts else f" has a validation {WORDS[metric]} of"
        texts.append(f"{group}{has} {_mean(group):.3f}{errors}")
    return ", ".join(texts)


def _describe_difference(
    trained: Sequence[Configuration], difference: ImageDifference | None, about_images: int | None
) -> list[str]:
    if difference is None or difference.interval.low is None:
        return []
    interval = difference.interval
    about = "repeated training" if about_images is None else "other images and trainings"
    return [
        f"{trained[0].label} minus {trained[1].label} is {interval.mean:+z.3f} (95 % interval "
        f"{interval.low:+z.3f} to {interval.high:+z.3f}, {about})."
    ]


def _describe_limits(
    candidates: Sequence[Configuration], trained: Sequence[Configuration], new_divisions: bool
) -> str:
    """What the fresh scores are free of, and what not."""
    if new_divisions:
        text = (
            "The images are the same ones, divided anew: this removes the luck of the divisions "
            "and trainings that made the choice, but not that of the images, nor what the choice "
            "of each job's epoch adds."
        )
    else:
        text = (
            "The validation images are the same ones: this removes the luck of the trainings that "
            "made the choice, but not that of the images, nor what the choice of each job's epoch "
            "adds."
        )
    if new_divisions and _images(candidates, "test") & _images(trained, "val"):
        text += (
            " Images that test in the sweep validate here, so no test score of the new trainings "
            "is quoted."
        )
    return text


def _images(groups: Sequence[Configuration], split: str) -> set[bytes]:
    read = [read_job(job) for group in groups for job in group.done]
    return {identity for each in read if split in each for identity in each[split].ids.tolist()}


def _mean(group: Configuration) -> float:
    assert group.val is not None, "it has a finished job"
    return group.val.mean
