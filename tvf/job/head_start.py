"""Where a probe's head starts: at ridge regression on the training images, in closed form.

Gradient steps alone do not get there: its inputs are thousands of correlated values.
"""

import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tvf.job.setup import Job
from tvf.models import ProbeModel
from tvf.training import best_scale, fit_ridge

log = logging.getLogger(__name__)

MOST_IMAGES = 4000  # more change little, and the solution takes their cube
BATCH = 128
FLOOR = 0.1  # of the mean variance of a depth: values that hardly vary must not count like others


def start_head(job: Job) -> None:
    """Set a probe's head to the ridge classifier of its training images, unaugmented.

    The penalty is what leave-one-out chooses among them; the scale of the logits is what fits their
    labels best, when left out. With an average of the weights, that starts here as well. Does
    nothing to other models, nor to a head that has the weights of `model.init_from`.
    """
    phases, model = job.phases, job.phases.model
    if not isinstance(model, ProbeModel) or not model.head_is_new:
        return
    train = phases.data.train
    count = len(train)
    samples = np.linspace(0, count - 1, min(count, MOST_IMAGES)).astype(np.int64)
    labels = train.labels[torch.from_numpy(samples)]
    features = _head_inputs(job, samples)
    scale = _scale(features, [*model.module.widths.values()])
    ridge = fit_ridge(features * scale, labels, len(phases.data.classes), standardise=False)
    factor = best_scale(ridge.left_out, labels)
    with torch.no_grad():
        model.module.head.weight.copy_(factor * (ridge.weight * scale[:, None]).T)
        model.module.head.bias.copy_(factor * ridge.bias)
    if job.steps.average is not None:
        job.steps.average.reset()
    log.info("%s starts from ridge regression on %d training images.", phases.tag, len(samples))


def _head_inputs(job: Job, samples: np.ndarray) -> Tensor:
    """What the head reads of these training images, float64 [N, width] on the CPU."""
    found: list[Tensor] = []

    def keep(_: Any, inputs: tuple[Tensor, ...]) -> None:
        found.append(inputs[0].double().cpu())

    inputs = job.phases.pipeline_of(0).evaluate("train")
    model: Any = job.phases.model
    hook = model.module.head.register_forward_pre_hook(keep)
    try:
        with torch.no_grad():
            for batch in np.split(samples, range(BATCH, len(samples), BATCH)):
                inputs.module(*inputs.inputs(batch))
    finally:
        hook.remove()
    return torch.cat(found)


def _scale(features: Tensor, widths: list[int]) -> Tensor:
    """The factor of each value that makes them of equal spread, and all depths of equal weight."""
    variances = features.var(0, correction=0).split(widths)
    return torch.cat(
        [
            (variance + FLOOR * variance.mean()).clamp(min=1e-30).rsqrt() * len(variance) ** -0.5
            for variance in variances
        ]
    )
