"""The sweep's beginning and end, in the process that launches the jobs."""

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from rich.live import Live

from tvf.config import explain_error
from tvf.errors import InputError
from tvf.records import (
    STOPPED,
    check_same_configuration,
    is_done,
    is_running,
    mark_failed,
    note_halving,
    read_status,
    write_manifest,
)
from tvf.report import print_result, watch_status
from tvf.sweep.processes import QUIET, can_fork, stop_jobs

if TYPE_CHECKING:
    from tvf.sweep.halving import HalvingPlan


HALVING = "hydra_plugins.tvf_halving.HalvingSweeper"


def _fraction(value: str) -> float:
    try:
        return -float(value)
    except ValueError:
        return 0.0  # the check of the jobs will say what is wrong with it


# How to sort the values of a swept key so that the jobs which take longest come first.
LONGEST_FIRST = {"model": lambda option: option == "transfer", "model.pct_unfreeze": _fraction}


@dataclass(frozen=True)
class Launched:
    """The sweep that this process launched: its folder, the folders of its jobs in it, and how they are halved."""

    folder: Path
    jobs: frozenset[str]
    live: Live | None
    done_before: bool = False
    plan: "HalvingPlan | None" = None


_launched: Launched | None = None


class SweepCallback(Callback):
    """Hydra calls it before a sweep's first job."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check every job of the sweep, so that a mistake in the last one is known before the first one trains."""
        global _launched
        # Hydra turns a callback's exceptions into warnings; SystemExit is not one.
        try:
            if config.hydra.launcher.get("n_jobs") == 0:
                raise InputError(
                    "hydra.launcher.n_jobs=0 is refused: how many jobs at once? -1 means one a core."
                )
            if config.hydra.launcher.get("n_jobs", 1) != 1:
                config.hydra.overrides.task = longest_first(config)
            overrides = expand(config)
            composed = compose_jobs(config, overrides)
            jobs, folder = dict(composed), Path(config.hydra.sweep.dir)
            plan = None
            if config.hydra.sweeper.get("_target_") == HALVING:
                # Of jobs that share a folder the first is launched.
                first = {
                    name: each
                    for (name, _), each in zip(composed[::-1], overrides[::-1], strict=True)
                }
                plan = plan_halving(config, {name: first[name] for name in jobs}, jobs)
            for name in jobs:
                if (folder / name).exists() and not (
                    (folder / name).is_dir() and os.access(folder / name, os.W_OK)
                ):
                    raise InputError(
                        f"{folder / name} is in the way: it is no folder that can be written."
                    )
            check_same_configuration(folder, jobs)
            arguments = [each for each in sys.argv[1:] if not each.startswith("hydra.sweep.dir=")]
            write_manifest(folder, jobs, {"folder": os.getcwd(), "arguments": arguments})
            if plan:
                note_halving(folder, plan.eta, plan.budgets)
        except (OSError, InputError, HydraException, OmegaConfBaseException) as error:
            raise SystemExit(f"error: {explain_error(error)}") from None
        except Exception as error:
            traceback.print_exc()
            raise SystemExit(f"error: the sweep could not be checked: {error}") from None
        if _launched and _launched.live:  # a sweep that goes on after a worker was killed
            _launched.live.stop()
        if all(is_done(folder / name, job) for name, job in jobs.items()):
            _launched = Launched(folder, frozenset(jobs), None, done_before=True)
            raise SystemExit(0)
        live = watch_status(folder) if sys.stdout.isatty() and can_fork() else None
        if live:
            os.environ[QUIET] = "1"  # workers inherit it
        _launched = Launched(folder, frozenset(jobs), live, plan=plan)


def launched() -> Path | None:
    """The folder of the sweep that this process has launched; None if there is none."""
    return _launched.folder.absolute() if _launched else None


def planned_rungs() -> Iterator[list[list[str]]]:
    """What hydra/sweeper=halving launches, rung by rung: the callback has planned it."""
    from tvf.sweep.halving import rungs

    if _launched is None or _launched.plan is None:
        raise InputError(
            "hydra/sweeper=halving needs hydra.callbacks.sweep, as conf/config.yaml has it."
        )
    return rungs(_launched.plan)


def interrupt() -> None:
    """Interrupt the jobs of the sweep that this process launched, if any, and wait until they have said so."""
    if _launched and can_fork():
        stop_jobs(_launched.folder)


def finish(track: bool = True) -> bool:
    """Print and compare the jobs of the sweep that this process launched, if any; whether some job is not done.

    With `track` the comparison becomes a run of its own, if there is something new.
    """
    global _launched
    done, _launched = _launched, None
    if done and done.live:
        done.live.stop()
    if done is None or not done.folder.is_dir():
        return False
    for job in done.jobs:
        if read_status(done.folder / job).get("state") == "running" and not is_running(
            done.folder / job
        ):
            with suppress(OSError):  # of a disk that is full
                mark_failed(done.folder / job, job, STOPPED[1])
    return print_result(done.folder, done.jobs, track=track and not done.done_before)


def task_overrides(config: DictConfig) -> list[str]:
    """The overrides as the shell gave them: what ${...} in them refers to is for each job to say."""
    overrides: Any = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
    return overrides


def expand(config: DictConfig) -> list[list[str]]:
    """The overrides of each job of a grid sweep, spelled as Hydra's own sweeper spells them."""
    swept = config.hydra.sweeper.get("params") or {}
    lines = [*(f"{key}={value}" for key, value in swept.items()), *task_overrides(config)]
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    batches = BasicSweeper.split_arguments(parser.parse_overrides(lines), max_batch_size=None)
    return [list(job) for batch in batches for job in batch]


def longest_first(config: DictConfig) -> list[str]:
    """The task's overrides, spelled so that large fractions come first: side by side, long jobs must not be last.

    Which jobs there are does not change, nor what they are called.
    """
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    first: dict[str, str] = {}
    rest: list[str] = []
    lines = task_overrides(config)
    for line, override in zip(lines, parser.parse_overrides(lines), strict=True):
        key = override.get_key_element()
        if key in LONGEST_FIRST and override.is_sweep_override() and override.is_discrete_sweep():
            values = sorted(override.sweep_string_iterator(), key=LONGEST_FIRST[key])
            first[key] = f"{key}={','.join(values)}"
        else:
            rest.append(line)
    return [*(first[key] for key in LONGEST_FIRST if key in first), *rest]


def plan_halving(
    config: DictConfig, overrides: dict[str, list[str]], jobs: dict[str, dict[str, Any]]
) -> "HalvingPlan":
    """The plan of hydra/sweeper=halving; InputError where these jobs cannot be halved."""
    from tvf.sweep.halving import make_plan

    sweep: Any = OmegaConf.to_container(config.hydra.sweep, resolve=False)
    if "hydra.job." in str(sweep["subdir"]):
        raise InputError(
            f"hydra.sweep.subdir={sweep['subdir']} is refused with hydra/sweeper=halving: a job is launched several "
            "times, and must find its folder again. Leave it out."
        )
    settings = {
        key: config.hydra.sweeper[key]
        for key in ("eta", "min_epochs")
        if key in config.hydra.sweeper
    }
    return make_plan(Path(config.hydra.sweep.dir), overrides, jobs, **settings)


def compose_jobs(config: DictConfig, jobs: list[list[str]]) -> list[tuple[str, dict[str, Any]]]:
    """Compose and check each job: the name of its folder, and its config.

    Raises InputError, or Hydra's errors, for a wrong one.
    """
    from tvf.config import validate_config

    configs = []
    for number, overrides in enumerate(jobs):
        job = GlobalHydra.instance().config_loader().load_sweep_config(config, overrides)
        with open_dict(job):
            job.hydra.job.num, job.hydra.job.id = number, str(number)
            folder = str(job.hydra.sweep.subdir)
            if "name" in job:
                job.name = str(job.name)  # follows from the overrides, which are Hydra's
            del job["hydra"]
        configs.append((folder, validate_config(job)))
    return configs
