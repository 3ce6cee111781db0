"""The loop: epochs of training and validation, keeping the weights that validate best.

Everything random in it is a pure function of seeds and positions: sample order of (seed, epoch), pixels of
(augment seed, view = epoch, sample). Only dropout, where a network has it, draws from torch's generator.
"""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm

from tvf.data.order import batches, sample_order
from tvf.errors import InputError
from tvf.feed import Feed, Pass


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

    def better_than(self, other: "Epoch | None") -> bool:
        """By validation accuracy, then by validation loss; of equals the earlier one stands."""
        return other is None or (self.val_acc, -self.val_loss) > (other.val_acc, -other.val_loss)


def fit(
    fabric: Fabric,
    feed: Feed,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    on_epoch: Callable[[Epoch, bool], None],
    progress: bool = False,
) -> Epoch:
    """Train for `epochs` and return the best epoch. `optimizer` is set up by `fabric`, as the feed's module is.

    `on_epoch(epoch, is_best)` is called after each; the model then holds that epoch's weights. Raises InputError when
    the training loss is no longer a finite number.
    """
    best, train_labels, val_labels = None, feed.data.train.labels, feed.data.val.labels
    for number in range(1, epochs + 1):
        start = time.perf_counter()
        rates = [group["lr"] for group in optimizer.param_groups]
        training = feed.train(number)
        ready = time.perf_counter()
        order = sample_order(seed, number, len(train_labels))
        parts = tqdm(
            list(batches(order, batch_size)), f"epoch {number}", leave=False, disable=None if progress else True
        )
        train_loss, train_acc = train_epoch(fabric, training, optimizer, train_labels, parts)
        if not math.isfinite(train_loss):
            raise InputError(f"training diverged: train_loss is {train_loss} in epoch {number}. Lower the rates.")
        trained = time.perf_counter()
        val_loss, val_acc = evaluate(fabric, feed.evaluate("val"), val_labels, batch_size)
        scheduler.step()
        epoch = Epoch(
            epoch=number,
            train_loss=train_loss,
            train_acc=train_acc,
            val_loss=val_loss,
            val_acc=val_acc,
            lr_head=rates[0],
            lr_backbone=rates[1] if len(rates) > 1 else None,
            epoch_seconds=time.perf_counter() - start,
            images_per_second=len(train_labels) / (trained - ready),
        )
        is_best = epoch.better_than(best)
        best = epoch if is_best else best
        on_epoch(epoch, is_best)
    assert best is not None, "epochs is at least 1"
    return best


def train_epoch(
    fabric: Fabric, run: Pass, optimizer: Optimizer, labels: Tensor, batches: Iterable[np.ndarray]
) -> tuple[float, float]:
    """One pass over the batches; mean loss and accuracy over their images, each as its batch was trained on."""
    losses, hits, count = [], [], 0
    for samples in batches:
        inputs, expected = run.inputs(samples), fabric.to_device(labels[torch.from_numpy(samples)])
        optimizer.zero_grad()
        logits = run.module(*inputs)
        loss = cross_entropy(logits, expected)
        fabric.backward(loss)
        optimizer.step()
        losses.append(loss.detach() * len(samples))
        hits.append((logits.detach().argmax(1) == expected).sum())
        count += len(samples)
    return total(losses) / count, total(hits) / count


@torch.no_grad()
def evaluate(fabric: Fabric, run: Pass, labels: Tensor, batch_size: int) -> tuple[float, float]:
    """Mean loss and accuracy over a part whose labels are given, without augmentation."""
    losses, hits = [], []
    for samples in np.split(np.arange(len(labels)), range(batch_size, len(labels), batch_size)):
        logits = run.module(*run.inputs(samples))
        expected = fabric.to_device(labels[torch.from_numpy(samples)])
        losses.append(cross_entropy(logits, expected, reduction="sum"))
        hits.append((logits.argmax(1) == expected).sum())
    return total(losses) / len(labels), total(hits) / len(labels)


def total(batches: list[Tensor]) -> float:
    """The sum of one number a batch, in float64: in float32 hundreds of them lose the seventh digit.

    Read back here, once an epoch, because on a GPU each read waits for all work before it.
    """
    return sum(torch.stack(batches).tolist())
