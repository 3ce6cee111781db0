"""A batch of training, and a pass of evaluation: what one process computes, or each of several ranks its share of."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from tvf.distributed import gather, global_batchnorm, reduce_gradients, share_of
from tvf.frontier import EpochInputs, InputPipeline
from tvf.training.ema import WeightAverage
from tvf.training.loss import CrossEntropyLoss, ImageMixing
from tvf.training.scores import Scores, compute_scores


@dataclass(frozen=True)
class StepOptions:
    """How batches are trained on, in every phase."""

    batch_size: int
    objective: CrossEntropyLoss = CrossEntropyLoss()
    mix: ImageMixing | None = None
    clip_norm: float | None = None
    average: WeightAverage | None = None

    def averaged(self) -> AbstractContextManager[None]:
        """The weights are those to validate and to keep in here."""
        return self.average.in_place() if self.average else nullcontext()


def train_step(
    fabric: Fabric,
    feed: InputPipeline,
    run: EpochInputs,
    optimizer: Optimizer,
    ways: StepOptions,
    samples: np.ndarray,
    draws: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """One step; the batch's summed loss, and how many of its images were classified rightly, before the step.

    `draws` seed what is drawn for this batch alone. A mixed image counts by the share that the class found has in it.
    Of several ranks each computes its share of the batch.
    """
    labels = feed.data.train.labels[torch.from_numpy(samples)]
    mine = share_of(np.arange(len(samples)), fabric.global_rank, fabric.world_size)
    targets = expected = fabric.to_device(labels[torch.from_numpy(mine)])
    if ways.mix:  # with neighbours, who may be another rank's
        (images,) = run.inputs(samples)
        mixed, shares = ways.mix(images, fabric.to_device(labels), len(feed.data.classes), draws)
        inputs, targets = (mixed[torch.from_numpy(mine)],), shares[torch.from_numpy(mine)]
    else:
        inputs = _inputs(run, samples, mine)
    if fabric.world_size > 1:  # each hides other values
        torch.manual_seed(
            int(np.random.SeedSequence([*draws, fabric.global_rank]).generate_state(1)[0])
        )
    optimizer.zero_grad()
    with global_batchnorm(fabric):
        logits = run.module(*inputs)
    loss = ways.objective.sum(logits, targets) / ways.objective.size(labels)
    fabric.backward(loss)
    reduce_gradients(fabric, (each for group in optimizer.param_groups for each in group["params"]))
    if ways.clip_norm is not None:
        # What is not finite the scaler of float16 skips, and the check of losses tells of.
        fabric.clip_gradients(
            feed.module, optimizer, max_norm=ways.clip_norm, error_if_nonfinite=False
        )
    optimizer.step()
    if ways.average:
        ways.average.update()
    found = logits.detach().argmax(1)
    hits = targets.gather(1, found[:, None]) if ways.mix else found == expected
    summed = gather(fabric, torch.stack([loss.detach() * len(samples), hits.sum()])[None]).sum(0)
    return summed[0], summed[1]


def _inputs(run: EpochInputs, samples: np.ndarray, mine: np.ndarray) -> tuple[Tensor, ...]:
    """The inputs of those samples that `mine` numbers, which may be none."""
    if len(mine):
        return run.inputs(samples[mine])
    return tuple(each[:0] for each in run.inputs(samples[:1]))


@torch.no_grad()
def evaluate(fabric: Fabric, run: EpochInputs, labels: Tensor, batch_size: int) -> Scores:
    """The scores of a part whose labels are given, without augmentation; the loss is the mean over its images.

    Of several ranks each computes its share, and has the scores of all.
    """
    losses, hits, outputs, samples = [], [], [], np.arange(len(labels))
    mine = share_of(samples, fabric.global_rank, fabric.world_size)
    for part in np.split(mine, range(batch_size, len(mine), batch_size)):
        logits = run.module(*_inputs(run, samples, part))
        expected = fabric.to_device(labels[torch.from_numpy(part)])
        losses.append(cross_entropy(logits, expected, reduction="sum"))
        hits.append((logits.argmax(1) == expected).sum())
        outputs.append(logits.float())
    logits = gather(fabric, torch.cat(outputs)).cpu()
    loss, acc = (
        sum(gather(fabric, torch.stack(each)).tolist()) / len(labels) for each in (losses, hits)
    )
    return compute_scores(logits, labels, loss, acc)


def sum_batches(batches: list[Tensor]) -> float:
    """The sum of one number a batch, in float64: in float32 hundreds of them lose the seventh digit.

    Read back here, once an epoch, because on a GPU each read waits for all work before it.
    """
    return sum(torch.stack(batches).tolist())
