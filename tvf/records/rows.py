"""What the jobs of a sweep left on disk, as rows: plain data that tables, statistics and charts are made from."""

import csv
import io
import json
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from statistics import StatisticsError, median
from typing import Any

import yaml

from tvf.config import is_transfer, known_fraction
from tvf.files import finite, read_json
from tvf.metrics import METRICS, metric_of
from tvf.records.job import STOPPED, is_running, read_status
from tvf.records.sweep import read_configs, read_dropped

Row = dict[str, Any]

NUMBERS = [
    *("seed", "pct_unfreeze", "trainable_params", "total_params", "epochs", "best_epoch"),
    *(
        "val_loss",
        "val_acc",
        "val_macro_f1",
        "val_auroc",
        "test_loss",
        "test_acc",
        "test_macro_f1",
        "test_auroc",
    ),
    *("train_seconds", "prefix_seconds", "images_per_second", "peak_memory_mb"),
]
COLUMNS = [
    *(
        "sweep",
        "folder",
        "name",
        "state",
        "model",
        "backbone",
        "data",
        "metric",
        *NUMBERS[:2],
        "unfrozen_groups",
    ),
    *(*NUMBERS[2:], "wandb_run_id", "wandb_mode", "wandb_url", "overrides", "error"),
]
SO_FAR = ("epoch", "left")  # of a job that runs, for the terminal's table alone
SHOWN = (
    "model",
    "model.pct_unfreeze",
    "seed",
    "stop_after",
)  # overrides that a table has in columns of their own
WHOLE = ("config", "history", "summary")  # its files as they are
DROPPED = (
    "dropped"  # after how many epochs successive halving has dropped the job; None: it has not
)


def read_sweep(folder: Path) -> list[Row]:
    """One row for each job of the sweep in `folder`, those that have not begun included (waiting)."""
    rows = read_jobs(folder)
    begun = {row["folder"] for row in rows}
    for name, config in read_configs(folder).items():
        if name not in begun:
            row = _blank(folder, config) | {
                "folder": name,
                "name": config.get("name"),
                "state": "waiting",
            }
            rows.append(row | {"overrides": []})
    return rows


def read_jobs(folder: Path) -> list[Row]:
    """One row for each job folder below `folder`, by fraction, then name. One whose process is gone is interrupted.

    A number that is not finite is None.
    """
    rows, dropped = [], read_dropped(folder)
    for job in (path.parent for path in folder.glob("*/status.json")):
        status = read_status(job)
        if not status:
            print(
                f"{job / 'status.json'} is not a job's status: its folder is left out.",
                file=sys.stderr,
            )
            continue
        summary = _sound(read_json(job / "summary.json"))
        row = _blank(folder, read_json(job / "config.json")) | {
            key: summary[key] for key in COLUMNS if key in summary
        }
        row |= {
            key: status.get(key) for key in ("name", "state", "error", "wandb_run_id", "wandb_mode")
        }
        row["name"] = str(row["name"])
        row |= {
            "folder": job.name,
            "overrides": _overrides(job),
            "history": read_history(job),
            "summary": summary,
        }
        row[DROPPED] = dropped.get(job.name)
        if row["state"] == "running" and not is_running(job):
            row["error"] = STOPPED[1]
        if row["error"] in STOPPED:
            row["state"] = "interrupted"
        numbers = all(isinstance(row[key], int | float | None) for key in NUMBERS)
        if not numbers or not isinstance(row["seed"], int | None) or row["metric"] not in METRICS:
            print(f"{job} holds no job's record: it is left out.", file=sys.stderr)
            continue
        rows.append(row | {key: finite(row[key]) for key in NUMBERS} | _so_far(row))
    return sorted(
        rows,
        key=lambda row: (
            row["pct_unfreeze"] is None,
            row["pct_unfreeze"],
            row["name"],
            row["folder"],
        ),
    )


def _blank(folder: Path, config: dict[str, Any]) -> Row:
    """What is known of a job before it has begun."""
    row = dict.fromkeys((*COLUMNS, *SO_FAR, *WHOLE, DROPPED))
    row |= {
        "sweep": folder.name,
        "config": config,
        "history": [],
        "summary": {},
        "metric": "accuracy",
    }
    if isinstance(model := config.get("model"), dict):
        row |= {
            "pct_unfreeze": known_fraction(model)
            if "_target_" in model
            else model.get("pct_unfreeze") or 0
        }
        row |= (
            {"model": "transfer" if is_transfer(model) else "finetune"}
            if "_target_" in model
            else {}
        )
    if any(
        not isinstance(config.get(node, {}), dict) for node in ("model", "data", "store", "tracker")
    ):
        row["config"] = config = {}  # nobody knows what was trained
    if "data" in config:
        row["metric"] = str(metric_of(config))
    return row | {key: config.get(key) for key in ("seed", "epochs")}


def read_history(job: Path) -> list[dict[str, Any]]:
    """The epochs of a job; none where its file is not as tvf writes it."""
    try:
        lines = [
            finite(json.loads(line)) for line in (job / "metrics.jsonl").read_text().splitlines()
        ]
        sound = all(
            isinstance(value, int | float | None) for line in lines for value in line.values()
        )
        return [line for line in lines if line["epoch"] > 0] if sound else []
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _sound(summary: dict[str, Any]) -> dict[str, Any]:
    """The summary without what is not of the kind that tvf writes: one job's file must not cost the whole page."""
    texts = ("unfrozen_groups", "approximations", "classes")
    kinds = {
        **dict.fromkeys(texts, lambda value: _list_of(value, str)),
        **dict.fromkeys(("versions", "machine"), lambda value: isinstance(value, dict)),
        **dict.fromkeys(
            ("metric", "name", "wandb_url"), lambda value: isinstance(value, str | None)
        ),
    }
    for part in ("val", "test"):
        kinds[f"{part}_recall"] = lambda value: _list_of(value, int | float | None)
        kinds[f"{part}_confusion"] = lambda value: (
            value is None or (_list_of(value, list) and all(_list_of(row, int) for row in value))
        )
    return {key: value for key, value in summary.items() if key not in kinds or kinds[key](value)}


def _list_of(value: Any, kind: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, kind) for each in value)


def _so_far(row: Row) -> dict[str, Any]:
    """How many epochs of how many are trained, and the seconds that the rest will take."""
    epochs, history = row["epochs"], row["history"]
    try:
        left = (epochs - len(history)) * median(epoch["epoch_seconds"] for epoch in history)
        return {"epoch": f"{len(history)}/{epochs}", "left": None if row[DROPPED] else left}
    except (KeyError, TypeError, StatisticsError):
        return {"epoch": f"0/{epochs}" if epochs else None, "left": None}


@cache  # they do not change, and a live table asks every other second
def _overrides(job: Path) -> list[str]:
    try:
        listed = yaml.safe_load((job / ".hydra" / "overrides.yaml").read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return []
    # Hydra escapes what a sweep was given plainly: block\\:layer3.
    return [str(each).replace("\\:", ":") for each in listed] if isinstance(listed, list) else []


def varied_overrides(rows: Sequence[Row], beside: Sequence[str] = SHOWN) -> list[list[str]]:
    """Of each row the overrides that not all have, but for those whose keys are shown `beside` them."""
    begun = [set(row["overrides"]) for row in rows if row["state"] != "waiting"]
    common = set.intersection(*begun) if begun else set()
    return [
        [
            each
            for each in row["overrides"]
            if each not in common and each.partition("=")[0] not in beside
        ]
        for row in rows
    ]


def csv_text(rows: Sequence[Row], columns: Sequence[str] = COLUMNS) -> str:
    """These columns of the rows under their names; lists are joined with spaces."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    for row in rows:
        known = {key: row.get(key) for key in columns}
        writer.writerow(
            {
                key: " ".join(value) if isinstance(value, list) else value
                for key, value in known.items()
            }
        )
    return text.getvalue()
