"""The gradients of a linear layer that trains alone, written out.

Such a step takes little arithmetic: most of its time goes into recording and replaying it. Done by
hand, with the kernels that autograd would call, it gives the same bits. Which these are is in
torch's derivatives.yaml, for CPUs and GPUs alike.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from tvf.training.loss import CrossEntropyLoss

aten = torch.ops.aten
SUM = 2  # the code of the reduction "sum" in torch's kernels
NO_CLASS = -100  # cross_entropy's default ignore_index


def is_written_out(layer: nn.Linear, loss: object, inputs: Sequence[Tensor]) -> bool:
    """Whether `linear_gradients` gives what autograd would for this layer, loss and batch."""
    plain = type(loss) is CrossEntropyLoss and not loss.label_smoothing
    tensors, device = (*inputs, layer.weight, layer.bias), layer.weight.device
    return (
        plain
        and inputs[0].ndim == 2
        and device.type in ("cpu", "cuda")
        and all(t is not None and t.dtype == torch.float32 and t.device == device for t in tensors)
        and not torch.is_autocast_enabled(device.type)
        and layer.weight.requires_grad
        and layer.bias.requires_grad
        and not _is_observed(layer)
    )


def _is_observed(layer: nn.Linear) -> bool:
    """Whether hooks, or a `forward` of its own, have a say in what the layer computes."""
    hooks = [value for name, value in vars(layer).items() if name.endswith("_hooks")]
    hooks += [parameter._backward_hooks for parameter in layer.parameters()]
    hooks += [parameter._post_accumulate_grad_hooks for parameter in layer.parameters()]
    return any(hooks) or "forward" in vars(layer)


@torch.no_grad()
def linear_gradients(
    layer: nn.Linear, inputs: Tensor, labels: Tensor, loss: CrossEntropyLoss, size: float
) -> tuple[Tensor, Tensor]:
    """Set the gradients of `layer` for the loss summed over a batch and divided by `size`.

    `inputs` are float32 [N, features], `labels` int64 [N]. Returns the loss and the logits,
    [N, classes].
    """
    logits = torch.addmm(layer.bias, inputs, layer.weight.t())
    log_shares = torch.log_softmax(logits, 1)
    choice = (labels, loss.weights_for(logits), SUM, NO_CLASS)
    total, weight = aten.nll_loss_forward.default(log_shares, *choice)
    of_shares = aten.nll_loss_backward.default(
        _one_over(size, total.device), log_shares, *choice, weight
    )
    of_logits = aten._log_softmax_backward_data.default(of_shares, log_shares, 1, logits.dtype)
    layer.weight.grad = of_logits.t().mm(inputs)
    layer.bias.grad = of_logits.sum(0)
    return total / size, logits


@lru_cache(maxsize=256)
def _one_over(size: float, device: torch.device) -> Tensor:
    """The gradient of a sum that is divided by `size`, computed where autograd would compute it."""
    return torch.ones((), device=device) / size
