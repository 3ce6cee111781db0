"""Trackers, which receive a copy of a job's results: Weights & Biases, or none.

A tracker's `start` opens one run as a context; an exception in the context marks the run as failed.
"""

import logging
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tvf.errors import InputError, require_choice, require_number
from tvf.files import printable

log = logging.getLogger(__name__)

SUMMARY = "sweep-summary"  # job type and name of the run that compares a sweep's jobs
WANDB_MODES = ("online", "offline", "disabled")
OTHER_MODES = {"run": "online", "dryrun": "offline", "shared": "shared"}  # what W&B also accepts
# What makes a run of W&B this one and no other. In a sweep they would make all jobs one run.
RUN_VARIABLES = (
    "WANDB_RUN_ID",
    "WANDB_NAME",
    "WANDB_RESUME",
    "WANDB_RESUME_FROM",
    "WANDB_FORK_FROM",
    "WANDB_SWEEP_ID",
    "WANDB_SWEEP_PARAM_PATH",
)


class Run(Protocol):
    """One job's run at a tracker. Its methods do not raise.

    `mode` is offline, unsynced (an online run until everything has arrived) or online. `id`,
    `mode` and `url` are None if the tracker has no run.
    """

    id: str | None
    mode: str | None
    url: str | None

    def log(self, metrics: dict[str, Any], step: int) -> None:
        """Add a point to the run's curves, unless an earlier attempt has logged this step."""

    def set_config(self, values: dict[str, Any]) -> None:
        """Add to the run's config what is known only after it was opened."""

    def set_summary(self, values: dict[str, Any]) -> None:
        """Set the run's final values."""

    def log_media(self, tables: dict[str, list[dict[str, Any]]], images: dict[str, Path]) -> None:
        """Add tables, given as rows, and image files."""


def forget_run_variables() -> list[str]:
    """Remove RUN_VARIABLES from the environment, and return those that were set."""
    return [name for name in RUN_VARIABLES if os.environ.pop(name, None)]


def sync_command(folders: Sequence[str], mode: str | None) -> str | None:
    """Return the shell command that uploads the missing data of the jobs in `folders` to W&B.

    The folders must be quoted for a shell. Returns None if W&B has everything.
    """
    if mode == "offline":
        return f"wandb sync {' '.join(f'{folder}/wandb/offline-run-*' for folder in folders)}"
    if mode == "unsynced":
        runs = " ".join(f"{folder}/wandb/run-*" for folder in folders)
        return f"wandb sync --include-online {runs}"
    return None


@dataclass(frozen=True)
class NoTracker:
    """No tracker: results are only recorded in the job's folder."""

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
        """Open a run that discards its data."""
        yield _NoRun()


@dataclass
class _NoRun:
    """A run that discards its data: the files in the job's folder hold the same data."""

    id: str | None = None
    mode: str | None = None
    url: str | None = None

    def log(self, metrics: dict[str, Any], step: int) -> None:
        """Do nothing: metrics.jsonl holds the metrics."""

    def set_config(self, values: dict[str, Any]) -> None:
        """Do nothing: summary.json holds the values."""

    def set_summary(self, values: dict[str, Any]) -> None:
        """Do nothing: summary.json holds the values."""

    def log_media(self, tables: dict[str, list[dict[str, Any]]], images: dict[str, Path]) -> None:
        """Do nothing: report.html holds the tables and charts."""

    def finish(self, exit_code: int = 0) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class WandbTracker:
    """One W&B run per job. `mode` None means online if the user is logged in, else offline.

    W&B's environment variables hold wherever an argument is empty. WANDB_RUN_ID holds for a single
    job only: a run in a group, as those of a sweep, has an id of its own.
    A server that does not respond delays a job by at most `timeout` seconds at its start and end.
    No data is lost: the run stays on disk, ready for `wandb sync`.
    """

    project: str
    entity: str | None = None
    mode: str | None = None
    tags: list[str] = field(default_factory=list)
    timeout: float = 30.0

    def __post_init__(self) -> None:
        if not self.project:
            raise InputError(
                "project is empty: set it to the name of a W&B project, or set tracker=none."
            )
        mode = self.mode or _environment_mode()
        if mode is not None and mode not in OTHER_MODES:
            require_choice("tracker.mode" if self.mode else "WANDB_MODE", mode, WANDB_MODES)
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
        """Open the run, or resume the one with id `run_id`; its files are in `folder`/wandb."""
        import wandb

        settings = {"silent": True, "console": "off"}
        settings = {k: v for k, v in settings.items() if f"WANDB_{k.upper()}" not in os.environ}
        new_id = secrets.token_hex(8) if group else None

        def init(mode: Any) -> Any:
            """Start the run, online or offline."""
            return wandb.init(
                project=self.project,
                entity=self.entity,
                mode=mode,
                tags=self.tags or None,
                name=name,
                group=group,
                job_type=job_type,
                config=_printable_values(config),
                dir=folder,
                id=run_id or new_id,
                resume="allow" if run_id else None,
                # Otherwise a second job in this process would write to the first job's run.
                reinit="finish_previous",
                settings=wandb.Settings(
                    **settings,
                    sagemaker_disable=group is not None,  # it would set one id for all jobs
                    init_timeout=self.timeout,
                    finish_timeout=self.timeout,
                    finish_timeout_raises=True,
                ),
            )

        run = self._open(init, folder, run_id)
        try:
            yield run
        except BaseException:
            # Not `with run`, which prints a traceback even for errors that we show as a message.
            run.finish(exit_code=1)
            raise
        run.finish()

    def _open(
        self, init: Callable[[Any], Any], folder: Path, run_id: str | None
    ) -> "_WandbRun | _NoRun":
        """Return a run that `init(mode)` opens, offline if the first mode fails.

        If that fails too, returns a run that does nothing.
        """
        for mode in dict.fromkeys((self._mode(), "offline")):
            try:
                run = init(mode)
                tracked = _WandbRun(run)
                if run_id:
                    _set_aside(folder / "wandb", run_id, Path(run.settings.sync_dir))
                return tracked
            except Exception as error:  # a failure of W&B must not end the job
                outcome = (
                    "the run stays on disk" if mode == "online" else "the job continues without W&B"
                )
                log.warning("W&B %s run failed to start (%s): %s.", mode, _reason(error), outcome)
        return _NoRun()

    def _mode(self) -> Any:
        """Return the mode to start runs in; InputError for online mode without a login."""
        mode = self.mode or _environment_mode()
        mode = OTHER_MODES.get(mode or "", mode)
        if mode in ("offline", "disabled"):
            return mode
        import wandb

        wandb.setup(wandb.Settings(silent=True))
        try:
            logged_in = wandb.login(prompt=False, verify=False)
        except wandb.Error as error:  # its message says where the key was found and what is wrong
            raise InputError(
                f"W&B login failed: {error} Set tracker=none to train without W&B."
            ) from error
        finally:
            # Otherwise all jobs started by this process would share its W&B service process, and
            # all would be affected if it were killed.
            os.environ.pop("WANDB_SERVICE", None)
        if mode and not logged_in:
            raise InputError(
                "tracker.mode=online needs a W&B login: run `wandb login`, or leave it out."
            )
        if not logged_in:
            return "offline"
        return mode or "online"


def _environment_mode() -> str | None:
    """The mode that W&B's environment variables ask for."""
    disabled = os.environ.get("WANDB_DISABLED", "").lower() in ("1", "true", "yes", "on")
    return "disabled" if disabled else os.environ.get("WANDB_MODE") or None


def _set_aside(folder: Path, run_id: str, current: Path) -> None:
    """Rename the files of earlier attempts at the run, so that they are not synced.

    The current attempt repeats their epochs, and the files may be truncated.
    """
    for path in [*folder.glob(f"run-*-{run_id}"), *folder.glob(f"offline-run-*-{run_id}")]:
        if path.name != current.name:
            path.rename(path.with_name(f"earlier-{path.name}"))


class _WandbRun:
    """A run opened by W&B. If W&B fails later, the rest of the data is not uploaded."""

    def __init__(self, run: Any) -> None:
        self._run, self._broken = run, False
        self._next: int = run.starting_step  # the first step that no earlier attempt has sent
        self._online = run.settings.mode in ("online", "shared")
        self.id: str | None = run.id
        self.mode: str | None = "unsynced" if self._online else run.settings.mode
        self.url: str | None = run.url if self._online else None
        self._try(lambda: run.define_metric("*", step_metric="epoch"))

    def log(self, metrics: dict[str, Any], step: int) -> None:
        if step >= self._next:
            known = {key: value for key, value in metrics.items() if value is not None}
            self._try(lambda: self._run.log(known, step=step))

    def set_config(self, values: dict[str, Any]) -> None:
        self._try(lambda: self._run.config.update(values, allow_val_change=True))

    def set_summary(self, values: dict[str, Any]) -> None:
        self._try(lambda: self._run.summary.update(values))

    def log_media(self, tables: dict[str, list[dict[str, Any]]], images: dict[str, Path]) -> None:
        """Send tables and image files to the run."""
        import wandb

        def send() -> None:
            media: dict[str, Any] = {name: wandb.Image(str(path)) for name, path in images.items()}
            for name, rows in tables.items():
                columns: list[Any] = list(dict.fromkeys(key for row in rows for key in row))
                media[name] = wandb.Table(
                    columns=columns, data=[[row.get(column) for column in columns] for row in rows]
                )
            self._run.log(media)

        self._try(send)

    def finish(self, exit_code: int = 0) -> None:
        """Send the remaining data; data that cannot be sent in time stays on disk."""
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
            log.warning("W&B has failed (%s): training continues without it.", _reason(error))


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _printable_values(value: Any) -> Any:
    """A config as W&B can store it: with text that is not UTF-8 escaped."""
    if isinstance(value, dict):
        return {key: _printable_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [*map(_printable_values, value)]
    return printable(value) if isinstance(value, str) else value
