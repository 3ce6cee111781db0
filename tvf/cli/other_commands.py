"""The commands around sweeps: W&B, groups, the store. Names, arguments and help, as in `main`."""

from pathlib import Path

import click

from tvf.cli.options import DIR, InOrder, with_config_dir, with_overrides


@click.command()
@click.argument("folder", metavar="DIR", type=DIR)
def dashboard(folder: Path) -> None:
    """Save a sweep's comparison to W&B.

    Save a workspace and a report for the runs of the sweep in DIR, and print their URLs. Needs the
    extra "dashboard" (pip install '.[dashboard]') and a W&B login.

    \b
    Examples:
      tvf dashboard outputs/sweeps/demo
      WANDB_BASE_URL=https://wandb.example.com tvf dashboard outputs/sweeps/demo
    """
    from tvf.cli import commands

    commands.dashboard(folder)


@click.command("wandb-sweep", context_settings={"ignore_unknown_options": True})
@with_config_dir
@with_overrides
def wandb_sweep(config_dir: Path | None, overrides: tuple[str, ...]) -> None:
    """Print a sweep as YAML for W&B's agents.

    Takes the overrides of tvf train -m: lists of values become the grid of the W&B sweep. Without
    any list, the grid consists of four fractions.

    \b
    Examples:
      tvf wandb-sweep seed=1,2,3 > sweep.yaml
      tvf wandb-sweep model.pct_unfreeze=0,0.5 optimizer.lr=0.001,0.01 epochs=10 > sweep.yaml
    """
    from tvf.cli import commands

    commands.wandb_sweep(overrides, config_dir)


@click.command()
@with_config_dir
@click.argument("overrides", metavar="[OVERRIDE]...", nargs=-1)
def groups(config_dir: Path | None, overrides: tuple[str, ...]) -> None:
    """Show which groups of a backbone each fraction trains.

    Takes the overrides of tvf train and prints a Markdown table with the number of parameters.

    \b
    Examples:
      tvf groups model=lora
      tvf groups backbone=resnet18 backbone.weights=null backbone.grouping=stages
    """
    from tvf.cli import commands

    commands.groups(overrides, config_dir)


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
