"""One training step, and one evaluation pass. With several ranks, each computes its share."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.nn.functional import cross_entropy

from tvf.distributed import gather, global_batchnorm, reduce_gradients, share_of
from tvf.frontier import EpochInputs
from tvf.training.ema import WeightAverage
from tvf.training.loss import CrossEntropyLoss, ImageMixing
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


def train_step(
    fabric: Fabric,
    setup: PhaseSetup,
    inputs: EpochInputs,
    options: StepOptions,
    samples: np.ndarray,
    draws: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Train on the images `samples`; return the batch's summed loss and hits before the step.

    `draws` seeds the random draws for this batch. A hit is a correct prediction; a mixed image
    counts as the share of its predicted class. With several ranks, each computes its share.
    """
    data = setup.pipeline.data
    labels = data.train.labels[torch.from_numpy(samples)]
    own = share_of(np.arange(len(samples)), fabric.global_rank, fabric.world_size)
    targets = expected = fabric.to_device(labels[torch.from_numpy(own)])
    if options.mix:  # with neighbours that may be in another rank's share
        (images,) = inputs.inputs(samples)
        classes = len(data.classes)
        mixed, shares = options.mix(images, fabric.to_device(labels), classes, draws)
        batch, targets = (mixed[torch.from_numpy(own)],), shares[torch.from_numpy(own)]
    else:
        batch = _read_share(inputs, samples, own)
    if fabric.world_size > 1:  # dropout must differ between ranks
        seeds = np.random.SeedSequence([*draws, fabric.global_rank])
        torch.manual_seed(int(seeds.generate_state(1)[0]))
    optimizer = setup.optimizer
    optimizer.zero_grad()
    with global_batchnorm(fabric):
        logits = inputs.module(*batch)
    loss = options.loss.sum(logits, targets) / options.loss.size(labels)
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
    hits = targets.gather(1, predicted[:, None]) if options.mix else predicted == expected
    sums = torch.stack([loss.detach() * len(samples), hits.sum()])
    loss_sum, hit_sum = gather(fabric, sums[None]).sum(0)
    return loss_sum, hit_sum


def _read_share(inputs: EpochInputs, samples: np.ndarray, own: np.ndarray) -> tuple[Tensor, ...]:
    """The inputs of the samples at the positions `own`, which may be empty."""
    if len(own):
        return inputs.inputs(samples[own])
    return tuple(tensor[:0] for tensor in inputs.inputs(samples[:1]))


def evaluate(
    fabric: Fabric, inputs: EpochInputs, labels: Tensor, batch_size: int
) -> tuple[Scores, Tensor]:
    """The scores of a split with these labels, int64 [N], and the classes predicted for it, [N].

    The loss is the mean over its images. The classes have the smallest integer type that fits.
    """
    logits, loss, acc = predict(fabric, inputs, labels, batch_size)
    return compute_scores(logits, labels, loss, acc), _predicted_classes(logits)


def _predicted_classes(logits: Tensor) -> Tensor:
    classes = logits.shape[1]
    integers = (torch.uint8, torch.int16, torch.int32)
    fits = next(kind for kind in integers if classes - 1 <= torch.iinfo(kind).max)
    return logits.argmax(1).to(fits)


@torch.no_grad()
def predict(
    fabric: Fabric, inputs: EpochInputs, labels: Tensor, batch_size: int
) -> tuple[Tensor, float, float]:
    """The logits of a split, float [N, C] on the CPU, with their mean loss and accuracy.

    With several ranks, each computes its share and gets those of the whole split.
    """
    losses, hits, outputs, samples = [], [], [], np.arange(len(labels))
    own = share_of(samples, fabric.global_rank, fabric.world_size)
    for batch in np.split(own, range(batch_size, len(own), batch_size)):
        logits = inputs.module(*_read_share(inputs, samples, batch))
        expected = fabric.to_device(labels[torch.from_numpy(batch)])
        losses.append(cross_entropy(logits, expected, reduction="sum"))
        hits.append((logits.argmax(1) == expected).sum())
        outputs.append(logits.float())
    logits = gather(fabric, torch.cat(outputs)).cpu()
    loss = sum(gather(fabric, torch.stack(losses)).tolist()) / len(labels)
    acc = sum(gather(fabric, torch.stack(hits)).tolist()) / len(labels)
    return logits, loss, acc


def sum_batches(values: list[Tensor]) -> float:
    """The sum of one number per batch, in float64: hundreds in float32 lose the seventh digit.

    The values are read once per epoch, because on a GPU each read waits for all earlier work.
    """
    return sum(torch.stack(values).tolist())
