"""The folder of a sweep that a command is given, and the commands that are recorded in it."""

import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

from tvf.cli.launch import sweep_dir_override
from tvf.errors import InputError
from tvf.files import read_json
from tvf.mirror import is_mirror
from tvf.records import confirmed_sweep, read_commands


def sweep_folder(folder: Path, remedy: str = "") -> Path:
    """Return `folder` as an absolute path; InputError with a `remedy` unless it holds a sweep."""
    if url := re.fullmatch(r"([a-z0-9]+):/+(.*)", str(folder)):
        root = "/" if url[1] == "file" else ""
        raise InputError(
            f"{folder} is not a folder: `tvf resume {url[1]}://{root}{url[2]}` fetches the sweep "
            "of a mirror into one."
        )
    folder = Path(os.path.normpath(folder.absolute()))
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder. DIR must be the folder of a sweep.")
    if is_mirror(folder):
        raise InputError(
            f"{folder} is a mirror, whose files are not those of a sweep: "
            f"`tvf resume {folder.as_uri()}` fetches the sweep into a folder of its own."
        )
    if not (folder / "sweep.json").is_file():
        nested = [*folder.glob("*/sweep.json"), *folder.glob("*/*/sweep.json")]
        found = [path for path in nested if not confirmed_sweep(path.parent)]
        if sweeps := sorted(found, key=lambda path: path.stat().st_mtime):
            remedy = f"It contains sweeps; the newest is {sweeps[-1].parent}."
        elif (folder.parent / "sweep.json").is_file():
            remedy = f"It belongs to the sweep in {folder.parent}."
        remedy = remedy or "A sweep folder holds sweep.json and one folder per job."
        raise InputError(f"{folder} is not the folder of a sweep: it has no sweep.json. {remedy}")
    if not read_json(folder / "sweep.json"):
        print(
            f"{folder / 'sweep.json'} cannot be read: the sweep's commands and waiting jobs are "
            "unknown.",
            file=sys.stderr,
        )
    return folder


def commands_of(folder: Path) -> list[dict[str, Any]]:
    """The commands that started and extended a sweep, at least one."""
    if commands := read_commands(folder):
        return commands
    raise InputError(
        f"{folder / 'sweep.json'} records no command. Rerun the sweep command with "
        f"{shlex.quote(sweep_dir_override(folder))}."
    )


def enter_folder_of(command: dict[str, Any]) -> None:
    """Change to the folder in which a sweep's command was started: its paths are relative to it."""
    try:
        os.chdir(command["folder"])
    except OSError as error:
        raise InputError(
            f"cannot enter the folder where the sweep was started: {command['folder']} "
            f"({error.strerror}). Its paths are relative to it: make it available under this name; "
            "if it was moved, a link there will do."
        ) from error
