"""The manifest of a sweep, sweep.json: its jobs' configs, its commands, and halving's decisions.

Each job reads the other jobs' configs from it, to know which shared results they will need.
"""

import secrets
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from tvf.config import SAME, Config, frozen_layers_config, result_config
from tvf.errors import InputError
from tvf.files import printable, read_json, write_json
from tvf.lease import Lease
from tvf.records.job import LEASE, read_config
from tvf.records.race import race_by_job

FILES_OF = {"backbone_content": "the content of the backbone's weights"}  # keys in words
CONFIRMATION = "confirm"  # in a sweep's folder: the folder of the sweep that confirms its choice


def sweep_name(folder: Path) -> str:
    """Return what tables and W&B call the sweep in `folder`: its name, SWEEP-confirm if nested."""
    parent = confirmed_sweep(folder)
    return folder.name if parent is None else f"{parent.absolute().name}-{folder.name}"


def confirmed_sweep(folder: Path) -> Path | None:
    """Return the folder of the sweep whose choice the sweep in `folder` confirms, if it does."""
    nested = folder.name == CONFIRMATION and (folder.parent / "sweep.json").is_file()
    return folder.parent if nested else None


def tracker_group(folder: Path) -> str:
    """Return the group of the sweep's runs: the one noted, or else the sweep's name."""
    manifest = folder / "sweep.json"
    if not manifest.exists():
        return sweep_name(folder)
    status = manifest.stat()
    noted = _noted_group(manifest, status.st_ino, status.st_mtime_ns, status.st_size)
    return noted if isinstance(noted, str) else sweep_name(folder)


@lru_cache(maxsize=1)  # a process may train many jobs of a sweep
def _noted_group(manifest: Path, *version: int) -> Any:
    return read_json(manifest).get("group")


def note_group(folder: Path, group: str | None) -> None:
    """Record the group of the sweep's runs, unless one is recorded: it stays when jobs are added.

    `group` is what the environment gives; by default it is the sweep's name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "sweep.json"
    with Lease(folder / LEASE):
        manifest = read_json(path)
        if "group" not in manifest:
            begun = bool(manifest.get("jobs"))  # by an earlier version, which used the name
            group = group if group and not begun else sweep_name(folder)
            write_json(path, manifest | {"group": group})


def write_manifest(
    folder: Path,
    configs: dict[str, dict[str, Any]],
    command: dict[str, Any] | None = None,
    same: Mapping[str, str] | None = None,
) -> None:
    """Add jobs (configs by folder name) and the command that launched them to the manifest.

    `same` maps the folders that further jobs would have to those that have their configuration.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "sweep.json"
    with Lease(folder / LEASE):
        commands = read_commands(folder)
        if command and _what_runs(command) not in map(_what_runs, commands):
            jobs = _which_jobs(command)  # by another sweeper, which replaces the one before
            commands = [each for each in commands if _which_jobs(each) != jobs] + [command]
        manifest = read_json(path) | {"commands": commands, "jobs": read_configs(folder) | configs}
        noted = manifest.get(SAME) or {}
        if noted or same:
            kept = {name: other for name, other in noted.items() if name not in configs}
            manifest[SAME] = kept | dict(same or {})
        if is_halving(folder):  # a job that is launched again is no longer dropped
            dropped = {
                name: epochs
                for name, epochs in _dropped_by_halving(folder).items()
                if name not in configs
            }
            manifest["halving"] |= {"dropped": dropped}
        if {*configs} & {*race_by_job(folder)}:  # launched again: a race notes anew what it decides
            manifest.pop("race")
        write_json(path, manifest)


def note_halving(folder: Path, eta: int, budgets: list[int]) -> None:
    """Record that the sweep in `folder` uses successive halving, with rungs ending at `budgets`."""
    with Lease(folder / LEASE):
        dropped = _dropped_by_halving(folder)
        halving = {"eta": eta, "budgets": budgets, "rungs": [], "dropped": dropped}
        write_json(folder / "sweep.json", read_json(folder / "sweep.json") | {"halving": halving})


def note_rung(folder: Path, rung: dict[str, Any], dropped: list[str]) -> None:
    """Record the decision at the end of a rung; `dropped` names the folders of the dropped jobs."""
    with Lease(folder / LEASE):
        manifest = read_json(folder / "sweep.json")
        halving = manifest["halving"]
        halving["rungs"].append(rung)
        halving["dropped"] |= dict.fromkeys(dropped, rung["epochs"])
        write_json(folder / "sweep.json", manifest)


def note_search(folder: Path, search: dict[str, Any]) -> None:
    """Record the search of hydra/sweeper=optuna: its settings, and its `trials` so far.

    Each trial has a `state` (running, complete, pruned, failed), a `score`, its `values`, the
    folders of its `jobs`, and, if it was pruned, the `epochs` that it was trained for.
    """
    with Lease(folder / LEASE):
        manifest = read_json(folder / "sweep.json")
        write_json(folder / "sweep.json", manifest | {"search": search})


def read_trials(folder: Path) -> list[dict[str, Any]]:
    """Return the trials of the search in `folder`, as noted; none if there was no search."""
    search = read_json(folder / "sweep.json").get("search")
    trials = search.get("trials") if isinstance(search, dict) else None
    if not isinstance(trials, list):
        return []
    return [
        trial for trial in trials if isinstance(trial, dict) and isinstance(trial.get("jobs"), list)
    ]


def trials_by_job(trials: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Map the folders of jobs to their trial; of several, to a complete one, or else the last."""
    found: dict[str, dict[str, Any]] = {}
    for trial in trials:
        for name in trial["jobs"]:
            if name not in found or found[name].get("state") != "complete":
                found[name] = trial
    return found


def count_trials_left(folder: Path) -> int:
    """Return how many trials the search in `folder` has not ended; 0 if there was no search."""
    search = read_json(folder / "sweep.json").get("search")
    number = search.get("n_trials") if isinstance(search, dict) else 0
    ended = sum(trial.get("state") != "running" for trial in read_trials(folder))
    return max(number - ended, 0) if isinstance(number, int) else 0


def is_halving(folder: Path) -> bool:
    """Return whether the sweep in `folder` uses successive halving."""
    return isinstance(read_json(folder / "sweep.json").get("halving"), dict)


def read_dropped(folder: Path) -> dict[str, int]:
    """Map the folders of the jobs that halving or a search dropped to the epoch of the drop."""
    pruned = {
        name: trial["epochs"]
        for name, trial in trials_by_job(read_trials(folder)).items()
        if isinstance(trial.get("epochs"), int)
    }
    return pruned | _dropped_by_halving(folder)


def _dropped_by_halving(folder: Path) -> dict[str, int]:
    halving = read_json(folder / "sweep.json").get("halving")
    dropped = halving.get("dropped") if isinstance(halving, dict) else None
    if not isinstance(dropped, dict):
        return {}
    return {name: epochs for name, epochs in dropped.items() if isinstance(epochs, int)}


def summary_run_id(folder: Path) -> str:
    """Return the id of the tracker's run that compares the jobs.

    It is created once, so that a resumed sweep updates the same run.
    """
    return _update_summary(folder, defaults={"id": secrets.token_hex(4)})["id"]


def note_summary(folder: Path, mode: str | None) -> None:
    """Record how the run that compares the jobs was logged, for `wandb sync` hints later."""
    _update_summary(folder, changes={"mode": mode})


def summary_mode(folder: Path) -> str | None:
    """Return how the run that compares the jobs was logged; None if it was not logged."""
    summary = read_json(folder / "sweep.json").get("summary")
    return summary.get("mode") if isinstance(summary, dict) else None


def _update_summary(
    folder: Path, defaults: dict[str, Any] | None = None, changes: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Update the manifest's entry about the run that compares the jobs, and return the entry."""
    path = folder / "sweep.json"
    with Lease(folder / LEASE):
        manifest = read_json(path)
        stored = manifest.get("summary")
        summary = (defaults or {}) | (stored if isinstance(stored, dict) else {}) | (changes or {})
        if summary != stored:
            write_json(path, manifest | {"summary": summary})
    return summary


def read_commands(folder: Path) -> list[dict[str, Any]]:
    """Return the commands that started and extended the sweep, as their folder and arguments."""
    commands = read_json(folder / "sweep.json").get("commands")
    if isinstance(commands, list) and all(
        isinstance(command, dict) and {"folder", "arguments"} <= command.keys()
        for command in commands
    ):
        return commands
    return []


def read_configs(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the configs of the jobs of the sweep in `folder`, by folder name."""
    jobs = read_json(folder / "sweep.json").get("jobs")
    if not isinstance(jobs, dict):
        return {}
    return {name: job for name, job in jobs.items() if isinstance(job, dict)}


def without_launcher(arguments: Sequence[str]) -> list[str]:
    """Arguments of a command without its launcher and the options of that."""
    launcher = ("hydra/launcher=", "hydra.launcher.")
    return [text for text in arguments if not text.lstrip("+~").startswith(launcher)]


def _what_runs(command: Mapping[str, Any]) -> dict[str, Any]:
    """A command without the choice of its launcher, which `tvf resume` may replace."""
    return {"folder": command["folder"], "arguments": without_launcher(command["arguments"])}


def _which_jobs(command: Mapping[str, Any]) -> dict[str, Any]:
    """A command without the choice of its launcher and of its sweeper, except for swept values."""
    runs = _what_runs(command)
    sweeper = ("hydra/sweeper=", "hydra.sweeper.")
    arguments = [
        text
        for text in runs["arguments"]
        if not text.lstrip("+~").startswith(sweeper) or "hydra.sweeper.params" in text
    ]
    return runs | {"arguments": arguments}


def check_same_configuration(folder: Path, configs: Mapping[str, Config]) -> None:
    """Raise InputError, with the differences, if a job's folder holds another configuration.

    Also raises it if the path is not UTF-8: safetensors cannot write weights there.
    """
    try:
        str(folder.absolute()).encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"results cannot be written to {printable(folder.absolute())}: its path must be UTF-8. "
            "Choose another with hydra.sweep.dir= or hydra.run.dir=."
        ) from error
    for name, config in configs.items():
        stored = read_config(folder / name)
        before, now = result_config(stored), result_config(config)
        differing = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
        if not before.get("backbone_content"):  # earlier versions did not record it
            differing = [key for key in differing if key != "backbone_content"]
        if stored and differing:
            changes = [
                f"{FILES_OF.get(key, key)} was {before.get(key)}, is now {now.get(key)}"
                for key in differing[:5]
            ]
            raise InputError(
                f"{folder / name} holds another configuration: {', '.join(changes)} "
                f"({len(differing)} in all). Choose another folder with hydra.sweep.dir= or "
                "hydra.run.dir=, or delete this one."
            )


def sibling_configs(folder: Path, config: Config) -> list[dict[str, Any]]:
    """The configs of the sweep's jobs that share frozen layers with `config`'s.

    Leaves out jobs that are done or were dropped, or whose configuration is out of a race.
    """
    dropped, shared = read_dropped(folder), frozen_layers_config(config)
    races = race_by_job(folder)
    return [
        job
        for name, job in read_configs(folder).items()
        if name not in dropped
        and not races.get(name, {}).get("stopped")
        and frozen_layers_config(job) == shared
        and read_json(folder / name / "status.json").get("state") != "done"
    ]
