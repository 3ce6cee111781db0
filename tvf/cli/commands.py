"""All commands other than train, as plain functions that print to stdout.

On bad input they exit with code 1 and a message on stderr.
"""

import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from tvf.cli.launch import compose, launch, make_importable, sweep_dir_override
from tvf.cli.sweep_folder import commands_of, enter_folder_of, sweep_folder
from tvf.config import (
    ADAPTERS,
    build_part,
    explain_error,
    resolve_target,
    to_plain,
)
from tvf.errors import InputError
from tvf.metrics import METRICS, metric_of
from tvf.records import (
    CONFIRMATION,
    read_sweep,
    tracker_group,
    without_launcher,
)

SWEEP_DIR = "hydra.sweep.dir="
WITHOUT_WEIGHTS = {"pretrained": False, "weights": None}  # options of tvf's backbones

if TYPE_CHECKING:
    from tvf.cli.predict import PredictOptions


@contextmanager
def _errors_as_messages() -> Iterator[None]:
    """Turn input errors into messages, unless TVF_DEBUG=1 asks for tracebacks."""
    try:
        yield
    except BrokenPipeError:  # stdout is `| head`: click exits without a message
        raise
    except (InputError, HydraException, OmegaConfBaseException, OSError) as error:
        if os.environ.get("TVF_DEBUG") == "1":
            raise
        raise SystemExit(f"error: {explain_error(error)}") from None


@_errors_as_messages()
def resume(place: str | Path, overrides: Sequence[str]) -> None:
    """Rerun the commands of the sweep in a folder, or in a mirror; jobs that are done are skipped.

    `overrides` are added to each command and may only set Hydra's own options. Of a mirror, a URL,
    the sweep is fetched into its hydra.sweep.dir.
    """
    place = str(place)
    folder = Path(place)
    if "://" in place:
        folder, overrides = _fetch(place, overrides)
    folder = sweep_folder(
        folder, "To resume a single job, rerun its command with hydra.run.dir=DIR."
    )
    in_folder = sweep_dir_override(folder)
    if settings := [override for override in overrides if not override.startswith("hydra")]:
        raise InputError(
            f"resume cannot change settings ({' '.join(settings)}). To add jobs, rerun the sweep "
            f"command with the new values and {shlex.quote(in_folder)}."
        )
    another = any(override.startswith("hydra/launcher=") for override in overrides)
    failed = False
    for command in commands_of(folder):
        enter_folder_of(command)
        arguments = command["arguments"]
        arguments = without_launcher(arguments) if another else arguments
        failed |= not _train([*arguments, *overrides, in_folder])
    if failed:
        raise SystemExit(1)


def _fetch(url: str, overrides: Sequence[str]) -> tuple[Path, list[str]]:
    """Fetch the sweep in a mirror; return its folder here, and the other overrides."""
    from tvf.sweep import fetch_sweep

    given = [text for text in overrides if text.startswith(SWEEP_DIR)]
    name = url.rstrip("/").rpartition("/")[2]
    place = given[-1].removeprefix(SWEEP_DIR).strip("'\"") if given else f"outputs/sweeps/{name}"
    fetch_sweep(url, Path(place))
    return Path(place), [text for text in overrides if text not in given]


@_errors_as_messages()
def confirm(folder: Path, overrides: Sequence[str], each_fraction: bool = False) -> None:
    """Train what the sweep in `folder` chose, and its runner-up, on fresh divisions and seeds.

    With `each_fraction`, the best of every other fraction takes the runner-up's place. The jobs go
    to the folder `confirm` in the sweep's; those that are done are skipped.
    """
    from tvf.cli.confirm import plan_confirmation

    folder = sweep_folder(folder, "To confirm a choice, compare several configurations first.")
    command = commands_of(folder)[-1]
    enter_folder_of(command)
    plan = plan_confirmation(folder, command["arguments"], overrides, each_fraction)
    print(plan.text)
    in_folder = sweep_dir_override(folder / CONFIRMATION)
    *earlier, last = [[*arguments, in_folder] for arguments in plan.commands]
    trained = [_train(arguments, compare=False) for arguments in earlier]
    if not all([*trained, _train(last)]):
        raise SystemExit(1)


@_errors_as_messages()
def refit(folder: Path, overrides: Sequence[str]) -> None:
    """Train what the sweep in `folder` chose once more, on train + validation.

    The job is in the folder `refit` in the sweep's. If it is done, only its record is completed.
    """
    from tvf.cli.refit import finish_refit, plan_refit

    folder = sweep_folder(folder, "To train a single job, run its command.")
    command = commands_of(folder)[-1]
    enter_folder_of(command)
    plan = plan_refit(folder, command["arguments"], overrides)
    print(plan.text, "If it is interrupted, the same command resumes it.", sep="\n")
    if not _train(plan.arguments):
        raise SystemExit(1)
    print(finish_refit(plan))


@_errors_as_messages()
def advise(overrides: Sequence[str], config_dir: Path | None, as_json: bool) -> None:
    """Print which fractions are promising for a job's overrides."""
    from tvf.cli.advise import run_advise

    config_dir = config_dir and config_dir.absolute()
    make_importable(config_dir)
    print(run_advise(overrides, config_dir, as_json))


@_errors_as_messages()
def status(folder: Path) -> None:
    """Print the table of a sweep's jobs, read from its files; the sweep need not be running."""
    from tvf.report import print_status

    print_status(sweep_folder(folder))


@_errors_as_messages()
def report(
    folders: Sequence[Path], file_format: str, output: str | None, margin: float | None
) -> None:
    """Write the comparison of one or more sweeps in one of tvf.report.FORMATS.

    `output` is a folder, - for stdout, or None: the sweep's folder, or the working directory if
    there are several sweeps. `margin` None: that of the jobs.
    """
    from tvf.report import render_report, write_files

    sweeps = list(dict.fromkeys(sweep_folder(folder) for folder in folders))
    rows = [row for sweep in sweeps for row in read_sweep(sweep)]
    if not rows:
        raise InputError(
            f"{' and '.join(map(str, sweeps))}: no job has started, and sweep.json lists none."
        )
    if output == "-" and file_format not in ("md", "csv", "json"):
        raise InputError(
            f"--output - must be used with md, csv or json; {file_format} needs a folder."
        )
    files = render_report(sweeps, rows, file_format, margin)
    if output == "-":
        print(next(iter(files.values())).decode(), end="")  # of CSV files the one of jobs
        return
    target = Path(output) if output else sweeps[0] if len(sweeps) == 1 else Path()
    try:
        paths = write_files(files, target)
    except OSError as error:
        raise InputError(
            f"{error.filename or target} cannot be written ({error.strerror}). Choose another "
            "folder with --output."
        ) from error
    print(*paths, sep="\n")


@_errors_as_messages()
def predict(model: Path, images: Sequence[str], options: "PredictOptions") -> None:
    """Write a model's predictions for `images`; exit with code 1 if some could not be read."""
    from tvf.cli.predict import run_predict

    if not run_predict(str(model), images, options):
        raise SystemExit(1)


@_errors_as_messages()
def export(model: Path, **options: Any) -> None:
    """Export a model as one file; see `run_export` for the options."""
    from tvf.cli.predict import run_export

    run_export(str(model), **options)


@_errors_as_messages()
def combine(folder: Path, trust_code: bool, method: str | None) -> None:
    """Combine the weights of a sweep's jobs into one model."""
    from tvf.cli.predict import run_combine

    folder = sweep_folder(folder, "To combine jobs, train several seeds first.")
    run_combine(folder, trust_code, method)


@_errors_as_messages()
def dashboard(folder: Path) -> None:
    """Save a workspace and a report of a sweep's runs at W&B, and print their URLs."""
    from tvf.report import compare, describe_test_score, publish_dashboard, render_markdown

    folder = sweep_folder(folder)
    tracked = [row for row in read_sweep(folder) if row["wandb_run_id"]]
    comparisons = compare(tracked)
    if not comparisons:
        raise InputError(
            f"{folder}: no job has a W&B run (tracker=none?). Use tvf report {folder} instead."
        )
    if len(comparisons) > 1:
        titles = "; ".join(comparison.title for comparison in comparisons)
        raise InputError(
            f"{folder}: its jobs are not comparable, so they cannot share a dashboard ({titles}). "
            "Run a separate sweep for each of these settings."
        )
    (comparison,) = comparisons
    config = comparison.configurations[0].jobs[0]["config"]
    urls = publish_dashboard(
        config["project"],
        tracker_group(folder),
        comparison.score_key,
        recommendation=f"{comparison.choice.text} {describe_test_score(comparison)}".strip(),
        table=render_markdown([folder], comparisons).partition("\n\n")[2],
        entity=config["tracker"].get("entity"),
        auroc=any(row["val_auroc"] is not None for row in tracked),
    )
    print(*urls, sep="\n")


@_errors_as_messages()
def wandb_sweep(overrides: Sequence[str], config_dir: Path | None = None) -> None:
    """Print the YAML of a sweep for W&B's agents.

    Every value of the grid is validated together with the first value of all other parameters.
    """
    from tvf.config import validate_config
    from tvf.sweep import read_grid, wandb_sweep_yaml

    config_dir = config_dir and config_dir.absolute()
    make_importable(config_dir)
    fixed, varied = read_grid(overrides)
    first = {key: values[0] for key, values in varied.items()}

    config = validate_config(compose(_point(fixed, first), config_dir))
    for key, values in varied.items():
        for value in values[1:]:
            validate_config(compose(_point(fixed, first | {key: value}), config_dir))
    if str(config["tracker"].get("_target_")).endswith("NoTracker"):
        raise InputError(
            "tracker=none must be tracker=wandb: the sweep maximizes a score that jobs log to W&B."
        )
    if config_dir:
        fixed = ["--config-dir", str(config_dir), *fixed]
    metric = f"val_{METRICS[metric_of(config)]}"
    print(wandb_sweep_yaml(fixed, varied, metric, config["project"]), end="")


@_errors_as_messages()
def groups(overrides: Sequence[str], config_dir: Path | None = None) -> None:
    """Print a Markdown table of what each fraction of the chosen backbone and model trains."""
    from tvf.models import FineTuneModel, LoraModel, Selection, tabulate_groups

    config_dir = config_dir and config_dir.absolute()
    make_importable(config_dir)
    cfg = compose(overrides, config_dir)
    node = to_plain(cfg.backbone)
    if str(node.get("_target_")).startswith("tvf."):  # groups are the same without a download
        node |= {key: value for key, value in WITHOUT_WEIGHTS.items() if key in node}
    backbone = build_part({"backbone": node}, "backbone", num_classes=1)
    model = to_plain(cfg.model)
    selection = Selection(
        unit=model.get("unit") or "groups",
        direction=model.get("direction") or "top",
        groups=model.get("groups"),
        train=model.get("train"),
    )
    target: Any = resolve_target(model, "model")
    if not isinstance(target, type) or not issubclass(target, FineTuneModel):
        target = FineTuneModel  # for code of the user's own, what it could train
    options, counted = {}, "parameters"
    if issubclass(target, LoraModel):
        options = {key: model[key] for key in ADAPTERS if key in model}
        counted = "parameters, at most"  # which layers the network calls shows in a job alone
    sizes = partial(target.trained_sizes, backbone.module, **options)
    table = tabulate_groups(
        backbone.module, backbone.groups, selection, sizes=sizes, counted=counted
    )
    print(table)


@_errors_as_messages()
def store_info(store_dir: str | None) -> None:
    """List the store's entries, most recently used first; None means the default store."""
    from tvf.cli.store import list_store

    list_store(store_dir)


@_errors_as_messages()
def store_clear(store_dir: str | None) -> None:
    """Remove entries that no running job uses from the store; None means the default store."""
    from tvf.cli.store import clear_store_of

    clear_store_of(store_dir)


def _train(arguments: Sequence[str], compare: bool = True) -> bool:
    """Print and run `tvf train`, `compare` as in `launch`; return whether every job is done."""
    print(shlex.join(["tvf", "train", *arguments]), flush=True)
    try:
        launch(arguments, compare)
    except SystemExit as error:
        if error.code not in (0, 1):
            raise
        return not error.code
    return True


def _point(fixed: Sequence[str], values: dict[str, str]) -> list[str]:
    """The overrides of one point of a grid."""
    return [*fixed, *(f"{key}={value}" for key, value in values.items())]
