"""What a sweep's confirmation says about its choice, which `tvf confirm` has trained again.

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
from tvf.report.decide import EVIDENCE, are_same, runner_up
from tvf.report.evidence import Evidence, collect_evidence
from tvf.report.images import ImageDifference, compare_scores
from tvf.report.recommend import Recommendation
from tvf.report.validated import read_job
from tvf.report.words import percent, signed

OTHERS = 3  # configurations that an undecided choice is trained again with
FEW = 3  # divisions, below which an interval rests on few
ENDED = ("done", "failed", "pruned", "stopped")  # states of jobs with nothing left to do
UNSTATED = (*REPETITIONS, "data.folds")  # a sweep on one split is confirmed by folds


@dataclass(frozen=True, eq=False)
class Confirmation:
    """What the jobs in SWEEP/confirm say, in sentences.

    `configurations` have been trained again, the chosen one first and then the others from the
    highest score down; `difference` is the first minus the second, None if unknown. `confirmed` is
    None as long as it is open: jobs are missing, or the scores neither confirm the choice (at most
    `EVIDENCE` that the first is more than the margin worse) nor contradict it.
    """

    text: str
    configurations: list[Configuration]
    difference: ImageDifference | None = None
    confirmed: bool | None = None


def to_confirm(
    evidence: Evidence | None, choice: Recommendation, each_fraction: bool = False
) -> list[Configuration]:
    """The chosen configuration, then its runner-up if it has one; empty if none is chosen.

    The runner-up has the highest mean score of all others, or came closest in a race. If the
    sweep has not decided, those that may do as well follow, up to `OTHERS` in all. With
    `each_fraction`, the best of every other fraction takes its place, from the highest score down.
    """
    if choice.chosen is None:
        return []
    if evidence is None or choice.decision is None:
        return [choice.chosen, *([choice.rival] if choice.rival else [])]
    groups, means = evidence.configurations, evidence.scores.means
    if not each_fraction:
        decision, scores = choice.decision, evidence.scores
        others = [runner_up(scores, decision.chosen)]
        for position in sorted(decision.open, key=lambda position: -means[position]):
            if not any(are_same(scores, position, other) for other in (decision.chosen, *others)):
                others.append(position)
        return [choice.chosen, *(groups[position] for position in others[:OTHERS])]
    ranking = sorted(range(len(groups)), key=lambda index: -means[index])
    others = [groups[index] for index in ranking if index != choice.decision.chosen]
    best: dict[float, Configuration] = {}
    for group in (choice.chosen, *others):
        best.setdefault(group.fraction, group)
    return [*best.values()]


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
    chosen = choice.chosen
    sweeps = {Path(job["path"]).parent for group in configurations for job in group.done}
    if chosen is None or len(sweeps) != 1:
        return None
    folder = sweeps.pop() / CONFIRMATION
    found = read_sweep(folder) if folder.is_dir() else []
    ended = all(row["state"] in ENDED for row in found)
    if not any(row["state"] == "done" for row in found):
        return None
    fresh, new_divisions = _fresh_jobs(found, configurations)
    scored = [chosen, *(group for group in configurations if group.done and group is not chosen)]
    again = _most_trained_division([jobs_again(group, fresh, following) for group in scored])
    trained = [
        build_configuration(group.label, jobs, metric)[0]
        for group, jobs in zip(scored, again, strict=True)
        if jobs
    ]
    if not again[0] or trained[0].val is None:
        return Confirmation(
            f"The confirmation of this sweep has no finished job of {chosen} with these settings "
            "and images, on a division or with a seed that the sweep did not use, so the choice is "
            "not confirmed: tvf confirm trains it.",
            [],
        )
    planned = {group.label for group in to_confirm(evidence, choice)}
    decided = choice.decided is not False
    repeated = _Repeated(chosen, planned, decided, ended, trained, new_divisions, metric, margin)
    return repeated.conclude()


def _fresh_jobs(
    rows: Sequence[Row], configurations: Sequence[Configuration]
) -> tuple[list[Row], bool]:
    """The jobs on divisions that the sweep did not use, and True; or else those with such seeds.

    A new division makes a training new, whatever its seed.
    """
    used = [training_of(job) for group in configurations for job in group.jobs]
    seeds = {training.seed for training in used}
    divisions = {training.split_seed for training in used}
    known = [row for row in rows if row["config"]]
    new = [row for row in known if training_of(row).split_seed not in divisions]
    return new or [row for row in known if row["seed"] not in seeds], bool(new)


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


@dataclass(frozen=True, eq=False)
class _Repeated:
    """The configurations that have been trained again, the chosen one first.

    `first` is that one in the sweep. `planned` are the labels that must have been trained for a
    verdict: the chosen one and its runner-up. `decided` says whether the sweep was sure, `ended`
    that no job of the confirmation is left to train.
    """

    first: Configuration
    planned: set[str]
    decided: bool
    ended: bool
    trained: list[Configuration]
    new_divisions: bool
    metric: str
    margin: float

    def conclude(self) -> Confirmation:
        """Put the scores, their difference and the verdict into sentences."""
        again, *others = [group for group in self.trained if group.val]
        ranked = [again, *sorted(others, key=_mean, reverse=True)]
        evidence = collect_evidence(ranked[:2], self.metric, optimism=False)
        difference = None
        if evidence and len(evidence.configurations) == 2:
            difference = compare_scores(evidence.scores, 0, 1, self.margin)
        jobs = [job for group in self.trained for job in group.jobs]
        done = sum(job["state"] == "done" for job in jobs)
        complete = done == len(jobs) and self.planned <= {group.label for group in ranked}
        confirmed = self._is_confirmed(difference) if complete else None
        where = self._describe_repetitions(again)
        if not self.ended:
            lead = f"On {where} so far ({done} {'job is' if done == 1 else 'jobs are'} done)"
        elif not complete or len(self.planned) < 2 or not self.decided:
            lead = f"Trained again on {where}"
        else:
            lead = f"{self._verdict(confirmed)} on {where}"
        sentences = [
            f"{lead}: {self._describe_scores(ranked)}.",
            *self._describe_difference(ranked, difference, evidence),
            *(self._describe_missing(ranked, len(jobs) - done) if self.ended else []),
            *(self._describe_fall(again) if complete else []),
            self._describe_limits(ranked),
        ]
        return Confirmation(" ".join(sentences), ranked, difference, confirmed)

    def _is_confirmed(self, difference: ImageDifference | None) -> bool | None:
        """Whether the choice is shown again to be good enough, or not to be; None if open."""
        if (
            len(self.planned) < 2
            or not self.decided
            or difference is None
            or difference.worse is None
        ):
            return None
        if difference.worse <= EVIDENCE:
            return True
        return False if difference.worse >= 1 - EVIDENCE else None

    def _verdict(self, confirmed: bool | None) -> str:
        if confirmed is None:
            return "Neither confirmed nor contradicted"
        return "Confirmed" if confirmed else "Contradicted"

    def _describe_missing(self, ranked: Sequence[Configuration], failed: int) -> list[str]:
        """What an ended confirmation lacks for a verdict: jobs that failed, or a configuration."""
        said = []
        if failed:
            said.append(f"{failed} of its jobs failed")
        if missing := sorted(self.planned - {group.label for group in ranked}):
            said.append(f"pct_unfreeze={' and '.join(missing)} has no finished job there")
        if not said:
            return []
        return [
            f"There is no verdict, because {' and '.join(said)}: tvf confirm trains what is left."
        ]

    def _describe_fall(self, again: Configuration) -> list[str]:
        """That the score was too high in the sweep, if it is below the interval given there."""
        val = self.first.val
        if val is None or val.low is None or _mean(again) >= val.low:
            return []
        return [
            f"Its score in the sweep was too high: {_mean(again):.3f} is below the 95 % interval "
            f"given there ({val.low:.3f} to {val.high:.3f})."
        ]

    def _describe_repetitions(self, again: Configuration) -> str:
        """Where the scores are from: 5 fresh folds with a fresh seed."""
        seeds = len({training.seed for training in again.scores})
        with_seeds = "a fresh seed" if seeds == 1 else f"{seeds} fresh seeds"
        if not self.new_divisions:
            return with_seeds
        return f"{self._count_divisions(again, 'fresh ')} with {with_seeds}"

    def _count_divisions(self, again: Configuration, how: str = "") -> str:
        divisions = len({training.division for training in again.scores})
        noun = "fold" if again.done[0]["config"]["data"].get("folds") else "split"
        return f"{divisions} {how}{noun}{'' if divisions == 1 else 's'}"

    def _describe_scores(self, ranked: Sequence[Configuration]) -> str:
        texts = []
        for group in ranked:
            errors = f" ({group.val.errors})" if group.val and group.val.errors else ""
            has = "" if texts else f" has a validation {WORDS[self.metric]} of"
            texts.append(f"{group}{has} {_mean(group):.3f}{errors}")
        return "; ".join(texts)

    def _describe_difference(
        self,
        ranked: Sequence[Configuration],
        difference: ImageDifference | None,
        evidence: Evidence | None,
    ) -> list[str]:
        if difference is None or difference.worse is None or evidence is None:
            return []
        mean, _, low, high = difference.interval
        about = "repeated training" if evidence.images is None else "other images and trainings"
        if self.new_divisions and len({t.division for t in ranked[0].scores}) < FEW:
            about += f", from only {self._count_divisions(ranked[0])}: data.folds=5 has more"
        return [
            f"{ranked[0].label} minus {ranked[1].label} is {signed(mean)} (95 % interval "
            f"{signed(low or 0.0)} to {signed(high or 0.0)}, {about}); the probability that it "
            f"is more than {self.margin:g} worse is {percent(difference.worse)}."
        ]

    def _describe_limits(self, ranked: Sequence[Configuration]) -> str:
        """What the fresh scores are free of, and what not."""
        what = "divisions and trainings" if self.new_divisions else "trainings"
        same = "images are the same ones, divided anew"
        same = same if self.new_divisions else "validation images are the same ones"
        text = (
            f"The {same}: this removes the luck of the {what} that made the choice, but not that "
            "of the images."
        )
        if ranked[0].epoch_optimism:
            text += (
                " The choice of each job's epoch still makes the score too high: by about "
                f"{ranked[0].epoch_optimism:.3f}."
            )
        tested, validate = _images([self.first], "test"), _images(ranked, "val")
        if self.new_divisions and tested & validate:
            text += (
                " Images that test in the sweep validate here, so no test score of the new "
                "trainings is quoted."
            )
        return text


def _images(groups: Sequence[Configuration], split: str) -> set[bytes]:
    read = [read_job(job) for group in groups for job in group.done]
    return {identity for each in read if split in each for identity in each[split].ids.tolist()}


def _mean(group: Configuration) -> float:
    assert group.val is not None, "it has a finished job"
    return group.val.mean
