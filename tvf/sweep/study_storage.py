"""The database that keeps a search's trials, each added when its batch has ended.

It also keeps what was searched and on which settings: trials of another search do not compare.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import OptunaError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial
from sqlalchemy.exc import SQLAlchemyError

from tvf.errors import InputError
from tvf.lease import Lease
from tvf.records import LEASE, sweep_name

FILE = "search.db"  # in the sweep's folder
SEARCH = "search"  # attribute of the study: what was asked
BATCH_SIZE = "batch_size"


class StoredStudy:
    """The study of the sweep in `folder`, in the database at `url` or in its own file.

    `asked` says what is searched and what is fixed, by dotted key; `batch_size` is called for a new
    search alone, which keeps to what it returns. Raises InputError if the database cannot be
    opened, or if it holds a search for something else.
    """

    def __init__(
        self,
        folder: Path,
        url: str | None,
        asked: Mapping[str, Any],
        batch_size: Callable[[], int],
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        self._lease = Lease(folder / LEASE)
        self._where = folder / FILE if url is None else f"hydra.sweeper.storage={url}"
        # Through JSON, as the database will give it back.
        now = json.loads(json.dumps(asked, default=str))
        with self._reporting(
            "opened as the search's database", ImportError, RuntimeError, ValueError
        ):
            shared = RDBStorage(url) if url else None  # if it can be opened, make the folder
            folder.mkdir(parents=True, exist_ok=True)
            with self._lease:
                self._storage = shared or RDBStorage(f"sqlite:///{(folder / FILE).absolute()}")
                self._study = optuna.create_study(
                    storage=self._storage,
                    study_name=self._name(folder, url),
                    direction="maximize",
                    load_if_exists=True,
                )
                stored = self._study.user_attrs.get(SEARCH)
                if stored is None:
                    stored = now | {BATCH_SIZE: batch_size()}
                    self._study.set_user_attr(SEARCH, stored)
        self._close()
        self.batch_size = int(stored[BATCH_SIZE])
        before = {key: value for key, value in stored.items() if key != BATCH_SIZE}
        self._check_same(folder, before, now)

    def trials(self) -> list[FrozenTrial]:
        """Return the trials that have ended, by number. Raises InputError if it cannot."""
        with self._reporting("read"):
            found = self._study.get_trials(deepcopy=False)
            self._close()
        return found

    def add(self, trials: Sequence[FrozenTrial]) -> None:
        """Add trials, except for those that are there: another process may run the same search.

        Raises InputError if they cannot be written.
        """
        with self._lease:
            known = len(self.trials())
            with self._reporting("written"):
                self._study.add_trials(trial for trial in trials if trial.number >= known)
                self._close()

    @contextmanager
    def _reporting(self, done: str, *errors: type[Exception]) -> Iterator[None]:
        """Raise InputError for the database's errors, and `errors`: it cannot be `done`."""
        try:
            yield
        except (SQLAlchemyError, OptunaError, *errors) as error:
            reason = str(error.__cause__ or error).partition("\n")[0]
            raise InputError(f"{self._where} cannot be {done}: {reason}") from error

    def _name(self, folder: Path, url: str | None) -> str:
        """The study's name: at a URL the sweep's, in its own file that of the only one there.

        So that a folder that has been renamed keeps its search.
        """
        there = [] if url else self._storage.get_all_studies()
        return there[0].study_name if there else sweep_name(folder)

    def _close(self) -> None:
        """Leave no connection open: jobs are forks of this process."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    def _check_same(self, folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        differing = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
        if differing:
            changes = [
                f"{key} was {before.get(key)}, is now {now.get(key)}" for key in differing[:5]
            ]
            raise InputError(
                f"{folder} holds another search: {', '.join(changes)} ({len(differing)} in all). "
                "Its trials do not compare with new ones: choose another folder with "
                "hydra.sweep.dir=."
            )
