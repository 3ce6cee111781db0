"""Races: who meets whom, what they decide, and that their jobs are those of the grid."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import IMPORTABLE, SMALL, Outcome, forks
from helpers.jobs import metrics
from helpers.simulation import ACCURACY, BY_GROUP, BY_IMAGE, Effects, Sweep, simulate
from helpers.sweeps import add_training, base_config
from tvf.cli.confirm import plan_confirmation
from tvf.errors import InputError
from tvf.files import read_json, write_json
from tvf.records.job import mark_failed
from tvf.records.race import race_by_job, read_race
from tvf.records.rows import read_sweep
from tvf.records.sweep import read_commands, read_configs, sibling_configs, write_manifest
from tvf.report.comparison import compare
from tvf.report.confirmation import to_confirm
from tvf.report.decide import MARGIN, Cost, decide
from tvf.report.duel import Duel, judge
from tvf.report.encodings import mean_points
from tvf.report.formats import render_report
from tvf.report.split_scores import estimate_scores
from tvf.report.terminal import jobs_table, print_result
from tvf.sweep.duels import Round, race_round
from tvf.sweep.race import RacePlan, batches, make_plan

FRACTIONS = (0.0, 0.25, 0.5, 1.0)


def run(
    verdicts: Mapping[Any, Sequence[tuple[float, float]]],
    fractions: Sequence[float | None] = FRACTIONS,
    failed: Sequence[tuple[int, int]] = (),
    blocks: int = 3,
    **settings: Any,
) -> tuple[Round, list[tuple[tuple[int, int], ...]]]:
    """Run a race to its end; return that and the jobs that it needed, in turn.

    `verdicts` are by champion and challenger: for each block the probabilities that the challenger
    is better by more than the margin, and that it is worse.
    """
    results: dict[tuple[int, int], Any] = {}
    asked = []

    def compare(champion: Sequence[Any], challenger: Sequence[Any]) -> Duel:
        pair = fractions[champion[0]["place"]], fractions[challenger[0]["place"]]
        shared = {row["block"] for row in champion} & {row["block"] for row in challenger}
        better, lower = verdicts[pair][min(len(shared), blocks) - 1]  # type: ignore[index]
        return Duel(len(shared), 0.5 - lower, better, lower)

    while True:
        found = race_round(fractions, blocks, results, compare, **settings)
        if not found.needed:
            return found, asked
        asked.append(found.needed)
        for place, block in found.needed:
            assert (place, block) not in results
            row = {"place": place, "block": block}
            results[place, block] = None if (place, block) in failed else row


UP, DOWN, OPEN = (0.97, 0.01), (0.01, 0.97), (0.3, 0.4)
FLAT = (0.04, 0.5)  # as good, but not worth more


def test_each_fraction_meets_the_winner_so_far_until_one_lowers_the_score() -> None:
    """0.25 wins in the second block, 0.5 loses in the first, and 1 is not trained."""
    found, asked = run({(0.0, 0.25): [OPEN, UP], (0.25, 0.5): [DOWN]})
    assert asked == [((0, 0), (1, 0)), ((0, 1), (1, 1)), ((2, 0),)]
    assert (found.champion, found.skipped, found.jobs, found.spent) == (1, (3,), 5, False)
    assert [(each.blocks, each.won, each.decided) for each in found.meetings] == [
        (2, True, True),
        (1, False, True),
    ]


def test_a_fraction_that_is_as_good_does_not_end_the_climb() -> None:
    found, _ = run({(0.0, 0.25): [FLAT], (0.0, 0.5): [FLAT], (0.0, 1.0): [UP]})
    assert found.champion == 3 and found.jobs == 4 and not found.skipped


def test_without_climbing_all_compete() -> None:
    verdicts = {(0.0, 0.25): [DOWN], (0.0, 0.5): [DOWN], (0.0, 1.0): [UP]}
    assert run(verdicts)[0].champion == 0 and run(verdicts)[0].jobs == 2
    assert run(verdicts, climb=False)[0].champion == 3


def test_a_fraction_has_fallen_if_all_its_configurations_have() -> None:
    """Two configurations of 0.5, of which the second wins; one whose layers are named, last."""
    fractions = (0.0, 0.5, 0.5001, 1.0, None)
    verdicts = {(0.0, 0.5): [DOWN], (0.0, None): [FLAT]}
    found, _ = run(verdicts, fractions)  # type: ignore[arg-type]
    assert found.skipped == (2, 3) and found.champion == 0
    places = iter([DOWN, UP, FLAT])
    again = race_round(
        (0.0, 0.5, 0.5, 1.0),
        3,
        {(place, 0): {} for place in range(4)},
        lambda champion, challenger: Duel(1, 0.0, *next(places)),
    )
    assert again.champion == 2 and not again.skipped and len(again.meetings) == 3


def test_after_the_last_block_the_higher_mean_wins_undecided() -> None:
    found, _ = run({(0.0, 0.25): [OPEN, OPEN, OPEN]}, fractions=(0.0, 0.25))
    (meeting,) = found.meetings
    assert meeting.won and not meeting.decided and (meeting.blocks, found.jobs) == (3, 6)


def test_a_configuration_whose_jobs_fail_loses() -> None:
    found, _ = run({}, fractions=(0.0, 0.25), failed=[(1, 0)])
    assert found.champion == 0 and found.jobs == 2 and found.meetings[0].duel is None
    found, _ = run({(1.0, 1.0): []}, fractions=(0.0, 0.25), failed=[(0, 0)])
    assert found.champion == 1
    verdicts = {(0.0, 0.25): [OPEN, OPEN, UP]}
    found, _ = run(verdicts, fractions=(0.0, 0.25), failed=[(1, 1), (1, 2)])
    assert found.champion == 0 and found.meetings[0].duel is None  # two of three have failed
    found, _ = run(verdicts, fractions=(0.0, 0.25), failed=[(1, 1)], blocks=4)
    assert found.champion == 1 and found.meetings[0].duel is not None
    everything = [(place, block) for place in range(2) for block in range(3)]
    found, _ = run({}, fractions=(0.0, 0.25), failed=everything)
    assert found.champion == 0 and not found.meetings[0].decided


@given(
    st.integers(2, 13),
    st.lists(st.sampled_from([UP, DOWN, OPEN, FLAT]), min_size=12, max_size=12),
    st.booleans(),
)
def test_a_budget_is_never_exceeded_and_none_changes_what_came_before(
    budget: int, drawn: list[tuple[float, float]], climb: bool
) -> None:
    pairs = [(a, b) for b in FRACTIONS for a in FRACTIONS if a < b]
    verdicts = {pair: drawn[index : index + 3] for index, pair in enumerate(pairs)}
    whole, all_asked = run(verdicts, climb=climb)
    found, asked = run(verdicts, climb=climb, budget=budget)
    assert found.jobs <= budget and asked == all_asked[: len(asked)]
    assert found.spent == (whole.jobs > budget)
    if not found.spent:
        assert found == whole


# What a block of each fraction costs, as a share of the grid's five: on the default data.
BLOCK_COST = np.array([0.01, 0.05, 0.31, 0.63]) / 5


def race_on(sweep: Sweep, grouped: bool) -> tuple[int, float]:
    """The position that a race on a simulated sweep chooses, and its share of the grid's cost."""
    results: dict[tuple[int, int], Any] = {}

    @cache
    def duel(champion: int, challenger: int, folds: int) -> Duel:
        inside = sweep.fold < folds
        ours = sweep.fold[inside] == np.arange(folds)[:, None]
        matrices = [
            np.where(ours, sweep.correct[place, 0, inside], np.nan)
            for place in (champion, challenger)
        ]
        scores = estimate_scores(matrices, sweep.group[inside] if grouped else None)
        return judge(scores, folds, MARGIN)

    def compare(champion: Sequence[int], challenger: Sequence[int]) -> Duel:
        return duel(champion[0], challenger[0], len(challenger))

    while (found := race_round(FRACTIONS, 5, results, compare)).needed:  # type: ignore[arg-type]
        results |= {(place, block): place for place, block in found.needed}
    return found.champion, sum(BLOCK_COST[place] for place, _ in results)


@pytest.mark.parametrize(
    "effects",
    [
        pytest.param(BY_IMAGE, id="folds"),
        pytest.param(BY_GROUP, id="folds of groups", marks=pytest.mark.slow),
    ],
)
def test_a_race_chooses_about_as_well_as_the_grid_at_a_third_of_its_cost(effects: Effects) -> None:
    """Accuracies are a random parabola of the position: rising, falling, or with a maximum.

    Some have a minimum instead, which climbing may miss.
    """
    rng, place = np.random.default_rng(1), np.arange(4) / 3
    costs = [Cost(float(position), position) for position in range(4)]
    lost, shares = [], []
    for _ in range(60):
        curve = rng.normal(0, 0.05) * place + rng.normal(-0.03, 0.03) * place**2
        true = ACCURACY + curve - curve.mean()
        sweep = simulate(effects, true, 5, rng)
        groups = sweep.group if effects.group else None
        grid = decide(estimate_scores(sweep.results(), groups), costs)
        chosen, share = race_on(sweep, groups is not None)
        lost.append(true.max() - true[[chosen, grid.chosen]])
        shares.append(share)
    (bad, bad_of_grid), regret = (np.array(lost) > MARGIN).mean(axis=0), np.mean(lost, axis=0)[0]
    assert bad <= bad_of_grid + 0.07
    assert regret <= 0.004
    assert np.mean(shares) <= 0.4


SHARE = {0.0: 0.6, 0.25: 0.8, 0.5: 0.7, 1.0: 0.9}  # of images that each fraction gets right
FOLDS = range(3)


def grid_in(folder: Path, share: Mapping[float, float] = SHARE) -> dict[str, dict[str, Any]]:
    """A finished grid of four fractions on three folds of 200 images; its configs by folder."""
    rng = np.random.default_rng(0)
    for fraction, correct in share.items():
        for fold in FOLDS:
            add_training(
                folder,
                fraction,
                (rng.random(200) < correct).tolist(),
                places=range(200 * fold, 200 * fold + 200),
                changes={"data.folds": 3, "data.fold": fold},
                val_loss=rng.random(),
            )
    return read_configs(folder)


def plan_in(folder: Path, configs: dict[str, dict[str, Any]], **settings: Any) -> RacePlan:
    """The plan of a race in `folder`, as its callback leaves it; a job's override is its folder."""
    write_manifest(folder, configs)
    return make_plan(folder, {name: [name] for name in configs}, configs, **settings)


def train(plan: RacePlan, grid: Path, most: int = 99) -> list[list[str]]:
    """Train what a race launches, by copying jobs of the grid; stop after `most` jobs."""
    seen = []
    for jobs in batches(plan):
        seen.append([name for (name,) in jobs])
        for name in seen[-1]:
            if not most:
                return seen
            most -= 1
            shutil.copytree(grid / name, plan.folder / name)
    return seen


def named(
    launched: Sequence[Sequence[str]], configs: dict[str, Any]
) -> list[list[tuple[float, int]]]:
    return [
        [(configs[name]["model"]["pct_unfreeze"], configs[name]["data"]["fold"]) for name in jobs]
        for jobs in launched
    ]


PLACES = ["lost", "champion", "lost", "skipped"]
WHOLE = [[(0.0, 0), (0.25, 0)], [(0.5, 0)]]


def test_a_race_is_decided_by_its_folder_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Killed at any point and resumed, and in a finished grid, it decides the same."""
    caplog.set_level("INFO", "tvf.sweep.race")
    configs = grid_in(tmp_path / "grid")
    plan = plan_in(tmp_path / "whole", configs)
    launched = train(plan, tmp_path / "grid")
    assert named(launched, configs) == WHOLE
    assert "The race is over after 3 of 12 jobs: " in caplog.text
    race = read_race(tmp_path / "whole")
    assert race is not None and race["ended"] == "settled"
    assert [each["place"] for each in race["configurations"]] == PLACES
    for most in range(3):
        folder = tmp_path / str(most)
        train(plan_in(folder, configs), tmp_path / "grid", most)
        train(plan_in(folder, configs), tmp_path / "grid")
        assert read_race(folder) == race
        assert {path.parent.name for path in folder.glob("*/summary.json")} == {
            name for jobs in launched for name in jobs
        }
    assert train(plan_in(tmp_path / "grid", configs), tmp_path / "grid") == []
    assert read_race(tmp_path / "grid") == race
    (comparison,) = compare(read_sweep(tmp_path / "grid"))  # where all jobs count
    assert comparison.choice.chosen is not None and comparison.choice.chosen.label == "1"
    assert train(plan_in(tmp_path / "whole", configs), tmp_path / "grid") == []
    assert not sibling_configs(tmp_path / "whole", configs[launched[1][0]])


@pytest.mark.slow
def test_a_job_that_was_interrupted_is_not_judged(tmp_path: Path) -> None:
    configs = grid_in(tmp_path / "grid")
    plan, seen = plan_in(tmp_path / "race", configs), []
    for jobs in batches(plan):
        seen += jobs
        for (name,) in jobs:
            (plan.folder / name).mkdir()
            mark_failed(plan.folder / name, name, "interrupted")
    race = read_race(plan.folder)
    assert len(seen) == 2 and race is not None and race["ended"] is None
    assert {row["state"] for row in read_sweep(plan.folder)} == {"interrupted", "waiting"}


def test_every_format_says_that_it_was_a_race(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configs = grid_in(tmp_path / "grid")
    folder = tmp_path / "race"
    train(plan_in(folder, configs), tmp_path / "grid")
    rows = read_sweep(folder)
    (comparison,) = compare(rows)
    text = comparison.choice.text
    assert text.startswith("Train pct_unfreeze=0.25, the winner of a race, with a validation acc")
    assert (
        "pct_unfreeze=0 lost to pct_unfreeze=0.25 after 1 of 3 blocks: 0.25 minus 0 is +0." in text
    )
    assert "pct_unfreeze=0.5 lost to pct_unfreeze=0.25 after 1 of 3 blocks: 0.5 minus" in text
    assert "Not trained: pct_unfreeze=1, since a smaller fraction has lowered the score." in text
    assert "finished job" not in text
    assert [group.label for group in to_confirm(comparison.evidence, comparison.choice)] == [
        "0.25",
        "0.5",
    ]
    note = "A race: it took 3 of 12 jobs, so configurations have different numbers of trainings"
    for kind, name in {"html": "report.html", "md": "report.md", "json": "report.json"}.items():
        found = render_report([folder], rows, kind)[name].decode()
        assert note in found and "the winner of a race" in found and "tvf resume" not in found, kind
    (data,) = json.loads(render_report([folder], rows, "json")["report.json"])["comparisons"]
    assert data["decided"] and (data["race"]["jobs"], data["race"]["all"]) == (3, 12)
    assert [each["place"] for each in data["race"]["configurations"]] == PLACES
    duels = [each["duel"] for each in data["race"]["configurations"]]
    assert [duel and duel["to"] for duel in duels] == ["0.25", None, "0.25", None]
    assert [row["state"] for row in rows].count("stopped") == 9 == len(jobs_table(rows).rows) - 3
    assert not print_result(folder, frozenset(configs))
    printed = capsys.readouterr().out
    assert note in printed and "stopped by the race: 9 of 12 jobs" in printed
    assert "stopped: " not in printed and "W&B" not in printed  # the jobs have tracker=none
    assert "never started" not in printed and "tvf resume" not in printed
    assert f"tvf confirm {folder}" in printed


def test_means_of_fewer_trainings_than_the_winners_are_not_drawn(tmp_path: Path) -> None:
    configs = grid_in(tmp_path / "grid")
    folder = tmp_path / "race"
    train(plan_in(folder, configs), tmp_path / "grid")
    (comparison,) = compare(read_sweep(folder))
    assert [point["label"] for point in mean_points(comparison)] == ["0", "0.25", "0.5"]
    second = next(name for name, fraction in fractions_of(configs, fold=1) if fraction == 0.25)
    shutil.copytree(tmp_path / "grid" / second, folder / second)
    (comparison,) = compare(read_sweep(folder))
    assert [point["label"] for point in mean_points(comparison)] == ["0.25"]


def test_the_rival_is_who_came_closest_in_a_duel_not_who_has_the_highest_mean(
    tmp_path: Path,
) -> None:
    """Fraction 0 has the easy fold alone."""
    rng = np.random.default_rng(0)
    shares = {0.0: [0.9, 0.6, 0.6], 0.25: [0.99, 0.75, 0.75], 0.5: [0.99, 0.76, 0.75]}
    for fraction, of_folds in shares.items():
        for fold, share in enumerate(of_folds):
            add_training(
                tmp_path / "grid",
                fraction,
                (rng.random(200) < share).tolist(),
                places=range(200 * fold, 200 * fold + 200),
                changes={"data.folds": 3, "data.fold": fold},
                val_loss=rng.random(),
            )
    configs = read_configs(tmp_path / "grid")
    train(plan_in(tmp_path / "race", configs), tmp_path / "grid")
    (comparison,) = compare(read_sweep(tmp_path / "race"))
    first, rival = to_confirm(comparison.evidence, comparison.choice)
    assert {first.label, rival.label} == {"0.25", "0.5"}


def test_tasks_on_which_all_are_right_end_after_two_blocks(tmp_path: Path) -> None:
    for fraction in (0.0, 0.5):
        for fold in FOLDS:
            add_training(
                tmp_path / "grid",
                fraction,
                [True] * 50,
                places=range(50 * fold, 50 * fold + 50),
                changes={"data.folds": 3, "data.fold": fold},
                val_loss=fraction + fold + 1,
            )
    configs = read_configs(tmp_path / "grid")
    launched = train(plan_in(tmp_path / "race", configs), tmp_path / "grid")
    assert named(launched, configs) == [[(0.0, 0), (0.5, 0)], [(0.0, 1), (0.5, 1)]]


def test_another_command_keeps_the_race_of_jobs_that_it_does_not_launch(tmp_path: Path) -> None:
    configs = grid_in(tmp_path / "grid")
    train(plan_in(tmp_path / "race", configs), tmp_path / "grid")
    race = read_race(tmp_path / "race")
    assert race is not None
    write_manifest(tmp_path / "race", {"another": next(iter(configs.values()))})
    assert read_race(tmp_path / "race") == race


def fractions_of(configs: dict[str, dict[str, Any]], fold: int) -> list[tuple[str, float]]:
    return [
        (name, config["model"]["pct_unfreeze"])
        for name, config in configs.items()
        if config["data"]["fold"] == fold
    ]


def test_a_budget_ends_a_race_undecided(tmp_path: Path) -> None:
    configs = grid_in(tmp_path / "grid")
    folder = tmp_path / "race"
    assert named(train(plan_in(folder, configs, budget=2), tmp_path / "grid"), configs) == WHOLE[:1]
    (comparison,) = compare(read_sweep(folder))
    assert comparison.choice.text.startswith("Not decided; best so far is pct_unfreeze=0.25")
    end = (
        "The race ended after 2 jobs, as its next block would have exceeded its budget of 2 jobs. "
        "Not trained: pct_unfreeze=0.5 and pct_"
    )
    assert end in comparison.choice.text
    assert comparison.choice.decided is False
    manifest = read_json(folder / "sweep.json")
    for budget, said in ((3, "its budget of 3 jobs. "), (None, "its budget. ")):  # an old record
        write_json(
            folder / "sweep.json", manifest | {"race": manifest["race"] | {"budget": budget}}
        )
        (comparison,) = compare(read_sweep(folder))
        assert f"after 2 jobs, as its next block would have exceeded {said}Not" in (
            comparison.choice.text
        )


def test_who_was_merely_not_continued_has_not_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    configs = grid_in(tmp_path / "grid", dict.fromkeys(SHARE, 0.7))
    folder = tmp_path / "race"
    train(plan_in(folder, configs, budget=2), tmp_path / "grid")
    (comparison,) = compare(read_sweep(folder))
    text = comparison.choice.text
    behind = "Not decided: pct_unfreeze=0 is behind pct_unfreeze=0.25 after 1 of 3 blocks, and was "
    assert f"{behind}not continued: 0.25 minus 0 is +0.0" in text
    assert "ahead in a race" in text and "lost" not in text and "winner" not in text
    assert (
        "Not decided after 1 of 3 blocks: fine-tuning-0.25-seed1-00000003 stays, and" in caplog.text
    )
    assert "is out" not in caplog.text
    places = {race["place"] for race in race_by_job(folder).values()}
    assert places == {"behind", "champion", "untried"}


def test_a_race_says_what_it_leaves_open_and_with_which_margin_it_was_run(tmp_path: Path) -> None:
    configs = grid_in(tmp_path / "grid")
    folder = tmp_path / "race"
    train(plan_in(folder, configs, budget=2), tmp_path / "grid")
    third = next(name for name, fraction in fractions_of(configs, fold=0) if fraction == 0.5)
    shutil.copytree(tmp_path / "grid" / third, folder / third)
    (folder / third / "status.json").unlink()
    (folder / third / "summary.json").unlink()
    mark_failed(folder / third, third, "out of memory")
    (comparison,) = compare(read_sweep(folder), 0.05)
    text = comparison.choice.text
    assert "To decide, race again with hydra.sweeper.budget=4 or more." in text
    assert "decided with the race's margin of 0.01, not with 0.05" in text
    assert "Not counted (failed): 1 of 3 jobs of pct_unfreeze=0.5." in text
    (comparison,) = compare(read_sweep(folder))
    assert "race's margin" not in comparison.choice.text
    with pytest.raises(InputError, match="--each-fraction must have all configurations trained"):
        plan_confirmation(folder, [], each_fraction=True)


def test_what_an_interrupted_grid_left_is_not_missing_after_a_race(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configs = grid_in(tmp_path / "grid")
    folder = tmp_path / "race"
    train(plan_in(folder, configs), tmp_path / "grid")
    left = next(name for name, fraction in fractions_of(configs, fold=2) if fraction == 1.0)
    (folder / left).mkdir()
    mark_failed(folder / left, left, "interrupted")
    assert not print_result(folder, frozenset(configs))
    printed = capsys.readouterr().out
    assert "stopped by the race: 9 of 12 jobs" in printed and "tvf resume" not in printed


def test_a_race_beside_other_jobs_is_mentioned(tmp_path: Path) -> None:
    configs = grid_in(tmp_path / "grid")
    whole = {n: config for n, config in configs.items() if config["model"]["pct_unfreeze"] == 1}
    folder = tmp_path / "race"
    few = {name: config for name, config in configs.items() if name not in whole}
    train(plan_in(folder, few), tmp_path / "grid")
    write_manifest(folder, whole)
    for name in whole:
        shutil.copytree(tmp_path / "grid" / name, folder / name)
    found = render_report([folder], read_sweep(folder), "md")["report.md"].decode()
    assert "A race in this folder left out jobs of pct_unfreeze=0" in found
    assert "A race: it took" not in found


def test_the_last_sweeper_over_the_same_jobs_is_the_one_that_resumes(tmp_path: Path) -> None:
    grid = ["-m", "data.fold=0,1,2", "hydra/launcher=local"]
    race = [*grid, "hydra/sweeper=race", "hydra.sweeper.budget=4"]
    more = ["-m", "data.fold=3,4"]
    for arguments in (grid, more, race):
        write_manifest(tmp_path, {}, {"folder": "/", "arguments": arguments})
    assert [each["arguments"] for each in read_commands(tmp_path)] == [more, race]
    write_manifest(tmp_path, {}, {"folder": "/", "arguments": grid})
    assert [each["arguments"] for each in read_commands(tmp_path)] == [more, grid]


def test_jobs_that_are_launched_again_are_those_of_no_race(tmp_path: Path) -> None:
    configs = grid_in(tmp_path / "grid")
    folder = tmp_path / "race"
    train(plan_in(folder, configs), tmp_path / "grid")
    write_manifest(folder, configs)  # by the grid's command
    assert read_race(folder) is None
    assert [row["state"] for row in read_sweep(folder)].count("waiting") == 9


def test_a_damaged_record_of_a_race_is_none(tmp_path: Path) -> None:
    configs = grid_in(tmp_path / "grid")
    folder = tmp_path / "race"
    train(plan_in(folder, configs), tmp_path / "grid")
    path = folder / "sweep.json"
    manifest = json.loads(path.read_text())
    for damaged in (3, {}, {"configurations": [3]}, {"configurations": [{"jobs": [[]]}]}):
        race = manifest["race"] | damaged if isinstance(damaged, dict) and damaged else damaged
        path.write_text(json.dumps(manifest | {"race": race}))
        assert read_race(folder) is None and {row["race"] for row in read_sweep(folder)} == {None}


def configs_of(
    fractions: Sequence[float] = (0.25, 0.5), seeds: Sequence[int] = (1, 2), **changes: Any
) -> dict[str, dict[str, Any]]:
    found = {}
    for fraction in fractions:
        for seed in seeds:
            config: dict[str, Any] = base_config() | {"seed": seed} | changes
            config["model"] = config["model"] | {"pct_unfreeze": fraction}
            found[f"{fraction}-{seed}"] = config
    return found


@pytest.mark.parametrize(
    ("configs", "settings", "told"),
    [
        (configs_of(fractions=[0.5]), {}, "must have at least two configurations"),
        (configs_of(seeds=[1]), {}, r"several trainings.*add data.folds=5 data.fold=0,1,2,3,4, or"),
        (configs_of(report={"margin": 0}), {}, "report.margin=0 must have a limit.* all 4 jobs"),
        (
            configs_of(),
            {"budget": 1},
            "hydra.sweeper.budget=1 must be a whole number of at least 2",
        ),
        (configs_of(seeds=[1]), {"budget": 0}, "hydra.sweeper.budget=0 must be a whole number"),
        (configs_of(), {"climb": "x"}, "hydra.sweeper.climb=x must be true or false"),
        (configs_of(stop_after=1), {}, "stop_after must be null with hydra/sweeper=race"),
    ],
)
def test_what_cannot_race_is_an_error(
    configs: dict[str, dict[str, Any]], settings: dict[str, Any], told: str
) -> None:
    with pytest.raises(InputError, match=told):
        make_plan(Path(), {name: [name] for name in configs}, configs, **settings)


def test_smaller_fractions_compete_first_and_divisions_come_before_seeds() -> None:
    configs: dict[str, dict[str, Any]] = {}
    for fraction in (0.5, 0.25):
        for fold in (0, 1):
            for seed in (1, 2):
                config = configs_of([fraction], [seed])[f"{fraction}-{seed}"]
                config["data"] = config["data"] | {"folds": 2, "fold": fold}
                configs[f"{fraction}-{fold}-{seed}"] = config
    plan = make_plan(Path(), {name: [name] for name in configs}, configs, budget=2)
    assert plan.fractions == [0.25, 0.5]
    assert [[*plan.jobs[0, block].jobs] for block in range(4)] == [
        ["0.25-0-1"],
        ["0.25-1-1"],
        ["0.25-0-2"],
        ["0.25-1-2"],
    ]
    assert plan.margin == MARGIN
    strict = configs_of(report={"margin": 0})
    assert make_plan(Path(), {name: [name] for name in strict}, strict, budget=4).margin == 0


def test_a_probe_competes_last_and_is_on_no_ladder_of_fractions() -> None:
    configs, probe = configs_of([0.0, 0.5]), {"_target_": "tvf.models.ProbeModel"}
    probes = {f"probe-{seed}": configs[f"0.0-{seed}"] | {"model": probe} for seed in (1, 2)}
    configs = probes | configs
    plan = make_plan(Path(), {name: [name] for name in configs}, configs)
    assert plan.fractions == [0.0, 0.5, None]
    assert [*plan.jobs[2, 0].jobs] == ["probe-1"]


QUICK = (
    "data.limit=68",
    "data.image_size=32",
    "data.batch_size=8",
    "tracker=none",
    "epochs=2",
    "data.metric=auroc",  # which the small network's scores move at once
    "report.margin=0.5",
    SMALL,
)
SWEEP = ("-m", "model.pct_unfreeze=0,0.5", "data.folds=2", "data.fold=0,1", *QUICK)


@pytest.mark.slow
def test_its_jobs_are_those_of_the_grid_even_if_it_is_killed(
    shell: Callable[..., Outcome], tmp_path: Path
) -> None:
    surroundings: dict[str, Any] = {"TVF_STORE": str(tmp_path / "store"), "PYTHONPATH": IMPORTABLE}
    sweep = tmp_path / "sweep"
    process = forks.train(
        *SWEEP, "hydra/sweeper=race", "hydra.sweep.dir=sweep", cwd=tmp_path, **surroundings
    )
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if [*sweep.glob("*/metrics.jsonl")]:
            break
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)  # in the first block
    process.communicate()
    process = forks.tvf("resume", "sweep", "hydra/launcher=basic", cwd=tmp_path, **surroundings)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    race = read_race(sweep)
    assert race is not None and race["ended"] == "settled"
    process = forks.train(
        *SWEEP, "hydra/launcher=basic", "hydra.sweep.dir=full", cwd=tmp_path, **surroundings
    )
    output, _ = process.communicate()
    assert process.returncode == 0, output
    whole = {
        path.parent.name: metrics(path.parent) for path in tmp_path.glob("full/*/metrics.jsonl")
    }
    trained = {path.parent.name: metrics(path.parent) for path in sweep.glob("*/metrics.jsonl")}
    assert len(whole) == 4 and len(trained) == race["jobs"] == 2
    assert trained.items() <= whole.items()
    again = shell(*SWEEP, "hydra/sweeper=race", "hydra/launcher=basic", "hydra.sweep.dir=full")
    assert again.code == 0 and "Launching" not in again.out, again.out
    assert read_race(tmp_path / "full") == race
