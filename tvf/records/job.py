"""The record that every job keeps in its folder: config, status, epochs and results.

It does not depend on the job's tracker.
"""

import logging
import os
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from tvf.config import Config, has_relative_places, resolve_places, result_config
from tvf.files import (
    BEST_WEIGHTS,
    MODEL_CARD,
    finite,
    read_json,
    write_json,
    write_json_lines,
)
from tvf.lease import Holder, Lease, LeaseLost, lease_holder
from tvf.metrics import METRICS
from tvf.records.predictions import PREDICTIONS
from tvf.records.tracking import Run

log = logging.getLogger(__name__)

# The errors in status.json of jobs that were stopped from outside rather than failed.
STOPPED = ("interrupted", "its process is gone")
LEASE = ".lease"  # in a job's folder, held by the process that trains it; or in a sweep's


class JobRecord:
    """The files of a job: config.json, status.json, metrics.jsonl, predictions.npz, summary.json.

    Creating one removes those of an earlier attempt, except for the epochs in `history`, after
    which this attempt resumes. As a context manager it marks the job as failed on an exception.
    With a `lease`, raises LeaseLost instead of writing to a folder that is another process's now.
    `run_id` is the tracker's run from an earlier attempt at the same configuration, if any.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        config: Config,
        history: Sequence[dict[str, Any]] = (),
        lease: Lease | None = None,
    ) -> None:
        self.folder, self._lease = folder, lease
        self.metrics, self._lines, self._written = list(history), len(history), time.monotonic()
        earlier = read_status(folder)
        resumes = _holds(folder, config) and earlier.get("state") != "done"
        self.run_id: str | None = earlier.get("wandb_run_id") if resumes else None
        self._status = _new_status(name, attempt=earlier.get("attempt", 0) + 1)
        self._status["wandb_run_id"] = self.run_id
        # In this order, one attempt's "done" never stands beside another attempt's files.
        write_json(folder / "status.json", self._status)
        for leftover in ("summary.json", PREDICTIONS, MODEL_CARD):
            (folder / leftover).unlink(missing_ok=True)
        if history:
            write_json_lines(folder / "metrics.jsonl", self.metrics)
        else:
            for leftover in ("metrics.jsonl", BEST_WEIGHTS):
                (folder / leftover).unlink(missing_ok=True)
        write_json(folder / "config.json", config)

    def tracked(self, run: Run) -> None:
        """Record the tracker's run, for `wandb sync` and for later attempts to resume."""
        self._status |= {"wandb_run_id": run.id, "wandb_mode": run.mode}
        with suppress(LeaseLost):  # what ends the job is its own next step
            self.check_lease()
            write_json(self.folder / "status.json", self._status)

    def log(self, metrics: dict[str, Any], every: float = 0) -> None:
        """Add one epoch's line to metrics.jsonl.

        It is written anew at most once in `every` seconds; by `write_metrics` and at the end, too.
        """
        self.metrics.append(metrics)
        if time.monotonic() - self._written >= every:
            self.write_metrics()

    def write_metrics(self) -> None:
        """Write the lines of metrics.jsonl that are not written yet, if any."""
        if self._lines < len(self.metrics):
            self.check_lease()
            write_json_lines(self.folder / "metrics.jsonl", self.metrics)
            self._lines, self._written = len(self.metrics), time.monotonic()

    def done(self, summary: dict[str, Any]) -> None:
        """Write summary.json, then mark the job as done."""
        self.check_lease()
        self.write_metrics()
        write_json(self.folder / "summary.json", summary)
        self._end(state="done")

    def paused(self) -> None:
        """Mark the job as paused: it stopped after `stop_after` epochs, and can be resumed."""
        self._end(state="paused")

    def check_lease(self) -> None:
        """Raise LeaseLost if another process has taken the job over."""
        if self._lease is not None:
            self._lease.check()

    def __enter__(self) -> None:
        """The job has been running since the record was created."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Mark a running job as failed if there is an error; later errors change nothing."""
        if error is not None and self._status["state"] == "running":
            try:
                self._end(state="failed", error=failure_reason(error))
            except LeaseLost:
                pass  # the status is another process's
            except OSError as unwritable:
                log.error("cannot write %s: %s.", self.folder / "status.json", unwritable.strerror)

    def _end(self, **changes: Any) -> None:
        self._status |= {"ended": _now(), **changes}
        self.check_lease()
        try:
            self.write_metrics()
        finally:
            write_json(self.folder / "status.json", self._status)


def read_status(folder: Path) -> dict[str, Any]:
    """The content of status.json; empty if it is missing or was not written by tvf."""
    status = read_json(folder / "status.json")
    return status if {"state", "name", "error"} <= status.keys() else {}


def read_config(folder: Path) -> dict[str, Any]:
    """The content of config.json, with absolute places; empty if it is missing or damaged.

    Earlier versions wrote relative places as they were given: they are relative to the folder of
    the command, which Hydra records.
    """
    config = read_json(folder / "config.json")
    if has_relative_places(config) and (base := _command_folder(folder)) is not None:
        resolve_places(config, base)
    return config


def _command_folder(folder: Path) -> str | None:
    """Where the command of the job in `folder` was given; None if it is not known."""
    try:
        base = yaml.safe_load((folder / ".hydra" / "hydra.yaml").read_text())["hydra"]["runtime"][
            "cwd"
        ]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return None
    return base if isinstance(base, str) and os.path.isabs(base) else None


def is_running(folder: Path) -> bool:
    """Whether a job's status is running and a process holds its lease."""
    return job_holder(folder) is not None


def job_holder(folder: Path) -> Holder | None:
    """The process that runs the job in `folder`; None if it is not running."""
    running = read_status(folder).get("state") == "running"
    return lease_holder(folder / LEASE) if running else None


def waiting_holder(folder: Path) -> Holder | None:
    """The process that has claimed the job in `folder` and not begun it, as it waits for a GPU."""
    holder = lease_holder(folder / LEASE)
    if holder is None or holder.owner is None or not holder.lives():
        return None
    return None if read_status(folder).get("pid") == holder.owner.pid else holder


def is_done(folder: Path, config: Config) -> bool:
    """Whether this configuration (with any store) was trained to its end in `folder`."""
    done = read_status(folder).get("state") == "done" and bool(read_json(folder / "summary.json"))
    return done and _holds(folder, config)


def best_score(folder: Path) -> float | None:
    """The validation score of a job that is done, by its `data.metric`; None if it has none."""
    summary = read_json(folder / "summary.json")
    metric = summary.get("metric")
    if read_status(folder).get("state") != "done" or metric not in METRICS:
        return None
    score = finite(summary.get(f"val_{METRICS[metric]}"))
    return score if isinstance(score, float | int) else None


def has_reached(folder: Path, config: Config) -> bool:
    """Whether this configuration was trained in `folder` up to its `stop_after`, before its end."""
    stop_after = config["stop_after"]
    if stop_after is None or stop_after >= config["epochs"]:
        return False
    if not read_status(folder) or not _holds(folder, config):
        return False
    try:
        return len((folder / "metrics.jsonl").read_text().splitlines()) >= stop_after
    except OSError:
        return False


def mark_failed(folder: Path, name: str, reason: str) -> None:
    """Record in status.json that a job never started, or that its process is gone.

    A job that is done stays done.
    """
    status = read_status(folder) or _new_status(name, attempt=0)
    if status["state"] != "done":
        ended = {"state": "failed", "ended": _now(), "error": reason}
        write_json(folder / "status.json", status | ended)


def mark_paused(folder: Path) -> None:
    """Record in status.json that a job stopped at its `stop_after`, however its process ended."""
    status = read_status(folder)
    if status["state"] != "paused":
        ended = {"state": "paused", "ended": _now(), "error": None}
        write_json(folder / "status.json", status | ended)


def failure_reason(error: BaseException) -> str:
    """A job's error as written to status.json."""
    if isinstance(error, KeyboardInterrupt):
        return STOPPED[0]
    return f"{type(error).__name__}: {error}"


def _holds(folder: Path, config: Config) -> bool:
    return result_config(read_config(folder)) == result_config(config)


def _new_status(name: str, attempt: int) -> dict[str, Any]:
    return {
        "state": "running",
        "name": name,
        "started": _now(),
        "ended": None,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "attempt": attempt,
        "error": None,
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
