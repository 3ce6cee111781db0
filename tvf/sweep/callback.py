"""The sweep's beginning and end, in the process that launches the jobs."""

import itertools
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
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
        try:
            jobs = check_jobs(config, expand(config))
        except (InputError, HydraException, OmegaConfBaseException) as error:
            # Hydra turns a callback's exceptions into warnings; SystemExit is not one.
            raise SystemExit(f"error: {explain(error)}") from None
        _launched = Launched(Path(config.hydra.sweep.dir), jobs)


def finish() -> bool:
    """Print the table of the sweep that this process launched, if any; whether some job of it is not done."""
    global _launched
    launched, _launched = _launched, None
    return launched is not None and launched.folder.is_dir() and report(launched.folder, launched.jobs)


def expand(config: DictConfig) -> list[list[str]]:
    """The overrides of each job of a grid sweep: every combination of the swept values."""
    swept = config.hydra.sweeper.get("params") or {}
    lines = [*(f"{key}={value}" for key, value in swept.items()), *config.hydra.overrides.task]
    choices = [
        [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
        if override.is_sweep_override()
        else [override.input_line or ""]
        for override in OverridesParser.create().parse_overrides(lines)
    ]
    return [list(job) for job in itertools.product(*choices)]


def check_jobs(config: DictConfig, jobs: list[list[str]]) -> frozenset[str]:
    """Compose and check each job; the names of their folders. Raises InputError, or Hydra's errors, for a wrong one."""
    from tvf.run import check

    folders = set()
    for overrides in jobs:
        job = GlobalHydra.instance().config_loader().load_sweep_config(config, overrides)
        folders.add(str(job.hydra.sweep.subdir))
        with open_dict(job):
            del job["hydra"]
        check(job)
    return frozenset(folders)


def workers() -> int:
    """How many jobs to run at once on this machine: one a GPU, or one a core where there is none."""
    if shutil.which("nvidia-smi"):
        import torch

        if torch.cuda.device_count():
            return torch.cuda.device_count()
    return joblib.cpu_count()
