"""Searches by Optuna: what is drawn, resumed, pruned and told, with simulated jobs."""

import json
import math
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, patch

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution

from helpers import IMPORTABLE, SMALL, forks
from helpers.jobs import metrics
from helpers.searches import LR, Interrupted, composed, opened, run, train
from tvf.errors import InputError
from tvf.records.job import LEASE, mark_failed, read_config
from tvf.records.rows import read_sweep
from tvf.records.sweep import read_configs, read_dropped, read_trials
from tvf.report.terminal import print_result
from tvf.sweep import callback, ray_cluster, slurm
from tvf.sweep.composing import compose_jobs
from tvf.sweep.remote import RemoteJob
from tvf.sweep.search_settings import SearchSettings
from tvf.sweep.search_space import Dimension
from tvf.sweep.study_storage import StoredStudy

FRACTIONS = "model.pct_unfreeze=0.25,0.5"
SPACE = (LR, FRACTIONS, "epochs=4")


def course(config: dict[str, Any]) -> list[float]:
    """Best near a learning rate of 3e-3; all fractions alike."""
    best = 0.9 - 0.1 * abs(math.log10(config["optimizer"]["lr"] / 3e-3))
    return [best - 0.3, best - 0.2, best - 0.1, best][: config["epochs"]]


def settings(**given: Any) -> list[str]:
    return [f"hydra.sweeper.{key}={value}" for key, value in given.items()]


def stored(folder: Path) -> list[tuple[Any, ...]]:
    """The trials in the search's database."""
    study = optuna.load_study(study_name=folder.name, storage=f"sqlite:///{folder}/search.db")
    study._storage.remove_session()
    found = [
        (trial.number, trial.state, trial.value, trial.params, trial.intermediate_values)
        for trial in study.trials
    ]
    study._storage._backend.engine.dispose()  # type: ignore[attr-defined]
    return found


@pytest.mark.slow
@given(
    st.floats(1e-9, 1e9), st.floats(1.0001, 1e6), st.booleans(), st.floats(0, 1, allow_nan=False)
)
def test_drawn_floats_have_few_digits_and_stay_inside_their_interval(
    low: float, times: float, log: bool, place: float
) -> None:
    high = low * times
    value = min(max(low * times**place if log else low + (high - low) * place, low), high)
    rounded = Dimension("a", "a", "", FloatDistribution(low, high, log=log)).round(value)
    assert low <= rounded <= high
    assert abs(rounded - value) <= (high - low) / 199
    if rounded not in (low, high):
        digits = 3 - math.ceil(math.log10(high - low))
        fewest = max(digits, 2 - math.floor(math.log10(value))) if log else digits
        assert rounded == round(rounded, fewest)


def test_the_value_in_the_study_is_the_value_in_the_config_and_in_the_override(
    tmp_path: Path,
) -> None:
    trials = run(tmp_path / "s", course, *SPACE, *settings(n_trials=3))
    assert [trial[3] for trial in stored(tmp_path / "s")] == [each["values"] for each in trials]
    configs = read_configs(tmp_path / "s")
    for trial in trials:
        (name,) = trial["jobs"]
        drawn = trial["values"]["optimizer.lr"]
        assert configs[name]["optimizer"]["lr"] == drawn and len(repr(drawn)) <= 8
        assert str(configs[name]["model"]["pct_unfreeze"]) == trial["values"]["model.pct_unfreeze"]
        assert trial["score"] == round(course(configs[name])[-1], 9)
    with composed(tmp_path / "s") as config:
        drawn = trials[0]["values"]
        grid = [f"{key}={value}" for key, value in drawn.items()]
        ((name, _),) = compose_jobs(config, [["tracker=none", "epochs=4", *grid]])
    assert name == trials[0]["jobs"][0]  # the name that a grid sweep would give


@pytest.mark.slow
@pytest.mark.parametrize("pruner", ["none", "halving", "median"])
def test_a_search_that_is_interrupted_anywhere_ends_as_one_that_is_not(
    tmp_path: Path, pruner: str
) -> None:
    asked = (*SPACE, *settings(n_trials=5, batch_size=2, pruner=pruner))
    whole = run(tmp_path / "whole", course, *asked)
    again = run(tmp_path / "again", course, *asked)
    assert again == whole and stored(tmp_path / "again") == stored(tmp_path / "whole")
    for most in (1, 2):
        with pytest.raises(Interrupted):
            run(tmp_path / "cut", course, *asked, most=most)
    assert run(tmp_path / "cut", course, *asked) == whole
    assert stored(tmp_path / "cut") == stored(tmp_path / "whole")
    assert run(tmp_path / "cut", course, *asked, most=0) == whole  # nothing is trained again


@pytest.mark.slow
def test_a_batch_that_was_half_recorded_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = (*SPACE, *settings(n_trials=4, batch_size=2))
    whole = run(tmp_path / "whole", course, *asked)
    add_trials = optuna.Study.add_trials

    def add_one(study: optuna.Study, trials: Any) -> None:
        add_trials(study, list(trials)[:1])
        raise Interrupted

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(StoredStudy, "add", lambda stored, trials: add_one(stored._study, trials))
        run(tmp_path / "cut", course, *asked)
    assert len(stored(tmp_path / "cut")) == 1
    assert run(tmp_path / "cut", course, *asked) == whole
    assert stored(tmp_path / "cut") == stored(tmp_path / "whole")


def test_two_commands_that_end_a_batch_together_store_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = StoredStudy.trials

    def read_slowly(stored: StoredStudy) -> list[Any]:
        found = read(stored)
        time.sleep(0.3)
        return found

    batch = optuna.create_study(direction="maximize")
    batch.add_trials(optuna.create_trial(value=score) for score in (0.1, 0.2))
    one, two = (StoredStudy(tmp_path / "s", None, {}, lambda: 2) for _ in range(2))
    monkeypatch.setattr(StoredStudy, "trials", read_slowly)
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda stored: stored.add(batch.trials), (one, two)))
    assert [trial[2] for trial in stored(tmp_path / "s")] == [0.1, 0.2]


@pytest.mark.parametrize("done", ["read", "written"])
def test_a_database_that_fails_in_the_middle_of_a_search_is_an_error_without_traceback(
    tmp_path: Path, done: str
) -> None:
    asked = (*SPACE, *settings(n_trials=2, batch_size=1))
    with opened(tmp_path, *asked) as search:
        with pytest.raises(InputError, match=f"search.db cannot be {done}: .*(table|readonly)"):
            for batch in search.batches():
                train(search.config, batch[0], course)
                with sqlite3.connect(tmp_path / "search.db") as database:
                    if done == "read":
                        database.execute("DROP TABLE trials")
                    else:
                        database.execute(
                            "CREATE TRIGGER no BEFORE INSERT ON trials "
                            "BEGIN SELECT RAISE(ABORT, 'the table is full'); END"
                        )
                database.close()


@pytest.mark.slow
def test_more_trials_continue_as_if_they_had_been_asked_for_at_first(tmp_path: Path) -> None:
    asked = (*SPACE, *settings(batch_size=2))
    whole = run(tmp_path / "whole", course, *asked, "hydra.sweeper.n_trials=6")
    first = run(tmp_path / "s", course, *asked, "hydra.sweeper.n_trials=3")
    assert first == whole[:3]
    # The batch size is that of the first command: other machines may have other defaults.
    more = [*SPACE, "hydra.sweeper.n_trials=6", "hydra.sweeper.batch_size=5"]
    assert run(tmp_path / "s", course, *more) == whole


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ("hydra/launcher=local hydra.launcher.n_jobs=6", 3),
        ("hydra/launcher=slurm hydra.launcher.max_running=5", 3),
        ("hydra/launcher=slurm hydra.launcher.max_running=5 hydra.sweeper.batch_size=7", 7),
        ("hydra/launcher=ray hydra.sweeper.batch_size=4", 4),
    ],
)
def test_a_batch_keeps_the_launcher_busy(tmp_path: Path, given: str, size: int) -> None:
    with opened(tmp_path, LR, "seed=1,2", *given.split()) as search:
        assert len(next(search.batches())) == 2 * size  # two repetitions of each trial


def test_a_batch_size_that_is_ignored_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for size, told in (2, False), (2, False), ("null", False), (5, True):
        with opened(tmp_path, LR, *settings(batch_size=size)) as search:
            assert search.stored.batch_size == 2
        assert (f"batch_size={size} is ignored" in caplog.text) == told == bool(caplog.records)


def test_a_search_keeps_its_batches_under_a_launcher_that_does_not_say_how_many(
    tmp_path: Path,
) -> None:
    slurm = ("hydra/launcher=slurm", *settings(batch_size="null"))
    with pytest.raises(InputError, match="batch_size=null must be a number"):
        with opened(tmp_path, LR, *slurm):
            pass
    for more in (settings(batch_size=2), slurm):
        with opened(tmp_path, LR, *more) as search:
            assert search.stored.batch_size == 2


def test_a_folder_that_has_been_renamed_keeps_its_search(tmp_path: Path) -> None:
    asked = (*SPACE, *settings(n_trials=2, batch_size=1))
    trials = run(tmp_path / "s", course, *asked)
    (tmp_path / "s").rename(tmp_path / "renamed")
    with opened(tmp_path / "renamed", *asked) as search:
        assert search.is_over
        search.note()
    assert read_trials(tmp_path / "renamed") == trials


def test_sweeps_share_a_database_under_their_names(tmp_path: Path) -> None:
    shared = settings(n_trials=1, storage=f"sqlite:///{tmp_path}/all.db")
    for name, epochs in ("a", 3), ("b", 4):
        assert len(run(tmp_path / name, course, LR, f"epochs={epochs}", *shared)) == 1
    with pytest.raises(InputError, match="holds another search: epochs was 4, is now 3"):
        run(tmp_path / "b", course, LR, "epochs=3", *shared)


@pytest.mark.parametrize("url", [None, "sqlite:///{}/all.db"])
def test_a_search_is_begun_by_one_process_at_a_time(url: str | None, tmp_path: Path) -> None:
    held, folder = [], tmp_path / "s"

    def batch_size() -> int:
        held.append((folder / LEASE).exists())
        return 1

    for _ in range(2):
        StoredStudy(folder, url and url.format(tmp_path), {}, batch_size)
    assert held == [True] and not (folder / LEASE).exists()


def test_the_sampler_learns_and_its_seed_decides() -> None:
    dimension = Dimension("lr", "lr", "", FloatDistribution(1e-4, 1e-1, log=True))
    drawn, first, last = set(), 0.0, 0.0
    for seed in range(6):
        study, given, far = optuna.create_study(direction="maximize"), SearchSettings(seed=seed), []
        for number in range(24):
            study.sampler = given.make_sampler({"lr": dimension}, number)
            trial = study.ask({"lr": dimension.distribution})
            far.append(abs(math.log10(trial.params["lr"] / 3e-3)))
            study.tell(trial, -far[-1])
        drawn.add(study.trials[0].params["lr"])
        first, last = first + sum(far[:8]), last + sum(far[-8:])
    assert len(drawn) == 6 and last < 0.8 * first


@pytest.mark.slow
def test_seeds_and_folds_repeat_each_trial_and_its_score_is_their_mean(tmp_path: Path) -> None:
    def by_seed(config: dict[str, Any]) -> list[float]:
        return [0.1 * config["seed"] + 0.01 * config["data"]["fold"]]

    trials = run(
        tmp_path,
        by_seed,
        LR,
        "epochs=1",
        "seed=1,2",
        "data.folds=5",
        "data.fold=range(0,3)",
        *settings(n_trials=2),
    )
    assert [len(trial["jobs"]) for trial in trials] == [6, 6]
    assert [trial["score"] for trial in trials] == [0.16, 0.16]
    assert [*trials[0]["values"]] == ["optimizer.lr"]
    assert {job["seed"] for job in read_configs(tmp_path).values()} == {1, 2}


def test_jobs_that_are_done_are_not_trained_again(tmp_path: Path) -> None:
    trained: list[float] = []

    def counted(config: dict[str, Any]) -> list[float]:
        trained.append(config["model"]["pct_unfreeze"])
        return [0.5, 0.6]

    trials = run(tmp_path, counted, FRACTIONS, "epochs=2", *settings(n_trials=5, batch_size=5))
    assert sorted(trained) == [0.25, 0.5]
    assert [trial["state"] for trial in trials] == ["complete"] * 5


def test_a_failed_trial_costs_itself_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails_when_large(config: dict[str, Any]) -> list[float] | None:
        return None if config["optimizer"]["lr"] > 3e-3 else course(config)

    trials = run(tmp_path, fails_when_large, *SPACE, *settings(n_trials=6, batch_size=3))
    failed = [trial["values"]["optimizer.lr"] > 3e-3 for trial in trials]
    assert [trial["state"] == "failed" for trial in trials] == failed
    assert any(failed) and not all(failed)
    assert print_result(tmp_path, frozenset(read_configs(tmp_path)))  # exit code 1
    printed = capsys.readouterr().out
    assert "it broke" in printed and "tvf resume" not in printed  # a trial has ended for good


def test_an_interrupted_job_is_no_failed_trial(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = (*SPACE, *settings(n_trials=2, batch_size=2))
    with opened(tmp_path, *asked) as search:
        batches = search.batches()
        (batch,) = [next(batches)]
        for name in search.jobs:
            (tmp_path / name).mkdir()
            mark_failed(tmp_path / name, name, "interrupted")
        assert len(batch) == 2 and list(batches) == []
    assert [trial["state"] for trial in read_trials(tmp_path)] == ["running", "running"]
    assert print_result(tmp_path, frozenset(search.jobs))
    assert "to finish the sweep: tvf resume" in capsys.readouterr().out
    assert [trial["state"] for trial in run(tmp_path, course, *asked)] == ["complete"] * 2


def lose_on_slurm(job: RemoteJob, why: str) -> None:
    """End the task of a job as SLURM does, which then says why."""
    shown = subprocess.CompletedProcess([], 0, f"JobState={why} Reason=None ExitCode=0:0\n")
    with patch.object(slurm, "_run", lambda command: shown):
        slurm._explain({"7": {"0": job.folder.name}}, {job.folder.name: job})


def lose_on_ray(job: RemoteJob, why: str) -> None:
    """End the task of a job as Ray does, by an exception."""
    lost, memory = type("RayError", (Exception,), {}), "OUT_OF_MEMORY"
    errors = SimpleNamespace(RayError=lost, OutOfMemoryError=type(memory, (lost,), {}))
    error = (errors.OutOfMemoryError if why == memory else lost)(why)
    ray_cluster._note_end(SimpleNamespace(exceptions=errors, get=Mock(side_effect=error)), 1, job)


@pytest.mark.slow
@pytest.mark.parametrize("lose", [lose_on_slurm, lose_on_ray])
@pytest.mark.parametrize(
    ("why", "states"),
    [("NODE_FAIL", ["running", "running"]), ("OUT_OF_MEMORY", ["complete", "failed"])],
)
def test_a_job_whose_node_was_lost_is_no_failed_trial(
    tmp_path: Path,
    lose: Callable[[RemoteJob, str], None],
    why: str,
    states: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked = (*SPACE, *settings(n_trials=2, batch_size=2))
    with opened(tmp_path, *asked) as search:
        for batch in search.batches():
            train(search.config, batch[0], course)
            (name,) = (name for name in search.jobs if not (tmp_path / name).exists())
            (tmp_path / name).mkdir()
            status = {"state": "running", "name": name, "error": None}
            (tmp_path / name / "status.json").write_text(json.dumps(status))
            lose(RemoteJob(tmp_path / name, batch[1], {"name": name}, []), why)
    assert [trial["state"] for trial in read_trials(tmp_path)] == states and why in caplog.text
    again = [trial["state"] for trial in run(tmp_path, course, *asked)]
    assert again == (["complete"] * 2 if why == "NODE_FAIL" else states)


def test_a_combination_that_is_misconfigured_fails_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = ("data.val_fraction=0.1,0.6", "data.test_fraction=0.1,0.6")
    with pytest.raises(InputError, match="cannot be swept"):  # other validation images
        run(tmp_path / "a", course, *asked)
    # Each value is valid with the first ones of the others, but the last two are not together.
    trials = run(
        tmp_path / "b",
        lambda config: [0.5] * config["epochs"],
        "early_stopping.patience=1,2",
        "epochs=3,2",
        "recipe=lp_ft",
        "recipe.head_epochs=1,2",
        *settings(n_trials=8, batch_size=4),
    )
    bad = [
        trial["values"]["epochs"] == "2" and trial["values"]["recipe.head_epochs"] == "2"
        for trial in trials
    ]
    assert any(bad) and [trial["state"] == "failed" for trial in trials] == bad
    assert "cannot be trained" in caplog.text
    assert [len(trial["jobs"]) for trial in trials] == [0 if each else 1 for each in bad]


@pytest.mark.slow
@pytest.mark.parametrize("pruner", ["halving", "median"])
def test_pruned_jobs_stay_paused_and_are_told_as_pruned(
    tmp_path: Path, pruner: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = (LR, "epochs=8", *settings(n_trials=12, batch_size=3, pruner=pruner))
    trials = run(tmp_path, lambda config: [course(config | {"epochs": 1})[0]] * 8, *asked)
    pruned = {each["jobs"][0]: each["epochs"] for each in trials if each["state"] == "pruned"}
    assert pruned and {*pruned.values()} <= {1, 2, 4} and read_dropped(tmp_path) == pruned
    kept = [trial["score"] for trial in trials if trial["state"] == "complete"]
    every = [course(config | {"epochs": 1})[0] for config in read_configs(tmp_path).values()]
    assert max(kept) == pytest.approx(max(every))
    rows = {row["folder"]: row for row in read_sweep(tmp_path)}
    assert {name for name, row in rows.items() if row["state"] == "pruned"} == {*pruned}
    assert {len(rows[name]["history"]) - epochs for name, epochs in pruned.items()} == {0}
    assert not print_result(tmp_path, frozenset(rows))
    printed = capsys.readouterr().out
    assert f"pruned by the search: {len(pruned)} of 12 jobs" in printed
    assert "tvf resume" not in printed and "paused:" not in printed


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ("seed=1,2", "hydra/sweeper=optuna has nothing to search"),
        ("optimizer.lr=interval(0.1,0.01)", "must begin with the smaller end"),
        ("optimizer.lr=tag(log,interval(0,0.1))", "must have a lower end above 0"),
        ("optimizer.lr=tag(lgo,interval(0.1,1))", "has the tag lgo, but the only tag is log"),
        ("optimizer.lr=interval(0.1,inf)", "must have finite ends"),
        ("optimizer.lr=range(2,2)", "has no values"),
        ("data.fold=interval(0,4)", r"must list values, as in data\.fold=1,2,3"),
        ("model.pct_unfreeze=interval(0,1.5)", "pct_unfreeze=1.5 is outside"),
        (f"{LR} data.train_limit=50,100", "data.train_limit cannot be swept"),
        (f"{LR} data.metric=accuracy,macro_f1", "data.metric cannot be swept"),
        (f"{LR} stop_after=1", "stop_after must be null with hydra/sweeper=optuna"),
        (f"{LR} refit_epochs=[1]", "refit_epochs must be null"),
        (f"{LR} hydra.sweep.subdir=x${{hydra.job.num}}", "must not refer to hydra.job"),
        (f"{LR} hydra.sweeper.n_trials=0", "hydra.sweeper.n_trials=0 must be a whole number"),
        (f"{LR} hydra.sweeper.batch_size=0", "hydra.sweeper.batch_size=0 must be"),
        (
            f"{LR} hydra/launcher=slurm",
            "batch_size=null must be a number with a hydra/launcher",
        ),
        (f"{LR} hydra/launcher=ray", "batch_size=null must be a number with a hydra/launcher"),
        (f"{LR} hydra/launcher=slurm hydra.launcher.max_running=0", "max_running=0 must be"),
        (f"{LR} hydra.sweeper.sampler=grid", "must be one of tpe, random"),
        (f"{LR} hydra.sweeper.pruner=asha", "must be one of none, halving, median"),
        (f"{LR} +hydra.sweeper.trials=3", r"did you mean hydra\.sweeper\.n_trials"),
        (f"{LR} hydra.sweeper.storage=x", "hydra.sweeper.storage=x cannot be opened"),
        (f"{LR} epochs=1 hydra.sweeper.pruner=median", "epochs=1 must be more"),
        (f"{LR} epochs=2,3 hydra.sweeper.pruner=median", "epochs=2, 3 must be a single value"),
    ],
)
def test_what_cannot_be_searched_is_an_error_before_any_work(
    tmp_path: Path, overrides: str, told: str
) -> None:
    with composed(tmp_path / "s", *overrides.split()) as config:
        with pytest.raises(InputError, match=told):
            callback._check_sweep(config)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_another_search_in_the_same_folder_is_an_error(tmp_path: Path) -> None:
    run(tmp_path, course, *SPACE, *settings(n_trials=1))
    for changed, told in {
        "epochs=5": "epochs was 4, is now 5",
        "optimizer.lr=interval(1e-4,1e-2)": "optimizer.lr was FloatDistribution",
        "seed=1,2": "seed was 1337, is now seed=1,2",
    }.items():
        with pytest.raises(InputError, match=f"holds another search: {told}"):
            run(tmp_path, course, *SPACE, changed)


def test_without_optuna_the_error_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callback, "find_spec", lambda name: None)
    with composed(tmp_path / "s", LR) as config:
        with pytest.raises(InputError, match=r"pip install 'tvf\[optuna\]'"):
            callback._check_sweep(config)


@pytest.mark.parametrize("sweeper", ["basic", "grid", "halving"])
def test_a_grid_names_the_sweeper_that_takes_intervals(tmp_path: Path, sweeper: str) -> None:
    with composed(tmp_path / "s", LR, sweeper=sweeper) as config:
        with pytest.raises(InputError, match=f"hydra/sweeper={sweeper}: hydra/sweeper=optuna"):
            callback._check_sweep(config)
    assert not list(tmp_path.iterdir())


def test_a_sweeper_that_tvf_does_not_know_launches_what_it_likes(tmp_path: Path) -> None:
    with composed(tmp_path, LR, "hydra.sweeper._target_=other.Sweeper") as config:
        checked = callback._check_sweep(config)
    assert not checked.jobs and not checked.done_before and read_configs(tmp_path) == {}


def test_the_jobs_of_a_search_are_counted_as_they_are_drawn(tmp_path: Path) -> None:
    asked = (*SPACE, *settings(n_trials=2, batch_size=1))
    with opened(tmp_path, *asked) as search:
        counts = []
        for batch in search.batches():
            counts.append(len(search.jobs))
            for job in batch:
                train(search.config, job, course)
    assert counts == [1, 2] and {*search.decided_jobs()} == search.jobs
    assert all(read_config(tmp_path / name) for name in search.jobs)


REAL = (
    *("-m", "hydra/sweeper=optuna", LR, FRACTIONS, "data.metric=auroc", "data.limit=200"),
    *("data.image_size=32", "data.batch_size=8", "tracker=none", "epochs=3", SMALL),
    *settings(n_trials=4, batch_size=2, pruner="halving"),
)


@pytest.mark.slow
def test_a_real_search_that_is_killed_and_resumed_ends_as_one_that_is_not(tmp_path: Path) -> None:
    surroundings: dict[str, Any] = {"TVF_STORE": str(tmp_path / "store"), "PYTHONPATH": IMPORTABLE}

    def trained(folder: Path) -> dict[str, Any]:
        return {path.parent.name: metrics(path.parent) for path in folder.glob("*/metrics.jsonl")}

    sweep = tmp_path / "sweep"
    process = forks.train(*REAL, "hydra.sweep.dir=sweep", cwd=tmp_path, **surroundings)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline and len(trained(sweep)) < 3:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)  # in the second batch
    output, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, output
    first = stored(sweep)
    assert len(first) == 2

    process = forks.tvf("resume", "sweep", "hydra/launcher=basic", cwd=tmp_path, **surroundings)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert "Trial 4 of 4" in output and "Trial 2 of 4" not in output
    assert "found by a search of 4 trials" in output and "never started" not in output

    process = forks.train(
        *REAL, "hydra/launcher=basic", "hydra.sweep.dir=whole", cwd=tmp_path, **surroundings
    )
    output, _ = process.communicate()
    assert process.returncode == 0, output
    whole = read_trials(tmp_path / "whole")
    assert {trial["state"] for trial in whole} == {"complete", "pruned"}
    assert read_trials(sweep) == whole and trained(sweep) == trained(tmp_path / "whole")
    assert [each[1:] for each in stored(sweep)] == [each[1:] for each in stored(tmp_path / "whole")]
    pruned = {trial["jobs"][0] for trial in whole if trial["state"] == "pruned"}
    kept = {path.parent.parent.name for path in sweep.glob("*/checkpoints/last.pt")}
    assert kept <= pruned  # a job that was killed before its first checkpoint has none

    process = forks.tvf("status", "sweep", cwd=tmp_path, **surroundings)
    output, _ = process.communicate()
    assert output.count("pruned") == len(pruned) and "paused" not in output
    process = forks.tvf("resume", "sweep", cwd=tmp_path, **surroundings)
    output, _ = process.communicate()
    assert process.returncode == 0 and "Trial" not in output and "epoch 1/3" not in output
