"""The shell's side: finds conf/, hands over to Hydra, and turns mistakes into messages instead of tracebacks."""

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from tvf.config import explain_error
from tvf.errors import InputError
from tvf.records import read_commands
from tvf.report import print_status

if TYPE_CHECKING:
    pass
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

from tvf.cli.train import _in_folder, read_config_dir, train
from tvf.config import build, conf_dir, to_plain
from tvf.files import read_json
from tvf.metrics import METRICS, metric_of


def resume(arguments: list[str]) -> None:
    """Give a sweep's commands again, in the folder that they were given in: each runs what is not done."""
    pass

    folder, overrides = sweep_folder("resume", arguments)
    if others := [each for each in overrides if not each.startswith("hydra")]:
        raise SystemExit(
            f"error: {' '.join(others)} would make other jobs of them. To widen the sweep, give its command with other "
            f"values and hydra.sweep.dir={folder}."
        )
    commands = read_commands(folder)
    if not commands:
        raise SystemExit(
            f"error: {folder / 'sweep.json'} names no command: give the sweep's own again, with hydra.sweep.dir=DIR."
        )
    unfinished = False
    for command in commands:
        try:
            os.chdir(command["folder"])
        except OSError as error:
            raise SystemExit(
                f"error: {command['folder']}, where the sweep was started: {error.strerror}"
            ) from None
        arguments = [*command["arguments"], *overrides, _in_folder(folder)]
        sys.argv = [f"{sys.argv[0].partition(' ')[0]} train", *arguments]
        print(shlex.join(["tvf", "train", *arguments]))
        try:
            train()
        except SystemExit as error:
            if error.code not in (0, 1):
                raise
            unfinished |= error.code == 1
    if unfinished:
        raise SystemExit(1)


@contextmanager
def _told() -> Iterator[None]:
    """Turn mistakes into messages, but for those who debug."""
    try:
        yield
    except (InputError, HydraException, OmegaConfBaseException, OSError) as error:
        if os.environ.get("TVF_DEBUG") == "1":
            raise
        raise SystemExit(f"error: {explain_error(error)}") from None


def status(arguments: list[str]) -> None:
    """Print how the jobs of a sweep stand, from its files: the sweep may be running, or dead."""
    folder, others = sweep_folder("status", arguments)
    if others:
        raise SystemExit("error: write tvf status DIR, the sweep's folder.")
    print_status(folder)


def report(arguments: list[str]) -> None:
    """Write the comparison of one or more sweeps, which may be running, in a format of tvf.sweep.report."""
    from tvf.records import read_sweep
    from tvf.report import FORMATS, render_report, write_files

    parser = argparse.ArgumentParser("tvf report", allow_abbrev=False)
    parser.add_argument("folders", nargs="*", metavar="DIR", help="the sweep's folder")
    parser.add_argument("--format", default="html", choices=FORMATS)
    parser.add_argument("--output", metavar="FOLDER")
    given = parser.parse_args(arguments)
    if not given.folders:
        raise SystemExit("error: write tvf report DIR, the sweep's folder.")
    folders = list(dict.fromkeys(sweep_folder("report", [each])[0] for each in given.folders))
    with _told():
        rows = [row for folder in folders for row in read_sweep(folder)]
        if not rows:
            raise InputError(
                f"{' and '.join(map(str, folders))}: no job has begun, and sweep.json names none."
            )
        files = render_report(folders, rows, given.format)
        if given.output == "-":
            if given.format not in ("md", "json"):
                raise InputError(f"--output - is for md and json: {given.format} goes to a folder.")
            print(*(content.decode() for content in files.values()), end="")
            return
        into = Path(given.output) if given.output else folders[0] if len(folders) == 1 else Path()
        try:
            paths = write_files(files, into)
        except OSError as error:
            where = error.filename or into
            raise InputError(
                f"{where} cannot be written ({error.strerror}): choose a folder with --output."
            ) from error
        print(*paths, sep="\n")


def dashboard(arguments: list[str]) -> None:
    """Save a workspace and a report of a sweep's runs at W&B, and print where they are."""
    from tvf.records import read_sweep
    from tvf.report import compare, publish_dashboard, render_markdown, test_sentence

    folder, others = sweep_folder("dashboard", arguments)
    if others:
        raise SystemExit("error: write tvf dashboard DIR, the folder of one sweep.")
    rows = read_sweep(folder)
    with _told():
        tracked = [row for row in rows if row["wandb_run_id"]]
        comparisons = compare(tracked)
        if not comparisons:
            raise InputError(
                f"{folder}: no job has a W&B run (tracker=none?). tvf report {folder} needs none."
            )
        if len(comparisons) > 1:
            titles = "; ".join(each.title for each in comparisons)
            raise InputError(
                f"{folder}: its jobs cannot be compared on one dashboard ({titles}): sweep them apart."
            )
        (comparison,) = comparisons
        config = comparison.configurations[0].jobs[0]["config"]
        for url in publish_dashboard(
            *(config["project"], folder.name, comparison.score_key),
            recommendation=f"{comparison.choice.text} {test_sentence(comparison)}".strip(),
            table=render_markdown([folder], comparisons).partition("\n\n")[2],
            entity=config["tracker"].get("entity"),
            auroc=any(row["val_auroc"] is not None for row in tracked),
        ):
            print(url)


def wandb_sweep(overrides: list[str]) -> None:
    """Print the YAML of a sweep for W&B's own agents, whose jobs were all checked as far as one value goes."""
    from tvf.config import validate_config
    from tvf.sweep import read_grid, wandb_sweep_yaml

    with _told():
        fixed, varied = read_grid(overrides)
        first = {key: values[0] for key, values in varied.items()}
        for key, values in varied.items():
            for value in values:
                validate_config(
                    _compose(
                        [
                            *fixed,
                            *(f"{key}={value}" for key, value in (first | {key: value}).items()),
                        ]
                    )
                )
        config = to_plain(_compose([*fixed, *(f"{key}={value}" for key, value in first.items())]))
        if str(config["tracker"].get("_target_")).endswith("NoTracker"):
            raise InputError(
                "tracker=none is refused: W&B would never hear of the score that it is to maximise."
            )
        print(
            wandb_sweep_yaml(fixed, varied, f"val_{METRICS[metric_of(config)]}", config["project"]),
            end="",
        )


def groups(arguments: list[str]) -> None:
    """Print, as a Markdown table, which groups of the chosen backbone each fraction trains."""
    from tvf.models import tabulate_groups

    folder, overrides = read_config_dir(arguments)
    if folder:
        overrides.append(f"hydra.searchpath=['file://{folder}']")
    with _told():
        cfg = _compose(overrides)
        backbone = build(to_plain(cfg.backbone), "backbone", num_classes=1)
        model = to_plain(cfg.model)
        unit, direction = model.get("unit") or "groups", model.get("direction") or "top"
        print(
            tabulate_groups(
                backbone.module,
                backbone.groups,
                unit,
                direction=direction,
                names=model.get("groups"),
                train=model.get("train"),
            )
        )


def store(arguments: list[str]) -> None:
    """List what the store holds, or remove what no job uses."""
    from tvf.store import StoreOptions, clear_store, format_bytes, list_entries

    action, *rest = arguments or [""]
    if action not in ("info", "clear") or any(
        not each.startswith("store.dir=") or each == "store.dir=" for each in rest
    ):
        raise SystemExit(
            "error: write tvf store info or clear, and store.dir=DIR for another store than the usual one."
        )
    folder = StoreOptions(dir=next((each.partition("=")[2] for each in rest), None)).path()
    try:
        if action == "clear":
            removed, total, size = clear_store(folder)
            used = f"; running jobs use the other {total - removed}" if removed < total else ""
            print(
                f"removed {removed} of {total} entries, {format_bytes(size)}, from {folder}{used}"
            )
            return
        entries = list_entries(folder)
    except OSError as error:
        raise SystemExit(f"error: {error.filename or folder}: {error.strerror or error}") from None
    if not folder.is_dir():
        print(f"{folder}: there is no such folder")
        return
    total = (
        f"{len(entries)} entries, {format_bytes(sum(entry.size for entry in entries))}"
        if entries
        else "empty"
    )
    print(f"{folder}: {total}")
    for entry in sorted(entries, key=lambda entry: -entry.used):
        when = datetime.fromtimestamp(entry.used).isoformat(" ", "minutes")
        print(
            f"{format_bytes(entry.size):>8}  {when}  {'in use  ' if entry.in_use else ''}{entry.about}"
        )


def _compose(overrides: list[str]) -> DictConfig:
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return hydra.compose("config", overrides)


def sweep_folder(command: str, arguments: list[str]) -> tuple[Path, list[str]]:
    """The sweep's folder that a command's arguments begin with, and the rest; SystemExit if it is none."""
    if not arguments or "=" in arguments[0]:
        raise SystemExit(f"error: write tvf {command} DIR, the sweep's folder.")
    folder = Path(os.path.normpath(Path(arguments[0]).absolute()))
    if not folder.is_dir():
        raise SystemExit(
            f"error: there is no folder {folder}: write tvf {command} DIR, the sweep's folder."
        )
    if not (folder / "sweep.json").is_file():
        found = [*folder.glob("*/sweep.json"), *folder.glob("*/*/sweep.json")]
        if sweeps := sorted(found, key=lambda path: path.stat().st_mtime):
            remedy = f"It holds sweeps, the newest of them {sweeps[-1].parent}."
        elif (folder.parent / "sweep.json").is_file():
            remedy = f"It belongs to the sweep in {folder.parent}."
        elif command == "resume":
            remedy = (
                "A job by itself goes on when its command is given again with hydra.run.dir=DIR."
            )
        else:
            remedy = "That folder holds sweep.json and a folder for each job."
        raise SystemExit(
            f"error: {folder} is not the folder of a sweep: it has no sweep.json. {remedy}"
        )
    if not read_json(folder / "sweep.json"):
        print(
            f"{folder / 'sweep.json'} cannot be read: commands, and jobs that wait, are unknown.",
            file=sys.stderr,
        )
    return folder, arguments[1:]
