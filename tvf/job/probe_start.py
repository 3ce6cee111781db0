"""Starts a probe's head from ridge regression, which finds in seconds what steps would not.

On the tasks of docs/answer.md, a head of random weights on all depths does no better than one on
the last depth within a job's epochs. From the ridge solution on, training changes little.
"""

import logging

import numpy as np
import torch
from torch import Tensor

from tvf.job.phases import JobPhases
from tvf.models import ProbeModel, best_scale, fit_ridge

MOST_IMAGES = 4000  # more take much longer, and the steps of training see them all

log = logging.getLogger(__name__)


def start_from_ridge(phases: JobPhases) -> None:
    """Set the head of a job's ProbeModel by ridge regression on its training images, unaugmented.

    At most MOST_IMAGES, drawn at random. Leave-one-out chooses the penalty, and the scale of the
    logits.
    """
    assert isinstance(phases.model, ProbeModel)
    probe, labels = phases.model.probe, phases.data.train.labels
    order = np.random.default_rng(0).permutation(len(labels))
    samples = np.sort(order[:MOST_IMAGES])
    inputs = probe_inputs(phases, "train", samples).double()
    mean, spread = probe.standardise(inputs)
    classes, chosen = len(phases.data.classes), labels[torch.from_numpy(samples)]
    ridge = fit_ridge((inputs - mean) / spread, chosen, classes, standardise=False)
    scale = best_scale(ridge.left_out, chosen)
    weight = scale * ridge.weight / spread[:, None]  # [width, C], of inputs as they are
    with torch.no_grad():
        probe.head.weight.copy_(weight.T)
        probe.head.bias.copy_(scale * ridge.bias - mean @ weight)
    right = float((ridge.left_out.argmax(1) == chosen).double().mean())
    log.info(
        "%s the head starts from ridge regression on %s features of %d depths and %s training "
        "images: accuracy %.3f (each left out in turn)",
        phases.tag,
        f"{inputs.shape[1]:,}",
        len(probe.depths),
        f"{len(samples):,}",
        right,
    )


def probe_inputs(phases: JobPhases, split: str, samples: np.ndarray) -> Tensor:
    """What a ProbeModel's head reads for samples of a split, unaugmented, float32 [N, width]."""
    inputs, rows = phases.pipeline_of(0).evaluate(split), list[Tensor]()
    assert isinstance(phases.model, ProbeModel)
    hook = phases.model.probe.head.register_forward_pre_hook(
        lambda _, seen: rows.append(seen[0].detach().cpu())
    )
    try:
        batches = np.split(samples, range(phases.batch_size, len(samples), phases.batch_size))
        with torch.no_grad():
            for batch in batches:  # one by one: a device has room for the rows of epochs alone
                inputs.module(*inputs.inputs(batch))
    finally:
        hook.remove()
    return torch.cat(rows)
