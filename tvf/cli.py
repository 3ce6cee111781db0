"""The shell's side: finds conf/, hands over to Hydra, and turns mistakes into messages instead of tracebacks."""

import argparse
import logging
import os
import re
import shlex
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

from tvf import naming, sweep
from tvf.build import FULL, explain
from tvf.errors import InputError
from tvf.record import call_failed, is_live, read_status
from tvf.sweep.isolation import can_isolate, interruptible, run_apart
from tvf.sweep.manifest import read_commands

if TYPE_CHECKING:
    from tvf.run import Place

log = logging.getLogger(__name__)

INTERRUPTED, REFUSED = 130, 2  # exit codes of a job's process, as shells have them
_interrupted = False  # whether this process was, while it ran a job

OTHERS = ("resume", "status", "report", "dashboard", "wandb-sweep", "groups", "store")
USAGE = """tvf: how much of a pretrained vision network should train?

  tvf train [OVERRIDE ...]       train one configuration
  tvf train -m [OVERRIDE ...]    sweep: model.pct_unfreeze=0,0.25,0.5,1.0 trains four
  tvf train --help               the options, and the config as it stands
  tvf resume DIR                 go on with the sweep in DIR: what is done is kept, what was stopped goes on from there
                                 (hydra/launcher=basic and the like may follow)
  tvf status DIR                 how the jobs of the sweep in DIR stand
  tvf report DIR [DIR ...]       compare the jobs of one or more sweeps: report.html, written at a sweep's end too
                                 (--format md, csv, json or png; --output FOLDER, or - for the terminal)
  tvf dashboard DIR              the comparison at W&B: a workspace and a report of the sweep's runs
  tvf wandb-sweep [OVERRIDE ...] print the YAML of the same sweep for `wandb sweep` and its agents: > sweep.yaml
  tvf groups [OVERRIDE ...]      what each fraction trains: tvf groups backbone=resnet18 backbone.weights=null
  tvf store info | clear         what frozen layers computed, kept for later jobs; clear what no job uses now
                                 (store.dir=DIR for another store than TVF_STORE's, or the user's cache folder)
"""


def main() -> None:
    """The command `tvf`."""
    command, *rest = sys.argv[1:] or ["--help"]
    if command in ("-h", "--help", "help") or (command in OTHERS and {"-h", "--help"} & {*rest}):
        print(USAGE)
    elif command == "train":
        sys.argv = [f"{sys.argv[0]} train", *rest]
        train()
    elif command in OTHERS:
        from tvf import commands

        (resume if command == "resume" else getattr(commands, command.replace("-", "_")))(rest)
    else:
        raise SystemExit(f"error: {command} is not a command of tvf.\n\n{USAGE}")


def train() -> None:
    """Train one job or, with -m, a sweep, as sys.argv says. Exits with 0 only if every job is done."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # has Hydra raise its errors to us instead of printing them
    read_config_dir(sys.argv[1:])
    interrupted = False
    try:
        with interruptible(sweep.interrupt):
            _call_hydra()
    except (InputError, HydraException, OmegaConfBaseException, OSError, ValueError) as error:
        # Hydra sets up a job's log file itself; where it cannot, that is a ValueError.
        unwritable = error.__cause__ if isinstance(error.__cause__, OSError) else None
        known = not isinstance(error, ValueError) or isinstance(error, InputError) or unwritable
        if _debugging() or not known:
            raise
        raise SystemExit(f"error: {explain(unwritable or error)}") from None
    except TerminatedWorkerError:
        raise SystemExit("error: a worker process was killed, as the system does when memory runs out") from None
    except KeyboardInterrupt:
        interrupted = True
        raise SystemExit("interrupted: what was finished is kept") from None
    finally:
        failures = sweep.finish(track=not interrupted)  # who interrupts does not want to wait for a network
    if failures:
        raise SystemExit(1)


def _call_hydra(attempts: int = 3) -> None:
    """Have Hydra run the job or sweep that sys.argv names; so often, if a worker of the sweep is killed."""
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(_task)()
    except TerminatedWorkerError:
        folder = sweep.launched()
        if folder is None or attempts == 1:
            raise
        # Jobs have processes of their own, so this was none of their doing: what it took down goes on.
        log.warning("a worker was killed from outside: the sweep goes on with what is not done.")
        sys.argv = [*(each for each in sys.argv if not each.startswith("hydra.sweep.dir=")), _in_folder(folder)]
        _call_hydra(attempts - 1)


def resume(arguments: list[str]) -> None:
    """Give a sweep's commands again, in the folder that they were given in: each runs what is not done."""
    from tvf.commands import sweep_folder

    folder, overrides = sweep_folder("resume", arguments)
    if others := [each for each in overrides if not each.startswith("hydra")]:
        raise SystemExit(
            f"error: {' '.join(others)} would make other jobs of them. To widen the sweep, give its command with other "
            f"values and hydra.sweep.dir={folder}."
        )
    commands = read_commands(folder)
    if not commands:
        raise SystemExit(
            f"error: {folder / 'sweep.json'} names no command: give the sweep's own again, with hydra.sweep.dir=DIR."
        )
    unfinished = False
    for command in commands:
        try:
            os.chdir(command["folder"])
        except OSError as error:
            raise SystemExit(f"error: {command['folder']}, where the sweep was started: {error.strerror}") from None
        arguments = [*command["arguments"], *overrides, _in_folder(folder)]
        sys.argv = [f"{sys.argv[0].partition(' ')[0]} train", *arguments]
        print(shlex.join(["tvf", "train", *arguments]))
        try:
            train()
        except SystemExit as error:
            if error.code not in (0, 1):
                raise
            unfinished |= error.code == 1
    if unfinished:
        raise SystemExit(1)


def _in_folder(folder: Path) -> str:
    """The override that has a sweep in `folder`, quoted for Hydra's grammar."""
    if re.fullmatch(r"[\w./-]+", str(folder), re.ASCII):
        return f"hydra.sweep.dir={folder}"
    escaped = str(folder).replace("\\", r"\\").replace("'", r"\'")
    return f"hydra.sweep.dir='{escaped}'"


def _task(cfg: DictConfig) -> None:
    """What Hydra calls for each job. A job of a sweep that fails leaves the others alone: its record tells."""
    global _interrupted
    from tvf.run import Place

    settings = HydraConfig.get()
    in_sweep = settings.mode == RunMode.MULTIRUN
    launcher = settings.launcher
    place = Place(
        folder=Path(settings.runtime.output_dir),
        sweep=Path(settings.sweep.dir) if in_sweep else None,
        parallel=in_sweep and launcher.get("n_jobs", 1) != 1,
        choices=dict(settings.runtime.choices),
    )
    if _interrupted:  # while the launching process waits, a worker is given other jobs
        return
    if in_sweep and can_isolate():
        try:
            _run_apart(cfg, place)
        except KeyboardInterrupt:
            _interrupted = True
            if not place.parallel:
                raise
    elif (code := _run(cfg, place)) and not in_sweep:
        if code != REFUSED:
            print(sweep.how_to_go_on(place.folder))
        raise SystemExit(1)
    elif code == INTERRUPTED:
        raise KeyboardInterrupt


def _run_apart(cfg: DictConfig, place: "Place") -> None:
    """Run the job in a process of its own; if that ends without a word, its record says how."""
    name = str(cfg.get("name"))
    try:
        code = run_apart(lambda: _run(cfg, place), place.folder / "job.log")
        reason = f"its process ended with code {code}"
        if code < 0:
            reason = f"killed by {signal.Signals(-code).name}"
            reason += ", as the system does when memory runs out" if code == -signal.SIGKILL else ""
    except OSError as error:
        code, reason = 1, f"it could not be started: {error.strerror}"
    wordless = code < 0 or read_status(place.folder).get("state") not in ("done", "failed")
    if code and wordless and not is_live(place.folder):
        log.error("%s: %s", name, reason)
        with suppress(OSError):  # of a disk that is full
            call_failed(place.folder, name, reason)


def _run(cfg: DictConfig, place: "Place") -> int:
    """Run the job; 0 if it is done, pauses, or is in other hands. What went wrong is told and in its record."""
    from tvf.run import run_job

    try:
        summary = run_job(cfg, place)
    except InputError as error:
        log.error("error: %s", error, exc_info=_debugging())
        return REFUSED
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FULL and not _debugging():
            log.error("error: %s", explain(error))
        else:
            log.exception("%s failed", cfg.get("name"))
        return 1
    except KeyboardInterrupt:
        log.error("%s interrupted", cfg.get("name"))
        return INTERRUPTED
    except SystemExit as error:
        log.error("%s called sys.exit(%s)", cfg.get("name"), error.code)
        return 1
    if summary is not None and place.sweep is None:
        log.info("%s", sweep.where(place.folder, summary))
    elif place.sweep is None and read_status(place.folder).get("state") == "paused":
        print(sweep.how_to_go_on(place.folder))
    return 0


def _debugging() -> bool:
    return os.environ.get("TVF_DEBUG") == "1"


def conf_dir() -> Path:
    """The folder conf/: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


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


OmegaConf.register_new_resolver("tvf.job_name", naming.job_name, replace=True)
OmegaConf.register_new_resolver("tvf.job_folder", naming.job_folder, replace=True)
OmegaConf.register_new_resolver("tvf.workers", sweep.workers, replace=True)
