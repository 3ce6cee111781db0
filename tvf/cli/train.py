"""The shell's side: finds conf/, hands over to Hydra, and turns mistakes into messages instead of tracebacks."""

import argparse
import logging
import os
import re
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from joblib.externals.loky.process_executor import TerminatedWorkerError
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tvf.config import DISK_FULL, explain_error, job_folder, job_name
from tvf.errors import InputError
from tvf.records import is_running, mark_failed, read_status
from tvf.report import result_location, resume_hint
from tvf.sweep import (
    can_fork,
    default_workers,
    finish,
    interrupt,
    interruptible,
    launched,
    run_in_subprocess,
)

if TYPE_CHECKING:
    from tvf.job import JobContext
from tvf.config import conf_dir

log = logging.getLogger(__name__)

INTERRUPTED, REFUSED = 130, 2  # exit codes of a job's process, as shells have them
_interrupted = False  # whether this process was, while it ran a job


def train() -> None:
    """Train one job or, with -m, a sweep, as sys.argv says. Exits with 0 only if every job is done."""
    os.environ["HYDRA_FULL_ERROR"] = (
        "1"  # has Hydra raise its errors to us instead of printing them
    )
    read_config_dir(sys.argv[1:])
    interrupted = False
    try:
        with interruptible(interrupt):
            _call_hydra()
    except (InputError, HydraException, OmegaConfBaseException, OSError, ValueError) as error:
        # Hydra sets up a job's log file itself; where it cannot, that is a ValueError.
        unwritable = error.__cause__ if isinstance(error.__cause__, OSError) else None
        known = not isinstance(error, ValueError) or isinstance(error, InputError) or unwritable
        if _debugging() or not known:
            raise
        raise SystemExit(f"error: {explain_error(unwritable or error)}") from None
    except TerminatedWorkerError:
        raise SystemExit(
            "error: a worker process was killed, as the system does when memory runs out"
        ) from None
    except KeyboardInterrupt:
        interrupted = True
        raise SystemExit("interrupted: what was finished is kept") from None
    finally:
        failures = finish(
            track=not interrupted
        )  # who interrupts does not want to wait for a network
    if failures:
        raise SystemExit(1)


def _call_hydra(attempts: int = 3) -> None:
    """Have Hydra run the job or sweep that sys.argv names; so often, if a worker of the sweep is killed."""
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(_task)()
    except TerminatedWorkerError:
        folder = launched()
        if folder is None or attempts == 1:
            raise
        # Jobs have processes of their own, so this was none of their doing: what it took down goes on.
        log.warning("a worker was killed from outside: the sweep goes on with what is not done.")
        sys.argv = [
            *(each for each in sys.argv if not each.startswith("hydra.sweep.dir=")),
            _in_folder(folder),
        ]
        _call_hydra(attempts - 1)


def _in_folder(folder: Path) -> str:
    """The override that has a sweep in `folder`, quoted for Hydra's grammar."""
    if re.fullmatch(r"[\w./-]+", str(folder), re.ASCII):
        return f"hydra.sweep.dir={folder}"
    escaped = str(folder).replace("\\", r"\\").replace("'", r"\'")
    return f"hydra.sweep.dir='{escaped}'"


def _task(cfg: DictConfig) -> None:
    """What Hydra calls for each job. A job of a sweep that fails leaves the others alone: its record tells."""
    global _interrupted
    from tvf.job import JobContext

    settings = HydraConfig.get()
    in_sweep = settings.mode == RunMode.MULTIRUN
    launcher = settings.launcher
    context = JobContext(
        folder=Path(settings.runtime.output_dir),
        sweep=Path(settings.sweep.dir) if in_sweep else None,
        parallel=in_sweep and launcher.get("n_jobs", 1) != 1,
        choices=dict(settings.runtime.choices),
    )
    if _interrupted:  # while the launching process waits, a worker is given other jobs
        return
    if in_sweep and can_fork():
        try:
            _run_apart(cfg, context)
        except KeyboardInterrupt:
            _interrupted = True
            if not context.parallel:
                raise
    elif (code := _run(cfg, context)) and not in_sweep:
        if code != REFUSED:
            print(resume_hint(context.folder))
        raise SystemExit(1)
    elif code == INTERRUPTED:
        raise KeyboardInterrupt


def _run_apart(cfg: DictConfig, context: "JobContext") -> None:
    """Run the job in a process of its own; if that ends without a word, its record says how."""
    name = str(cfg.get("name"))
    try:
        code = run_in_subprocess(lambda: _run(cfg, context), context.folder / "job.log")
        reason = f"its process ended with code {code}"
        if code < 0:
            reason = f"killed by {signal.Signals(-code).name}"
            reason += ", as the system does when memory runs out" if code == -signal.SIGKILL else ""
    except OSError as error:
        code, reason = 1, f"it could not be started: {error.strerror}"
    wordless = code < 0 or read_status(context.folder).get("state") not in ("done", "failed")
    if code and wordless and not is_running(context.folder):
        log.error("%s: %s", name, reason)
        with suppress(OSError):  # of a disk that is full
            mark_failed(context.folder, name, reason)


def _run(cfg: DictConfig, context: "JobContext") -> int:
    """Run the job; 0 if it is done, pauses, or is in other hands. What went wrong is told and in its record."""
    from tvf.job import run_job

    try:
        summary = run_job(cfg, context)
    except InputError as error:
        log.error("error: %s", error, exc_info=_debugging())
        return REFUSED
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL and not _debugging():
            log.error("error: %s", explain_error(error))
        else:
            log.exception("%s failed", cfg.get("name"))
        return 1
    except KeyboardInterrupt:
        log.error("%s interrupted", cfg.get("name"))
        return INTERRUPTED
    except SystemExit as error:
        log.error("%s called sys.exit(%s)", cfg.get("name"), error.code)
        return 1
    if summary is not None and context.sweep is None:
        log.info("%s", result_location(context.folder, summary))
    elif context.sweep is None and read_status(context.folder).get("state") == "paused":
        print(resume_hint(context.folder))
    return 0


def _debugging() -> bool:
    return os.environ.get("TVF_DEBUG") == "1"


def read_config_dir(arguments: list[str]) -> tuple[str | None, list[str]]:
    """The folder of --config-dir, if given, and the arguments without it.

    That folder and the working directory become importable, so that a `_target_` may name a Python file there.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd", type=os.path.abspath)
    known, rest = parser.parse_known_args(arguments)
    if known.config_dir and not os.path.isdir(known.config_dir):
        raise SystemExit(f"error: --config-dir {known.config_dir} is not a folder.")
    folders = [os.getcwd(), *([known.config_dir] if known.config_dir else [])]
    sys.path[:0] = [folder for folder in folders if folder not in sys.path]
    return known.config_dir, rest


OmegaConf.register_new_resolver("tvf.job_name", job_name, replace=True)
OmegaConf.register_new_resolver("tvf.job_folder", job_folder, replace=True)
OmegaConf.register_new_resolver("tvf.workers", default_workers, replace=True)
