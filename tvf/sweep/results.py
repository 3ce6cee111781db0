"""What the jobs of a sweep left on disk, as rows: a table for the terminal, results.csv for everything else."""

import csv
import io
import json
import shlex
import sys
from functools import cache
from pathlib import Path
from statistics import StatisticsError, median
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console
from rich.live import Live
from rich.table import Table
from yaml import YAMLError

from tvf.files import read_json, write_whole
from tvf.sweep.manifest import read_configs
from tvf.tracking import LAST_CHECKPOINT, STOPPED, how_to_send, is_live, read_status

COLUMNS = [
    *("folder", "name", "state", "model", "backbone", "data", "seed", "pct_unfreeze", "unfrozen_groups"),
    *("trainable_params", "total_params", "epochs", "best_epoch", "val_loss", "val_acc", "test_loss", "test_acc"),
    *("train_seconds", "peak_memory_mb", "wandb_run_id", "wandb_mode", "wandb_url", "overrides", "error"),
]
NUMBERS = [
    *("seed", "pct_unfreeze", "trainable_params", "total_params", "epochs", "best_epoch", "val_loss", "val_acc"),
    *("test_loss", "test_acc", "train_seconds", "peak_memory_mb"),
]
SO_FAR = ("epoch", "last_val_acc", "left")  # of a job that runs, for the table alone
# What the table shows in columns of its own; other overrides that differ between jobs share one.
SHOWN = ("model", "model.pct_unfreeze", "seed")


def report(folder: Path, jobs: frozenset[str]) -> bool:
    """Print the table of the sweep in `folder` and write its results.csv; whether any of its jobs is not done.

    `jobs` are the names of the job folders that should be there.
    """
    rows = read_jobs(folder)
    try:
        write_csv(folder / "results.csv", rows)
        written = f"results: {folder / 'results.csv'}"
    except OSError as error:
        written = f"{folder / 'results.csv'} cannot be written: {error.strerror}"
    # Where nobody looks (a pipe, a log file) a line may be as long as it needs.
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table(rows))
    print(written)
    for mode in ("offline", "unsynced"):
        kept = [shlex.quote(f"{folder}/{row['folder']}") for row in rows if row["wandb_mode"] == mode]
        if kept:
            every = [f"{shlex.quote(str(folder))}/*"] if len(kept) == len(rows) else kept
            print(f"W&B: {mode}; to send it: {how_to_send(every, mode)}")
    unfinished = [row for row in rows if row["state"] != "done"]
    for row in unfinished:
        log = folder / row["folder"] / "job.log"
        lines = str(row["error"] or "").strip().splitlines()
        reason = " … ".join(lines if len(lines) < 2 else (lines[0], lines[-1]))
        print(f"{row['name']} {row['state']}{f': {reason}' if reason not in ('', row['state']) else ''} ({log})")
    missing = jobs - {row["folder"] for row in rows}
    if missing:
        print(f"never started: {', '.join(sorted(missing))}")
    if missing or unfinished:
        print(f"to go on with what is not done: tvf resume {shlex.quote(str(folder))}")
    return bool(missing or any(row["folder"] in jobs for row in unfinished))


def show(folder: Path) -> None:
    """Print the table of the sweep in `folder` as it stands, waiting jobs included."""
    Console(width=None if sys.stdout.isatty() else 200).print(standing(folder))


def watch(folder: Path) -> Live:
    """The same table in a terminal, kept up to date until it is stopped."""
    live = Live(get_renderable=lambda: standing(folder), refresh_per_second=0.5, transient=True)
    live.start()
    return live


def standing(folder: Path) -> Table:
    """The table of all jobs that have begun, by what their files say, and of those that have not."""
    rows = read_jobs(folder)
    begun = {row["folder"] for row in rows}
    for name, config in read_configs(folder).items():
        if name not in begun:
            row = dict.fromkeys((*COLUMNS, *SO_FAR)) | {"folder": name, "name": config.get("name"), "state": "waiting"}
            rows.append(row | _planned(config) | {"overrides": []})
    return table(rows)


def read_jobs(folder: Path) -> list[dict[str, Any]]:
    """One row for each job folder below `folder`, by fraction, then name. One whose process is gone is interrupted."""
    rows = []
    for job in (path.parent for path in folder.glob("*/status.json")):
        status = read_status(job)
        if not status:
            print(f"{job / 'status.json'} is not a job's status: its folder is left out.")
            continue
        row = dict.fromkeys(COLUMNS) | _planned(read_json(job / "config.json")) | read_json(job / "summary.json")
        row |= {key: status.get(key) for key in ("name", "state", "error", "wandb_run_id", "wandb_mode")}
        row |= _so_far(job)
        row |= {"folder": job.name, "overrides": _overrides(job)}
        if row["state"] == "running" and not is_live(job):
            row["error"] = STOPPED[1]
        if row["error"] in STOPPED:
            row["state"] = "interrupted"
        if any(not isinstance(row[key], int | float | None) for key in NUMBERS):
            print(f"{job} holds no job's record: it is left out.")
            continue
        rows.append({key: row[key] for key in (*COLUMNS, *SO_FAR)})
    return sorted(rows, key=lambda row: (row["pct_unfreeze"] is None, row["pct_unfreeze"], row["name"], row["folder"]))


def _planned(config: dict[str, Any]) -> dict[str, Any]:
    """What is known of a job before it is done."""
    model = config.get("model")
    fraction = (model.get("pct_unfreeze") or 0) if isinstance(model, dict) else None
    return {"pct_unfreeze": fraction, "seed": config.get("seed"), "epochs": config.get("epochs")}


def _so_far(job: Path) -> dict[str, Any]:
    """How many epochs of how many are trained, the last val_acc, and the seconds that the rest will take."""
    epochs: Any = read_json(job / "config.json").get("epochs")
    try:
        history = [json.loads(line) for line in (job / "metrics.jsonl").read_text().splitlines()]
        left = (epochs - len(history)) * median(epoch["epoch_seconds"] for epoch in history)
        return {"epoch": f"{len(history)}/{epochs}", "last_val_acc": history[-1]["val_acc"], "left": left}
    except (OSError, ValueError, KeyError, TypeError, StatisticsError):
        return {"epoch": f"0/{epochs}" if epochs else None, "last_val_acc": None, "left": None}


@cache  # they do not change, and a live table asks every other second
def _overrides(job: Path) -> list[str]:
    try:
        return list(OmegaConf.load(job / ".hydra" / "overrides.yaml"))
    except (OSError, YAMLError):
        return []


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the rows under their column names; lists are joined with spaces."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: " ".join(value) if isinstance(value, list) else value for key, value in row.items()})
    write_whole(path, text.getvalue().encode())


def table(rows: list[dict[str, Any]]) -> Table:
    """The rows for a person: what trained, how well it did, what it took."""
    shown = Table()
    seeds = len({row["seed"] for row in rows}) > 1
    for heading in ("fraction", *(["seed"] if seeds else []), "groups", "trainable"):
        shown.add_column(heading, justify="right")
    for heading in ("val_acc", "test_acc", "seconds"):
        shown.add_column(heading, justify="right")
    for heading in ("state", "W&B name"):
        shown.add_column(heading, overflow="fold")
    unfinished = any(row["state"] != "done" for row in rows)
    for heading in ("epoch", "left") if unfinished else ():
        shown.add_column(heading, justify="right")
    begun = [set(row["overrides"]) for row in rows if row["state"] != "waiting"]
    common = set.intersection(*begun) if begun else set()
    varied = [[o for o in row["overrides"] if o not in common and o.partition("=")[0] not in SHOWN] for row in rows]
    if any(varied):
        shown.add_column("overrides", overflow="fold")
    for row, others in zip(rows, varied, strict=True):
        groups = row["unfrozen_groups"]
        shown.add_row(
            _number(row["pct_unfreeze"], "g"),
            *([_number(row["seed"], "d")] if seeds else []),
            "" if groups is None else str(len(groups)),
            _number(row["trainable_params"], ",d"),
            _number(row["last_val_acc"] if row["val_acc"] is None else row["val_acc"], ".3f"),
            _number(row["test_acc"], ".3f"),
            _number(row["train_seconds"], ".1f"),
            row["state"],
            row["name"],
            *((row["epoch"] or "", _duration(row["left"])) if unfinished else ()),
            *([" ".join(others)] if any(varied) else []),
        )
    return shown


def where(folder: Path, summary: dict[str, Any]) -> str:
    """Where a single job's results lie."""
    if command := how_to_send([shlex.quote(str(folder))], summary["wandb_mode"]):
        return f"results: {folder}\nW&B: {summary['wandb_mode']}; to send it: {command}"
    return f"results: {folder}" + (f"\nW&B: {summary['wandb_url']}" if summary["wandb_url"] else "")


def how_to_go_on(folder: Path) -> str:
    """What to do about a single job that has ended before it was done."""
    lines = [f"log: {folder / 'job.log'}"]
    if (folder / LAST_CHECKPOINT).exists():
        lines.append(
            f"to go on from its checkpoint, give its command again with hydra.run.dir={shlex.quote(str(folder))}"
        )
    if command := how_to_send([shlex.quote(str(folder))], read_status(folder).get("wandb_mode")):
        lines.append(f"what W&B has not got: {command}")
    return "\n".join(lines)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _duration(seconds: float | None) -> str:
    return "" if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
