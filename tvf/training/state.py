"""What a job keeps of itself: its weights, and all that it needs to go on after it was stopped at any moment.

Nothing in these files is executed by reading them: weights are safetensors, checkpoints are loaded `weights_only`.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.optim import Optimizer

from tvf.errors import InputError
from tvf.frontier import InputPipeline
from tvf.metrics import METRICS
from tvf.models import FineTuneModel
from tvf.training.phases import Phase
from tvf.training.schedules import Schedule
from tvf.training.step import StepOptions


def random_states() -> dict[str, Any]:
    """The states of all generators that training may draw from: torch's, Python's and numpy's."""
    numpy: Any = np.random.get_state()
    states = {"torch": torch.get_rng_state(), "python": random.getstate()}
    states["numpy"] = (numpy[0], torch.from_numpy(numpy[1].astype(np.int64)), *numpy[2:])
    if torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_states(states: dict[str, Any]) -> None:
    """Put all generators where they were."""
    torch.set_rng_state(states["torch"])
    random.setstate(states["python"])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])


# What `save` is given.
STATE_KEYS = {
    *("history", "losses", "hits", "phase", "model", "best", "average"),
    *("optimizer", "scheduler", "precision", "random"),
}
OTHER_NETWORK = "the job's checkpoint is of another network, though of the same config: remove its folder checkpoints/."


@dataclass(frozen=True)
class EpochResult:
    """One line of metrics.jsonl. `epoch` and `phase` count from 1; the rates are those of the epoch's last step."""

    epoch: int
    train_loss: float
    train_acc: float
    val_loss: float
    val_acc: float
    lr_head: float
    lr_backbone: float | None
    epoch_seconds: float
    images_per_second: float
    val_macro_f1: float | None = None
    val_auroc: float | None = None
    phase: int = 1

    def score(self, metric: str) -> float:
        """Of the validation images, by a metric of METRICS."""
        return getattr(self, f"val_{METRICS[metric]}")

    def better_than(self, other: "EpochResult | None", metric: str = "accuracy") -> bool:
        """By the validation metric, then by validation loss; of equals the earlier one stands."""
        return other is None or (self.score(metric), -self.val_loss) > (
            other.score(metric),
            -other.val_loss,
        )


@dataclass(frozen=True)
class PhaseSetup:
    """What a phase trains with, built at its start: a module that freezes as the phase does is set up already."""

    feed: InputPipeline
    optimizer: Optimizer
    schedule: Schedule


class TrainState:
    """Where training stands: the epochs that are over, what is known of the one that runs, and the phase."""

    def __init__(
        self,
        fabric: Fabric,
        model: FineTuneModel,
        phases: Sequence[Phase],
        start: Callable[[int, Optimizer | None], PhaseSetup],
        ways: StepOptions,
        metric: str,
    ) -> None:
        self._fabric, self._model, self._phases, self._start = fabric, model, phases, start
        self._ways, self._metric = ways, metric
        self.history: list[EpochResult] = []
        self.losses: list[Tensor] = []
        self.hits: list[Tensor] = []
        self.phase, self._stage = 0, None
        self._best: dict[str, Tensor] | None = None  # of this phase, where it may stop early

    @property
    def stage(self) -> PhaseSetup:
        if self._stage is None:
            self._stage = self._start(self.phase, None)
        return self._stage

    def is_over(self) -> bool:
        """Whether there is no other epoch."""
        return self.phase + 1 == len(self._phases) and self.phase_is_over()

    def go_on(self) -> None:
        """Before an epoch: if it is a phase's first, begin that.

        It begins with the last weights of the phase before, or, if that could stop early, with its best.
        """
        if not self.phase_is_over():
            return
        if self._best is not None:
            _load_trained(self._model, self._best)
            if self._ways.average:
                self._ways.average.reset()
        before, self._best = self.stage.optimizer, None
        self.phase += 1
        self._stage = self._start(self.phase, before)

    def add(self, loss: Tensor, hits: Tensor) -> None:
        """A batch is over."""
        self.losses.append(loss)
        self.hits.append(hits)

    def finish(self, epoch: EpochResult) -> None:
        """The epoch is over; the model still holds its weights."""
        within = [each for each in self.history if each.phase == epoch.phase]
        stops = self._phases[self.phase].stopping.patience is not None
        if stops and epoch.better_than(best_epoch(within, self._metric), self._metric):
            with self._ways.averaged():
                self._best = {name: value.clone() for name, value in _trained(self._model).items()}
        self.history.append(epoch)
        self.losses, self.hits = [], []

    def state(self) -> dict[str, Any]:
        """All that is needed to go on from here."""
        average = self._ways.average
        return {
            "history": list(map(asdict, self.history)),
            "losses": torch.stack(self.losses) if self.losses else torch.empty(0),
            "hits": torch.stack(self.hits) if self.hits else torch.empty(0),
            "phase": self.phase,
            "model": _trained(self._model),
            "best": self._best,
            "average": average.state_dict() if average else None,
            "optimizer": self.stage.optimizer.state_dict(),
            "scheduler": self.stage.schedule.scheduler.state_dict(),
            "precision": self._fabric.strategy.precision.state_dict(),  # a scale of losses, in float16
            "random": random_states(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from there. The phase begins with the weights that it had, from which its feed may follow."""
        self.history = [EpochResult(**row) for row in state["history"]]
        self.losses, self.hits = (
            [*self._fabric.to_device(state[key])] for key in ("losses", "hits")
        )
        self.phase, self._best = state["phase"], state["best"]
        _load_trained(self._model, state["model"])
        self.stage.optimizer.load_state_dict(state["optimizer"])
        self.stage.schedule.scheduler.load_state_dict(state["scheduler"])
        if self._ways.average:
            self._ways.average.load_state_dict(state["average"])
        self._fabric.strategy.precision.load_state_dict(state["precision"])
        set_random_states(state["random"])

    def phase_is_over(self) -> bool:
        """Whether the phase has had its epochs, or its patience is at an end."""
        phase = self._phases[self.phase]
        scores = [each.score(self._metric) for each in self.history if each.phase == self.phase + 1]
        return len(scores) == phase.epochs or phase.stopping.ends(scores)


def best_epoch(history: Iterable[EpochResult], metric: str = "accuracy") -> EpochResult | None:
    """The best epoch; None if there is none yet."""
    best = None
    for epoch in history:
        best = epoch if epoch.better_than(best, metric) else best
    return best


def holds_best(state: dict[str, Any], metric: str = "accuracy") -> bool:
    """Whether the weights in a state of `fit` are the best so far, or no epoch is over: else they are in their file."""
    history = [EpochResult(**row) for row in state["history"]]
    return not history or (best_epoch(history, metric) is history[-1] and not len(state["losses"]))


def _trained(model: FineTuneModel) -> dict[str, Tensor]:
    """The weights that train in some phase, and every buffer: what never does follows from the config."""
    frozen = _frozen(model)
    return {name: value for name, value in model.state_dict().items() if name not in frozen}


def _load_trained(model: FineTuneModel, weights: dict[str, Tensor]) -> None:
    try:
        missing, unexpected = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:  # of other shapes
        raise InputError(OTHER_NETWORK) from error
    if unexpected or {*missing} - _frozen(model):
        raise InputError(OTHER_NETWORK)


def _frozen(model: FineTuneModel) -> set[str]:
    trained = {f"module.{name}" for group in model.trained_groups for name in group.parameters}
    names = (name for name, _ in model.named_parameters())
    return {
        name
        for name in names
        if name not in trained and not name.startswith(f"module.{model.head}.")
    }
