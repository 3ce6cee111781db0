"""Which groups the labels pull at: gradients relative to the weights that they would move."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tvf.frontier import EpochInputs
from tvf.models import Backbone, FineTuneModel, Ridge, best_scale, preserve_freezing


def set_head(backbone: Backbone, probe: Ridge, labels: Tensor) -> bool:
    """Set the head to a probe of its input; return whether it could be, which a linear one can."""
    head = backbone.module.get_submodule(backbone.head)
    if type(head) is not nn.Linear or head.in_features != len(probe.weight):
        return False
    scale = best_scale(probe.left_out, labels)
    with torch.no_grad():
        head.weight.copy_(scale * probe.weight.T)
        if head.bias is not None:
            head.bias.copy_(scale * probe.bias)
    return True


def relative_gradients(
    model: FineTuneModel, inputs: EpochInputs, labels: Tensor, batch_size: int
) -> dict[str, float]:
    """The norm of the loss's gradient over that of the weights, by group, deepest first.

    Lee, Chen, Tajwar, Kumar, Yao, Liang and Finn 2023 (surgical fine-tuning), for whole groups: the
    gradient is that of the mean loss of all these images at once, in eval mode, under the head that
    the model has. A group without gradients, or whose weights are all 0, has 0.
    """
    samples = np.arange(len(labels))
    batches = np.split(samples, range(batch_size, len(samples), batch_size))
    with preserve_freezing(model):
        model.unfreeze()
        model.eval()
        for tensors, chosen in zip(inputs.batches(batches), batches, strict=True):
            logits = model(*tensors)
            expected = labels[torch.from_numpy(chosen)].to(logits.device)
            (cross_entropy(logits.float(), expected, reduction="sum") / len(labels)).backward()
        found = {group.name: _ratio(model.parameters_of(group)) for group in model.trained_groups}
        model.zero_grad(set_to_none=True)
    return found


def _ratio(parameters: list[nn.Parameter]) -> float:
    squares = [p.grad.double().square().sum() for p in parameters if p.grad is not None]
    gradient = float(sum(square.item() for square in squares)) ** 0.5
    weights = sum(p.detach().double().square().sum().item() for p in parameters) ** 0.5
    return gradient / weights if weights else 0.0
