"""The sweepers of tvf, in the package where Hydra looks for plugins."""

from collections.abc import Iterator, Sequence
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper


# The classes are defined here, not in tvf.sweep, because every Hydra program in the environment
# imports this module at startup: it must not load tvf.
class GridSweeper(BasicSweeper):
    """Hydra's own sweeper, without its check of the jobs: the sweep callback has composed them."""

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Do nothing: composing every job again would delay the first one by 0.1 s per job."""

    def __init__(
        self, max_batch_size: int | None = None, params: dict[str, str] | None = None
    ) -> None:
        super().__init__(max_batch_size, params)
        self._left: Sequence[Sequence[str]] = []

    def is_done(self) -> bool:
        """Train the jobs of the next batch that only train heads; return whether no job is left."""
        from tvf.sweep import train_heads

        assert self.config is not None
        while not self._left and not self.has_ended():
            self._left = train_heads(self.config, self.next_batch())
        return not self._left

    def get_job_batch(self) -> Sequence[Sequence[str]]:
        """Return the overrides of the next jobs to launch."""
        left, self._left = self._left, []
        return left

    def has_ended(self) -> bool:
        """Return whether there is no further batch."""
        return super().is_done()

    def next_batch(self) -> Sequence[Sequence[str]]:
        """Return the overrides of the jobs of the next batch."""
        return super().get_job_batch()


class PlannedSweeper(GridSweeper):
    """Launches batch after batch; tvf decides on the next one when the last has ended."""

    def __init__(
        self, max_batch_size: int | None = None, params: dict[str, str] | None = None
    ) -> None:
        super().__init__(max_batch_size, params)
        self._planned: Iterator[list[list[str]]] | None = None
        self._batches: list[Any] = []

    def has_ended(self) -> bool:
        """Return whether there is no further batch, which is decided when the last has ended."""
        from tvf.sweep import planned_batches

        if self._planned is None:
            self._planned = planned_batches()
        if not self._batches and (jobs := next(self._planned, None)):
            self._batches = list(self.split_overrides_to_chunks(jobs, self.max_batch_size))
        return not self._batches

    def next_batch(self) -> Sequence[Sequence[str]]:
        """Return the overrides of the jobs of the next batch."""
        return self._batches.pop(0)


class HalvingSweeper(PlannedSweeper):
    """A grid sweep by successive halving (see tvf/sweep/halving.py)."""

    def __init__(
        self,
        max_batch_size: int | None = None,
        params: dict[str, str] | None = None,
        eta: int = 2,
        min_epochs: int = 1,
    ) -> None:
        super().__init__(max_batch_size, params)
        self.eta, self.min_epochs = eta, min_epochs


class RaceSweeper(PlannedSweeper):
    """A grid sweep whose jobs are trained only while they can decide (see tvf/sweep/race.py)."""

    def __init__(
        self,
        max_batch_size: int | None = None,
        params: dict[str, str] | None = None,
        budget: int | None = None,
        climb: bool = True,
    ) -> None:
        super().__init__(max_batch_size, params)
        self.budget, self.climb = budget, climb


class OptunaSweeper(PlannedSweeper):
    """A search by Optuna (see tvf/sweep/optuna_search.py, which checks the settings)."""

    def __init__(self, params: dict[str, str] | None = None, **settings: Any) -> None:
        super().__init__(params=params)
        self.settings = settings

    @staticmethod
    def split_arguments(overrides: list[Any], max_batch_size: int | None) -> list[list[list[str]]]:
        """Return no jobs: the search draws them."""
        return []


class OneJobSweeper(BasicSweeper):
    """Runs the job with the given overrides, here: the command of tvf/sweep/remote.py."""

    def __init__(self, number: int, **ignored: Any) -> None:
        super().__init__(max_batch_size=None)
        self.number = number

    def setup(self, **arguments: Any) -> None:
        """Prepare to run the job in this process, whatever launcher the sweep has."""
        self.launcher = BasicLauncher()
        self.launcher.setup(**arguments)

    def sweep(self, arguments: list[str]) -> Any:
        """Run the job. Does not write to the sweep's folder, which has other jobs."""
        assert self.launcher is not None
        return [self.launcher.launch([arguments], initial_job_idx=self.number)]
