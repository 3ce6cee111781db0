"""Checks a sweep before its first job and reports after its last, in the launching process.

Hydra calls `SweepCallback` before it launches jobs; tvf's commands call `finish` at the end.
"""

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from tvf.config import explain_error, own_folder
from tvf.errors import InputError
from tvf.records import (
    STOPPED,
    check_same_configuration,
    forget_run_variables,
    is_done,
    is_running,
    mark_failed,
    note_group,
    note_halving,
    read_configs,
    read_status,
    write_manifest,
)
from tvf.report import print_result, watch_status
from tvf.sweep.check_images import check_images
from tvf.sweep.launchers import runs_in_parallel
from tvf.sweep.processes import QUIET, can_fork, stop_jobs
from tvf.sweep.same_jobs import describe_same_jobs, find_same_jobs

if TYPE_CHECKING:
    from rich.live import Live

    from tvf.sweep.halving import HalvingPlan

HALVING = "hydra_plugins.tvf_sweepers.HalvingSweeper"


@dataclass(frozen=True)
class LaunchedSweep:
    """The sweep that this process launched: its folder, and the names of its jobs' folders.

    `live` is the table in the terminal, if any; `plan` is set for successive halving.
    """

    folder: Path
    jobs: frozenset[str]
    live: "Live | None" = None
    done_before: bool = False
    plan: "HalvingPlan | None" = None


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
            folder, jobs, plan = _check_sweep(config)
        except (OSError, InputError, HydraException, OmegaConfBaseException) as error:
            raise SystemExit(f"error: {explain_error(error)}") from None
        except Exception as error:
            traceback.print_exc()
            raise SystemExit(f"error: the sweep could not be checked: {error}") from None
        if _launched and _launched.live:  # the sweep restarts after a worker was killed
            _launched.live.stop()
        if all(is_done(folder / name, job) for name, job in jobs.items()):
            _launched = LaunchedSweep(folder, frozenset(jobs), done_before=True)
            raise SystemExit(0)
        live = watch_status(folder) if sys.stdout.isatty() and can_fork() else None
        if live:
            os.environ[QUIET] = "1"  # inherited by the workers
        _launched = LaunchedSweep(folder, frozenset(jobs), live, plan=plan)


def launched() -> Path | None:
    """Return the folder of the sweep that this process launched; None if there is none."""
    return _launched.folder.absolute() if _launched else None


def planned_rungs() -> Iterator[list[list[str]]]:
    """Return the jobs that hydra/sweeper=halving launches, rung by rung, as planned."""
    from tvf.sweep.halving import rungs

    if _launched is None or _launched.plan is None:
        raise InputError(
            "hydra/sweeper=halving needs hydra.callbacks.sweep: set it as conf/config.yaml does."
        )
    return rungs(_launched.plan)


def interrupt() -> bool:
    """Interrupt the jobs of the sweep that this process launched, and wait for them to end.

    Returns whether it launched one: if not, it may run a single job of another's.
    """
    if _launched and can_fork():
        stop_jobs(_launched.folder)
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
    track = track and not sweep.done_before
    return print_result(sweep.folder, sweep.jobs, track, compare)


def _check_sweep(
    config: DictConfig,
) -> tuple[Path, dict[str, dict[str, Any]], "HalvingPlan | None"]:
    """Check the sweep and write its manifest.

    Returns its folder, the configs of its jobs by folder name, and the plan of successive halving.
    """
    if runs_in_parallel(config.hydra.launcher):
        config.hydra.overrides.task = _longest_first(config)
    overrides, folder = _expand(config), Path(config.hydra.sweep.dir)
    composed = _compose_jobs(config, overrides)
    same: dict[str, str] = {}
    if _has_default_folders(config):
        named = [any(text.startswith("name=") for text in job) for job in overrides]
        same = find_same_jobs(folder, composed, named)
        composed = [(same.get(name, name), job) for name, job in composed]
    jobs = dict(composed)
    plan = None
    if config.hydra.sweeper.get("_target_") == HALVING:
        by_name: dict[str, list[str]] = {}
        for (name, _), job_overrides in zip(composed, overrides, strict=True):
            by_name.setdefault(name, job_overrides)  # the first of the jobs in a folder runs
        plan = _plan_halving(config, {name: by_name[name] for name in jobs}, jobs)
    if any(job["refit_epochs"] is not None for job in jobs.values()):
        raise InputError(
            "refit_epochs must be null in a sweep, which compares its jobs by their validation "
            "images. Set it for a single job, or use tvf refit."
        )
    for name in jobs:
        job = folder / name
        if job.exists() and not (job.is_dir() and os.access(job, os.W_OK)):
            raise InputError(f"{job} exists but is not a writable directory.")
    check_same_configuration(folder, jobs)
    if can_fork():
        check_images(job for name, job in jobs.items() if not is_done(folder / name, job))
    arguments = [text for text in sys.argv[1:] if not text.startswith("hydra.sweep.dir=")]
    note_group(folder, os.environ.get("WANDB_RUN_GROUP"))
    write_manifest(folder, jobs, {"folder": os.getcwd(), "arguments": arguments}, same)
    if same:
        print(describe_same_jobs(folder, same))
    from tvf.job import describe_changed_images  # imports torch, which `tvf --help` does not need

    if changed := describe_changed_images(folder, jobs):
        print(changed)
    if plan:
        note_halving(folder, plan.eta, plan.budgets)
    return folder, jobs, plan


def _has_default_folders(config: DictConfig) -> bool:
    """Whether jobs are in the folders that conf/ gives them: `tvf.config.job_folder`."""
    sweep: Any = OmegaConf.to_container(config.hydra.sweep, resolve=False)
    return sweep["subdir"] == "${tvf.job_folder:}"


def _task_overrides(config: DictConfig) -> list[str]:
    """Return the overrides as given on the command line; each job resolves their ${...} itself."""
    overrides: Any = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
    return overrides


def _expand(config: DictConfig) -> list[list[str]]:
    """Return the overrides of each job of a grid sweep, spelled as by Hydra's own sweeper."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    swept = config.hydra.sweeper.get("params") or {}
    lines = [f"{key}={value}" for key, value in swept.items()] + _task_overrides(config)
    parsed = _parse(lines)
    batches = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    return [list(job) for batch in batches for job in batch]


def _parse(lines: list[str]) -> list[Any]:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    return parser.parse_overrides(lines)


def _descending_fraction(value: str) -> float:
    try:
        return -float(value)
    except ValueError:
        return 0.0  # validation reports it later


# For each key, the sort key of its swept values that puts the longest jobs first.
LONGEST_FIRST = {
    "model": lambda option: option == "transfer",
    "model.pct_unfreeze": _descending_fraction,
}


def _longest_first(config: DictConfig) -> list[str]:
    """Reorder the task's overrides so that large fractions come first.

    Jobs run in parallel, and a long job that starts last would run alone at the end. The set of
    jobs and their names stay the same.
    """
    first: dict[str, str] = {}
    rest: list[str] = []
    lines = _task_overrides(config)
    for line, override in zip(lines, _parse(lines), strict=True):
        key = override.get_key_element()
        if key in LONGEST_FIRST and override.is_sweep_override() and override.is_discrete_sweep():
            values = sorted(override.sweep_string_iterator(), key=LONGEST_FIRST[key])
            first[key] = f"{key}={','.join(values)}"
        else:
            rest.append(line)
    return [first[key] for key in LONGEST_FIRST if key in first] + rest


def _plan_halving(
    config: DictConfig, overrides: dict[str, list[str]], jobs: dict[str, dict[str, Any]]
) -> "HalvingPlan":
    """Return the plan of hydra/sweeper=halving; InputError if these jobs cannot be halved."""
    from tvf.sweep.halving import make_plan

    sweep: Any = OmegaConf.to_container(config.hydra.sweep, resolve=False)
    if "hydra.job." in str(sweep["subdir"]):
        raise InputError(
            f"hydra.sweep.subdir={sweep['subdir']} must not refer to hydra.job with "
            "hydra/sweeper=halving, which launches a job several times in the same folder. "
            "Leave it out."
        )
    sweeper = config.hydra.sweeper
    settings = {key: sweeper[key] for key in ("eta", "min_epochs") if key in sweeper}
    return make_plan(Path(config.hydra.sweep.dir), overrides, jobs, **settings)


def _compose_jobs(config: DictConfig, jobs: list[list[str]]) -> list[tuple[str, dict[str, Any]]]:
    """Compose and check each job; return its folder's name and its config.

    Raises InputError, or one of Hydra's errors, for a job that is misconfigured.
    """
    from tvf.config import validate_config

    configs = []
    for number, overrides in enumerate(jobs):
        job = GlobalHydra.instance().config_loader().load_sweep_config(config, overrides)
        with open_dict(job):
            job.hydra.job.num, job.hydra.job.id = number, str(number)
            default = _has_default_folders(config)
            folder = own_folder(job) if default else str(job.hydra.sweep.subdir)
            if "name" in job:
                job.name = str(job.name)  # resolve it now: it may refer to Hydra's overrides
            del job["hydra"]
        configs.append((folder, validate_config(job)))
    return configs
