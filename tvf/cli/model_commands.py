"""The commands that use a trained model: names, arguments and help, as in `main`."""

from pathlib import Path
from typing import Any

import click

from tvf.cli.options import DIR, with_trust_code


@click.command()
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
@with_trust_code
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


@click.command()
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
@with_trust_code
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


@click.command()
@click.argument("folder", metavar="DIR", type=DIR)
@click.option(
    "--method",
    type=click.Choice(["best", "soup", "interpolated", "ensemble"]),
    help="Write this one instead of what validation chooses.",
)
@with_trust_code
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
