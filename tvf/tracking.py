"""Where a job's numbers go: its own folder, always, and a tracker (W&B, or none).

A tracker's `start` opens one run as a context: leaving it through an exception marks the run as failed.
"""

import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout

from tvf.errors import InputError, require_choice, require_number
from tvf.files import read_json, write_json, write_json_lines

log = logging.getLogger(__name__)

STOPPED = ("interrupted", "its process is gone")  # what status.json says of a job that can go on as if nothing had been
LOCK = ".lock"  # in a job's folder: held by the process that trains it
WITHOUT_EFFECT = ("checkpoint", "project", "stop_after", "tracker")  # on a job's numbers
# What was done where a record is older than the option that it does not name.
UNSAID = {
    "data": {"metric": "accuracy", "class_weights": None},
    "model": {"direction": "top", "train": None, "head_dropout": 0.0, "init_from": None},
    "optimizer": {"decay_all": True, "layer_decay": None, "clip_norm": None},
}
UNSAID_NODES = {
    "recipe": {"_target_": "tvf.recipes.Direct"},
    "early_stopping": {"_target_": "tvf.recipes.EarlyStopping", "patience": None, "min_delta": 0.0},
    "mix": {"_target_": "tvf.objective.unmixed"},
    "loss": {"_target_": "tvf.objective.Objective", "label_smoothing": 0.0},
    "average": {"_target_": "tvf.average.none"},
}
LAST_CHECKPOINT = "checkpoints/last.pt"  # in a job's folder: what it goes on from
BEST_WEIGHTS = "checkpoints/best.safetensors"  # in a job's folder: those that validation chose
SUMMARY = "sweep-summary"  # the job type, and the name, of the run that compares a sweep's jobs
WANDB_MODES = ("online", "offline", "disabled")


class Run(Protocol):
    """One job's run at a tracker. `id`, `mode` and `url` are None where there is none.

    `mode` is offline, unsynced, which an online run is until everything has arrived, or online. Nothing here raises.
    """

    id: str | None
    mode: str | None
    url: str | None

    def log(self, metrics: dict[str, Any], step: int) -> None:
        """Add a point to the run's curves. One that an earlier attempt has sent at this step is not taken twice."""

    def summarise(self, values: dict[str, Any]) -> None:
        """Set the run's final values."""

    def show(self, tables: dict[str, list[dict[str, Any]]], pictures: dict[str, Path]) -> None:
        """Add tables, given as rows, and pictures."""


class JobRecord:
    """The files that a job leaves in its folder: config.json, status.json, metrics.jsonl, summary.json.

    Making one removes what an earlier attempt left there, but for the epochs in `history`, after which this one goes
    on. Leaving it as a context through an exception calls the job failed. `run_id` is the tracker's run of an earlier
    attempt at the same configuration, None if there was none.
    """

    def __init__(self, folder: Path, name: str, config: dict[str, Any], history: Sequence[dict[str, Any]] = ()) -> None:
        self.folder = folder
        self.metrics = list(history)
        same = results_follow_from(read_json(folder / "config.json")) == results_follow_from(config)
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
        if error is not None and self._status["state"] == "running":  # what happens later costs no number
            try:
                self._end(state="failed", error=reason_of(error))
            except OSError as unwritable:
                log.error("%s cannot be written: %s.", self.folder / "status.json", unwritable.strerror)

    def _end(self, **changes: Any) -> None:
        self._status |= {"ended": _now(), **changes}
        write_json(self.folder / "status.json", self._status)


def is_live(folder: Path) -> bool:
    """Whether a job's status says that it runs, and a process holds its folder."""
    if read_status(folder).get("state") != "running":
        return False
    try:
        with FileLock(folder / LOCK, timeout=0):
            return False
    except Timeout:
        return True


def call_failed(folder: Path, name: str, reason: str) -> None:
    """Say in status.json that a job never began, or that its process is gone; one that is done stays so."""
    status = read_status(folder) or _status(name, attempt=0)
    if status["state"] != "done":
        write_json(folder / "status.json", status | {"state": "failed", "ended": _now(), "error": reason})


def call_paused(folder: Path) -> None:
    """Say in status.json that a job has stopped where it was asked to, whatever has ended it before it could say so."""
    status = read_status(folder)
    if status["state"] != "paused":
        write_json(folder / "status.json", status | {"state": "paused", "ended": _now(), "error": None})


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


def reason_of(error: BaseException) -> str:
    """A job's error as status.json has it."""
    return STOPPED[0] if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {error}"


def how_to_send(folders: Sequence[str], mode: str | None) -> str | None:
    """The command that sends what W&B has not got of the jobs in `folders`, quoted for a shell; None if it has all."""
    if mode == "offline":
        return f"wandb sync {' '.join(f'{folder}/wandb/offline-run-*' for folder in folders)}"
    if mode == "unsynced":
        return f"wandb sync --include-online {' '.join(f'{folder}/wandb/run-*' for folder in folders)}"
    return None


def is_done(folder: Path, config: dict[str, Any]) -> bool:
    """Whether this very configuration, wherever its store lay, was trained to its end in `folder`."""
    done = read_status(folder).get("state") == "done" and bool(read_json(folder / "summary.json"))
    return done and _holds(folder, config)


def has_reached(folder: Path, config: dict[str, Any]) -> bool:
    """Whether this very configuration has been trained in `folder` as far as its `stop_after`, short of its end."""
    stop_after = config["stop_after"]
    if stop_after is None or stop_after >= config["epochs"] or not read_status(folder) or not _holds(folder, config):
        return False
    try:
        return len((folder / "metrics.jsonl").read_text().splitlines()) >= stop_after
    except OSError:
        return False


def _holds(folder: Path, config: dict[str, Any]) -> bool:
    return results_follow_from(read_json(folder / "config.json")) == results_follow_from(config)


def results_follow_from(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a config that a job's numbers depend on: not who is told of them, or where its store lies."""
    store = {key: value for key, value in config.get("store", {}).items() if key not in ("dir", "mode", "max_gb")}
    rest = UNSAID_NODES | {key: value for key, value in config.items() if key not in WITHOUT_EFFECT}
    for name, values in UNSAID.items():
        if isinstance(node := config.get(name), dict):
            rest[name] = {**values, **node}
    if isinstance(model := config.get("model"), dict):
        rest["model"]["direction"] = model.get("direction") or "top"
    return rest | {"store": store}


@dataclass(frozen=True)
class NoTracker:
    """Nothing but the job's folder."""

    @contextmanager
    def start(
        self,
        folder: Path,
        name: str,
        group: str | None,
        config: dict[str, Any],
        run_id: str | None = None,
        job_type: str | None = None,
    ) -> Iterator[Run]:
        """Open a run that goes nowhere."""
        yield _NoRun()


@dataclass
class _NoRun:
    id: str | None = None
    mode: str | None = None
    url: str | None = None

    def log(self, metrics: dict[str, Any], step: int) -> None:
        """Nothing to add: metrics.jsonl has it."""

    def summarise(self, values: dict[str, Any]) -> None:
        """Nothing to set: summary.json has it."""

    def show(self, tables: dict[str, list[dict[str, Any]]], pictures: dict[str, Path]) -> None:
        """Nothing to add: report.html has it."""

    def finish(self, exit_code: int = 0) -> None:
        """Nothing to send."""


@dataclass(frozen=True)
class WandbTracker:
    """One W&B run for each job. `mode` null means online where somebody is logged in, else offline.

    A server that does not answer costs at most `timeout` seconds at the start and at the end, and no number: the run
    stays on disk, ready for `wandb sync`.
    """

    project: str
    entity: str | None = None
    mode: str | None = None
    tags: list[str] = field(default_factory=list)
    timeout: float = 30.0

    def __post_init__(self) -> None:
        if not self.project:
            raise InputError("project is empty: name the W&B project, or set tracker=none.")
        if self.mode is not None:
            require_choice("tracker.mode", self.mode, WANDB_MODES)
        elif mode := os.environ.get("WANDB_MODE"):
            require_choice("WANDB_MODE", mode, WANDB_MODES)
        require_number("tracker.timeout", self.timeout, 0, above=True)
        self._mode()

    @contextmanager
    def start(
        self,
        folder: Path,
        name: str,
        group: str | None,
        config: dict[str, Any],
        run_id: str | None = None,
        job_type: str | None = None,
    ) -> Iterator[Run]:
        """Open the run, or go on with the one of an earlier attempt; its files lie below `folder`/wandb."""
        import wandb

        def init(mode: Any) -> Any:
            return wandb.init(
                project=self.project,
                entity=self.entity,
                mode=mode,
                tags=self.tags,
                name=name,
                group=group,
                job_type=job_type,
                config=config,
                dir=folder,
                id=run_id,
                resume="allow" if run_id else None,
                # Without this a second job in one process would go on writing to the first one's run.
                reinit="finish_previous",
                settings=wandb.Settings(
                    silent=True,
                    console="off",
                    init_timeout=self.timeout,
                    finish_timeout=self.timeout,
                    finish_timeout_raises=True,
                ),
            )

        tracked: _WandbRun | _NoRun = _NoRun()
        for mode in dict.fromkeys((self._mode(), "offline")):
            try:
                run = init(mode)
                tracked = _WandbRun(run)
                if run_id:
                    _set_aside(folder / "wandb", run_id, Path(run.settings.sync_dir))
                break
            except Exception as error:  # whatever it is, it is not the job's
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                outcome = "the run stays on disk" if mode == "online" else "the job goes on without it"
                log.warning("W&B cannot be used %s (%s): %s.", mode, reason, outcome)
        try:
            yield tracked
        except BaseException:
            # Not through `with run`, which would print a traceback even for a mistake that is told in words.
            tracked.finish(exit_code=1)
            raise
        tracked.finish()

    def _mode(self) -> Any:
        mode = self.mode or os.environ.get("WANDB_MODE")
        if mode in ("offline", "disabled"):
            return mode
        import wandb

        wandb.setup(wandb.Settings(silent=True))
        try:
            logged_in = wandb.login(prompt=False, verify=False)
        except wandb.Error as error:  # it tells where the key was found and what is wrong with it
            raise InputError(f"W&B refuses the login: {error} tracker=none does without W&B.") from error
        finally:
            # Jobs that are started from here would share this process's W&B process: what kills it would harm them all.
            os.environ.pop("WANDB_SERVICE", None)
        if mode and not logged_in:
            raise InputError(
                "tracker.mode=online is refused: nobody is logged in to W&B. wandb login, or leave it out."
            )
        return "online" if logged_in else "offline"


def _set_aside(folder: Path, run_id: str, current: Path) -> None:
    """Rename what earlier attempts at the run left on disk: this one repeats their epochs, and they may be torn."""
    for path in [*folder.glob(f"run-*-{run_id}"), *folder.glob(f"offline-run-*-{run_id}")]:
        if path.name != current.name:
            path.rename(path.with_name(f"earlier-{path.name}"))


class _WandbRun:
    """A run that W&B has opened. What it raises later costs what W&B would have got, which stays on disk."""

    def __init__(self, run: Any) -> None:
        self._run, self._broken = run, False
        self._next: int = run.starting_step  # after what an earlier attempt has sent
        self._online = run.settings.mode == "online"
        self.id: str | None = run.id
        self.mode: str | None = "unsynced" if self._online else run.settings.mode
        self.url: str | None = run.url if self._online else None
        self._try(lambda: run.define_metric("*", step_metric="epoch"))

    def log(self, metrics: dict[str, Any], step: int) -> None:
        if step >= self._next:
            known = {key: value for key, value in metrics.items() if value is not None}
            self._try(lambda: self._run.log(known, step=step))

    def summarise(self, values: dict[str, Any]) -> None:
        self._try(lambda: self._run.summary.update(values))

    def show(self, tables: dict[str, list[dict[str, Any]]], pictures: dict[str, Path]) -> None:
        import wandb

        def send() -> None:
            shown: dict[str, Any] = {name: wandb.Image(str(path)) for name, path in pictures.items()}
            for name, rows in tables.items():
                columns: list[Any] = list(dict.fromkeys(key for row in rows for key in row))
                shown[name] = wandb.Table(
                    columns=columns, data=[[row.get(column) for column in columns] for row in rows]
                )
            self._run.log(shown)

        self._try(send)

    def finish(self, exit_code: int = 0) -> None:
        """Send what is left; what cannot be sent in time stays on disk."""
        self._try(lambda: self._run.finish(exit_code=exit_code))
        if self._online and not self._broken:
            self.mode = "online"

    def _try(self, call: Callable[[], Any]) -> None:
        if self._broken:
            return
        try:
            call()
        except Exception as error:
            self._broken = True
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            log.warning("W&B has failed (%s): training goes on without it.", reason)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
