"""Read what a job left in its folder."""

import json
from pathlib import Path
from typing import Any

TIMES = ("epoch_seconds", "images_per_second")


def metrics(folder: Path) -> list[dict[str, float]]:
    """Return the epochs of a job, without times."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def summary(folder: Path) -> dict[str, Any]:
    """Return a job's summary."""
    return json.loads((folder / "summary.json").read_text())
