"""Shell commands about a sweep: those that started it, and the one that confirms its choice."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from tvf.records import confirmed_sweep, read_commands
from tvf.report.comparison import Comparison
from tvf.report.notes import about_trials


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


def confirm_command(folder: Path, comparisons: Sequence[Comparison]) -> str | None:
    """The command that confirms the choice of the sweep in `folder`.

    None if there is no decided choice between configurations, or if it has been confirmed. Where
    fractions were trained in several ways, it confirms each at its best, decided or not.
    """
    if confirmed_sweep(folder) or len(comparisons) != 1:
        return None
    (comparison,) = comparisons
    decided = comparison.choice.decided
    if decided is None or comparison.confirmation is not None:
        return None
    command = f"tvf confirm {shlex.quote(str(folder))}"
    if about_trials(comparison.candidates):
        return f"{command} --each-fraction"
    return command if decided else None
