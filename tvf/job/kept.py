"""What a job keeps while it trains: checkpoints to resume from, and the best epoch's weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tvf.job.checkpoint import Checkpoints
from tvf.job.setup import Job
from tvf.models import FineTuneModel, load_weights, save_weights
from tvf.records import JobRecord
from tvf.training import TrainingLoop

LOST = 1.0  # seconds of training that a brief job may lose when it is killed


class KeptWeights:
    """The checkpoints of a job, when they are written, and in `path` its best epoch's weights.

    A brief job holds its best head in memory, and writes it at its end or with a checkpoint.
    """

    def __init__(self, job: Job, record: JobRecord, checkpoints: Checkpoints, path: Path) -> None:
        self._job, self._record, self._checkpoints, self._path = job, record, checkpoints, path
        self._best: tuple[int, dict[str, Tensor]] | None = None  # the epoch, and its head
        self._written = True

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
            if self._job.head_file is None:
                self._record.check_lease()
                save_weights(self._job.phases.model, self._path, loop.best.epoch)
            else:
                self._best = loop.best.epoch, copy_head(self._job.phases.model)
                self._written = False

    def save(self, state: dict[str, Any]) -> None:
        """Save a checkpoint, after the best weights that it relies on."""
        self._write()
        self._record.write_metrics()
        self._checkpoints.save(state)

    def load_best(self, epoch: int) -> None:
        """Give the model the weights of the best epoch, which are in the file from here on."""
        self._write()
        if self._best is None:
            load_weights(self._job.phases.model, self._path, epoch)
        else:
            load_head(self._job.phases.model, self._best[1])

    def _write(self) -> None:
        if self._written or self._best is None or self._job.head_file is None:
            return
        self._record.check_lease()
        epoch, head = self._best
        self._job.head_file.save(self._job.phases.model, head, self._path, epoch)
        self._written = True


def copy_head(model: FineTuneModel) -> dict[str, Tensor]:
    """A copy of the head's weights, by their names in the model's state."""
    return {name: value.detach().clone() for name, value in _head_state(model).items()}


def load_head(model: FineTuneModel, head: dict[str, Tensor]) -> None:
    """Give the model such weights."""
    with torch.no_grad():
        for name, value in _head_state(model).items():
            value.copy_(head[name])


def _head_state(model: FineTuneModel) -> dict[str, Tensor]:
    """The model's own weights and buffers of its head, under their names in its state."""
    heads = {head: model.module.get_submodule(head) for head in model.heads}
    return {
        f"module.{head}.{name}": value
        for head, layer in heads.items()
        for name, value in layer.state_dict(keep_vars=True).items()
    }
