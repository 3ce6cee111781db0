"""Read what jobs left in their folders."""

import hashlib
import json
from pathlib import Path
from typing import Any

from tvf.files import BEST_WEIGHTS
from tvf.records.predictions import PREDICTIONS

TIMES = ("epoch_seconds", "images_per_second")


def metrics(folder: Path) -> list[dict[str, float]]:
    """Return the epochs of a job, without times."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def epochs_done(folder: Path) -> int:
    """How many epochs a running job has recorded; it may remove the file when it begins anew."""
    try:
        return len((folder / "metrics.jsonl").read_text().splitlines())
    except FileNotFoundError:
        return 0


def summary(folder: Path) -> dict[str, Any]:
    """Return a job's summary."""
    return json.loads((folder / "summary.json").read_text())


def folders(sweep: Path) -> dict[float, Path]:
    """The folder of each job that has begun, by its fraction."""
    configs = {path.parent: json.loads(path.read_text()) for path in sweep.glob("*/config.json")}
    return {config["model"]["pct_unfreeze"]: folder for folder, config in configs.items()}


def statuses(sweep: Path) -> dict[float, dict[str, Any]]:
    """The status of each job that has begun, by its fraction."""
    return {
        fraction: json.loads((folder / "status.json").read_text())
        for fraction, folder in folders(sweep).items()
    }


def digests(folder: Path) -> list[str]:
    """Digests of a job's predictions and its best weights."""
    files = [(folder / name).read_bytes() for name in (PREDICTIONS, BEST_WEIGHTS)]
    return [hashlib.sha256(content).hexdigest() for content in files]


def records(sweep: Path) -> dict[str, Any]:
    """What must not depend on where a job ran, of each job that is done, by its folder.

    Its epochs, scores and calibration, and digests of its predictions and its best weights.
    """
    found = {}
    for path in sweep.glob("*/summary.json"):
        done = json.loads(path.read_text())
        scores = {key: done[key] for key in done if key.startswith(("val_", "test_"))}
        del scores["test_seconds"]
        written = digests(path.parent)
        found[path.parent.name] = (metrics(path.parent), scores, done["calibration"], *written)
    return found
