"""One job of a sweep as a command of its own, for launchers that run jobs on other machines.

The command composes the job again from the sweep's overrides, in its own process, so that nothing
has to be pickled. It ends in the same folder, name and configuration as under hydra/launcher=local.
"""

import os
import socket
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf

from tvf.config import Config, conf_dir, path_override
from tvf.errors import InputError, unknown_key
from tvf.files import NO_HOME, NODE_FOLDER, cache_folder
from tvf.records import RUN_VARIABLES, best_score
from tvf.sweep.composing import check_job, given_folder
from tvf.sweep.processes import QUIET

NODE = "hydra.launcher"
Options = TypeVar("Options")
# Hydra's settings that choose the sweep's jobs and where they run, which the command settles.
CALLBACK = "hydra.callbacks.sweep"
SETTLED = ("hydra/sweeper", "hydra.sweeper", "hydra.sweep.dir", "hydra.mode", CALLBACK)
NODE_STORE = "TVF_NODE_STORE"  # environment variable: see `use_node_store`
OF_THIS_PROCESS = (*RUN_VARIABLES, "WANDB_SERVICE")


def read_options(kind: type[Options], options: Mapping[str, Any]) -> Options:
    """Return a launcher's options as its dataclass `kind`; InputError if one breaks a rule."""
    given: Any = OmegaConf.to_container(OmegaConf.create(dict(options)), resolve=True)
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for key in given:
        if key not in known:
            raise unknown_key(f"{NODE}.{key}", known, f"{NODE}.")
    return kind(**given)


@dataclass(frozen=True)
class RemoteJob:
    """A job of a sweep: its folder, its overrides, its config, and the command that trains it.

    The command is to run in the working directory of the launching process, with the variables of
    `remote_environment`. It exits with 0 even if the job fails: status.json tells.
    """

    folder: Path
    overrides: list[str]
    config: Config
    command: list[str]


def remote_job(
    config: DictConfig, loader: ConfigLoader, overrides: Sequence[str], number: int
) -> RemoteJob:
    """Return job `number` of a sweep, as a launcher is given it.

    `config` is the sweep's, `overrides` are the job's, which Hydra's sweeper has split. Raises
    InputError, or one of Hydra's errors, for a job that is misconfigured.
    """
    job = check_job(config, loader, overrides, number, given_folder)
    command = job_command(config, overrides, number)
    return RemoteJob(sweep_folder(config) / job.folder, list(overrides), job.config, command)


def plan_jobs(
    config: DictConfig, loader: ConfigLoader, overrides: Sequence[Sequence[str]], first: int
) -> list[RemoteJob]:
    """Return the jobs that a launcher is given; `first` is the number of the first one."""
    return [
        remote_job(config, loader, each, number) for number, each in enumerate(overrides, first)
    ]


def sweep_folder(config: DictConfig) -> Path:
    """Return the absolute path of a sweep's folder."""
    return Path(os.path.abspath(str(config.hydra.sweep.dir)))


def job_command(config: DictConfig, overrides: Sequence[str], number: int) -> list[str]:
    """Return the command that trains job `number` of a sweep, and nothing else of it.

    It does not write to the sweep's own files. Settings of the sweeper and callbacks are left out;
    those of the launcher stay, since the job is recorded with them.
    """
    given: Any = OmegaConf.to_container(config.hydra.overrides.hydra, resolve=False)
    kept = [text for text in given if not text.lstrip("+~").startswith(SETTLED)]
    settled = [
        path_override("hydra.sweep.dir", sweep_folder(config)),
        "hydra/sweeper=one",
        f"hydra.sweeper.number={number}",
    ]
    removed = any(text.startswith(f"~{CALLBACK}") for text in given)
    if removed or "sweep" in config.hydra.callbacks:
        settled.append(f"~{CALLBACK}")
    command = [sys.executable, "-m", "tvf", "train", "-m", *_flags(config)]
    return [*command, *kept, *overrides, *settled]


def check_devices(config: Config, node: str, cpus: float, gpus: float) -> None:
    """Raise InputError if a job asks for more devices than its launcher gives it, on one node.

    `node` has the launcher's option for both: "hydra.launcher.gpus".
    """
    from tvf.distributed import count_devices  # with torch

    fabric = config["fabric"]
    needed, accelerator = count_devices(fabric.get("devices", 1)), fabric.get("accelerator", "auto")
    if accelerator not in ("cpu", "auto") and not gpus:
        raise InputError(f"fabric.accelerator={accelerator} needs a GPU: set {node}.")
    available = cpus if accelerator == "cpu" or not gpus else gpus
    if needed > max(1, available):
        raise InputError(
            f"fabric.devices={needed} must be at most {available:g}: so many does the launcher "
            f"give to a job ({node}), all of them on one node."
        )


def remote_environment(node_store: bool = True) -> dict[str, str]:
    """Return the environment for such commands: this process's, less what belongs to it alone.

    Modules that this process can import, such as those beside `train.py` or in --config-dir, can be
    imported there, if the folders are reachable. With `node_store`, jobs on each node use a store
    of its own (see `use_node_store`).
    """
    environment = {key: os.environ[key] for key in os.environ if key not in OF_THIS_PROCESS}
    if NO_HOME in environment:  # the home folder ends with this process
        del environment[NO_HOME], environment["HOME"]
    paths = sysconfig.get_paths()
    installed = {os.path.realpath(paths[name]) for name in ("stdlib", "platstdlib", "purelib")}
    installed |= {os.path.join(paths["platstdlib"], "lib-dynload"), paths["platlib"]}
    folders = [os.path.abspath(path) for path in sys.path if os.path.isdir(path or ".")]
    own = [path for path in folders if path not in installed]
    store = {NODE_STORE: "1"} if node_store else {}
    return environment | store | {"PYTHONPATH": os.pathsep.join(dict.fromkeys(own)), QUIET: "1"}


def use_node_store() -> None:
    """In a job on another machine, let TVF_STORE name a folder that no other node uses.

    It has the node's name, and is in TVF_STORE or the user's cache.
    """
    if not os.environ.pop(NODE_STORE, None):
        return
    node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    with suppress(OSError):  # the user has no home: no store, as on one machine
        os.environ["TVF_STORE"] = str(
            Path(os.environ.get("TVF_STORE") or cache_folder() / "store", f"{NODE_FOLDER}{node}")
        )


def job_return(job: RemoteJob) -> JobReturn:
    """Return what Hydra's sweepers expect of a job that has ended, with its validation score.

    A job that is not done has no score; it is recorded and reported by its files.
    """
    return JobReturn(
        overrides=job.overrides,
        working_dir=str(job.folder),
        status=JobStatus.COMPLETED,
        _return_value=best_score(job.folder),
    )


def _flags(config: DictConfig) -> list[str]:
    """Hydra's flags that say where the config is, unless it is tvf's own."""
    flags = []
    for source in config.hydra.runtime.config_sources:
        if source.provider == "command-line":
            flags += ["--config-dir", source.path]
        elif source.provider == "main" and source.path != str(conf_dir()):
            flags += ["--config-path", source.path]
    if config.hydra.job.config_name != "config":
        flags += ["--config-name", config.hydra.job.config_name]
    return flags
