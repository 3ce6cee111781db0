"""Read a sweep's jobs back from disk as rows: plain data for tables, statistics and charts.

One row per job. A damaged or foreign file affects only its own job's row.
"""

import csv
import io
import json
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import StatisticsError, median
from typing import Any

import yaml

from tvf.config import REPETITIONS, ignored_options, known_fraction, method_of
from tvf.files import finite, read_json
from tvf.metrics import METRICS, metric_of
from tvf.records.job import STOPPED, is_running, read_config, read_status
from tvf.records.race import race_by_job
from tvf.records.sweep import (
    read_configs,
    read_dropped,
    read_trials,
    sweep_name,
    trials_by_job,
)

Row = dict[str, Any]

RESULTS = [
    "trainable_params",
    "total_params",
    "epochs",
    "best_epoch",
    "val_loss",
    "val_acc",
    "val_macro_f1",
    "val_auroc",
    "test_loss",
    "test_acc",
    "test_macro_f1",
    "test_auroc",
    "train_seconds",
    "prefix_seconds",
    "images_per_second",
    "peak_memory_mb",
]
DIVISIONS = ["split_seed", "outer_fold", "fold", "train_limit"]  # which images it trains on
NUMBERS = ["seed", "pct_unfreeze", *RESULTS]
COLUMNS = [
    "sweep",
    "folder",
    "name",
    "state",
    "model",
    "backbone",
    "data",
    "metric",
    "seed",
    *DIVISIONS,
    "pct_unfreeze",
    "unfrozen_groups",
    *RESULTS,
    "wandb_run_id",
    "wandb_mode",
    "wandb_url",
    "overrides",
    "error",
]
NOT_STARTED = ("waiting", "stopped")  # states of jobs that have no folder
PROGRESS = ("epoch", "left")  # of a running job, for the terminal's table only
FILES = ("config", "history", "summary", "path")  # contents of the job's files, and its folder
RACE = "race"  # what a race has decided about the job's configuration, else None
DROPPED = "dropped"  # the epoch after which halving or a search dropped the job, else None
TRIAL = "trial"  # the state of the search's trial that the job belongs to, else None
TRIALS = "trials"  # how many trials that search has, else None
# Overrides that have their own columns in a table.
SHOWN = ("model", "model.pct_unfreeze", *REPETITIONS, "stop_after")


def read_sweep(folder: Path) -> list[Row]:
    """Return one row per job of the sweep in `folder`; jobs that have not started are waiting.

    Those that a race does not need are stopped.
    """
    rows = read_jobs(folder)
    search, races = _read_search(folder), race_by_job(folder)
    started = {row["folder"] for row in rows}
    for name, config in read_configs(folder).items():
        if name not in started:
            row = _row_before_start(folder, config)
            race = races.get(name)
            state = "stopped" if race and race["stopped"] else "waiting"
            row |= {"folder": name, "name": config.get("name"), "state": state, "overrides": []}
            rows.append(row | search.get(name, {}) | {RACE: race})
    return rows


def is_tracked(row: Row) -> bool:
    """Whether a job has a W&B run, or may get one: its tracker is not none."""
    tracker = (row["config"] or {}).get("tracker") or {}
    untracked = str(tracker.get("_target_")).endswith("NoTracker")
    return not untracked or bool(row["wandb_run_id"] or row["wandb_url"])


def is_stopped_by_race(row: Row) -> bool:
    """Whether a race has decided without this job: it need not train, or not to its end."""
    race = row[RACE]
    return row["state"] in ("stopped", "interrupted") and bool(race and race["stopped"])


def read_jobs(folder: Path) -> list[Row]:
    """Return one row per job folder in `folder`, sorted by fraction, then by name.

    A job whose process is gone is interrupted; one that a search will not resume is pruned. Numbers
    that are not finite become None. Folders without a valid record are left out, with a message on
    stderr.
    """
    dropped, search = read_dropped(folder), _read_search(folder)
    races = race_by_job(folder)
    found = (read_job(path.parent, dropped) for path in folder.glob("*/status.json"))
    rows = [row | search.get(row["folder"], {}) for row in found if row is not None]
    for row in rows:
        row[RACE] = races.get(row["folder"])
        if row["state"] == "paused" and row[TRIAL] == "pruned":
            row["state"] = "pruned"
    return sorted(rows, key=_sort_key)


def _read_search(folder: Path) -> dict[str, Row]:
    """What rows say of the search in `folder`, by its jobs."""
    trials = read_trials(folder)
    return {
        name: {TRIAL: trial.get("state"), TRIALS: len(trials)}
        for name, trial in trials_by_job(trials).items()
    }


def read_job(job: Path, dropped: Mapping[str, int] | None = None) -> Row | None:
    """Return the row of the job in folder `job`; None, with a message, without a valid record.

    `dropped` are the last epochs of jobs that halving or a search dropped, by folder.
    """
    status = read_status(job)
    if not status:
        print(f"{job / 'status.json'} is not a job's status: skipping its folder.", file=sys.stderr)
        return None
    row = _read_job(job, status) | {DROPPED: (dropped or {}).get(job.name)}
    if not _is_valid(row):
        print(f"{job} does not hold a valid job record: skipping it.", file=sys.stderr)
        return None
    return row | {key: finite(row[key]) for key in NUMBERS} | _progress(row)


def _sort_key(row: Row) -> tuple[Any, ...]:
    return (row["pct_unfreeze"] is None, row["pct_unfreeze"], row["name"], row["folder"])


def _read_job(job: Path, status: dict[str, Any]) -> Row:
    """Return the row of the job in folder `job`, whose numbers are not checked yet."""
    summary = _valid_summary(read_json(job / "summary.json"))
    row = _row_before_start(job.parent, read_config(job))
    row |= {key: summary[key] for key in COLUMNS if key in summary}
    row |= {key: status.get(key) for key in ("state", "error", "wandb_run_id", "wandb_mode")}
    row |= {
        "name": str(status.get("name")),
        "folder": job.name,
        "overrides": _overrides(job),
        "history": read_history(job),
        "summary": summary,
        "path": str(job),
    }
    if row["state"] == "running" and not is_running(job):
        if (now := read_status(job)) != status:  # it has ended while its files were read
            return _read_job(job, now)
        row["error"] = STOPPED[1]
    if row["error"] in STOPPED:
        row["state"] = "interrupted"
    return row


def _is_valid(row: Row) -> bool:
    numbers = all(isinstance(row[key], int | float | None) for key in NUMBERS)
    return numbers and isinstance(row["seed"], int | None) and row["metric"] in METRICS


def _row_before_start(folder: Path, config: dict[str, Any]) -> Row:
    """Return a row filled from a job's config, for the sweep in `folder`."""
    row: Row = dict.fromkeys([*COLUMNS, *PROGRESS, *FILES, DROPPED, RACE, TRIAL, TRIALS])
    row |= {
        "sweep": sweep_name(folder),
        "config": config,
        "history": [],
        "summary": {},
        "metric": "accuracy",
    }
    model = config.get("model")
    if isinstance(model, dict) and "_target_" in model:
        row["pct_unfreeze"] = known_fraction(model)
        row["model"] = method_of(model).choice
    elif isinstance(model, dict):
        row["pct_unfreeze"] = model.get("pct_unfreeze") or 0
    nodes = [config.get(key, {}) for key in ("model", "data", "store", "tracker")]
    if not all(isinstance(node, dict) for node in nodes):
        row["config"] = config = {}  # damaged
    if "data" in config:
        row["metric"] = str(metric_of(config))
        row |= _division(config["data"])
    return row | {key: config.get(key) for key in ("seed", "epochs")}


def _division(data: dict[str, Any]) -> dict[str, Any]:
    """The options that choose a job's training images; a fold only where there are folds."""
    values = {name: data.get(name) for name in DIVISIONS}
    for several, one in (("folds", "fold"), ("outer_folds", "outer_fold")):
        if data.get(several) is None:
            values[one] = None
    return values


def read_history(job: Path) -> list[dict[str, Any]]:
    """Return the epochs of a job; none if its metrics.jsonl is missing or damaged."""
    try:
        text = (job / "metrics.jsonl").read_text()
        epochs = [finite(json.loads(line)) for line in text.splitlines()]
        valid = all(
            isinstance(value, int | float | None) for epoch in epochs for value in epoch.values()
        )
        return [epoch for epoch in epochs if epoch["epoch"] > 0] if valid else []
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _valid_summary(summary: dict[str, Any]) -> dict[str, Any]:
    """Return the summary without values of the wrong type, so that one file cannot break a page."""
    checks: dict[str, Any] = {}
    for key in ("unfrozen_groups", "approximations", "classes"):
        checks[key] = lambda value: _is_list_of(value, str)
    for key in ("versions", "machine"):
        checks[key] = lambda value: isinstance(value, dict)
    for key in ("metric", "name", "wandb_url"):
        checks[key] = lambda value: isinstance(value, str | None)
    for split in ("val", "test"):
        checks[f"{split}_recall"] = lambda value: _is_list_of(value, int | float | None)
        checks[f"{split}_confusion"] = lambda value: (
            value is None
            or (_is_list_of(value, list) and all(_is_list_of(line, int) for line in value))
        )
    return {key: value for key, value in summary.items() if key not in checks or checks[key](value)}


def _is_list_of(value: Any, kind: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) for item in value)


def _progress(row: Row) -> dict[str, Any]:
    """Return how many of its epochs a job has trained, and the estimated seconds left."""
    epochs, history = row["epochs"], row["history"]
    try:
        left = (epochs - len(history)) * median(epoch["epoch_seconds"] for epoch in history)
        return {"epoch": f"{len(history)}/{epochs}", "left": None if row[DROPPED] else left}
    except (KeyError, TypeError, StatisticsError):
        return {"epoch": f"0/{epochs}" if epochs else None, "left": None}


@cache  # they never change, and a live table reads them every two seconds
def _overrides(job: Path) -> list[str]:
    try:
        listed = yaml.safe_load((job / ".hydra" / "overrides.yaml").read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return []
    if not isinstance(listed, list):
        return []
    # Hydra escapes colons in swept values: data.dir=a\\:b.
    return [str(override).replace("\\:", ":") for override in listed]


def varied_overrides(rows: Sequence[Row], beside: Sequence[str] = SHOWN) -> list[list[str]]:
    """Return each row's overrides, without those that all started jobs share.

    Also leaves out the keys in `beside`, which a table shows in other columns, and options that a
    job's model ignores.
    """
    started = [set(row["overrides"]) for row in rows if row["state"] not in NOT_STARTED]
    common = set.intersection(*started) if started else set()
    hiding = [{*beside, *_ignored_keys(row)} for row in rows]
    return [
        [
            override
            for override in row["overrides"]
            if override not in common and override.partition("=")[0] not in hidden
        ]
        for row, hidden in zip(rows, hiding, strict=True)
    ]


def _ignored_keys(row: Row) -> set[str]:
    model = (row["config"] or {}).get("model")
    if not isinstance(model, dict) or "_target_" not in model:
        return set()
    return {f"model.{key}" for key in ignored_options(model)}


def csv_text(rows: Sequence[Row], columns: Sequence[str] = COLUMNS) -> str:
    """Return these columns of the rows as CSV with a header; lists are joined with spaces."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    for row in rows:
        cells = {key: row.get(key) for key in columns}
        writer.writerow(
            {
                key: " ".join(value) if isinstance(value, list) else value
                for key, value in cells.items()
            }
        )
    return text.getvalue()
