"""The command `tvf`: names, arguments and help of its subcommands, and nothing else.

Each subcommand imports what it needs when it runs, so `tvf --help` only loads click.
"""

import difflib
import io
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from tvf import __version__

DIR = click.Path(path_type=Path)
HYDRA_OPTIONS = ("--multirun", "--run", "--cfg", "--config-name", "--config-path")


_trust_code = click.option(
    "--trust-code",
    is_flag=True,
    help="Run code that comes with the model: a backbone of its own, a .pt2 file.",
)

_config_dir = click.option(
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


_overrides = click.argument(
    "overrides",
    metavar="[OVERRIDE]...",
    nargs=-1,
    type=click.UNPROCESSED,
    callback=_refuse_unknown_options,
)


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        """List commands in the order in which they are defined."""
        return list(self.commands)


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
    cls=_Commands,
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
@_config_dir
@click.option("--json", "as_json", is_flag=True, help="Print all numbers as JSON.")
@_overrides
def advise(config_dir: Path | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Say which fractions are promising.

    Takes the overrides of tvf train. Prints how well probes classify at each depth of the frozen
    network, the relative gradient norm of each group, and how a short run of each fraction scores;
    then the fractions by their probability of being good enough, and the sweep that would settle
    it. Costs a few per cent of that sweep. Its first fraction is often wrong: run the sweep.

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
    checkpoint. Only Hydra's own settings can change, such as the launcher.

    A sweep with a mirror can also be resumed on a machine that has nothing of it: MIRROR is its
    URL. It is fetched into outputs/sweeps/NAME, or into hydra.sweep.dir=DIR.

    \b
    Examples:
      tvf resume outputs/sweeps/demo hydra/launcher=basic
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
    help="Where to write; - prints md or json. Default: DIR, or the current folder for several.",
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


@tvf.command()
@click.argument("model", metavar="MODEL", type=DIR)
@click.argument("images", metavar="IMAGE|FOLDER|PATTERN|LIST...", nargs=-1, required=True)
@click.option("--output", "-o", metavar="FILE", type=DIR, help="Default: stdout.")
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["csv", "jsonl", "parquet"]),
    help='Default: that of FILE\'s ending, else csv. parquet needs the extra "parquet".',
)
@click.option(
    "--top",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    metavar="K",
    help="The K most probable classes, or all if there are fewer.",
)
@click.option("--every-class", is_flag=True, help="Add the probability of every class.")
@click.option("--raw", is_flag=True, help="The network's own probabilities, uncalibrated.")
@click.option(
    "--ensemble",
    is_flag=True,
    help="Average the probabilities of all jobs of the sweep's recommended configuration.",
)
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or mps.")
@click.option(
    "--max-megapixels",
    type=click.FloatRange(0, min_open=True),
    help="Read images up to this size. Default: the job's data.max_megapixels.",
)
@_trust_code
def predict(model: Path, images: tuple[str, ...], **options: Any) -> None:
    """Classify images with a trained model.

    MODEL is the folder of a sweep (the best job of what it recommends), the folder of a job, or a
    file that tvf export has written. Images are files, folders with all that is below, patterns in
    quotes, .txt files with one path per line, or - for such a list on stdin. Images that cannot be
    read are listed at the end; the exit code is 1 then. If images lie in folders that are called
    like their classes, their scores are printed as well.

    \b
    Examples:
      tvf predict outputs/sweeps/demo photos/ > predictions.csv
      tvf predict outputs/sweeps/demo --ensemble --top 3 'photos/*.jpg' -o predictions.jsonl
    """
    from tvf.cli import commands
    from tvf.cli.predict import PredictOptions

    commands.predict(model, images, PredictOptions(**options))


@tvf.command()
@click.argument("model", metavar="MODEL", type=DIR)
@click.option(
    "--format",
    "file_format",
    default="onnx",
    show_default=True,
    type=click.Choice(["onnx", "torch_export"]),
    help='onnx needs the extra "export".',
)
@click.option("--output", "-o", metavar="FILE", type=DIR, help="Default: the job's name.")
@click.option(
    "--layout",
    default="nhwc",
    show_default=True,
    type=click.Choice(["nhwc", "nchw"]),
    help="The order of the images' dimensions.",
)
@click.option("--raw", is_flag=True, help="Leave out the calibration of probabilities.")
@_trust_code
def export(model: Path, **options: Any) -> None:
    """Write a trained model as one file for other runtimes.

    MODEL is the folder of a sweep or of a job. The file maps images (uint8, square, of the trained
    size, any number) to calibrated probabilities; normalisation is inside, and the classes are in
    its metadata. It is compared with the original on real images before it is written.

    \b
    Examples:
      tvf export outputs/sweeps/demo -o model.onnx
      tvf export outputs/sweeps/demo --format torch_export -o model.pt2
    """
    from tvf.cli import commands

    commands.export(model, **options)


@tvf.command()
@click.argument("folder", metavar="DIR", type=DIR)
@click.option(
    "--method",
    type=click.Choice(["best", "soup", "interpolated", "ensemble"]),
    help="Write this one instead of what validation chooses.",
)
@_trust_code
def combine(folder: Path, trust_code: bool, method: str | None) -> None:
    """Combine a sweep's jobs into one model, without training.

    Tries the mean of weights (a greedy soup), weights between the start and the end of fine-tuning
    (WiSE-FT) and the mean of logits, with the jobs that share backbone and division with the best
    one: sweep several seeds or learning rates. Validation images choose, the test images are used
    once, and the result is in DIR/combine/METHOD, which tvf predict and tvf export take.

    \b
    Examples:
      tvf combine outputs/sweeps/demo
      tvf predict outputs/sweeps/demo/combine/soup photos/
    """
    from tvf.cli import commands

    commands.combine(folder, trust_code, method)


@tvf.command()
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


@tvf.command("wandb-sweep", context_settings={"ignore_unknown_options": True})
@_config_dir
@_overrides
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


@tvf.command()
@_config_dir
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


@tvf.group(cls=_Commands)
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
