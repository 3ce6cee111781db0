"""The loop: phases of epochs of training and validation, keeping the weights that validate best.

Everything random in it is a pure function of seeds and positions: sample order of (seed, epoch), pixels of
(augment seed, view = epoch, sample). Only dropout, where a network has it, draws from torch's generator.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.optim import Optimizer
from tqdm import tqdm

from tvf.checkpoint import random_states, set_random_states
from tvf.data.order import batches, sample_order
from tvf.errors import InputError
from tvf.feed import Feed
from tvf.metrics import METRICS
from tvf.models import FineTuneModel
from tvf.optim import rates_of
from tvf.recipes import Phase
from tvf.schedules import Schedule
from tvf.steps import Ways, evaluate, total, train_batch

# What `save` is given.
STATE = {
    *("history", "losses", "hits", "phase", "model", "best", "average"),
    *("optimizer", "scheduler", "precision", "random"),
}
OTHER_NETWORK = "the job's checkpoint is of another network, though of the same config: remove its folder checkpoints/."


@dataclass(frozen=True)
class Epoch:
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

    def better_than(self, other: "Epoch | None", metric: str = "accuracy") -> bool:
        """By the validation metric, then by validation loss; of equals the earlier one stands."""
        return other is None or (self.score(metric), -self.val_loss) > (other.score(metric), -other.val_loss)


@dataclass(frozen=True)
class Stage:
    """What a phase trains with, built at its start: a module that freezes as the phase does is set up already."""

    feed: Feed
    optimizer: Optimizer
    schedule: Schedule


def fit(
    fabric: Fabric,
    model: FineTuneModel,
    phases: Sequence[Phase],
    start: Callable[[int, Optimizer | None], Stage],
    ways: Ways,
    *,
    seed: int,
    metric: str = "accuracy",
    on_epoch: Callable[[Epoch], None],
    on_best: Callable[[Epoch], None] = lambda epoch: None,
    on_phase: Callable[[dict[str, Any]], None] = lambda state: None,
    progress: bool = False,
    state: dict[str, Any] | None = None,
    save: Callable[[dict[str, Any]], None] = lambda state: None,
    due: Callable[[], bool] = lambda: False,
    stop_after: int | None = None,
) -> Epoch | None:
    """Train `model` through its phases and return the best epoch by `metric`.

    `start(index, optimizer)` begins a phase: it freezes the model, on the device, and builds what it trains with; the
    optimizer of the phase before, if there was one, has what it has gathered. `on_epoch` is called after each epoch,
    and `on_best` where the model then holds the weights of the best so far. In between `save` is given all that is
    needed to go on from there as `state`; whenever `due` says so, after a batch as well; `on_phase` is given it at the
    end of each phase but the last. None is returned if epochs are left after the one numbered `stop_after`, the last
    that is trained. Raises InputError when a loss is no longer a finite number.
    """
    course = _Course(fabric, model, phases, start, ways, metric)
    if state is not None:
        course.restore(state)
        if (best := best_of(course.history, metric)) and holds_best(state, metric):
            with ways.averaged():
                on_best(best)
    while not course.is_over():
        if stop_after is not None and len(course.history) >= stop_after:
            return None
        course.go_on()
        began, number = time.perf_counter(), len(course.history) + 1
        feed, optimizer = course.stage.feed, course.stage.optimizer
        labels, val_labels = feed.data.train.labels, feed.data.val.labels
        training = feed.train(number)
        ready, parts = time.perf_counter(), list(batches(sample_order(seed, number, len(labels)), ways.batch_size))
        left, rates = parts[len(course.losses) :], rates_of(optimizer)
        for samples in tqdm(left, f"epoch {number}", leave=False, disable=None if progress else True):
            rates, draws = rates_of(optimizer), (seed, number, len(course.losses))
            course.add(*train_batch(fabric, feed, training, optimizer, ways, samples, draws))
            course.stage.schedule.after_batch()
            if due() and len(course.losses) < len(parts):
                save(course.state())
        train_loss, train_acc = total(course.losses) / len(labels), total(course.hits) / len(labels)
        if not math.isfinite(train_loss):
            raise InputError(f"training diverged: train_loss is {train_loss} in epoch {number}. Lower the rates.")
        trained = time.perf_counter()
        with ways.averaged():
            val = evaluate(fabric, feed.evaluate("val"), val_labels, ways.batch_size)
        if not math.isfinite(val.loss):
            raise InputError(f"training diverged: val_loss is {val.loss} after epoch {number}. Lower the rates.")
        epoch = Epoch(
            epoch=number,
            train_loss=train_loss,
            train_acc=train_acc,
            val_loss=val.loss,
            val_acc=val.acc,
            lr_head=rates[0],
            lr_backbone=rates[1],
            epoch_seconds=time.perf_counter() - began,
            images_per_second=sum(map(len, left)) / (trained - ready),
            val_macro_f1=val.macro_f1,
            val_auroc=val.auroc,
            phase=course.phase + 1,
        )
        is_best = epoch.better_than(best_of(course.history, metric), metric)
        course.stage.schedule.after_epoch(epoch.score(metric))
        on_epoch(epoch)
        course.finish(epoch)
        save(course.state())
        if is_best:  # after the state, which can give them again: they never are of an epoch that it does not know
            with ways.averaged():
                on_best(epoch)
        if course.phase_is_over() and not course.is_over():
            on_phase(course.state())
    best = best_of(course.history, metric)
    assert best is not None, "a phase has one epoch at least"
    return best


class _Course:
    """Where training stands: the epochs that are over, what is known of the one that runs, and the phase."""

    def __init__(
        self,
        fabric: Fabric,
        model: FineTuneModel,
        phases: Sequence[Phase],
        start: Callable[[int, Optimizer | None], Stage],
        ways: Ways,
        metric: str,
    ) -> None:
        self._fabric, self._model, self._phases, self._start = fabric, model, phases, start
        self._ways, self._metric = ways, metric
        self.history: list[Epoch] = []
        self.losses: list[Tensor] = []
        self.hits: list[Tensor] = []
        self.phase, self._stage = 0, None
        self._best: dict[str, Tensor] | None = None  # of this phase, where it may stop early

    @property
    def stage(self) -> Stage:
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

    def finish(self, epoch: Epoch) -> None:
        """The epoch is over; the model still holds its weights."""
        within = [each for each in self.history if each.phase == epoch.phase]
        stops = self._phases[self.phase].stopping.patience is not None
        if stops and epoch.better_than(best_of(within, self._metric), self._metric):
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
        self.history = [Epoch(**row) for row in state["history"]]
        self.losses, self.hits = ([*self._fabric.to_device(state[key])] for key in ("losses", "hits"))
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


def best_of(history: Iterable[Epoch], metric: str = "accuracy") -> Epoch | None:
    """The best epoch; None if there is none yet."""
    best = None
    for epoch in history:
        best = epoch if epoch.better_than(best, metric) else best
    return best


def holds_best(state: dict[str, Any], metric: str = "accuracy") -> bool:
    """Whether the weights in a state of `fit` are the best so far, or no epoch is over: else they are in their file."""
    history = [Epoch(**row) for row in state["history"]]
    return not history or (best_of(history, metric) is history[-1] and not len(state["losses"]))


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
    return {name for name in names if name not in trained and not name.startswith(f"module.{model.head}.")}
