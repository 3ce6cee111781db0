"""Successive halving: train all candidates a little, keep the best by validation, train those on, and so on.

One bracket of Hyperband (Jamieson and Talwalkar 2016; Li et al. 2018), over whole epochs. Who stays is decided by the
first epochs in the job folders' metrics.jsonl alone, so a sweep that is given again decides the same.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from tvf.errors import InputError, require_count
from tvf.metrics import METRICS, WORDS, metric_of
from tvf.records import has_reached, is_done, is_running, note_rung, read_history, read_status
from tvf.report import judged_by, without_seeds

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """A configuration: the overrides of the jobs that differ in their seed alone, by the names of their folders.

    `label` is what tells it from other candidates.
    """

    label: str
    jobs: dict[str, list[str]]


@dataclass(frozen=True)
class Standing:
    """How a candidate has done so far: the mean over seeds of the best score, None if a job has failed; seconds."""

    candidate: Candidate
    score: float | None
    seconds: float

    def __str__(self) -> str:
        return f"{self.candidate.label} ({'failed' if self.score is None else format(self.score, '.3f')})"


@dataclass(frozen=True)
class HalvingPlan:
    """The sweep in `folder`: its candidates, by which metric they are judged, and after how many epochs.

    `configs` are the jobs', by the names of their folders.
    """

    folder: Path
    metric: str
    eta: int
    budgets: list[int]
    candidates: list[Candidate]
    configs: Mapping[str, dict[str, Any]]


def plan_budgets(candidates: int, epochs: int, eta: int = 2, min_epochs: int = 1) -> list[int]:
    """After how many epochs, in all, each rung ends: `epochs`, before it an eta-th of them, rounded up, and so on.

    There are as many rungs as bring the candidates down to about one, if the first has `min_epochs` at least. Raises
    InputError.
    """
    require_count("hydra.sweeper.eta", eta, 2)
    require_count("hydra.sweeper.min_epochs", min_epochs, 1)
    if min_epochs > epochs:
        raise InputError(
            f"hydra.sweeper.min_epochs={min_epochs} is refused: jobs have {epochs} epochs in all."
        )
    rungs = 1
    while eta**rungs <= candidates and min_epochs * eta**rungs <= epochs:
        rungs += 1
    return [-(-epochs // eta**left) for left in reversed(range(rungs))]


def split_standings(
    standings: Sequence[Standing], eta: int = 2
) -> tuple[list[Standing], list[Standing]]:
    """Those that stay, one in `eta` and rounded up, and those that are dropped; each from the best to the worst.

    Of equal scores the one with fewer seconds is the better, then the one that comes first. What failed ranks last.
    """
    ranked = sorted(
        standings, key=lambda each: (each.score is None, -(each.score or 0.0), each.seconds)
    )
    kept = -(-len(ranked) // eta)
    return ranked[:kept], ranked[kept:]


def make_plan(
    folder: Path,
    overrides: Mapping[str, list[str]],
    configs: Mapping[str, dict[str, Any]],
    eta: int = 2,
    min_epochs: int = 1,
) -> HalvingPlan:
    """The plan for the jobs in `folder`, given by the names of their folders.

    Raises InputError where jobs cannot be halved: they must be judged alike, and after as many epochs.
    """
    from tvf.config import build_phases

    if any(config["stop_after"] is not None for config in configs.values()):
        raise InputError(
            "stop_after is refused with hydra/sweeper=halving, which sets it itself: leave it out."
        )
    lengths = {config["epochs"] for config in configs.values()}
    if len(lengths) > 1:
        told = ", ".join(map(str, sorted(lengths)))
        raise InputError(
            f"epochs={told} is refused with hydra/sweeper=halving, which itself gives jobs more or fewer: choose one."
        )
    flat = without_seeds(list(configs.values()))
    judged = [
        judged_by(metric_of(config), each)
        for config, each in zip(configs.values(), flat, strict=True)
    ]
    differing = {
        key for each in judged for key in {*each, *judged[0]} if each.get(key) != judged[0].get(key)
    }
    if differing:
        raise InputError(
            f"{', '.join(sorted(differing))} cannot be swept with hydra/sweeper=halving: candidates are compared by "
            "one score of the same images. Sweep it apart."
        )
    groups: dict[str, dict[str, list[str]]] = {}
    for name, each in zip(configs, flat, strict=True):
        groups.setdefault(repr(sorted((key, repr(value)) for key, value in each.items())), {})[
            name
        ] = overrides[name]
    common = set.intersection(*map(set, overrides.values()))
    candidates = [Candidate(_label(jobs, common), jobs) for jobs in groups.values()]
    (epochs,) = lengths
    least = 1 + max(
        sum(phase.epochs for phase in build_phases(config, 1)[:-1]) for config in configs.values()
    )
    budgets = plan_budgets(len(candidates), epochs, eta, max(min_epochs, least))
    if least > 1 and len(budgets) == 1 < len(candidates):
        raise InputError(
            f"hydra/sweeper=halving has nothing to decide by before epoch {least} of {epochs}, when the recipe's last "
            "phase has begun in all jobs: raise epochs, or shorten the phases before it."
        )
    return HalvingPlan(
        folder, metric_of(next(iter(configs.values()))), eta, budgets, candidates, configs
    )


def _label(jobs: Mapping[str, list[str]], common: set[str]) -> str:
    name, overrides = next(iter(jobs.items()))
    told = [
        each
        for each in overrides
        if each not in common and each.partition("=")[0].lstrip("+") != "seed"
    ]
    return " ".join(told) or name


def rungs(plan: HalvingPlan) -> Iterator[list[list[str]]]:
    """The overrides of the jobs to launch, rung by rung: who is in one follows from what the one before has left.

    Jobs that an earlier process has brought so far are not among them.
    """
    candidates = plan.candidates
    log.info(
        "Successive halving: %d candidates, until epoch %s.",
        len(candidates),
        ", ".join(map(str, plan.budgets)),
    )
    for budget in plan.budgets[:-1]:
        if jobs := _due(plan, candidates, budget):
            yield [[*job, f"stop_after={budget}"] for job in jobs]
        _wait(plan.folder, candidates)
        kept, dropped = split_standings(
            [read_standing(plan, each, budget) for each in candidates], plan.eta
        )
        log.info(
            "After epoch %d of %d, by validation %s: kept %s; dropped %s.",
            *(budget, plan.budgets[-1], WORDS[plan.metric], _listed(kept), _listed(dropped)),
        )
        note_rung(
            plan.folder,
            {
                "epochs": budget,
                "kept": {each.candidate.label: each.score for each in kept},
                "dropped": {each.candidate.label: each.score for each in dropped},
            },
            [name for each in dropped for name in each.candidate.jobs],
        )
        staying = {id(each.candidate) for each in kept}
        candidates = [
            each for each in candidates if id(each) in staying
        ]  # as launched: what takes longest comes first
    if jobs := _due(plan, candidates, plan.budgets[-1]):
        yield jobs


def _due(plan: HalvingPlan, candidates: Sequence[Candidate], budget: int) -> list[list[str]]:
    """The overrides of the candidates' jobs that have not been trained for `budget` epochs, or do not say so."""

    def stands(name: str) -> bool:
        folder, config = plan.folder / name, plan.configs[name]
        paused = read_status(folder).get("state") == "paused" and has_reached(
            folder, config | {"stop_after": budget}
        )
        return paused or is_done(folder, config)

    return [job for each in candidates for name, job in each.jobs.items() if not stands(name)]


def _listed(standings: Sequence[Standing]) -> str:
    return ", ".join(map(str, standings)) or "none"


def read_standing(plan: HalvingPlan, candidate: Candidate, budget: int) -> Standing:
    """How `candidate` stands after `budget` epochs, by its jobs' files. A job with fewer, and not done, has failed."""
    key, scores, seconds = f"val_{METRICS[plan.metric]}", [], 0.0
    for name in candidate.jobs:
        epochs = read_history(plan.folder / name)[:budget]
        known = [epoch[key] for epoch in epochs if epoch.get(key) is not None]
        whole = len(known) == budget or (
            known and read_status(plan.folder / name).get("state") == "done"
        )
        scores.append(max(known) if whole else None)
        seconds += sum(epoch.get("epoch_seconds") or 0.0 for epoch in epochs)
    complete = [score for score in scores if score is not None]
    # Means of equal sums may differ in the last digit, which is not to decide.
    return Standing(
        candidate, round(fmean(complete), 9) if len(complete) == len(scores) else None, seconds
    )


def _wait(folder: Path, candidates: Sequence[Candidate]) -> None:
    """Wait for jobs that another process trains: the launcher has left them to it."""
    told = False
    while live := [name for each in candidates for name in each.jobs if is_running(folder / name)]:
        if not told:
            log.info("Waiting for jobs that another process trains: %s.", ", ".join(live))
            told = True
        time.sleep(0.5)
