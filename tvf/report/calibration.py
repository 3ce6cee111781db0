"""How far the probabilities of a configuration's trainings can be believed.

The figures are those that each job records; for jobs of earlier versions they are computed from its
predictions.
"""

from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tvf.records import PREDICTIONS, Predictions, Row, calibrate, confidence_bins, softmax
from tvf.report.validated import read_job

SPLITS = {"val": "validation", "test": "test"}
KINDS = ("raw", "scaled")  # before and after temperature scaling
SCORES = ("nll", "brier", "ece")


def calibration_of(job: Row) -> dict[str, Any] | None:
    """The temperature of a job and its scores by split, as `tvf.records.calibrate` returns them.

    None without predictions, with a single class, or if a logit is not finite. A job whose test
    images validate it has no test scores.
    """
    found = splits_of(job)
    if not found:
        return None
    recorded = job["summary"].get("calibration")
    if not _is_whole(recorded, found):
        path = Path(job["path"])
        recorded = _calibrate(path, (path / PREDICTIONS).stat().st_mtime_ns)
    if recorded is None:
        return None
    return {key: value for key, value in recorded.items() if key in ("temperature", *found)}


def splits_of(job: Row) -> dict[str, Predictions]:
    """The predictions of a job for validation and, apart from these, test images; may be empty."""
    found = read_job(job)
    if "val" not in found:
        return {}
    if job["config"]["data"].get("validate_on") == "test":
        found = {"val": found["val"]}
    filled = {split: each for split, each in found.items() if len(each)}
    return filled if "val" in filled and all(map(_is_sound, filled.values())) else {}


def mean_calibration(jobs: Sequence[Row]) -> dict[str, Any] | None:
    """The mean temperature and the mean scores of jobs, by split and "raw" or "scaled".

    Averages over the jobs that have them, whose number is `trainings`; None if none has.
    """
    known = [found for found in map(calibration_of, jobs) if found]
    if not known:
        return None
    temperatures = [found["temperature"] for found in known]
    means: dict[str, Any] = {
        "trainings": len(known),
        "temperature": float(np.mean(temperatures)),
        "lowest_temperature": min(temperatures),
        "highest_temperature": max(temperatures),
    }
    for split in SPLITS:
        if scores := [found[split] for found in known if split in found]:
            means[split] = {
                kind: {key: float(np.mean([each[kind][key] for each in scores])) for key in SCORES}
                for kind in KINDS
            }
    return means


def reliability(jobs: Sequence[Row], split: str, *, scaled: bool) -> list[dict[str, float]]:
    """Confidence and accuracy in bins that hold equally many predictions, all jobs together.

    For each bin the mean probability of the predicted class (`confidence`), the share of correct
    predictions (`correct`), and the number of `predictions`. Empty if no job has any.
    """
    confidence, hits = [], []
    for job in jobs:
        found = calibration_of(job)
        if found is None or (seen := splits_of(job).get(split)) is None:
            continue
        probabilities = softmax(seen.logits, found["temperature"] if scaled else 1.0)
        confidence.append(probabilities.max(1))
        hits.append(seen.logits.argmax(1) == seen.labels)
    if not confidence:
        return []
    together, right = np.concatenate(confidence), np.concatenate(hits)
    return [
        {
            "confidence": float(together[places].mean()),
            "correct": float(right[places].mean()),
            "predictions": len(places),
        }
        for places in confidence_bins(together)
    ]


def _is_sound(predictions: Predictions) -> bool:
    """Whether there are two classes or more, finite logits, and only labels of these classes."""
    logits, labels = predictions.logits, predictions.labels
    classes = logits.shape[1]
    known = labels.min() >= 0 and labels.max() < classes
    return bool(classes > 1 and known and np.isfinite(logits).all())


def _is_whole(recorded: Any, splits: Iterable[str]) -> bool:
    """Whether a record has the temperature and all scores of these splits, as numbers."""
    try:
        values = [recorded["temperature"]]
        for split in splits:
            values += [recorded[split][kind][key] for kind in KINDS for key in SCORES]
    except (KeyError, TypeError):
        return False
    return all(isinstance(value, float) and value >= 0 for value in values) and values[0] > 0


@cache  # charts, tables and pictures each ask for it
def _calibrate(path: Path, modified: int) -> dict[str, Any] | None:
    found = read_job({"path": path})
    return calibrate(
        {split: (each.logits, each.labels) for split, each in found.items() if len(each)}
    )
