"""The command `tvf`: names, arguments and help of its subcommands, and nothing else.

Those on models, on W&B and on the store are in files beside it.

Each subcommand imports what it needs when it runs, so `tvf --help` only loads click.
"""

import io
import sys
from contextlib import suppress
from pathlib import Path

import click

from tvf import __version__
from tvf.cli.model_commands import combine, export, predict
from tvf.cli.options import DIR, InOrder, with_config_dir, with_overrides
from tvf.cli.store_commands import store
from tvf.cli.wandb_commands import dashboard, wandb_sweep


def main() -> None:
    """Run the command `tvf` on sys.argv. Return if it succeeds, raise SystemExit otherwise."""
    _print_any_name()
    try:
        tvf(prog_name="tvf")
    except SystemExit as error:
        if error.code:
            raise


def train() -> None:
    """Train one job or, with -m, a sweep, as sys.argv says. Raise SystemExit if a job fails."""
    from tvf.cli.launch import launch

    _print_any_name()
    launch()


def _print_any_name() -> None:
    """Let stdout escape what it cannot encode, as stderr does: names of files may not be UTF-8."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        with suppress(OSError):  # it writes to another kind of file than it was opened for
            sys.stdout.reconfigure(errors="backslashreplace")


@click.group(
    cls=InOrder,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="tvf")
@click.pass_context
def tvf(context: click.Context) -> None:
    """How much of a pretrained vision network should train?

    \b
    Start here:
      tvf train +experiment=smoke         check the installation: one epoch on 64 images
      tvf train model.pct_unfreeze=0.25   train the head and the deepest quarter of the groups
      tvf train -m model.pct_unfreeze=0,0.25,0.5,1.0 data.folds=5 data.fold=0,1,2,3,4
                                          a sweep: compare four fractions on five folds
      tvf confirm SWEEP_FOLDER            check its choice on fresh folds
      tvf predict SWEEP_FOLDER photos/    classify images with what it recommends
      tvf train --help                    list every option with its default
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@tvf.command(
    "train",
    short_help="Train one configuration or, with -m, a sweep of them.",
    context_settings={
        "ignore_unknown_options": True,
        "allow_extra_args": True,
        "help_option_names": [],
    },
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def _train(arguments: tuple[str, ...]) -> None:
    """Pass everything through to Hydra, --help included."""
    from tvf.cli.launch import launch

    launch(arguments)


@tvf.command(context_settings={"ignore_unknown_options": True})
@with_config_dir
@click.option("--json", "as_json", is_flag=True, help="Print all numbers as JSON.")
@with_overrides
def advise(config_dir: Path | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Say which fractions are promising.

    Takes the overrides of tvf train. Prints how well probes classify at each depth of the frozen
    network, the relative gradient norm of each group, and how a short run of each fraction scores;
    then the fractions by their probability of being good enough, and the sweep that would settle
    it. Costs 5 to 10 per cent of that sweep. Its first fraction is often wrong: run the sweep.

    \b
    Examples:
      tvf advise
      tvf advise data=image_folder data.root=photos --json
    """
    from tvf.cli import commands

    commands.advise(overrides, config_dir, as_json)


@tvf.command()
@click.argument("place", metavar="DIR|MIRROR")
@click.argument("overrides", metavar="[HYDRA_OVERRIDE]...", nargs=-1)
def resume(place: str, overrides: tuple[str, ...]) -> None:
    """Resume a sweep.

    Resume the sweep in DIR: finished jobs are skipped, interrupted ones continue from their last
    checkpoint. Only Hydra's own settings can change, such as the launcher: hydra/launcher=NAME
    chooses what runs the jobs (basic, local, slurm or ray), hydra.launcher.OPTION=VALUE sets how.

    A sweep with a mirror can also be resumed on a machine that has nothing of it: MIRROR is its
    URL. It is fetched into outputs/sweeps/NAME, or into hydra.sweep.dir=DIR.

    \b
    Examples:
      tvf resume outputs/sweeps/demo hydra/launcher=local hydra.launcher.n_jobs=4
      tvf resume s3://my-bucket/demo
    """
    from tvf.cli import commands

    commands.resume(place, overrides)


@tvf.command()
@click.argument("folder", metavar="DIR", type=DIR)
@click.option(
    "--each-fraction",
    is_flag=True,
    help="Train the best configuration of each fraction instead, if more than that varies.",
)
@click.argument("overrides", metavar="[OVERRIDE]...", nargs=-1)
def confirm(folder: Path, overrides: tuple[str, ...], each_fraction: bool) -> None:
    """Train a sweep's choice and its runner-up again.

    The score by which the sweep in DIR chose a configuration flatters it. This command trains that
    configuration and its runner-up on divisions of the images, and with seeds, that the sweep did
    not use. The report of DIR then quotes their scores, and says whether they confirm the choice.
    If the sweep has not decided, what may do as well is trained again too, up to three
    configurations, and there is no verdict.

    The jobs are in DIR/confirm; jobs that are done are skipped. Overrides can set the launcher, the
    tracker and data.folds.

    \b
    Examples:
      tvf confirm outputs/sweeps/demo
      tvf confirm outputs/sweeps/demo data.folds=10 hydra.launcher.n_jobs=2
    """
    from tvf.cli import commands

    commands.confirm(folder, overrides, each_fraction)


@tvf.command()
@click.argument("folder", metavar="DIR", type=DIR)
@click.argument("overrides", metavar="[OVERRIDE]...", nargs=-1)
def refit(folder: Path, overrides: tuple[str, ...]) -> None:
    """Train a sweep's choice on train + validation.

    Trains the configuration that the sweep in DIR recommends on its train and validation images
    together, up to the median of the best epochs of its jobs. The test images stay apart. The model
    is not scored anew: its record quotes the sweep's estimate.

    The job is in DIR/refit/SEED, which tvf predict and tvf export take. Overrides can set the seed
    and the tracker.

    \b
    Examples:
      tvf refit outputs/sweeps/demo
      tvf refit outputs/sweeps/demo seed=7 tracker=none
    """
    from tvf.cli import commands

    commands.refit(folder, overrides)


@tvf.command()
@click.argument("folder", metavar="DIR", type=DIR)
def status(folder: Path) -> None:
    """Show the state and scores of a sweep's jobs.

    DIR is the folder of a sweep. The sweep may still be running, or have been killed.

    \b
    Examples:
      tvf status outputs/sweeps/demo
      watch tvf status outputs/sweeps/demo
    """
    from tvf.cli import commands

    commands.status(folder)


@tvf.command()
@click.argument("folders", metavar="DIR...", nargs=-1, required=True, type=DIR)
@click.option(
    "--format",
    "file_format",
    default="html",
    show_default=True,
    type=click.Choice(["html", "md", "csv", "json", "png"]),
    help="html: a page; md: a table; csv, json: all numbers; png: the main chart, also as SVG.",
)
@click.option(
    "--output",
    metavar="FOLDER",
    help="Where to write; - prints md, json or the csv of jobs. Default: DIR, or the current "
    "folder for several.",
)
@click.option(
    "--margin",
    type=click.FloatRange(0, 1),
    help="How far below the best score is good enough: the cheapest such one is recommended.",
)
def report(
    folders: tuple[Path, ...], file_format: str, output: str | None, margin: float | None
) -> None:
    """Compare the jobs of one or more sweeps.

    Each DIR is the folder of a sweep, which may still be running. Every sweep writes its own
    report.html when it ends.

    \b
    Examples:
      tvf report outputs/sweeps/demo
      tvf report outputs/sweeps/first outputs/sweeps/second --format md --output -
    """
    from tvf.cli import commands

    commands.report(folders, file_format, output, margin)


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


for command in (predict, export, combine, dashboard, wandb_sweep, groups, store):
    tvf.add_command(command)
