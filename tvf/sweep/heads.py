"""Trains the jobs of a batch that only train a head, in a few processes, before the launcher.

Each process trains its share of them one after another, on what they have in common. A job that
raises an error costs only itself. The launcher gets what is left: all other jobs, and the job that
a process was training when it was killed.
"""

import logging
import logging.config
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from tvf.config import Config, explain_ignored, to_plain
from tvf.errors import InputError
from tvf.sweep.launchers import jobs_at_once, runs_elsewhere
from tvf.sweep.processes import can_fork, log_to, start_process, wait_for_all

log = logging.getLogger(__name__)

FEWEST = 3  # such jobs that are worth a process
DEFAULT_FOLDERS = "${tvf.job_folder:}"


@dataclass(frozen=True)
class HeadJob:
    """A job of the batch that only trains a head, and what it shares with others of its `setup`."""

    number: int
    overrides: list[str]
    backbone: str
    setup: str


def train_heads(config: DictConfig, batch: Sequence[Sequence[str]]) -> list[list[str]]:
    """Train the jobs of a batch that only train heads; return the overrides of those that are left.

    `config` is the sweep's.
    """
    jobs = [[*overrides] for overrides in batch]
    if not _can_share(config) or len(jobs) < FEWEST:
        return jobs
    heads = _find_heads(config, jobs)
    ended: set[int] = set()
    while len(heads) >= FEWEST:
        before, blamed = len(heads), set[int]()
        for started, finished in _train(config, heads):
            ended |= finished
            blamed |= started - finished
        heads = [head for head in heads if head.number not in ended | blamed]
        if len(heads) == before:
            break
    return [overrides for number, overrides in enumerate(jobs) if number not in ended]


def _can_share(config: DictConfig) -> bool:
    """Whether Hydra would do nothing for a job that a process for several does not."""
    hydra: Any = OmegaConf.to_container(config.hydra, resolve=False)
    plain = hydra["sweep"]["subdir"] == DEFAULT_FOLDERS and [*hydra["callbacks"]] == ["sweep"]
    job = hydra["job"]
    plain = plain and not (job["chdir"] or job["env_set"] or job["env_copy"])
    plain = plain and hydra["output_subdir"] == ".hydra" and not hydra["verbose"]
    return plain and can_fork() and not runs_elsewhere(config.hydra.launcher)


def _find_heads(config: DictConfig, jobs: Sequence[list[str]]) -> list[HeadJob]:
    """The jobs that only train heads, those with the same setup next to each other."""
    from tvf.config import validate_config  # imports torch, which `tvf --help` does not need
    from tvf.job import shared_setup

    loader, heads = GlobalHydra.instance().config_loader(), []
    for number, overrides in enumerate(jobs):
        composed = loader.load_sweep_config(config, overrides)
        with open_dict(composed):
            del composed["hydra"]
        model: Any = to_plain(composed.model)
        fraction = model.get("pct_unfreeze")
        if fraction and not str(model.get("_target_")).endswith("TransferModel"):
            continue
        options = validate_config(composed)
        setup = shared_setup(options)
        if setup is not None:
            heads.append(HeadJob(number, overrides, options["backbone"]["_target_"], setup))
    order = [*dict.fromkeys(head.setup for head in heads)]
    return sorted(heads, key=lambda head: order.index(head.setup))


def _train(config: DictConfig, heads: Sequence[HeadJob]) -> list[tuple[set[int], set[int]]]:
    """Train these jobs; for each process, the numbers of the jobs it has started and ended."""
    from tvf.job import import_libraries

    import_libraries(heads[0].backbone)
    count = min(jobs_at_once(config.hydra.launcher), -(-len(heads) // FEWEST))
    shares = [heads[len(heads) * i // count : len(heads) * (i + 1) // count] for i in range(count)]
    log.info("Training %d heads in %d processes.", len(heads), count)
    with tempfile.TemporaryDirectory() as folder:
        notes = [Path(folder, str(index)) for index in range(count)]
        children = []
        for share, note in zip(shares, notes, strict=True):
            children.append(start_process(lambda s=share, n=note: _work(config, s, n), note))
        wait_for_all(children)
        return [_read_note(note.with_suffix(".jobs")) for note in notes]


def _read_note(note: Path) -> tuple[set[int], set[int]]:
    lines = note.read_text().split() if note.exists() else []
    started = {int(line[1:]) for line in lines if line[0] == "+"}
    return started, {int(line[1:]) for line in lines if line[0] == "-"}


def _work(config: DictConfig, share: Sequence[HeadJob], note: Path) -> int:
    """Train the jobs of a process; note which it has started and ended."""
    from tvf.job import SharedSetups

    terminal = next(
        (h.stream for h in logging.getLogger().handlers if type(h) is logging.StreamHandler),
        sys.stdout,
    )
    loader = GlobalHydra.instance().config_loader()
    with open(note.with_suffix(".jobs"), "w", buffering=1) as lines, SharedSetups() as setups:
        with suppress(KeyboardInterrupt):  # between two jobs
            for head in share:
                print(f"+{head.number}", file=lines)
                if not _train_one(config, loader, head, setups, terminal):
                    break
                print(f"-{head.number}", file=lines)
    return 0


def _train_one(
    config: DictConfig, loader: ConfigLoader, head: HeadJob, setups: Any, terminal: IO[str]
) -> bool:
    """Train a job as Hydra and the launcher would; return whether to go on with the next."""
    from tvf.config import validate_config
    from tvf.job import JobContext, run_job

    job = loader.load_sweep_config(config, head.overrides)
    with open_dict(job):
        job.hydra.job.num, job.hydra.job.id = head.number, str(head.number)
    HydraConfig.instance().set_config(job)
    sweep = Path(job.hydra.runtime.cwd, job.hydra.sweep.dir)
    folder = sweep / str(job.hydra.sweep.subdir)
    folder.mkdir(parents=True, exist_ok=True)
    with read_write(job.hydra.runtime), open_dict(job.hydra.runtime):
        job.hydra.runtime.output_dir = os.path.abspath(folder)
    HydraConfig.instance().set_config(job)
    logging.config.dictConfig(OmegaConf.to_container(job.hydra.job_logging, resolve=True))  # type: ignore[arg-type]
    log_to(folder / "job.log", terminal)  # type: ignore[arg-type]
    hydra, plain = _record_overrides(job, folder / ".hydra"), job
    context = JobContext(
        folder=folder,
        sweep=sweep,
        parallel=jobs_at_once(config.hydra.launcher) != 1,
        workers=jobs_at_once(config.hydra.launcher),
        choices=dict(hydra.runtime.choices),
    )
    name = str(plain.get("name"))
    try:
        options: Config = validate_config(plain, hydra.runtime.cwd)
        if note := explain_ignored(name, to_plain(plain.model)):
            log.info("%s", note)
        run_job(options, context, setups.open_job)
    except InputError as error:
        log.error("error: %s", error)
    except KeyboardInterrupt:
        log.error("%s interrupted", name)
        return False
    except Exception:
        log.exception("%s failed", name)
    return True


def _record_overrides(job: DictConfig, folder: Path) -> DictConfig:
    """Write what Hydra records of a job; take its own settings out of `job` and return them."""
    hydra = job.hydra
    folder.mkdir(exist_ok=True)
    (folder / "overrides.yaml").write_text(OmegaConf.to_yaml(hydra.overrides.task))
    (folder / "hydra.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create({"hydra": hydra})))
    with open_dict(job):
        del job["hydra"]
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(job))
    return hydra
