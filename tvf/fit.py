"""The loop: epochs of training and validation, keeping the weights that validate best.

Everything random in it is a pure function of seeds and positions: sample order of (seed, epoch), pixels of
(augment seed, view = epoch, sample). Only dropout, where a network has it, draws from torch's generator.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm

from tvf.data import Dataset, Labelled
from tvf.data.views import Augment
from tvf.errors import InputError
from tvf.models import FineTuneModel


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
    model: FineTuneModel,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    data: Dataset,
    augment: Augment,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    on_epoch: Callable[[Epoch, bool], None],
    progress: bool = False,
) -> Epoch:
    """Train for `epochs` and return the best epoch. `model` and `optimizer` are set up by `fabric`.

    `on_epoch(epoch, is_best)` is called after each; the model then holds that epoch's weights. Raises InputError when
    the training loss is no longer a finite number.
    """
    best = None
    for number in range(1, epochs + 1):
        start = time.perf_counter()
        rates = [group["lr"] for group in optimizer.param_groups]
        train_loss, train_acc = train_epoch(
            fabric, model, optimizer, data.train, augment, number, batch_size, seed, progress=progress
        )
        if not math.isfinite(train_loss):
            raise InputError(f"training diverged: train_loss is {train_loss} in epoch {number}. Lower the rates.")
        trained = time.perf_counter()
        val_loss, val_acc = evaluate(fabric, model, data.val, batch_size)
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
            images_per_second=len(data.train) / (trained - start),
        )
        is_best = epoch.better_than(best)
        best = epoch if is_best else best
        on_epoch(epoch, is_best)
    assert best is not None, "epochs is at least 1"
    return best


def train_epoch(
    fabric: Fabric,
    model: FineTuneModel,
    optimizer: Optimizer,
    part: Labelled,
    augment: Augment,
    epoch: int,
    batch_size: int,
    seed: int,
    *,
    progress: bool = False,
) -> tuple[float, float]:
    """One pass over `part`; mean loss and accuracy over its images, each as it was when its batch was trained on."""
    model.train()
    losses, hits = [], []
    order = sample_order(seed, epoch, len(part))
    for samples in tqdm(
        list(batches(order, batch_size)), f"epoch {epoch}", leave=False, disable=None if progress else True
    ):
        images, labels = take(part, samples)
        images, labels = fabric.to_device((augment(images, samples, epoch), labels))
        optimizer.zero_grad()
        logits = model(images)
        loss = cross_entropy(logits, labels)
        fabric.backward(loss)
        optimizer.step()
        losses.append(loss.detach() * len(labels))
        hits.append((logits.detach().argmax(1) == labels).sum())
    return total(losses) / len(part), total(hits) / len(part)


@torch.no_grad()
def evaluate(fabric: Fabric, model: FineTuneModel, part: Labelled, batch_size: int) -> tuple[float, float]:
    """Mean loss and accuracy of `model` in eval mode over `part`, without augmentation."""
    model.eval()
    losses, hits = [], []
    for samples in np.split(np.arange(len(part)), range(batch_size, len(part), batch_size)):
        images, labels = fabric.to_device(take(part, samples))
        logits = model(images)
        losses.append(cross_entropy(logits, labels, reduction="sum"))
        hits.append((logits.argmax(1) == labels).sum())
    return total(losses) / len(part), total(hits) / len(part)


def total(batches: list[Tensor]) -> float:
    """The sum of one number a batch, in float64: in float32 hundreds of them lose the seventh digit.

    Read back here, once an epoch, because on a GPU each read waits for all work before it.
    """
    return sum(torch.stack(batches).tolist())


def sample_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order in which `count` samples are trained on in `epoch`: int64, a permutation."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def batches(order: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Consecutive batches of `size`, the last one smaller; one sample left over joins the batch before it.

    (BatchNorm has no statistics of a single sample.)
    """
    bounds = list(range(size, len(order), size))
    if size > 1 and bounds and len(order) - bounds[-1] == 1:
        bounds.pop()
    yield from np.split(order, bounds)


def take(part: Labelled, samples: np.ndarray) -> tuple[Tensor, Tensor]:
    """The images and labels of these samples."""
    index = torch.from_numpy(samples)
    return part.images[index], part.labels[index]
