"""The record that a job leaves in its folder, always: what it was given, how it stands, its epochs, its results."""

import logging
import os
import socket
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tvf.config import result_config
from tvf.files import BEST_WEIGHTS, read_json, write_json, write_json_lines
from tvf.records.tracking import Run

log = logging.getLogger(__name__)

STOPPED = (
    "interrupted",
    "its process is gone",
)  # what status.json says of a job that can go on as if nothing had been
LOCK = ".lock"  # in a job's folder: held by the process that trains it


class JobRecord:
    """The files that a job leaves in its folder: config.json, status.json, metrics.jsonl, summary.json.

    Making one removes what an earlier attempt left there, but for the epochs in `history`, after which this one goes
    on. Leaving it as a context through an exception calls the job failed. `run_id` is the tracker's run of an earlier
    attempt at the same configuration, None if there was none.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        config: dict[str, Any],
        history: Sequence[dict[str, Any]] = (),
    ) -> None:
        self.folder = folder
        self.metrics = list(history)
        same = result_config(read_json(folder / "config.json")) == result_config(config)
        earlier = read_status(folder)
        goes_on = same and earlier.get("state") != "done"
        self.run_id: str | None = earlier.get("wandb_run_id") if goes_on else None
        self._status = _status(name, attempt=_attempts(folder) + 1) | {"wandb_run_id": self.run_id}
        # In this order a folder is never called done by one attempt's status and another's files.
        write_json(folder / "status.json", self._status)
        (folder / "summary.json").unlink(missing_ok=True)
        if history:
            write_json_lines(folder / "metrics.jsonl", self.metrics)
        else:
            for leftover in ("metrics.jsonl", BEST_WEIGHTS):
                (folder / leftover).unlink(missing_ok=True)
        write_json(folder / "config.json", config)

    def tracked(self, run: Run) -> None:
        """Note the tracker's run: for an attempt that goes on after this one, and for whoever sends the rest of it."""
        self._status |= {"wandb_run_id": run.id, "wandb_mode": run.mode}
        write_json(self.folder / "status.json", self._status)

    def log(self, metrics: dict[str, Any]) -> None:
        """Add one epoch's line to metrics.jsonl."""
        self.metrics.append(metrics)
        write_json_lines(self.folder / "metrics.jsonl", self.metrics)

    def done(self, summary: dict[str, Any]) -> None:
        """Write summary.json, then call the job done."""
        write_json(self.folder / "summary.json", summary)
        self._end(state="done")

    def paused(self) -> None:
        """Call the job paused: it has stopped where it was asked to, and can go on from its checkpoint."""
        self._end(state="paused")

    def __enter__(self) -> None:
        """Nothing: the job runs since the record was made."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Call the job failed, for this reason, if there is one."""
        if (
            error is not None and self._status["state"] == "running"
        ):  # what happens later costs no number
            try:
                self._end(state="failed", error=failure_reason(error))
            except OSError as unwritable:
                log.error(
                    "%s cannot be written: %s.", self.folder / "status.json", unwritable.strerror
                )

    def _end(self, **changes: Any) -> None:
        self._status |= {"ended": _now(), **changes}
        write_json(self.folder / "status.json", self._status)


def is_running(folder: Path) -> bool:
    """Whether a job's status says that it runs, and a process holds its folder."""
    if read_status(folder).get("state") != "running":
        return False
    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except Timeout:
        return True


def mark_failed(folder: Path, name: str, reason: str) -> None:
    """Say in status.json that a job never began, or that its process is gone; one that is done stays so."""
    status = read_status(folder) or _status(name, attempt=0)
    if status["state"] != "done":
        write_json(
            folder / "status.json", status | {"state": "failed", "ended": _now(), "error": reason}
        )


def mark_paused(folder: Path) -> None:
    """Say in status.json that a job has stopped where it was asked to, whatever has ended it before it could say so."""
    status = read_status(folder)
    if status["state"] != "paused":
        write_json(
            folder / "status.json", status | {"state": "paused", "ended": _now(), "error": None}
        )


def read_status(folder: Path) -> dict[str, Any]:
    """What status.json says; nothing if there is none, or none of tvf's."""
    status = read_json(folder / "status.json")
    return status if {"state", "name", "error"} <= status.keys() else {}


def _attempts(folder: Path) -> int:
    return read_status(folder).get("attempt", 0)


def _status(name: str, attempt: int) -> dict[str, Any]:
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


def failure_reason(error: BaseException) -> str:
    """A job's error as status.json has it."""
    return (
        STOPPED[0] if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {error}"
    )


def is_done(folder: Path, config: dict[str, Any]) -> bool:
    """Whether this very configuration, wherever its store lay, was trained to its end in `folder`."""
    done = read_status(folder).get("state") == "done" and bool(read_json(folder / "summary.json"))
    return done and _holds(folder, config)


def has_reached(folder: Path, config: dict[str, Any]) -> bool:
    """Whether this very configuration has been trained in `folder` as far as its `stop_after`, short of its end."""
    stop_after = config["stop_after"]
    if (
        stop_after is None
        or stop_after >= config["epochs"]
        or not read_status(folder)
        or not _holds(folder, config)
    ):
        return False
    try:
        return len((folder / "metrics.jsonl").read_text().splitlines()) >= stop_after
    except OSError:
        return False


def _holds(folder: Path, config: dict[str, Any]) -> bool:
    return result_config(read_json(folder / "config.json")) == result_config(config)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
