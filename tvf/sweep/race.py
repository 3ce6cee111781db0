"""A race: configurations compete from the cheapest to the costliest, one training at a time.

The winner so far meets the next larger fraction in a duel: both train on the first division and
seed, then on the second, and so on, until one of them is shown to be the better choice. Costly jobs
are thus trained only while they can still change the choice (racing: Maron and Moore 1994;
Birattari, Stützle, Paquete and Varrentrapp 2002). Each decision depends only on the jobs' files.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvf.config import is_probe, known_fraction
from tvf.errors import InputError, require_count
from tvf.metrics import METRICS, WORDS, metric_of
from tvf.records import Row, is_done, note_race, read_job
from tvf.report import Duel, Training, compare_trainings, training_of
from tvf.sweep.duels import Compare, Meeting, Round, race_round
from tvf.sweep.standings import (
    Candidate,
    are_interrupted,
    check_comparable,
    group_candidates,
    unfinished,
    wait_for,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RacePlan:
    """The candidates of the race in `folder`, in the order in which they compete.

    `jobs` holds for each candidate and block the job's folder and its overrides. `configs` are by
    folder name.
    """

    folder: Path
    metric: str
    margin: float
    climb: bool
    budget: int | None
    fractions: list[float | None]
    labels: list[str]
    blocks: int
    jobs: dict[tuple[int, int], Candidate]
    configs: Mapping[str, dict[str, Any]]


def make_plan(
    folder: Path,
    overrides: Mapping[str, list[str]],
    configs: Mapping[str, dict[str, Any]],
    budget: int | None = None,
    climb: bool = True,
) -> RacePlan:
    """Return the plan for the jobs in `folder`; `overrides` and `configs` are by folder name.

    Raises InputError unless there are several configurations and several comparable trainings of
    each, or if the settings allow no duel or no end.
    """
    _check_settings(budget, climb)
    check_comparable([*configs.values()], "race")
    candidates = group_candidates(overrides, configs)
    if len(candidates) < 2:
        raise InputError(
            "hydra/sweeper=race must have at least two configurations to choose from, such as "
            "model.pct_unfreeze=0,0.25,0.5,1.0."
        )
    trainings = {name: training_of({"config": c, "seed": c["seed"]}) for name, c in configs.items()}
    blocks = _order_blocks(trainings.values())
    if len(blocks) < 2:
        raise InputError(
            "hydra/sweeper=race must have several trainings of each configuration, which it trains "
            "one by one until they decide: add data.folds=5 data.fold=0,1,2,3,4, or seed=1,2,3."
        )
    margin = next(iter(configs.values()))["report"]["margin"]
    if not margin and budget is None:
        raise InputError(
            "report.margin=0 must have a limit with hydra/sweeper=race: where every difference "
            f"matters, equal configurations train to the end, up to all {len(configs)} jobs. Set "
            f"report.margin=0.01, or hydra.sweeper.budget={len(configs)} to allow that."
        )
    models = [configs[next(iter(each.jobs))]["model"] for each in candidates]
    # A probe is on no ladder of fractions: whether one lowers its score says nothing of the next.
    fractions = [None if is_probe(model) else known_fraction(model) for model in models]
    order = sorted(range(len(candidates)), key=lambda index: _cost_order(fractions[index]))
    ordered = [candidates[index] for index in order]
    jobs = {
        (place, number): Candidate(
            f"{each.label}, block {number + 1}",
            {name: job for name, job in each.jobs.items() if trainings[name] == block},
        )
        for place, each in enumerate(ordered)
        for number, block in enumerate(blocks)
    }
    return RacePlan(
        folder=folder,
        metric=metric_of(next(iter(configs.values()))),
        margin=margin,
        climb=climb,
        budget=budget,
        fractions=[fractions[index] for index in order],
        labels=[each.label for each in ordered],
        blocks=len(blocks),
        jobs=jobs,
        configs=configs,
    )


def _order_blocks(trainings: Iterable[Training]) -> list[Training]:
    """Each division with the first seed, then with the next: other images say more than seeds."""
    distinct = list(dict.fromkeys(trainings))
    seeds = list(dict.fromkeys(training.seed for training in distinct))
    return sorted(distinct, key=lambda training: seeds.index(training.seed))


def _cost_order(fraction: float | None) -> float:
    return float("inf") if fraction is None else fraction


def _check_settings(budget: int | None, climb: bool) -> None:
    if not isinstance(climb, bool):
        raise InputError(f"hydra.sweeper.climb={climb} must be true or false.")
    if budget is not None:
        require_count("hydra.sweeper.budget", budget, 2)  # the first block of the first duel


def batches(plan: RacePlan) -> Iterator[list[list[str]]]:
    """Yield the overrides of the jobs to launch, block by block.

    Each block is judged when it has ended, so there are no more if its jobs were interrupted.
    Leaves out jobs that are done.
    """
    log.info("Race: %d configurations, up to %d jobs.", len(plan.labels), len(plan.configs))
    results: dict[tuple[int, int], Row | None] = {}
    compare, told = _remembering(plan), 0
    while True:
        now = race_round(
            plan.fractions, plan.blocks, results, compare, climb=plan.climb, budget=plan.budget
        )
        note_race(plan.folder, _describe(plan, now))
        for meeting in now.meetings[told:]:
            log.info("%s", _tell(plan, meeting))
        told = len(now.meetings)
        if not now.needed:
            log.info("%s", _tell_end(plan, now))
            return
        block = [plan.jobs[job] for job in now.needed]
        if jobs := unfinished(plan.folder, plan.configs, block, None):
            yield jobs
        wait_for(plan.folder, block)
        if are_interrupted(plan.folder, block, None):
            log.error("Jobs of the race were interrupted.")
            return
        results |= {job: _read_result(plan, job) for job in now.needed}


def _read_result(plan: RacePlan, job: tuple[int, int]) -> Row | None:
    """The row of a candidate's job in a block; None if it failed or its score is not finite."""
    for name in plan.jobs[job].jobs:
        folder = plan.folder / name
        row = read_job(folder) if is_done(folder, plan.configs[name]) else None
        if row and None not in (row[f"val_{METRICS[plan.metric]}"], row["val_loss"]):
            return row
    return None


def _remembering(plan: RacePlan) -> Compare:
    """Compare jobs; each duel is replayed after every block, but its jobs stay the same."""
    known: dict[tuple[str, ...], Duel | None] = {}

    def compare(champion: Sequence[Row], challenger: Sequence[Row]) -> Duel | None:
        names = tuple(row["folder"] for row in (*champion, *challenger))
        if names not in known:
            known[names] = compare_trainings(champion, challenger, plan.metric, plan.margin)
        return known[names]

    return compare


def _describe(plan: RacePlan, now: Round) -> dict[str, Any]:
    """How the race stands, as `note_race` takes it."""
    lost = {each.champion if each.won else each.challenger: each for each in now.meetings}
    listed = []
    for place in range(len(plan.labels)):
        names = [name for block in range(plan.blocks) for name in plan.jobs[place, block].jobs]
        entry: dict[str, Any] = {"jobs": names, "place": "untried"}
        if place in lost:
            decided = lost[place].decided or lost[place].duel is None
            entry |= {"place": "lost" if decided else "behind"}
            entry |= {"duel": _describe_duel(plan, lost[place])}
        elif place == now.champion:
            entry["place"] = "champion"
        elif place in now.skipped:
            entry["place"] = "skipped"
        listed.append(entry)
    ended = None if now.needed else "spent" if now.spent else "settled"
    return {
        "jobs": now.jobs,
        "all": len(plan.configs),
        "blocks": plan.blocks,
        "margin": plan.margin,
        "budget": plan.budget,
        "ended": ended,
        "configurations": listed,
    }


def _describe_duel(plan: RacePlan, meeting: Meeting) -> dict[str, Any]:
    duel = meeting.duel
    winner = meeting.challenger if meeting.won else meeting.champion
    return {
        "blocks": meeting.blocks,
        "to": next(iter(plan.jobs[winner, 0].jobs)),
        "won": meeting.won,
        "decided": meeting.decided,
        "difference": duel and duel.mean,
        "better": duel and duel.better,
        "lower": duel and duel.lower,
    }


def _tell(plan: RacePlan, meeting: Meeting) -> str:
    labels = plan.labels[meeting.challenger], plan.labels[meeting.champion]
    winner, loser = labels if meeting.won else labels[::-1]
    after = f"after {meeting.blocks} of {plan.blocks} blocks"
    if meeting.duel is None:
        return f"{winner} stays and {loser} is out {after}: too few finished jobs."
    stands = f"{winner} stays and {loser} is out {after}"
    if not meeting.decided:
        stands = f"Not decided {after}: {winner} stays, and {loser} is behind"
    better = meeting.duel.better
    chance = "unknown" if better is None else f"{better:.0%}"
    return (
        f"{stands}: {labels[0]} minus {labels[1]} is {meeting.duel.mean:+.3f} by validation "
        f"{WORDS[plan.metric]} (probability of more than {plan.margin:g}: {chance})."
    )


def _tell_end(plan: RacePlan, now: Round) -> str:
    budget = f", as the next block would exceed its budget of {plan.budget}" if now.spent else ""
    jobs = f"{now.jobs} of {len(plan.configs)} jobs"
    return f"The race is over after {jobs}{budget}: {plan.labels[now.champion]}."
