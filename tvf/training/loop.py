"""The training loop: an iterator over epochs, through all phases of a job.

Everything random is a pure function of seeds and positions: sample order of (seed, epoch), pixels
of (augment seed, view = epoch, image). Only dropout draws from torch's generator.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from tvf.data import sample_order, split_batches
from tvf.errors import InputError
from tvf.frontier import EpochInputs
from tvf.models import FineTuneModel
from tvf.progress import progress_bar
from tvf.training.optimizer import learning_rates
from tvf.training.scores import Scores
from tvf.training.state import (
    EpochResult,
    PhaseBuilder,
    TrainState,
    best_epoch,
    holds_best,
    load_trained_weights,
    trained_weights,
)
from tvf.training.step import StepOptions, evaluate, read_batches, sum_batches, train_step


@dataclass(frozen=True)
class LoopOptions:
    """`metric` chooses the best epoch; `stop_after` ends the loop early, after that epoch."""

    metric: str = "accuracy"
    stop_after: int | None = None
    show_progress: bool = False


class TrainingLoop:
    """`for result in loop:` trains one epoch per iteration and yields its result.

    In the body the model holds the epoch's weights, `state_dict()` returns everything needed to
    resume, and `is_best`, `phase_is_over` and `is_over` describe the progress. `state` resumes an
    earlier loop. `after_batch` is called after every batch except the last of an epoch, which the
    body follows. Iterating raises InputError when a loss is not finite.
    """

    def __init__(
        self,
        fabric: Fabric,
        model: FineTuneModel,
        builder: PhaseBuilder,
        steps: StepOptions,
        options: LoopOptions | None = None,
        state: dict[str, Any] | None = None,
        after_batch: Callable[[], None] = lambda: None,
    ) -> None:
        self._fabric, self._model, self._builder, self._steps = fabric, model, builder, steps
        self._options, self._after_batch = options or LoopOptions(), after_batch
        self._start(state)

    def __iter__(self) -> Iterator[EpochResult]:
        stop_after = self._options.stop_after
        while not self.is_over and (stop_after is None or len(self.history) < stop_after):
            if self.phase_is_over:
                self._start_next_phase()
            result, predicted = self._train_epoch()
            self.is_best = result.better_than(self.best, self._options.metric)
            self._state.setup.schedule.after_epoch(result.score(self._options.metric))
            self._keep_best_of_phase(result)
            self.history.append(result)
            self._state.predicted.append(predicted)
            self._state.losses, self._state.hits = [], []
            yield result

    @property
    def history(self) -> list[EpochResult]:
        """The finished epochs."""
        return self._state.history

    @property
    def best(self) -> EpochResult | None:
        """The best epoch so far."""
        return best_epoch(self.history, self._options.metric)

    @property
    def predicted(self) -> Tensor | None:
        """The class predicted for each validation image in each epoch, integer [epochs, images].

        None if the loop was resumed from a state that lacks them.
        """
        predicted = self._state.predicted
        if not predicted or len(predicted) < len(self.history):
            return None
        return torch.stack(predicted)

    @property
    def phase_is_over(self) -> bool:
        """Whether the phase has used up its epochs, its length or its patience."""
        phase = self._builder.phases[self._state.phase]
        epochs = [epoch for epoch in self.history if epoch.phase == self._state.phase + 1]
        return phase.ends([epoch.score(self._options.metric) for epoch in epochs])

    @property
    def is_over(self) -> bool:
        """Whether no epoch is left."""
        return self._state.phase + 1 == len(self._builder.phases) and self.phase_is_over

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to resume from here, to be passed as `state`."""
        return self._state.state_dict()

    def _start(self, state: dict[str, Any] | None) -> None:
        """Set up the first phase, or the phase of `state` with its weights."""
        metric = self._options.metric
        # A checkpoint is written before the best weights, so an interruption can lose the latter.
        self.is_best = bool(state and state["history"] and holds_best(state, metric))
        first: Any = None  # set up below: a phase's inputs may depend on the weights
        self._state = TrainState(self._fabric, self._model, self._steps.average, first)
        if state is not None:
            self._state.load_progress(state)
        self._state.setup = self._builder.start(self._state.phase, None)
        if state is not None:
            self._state.load_setup(state)

    def _start_next_phase(self) -> None:
        """Start from the previous phase's last weights or, if it could stop early, its best."""
        if self._state.best_of_phase is not None:
            load_trained_weights(self._model, self._state.best_of_phase)
            if self._steps.average:
                self._steps.average.reset()
        self._state.best_of_phase = None
        self._state.phase += 1
        self._state.setup = self._builder.start(self._state.phase, self._state.setup.optimizer)

    def _keep_best_of_phase(self, result: EpochResult) -> None:
        if self._builder.phases[self._state.phase].stopping.patience is None:
            return
        earlier = [epoch for epoch in self.history if epoch.phase == result.phase]
        metric = self._options.metric
        if result.better_than(best_epoch(earlier, metric), metric):
            with self._steps.averaged():
                weights = trained_weights(self._model)
                self._state.best_of_phase = {name: w.clone() for name, w in weights.items()}

    def _train_epoch(self) -> tuple[EpochResult, Tensor]:
        """The epoch's result, and the classes that it predicts for the validation images."""
        start, number = time.perf_counter(), len(self.history) + 1
        setup = self._state.setup
        data = setup.pipeline.data
        inputs = setup.pipeline.train(number)
        ready = time.perf_counter()
        images, rates = self._train_batches(number, inputs)
        train_loss = sum_batches(self._state.losses) / len(data.train)
        train_acc = sum_batches(self._state.hits) / len(data.train)
        _check_finite("train_loss", train_loss, number)
        trained = time.perf_counter()
        val, predicted = self._validate(number)
        result = EpochResult(
            epoch=number,
            train_loss=train_loss,
            train_acc=train_acc,
            val_loss=val and val.loss,
            val_acc=val and val.acc,
            lr_head=rates[0],
            lr_backbone=rates[1],
            epoch_seconds=time.perf_counter() - start,
            images_per_second=images / (trained - ready),
            val_macro_f1=val and val.macro_f1,
            val_auroc=val and val.auroc,
            phase=self._state.phase + 1,
        )
        return result, predicted

    def _validate(self, number: int) -> tuple[Scores | None, Tensor]:
        """The scores of epoch `number` and its predicted classes; no scores without images."""
        pipeline, steps = self._state.setup.pipeline, self._steps
        labels = pipeline.data.val.labels
        if not len(labels):
            return None, labels
        with steps.averaged():
            inputs = pipeline.evaluate("val")
            graph = self._state.setup.val_graph
            val, predicted = evaluate(self._fabric, inputs, labels, steps.batch_size, graph)
        _check_finite("val_loss", val.loss, number)
        return val, predicted

    def _train_batches(
        self, number: int, inputs: EpochInputs
    ) -> tuple[int, tuple[float, float | None]]:
        """Train on the rest of the epoch; return its image count and the last learning rates."""
        setup, steps, state = self._state.setup, self._steps, self._state
        order = sample_order(steps.seed, number, len(setup.pipeline.data.train))
        batches = list(split_batches(order, steps.batch_size))
        left = batches[len(state.losses) :]
        rates = learning_rates(setup.optimizer)
        label = f"epoch {number}" if self._options.show_progress else None
        train, mixes = setup.pipeline.data.train, steps.mix is not None
        feed = read_batches(self._fabric, inputs, train.labels, left, mixes, train.weights)
        with progress_bar(label, len(left)) as advance, closing(feed):
            for batch in feed:
                rates = learning_rates(setup.optimizer)
                draws = (steps.seed, number, len(state.losses))
                loss, hits = train_step(self._fabric, setup, inputs, steps, batch, draws)
                state.losses.append(loss)
                state.hits.append(hits)
                setup.schedule.after_batch()
                advance(1)
                if len(state.losses) < len(batches):
                    self._after_batch()
        return sum(map(len, left)), rates


def _check_finite(name: str, loss: float, epoch: int) -> None:
    if not math.isfinite(loss):
        raise InputError(
            f"training diverged: {name} is {loss} in epoch {epoch}. Lower the learning rates."
        )
