"""What the jobs of a sweep left on disk, as rows: a table for the terminal, results.csv for everything else."""

import csv
import io
import sys
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table
from yaml import YAMLError

from tvf.files import read_json, write_whole
from tvf.tracking import read_status

COLUMNS = [
    *("folder", "name", "state", "model", "backbone", "data", "seed", "pct_unfreeze", "unfrozen_groups"),
    *("trainable_params", "total_params", "epochs", "best_epoch", "val_loss", "val_acc", "test_loss", "test_acc"),
    *("train_seconds", "peak_memory_mb", "wandb_run_id", "wandb_mode", "wandb_url", "overrides", "error"),
]
# What the table shows in columns of its own; other overrides that differ between jobs share one.
SHOWN = ("model", "model.pct_unfreeze", "seed")


def report(folder: Path, jobs: frozenset[str]) -> bool:
    """Print the table of the sweep in `folder` and write its results.csv; whether any of its jobs is not done.

    `jobs` are the names of the job folders that should be there.
    """
    rows = read_jobs(folder)
    write_csv(folder / "results.csv", rows)
    # Where nobody looks (a pipe, a log file) a line may be as long as it needs.
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table(rows))
    print(f"results: {folder / 'results.csv'}")
    if any(row["wandb_mode"] == "offline" for row in rows):
        print(f"W&B: offline; to upload: wandb sync {folder}/*/wandb/offline-run-*")
    unfinished = [row for row in rows if row["state"] != "done"]
    for row in unfinished:
        log = folder / row["folder"] / "job.log"
        print(f"{row['name']} {row['state']}: {row['error']} ({log})")
    missing = jobs - {row["folder"] for row in rows}
    if missing:
        print(f"never started: {', '.join(sorted(missing))}")
    return bool(missing or any(row["folder"] in jobs for row in unfinished))


def read_jobs(folder: Path) -> list[dict[str, Any]]:
    """One row for each job folder below `folder`, by fraction, then name. One whose process is gone is interrupted."""
    rows = []
    for job in (path.parent for path in folder.glob("*/status.json")):
        status = read_status(job)
        if not status:
            print(f"{job / 'status.json'} is not a job's status: its folder is left out.")
            continue
        row = dict.fromkeys(COLUMNS) | read_json(job / "summary.json")
        row |= {key: status[key] for key in ("name", "state", "error")}
        row |= {"folder": job.name, "overrides": _overrides(job)}
        if row["state"] == "running" and not _is_held(job / ".lock"):
            row["state"], row["error"] = "interrupted", "its process is gone"
        elif row["error"] == "interrupted":
            row["state"] = "interrupted"
        rows.append({key: row[key] for key in COLUMNS})
    return sorted(rows, key=lambda row: (row["pct_unfreeze"] is None, row["pct_unfreeze"], row["name"], row["folder"]))


def _overrides(job: Path) -> list[str]:
    try:
        return list(OmegaConf.load(job / ".hydra" / "overrides.yaml"))
    except (OSError, YAMLError):
        return []


def _is_held(lock_file: Path) -> bool:
    """Whether a process holds the job's lock: then it still trains."""
    try:
        with FileLock(lock_file, timeout=0):
            return False
    except Timeout:
        return True


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the rows under their column names; lists are joined with spaces."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    for row in rows:
        writer.writerow({key: " ".join(value) if isinstance(value, list) else value for key, value in row.items()})
    write_whole(path, text.getvalue().encode())


def table(rows: list[dict[str, Any]]) -> Table:
    """The rows for a person: what trained, how well it did, what it took."""
    shown = Table()
    for heading in ("fraction", "groups", "trainable"):
        shown.add_column(heading, justify="right")
    for heading in ("val_acc", "test_acc", "seconds"):
        shown.add_column(heading, justify="right")
    for heading in ("state", "W&B name"):
        shown.add_column(heading, overflow="fold")
    common = set.intersection(*(set(row["overrides"]) for row in rows)) if rows else set()
    varied = [[o for o in row["overrides"] if o not in common and o.partition("=")[0] not in SHOWN] for row in rows]
    if any(varied):
        shown.add_column("overrides", overflow="fold")
    for row, others in zip(rows, varied, strict=True):
        groups = row["unfrozen_groups"]
        shown.add_row(
            _number(row["pct_unfreeze"], "g"),
            "" if groups is None else str(len(groups)),
            _number(row["trainable_params"], ",d"),
            _number(row["val_acc"], ".3f"),
            _number(row["test_acc"], ".3f"),
            _number(row["train_seconds"], ".1f"),
            row["state"],
            row["name"],
            *([" ".join(others)] if any(varied) else []),
        )
    return shown


def where(folder: Path, summary: dict[str, Any]) -> str:
    """Where a single job's results lie."""
    if summary["wandb_mode"] == "offline":
        return f"results: {folder}\nW&B: offline; to upload: wandb sync {folder}/wandb/offline-run-*"
    return f"results: {folder}" + (f"\nW&B: {summary['wandb_url']}" if summary["wandb_url"] else "")


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
