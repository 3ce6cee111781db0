"""The commands `tvf store ...`: names, arguments and help, as in `main`."""

import click

from tvf.cli.options import InOrder


@click.group(cls=InOrder)
def store() -> None:
    """List or remove cached activations and images.

    The store keeps the output of frozen layers, so that later jobs need not recompute it. It is in
    the folder that TVF_STORE names, or else in the user's cache folder.

    \b
    Examples:
      tvf store info
      tvf store clear store.dir=/scratch/store
    """


def _store_dir(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    key, _, folder = (value or "").partition("=")
    if value is not None and (key != "store.dir" or not folder):
        raise SystemExit(f"error: {value!r} must be store.dir=DIR.")
    return folder or None


_store_override = click.argument(
    "folder", metavar="[store.dir=DIR]", required=False, callback=_store_dir
)


@store.command()
@_store_override
def info(folder: str | None) -> None:
    """List the entries of the store, most recently used first.

    \b
    Examples:
      tvf store info
      tvf store info store.dir=/scratch/store
    """
    from tvf.cli import commands

    commands.store_info(folder)


@store.command()
@_store_override
def clear(folder: str | None) -> None:
    """Remove the entries of the store that no running job uses.

    \b
    Examples:
      tvf store clear
      tvf store clear store.dir=/scratch/store
    """
    from tvf.cli import commands

    commands.store_clear(folder)
