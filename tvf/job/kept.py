"""What a job keeps while it trains: checkpoints to resume from, and the best epoch's weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tvf.job.checkpoint import Checkpoints
from tvf.job.setup import Job, head_state
from tvf.models import load_weights, save_weights
from tvf.records import JobRecord
from tvf.training import TrainingLoop

LOST = 1.0  # seconds of training that a brief job may lose when it is killed


class KeptWeights:
    """The checkpoints of a job, and in `path` the weights of its best epoch.

    A brief job holds its best head in memory, and writes it at its end or with a checkpoint.
    """

    def __init__(self, job: Job, record: JobRecord, checkpoints: Checkpoints, path: Path) -> None:
        self._job, self._record, self._checkpoints, self._path = job, record, checkpoints, path
        self._held: dict[str, Tensor] = {}
        self._held_epoch: int | None = None  # that is not in the file yet

    def keep_epoch(self, loop: TrainingLoop, state: Callable[[], dict[str, Any]]) -> None:
        """Keep an epoch that has ended. `state` returns what a checkpoint holds."""
        if not self._job.brief:
            self._checkpoints.save(state())
        if loop.is_best:  # after the checkpoint, from which these weights can be restored
            self.keep_best(loop)
        if self._job.brief and not loop.is_over and self._checkpoints.age >= LOST:
            self.save(state())

    def keep_best(self, loop: TrainingLoop) -> None:
        """Keep the weights that the model has now."""
        assert loop.best is not None
        with self._job.steps.averaged():
            if self._job.brief:
                head = head_state(self._job.phases.model)
                self._held = {name: value.detach().clone() for name, value in head.items()}
                self._held_epoch = loop.best.epoch
            else:
                self._write(loop.best.epoch)

    def save(self, state: dict[str, Any]) -> None:
        """Save a checkpoint, after the best weights that it relies on."""
        if self._held_epoch is not None:
            model = self._job.phases.model
            current = {name: value.detach().clone() for name, value in head_state(model).items()}
            load_head(model, self._held)
            self._write(self._held_epoch)
            load_head(model, current)
        self._checkpoints.save(state)

    def load_best(self, epoch: int) -> None:
        """Give the model the weights of the best epoch, which are in the file from here on."""
        model = self._job.phases.model
        if self._held:
            load_head(model, self._held)
            if self._held_epoch is not None:
                self._write(epoch)
        else:
            load_weights(model, self._path, epoch)

    def _write(self, epoch: int) -> None:
        self._record.check_lease()
        save_weights(self._job.phases.model, self._path, epoch)
        self._held_epoch = None


def load_head(model: Any, weights: dict[str, Tensor]) -> None:
    """Give the model's head these weights, as `head_state` has them."""
    with torch.no_grad():
        for name, value in head_state(model).items():
            value.copy_(weights[name])
