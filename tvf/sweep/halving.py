"""Successive halving: train all candidates briefly, keep the best, train them longer, and so on.

One bracket of Hyperband (Jamieson and Talwalkar 2016; Li et al. 2018) with whole epochs as the
budget. Promotion depends only on the first epochs in the jobs' metrics.jsonl, so a sweep that is
rerun makes the same decisions.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvf.errors import InputError, require_count
from tvf.metrics import WORDS, metric_of
from tvf.records import note_rung
from tvf.sweep.standings import (
    Candidate,
    Standing,
    are_interrupted,
    check_comparable,
    common_epochs,
    first_decision,
    group_candidates,
    read_standing,
    unfinished,
    wait_for,
)

log = logging.getLogger(__name__)


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
    epochs = common_epochs(configs.values(), "hydra/sweeper=halving")
    check_comparable([*configs.values()], "halving")
    candidates = group_candidates(overrides, configs)
    first = first_decision(configs.values())
    budgets = plan_budgets(len(candidates), epochs, eta, max(min_epochs, first))
    if first > 1 and len(budgets) == 1 < len(candidates):
        raise InputError(
            "hydra/sweeper=halving cannot compare jobs before epoch "
            f"{first} of {epochs}, when all jobs have begun the last phase of their "
            "recipe: raise epochs, or shorten the earlier phases."
        )
    metric = metric_of(next(iter(configs.values())))
    return HalvingPlan(folder, metric, eta, budgets, candidates, configs)


def rungs(plan: HalvingPlan) -> Iterator[list[list[str]]]:
    """Yield the overrides of the jobs to launch, rung by rung.

    Each rung is decided when the previous one has ended, so there are no more if its jobs were
    interrupted. Leaves out jobs that an earlier process has already trained far enough.
    """
    candidates = plan.candidates
    log.info(
        "Successive halving: %d candidates, rungs end at epoch %s.",
        len(candidates),
        ", ".join(map(str, plan.budgets)),
    )
    for budget in plan.budgets[:-1]:
        if jobs := unfinished(plan.folder, plan.configs, candidates, budget):
            yield [[*job, f"stop_after={budget}"] for job in jobs]
        wait_for(plan.folder, candidates)
        if are_interrupted(plan.folder, candidates, budget):
            log.error("Jobs of the rung that ends at epoch %d were interrupted.", budget)
            return
        candidates = _promote(plan, candidates, budget)
    if jobs := unfinished(plan.folder, plan.configs, candidates, plan.budgets[-1]):
        yield jobs


def _promote(plan: HalvingPlan, candidates: Sequence[Candidate], budget: int) -> list[Candidate]:
    """Decide the rung that ends at epoch `budget`, record it, and return the kept candidates."""
    kept, dropped = split_standings(
        [read_standing(plan.folder, plan.metric, candidate, budget) for candidate in candidates],
        plan.eta,
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


def _format_standings(standings: Sequence[Standing]) -> str:
    return ", ".join(map(str, standings)) or "none"
