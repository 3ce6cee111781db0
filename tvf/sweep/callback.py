"""The sweep's beginning and end, in the process that launches the jobs."""

import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from tvf.build import explain
from tvf.errors import InputError
from tvf.sweep.results import report


@dataclass(frozen=True)
class Launched:
    """The sweep that this process launched: its folder, and the folders of its jobs in it."""

    folder: Path
    jobs: frozenset[str]


_launched: Launched | None = None


class SweepCallback(Callback):
    """Hydra calls it before a sweep's first job."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check every job of the sweep, so that a mistake in the last one is known before the first one trains."""
        global _launched
        # Hydra turns a callback's exceptions into warnings; SystemExit is not one.
        try:
            if config.hydra.launcher.get("n_jobs") == 0:
                raise InputError("hydra.launcher.n_jobs=0 is refused: how many jobs at once? -1 means one a core.")
            jobs = check_jobs(config, expand(config))
        except (InputError, HydraException, OmegaConfBaseException) as error:
            raise SystemExit(f"error: {explain(error)}") from None
        except Exception as error:
            traceback.print_exc()
            raise SystemExit(f"error: the sweep could not be checked: {error}") from None
        _launched = Launched(Path(config.hydra.sweep.dir), jobs)


def finish() -> bool:
    """Print the table of the sweep that this process launched, if any; whether some job of it is not done."""
    global _launched
    launched, _launched = _launched, None
    return launched is not None and launched.folder.is_dir() and report(launched.folder, launched.jobs)


def expand(config: DictConfig) -> list[list[str]]:
    """The overrides of each job of a grid sweep, spelled as Hydra's own sweeper spells them."""
    swept = config.hydra.sweeper.get("params") or {}
    lines = [*(f"{key}={value}" for key, value in swept.items()), *config.hydra.overrides.task]
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    batches = BasicSweeper.split_arguments(parser.parse_overrides(lines), max_batch_size=None)
    return [list(job) for batch in batches for job in batch]


def check_jobs(config: DictConfig, jobs: list[list[str]]) -> frozenset[str]:
    """Compose and check each job; the names of their folders. Raises InputError, or Hydra's errors, for a wrong one."""
    from tvf.run import check

    folders = set()
    for number, overrides in enumerate(jobs):
        job = GlobalHydra.instance().config_loader().load_sweep_config(config, overrides)
        with open_dict(job):
            job.hydra.job.num, job.hydra.job.id = number, str(number)
            folders.add(str(job.hydra.sweep.subdir))
            del job["hydra"]
        check(job)
    return frozenset(folders)


def workers(accelerator: str) -> int:
    """How many jobs to run at once on this machine: one a GPU, or one a core where there is none or none is wanted."""
    if accelerator != "cpu":
        import torch

        if torch.cuda.device_count():
            return torch.cuda.device_count()
    return joblib.cpu_count()
