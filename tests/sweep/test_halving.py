"""Successive halving: budgets, promotion, and that survivors train exactly as in a full sweep."""

import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import IMPORTABLE, SMALL, Outcome, forks
from helpers.jobs import metrics
from helpers.sweeps import add_job, base_config
from tvf.errors import InputError
from tvf.records.job import JobRecord, has_reached, mark_failed, mark_paused, read_status
from tvf.records.rows import read_sweep
from tvf.records.sweep import note_halving, note_rung, read_dropped, sibling_configs, write_manifest
from tvf.report.comparison import compare
from tvf.report.formats import render_markdown
from tvf.report.html import render_html
from tvf.report.terminal import print_result
from tvf.sweep.halving import HalvingPlan, make_plan, plan_budgets, rungs, split_standings
from tvf.sweep.standings import Candidate, Standing, read_standing


@pytest.mark.parametrize(
    ("candidates", "epochs", "eta", "min_epochs", "budgets"),
    [
        (8, 8, 2, 1, [1, 2, 4, 8]),
        (8, 10, 2, 1, [2, 3, 5, 10]),  # epochs that are not a power of eta
        (4, 8, 2, 1, [2, 4, 8]),
        (100, 8, 2, 1, [1, 2, 4, 8]),  # too few epochs to reduce them to one
        (9, 9, 3, 1, [1, 3, 9]),
        (8, 9, 3, 1, [3, 9]),
        (8, 9, 2, 2, [3, 5, 9]),
        (1, 5, 2, 1, [5]),
        (8, 1, 2, 1, [1]),
        (8, 5, 2, 5, [5]),
    ],
)
def test_budgets_grow_by_eta_until_about_one_candidate_is_left(
    candidates: int, epochs: int, eta: int, min_epochs: int, budgets: list[int]
) -> None:
    assert plan_budgets(candidates, epochs, eta, min_epochs) == budgets


@given(st.integers(1, 200), st.integers(1, 200), st.integers(2, 5), st.integers(1, 5))
def test_budgets_increase(candidates: int, epochs: int, eta: int, min_epochs: int) -> None:
    budgets = plan_budgets(candidates, max(epochs, min_epochs), eta, min_epochs)
    assert (
        budgets == sorted(set(budgets))
        and budgets[-1] == max(epochs, min_epochs)
        and budgets[0] >= min_epochs
    )
    left = candidates
    for _ in budgets[1:]:
        left = -(-left // eta)
    assert left <= eta or min_epochs * eta ** len(budgets) > epochs


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"eta": 1}, "hydra.sweeper.eta=1 must be a whole number of at least 2"),
        ({"eta": 2.5}, "hydra.sweeper.eta=2.5 must be a whole number of at least 2"),
        ({"min_epochs": 0}, "hydra.sweeper.min_epochs=0 must be a whole number"),
        ({"min_epochs": 9}, "hydra.sweeper.min_epochs=9 must be at most the jobs' epochs=8"),
    ],
)
def test_settings_that_allow_no_rung_are_an_error(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        plan_budgets(4, 8, **wrong)


def standing(label: str, score: float | None, seconds: float = 1.0) -> Standing:
    return Standing(Candidate(label, {}), score, seconds)


def labels(standings: Sequence[Standing]) -> list[str]:
    return [standing.candidate.label for standing in standings]


STANDINGS = st.builds(
    standing,
    st.just("any"),
    st.none() | st.sampled_from([0.0, 0.5, 0.7, 1.0]) | st.floats(0, 1),
    st.floats(0, 9),
)


@given(st.lists(STANDINGS, min_size=1), st.integers(2, 4))
def test_no_dropped_candidate_is_better_than_a_promoted_one(
    standings: list[Standing], eta: int
) -> None:
    kept, dropped = split_standings(standings, eta)
    assert len(kept) == -(-len(standings) // eta) and {*map(id, kept), *map(id, dropped)} == {
        *map(id, standings)
    }
    for stays in kept:
        for goes in dropped:
            high = -1.0 if stays.score is None else stays.score
            low = -1.0 if goes.score is None else goes.score
            assert high > low or (high == low and stays.seconds <= goes.seconds)


def test_ties_go_to_the_faster_then_the_earlier_candidate_and_failures_rank_last() -> None:
    kept, dropped = split_standings(
        [
            standing("failed", None, 0),
            standing("slow", 0.8, 9),
            standing("fast", 0.8, 2),
            standing("as fast", 0.8, 2),
        ]
    )
    assert labels(kept) == ["fast", "as fast"] and labels(dropped) == ["slow", "failed"]
    kept, dropped = split_standings([standing(label, None) for label in "abcd"], eta=3)
    assert labels(kept) == ["a", "b"] and str(kept[0]) == "a (failed)"


def grid(
    fractions: Sequence[float] = (0.25, 0.5, 1.0), seeds: Sequence[int] = (1, 2), epochs: int = 4
) -> dict[str, dict[str, Any]]:
    """The configs of a grid's jobs, by folder name."""
    found = {}
    for fraction in fractions:
        for seed in seeds:
            config: dict[str, Any] = base_config() | {"seed": seed, "epochs": epochs}
            config["model"]["pct_unfreeze"] = fraction
            found[f"{fraction}-{seed}"] = config
    return found


def overrides(configs: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    return {
        name: [
            f"model.pct_unfreeze={config['model']['pct_unfreeze']}",
            f"seed={config['seed']}",
            "tracker=none",
        ]
        for name, config in configs.items()
    }


def plan(folder: Path, configs: dict[str, dict[str, Any]], **settings: int) -> HalvingPlan:
    return make_plan(folder, overrides(configs), configs, **settings)


def test_jobs_that_only_differ_in_their_seed_are_one_candidate() -> None:
    configs = grid()
    for config in configs.values():
        config["augment"]["seed"] = config["seed"]  # augment.seed=${seed}
    made = plan(Path(), configs)
    assert [candidate.label for candidate in made.candidates] == [
        f"model.pct_unfreeze={fraction}" for fraction in (0.25, 0.5, 1.0)
    ]
    assert [list(candidate.jobs) for candidate in made.candidates] == [
        [f"{fraction}-1", f"{fraction}-2"] for fraction in (0.25, 0.5, 1.0)
    ]
    assert made.budgets == [2, 4] and made.metric == "accuracy"


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("epochs", 9, "epochs=4, 9 must be a single value with hydra/sweeper=halving"),
        ("stop_after", 1, "stop_after must be null with hydra/sweeper=halving"),
        ("data", {**base_config()["data"], "metric": "macro_f1"}, "data.metric cannot be swept"),
        ("data", {**base_config()["data"], "limit": 100}, "data.limit cannot be swept"),
        ("data", {**base_config()["data"], "train_limit": 100}, "data.train_limit cannot be swept"),
    ],
)
def test_jobs_that_cannot_be_compared_are_not_halved(key: str, value: Any, told: str) -> None:
    configs = grid()
    configs["1.0-2"][key] = value
    with pytest.raises(InputError, match=told):
        plan(Path(), configs)


@pytest.mark.slow
def test_a_sweep_that_cannot_be_halved_fails_before_any_work(
    shell: Callable[..., Outcome], tmp_path: Path
) -> None:
    command = (
        "-m",
        "hydra/sweeper=halving",
        "tracker=none",
        "hydra.sweep.dir=sweep",
        "model.pct_unfreeze=0,0.5",
    )
    for wrong, told in {
        "epochs=1,2": "epochs=1, 2 must be a single value",
        "hydra.sweep.subdir=${hydra.job.num}": "hydra.sweep.subdir=${hydra.job.num} must not refer",
    }.items():
        outcome = shell(*command, wrong)
        assert outcome.code == 1 and f"error: {told}" in outcome.err
    assert not (tmp_path / "sweep").exists()


def train_on(
    folder: Path, name: str, config: dict[str, Any], until: int, scores: Sequence[float]
) -> None:
    """Write the files of a job that has trained for `until` epochs."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    record = JobRecord(folder / name, name, config)
    for number, score in enumerate(scores[:until], 1):
        record.log({"epoch": number, "val_acc": score, "epoch_seconds": 1.0})
    if until < config["epochs"]:
        record.paused()
    else:
        record.done({"name": name})


COURSES = {
    0.0: (0.9, 0.1, 0.1, 0.1),
    0.25: (0.1, 0.99, 0.99, 0.99),
    0.5: (0.5, 0.8, 0.8, 0.8),
    1.0: (0.4, 0.9, 0.9, 0.9),
}


def launch(
    made: HalvingPlan, configs: dict[str, dict[str, Any]], most: int = 99
) -> list[tuple[int, list[str]]]:
    """Train what each rung launches, at most `most` jobs in all.

    Returns the epochs and the jobs of each rung.
    """
    seen = []
    for jobs in rungs(made):
        (until,) = {
            int(job[-1].partition("=")[2]) if job[-1].startswith("stop_after=") else 4
            for job in jobs
        }
        names = ["-".join(override.partition("=")[2] for override in job[:2]) for job in jobs]
        seen.append((until, names))
        for name in names:
            if most == 0:
                return seen
            most -= 1
            fraction, seed = name.split("-")
            course = [score - 0.01 * int(seed) for score in COURSES[float(fraction)]]
            train_on(made.folder, name, configs[name], until, course)
    return seen


def started(folder: Path) -> tuple[dict[str, dict[str, Any]], HalvingPlan]:
    """A sweep of four candidates with two seeds each, as its callback leaves it."""
    configs = grid(fractions=(0.0, 0.25, 0.5, 1.0))
    made = plan(folder, configs)
    write_manifest(folder, configs)
    note_halving(folder, made.eta, made.budgets)
    return configs, made


RUNGS = [
    (1, ["0.0-1", "0.0-2", "0.25-1", "0.25-2", "0.5-1", "0.5-2", "1.0-1", "1.0-2"]),
    (2, ["0.0-1", "0.0-2", "0.5-1", "0.5-2"]),
    (4, ["0.0-1", "0.0-2"]),
]


def test_each_rung_launches_the_candidates_that_the_previous_one_promoted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Candidates are ranked by their best epoch so far.

    0.25 is dropped although it would have won; 0.0 stays although its first epoch was its best.
    """
    caplog.set_level("INFO", "tvf.sweep.halving")
    configs, made = started(tmp_path)
    assert launch(made, configs) == RUNGS
    assert (
        "After epoch 1 of 4, by validation accuracy: "
        "kept model.pct_unfreeze=0.0 (0.885), model.pct_unfreeze=0.5 (0.485); "
        "dropped model.pct_unfreeze=1.0 (0.385), model.pct_unfreeze=0.25 (0.085)."
    ) in caplog.text
    assert read_dropped(tmp_path) == {
        "0.25-1": 1,
        "0.25-2": 1,
        "1.0-1": 1,
        "1.0-2": 1,
        "0.5-1": 2,
        "0.5-2": 2,
    }
    # Neither finished nor dropped jobs train further.
    assert sibling_configs(tmp_path, configs["0.5-1"]) == []
    assert launch(made, configs) == []


@pytest.mark.parametrize("most", [0, 3, 8, 10, 13])
def test_a_resumed_sweep_makes_the_same_decisions_wherever_it_ended(
    tmp_path: Path, most: int
) -> None:
    configs, made = started(tmp_path)
    before = launch(made, configs, most)
    assert before == RUNGS[: len(before)]
    configs, made = started(tmp_path)
    launch(made, configs)
    assert read_dropped(tmp_path) == {
        "0.25-1": 1,
        "0.25-2": 1,
        "1.0-1": 1,
        "1.0-2": 1,
        "0.5-1": 2,
        "0.5-2": 2,
    }


@pytest.mark.parametrize("reason", ["interrupted", "its process is gone", None])
@pytest.mark.parametrize("rung", [0, 1])
def test_a_rung_whose_jobs_were_interrupted_or_never_started_is_not_decided(
    tmp_path: Path, rung: int, reason: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """The best candidate's job is the one that did not get there."""
    configs, made = started(tmp_path)
    trained = 0
    for number, jobs in enumerate(rungs(made)):
        assert number <= rung
        for job in jobs:
            name = "-".join(override.partition("=")[2] for override in job[:2])
            if number < rung or name != "0.0-1":
                train_on(tmp_path, name, configs[name], 2**number, COURSES[float(name[:-2])])
            elif reason is not None:
                (tmp_path / name).mkdir(exist_ok=True)
                mark_failed(tmp_path / name, name, reason)
            trained += 1
    assert trained == (8, 12)[rung] and len(read_dropped(tmp_path)) == 4 * rung
    print_result(tmp_path, frozenset(configs))
    assert "to finish the sweep: tvf resume" in capsys.readouterr().out
    assert launch(made, configs)[-1] == RUNGS[-1]


def test_a_candidate_with_a_failed_job_has_no_score(tmp_path: Path) -> None:
    configs, made = started(tmp_path)
    for name, config in configs.items():
        train_on(
            tmp_path, name, config, 2 if name == "0.25-2" else 3, COURSES[float(name.split("-")[0])]
        )
    scores = [
        read_standing(made.folder, made.metric, candidate, 3).score for candidate in made.candidates
    ]
    assert scores == [0.9, None, 0.8, 0.9]


def test_whether_a_job_has_reached_its_stop_does_not_depend_on_how_it_ended(tmp_path: Path) -> None:
    (config,) = grid(fractions=[0.5], seeds=[1]).values()
    assert not has_reached(tmp_path / "job", config | {"stop_after": 1})
    train_on(tmp_path, "job", config, 2, (0.5, 0.6))
    job = tmp_path / "job"
    status = read_status(job)
    assert status["state"] == "paused" and not (job / "summary.json").exists()
    assert [has_reached(job, config | {"stop_after": epoch}) for epoch in (1, 2, 3, 4, None)] == [
        True,
        True,
    ] + 3 * [False]
    assert not has_reached(job, config | {"stop_after": 1, "seed": 9})
    (job / "status.json").write_text(
        json.dumps(status | {"state": "failed", "error": "interrupted"})
    )
    mark_paused(job)
    assert read_status(job) | {"ended": None} == status | {"ended": None}
    with pytest.raises(OSError), (record := JobRecord(job, "job", config)):
        record.paused()
        raise OSError("no network")  # a tracker's failure does not change the state
    assert read_status(job)["state"] == "paused"


def halved(folder: Path, done: Sequence[float], seeds: Sequence[int] = (1, 2)) -> None:
    """Write a sweep of four fractions, of which those in `done` survived."""
    dropped = []
    for fraction in (0.0, 0.25, 0.5, 1.0):
        for seed in seeds:
            state, scores = ("done", (0.7, 0.8, 0.8)) if fraction in done else ("paused", (0.6,))
            job = add_job(
                folder, fraction, seed, [s + seed / 100 for s in scores], state=state, epochs=3
            )
            dropped += [job.name] if fraction not in done else []
    note_halving(folder, 2, [1, 3])
    note_rung(folder, {"epochs": 1, "kept": {}, "dropped": {}}, dropped)


@pytest.mark.parametrize("seeds", [(1,), (1, 2)])
def test_the_survivor_is_chosen_and_the_comparison_states_its_limits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], seeds: tuple[int, ...]
) -> None:
    halved(tmp_path, [0.5], seeds)
    rows = read_sweep(tmp_path)
    (comparison,) = compare(rows)
    assert comparison.choice.chosen is not None and comparison.choice.chosen.label == "0.5"
    assert "the only configuration that successive halving kept" in comparison.choice.text
    assert f"paused: {3 * len(seeds)} of {4 * len(seeds)} jobs." in comparison.notes
    note = "Successive halving: 3 of 4 configurations were dropped after 1 of 3 epochs"
    for text in (
        render_markdown([tmp_path], [comparison]),
        render_html([tmp_path], rows, [comparison]),
    ):
        assert note in text and "In a full sweep they may differ" in text
        assert "tvf resume" not in text
    assert not print_result(tmp_path, frozenset(row["folder"] for row in rows))
    printed = capsys.readouterr().out
    assert note in printed and f"paused: {3 * len(seeds)} of {4 * len(seeds)} jobs" in printed
    assert "tvf resume" not in printed and "fine-tuning-0.25-seed1 paused" not in printed


def test_survivors_are_compared_as_usual(tmp_path: Path) -> None:
    halved(tmp_path, [0.5, 1.0])
    (comparison,) = compare(read_sweep(tmp_path))
    assert [(difference.a, difference.b) for difference in comparison.differences] == [("1", "0.5")]
    assert comparison.choice.chosen is not None and comparison.choice.chosen.label == "0.5"
    assert (
        "Dropped by successive halving: pct_unfreeze=0; pct_unfreeze=0.25."
        in comparison.choice.text
    )


def test_a_job_that_is_launched_again_is_no_longer_dropped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    halved(tmp_path, [0.5], seeds=[1])
    row = next(row for row in read_sweep(tmp_path) if row["pct_unfreeze"] == 1)
    write_manifest(tmp_path, {row["folder"]: row["config"]})
    assert row["folder"] not in read_dropped(tmp_path) and len(read_dropped(tmp_path)) == 2
    assert not print_result(tmp_path, frozenset([row["folder"]]))
    assert "to finish the sweep: tvf resume" in capsys.readouterr().out


QUICK = (
    "data.limit=68",
    "data.image_size=32",
    "data.batch_size=8",
    "tracker=none",
    "epochs=4",
    "scheduler=cosine",
    SMALL,
)
SWEEP = ("-m", "model.pct_unfreeze=0,0.25", "optimizer.lr=1e-3,1e-2", "seed=1", *QUICK)


def epochs(sweep: Path) -> dict[str, list[dict[str, float]]]:
    """The epochs of each job, without times, by folder name."""
    return {path.parent.name: metrics(path.parent) for path in sweep.glob("*/metrics.jsonl")}


def scores(sweep: Path) -> dict[str, tuple[Any, ...]]:
    found = {
        path.parent.name: json.loads(path.read_text()) for path in sweep.glob("*/summary.json")
    }
    return {
        name: (summary["best_epoch"], summary["val_loss"], summary["test_loss"])
        for name, summary in found.items()
    }


@pytest.mark.slow
def test_survivors_end_as_in_the_full_grid_even_if_the_sweep_is_killed(tmp_path: Path) -> None:
    surroundings: dict[str, Any] = {"TVF_STORE": str(tmp_path / "store"), "PYTHONPATH": IMPORTABLE}
    sweep = tmp_path / "sweep"
    process = forks.train(
        *SWEEP, "hydra/sweeper=halving", "hydra.sweep.dir=sweep", cwd=tmp_path, **surroundings
    )
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline and not read_dropped(sweep):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)  # while the second rung starts
    output, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, output
    first = read_dropped(sweep)
    process = forks.tvf("resume", "sweep", "hydra/launcher=basic", cwd=tmp_path, **surroundings)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert "resumes after epoch" in output
    assert "the only configuration that successive halving kept" in output
    dropped = read_dropped(sweep)
    assert (
        len(first) == 2
        and first.items() <= dropped.items()
        and sorted(dropped.values()) == [1, 1, 2]
    )

    process = forks.train(
        *SWEEP, "hydra/launcher=basic", "hydra.sweep.dir=full", cwd=tmp_path, **surroundings
    )
    output, _ = process.communicate()
    assert process.returncode == 0, output
    whole, trained = epochs(tmp_path / "full"), epochs(sweep)
    assert len(whole) == 4
    assert trained == {name: rows[: dropped.get(name, 4)] for name, rows in whole.items()}
    survivors = scores(sweep)
    assert {*survivors} == {*whole} - {*dropped} and survivors.items() <= scores(
        tmp_path / "full"
    ).items()
    paused = {path.parent.parent.name for path in sweep.glob("*/checkpoints/last.pt")}
    assert paused == {*dropped}

    process = forks.tvf("status", "sweep", cwd=tmp_path, **surroundings)
    output, _ = process.communicate()
    assert output.count("paused") == 3 and output.count("1/4") == 2 and output.count("2/4") == 1, (
        output
    )


@pytest.mark.slow
def test_a_single_job_pauses_and_resumes(tmp_path: Path) -> None:
    def train(*arguments: str) -> str:
        process = forks.train(
            *QUICK,
            "model=transfer",
            *arguments,
            cwd=tmp_path,
            TVF_STORE=str(tmp_path / "store"),
            PYTHONPATH=IMPORTABLE,
        )
        output, _ = process.communicate()
        assert process.returncode == 0, output
        return output

    output = train("stop_after=2", "hydra.run.dir=job")
    assert (
        "pauses after epoch 2 of 4" in output and "repeat the command with hydra.run.dir=" in output
    )
    again = train("stop_after=1", "hydra.run.dir=job")
    assert "already trained to stop_after=1" in again and "groups train" not in again
    assert "resumes after epoch 2" in train("stop_after=3", "hydra.run.dir=job")
    assert "test_acc" in train("hydra.run.dir=job")
    train("hydra.run.dir=whole")
    trained = epochs(tmp_path)
    assert trained["job"] == trained["whole"] and len(trained["job"]) == 4
    assert scores(tmp_path)["job"] == scores(tmp_path)["whole"]
