"""One training step, and one evaluation pass. With several ranks, each computes its share."""

from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.nn.functional import cross_entropy

from tvf.distributed import gather, global_batchnorm, reduce_gradients, share_of
from tvf.frontier import EpochInputs
from tvf.training.convolutions import fast_convolutions
from tvf.training.ema import WeightAverage
from tvf.training.graphs import PassGraph
from tvf.training.linear import is_written_out, linear_gradients
from tvf.training.loss import CrossEntropyLoss, ImageMixing, share_by_weight
from tvf.training.scores import Scores, compute_scores
from tvf.training.state import PhaseSetup


@dataclass(frozen=True)
class StepOptions:
    """How a job trains on a batch, in every phase.

    `seed` determines the sample order and the random draws for each batch. Gradients longer than
    `clip_norm` are scaled down to it (Pascanu et al. 2013).
    """

    batch_size: int
    seed: int = 0
    loss: CrossEntropyLoss = CrossEntropyLoss()
    mix: ImageMixing | None = None
    clip_norm: float | None = None
    average: WeightAverage | None = None

    def averaged(self) -> AbstractContextManager[None]:
        """A context in which the model holds the weights to validate and to save."""
        return self.average.in_place() if self.average else nullcontext()


@dataclass(frozen=True)
class Batch:
    """One global batch on the device.

    `inputs` are what the module takes, of the samples `own`: this rank's share or, if images are
    mixed, all of them. `labels`, int64 [N], are those of the global batch, `classes` the same on
    the host; likewise `weights`, float [N], and `host_weights`, if the images have any.
    """

    inputs: tuple[Tensor, ...]
    labels: Tensor
    classes: Tensor
    own: slice
    weights: Tensor | None = None
    host_weights: Tensor | None = None


def read_batches(
    fabric: Fabric,
    inputs: EpochInputs,
    labels: Tensor,
    batches: Sequence[np.ndarray],
    whole: bool = False,
    weights: Tensor | None = None,
) -> Generator[Batch, None, None]:
    """Yield the batches in turn; `labels`, int64, and `weights` are those of the whole split.

    With several ranks, `inputs` are read for this rank's share unless `whole`. The labels of all
    batches go to the device in one copy, so that no step waits for one.
    """
    shares = [_own_share(fabric, len(samples)) for samples in batches]
    read = batches if whole else [b[own] for b, own in zip(batches, shares, strict=True)]
    sizes = [*map(len, batches)]
    order = torch.from_numpy(np.concatenate([np.empty(0, np.int64), *batches]))

    def both(values: Tensor | None) -> list[Any]:
        """The values of each batch on the device, and on the host."""
        if values is None:
            return [[None] * len(sizes)] * 2
        chosen = values[order]
        return [fabric.to_device(chosen).split(sizes), chosen.split(sizes)]

    with closing(inputs.batches(read)) as tensors:
        columns = (*both(labels), shares, *both(weights))
        yield from (Batch(*parts) for parts in zip(tensors, *columns, strict=True))


def _own_share(fabric: Fabric, count: int) -> slice:
    """This rank's share of a global batch: shares are contiguous."""
    if fabric.world_size == 1:
        return slice(0, count)
    own = share_of(np.arange(count), fabric.global_rank, fabric.world_size)
    return slice(int(own[0]), int(own[-1]) + 1) if len(own) else slice(0, 0)


def train_step(
    fabric: Fabric,
    setup: PhaseSetup,
    source: EpochInputs,
    options: StepOptions,
    batch: Batch,
    draws: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Train on a batch; return its summed loss and hits before the step.

    `draws` seeds the random draws for this batch. A hit is a correct prediction; a mixed image
    counts as the share of its predicted class. With several ranks, each computes its share. Nothing
    here reads from the device, or the host would wait for all earlier work.
    """
    classes = len(setup.pipeline.data.classes)
    inputs, expected, targets, weights = _targets(batch, options.mix, classes, draws)
    if fabric.world_size > 1:  # dropout must differ between ranks
        seeds = np.random.SeedSequence([*draws, fabric.global_rank])
        torch.manual_seed(int(seeds.generate_state(1)[0]))
    optimizer = setup.optimizer
    if weights is None:
        size, further = options.loss.size(batch.classes), ()
    else:
        size, further = options.loss.size(batch.classes, batch.host_weights), (weights,)
    plain = not further and options.mix is None
    if plain and source.linear and is_written_out(source.linear, options.loss, inputs):
        loss, logits = linear_gradients(source.linear, inputs[0], targets, options.loss, size)
    else:
        optimizer.zero_grad()
        with global_batchnorm(fabric), fast_convolutions(fabric.device):
            forward = setup.graph.choose(source, inputs) if setup.graph else source.module
            logits = forward(*inputs)
        loss = options.loss.sum(logits, targets, *further) / size
        fabric.backward(loss)
    reduce_gradients(fabric, (p for group in optimizer.param_groups for p in group["params"]))
    if options.clip_norm is not None:
        # Gradients that are not finite are skipped by float16's loss scaler; a loss that is not
        # finite ends the job.
        fabric.clip_gradients(
            setup.pipeline.module,
            optimizer,
            max_norm=options.clip_norm,
            error_if_nonfinite=False,
        )
    optimizer.step()
    if options.average:
        options.average.update()
    predicted = logits.detach().argmax(1)
    hits = expected.gather(1, predicted[:, None]) if options.mix else predicted == expected
    loss_sum = loss.detach() * len(batch.classes)
    if fabric.world_size == 1:
        return loss_sum, hits.sum().to(loss_sum)
    loss_sum, hit_sum = gather(fabric, torch.stack([loss_sum, hits.sum()])[None]).sum(0)
    return loss_sum, hit_sum


def _targets(
    batch: Batch, mix: ImageMixing | None, classes: int, draws: Sequence[int]
) -> tuple[tuple[Tensor, ...], Tensor, Tensor, Tensor | None]:
    """What this rank trains on: inputs, the labels or shares to expect, targets, weights."""
    own, labels, weights = batch.own, batch.labels, batch.weights
    if mix is None:
        expected = labels[own]
        return batch.inputs, expected, expected, None if weights is None else weights[own]
    # With neighbours that may be in another rank's share.
    if weights is None:
        mixed, shares = mix(batch.inputs[0], labels, classes, draws)
        return (mixed[own],), shares[own], shares[own], None
    numbers = torch.arange(len(labels), device=labels.device)
    mixed, parts = mix(batch.inputs[0], numbers, len(labels), draws)
    shares, targets, weights = share_by_weight(parts, labels, weights, classes)
    return (mixed[own],), shares[own], targets[own], weights[own]


def evaluate(
    fabric: Fabric,
    inputs: EpochInputs,
    labels: Tensor,
    batch_size: int,
    graph: PassGraph | None = None,
) -> tuple[Scores, Tensor]:
    """The scores of a split with these labels, int64 [N], and the classes predicted for it, [N].

    The loss is the mean over its images. The classes have the smallest integer type that fits.
    """
    logits, loss, acc = predict(fabric, inputs, labels, batch_size, graph)
    return compute_scores(logits, labels, loss, acc), _predicted_classes(logits)


def _predicted_classes(logits: Tensor) -> Tensor:
    classes = logits.shape[1]
    integers = (torch.uint8, torch.int16, torch.int32)
    fits = next(kind for kind in integers if classes - 1 <= torch.iinfo(kind).max)
    return logits.argmax(1).to(fits)


@torch.no_grad()
def predict(
    fabric: Fabric,
    inputs: EpochInputs,
    labels: Tensor,
    batch_size: int,
    graph: PassGraph | None = None,
) -> tuple[Tensor, float, float]:
    """The logits of a split, float [N, C] on the CPU, with their mean loss and accuracy.

    With several ranks, each computes its share and gets those of the whole split.
    """
    losses, hits, outputs = [], [], []
    own = share_of(np.arange(len(labels)), fabric.global_rank, fabric.world_size)
    batches = np.split(own, range(batch_size, len(own), batch_size))
    for batch in read_batches(fabric, inputs, labels, batches, whole=True):
        forward = graph.choose(inputs, batch.inputs) if graph else inputs.module
        logits = forward(*batch.inputs)
        losses.append(cross_entropy(logits, batch.labels, reduction="sum"))
        hits.append((logits.argmax(1) == batch.labels).sum())
        outputs.append(logits.float() if graph is None else logits.float().clone())
    logits = gather(fabric, torch.cat(outputs)).cpu()
    loss = sum(gather(fabric, torch.stack(losses)).tolist()) / len(labels)
    acc = sum(gather(fabric, torch.stack(hits)).tolist()) / len(labels)
    return logits, loss, acc


def sum_batches(values: list[Tensor]) -> float:
    """The sum of one number per batch, in float64: hundreds in float32 lose the seventh digit.

    The values are read once per epoch, because on a GPU each read waits for all earlier work.
    """
    return sum(torch.stack(values).tolist())
