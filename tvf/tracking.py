"""Where a job's numbers go: its own folder, always, and a tracker (W&B, or none).

A tracker's `start` opens one run as a context: leaving it through an exception marks the run as failed.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from tvf.errors import InputError, require_choice
from tvf.files import read_json, write_json, write_json_lines

WANDB_MODES = ("online", "offline", "disabled")


class Run(Protocol):
    """One job's run at a tracker. `mode`, `id` and `url` are None where there is none."""

    id: str | None
    mode: str | None
    url: str | None

    def log(self, metrics: dict[str, Any]) -> None:
        """Add a point to the run's curves."""

    def summarise(self, values: dict[str, Any]) -> None:
        """Set the run's final values."""


class JobRecord:
    """The files that a job leaves in its folder: config.json, status.json, metrics.jsonl, summary.json.

    Making one removes what an earlier attempt left there.
    """

    def __init__(self, folder: Path, name: str, config: dict[str, Any]) -> None:
        self.folder = folder
        self._metrics: list[dict[str, Any]] = []
        self._status = _status(name, attempt=_attempts(folder) + 1)
        # In this order a folder is never called done by one attempt's status and another's files.
        write_json(folder / "status.json", self._status)
        for leftover in ("metrics.jsonl", "summary.json", "checkpoints/best.safetensors"):
            (folder / leftover).unlink(missing_ok=True)
        write_json(folder / "config.json", config)

    def log(self, metrics: dict[str, Any]) -> None:
        """Add one epoch's line to metrics.jsonl."""
        self._metrics.append(metrics)
        write_json_lines(self.folder / "metrics.jsonl", self._metrics)

    def done(self, summary: dict[str, Any]) -> None:
        """Write summary.json, then call the job done."""
        write_json(self.folder / "summary.json", summary)
        self._end(state="done")

    def failed(self, error: BaseException) -> None:
        """Call the job failed, for this reason."""
        self._end(state="failed", error=_reason(error))

    def _end(self, **changes: Any) -> None:
        self._status |= {"ended": _now(), **changes}
        write_json(self.folder / "status.json", self._status)


def refuse(folder: Path, name: str, error: Exception) -> None:
    """Say in status.json that a job never began, for this reason; a finished job's record is left as it is."""
    if read_status(folder).get("state") != "done":
        status = _status(name, attempt=_attempts(folder)) | {
            "state": "failed",
            "ended": _now(),
            "error": _reason(error),
        }
        write_json(folder / "status.json", status)


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


def _reason(error: BaseException) -> str:
    return "interrupted" if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {error}"


def is_done(folder: Path, config: dict[str, Any]) -> bool:
    """Whether this very configuration, wherever its store lay, was trained to its end in `folder`."""
    done = read_status(folder).get("state") == "done" and bool(read_json(folder / "summary.json"))
    return done and _results_follow_from(read_json(folder / "config.json")) == _results_follow_from(config)


def _results_follow_from(config: dict[str, Any]) -> dict[str, Any]:
    store = {key: value for key, value in config.get("store", {}).items() if key not in ("dir", "mode", "max_gb")}
    return config | {"store": store}


@dataclass(frozen=True)
class NoTracker:
    """Nothing but the job's folder."""

    @contextmanager
    def start(self, folder: Path, name: str, group: str | None, config: dict[str, Any]) -> Iterator[Run]:
        """Open a run that goes nowhere."""
        yield _NoRun()


@dataclass
class _NoRun:
    id: str | None = None
    mode: str | None = None
    url: str | None = None

    def log(self, metrics: dict[str, Any]) -> None:
        """Nothing to add: metrics.jsonl has it."""

    def summarise(self, values: dict[str, Any]) -> None:
        """Nothing to set: summary.json has it."""


@dataclass(frozen=True)
class WandbTracker:
    """One W&B run for each job. `mode` null means online where somebody is logged in, else offline."""

    project: str
    entity: str | None = None
    mode: str | None = None
    tags: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.project:
            raise InputError("project is empty: name the W&B project, or set tracker=none.")
        if self.mode is not None:
            require_choice("tracker.mode", self.mode, WANDB_MODES)
        elif mode := os.environ.get("WANDB_MODE"):
            require_choice("WANDB_MODE", mode, WANDB_MODES)

    @contextmanager
    def start(self, folder: Path, name: str, group: str | None, config: dict[str, Any]) -> Iterator[Run]:
        """Open the run; its files lie below `folder`/wandb."""
        import wandb

        run = wandb.init(
            project=self.project,
            entity=self.entity,
            mode=self._mode(),
            tags=self.tags,
            name=name,
            group=group,
            config=config,
            dir=folder,
            # Without this a second job in one process would go on writing to the first one's run.
            reinit="finish_previous",
            settings=wandb.Settings(silent=True, console="off"),
        )
        run.define_metric("*", step_metric="epoch")
        try:
            yield _WandbRun(run)
        except BaseException:
            # Not through `with run`, which would print a traceback even for a mistake that is told in words.
            run.finish(exit_code=1)
            raise
        run.finish()

    def _mode(self) -> Any:
        import wandb

        if mode := self.mode or os.environ.get("WANDB_MODE"):
            return mode
        return "online" if wandb.login(prompt=False, verify=False) else "offline"


class _WandbRun:
    def __init__(self, run: Any) -> None:
        self._run = run
        self.id: str | None = run.id
        self.mode: str | None = run.settings.mode
        self.url: str | None = run.url if self.mode == "online" else None

    def log(self, metrics: dict[str, Any]) -> None:
        self._run.log({key: value for key, value in metrics.items() if value is not None})

    def summarise(self, values: dict[str, Any]) -> None:
        self._run.summary.update(values)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
