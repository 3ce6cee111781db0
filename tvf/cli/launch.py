"""Hands a job or a sweep to Hydra, and turns input errors into messages instead of tracebacks.

Hydra composes the config and calls `_task` for each job. Each job of a sweep runs in its own
process, so that a crash affects only that job.
"""

import argparse
import logging
import os
import select
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from joblib.externals.loky.process_executor import TerminatedWorkerError
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tvf.cli.surroundings import settled_surroundings
from tvf.config import (
    conf_dir,
    environment_value,
    explain_error,
    explain_ignored,
    job_folder,
    job_name,
    path_override,
    to_plain,
)
from tvf.errors import InputError
from tvf.records import (
    best_score,
    failure_reason,
    forget_run_variables,
    is_running,
    mark_failed,
    read_status,
)
from tvf.report import result_location, resume_hint
from tvf.sweep import (
    BAD_INPUT,
    INTERRUPTED,
    can_fork,
    debugging,
    finish,
    interrupt,
    interruptible,
    job_outcome,
    jobs_at_once,
    launched,
    log_in_file,
    refuse_unmirrored,
    run_in_subprocess,
    runs_in_parallel,
    seconds_to_checkpoint,
    shield_workers,
    use_node_store,
    workers,
)

if TYPE_CHECKING:
    from tvf.job import JobContext

log = logging.getLogger(__name__)

# conf/ calls these. They are registered on import because joblib's workers import this module to
# find `_task`, before they compose their first config.
OmegaConf.register_new_resolver("tvf.job_name", job_name, replace=True)
OmegaConf.register_new_resolver("tvf.job_folder", job_folder, replace=True)
OmegaConf.register_new_resolver("tvf.env", environment_value, replace=True)
OmegaConf.register_new_resolver("tvf.workers", workers, replace=True)

# The settings that only a sweep reads: their groups, and how their keys begin.
SWEEP_SETTINGS = ("hydra/sweeper", "hydra/launcher", "hydra.sweeper", "hydra.launcher")
SWEEP_SETTINGS += ("hydra.sweep",)
_interrupted = False  # whether Ctrl-C reached a job that this process ran


def launch(arguments: Sequence[str] | None = None, compare: bool = True) -> None:
    """Train one job or, with -m, a sweep, according to `arguments` (default: sys.argv).

    Without `compare`, the sweep goes on with another call, and its jobs are only listed at the end.
    Raises SystemExit with a message for bad input, and with code 1 unless every job is done.
    """
    if arguments is not None:
        sys.argv = ["tvf train", *arguments]  # read by Hydra and by the sweep's manifest
    # Hydra takes no flag between overrides.
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda word: word not in ("-m", "--multirun"))
    os.environ["HYDRA_FULL_ERROR"] = "1"  # make Hydra raise errors instead of printing them
    make_importable(config_dir_among(sys.argv[1:]))
    use_node_store()
    if sys.argv[1:2] and sys.argv[1] in ("-m", "--multirun"):
        shield_workers()
    with settled_surroundings():
        _launch(compare)


def _launch(compare: bool) -> None:
    interrupted = False
    try:
        seconds_to_checkpoint()  # or its error would come with SIGTERM
        with interruptible(interrupt):
            _call_hydra()
    except (InputError, HydraException, OmegaConfBaseException, OSError, ValueError) as error:
        if isinstance(error, BrokenPipeError) and _reader_has_ended():
            raise SystemExit(1) from None
        # Hydra's logging raises a ValueError if it cannot open the job's log file, and Hydra itself
        # one for flags that exclude each other.
        unwritable = error.__cause__ if isinstance(error.__cause__, OSError) else None
        usage = traceback.extract_tb(error.__traceback__)[-1].name == "_run_hydra"
        unexpected = isinstance(error, ValueError) and not isinstance(error, InputError)
        if debugging() or (unexpected and not unwritable and not usage):
            raise
        raise SystemExit(f"error: {explain_error(unwritable or error)}") from None
    except TerminatedWorkerError:
        raise SystemExit("error: a worker process was killed (out of memory?)") from None
    except KeyboardInterrupt:
        interrupted = True
        raise SystemExit("interrupted: finished work is kept") from None
    finally:
        # After Ctrl-C, do not wait for the tracker's network.
        failures = finish(track=not interrupted, compare=compare)
    if failures:
        raise SystemExit(1)


def compose(overrides: Sequence[str], config_dir: Path | None = None) -> DictConfig:
    """Compose the config of one job without running it. Raises Hydra's errors."""
    overrides = list(overrides)
    if config_dir:
        overrides.append(f"hydra.searchpath=['file://{config_dir}']")
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return hydra.compose("config", overrides)


def make_importable(config_dir: Path | None) -> None:
    """Let a `_target_` name a Python file in the working directory or in `config_dir`."""
    if config_dir and not config_dir.is_dir():
        raise SystemExit(f"error: --config-dir {config_dir} is not a folder.")
    folders = [os.getcwd(), *([str(config_dir)] if config_dir else [])]
    sys.path[:0] = [folder for folder in folders if folder not in sys.path]


def config_dir_among(arguments: Sequence[str]) -> Path | None:
    """Return the folder of --config-dir among Hydra's arguments, if it is there."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd", type=os.path.abspath)
    folder = parser.parse_known_args(arguments)[0].config_dir
    return Path(folder) if folder else None


def sweep_dir_override(folder: Path) -> str:
    """Return hydra.sweep.dir=`folder`, quoted for Hydra's grammar."""
    return path_override("hydra.sweep.dir", folder)


def _call_hydra(attempts: int = 3) -> None:
    """Run the job or sweep that sys.argv names; retry a sweep if one of its workers is killed."""
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(_task)()
    except TerminatedWorkerError:
        folder = launched()
        if folder is None or attempts == 1:
            raise
        # Jobs run in their own processes, so none of them is the cause: resume the worker's jobs.
        log.warning("A worker process was killed. Resuming the jobs that are not done.")
        arguments = [word for word in sys.argv if not word.startswith("hydra.sweep.dir=")]
        sys.argv = [*arguments, sweep_dir_override(folder)]
        _call_hydra(attempts - 1)


def _task(cfg: DictConfig) -> float | None:
    """Run one job for Hydra. In a sweep, a failure is recorded and does not stop other jobs.

    Returns the job's validation score; None if the job is not done.
    """
    global _interrupted
    if _interrupted:  # joblib gives a worker more jobs until the launching process stops it
        return None
    context = _job_context()
    if context.sweep is not None:
        forget_run_variables()  # another machine has its own, if a launcher starts jobs there
    if context.sweep is None:
        _refuse_sweep_settings(HydraConfig.get().overrides.hydra)
        if code := _run(cfg, context):
            if code != BAD_INPUT:
                print(resume_hint(context.folder))
            raise SystemExit(1)
    elif can_fork():
        from tvf.job import import_libraries

        import_libraries(str(cfg.backbone.get("_target_")))
        try:
            _run_in_own_process(cfg, context)
        except KeyboardInterrupt:
            _interrupted = True
            if not context.parallel:
                raise
    elif _run(cfg, context) == INTERRUPTED:
        raise KeyboardInterrupt
    return best_score(context.folder)


def _refuse_sweep_settings(overrides: Sequence[str]) -> None:
    """Exit if one of Hydra's overrides of a single job is for sweeps: Hydra would ignore it.

    What an override removes (`~`) or adds (`+`) is treated alike.
    """
    for text in overrides:
        key = text.partition("=")[0].lstrip("~+").partition("@")[0]
        if any(key == each or key.startswith(f"{each}.") for each in SWEEP_SETTINGS):
            raise SystemExit(
                f"error: {text} must be used with -m: only a sweep reads it, and without -m one "
                "job is trained. Add -m, or leave it out."
            )


def _job_context() -> "JobContext":
    """The context of the current job, from Hydra's settings."""
    from tvf.job import JobContext

    settings = HydraConfig.get()
    in_sweep = settings.mode == RunMode.MULTIRUN
    return JobContext(
        folder=Path(settings.runtime.output_dir),
        sweep=Path(settings.runtime.cwd, settings.sweep.dir) if in_sweep else None,
        parallel=in_sweep and runs_in_parallel(settings.launcher),
        workers=jobs_at_once(settings.launcher) if in_sweep else 1,
        choices=dict(settings.runtime.choices),
    )


def _run_in_own_process(cfg: DictConfig, context: "JobContext") -> None:
    """Run the job in its own process; if that dies silently, record the reason."""
    name = _name_of(cfg, context)
    try:
        code = run_in_subprocess(lambda: _run(cfg, context), context.folder / "job.log")
        reason = f"its process exited with code {code}"
        if code < 0:
            reason = f"killed by {signal.Signals(-code).name}"
            reason += " (out of memory?)" if code == -signal.SIGKILL else ""
    except OSError as error:
        code, reason = 1, f"its process could not start: {error.strerror}"
    status = read_status(context.folder)
    if code == INTERRUPTED and not status:
        return  # it never began, such as one that waits for a GPU
    recorded = code >= 0 and status.get("state") in ("done", "failed")
    if code and not recorded and not is_running(context.folder):
        log.error("%s: %s", name, reason)
        with suppress(OSError):  # the disk is full
            mark_failed(context.folder, name, reason)


def _run(cfg: DictConfig, context: "JobContext") -> int:
    """Run the job in this process, log its errors and return an exit code.

    The code is 0 if the job is done, paused, or running in another process.
    """
    from tvf.job import run_job

    summary = None

    def run() -> None:
        nonlocal summary
        summary = run_job(_checked_config(cfg, context), context)

    if code := job_outcome(run, lambda: _name_of(cfg, context)):
        return code
    if context.sweep is None:
        if summary is not None:
            log.info("%s", result_location(context.folder, summary))
        elif read_status(context.folder).get("state") == "paused":
            print(resume_hint(context.folder))
    return 0


def _checked_config(cfg: DictConfig, context: "JobContext") -> dict[str, Any]:
    """The job's config as plain, validated values. Errors are also recorded in the job's status."""
    from tvf.config import validate_config

    name = _name_of(cfg, context)
    try:
        config = validate_config(cfg, HydraConfig.get().runtime.cwd)
        refuse_unmirrored(config, context.sweep)
        note = explain_ignored(name, to_plain(cfg.model), to_plain(cfg.optimizer))
    except Exception as error:
        if not is_running(context.folder):
            mark_failed(context.folder, name, failure_reason(error))
        raise
    if note and context.sweep is None:
        log.info("%s", note)
    elif note:
        log_in_file(note)
    return config


def _name_of(cfg: DictConfig, context: "JobContext") -> str:
    """The job's name, or its folder's if a reference that the former needs is broken."""
    try:
        return str(cfg.get("name"))
    except OmegaConfBaseException:
        return context.folder.name


def _reader_has_ended() -> bool:
    """Whether stdout is a pipe whose reader, such as `head`, has ended; if so, discard output."""
    poll = select.poll()
    poll.register(sys.stdout, 0)
    if ended := any(event & select.POLLERR for _, event in poll.poll(0)):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return ended
