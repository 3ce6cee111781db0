"""Trains the jobs of a batch that only train a head, in a few processes, before the launcher.

Each process trains its share of them one after another, on what they have in common. A job that
raises an error costs only itself. The launcher gets what is left: all other jobs, and the job that
a process was training when it was killed.
"""

import json
import logging
import logging.config
import mmap
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import OmegaConfDumper

from tvf.config import SAME
from tvf.files import read_json
from tvf.gpus import count_gpus
from tvf.records import is_done, is_running, mark_failed, read_status
from tvf.sweep.composing import DEFAULT_FOLDERS, CheckedJob, checked_job
from tvf.sweep.launchers import default_workers, jobs_at_once, runs_elsewhere
from tvf.sweep.outcome import INTERRUPTED, job_outcome, log_in_file
from tvf.sweep.processes import can_fork, log_to, run_in_subprocesses

log = logging.getLogger(__name__)

FEWEST = 3  # such jobs that are worth a process; with fewer, the launcher uses more cores
WAITING, STARTED, ENDED = range(3)
OUTPUT_FOLDER = "${hydra.runtime.output_dir}"  # in the settings for a job's log


@dataclass(frozen=True)
class HeadJob:
    """A job of the batch that only trains a head, and what it shares with others of its `setup`."""

    number: int
    checked: CheckedJob
    setup: str


def train_heads(config: DictConfig, batch: Sequence[Sequence[str]]) -> list[list[str]]:
    """Train the jobs of a batch that only train heads; return the overrides of those that are left.

    `config` is the sweep's.
    """
    jobs = [[*overrides] for overrides in batch]
    if len(jobs) < FEWEST or not _can_share(config):
        return jobs
    heads, ended = _find_heads(config, jobs), set[int]()
    while heads and len(heads) >= FEWEST * (count := _count_processes(config, heads[0])):
        states = _train(config, heads, count)
        for head, state in zip(heads, states, strict=True):
            if state == STARTED:
                name = head.checked.config["name"]
                log.warning("A process was killed while training %s, which is trained again.", name)
        ended |= {head.number for head, state in zip(heads, states, strict=True) if state == ENDED}
        if set(states) == {WAITING}:
            break
        heads = [head for head, state in zip(heads, states, strict=True) if state == WAITING]
    return [overrides for number, overrides in enumerate(jobs) if number not in ended]


def _can_share(config: DictConfig) -> bool:
    """Whether Hydra would do nothing for a job that a process for several does not."""
    hydra: Any = OmegaConf.to_container(config.hydra, resolve=False)
    plain = hydra["sweep"]["subdir"] == DEFAULT_FOLDERS and [*hydra["callbacks"]] == ["sweep"]
    job = hydra["job"]
    plain = plain and not (job["chdir"] or job["env_set"] or job["env_copy"])
    plain = plain and hydra["output_subdir"] == ".hydra" and not hydra["verbose"]
    plain = plain and "${" not in str(hydra["job_logging"]).replace(OUTPUT_FOLDER, "")
    return plain and can_fork() and not runs_elsewhere(config.hydra.launcher)


def _find_heads(config: DictConfig, jobs: Sequence[list[str]]) -> list[HeadJob]:
    """The jobs that only train heads; those with the same setup, and seed, next to each other."""
    from tvf.job import shared_setup  # imports torch, which `tvf --help` does not need

    heads, folder = [], Path(config.hydra.sweep.dir)
    for number, overrides in enumerate(jobs):
        job = checked_job(config, overrides, number)
        setup = shared_setup(job.config)
        if setup is not None and not is_done(folder / job.folder, job.config):
            heads.append(HeadJob(number, job, setup))
    order = {setup: place for place, setup in reversed([*enumerate(h.setup for h in heads)])}
    return sorted(heads, key=lambda head: (order[head.setup], head.checked.config["seed"]))


def _count_processes(config: DictConfig, head: HeadJob) -> int:
    """As many as the launcher has; one per GPU if others would first wait until it is idle."""
    at_once, fabric = jobs_at_once(config.hydra.launcher), head.checked.config["fabric"]
    waits = fabric.get("jobs_per_gpu") == "auto" and fabric.get("accelerator") != "cpu"
    if not waits or not count_gpus():
        return at_once
    return min(at_once, default_workers(fabric.get("accelerator", "auto"), fabric["devices"]))


def _train(config: DictConfig, heads: Sequence[HeadJob], count: int) -> list[int]:
    """Train these jobs in `count` processes; what became of each."""
    from tvf.job import import_libraries

    import_libraries(heads[0].checked.config["backbone"]["_target_"])
    log.info("Training %d heads in %d process%s.", len(heads), count, "es" if count > 1 else "")
    with mmap.mmap(-1, len(heads)) as states:  # memory that the processes share
        bounds = [len(heads) * index // count for index in range(count + 1)]
        shares = [range(*pair) for pair in pairwise(bounds)]
        run_in_subprocesses([_Worker(config, heads, share, states, count).run for share in shares])
        return [*states[:]]


@dataclass(frozen=True)
class _Worker:
    """A process that trains a share of the jobs, and notes in `states` what became of each."""

    config: DictConfig
    heads: Sequence[HeadJob]
    share: range
    states: mmap.mmap
    count: int  # of such processes

    def run(self) -> int:
        """Train the jobs; return the exit code."""
        from tvf.job import SharedSetups

        handlers = logging.getLogger().handlers
        shown = (h.stream for h in handlers if type(h) is logging.StreamHandler)
        terminal = next(shown, sys.stdout)
        same = read_json(Path(self.config.hydra.sweep.dir, "sweep.json")).get(SAME, {})
        with SharedSetups() as setups, suppress(KeyboardInterrupt):  # between two jobs
            for place in self.share:
                job = self.heads[place]
                if not setups.accepts(job.checked.config):
                    return 0  # this job and the rest wait for another process
                folder = same.get(job.checked.folder, job.checked.folder)
                self.states[place] = STARTED
                code = job_outcome(
                    lambda j=job, f=folder: self._train(j, f, setups, terminal),
                    lambda j=job: j.checked.config["name"],
                )
                self.states[place] = ENDED
                if code == INTERRUPTED:
                    return code
                if code:
                    _note_failure(self.sweep / folder, job.checked.config["name"])
        return 0

    @property
    def sweep(self) -> Path:
        """The sweep's folder."""
        return Path(self.config.hydra.sweep.dir).absolute()

    def _train(self, head: HeadJob, name: str, setups: Any, terminal: IO[str]) -> None:
        """Train a job in the folder `name` as Hydra and the launcher would."""
        from tvf.job import JobContext, run_job

        record = json.loads(head.checked.record)
        hydra = record.pop("hydra")
        folder = self.sweep / name
        hydra["job"] |= {"num": head.number, "id": str(head.number)}
        hydra["runtime"]["output_dir"] = os.path.abspath(folder)
        _write_record(folder / ".hydra", hydra, record)
        _open_log(folder / "job.log", hydra, terminal)
        if head.checked.note:
            log_in_file(head.checked.note)
        choices = hydra["runtime"]["choices"]
        parallel = jobs_at_once(self.config.hydra.launcher) != 1  # others may follow, and share
        context = JobContext(folder, self.sweep, parallel, choices, workers=self.count)
        run_job(head.checked.config, context, setups.open_job)


def _note_failure(folder: Path, name: str) -> None:
    """Record that a job failed, if that happened before it had a record."""
    if read_status(folder).get("state") != "failed" and not is_running(folder):
        with suppress(OSError):  # the disk is full
            mark_failed(folder, name, "it could not begin: see the sweep's output")


def _write_record(folder: Path, hydra: dict[str, Any], config: dict[str, Any]) -> None:
    """Write what Hydra records of a job."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {"config": config, "hydra": {"hydra": hydra}, "overrides": hydra["overrides"]["task"]}
    for name, content in files.items():
        text = yaml.dump(
            content, Dumper=_Dumper, default_flow_style=False, allow_unicode=True, sort_keys=False
        )
        (folder / f"{name}.yaml").write_text(text, "utf-8")


def _open_log(path: Path, hydra: dict[str, Any], terminal: IO[str]) -> None:
    """Log as Hydra lets a job log, and append what it prints to its log."""
    settings = json.dumps(hydra["job_logging"]).replace(
        OUTPUT_FOLDER, json.dumps(str(path.parent))[1:-1]
    )
    try:
        logging.config.dictConfig(json.loads(settings))
    except ValueError as error:
        raise error.__cause__ or error from None  # such as a full disk
    log_to(path, terminal)  # type: ignore[arg-type]


# OmegaConf writes text in quotes that its own numbers look like; its dumper is not in C.
_Dumper: Any = type("_Dumper", (getattr(yaml, "CSafeDumper", yaml.SafeDumper),), {})
_Dumper.add_representer(str, OmegaConfDumper.str_representer)
