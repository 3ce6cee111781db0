"""The commands for W&B: names, arguments and help, as in `main`."""

from pathlib import Path

import click

from tvf.cli.options import DIR, with_config_dir, with_overrides


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
