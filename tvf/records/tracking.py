"""Where a job's numbers go beside its own folder: to a tracker (W&B, or none).

A tracker's `start` opens one run as a context: leaving it through an exception marks the run as failed.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tvf.errors import InputError, require_choice, require_number

log = logging.getLogger(__name__)

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


def sync_command(folders: Sequence[str], mode: str | None) -> str | None:
    """The command that sends what W&B has not got of the jobs in `folders`, quoted for a shell; None if it has all."""
    if mode == "offline":
        return f"wandb sync {' '.join(f'{folder}/wandb/offline-run-*' for folder in folders)}"
    if mode == "unsynced":
        return (
            f"wandb sync --include-online {' '.join(f'{folder}/wandb/run-*' for folder in folders)}"
        )
    return None


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
                outcome = (
                    "the run stays on disk" if mode == "online" else "the job goes on without it"
                )
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
            raise InputError(
                f"W&B refuses the login: {error} tracker=none does without W&B."
            ) from error
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
            shown: dict[str, Any] = {
                name: wandb.Image(str(path)) for name, path in pictures.items()
            }
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
