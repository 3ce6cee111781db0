"""The shell commands that started a sweep, for repeating it."""

import shlex
from pathlib import Path

from tvf.records import read_commands


def sweep_commands(folder: Path) -> list[str]:
    """The commands that repeat the sweep in `folder`."""
    return [
        shlex.join(["tvf", "train", *map(str, command["arguments"])])
        for command in read_commands(folder)
    ]


def sweep_commands_with_folders(folder: Path) -> list[str]:
    """The same commands, each after a `cd` to the folder that its paths are relative to."""
    return [
        f"cd {shlex.quote(str(command['folder']))} && {text}"
        for command, text in zip(read_commands(folder), sweep_commands(folder), strict=True)
    ]
