"""Successive halving: train all candidates briefly, keep the best, train them longer, and so on.

One bracket of Hyperband (Jamieson and Talwalkar 2016; Li et al. 2018) with whole epochs as the
budget. Promotion depends only on the first epochs in the jobs' metrics.jsonl, so a sweep that is
rerun makes the same decisions.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from tvf.config import REPETITIONS
from tvf.errors import InputError, require_count
from tvf.metrics import METRICS, WORDS, metric_of
from tvf.records import has_reached, is_done, is_running, note_rung, read_history, read_status
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


@dataclass(frozen=True)
class HalvingPlan:
    """The candidates of the sweep in `folder` and the epoch at which each rung ends (`budgets`).

    `metric` ranks the candidates; `configs` are those of the jobs, by folder name.
    """

    folder: Path
    metric: str
    eta: int
    budgets: list[int]
    candidates: list[Candidate]
    configs: Mapping[str, dict[str, Any]]


def plan_budgets(candidates: int, epochs: int, eta: int = 2, min_epochs: int = 1) -> list[int]:
    """Return the epoch at which each rung ends.

    The last rung ends at `epochs`, each earlier one at 1/`eta` of the next, rounded up. There are
    enough rungs to reduce the candidates to about one, unless the first rung would have fewer than
    `min_epochs`. Raises InputError for settings that allow no rung.
    """
    require_count("hydra.sweeper.eta", eta, 2)
    require_count("hydra.sweeper.min_epochs", min_epochs, 1)
    if min_epochs > epochs:
        raise InputError(
            f"hydra.sweeper.min_epochs={min_epochs} must be at most the jobs' epochs={epochs}."
        )
    rungs = 1
    while eta**rungs <= candidates and min_epochs * eta**rungs <= epochs:
        rungs += 1
    return [-(-epochs // eta**later) for later in reversed(range(rungs))]


def split_standings(
    standings: Sequence[Standing], eta: int = 2
) -> tuple[list[Standing], list[Standing]]:
    """Return the promoted candidates (one in `eta`, rounded up) and the dropped ones, best first.

    Ties go to the candidate with less training time, then to the earlier one. Failed candidates
    rank last.
    """
    ranked = sorted(
        standings,
        key=lambda standing: (standing.score is None, -(standing.score or 0.0), standing.seconds),
    )
    promoted = -(-len(ranked) // eta)
    return ranked[:promoted], ranked[promoted:]


def make_plan(
    folder: Path,
    overrides: Mapping[str, list[str]],
    configs: Mapping[str, dict[str, Any]],
    eta: int = 2,
    min_epochs: int = 1,
) -> HalvingPlan:
    """Return the plan for the jobs in `folder`; `overrides` and `configs` are by folder name.

    Raises InputError unless all jobs have the same number of epochs and comparable scores.
    """
    from tvf.config import build_phases

    epochs = _common_epochs(configs)
    _check_comparable(configs)
    candidates = _group_candidates(overrides, configs)
    first_decision = 1 + max(
        sum(phase.epochs for phase in build_phases(config, 1)[:-1]) for config in configs.values()
    )
    budgets = plan_budgets(len(candidates), epochs, eta, max(min_epochs, first_decision))
    if first_decision > 1 and len(budgets) == 1 < len(candidates):
        raise InputError(
            "hydra/sweeper=halving cannot compare jobs before epoch "
            f"{first_decision} of {epochs}, when all jobs have begun the last phase of their "
            "recipe: raise epochs, or shorten the earlier phases."
        )
    metric = metric_of(next(iter(configs.values())))
    return HalvingPlan(folder, metric, eta, budgets, candidates, configs)


def _common_epochs(configs: Mapping[str, dict[str, Any]]) -> int:
    if any(config["stop_after"] is not None for config in configs.values()):
        raise InputError(
            "stop_after must be null with hydra/sweeper=halving, which sets it itself: leave it "
            "out."
        )
    lengths = sorted({config["epochs"] for config in configs.values()})
    if len(lengths) > 1:
        raise InputError(
            f"epochs={', '.join(map(str, lengths))} must be a single value with "
            "hydra/sweeper=halving, which decides how long each job trains."
        )
    return lengths[0]


def _check_comparable(configs: Mapping[str, dict[str, Any]]) -> None:
    """Raise InputError unless all jobs use the same metric on the same validation images.

    Nor may they be given more or fewer training images, which would drop those with fewer.
    """
    limits = {config["data"].get("train_limit") for config in configs.values()}
    if len(limits) > 1:
        raise InputError(
            "data.train_limit cannot be swept with hydra/sweeper=halving, which would drop the "
            "jobs with fewer training images: use hydra/sweeper=grid."
        )
    judged = [
        judged_by(metric_of(config), flat)
        for config, flat in zip(configs.values(), without_seeds([*configs.values()]), strict=True)
    ]
    differing = {
        key
        for options in judged
        for key in {*options, *judged[0]}
        if options.get(key) != judged[0].get(key)
    }
    if differing:
        raise InputError(
            f"{', '.join(sorted(differing))} cannot be swept with hydra/sweeper=halving, which "
            "compares candidates by one metric on the same images. Sweep it separately."
        )


def _group_candidates(
    overrides: Mapping[str, list[str]], configs: Mapping[str, dict[str, Any]]
) -> list[Candidate]:
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


def rungs(plan: HalvingPlan) -> Iterator[list[list[str]]]:
    """Yield the overrides of the jobs to launch, rung by rung.

    Each rung is decided when the previous one has ended. Leaves out jobs that an earlier process
    has already trained far enough.
    """
    candidates = plan.candidates
    log.info(
        "Successive halving: %d candidates, rungs end at epoch %s.",
        len(candidates),
        ", ".join(map(str, plan.budgets)),
    )
    for budget in plan.budgets[:-1]:
        if jobs := _unfinished(plan, candidates, budget):
            yield [[*job, f"stop_after={budget}"] for job in jobs]
        _wait(plan.folder, candidates)
        candidates = _promote(plan, candidates, budget)
    if jobs := _unfinished(plan, candidates, plan.budgets[-1]):
        yield jobs


def _promote(plan: HalvingPlan, candidates: Sequence[Candidate], budget: int) -> list[Candidate]:
    """Decide the rung that ends at epoch `budget`, record it, and return the kept candidates."""
    kept, dropped = split_standings(
        [read_standing(plan, candidate, budget) for candidate in candidates], plan.eta
    )
    log.info(
        "After epoch %d of %d, by validation %s: kept %s; dropped %s.",
        budget,
        plan.budgets[-1],
        WORDS[plan.metric],
        _format_standings(kept),
        _format_standings(dropped),
    )
    note_rung(
        plan.folder,
        {
            "epochs": budget,
            "kept": {standing.candidate.label: standing.score for standing in kept},
            "dropped": {standing.candidate.label: standing.score for standing in dropped},
        },
        [name for standing in dropped for name in standing.candidate.jobs],
    )
    promoted = {id(standing.candidate) for standing in kept}
    # In launch order, not by rank: the longest jobs come first.
    return [candidate for candidate in candidates if id(candidate) in promoted]


def _unfinished(plan: HalvingPlan, candidates: Sequence[Candidate], budget: int) -> list[list[str]]:
    """Return the overrides of the candidates' jobs that have not verifiably reached `budget`."""

    def finished(name: str) -> bool:
        folder, config = plan.folder / name, plan.configs[name]
        paused = read_status(folder).get("state") == "paused" and has_reached(
            folder, config | {"stop_after": budget}
        )
        return paused or is_done(folder, config)

    return [
        job
        for candidate in candidates
        for name, job in candidate.jobs.items()
        if not finished(name)
    ]


def _format_standings(standings: Sequence[Standing]) -> str:
    return ", ".join(map(str, standings)) or "none"


def read_standing(plan: HalvingPlan, candidate: Candidate, budget: int) -> Standing:
    """Read the standing of `candidate` after `budget` epochs from its jobs' files.

    A job with fewer epochs that is not done counts as failed.
    """
    key = f"val_{METRICS[plan.metric]}"
    scores: list[float | None] = []
    seconds = 0.0
    for name in candidate.jobs:
        epochs = read_history(plan.folder / name)[:budget]
        known = [epoch[key] for epoch in epochs if epoch.get(key) is not None]
        complete = len(known) == budget or (
            known and read_status(plan.folder / name).get("state") == "done"
        )
        scores.append(max(known) if complete else None)
        seconds += sum(epoch.get("epoch_seconds") or 0.0 for epoch in epochs)
    found = [score for score in scores if score is not None]
    # Means of equal scores may differ in the last digit, which must not affect the ranking.
    score = round(fmean(found), 9) if len(found) == len(scores) else None
    return Standing(candidate, score, seconds)


def _wait(folder: Path, candidates: Sequence[Candidate]) -> None:
    """Wait for jobs that another process is training, which the launcher has skipped."""
    announced = False
    while running := [
        name for candidate in candidates for name in candidate.jobs if is_running(folder / name)
    ]:
        if not announced:
            log.info("Waiting for jobs that another process is training: %s.", ", ".join(running))
            announced = True
        time.sleep(0.5)
