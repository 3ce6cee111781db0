"""A sweep and its mirror: what others did is fetched before, and what is left is sent after.

Machines that train the same sweep agree on its manifest: the first one's group and summary run, and
the jobs and commands of all.
"""

import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from tvf.config import SAME, path_override
from tvf.errors import InputError
from tvf.files import read_json, write_json
from tvf.lease import Lease
from tvf.mirror import Mirror, Unreachable, check_apart
from tvf.owners import Owner
from tvf.records import LEASE, read_commands, read_configs, without_launcher
from tvf.sweep.launchers import runs_elsewhere

MIRROR = "mirror="
MANIFEST = "sweep.json"

_mirror: Mirror | None = None  # of the sweep that this process launched


def open_mirror(config: DictConfig, folder: Path, jobs: Mapping[str, dict[str, Any]]) -> None:
    """Open the mirror of the sweep's jobs, if they have one, and fetch what it has of them.

    Raises InputError if it cannot be used, or holds another sweep.
    """
    global _mirror
    if _mirror is not None:  # the sweep restarts after a worker was killed
        _mirror.close()
        _mirror = None
    urls = {job["mirror"] for job in jobs.values()}
    if urls <= {None}:
        return
    if len(urls) > 1:
        raise InputError(f"mirror must have one value in a sweep, not {len(urls)}.")
    if runs_elsewhere(config.hydra.launcher):
        raise InputError(
            "mirror must be null with a cluster's launcher, whose machines share a disk: choose "
            "hydra/launcher=local or basic, on each machine."
        )
    url = urls.pop()
    check_apart(url, folder)
    mirror = Mirror(url, folder)
    try:
        _adopt_manifest(mirror, folder, command_arguments())
        _compare(mirror, [*jobs])
    except Unreachable as error:
        mirror.close()
        raise InputError(f"mirror={mirror.url} cannot be read: {error}.") from error
    except BaseException:
        mirror.close()
        raise
    _mirror = mirror


def refuse_mirror(config: DictConfig) -> None:
    """Raise InputError if a sweep has a mirror whose sweeper decides by the scores of its jobs."""
    if config.get("mirror") is not None:
        raise InputError(
            f"mirror={config.mirror} must be null unless hydra/sweeper=grid: other sweepers decide "
            "by the scores of all jobs, which one of several machines does not have."
        )


def refuse_unmirrored(config: Mapping[str, Any], sweep: Path | None) -> None:
    """Raise InputError for a mirror that a job has and nothing keeps: that of a single job."""
    if config["mirror"] is not None and sweep is None:
        raise InputError(
            f"mirror={config['mirror']} must be null for a single job. A sweep of one job has a "
            "mirror, and can be resumed from it: tvf train -m."
        )


def note_in_mirror(folder: Path) -> None:
    """Send the manifest of the sweep, if it has a mirror. Raises InputError."""
    if _mirror is None:
        return
    try:
        _send_manifest(_mirror, folder)
    except Unreachable as error:
        raise InputError(f"mirror={_mirror.url} cannot be written: {error}.") from error


def compare_with_mirror(jobs: Sequence[str]) -> None:
    """After the last job: fetch what other machines trained, send what is left, say what is not."""
    if _mirror is None:
        return
    try:
        elsewhere, failed = _compare(_mirror, jobs)
    except Unreachable as error:
        print(_not_mirrored(str(error)))
        return
    if elsewhere:
        where = ", ".join(f"{name} ({owner})" for name, owner in elsewhere.items())
        print(f"trained on other machines: {where}. Their results are here after a resume.")
    if failed:
        reason = next(iter(failed.values()))
        print(_not_mirrored(f"{', '.join(failed)} ({reason})"))


def close_mirror(folder: Path, jobs: Sequence[str]) -> None:
    """Send the report of the sweep, and end the mirror's process."""
    global _mirror
    mirror, _mirror = _mirror, None
    if mirror is None:
        return
    try:
        mirror.ask("send_reports")
        _send_manifest(mirror, folder)
        _compare(mirror, jobs)  # a model card
        print(f"mirror: {mirror.url}")
    except Unreachable as error:
        print(_not_mirrored(f"the report ({error})"))
    finally:
        mirror.close()


def command_arguments() -> list[str]:
    """This command's arguments, without the sweep's folder."""
    return [text for text in sys.argv[1:] if not text.startswith("hydra.sweep.dir=")]


def fetch_sweep(url: str, folder: Path) -> None:
    """Make `folder` that of the sweep in the mirror at `url`, to be resumed from here.

    Raises InputError if there is none, or if `folder` holds another sweep.
    """
    check_apart(url, folder)
    mirror = Mirror(url, folder)
    try:
        if not (found := mirror.ask("read_manifest")):
            raise InputError(f"{url} holds no sweep: it has no {MANIFEST}.")
        _adopt_manifest(mirror, folder)
        elsewhere, failed = _compare(mirror, [*read_configs(folder)])
    except Unreachable as error:
        raise InputError(f"{url} cannot be read: {error}.") from error
    finally:
        mirror.close()
    jobs = len(found.get("jobs", ()))
    print(f"fetched {jobs - len(elsewhere) - len(failed)} of {jobs} jobs from {url} into {folder}")


def same_mirror(arguments: Sequence[str], url: str | None) -> list[str]:
    """A command's arguments with another mirror, or without one."""
    others = [text for text in arguments if not text.lstrip("+").startswith(MIRROR)]
    if url is None:
        return others
    plain = re.fullmatch(r"[\w./:-]+", url, re.ASCII)
    return [*others, MIRROR + url if plain else path_override("mirror", url)]


def _not_mirrored(what: str) -> str:
    return f"not mirrored: {what}. To send it when the mirror can be reached: tvf resume."


def _compare(mirror: Mirror, jobs: Sequence[str]) -> tuple[dict[str, Owner], dict[str, str]]:
    found = mirror.ask("compare", names=[*jobs])
    elsewhere = {name: Owner(**owner) for name, owner in found["elsewhere"].items()}
    return elsewhere, found["failed"]


def _adopt_manifest(mirror: Mirror, folder: Path, given: Sequence[str] | None = None) -> None:
    """Take over what the manifest in the mirror says of this sweep, if there is one.

    `given` are the arguments of the command that is about to launch it. Raises InputError if the
    mirror holds another sweep.
    """
    theirs = mirror.ask("read_manifest")
    if theirs is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    with Lease(folder / LEASE):
        ours = read_json(folder / MANIFEST)
        commands = read_commands(folder)
        first = commands[0]["arguments"] if commands else given
        if first is not None:
            _check_same(mirror.url, theirs, first)
        if given is not None:  # as it is spelled now, which decides whether it is a new one
            commands.append({"folder": os.getcwd(), "arguments": [*given]})
        write_json(folder / MANIFEST, _merged(ours, theirs, commands, mirror.url))


def _merged(
    ours: dict[str, Any],
    theirs: dict[str, Any],
    known: Sequence[dict[str, Any]],
    url: str,
) -> dict[str, Any]:
    """Our manifest and theirs. Their commands run from here, unless they are `known`."""
    by_jobs = {_jobs_of(each["arguments"]): each for each in reversed(known)}
    commands = {}
    for each in [*theirs.get("commands", ()), *ours.get("commands", ())]:
        moved = {"folder": os.getcwd(), "arguments": same_mirror(each["arguments"], url)}
        jobs = _jobs_of(each["arguments"])
        commands.setdefault(jobs, by_jobs.get(jobs, moved))
    merged = theirs | ours | {"commands": [*commands.values()]}
    for key in ("jobs", SAME):
        if key in merged:
            merged[key] = theirs.get(key, {}) | ours.get(key, {})
    if "group" in theirs:
        merged["group"] = theirs["group"]
    if "id" in theirs.get("summary", {}):
        merged["summary"] = ours.get("summary", {}) | {"id": theirs["summary"]["id"]}
    return merged


def _check_same(url: str, theirs: dict[str, Any], arguments: Sequence[str]) -> None:
    commands = [each["arguments"] for each in theirs.get("commands", ())]
    if commands and _jobs_of(commands[0]) != _jobs_of(arguments):
        raise InputError(
            f"mirror={url} holds another sweep: {shlex.join(['tvf', 'train', *commands[0]])}. "
            "Choose another folder there, or begin with the same command."
        )


def _jobs_of(arguments: Sequence[str]) -> tuple[str, ...]:
    """What tells commands apart that train different jobs."""
    return tuple(same_mirror(without_launcher(arguments), None))


def _send_manifest(mirror: Mirror, folder: Path) -> None:
    if mirror.ask("write_manifest", content=read_json(folder / MANIFEST), first=True):
        return
    _adopt_manifest(mirror, folder)  # another machine may have added jobs
    mirror.ask("write_manifest", content=read_json(folder / MANIFEST), first=False)
