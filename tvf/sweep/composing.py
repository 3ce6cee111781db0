"""The jobs of a sweep: their overrides from the command's, their configs, checked before they run.

A grid is checked as a whole. Sweepers that decide on the way check each batch.
"""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf, open_dict

from tvf.config import own_folder
from tvf.errors import InputError
from tvf.records import check_same_configuration, is_done, write_manifest
from tvf.sweep.check_images import check_images
from tvf.sweep.processes import can_fork
from tvf.sweep.same_jobs import describe_same_jobs, find_same_jobs

Jobs = dict[str, dict[str, Any]]  # configs by folder name
DEFAULT_FOLDERS = "${tvf.job_folder:}"  # where conf/ puts jobs: `tvf.config.job_folder`


@dataclass(frozen=True)
class CheckedJob:
    """A job as it was composed and checked: the name of its folder, and its validated config.

    `record` is what Hydra records of a job, as JSON: its own settings under "hydra", and the config
    as it was composed, with its references. `note` names options that have no effect, if any.
    """

    folder: str
    config: dict[str, Any]
    record: str
    note: str | None


# The jobs of the sweep that were checked last, by its folder and their overrides.
_checked: dict[tuple[str, ...], CheckedJob] = {}
_told: set[tuple[Path, str]] = set()  # what jobs in a folder ignore, as this process has said


def swept_lines(config: DictConfig) -> list[str]:
    """The overrides of the sweep, those in hydra.sweeper.params first."""
    swept = config.hydra.sweeper.get("params") or {}
    return [*(f"{key}={value}" for key, value in swept.items()), *task_overrides(config)]


def task_overrides(config: DictConfig) -> list[str]:
    """Return the overrides as given on the command line; each job resolves their ${...} itself."""
    overrides: Any = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
    return overrides


def expand(lines: Sequence[str], sweeper: str) -> list[list[str]]:
    """Return the overrides of each job of a grid sweep, spelled as by Hydra's own sweeper."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    parsed = parse(lines)
    for line, override in zip(lines, parsed, strict=True):
        if override.is_sweep_override() and not override.is_discrete_sweep():
            raise InputError(
                f"{line} must list values with hydra/sweeper={sweeper}: hydra/sweeper=optuna "
                "searches intervals."
            )
    batches = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    return [list(job) for batch in batches for job in batch]


def parse(lines: Sequence[str]) -> list[Any]:
    """Parse overrides with Hydra's grammar. Raises Hydra's errors."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    return parser.parse_overrides([*lines])


def _descending_fraction(value: str) -> float:
    try:
        return -float(value)
    except ValueError:
        return 0.0  # validation reports it later


# For each key, the sort key of its swept values that puts the longest jobs first.
LONGEST_FIRST: dict[str, Callable[[str], float]] = {
    "model": lambda option: option in ("probe", "transfer"),
    "model.pct_unfreeze": _descending_fraction,
}


def longest_first(lines: Sequence[str]) -> list[str]:
    """Reorder the task's overrides so that large fractions come first.

    Jobs run in parallel, and a long job that starts last would run alone at the end. The set of
    jobs and their names stay the same.
    """
    first: dict[str, str] = {}
    rest: list[str] = []
    for line, override in zip(lines, parse(lines), strict=True):
        key = override.get_key_element()
        if key in LONGEST_FIRST and override.is_sweep_override() and override.is_discrete_sweep():
            values = sorted(override.sweep_string_iterator(), key=LONGEST_FIRST[key])
            first[key] = f"{key}={','.join(values)}"
        else:
            rest.append(line)
    return [first[key] for key in LONGEST_FIRST if key in first] + rest


def compose_jobs(
    config: DictConfig, jobs: Sequence[Sequence[str]]
) -> list[tuple[str, dict[str, Any]]]:
    """Compose and check each job; return its folder's name and its config.

    Raises InputError, or one of Hydra's errors, for a job that is misconfigured.
    """
    _checked.clear()
    checked = [checked_job(config, overrides, number) for number, overrides in enumerate(jobs)]
    return [(job.folder, job.config) for job in checked]


def checked_job(config: DictConfig, overrides: Sequence[str], number: int) -> CheckedJob:
    """Job `number` of a sweep, composed and checked once. Raises like `compose_jobs`."""
    place = own_folder if _has_default_folders(config) else given_folder
    key = (str(config.hydra.sweep.dir), *overrides)
    if key not in _checked:
        loader = GlobalHydra.instance().config_loader()
        _checked[key] = check_job(config, loader, overrides, number, place)
    return _checked[key]


def check_job(
    config: DictConfig,
    loader: ConfigLoader,
    overrides: Sequence[str],
    number: int,
    place: Callable[[DictConfig], str],
) -> CheckedJob:
    """Compose and check job `number` of a sweep, whose folder `place` names.

    Raises InputError, or one of Hydra's errors, if it is misconfigured.
    """
    from tvf.config import explain_ignored, to_plain, validate_config

    job = loader.load_sweep_config(config, [*overrides])
    with open_dict(job):
        job.hydra.job.num, job.hydra.job.id = number, str(number)
        record = OmegaConf.to_container(job, resolve=False, enum_to_str=True)
        folder = place(job)
        if "name" in job:
            job.name = str(job.name)  # resolve it now: it may refer to Hydra's overrides
        del job["hydra"]
    checked = validate_config(job)
    note = explain_ignored(str(job.name), to_plain(job.model), to_plain(job.optimizer))
    return CheckedJob(folder, checked, json.dumps(record, default=str), note)


def given_folder(job: DictConfig) -> str:
    """Return the name of a job's folder by its hydra.sweep.subdir."""
    return str(job.hydra.sweep.subdir)


def place_jobs(
    config: DictConfig, overrides: Sequence[Sequence[str]]
) -> tuple[list[str], Jobs, dict[str, str]]:
    """Compose and check these jobs, and find where they belong.

    Returns the folders of the jobs in order, their configs by folder, and the names of folders that
    jobs with the configuration of an earlier one would have, each with that one's. Raises
    InputError, or one of Hydra's errors, for a job that is misconfigured.
    """
    folder, composed = Path(config.hydra.sweep.dir), compose_jobs(config, overrides)
    _tell_ignored(folder, [job.note for job in _checked.values() if job.note])
    same: dict[str, str] = {}
    if _has_default_folders(config):
        named = [any(text.startswith("name=") for text in job) for job in overrides]
        same = find_same_jobs(folder, composed, named)
        composed = [(same.get(name, name), job) for name, job in composed]
    return [name for name, _ in composed], dict(composed), same


def _tell_ignored(folder: Path, notes: Sequence[str]) -> None:
    """Name the options that jobs ignore, once for all jobs in `folder` that ignore the same."""
    told: dict[str, list[str]] = {}
    for note in notes:
        name, _, text = note.partition(": ")
        told.setdefault(text, []).append(name)
    for text, names in told.items():
        if (folder, text) not in _told:
            print(f"{names[0] if len(names) == 1 else f'{len(names)} jobs'}: {text}")
        _told.add((folder, text))


def check_jobs(folder: Path, jobs: Jobs, images: bool = True) -> None:
    """Raise InputError if these jobs cannot be trained in `folder` as jobs of a sweep.

    `images` says whether to read the images of those that are not done.
    """
    refuse_refits(jobs.values())
    for name in jobs:
        job = folder / name
        if job.exists() and not (job.is_dir() and os.access(job, os.W_OK)):
            raise InputError(f"{job} exists but is not a writable directory.")
    check_same_configuration(folder, jobs)
    if images and can_fork():
        check_images(job for name, job in jobs.items() if not is_done(folder / name, job))


def refuse_refits(configs: Iterable[dict[str, Any]]) -> None:
    """Raise InputError if a job of a sweep would also train on its validation images."""
    if any(config["refit_epochs"] is not None for config in configs):
        raise InputError(
            "refit_epochs must be null in a sweep, which compares its jobs by their validation "
            "images. Set it for a single job, or use tvf refit."
        )


def note_jobs(
    folder: Path, jobs: Jobs, same: dict[str, str], command: dict[str, Any] | None = None
) -> None:
    """Add the jobs to the manifest, with the command that launches them."""
    write_manifest(folder, jobs, command, same)
    if same:
        print(describe_same_jobs(folder, same))


def require_own_folders(config: DictConfig, sweeper: str) -> None:
    """Raise InputError if the folders of jobs would depend on how often they are launched."""
    sweep: Any = OmegaConf.to_container(config.hydra.sweep, resolve=False)
    if "hydra.job." in str(sweep["subdir"]):
        raise InputError(
            f"hydra.sweep.subdir={sweep['subdir']} must not refer to hydra.job with "
            f"hydra/sweeper={sweeper}, which launches a job several times in the same folder. "
            "Leave it out."
        )


def _has_default_folders(config: DictConfig) -> bool:
    """Whether jobs are in the folders that conf/ gives them."""
    sweep: Any = OmegaConf.to_container(config.hydra.sweep, resolve=False)
    return sweep["subdir"] == DEFAULT_FOLDERS
