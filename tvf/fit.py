"""The loop: epochs of training and validation, keeping the weights that validate best.

Everything random in it is a pure function of seeds and positions: sample order of (seed, epoch), pixels of
(augment seed, view = epoch, sample). Only dropout, where a network has it, draws from torch's generator.
"""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm

from tvf.checkpoint import random_states, set_random_states
from tvf.data.order import batches, sample_order
from tvf.errors import InputError
from tvf.feed import Feed, Pass
from tvf.metrics import METRICS
from tvf.scores import Scores, score

STATE = {"history", "losses", "hits", "model", "optimizer", "scheduler", "precision", "random"}  # what `save` is given
OTHER_NETWORK = "the job's checkpoint is of another network, though of the same config: remove its folder checkpoints/."


@dataclass(frozen=True)
class Epoch:
    """One line of metrics.jsonl. `epoch` counts from 1; the rates are those in force during the epoch."""

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

    def score(self, metric: str) -> float:
        """Of the validation images, by a metric of METRICS."""
        return getattr(self, f"val_{METRICS[metric]}")

    def better_than(self, other: "Epoch | None", metric: str = "accuracy") -> bool:
        """By the validation metric, then by validation loss; of equals the earlier one stands."""
        return other is None or (self.score(metric), -self.val_loss) > (other.score(metric), -other.val_loss)


def fit(
    fabric: Fabric,
    feed: Feed,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    metric: str = "accuracy",
    on_epoch: Callable[[Epoch], None],
    on_best: Callable[[Epoch], None] = lambda epoch: None,
    progress: bool = False,
    state: dict[str, Any] | None = None,
    save: Callable[[dict[str, Any]], None] = lambda state: None,
    due: Callable[[], bool] = lambda: False,
    stop_after: int | None = None,
) -> Epoch | None:
    """Train for `epochs` and return the best by `metric`. `optimizer` is set up by `fabric`, as the feed's module is.

    `on_epoch` is called after each, and `on_best` where the model then holds the weights of the best so far. In between
    `save` is given all that is needed to go on from there as `state`; whenever `due` says so, after a batch as well.
    None is returned if epochs are left after the one numbered `stop_after`, the last that is trained. Raises InputError
    when a loss is no longer a finite number.
    """
    train_labels, val_labels = feed.data.train.labels, feed.data.val.labels
    history: list[Epoch] = []
    losses: list[Tensor] = []
    hits: list[Tensor] = []
    if state is not None:
        history = [Epoch(**row) for row in state["history"]]
        losses, hits = ([*fabric.to_device(state[key])] for key in ("losses", "hits"))
        _restore(state, fabric, feed.module, optimizer, scheduler)
        if (best := best_of(history, metric)) and holds_best(state, metric):
            on_best(best)

    def keep() -> None:
        save(_state(fabric, feed.module, optimizer, scheduler, history, losses, hits))

    for number in range(len(history) + 1, epochs + 1):
        if stop_after is not None and number > stop_after:
            return None
        start = time.perf_counter()
        rates = [group["lr"] for group in optimizer.param_groups]
        training = feed.train(number)
        ready, begun = time.perf_counter(), len(losses)
        parts = list(batches(sample_order(seed, number, len(train_labels)), batch_size))
        bar = tqdm(parts[begun:], f"epoch {number}", leave=False, disable=None if progress else True)
        for samples in bar:
            loss, hit = train_batch(fabric, training, optimizer, train_labels, samples)
            losses.append(loss)
            hits.append(hit)
            if due() and len(losses) < len(parts):
                keep()
        train_loss, train_acc = total(losses) / len(train_labels), total(hits) / len(train_labels)
        if not math.isfinite(train_loss):
            raise InputError(f"training diverged: train_loss is {train_loss} in epoch {number}. Lower the rates.")
        trained, count = time.perf_counter(), sum(map(len, parts[begun:]))
        val = evaluate(fabric, feed.evaluate("val"), val_labels, batch_size)
        if not math.isfinite(val.loss):
            raise InputError(f"training diverged: val_loss is {val.loss} after epoch {number}. Lower the rates.")
        scheduler.step()
        epoch = Epoch(
            epoch=number,
            train_loss=train_loss,
            train_acc=train_acc,
            val_loss=val.loss,
            val_acc=val.acc,
            lr_head=rates[0],
            lr_backbone=rates[1] if len(rates) > 1 else None,
            epoch_seconds=time.perf_counter() - start,
            images_per_second=count / (trained - ready),
            val_macro_f1=val.macro_f1,
            val_auroc=val.auroc,
        )
        is_best = epoch.better_than(best_of(history, metric), metric)
        on_epoch(epoch)
        history.append(epoch)
        losses, hits = [], []
        keep()
        if is_best:  # after the state, which can give them again: they never are of an epoch that it does not know
            on_best(epoch)
    best = best_of(history, metric)
    assert best is not None, "epochs is at least 1"
    return best


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


def _state(
    fabric: Fabric,
    module: nn.Module,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    history: list[Epoch],
    losses: list[Tensor],
    hits: list[Tensor],
) -> dict[str, Any]:
    return {
        "history": list(map(asdict, history)),
        "losses": torch.stack(losses) if losses else torch.empty(0),
        "hits": torch.stack(hits) if hits else torch.empty(0),
        "model": _trained(module),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "precision": fabric.strategy.precision.state_dict(),  # a scale of losses, in float16
        "random": random_states(),
    }


def _restore(
    state: dict[str, Any], fabric: Fabric, module: nn.Module, optimizer: Optimizer, scheduler: LRScheduler
) -> None:
    _load_trained(module, state["model"])
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    fabric.strategy.precision.load_state_dict(state["precision"])
    set_random_states(state["random"])


def _trained(module: nn.Module) -> dict[str, Tensor]:
    """The weights that train, and every buffer: what is frozen follows from the config."""
    frozen = _frozen(module)
    return {name: value for name, value in module.state_dict().items() if name not in frozen}


def _load_trained(module: nn.Module, weights: dict[str, Tensor]) -> None:
    try:
        missing, unexpected = module.load_state_dict(weights, strict=False)
    except RuntimeError as error:  # of other shapes
        raise InputError(OTHER_NETWORK) from error
    if unexpected or {*missing} - _frozen(module):
        raise InputError(OTHER_NETWORK)


def _frozen(module: nn.Module) -> set[str]:
    # state_dict() has the names of the network within Fabric's wrapper, named_parameters() those of the wrapper.
    names = (
        name.removeprefix("_forward_module.") for name, each in module.named_parameters() if not each.requires_grad
    )
    return {*names}


def train_batch(
    fabric: Fabric, run: Pass, optimizer: Optimizer, labels: Tensor, samples: np.ndarray
) -> tuple[Tensor, Tensor]:
    """One step; the batch's summed loss, and how many of its images were classified rightly, before the step."""
    inputs, expected = run.inputs(samples), fabric.to_device(labels[torch.from_numpy(samples)])
    optimizer.zero_grad()
    logits = run.module(*inputs)
    loss = cross_entropy(logits, expected)
    fabric.backward(loss)
    optimizer.step()
    return loss.detach() * len(samples), (logits.detach().argmax(1) == expected).sum()


@torch.no_grad()
def evaluate(fabric: Fabric, run: Pass, labels: Tensor, batch_size: int) -> Scores:
    """The scores of a part whose labels are given, without augmentation; the loss is the mean over its images."""
    losses, hits, outputs = [], [], []
    for samples in np.split(np.arange(len(labels)), range(batch_size, len(labels), batch_size)):
        logits = run.module(*run.inputs(samples))
        expected = fabric.to_device(labels[torch.from_numpy(samples)])
        losses.append(cross_entropy(logits, expected, reduction="sum"))
        hits.append((logits.argmax(1) == expected).sum())
        outputs.append(logits.float())
    return score(torch.cat(outputs).cpu(), labels, total(losses) / len(labels), total(hits) / len(labels))


def total(batches: list[Tensor]) -> float:
    """The sum of one number a batch, in float64: in float32 hundreds of them lose the seventh digit.

    Read back here, once an epoch, because on a GPU each read waits for all work before it.
    """
    return sum(torch.stack(batches).tolist())
