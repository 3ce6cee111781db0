"""Options that several commands take. Like the commands, it loads nothing but click."""

import difflib
from pathlib import Path

import click

DIR = click.Path(path_type=Path)
HYDRA_OPTIONS = ("--multirun", "--run", "--cfg", "--config-name", "--config-path")


with_trust_code = click.option(
    "--trust-code",
    is_flag=True,
    help="Run code that comes with the model: a backbone of its own, a .pt2 file.",
)

with_config_dir = click.option(
    "--config-dir",
    "-cd",
    metavar="DIR",
    type=DIR,
    help="A folder with your own config options and Python files.",
)


def _refuse_unknown_options(
    context: click.Context, _: click.Parameter, words: tuple[str, ...]
) -> tuple[str, ...]:
    """Raise click's error for an option that a command with Hydra's overrides does not have.

    Hydra's own are left to the command, which says why it takes none of them.
    """
    known = [name for each in context.command.params for name in each.opts if name[:2] == "--"]
    for word in words:
        name = word.partition("=")[0]
        if name.startswith("--") and name not in HYDRA_OPTIONS:
            near = difflib.get_close_matches(name, [*known, "--help"], cutoff=0.5)
            raise click.NoSuchOption(name, possibilities=near, ctx=context)
    return words


with_overrides = click.argument(
    "overrides",
    metavar="[OVERRIDE]...",
    nargs=-1,
    type=click.UNPROCESSED,
    callback=_refuse_unknown_options,
)


class InOrder(click.Group):
    """Lists its commands in the order in which they were added."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List commands in the order in which they are defined."""
        return list(self.commands)
