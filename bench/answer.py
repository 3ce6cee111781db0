"""How good is the answer, and what does it cost? Ways to choose a fraction, on 14 small tasks.

The truth of a task is a full grid: four fractions, each trained on five folds. Each way chooses one
fraction. Its regret is how much that fraction's mean score over the folds is below the best one's,
in points; on the test images, likewise. Its cost is the training seconds of the jobs that it took,
as a share of the grid's, with one job of the chosen fraction if it trained none.

    python bench/answer.py FOLDER                    # makes the tasks there, trains, judges
    python bench/answer.py FOLDER --only emoji mono  # the tasks whose names begin so
    python bench/answer.py FOLDER --trained          # judges what has been trained

Jobs have one thread each, so that their seconds can be compared. What is in FOLDER already is not
trained again. Halving and races are decided from the grid's own jobs, which theirs equal bit for
bit: a race once for each rotation of the folds. Advice is taken on the first fold, and costs the
seconds of its probes and short runs; like those of a job, they leave out what it takes to begin.
"""

import argparse
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, median
from typing import Any

from answer_tasks import Task, make_tasks

from tvf.metrics import METRICS
from tvf.records import Row, read_jobs
from tvf.report import Duel, compare, compare_trainings
from tvf.sweep.duels import race_round
from tvf.sweep.halving import plan_budgets

ROOT = Path(__file__).parent.parent
FRACTIONS = (0.0, 0.25, 0.5, 1.0)
FOLDS = range(5)
MARGIN = 1.0  # points
ADVICE = ("pass", "neighbours", "probe", "all depths", "gradients", "runs")  # what it spends on
Used = dict[tuple[float, int], int]  # how many epochs of each fraction's job on each fold


@dataclass(frozen=True)
class Grid:
    """The jobs of a task's full grid, by fraction and fold."""

    jobs: dict[tuple[float, int], Row]

    def score(self, fraction: float, split: str = "val", folds: Iterable[int] = FOLDS) -> float:
        """The mean score of a fraction over some folds, in points."""
        key = f"{split}_{METRICS[next(iter(self.jobs.values()))['metric']]}"
        return 100 * fmean(self.jobs[fraction, fold][key] for fold in folds)

    def best(self, split: str = "val", folds: Iterable[int] = FOLDS) -> float:
        """The fraction that scores highest; of equal ones the smallest."""
        folds = [*folds]
        return max(FRACTIONS, key=lambda fraction: self.score(fraction, split, folds))

    def regret(self, fraction: float, split: str) -> float:
        """How far a fraction is below the best, in points."""
        return self.score(self.best(split), split) - self.score(fraction, split)

    def seconds(self, used: Used) -> float:
        """The training seconds of these epochs."""
        return sum(
            sum(epoch["epoch_seconds"] for epoch in self.jobs[job]["history"][:epochs])
            for job, epochs in used.items()
        )

    @cached_property
    def whole(self) -> Used:
        """All epochs of all jobs."""
        return {job: len(row["history"]) for job, row in self.jobs.items()}

    def of_folds(self, folds: Iterable[int]) -> Used:
        """All epochs of the jobs on these folds."""
        return {job: self.whole[job] for job in self.whole if job[1] in folds}


@dataclass(frozen=True)
class Answer:
    """What a way chose: regret in points on validation and test images, share of the cost."""

    regret: float
    test_regret: float
    cost: float


def answers(grid: Grid, advice: dict[str, Any]) -> Iterator[tuple[str, Answer]]:
    """What each way answers; a way that has several chances gives one answer for each."""
    asked = sum(advice["seconds"][signal] for signal in ADVICE) / grid.seconds(grid.whole)
    first = advice["fractions"][0]["fraction"]
    yield "advice, its first", _judge(grid, first, {}, asked)
    promising = tuple(advice["promising"])
    yield "full grid, its recommendation", _judge(grid, _recommended(grid), grid.whole)
    for fold in FOLDS:
        yield "one split", _judge(grid, grid.best(folds=[fold]), grid.of_folds([fold]))
        other = (fold + 1) % len(FOLDS)
        pair = [fold, other]
        yield "two folds", _judge(grid, grid.best(folds=pair), grid.of_folds(pair))
        order = [(fold + later) % len(FOLDS) for later in FOLDS]
        yield "race", _judge(grid, *_race(grid, order))
        yield "race, all compete", _judge(grid, *_race(grid, order, climb=False))
        yield "race without 1", _judge(grid, *_race(grid, order, FRACTIONS[:-1]))
        yield "race without 1, two folds", _judge(grid, *_race(grid, order[:2], FRACTIONS[:-1]))
        yield "advice, then a race", _judge(grid, *_race(grid, order, promising), asked)
    yield "halving", _judge(grid, *_halve(grid))
    for fraction in FRACTIONS:
        yield f"always {fraction:g}", _judge(grid, fraction, {})


def _judge(grid: Grid, fraction: float, used: Used, asked: float = 0.0) -> Answer:
    if not any(its == fraction and used[its, fold] == grid.whole[its, fold] for its, fold in used):
        used = used | {(fraction, 0): grid.whole[fraction, 0]}
    cost = grid.seconds(used) / grid.seconds(grid.whole)
    return Answer(grid.regret(fraction, "val"), grid.regret(fraction, "test"), cost + asked)


def _recommended(grid: Grid) -> float:
    """What the report of the grid recommends, or names as best so far."""
    (comparison,) = compare([*grid.jobs.values()])
    choice = comparison.choice.chosen or comparison.choice.best
    assert choice is not None and choice.fraction is not None
    return choice.fraction


def _halve(grid: Grid) -> tuple[float, Used]:
    """The choice of successive halving with eta=2, and the epochs that it trains."""
    key = f"val_{METRICS[next(iter(grid.jobs.values()))['metric']]}"
    left, used = [*FRACTIONS], {job: 0 for job in grid.jobs}
    for budget in plan_budgets(len(FRACTIONS), max(grid.whole.values())):
        scores: dict[float, float] = {}
        for fraction in left:
            histories = [grid.jobs[fraction, fold]["history"][:budget] for fold in FOLDS]
            scores[fraction] = fmean(max(epoch[key] for epoch in each) for each in histories)
            used |= {(fraction, fold): budget for fold in FOLDS}
        left = sorted(left, key=lambda fraction: -scores[fraction])[: -(-len(left) // 2)]
    return left[0], {job: epochs for job, epochs in used.items() if epochs}


def _race(
    grid: Grid, order: Sequence[int], fractions: Sequence[float] = FRACTIONS, climb: bool = True
) -> tuple[float, Used]:
    """The choice of a race that meets the folds in this order, and the epochs that it trains."""
    metric = next(iter(grid.jobs.values()))["metric"]
    results: dict[tuple[int, int], Row | None] = {}

    def compare(champion: Sequence[Row], challenger: Sequence[Row]) -> Duel | None:
        return compare_trainings(champion, challenger, metric, MARGIN / 100)

    while (now := race_round(fractions, len(order), results, compare, climb=climb)).needed:
        results |= {
            (place, block): grid.jobs[fractions[place], order[block]] for place, block in now.needed
        }
    jobs = [(fractions[place], order[block]) for place, block in results]
    return fractions[now.champion], {job: grid.whole[job] for job in jobs}


def read_grid(folder: Path) -> Grid:
    """Read a grid; SystemExit if it is not whole."""
    rows = [row for row in read_jobs(folder) if row["state"] == "done"]
    jobs = {(row["pct_unfreeze"], row["fold"]): row for row in rows}
    if missing := len(FRACTIONS) * len(FOLDS) - len(jobs):
        raise SystemExit(f"{folder}: {missing} jobs are not done")
    return Grid(jobs)


GRID = ["model=finetune", f"model.pct_unfreeze={','.join(f'{each:g}' for each in FRACTIONS)}"]
PROBE = ["model=probe"]


def train(what: list[str], task: Task, folder: Path, store: Path) -> None:
    """Train what is missing of a task's grid, or its probes; SystemExit if that fails."""
    folds = ["data.folds=5", f"data.fold={','.join(map(str, FOLDS))}"]
    command = [sys.executable, str(ROOT / "train.py"), "-m", *what, *folds]
    command += [
        "tracker=none",
        "hydra/launcher=local",
        *task.overrides,
        f"hydra.sweep.dir={folder}",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TVF_STORE": str(store)}
    if subprocess.run(command, env=environment).returncode:
        raise SystemExit(f"failed: {' '.join(command)}")


def take_advice(task: Task, file: Path, store: Path) -> dict[str, Any]:
    """The advice on a task's first fold, from `file` if it is there; SystemExit if that fails."""
    if not file.is_file():
        command = [sys.executable, "-m", "tvf", "advise", *task.overrides]
        command += ["data.folds=5", "data.fold=0", "--json"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TVF_STORE": str(store)}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise SystemExit(f"failed: {' '.join(command)}")
        file.write_text(done.stdout)
    return json.loads(file.read_text())


def main() -> None:
    """Train and judge; print a table of the tasks and one of the ways."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", default=[""], help="beginnings of tasks' names")
    parser.add_argument("--trained", action="store_true", help="train nothing more")
    options = parser.parse_args()
    found: dict[str, list[Answer]] = defaultdict(list)
    columns = [*(f"{each:g}" for each in FRACTIONS), "probe", "probe, test", "best fraction, test"]
    print(f"| task | {' | '.join(columns)} |")
    print(f"|---|{'---|' * len(columns)}")
    for task in make_tasks(options.folder):
        place = options.folder / "sweeps" / task.name.replace(", ", "-").replace(" ", "")
        sweep = place / "grid"
        if not task.name.startswith(tuple(options.only)):
            continue
        if not options.trained:
            train(GRID, task, sweep, options.folder / "store")
            train(PROBE, task, place / "probe", options.folder / "store")
        elif len([*sweep.glob("*/summary.json")]) < len(FRACTIONS) * len(FOLDS):
            continue
        grid = read_grid(sweep)
        scores = [grid.score(fraction) for fraction in FRACTIONS]
        scores += [_probe_score(place / "probe", split) for split in ("val", "test")]
        scores += [grid.score(grid.best(), "test")]
        print(f"| {task.name} | {' | '.join(f'{each:.1f}' for each in scores)} |", flush=True)
        of_task: dict[str, list[Answer]] = defaultdict(list)
        advice = take_advice(task, place / "advice.json", options.folder / "store")
        for way, answer in answers(grid, advice):
            of_task[way].append(answer)
        for way, several in of_task.items():  # so that each task counts once
            found[way].append(_mean(several))
    print("\n| way | regret | worst task | within the margin | test regret | cost |")
    print("|---|---|---|---|---|---|")
    for way, each in found.items():
        mean, worst = _mean(each), max(answer.regret for answer in each)
        within = sum(answer.regret <= MARGIN for answer in each)
        cost = median(answer.cost for answer in each)
        print(
            f"| {way} | {mean.regret:.2f} | {worst:.2f} | {within} of {len(each)} "
            f"| {mean.test_regret:.2f} | {cost:.0%} |"
        )


def _probe_score(folder: Path, split: str) -> float:
    """The mean score of a task's probes on its folds, in points."""
    rows = [row for row in read_jobs(folder) if row["state"] == "done"]
    key = f"{split}_{METRICS[rows[0]['metric']]}"
    return 100 * fmean(row[key] for row in rows)


def _mean(several: Sequence[Answer]) -> Answer:
    return Answer(
        fmean(each.regret for each in several),
        fmean(each.test_regret for each in several),
        fmean(each.cost for each in several),
    )


if __name__ == "__main__":
    main()
