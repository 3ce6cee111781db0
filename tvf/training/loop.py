"""The loop: phases of epochs of training and validation, keeping the weights that validate best.

Everything random in it is a pure function of seeds and positions: sample order of (seed, epoch), pixels of
(augment seed, view = epoch, sample). Only dropout, where a network has it, draws from torch's generator.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from lightning_fabric import Fabric
from torch.optim import Optimizer
from tqdm import tqdm

from tvf.data import sample_order, split_batches
from tvf.errors import InputError
from tvf.models import FineTuneModel
from tvf.training.optimizer import learning_rates
from tvf.training.phases import Phase
from tvf.training.state import EpochResult, PhaseSetup, TrainState, best_epoch, holds_best
from tvf.training.step import StepOptions, evaluate, sum_batches, train_step


def fit(
    fabric: Fabric,
    model: FineTuneModel,
    phases: Sequence[Phase],
    start: Callable[[int, Optimizer | None], PhaseSetup],
    ways: StepOptions,
    *,
    seed: int,
    metric: str = "accuracy",
    on_epoch: Callable[[EpochResult], None],
    on_best: Callable[[EpochResult], None] = lambda epoch: None,
    on_phase: Callable[[dict[str, Any]], None] = lambda state: None,
    progress: bool = False,
    state: dict[str, Any] | None = None,
    save: Callable[[dict[str, Any]], None] = lambda state: None,
    due: Callable[[], bool] = lambda: False,
    stop_after: int | None = None,
) -> EpochResult | None:
    """Train `model` through its phases and return the best epoch by `metric`.

    `start(index, optimizer)` begins a phase: it freezes the model, on the device, and builds what it trains with; the
    optimizer of the phase before, if there was one, has what it has gathered. `on_epoch` is called after each epoch,
    and `on_best` where the model then holds the weights of the best so far. In between `save` is given all that is
    needed to go on from there as `state`; whenever `due` says so, after a batch as well; `on_phase` is given it at the
    end of each phase but the last. None is returned if epochs are left after the one numbered `stop_after`, the last
    that is trained. Raises InputError when a loss is no longer a finite number.
    """
    course = TrainState(fabric, model, phases, start, ways, metric)
    if state is not None:
        course.restore(state)
        if (best := best_epoch(course.history, metric)) and holds_best(state, metric):
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
        ready, parts = (
            time.perf_counter(),
            list(split_batches(sample_order(seed, number, len(labels)), ways.batch_size)),
        )
        left, rates = parts[len(course.losses) :], learning_rates(optimizer)
        for samples in tqdm(
            left, f"epoch {number}", leave=False, disable=None if progress else True
        ):
            rates, draws = learning_rates(optimizer), (seed, number, len(course.losses))
            course.add(*train_step(fabric, feed, training, optimizer, ways, samples, draws))
            course.stage.schedule.after_batch()
            if due() and len(course.losses) < len(parts):
                save(course.state())
        train_loss, train_acc = (
            sum_batches(course.losses) / len(labels),
            sum_batches(course.hits) / len(labels),
        )
        if not math.isfinite(train_loss):
            raise InputError(
                f"training diverged: train_loss is {train_loss} in epoch {number}. Lower the rates."
            )
        trained = time.perf_counter()
        with ways.averaged():
            val = evaluate(fabric, feed.evaluate("val"), val_labels, ways.batch_size)
        if not math.isfinite(val.loss):
            raise InputError(
                f"training diverged: val_loss is {val.loss} after epoch {number}. Lower the rates."
            )
        epoch = EpochResult(
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
        is_best = epoch.better_than(best_epoch(course.history, metric), metric)
        course.stage.schedule.after_epoch(epoch.score(metric))
        on_epoch(epoch)
        course.finish(epoch)
        save(course.state())
        if is_best:  # after the state, which can give them again: they never are of an epoch that it does not know
            with ways.averaged():
                on_best(epoch)
        if course.phase_is_over() and not course.is_over():
            on_phase(course.state())
    best = best_epoch(course.history, metric)
    assert best is not None, "a phase has one epoch at least"
    return best
