"""Checks a sweep before its first job and reports after its last, in the launching process.

Hydra calls `SweepCallback` before it launches jobs; tvf's commands call `finish` at the end.
"""

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from tvf.config import explain_error, to_plain
from tvf.errors import InputError
from tvf.records import (
    STOPPED,
    forget_run_variables,
    is_done,
    is_running,
    mark_failed,
    note_group,
    note_halving,
    read_configs,
    read_race,
    read_status,
)
from tvf.report import print_result, watch_status
from tvf.sweep.alike import compose_alike
from tvf.sweep.composing import (
    Jobs,
    check_jobs,
    expand,
    longest_first,
    note_jobs,
    place_jobs,
    require_own_folders,
    swept_lines,
    task_overrides,
)
from tvf.sweep.launchers import require_devices_of, require_launcher, runs_in_parallel
from tvf.sweep.mirroring import (
    close_mirror,
    command_arguments,
    compare_with_mirror,
    note_in_mirror,
    open_mirror,
    refuse_mirror,
)
from tvf.sweep.processes import QUIET, can_fork, stop_jobs

if TYPE_CHECKING:
    from rich.live import Live

    from tvf.sweep.halving import HalvingPlan

GRID = "hydra_plugins.tvf_sweepers.GridSweeper"
HALVING = "hydra_plugins.tvf_sweepers.HalvingSweeper"
RACE = "hydra_plugins.tvf_sweepers.RaceSweeper"
OPTUNA = "hydra_plugins.tvf_sweepers.OptunaSweeper"
PLAIN = (GRID, "hydra._internal.core_plugins.basic_sweeper.BasicSweeper")
GRIDS = (*PLAIN, HALVING, RACE)  # launch every combination of the swept values
Batches = Callable[[], Iterator[list[list[str]]]]


@dataclass(frozen=True)
class LaunchedSweep:
    """The sweep that this process launched: its folder, and the names of its jobs' folders.

    `jobs` grows while a search draws them. `done_before` says that there is nothing to launch.
    `batches` launches the jobs of a sweeper that decides on the way. `race` is what an earlier race
    in this folder decided. `live` is the table in the terminal, if any.
    """

    folder: Path
    jobs: set[str]
    done_before: bool
    batches: Batches | None = None
    race: dict[str, Any] | None = None
    live: "Live | None" = None


# Hydra creates the callback and the sweeper itself and returns neither, so the state that they
# share with the command that called Hydra is kept here. A process launches one sweep at a time.
_launched: LaunchedSweep | None = None


class SweepCallback(Callback):
    """Called by Hydra before the first job of a sweep."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check every job of the sweep, so that no job trains if a later one is misconfigured."""
        global _launched
        # Hydra turns exceptions in a callback into warnings, except for SystemExit.
        try:
            if forgotten := forget_run_variables():
                print(f"{', '.join(forgotten)} ignored: a sweep's jobs are runs of their own.")
            compose_alike()
            checked = _check_sweep(config)
        except (OSError, InputError, HydraException, OmegaConfBaseException) as error:
            raise SystemExit(f"error: {explain_error(error)}") from None
        except Exception as error:
            traceback.print_exc()
            raise SystemExit(f"error: the sweep could not be checked: {error}") from None
        if _launched and _launched.live:  # the sweep restarts after a worker was killed
            _launched.live.stop()
        _launched = checked
        if checked.done_before:
            raise SystemExit(0)
        if sys.stdout.isatty() and can_fork():
            _launched = replace(checked, live=watch_status(checked.folder))
            os.environ[QUIET] = "1"  # inherited by the workers


def launched() -> Path | None:
    """Return the folder of the sweep that this process launched; None if there is none."""
    return _launched.folder.absolute() if _launched else None


def planned_batches() -> Iterator[list[list[str]]]:
    """Return the jobs that a sweeper which decides on the way launches, batch by batch."""
    if _launched is None or _launched.batches is None:
        raise InputError(
            "hydra/sweeper=halving, race and optuna need hydra.callbacks.sweep: set it as "
            "conf/config.yaml does."
        )
    return _launched.batches()


def interrupt(number: int) -> bool:
    """Pass a signal to the jobs of the sweep that this process launched, and wait for their end.

    Returns whether it launched one: if not, it may run a single job of another's.
    """
    if _launched and can_fork():
        stop_jobs(_launched.folder, number)
        return True
    return False


def leave(message: str) -> None:
    """Print `message` and leave the jobs that this process launched to others, which report."""
    global _launched
    if _launched and _launched.live:
        _launched.live.stop()
    _launched = None
    print(message)


def report_sweep(folder: str) -> None:
    """Print and compare the jobs of a sweep, which other processes have run."""
    print_result(Path(folder), frozenset(read_configs(Path(folder))), track=True)


def finish(track: bool = True, compare: bool = True) -> bool:
    """Print and, with `compare`, compare the jobs of the sweep that this process launched, if any.

    Returns whether any job is unfinished. With `track`, the comparison is logged as a separate run
    if there is anything new.
    """
    global _launched
    sweep, _launched = _launched, None
    if sweep and sweep.live:
        sweep.live.stop()
    if sweep is None or not sweep.folder.is_dir():
        return False
    for name in sweep.jobs:
        job = sweep.folder / name
        if read_status(job).get("state") == "running" and not is_running(job):
            with suppress(OSError):  # the disk may be full
                mark_failed(job, name, STOPPED[1])
    compare_with_mirror([*sweep.jobs])
    same_race = sweep.race is not None and _outcome(sweep.race) == _outcome(read_race(sweep.folder))
    track = track and not sweep.done_before and not same_race
    try:
        return print_result(sweep.folder, frozenset(sweep.jobs), track, compare)
    finally:
        close_mirror(sweep.folder, [*sweep.jobs])


def _outcome(race: dict[str, Any] | None) -> dict[str, Any]:
    """What a race has decided, whatever it was allowed to take."""
    return {key: value for key, value in (race or {}).items() if key != "budget"}


def _check_sweep(config: DictConfig) -> LaunchedSweep:
    """Check the sweep and write its manifest."""
    parallel = runs_in_parallel(config.hydra.launcher)
    folder, target = Path(config.hydra.sweep.dir), config.hydra.sweeper.get("_target_")
    if target not in PLAIN:
        refuse_mirror(config)
    if target == OPTUNA:
        return _check_search(config)
    if target not in GRIDS:  # nobody knows which jobs it will launch
        _note_command(folder, {}, {})
        return LaunchedSweep(folder, set(), done_before=False)
    if parallel and target != RACE:  # which competes from the shortest jobs to the longest
        config.hydra.overrides.task = longest_first(task_overrides(config))
    overrides = expand(swept_lines(config), config.hydra.runtime.choices["hydra/sweeper"])
    names, jobs, same = place_jobs(config, overrides)
    if waiting := [job for name, job in jobs.items() if not is_done(folder / name, job)]:
        require_launcher(config.hydra.launcher)
        require_devices_of(waiting, config.hydra.launcher)
    plan = None
    by_name: dict[str, list[str]] = {}
    for name, job_overrides in zip(names, overrides, strict=True):
        by_name.setdefault(name, job_overrides)  # the first of the jobs in a folder runs
    by_name = {name: by_name[name] for name in jobs}
    if target == HALVING:
        plan = _plan_halving(config, by_name, jobs)
    race = _plan_race(config, by_name, jobs) if target == RACE else None
    open_mirror(config, folder, jobs)
    check_jobs(folder, jobs)
    raced = read_race(folder)
    _note_command(folder, jobs, same)
    note_in_mirror(folder)
    _tell_changed_images(folder, jobs)
    if race:  # in the folder of a finished grid, too, it says what it decides
        return LaunchedSweep(folder, {*jobs}, done_before=False, batches=race, race=raced)
    done = all(is_done(folder / name, job) for name, job in jobs.items())
    if plan is None:
        return LaunchedSweep(folder, {*jobs}, done)
    note_halving(folder, plan.eta, plan.budgets)
    return LaunchedSweep(folder, {*jobs}, done, partial(_halve, plan))


def _check_search(config: DictConfig) -> LaunchedSweep:
    """Check a search, hydra/sweeper=optuna, whose jobs are checked when they are drawn."""
    if find_spec("optuna") is None:
        raise InputError(
            "hydra/sweeper=optuna needs Optuna, which is not installed: pip install 'tvf[optuna]'."
        )
    from tvf.sweep.optuna_search import open_search

    require_launcher(config.hydra.launcher)
    require_devices_of([{"fabric": to_plain(config.fabric)}], config.hydra.launcher)
    require_own_folders(config, "optuna")
    search = open_search(config)
    _note_command(search.folder, {}, {})
    search.note()
    _tell_changed_images(search.folder, search.decided_jobs())
    return LaunchedSweep(search.folder, search.jobs, search.is_over, search.batches)


def _note_command(folder: Path, jobs: Jobs, same: dict[str, str]) -> None:
    note_group(folder, os.environ.get("WANDB_RUN_GROUP"))
    note_jobs(folder, jobs, same, {"folder": os.getcwd(), "arguments": command_arguments()})


def _tell_changed_images(folder: Path, jobs: Jobs) -> None:
    from tvf.job import describe_changed_images  # imports torch, which `tvf --help` does not need

    if changed := describe_changed_images(folder, jobs):
        print(changed)


def _plan_halving(config: DictConfig, overrides: dict[str, list[str]], jobs: Jobs) -> "HalvingPlan":
    """Return the plan of hydra/sweeper=halving; InputError if these jobs cannot be halved."""
    from tvf.sweep.halving import make_plan

    require_own_folders(config, "halving")
    sweeper = config.hydra.sweeper
    settings = {key: sweeper[key] for key in ("eta", "min_epochs") if key in sweeper}
    return make_plan(Path(config.hydra.sweep.dir), overrides, jobs, **settings)


def _plan_race(config: DictConfig, overrides: dict[str, list[str]], jobs: Jobs) -> Batches:
    """Return the batches of hydra/sweeper=race; InputError if these jobs cannot race."""
    from tvf.sweep.race import batches, make_plan

    require_own_folders(config, "race")
    sweeper = config.hydra.sweeper
    settings = {key: sweeper[key] for key in ("budget", "climb") if key in sweeper}
    return partial(batches, make_plan(Path(config.hydra.sweep.dir), overrides, jobs, **settings))


def _halve(plan: "HalvingPlan") -> Iterator[list[list[str]]]:
    from tvf.sweep.halving import rungs

    return rungs(plan)
