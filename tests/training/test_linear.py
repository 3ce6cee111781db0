"""The gradients of a linear layer that trains alone."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from tvf.training.linear import is_written_out, linear_gradients
from tvf.training.loss import CrossEntropyLoss


@pytest.mark.parametrize("count", [1, 2, 7, 32, 64])
@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_written_out_are_those_of_autograd_bit_for_bit(
    count: int, classes: int, weighted: bool
) -> None:
    layer, inputs = nn.Linear(1280, classes), torch.randn(count, 1280)
    labels = torch.randint(classes, (count,))
    loss = CrossEntropyLoss(class_weights=torch.rand(classes) + 0.1 if weighted else None)
    size = loss.size(labels)
    expected = loss.sum(layer(inputs), labels) / size
    expected.backward()
    gradients = [layer.weight.grad, layer.bias.grad]
    assert is_written_out(layer, loss, [inputs])
    found, logits = linear_gradients(layer, inputs, labels, loss, size)
    assert torch.equal(found, expected) and torch.equal(logits, layer(inputs))
    for parameter, gradient in zip(layer.parameters(), gradients, strict=True):
        assert gradient is not None and parameter.grad is not gradient
        assert parameter.grad is not None and torch.equal(parameter.grad, gradient)


class Squared(CrossEntropyLoss):
    """A user's loss."""


@pytest.mark.parametrize(
    ("layer", "loss", "dtype"),
    [
        (nn.Linear(4, 2, bias=False), CrossEntropyLoss(), torch.float32),
        (nn.Linear(4, 2), CrossEntropyLoss(label_smoothing=0.1), torch.float32),
        (nn.Linear(4, 2), Squared(), torch.float32),
        (nn.Linear(4, 2), CrossEntropyLoss(), torch.bfloat16),
        (nn.Linear(4, 2).requires_grad_(False), CrossEntropyLoss(), torch.float32),
    ],
)
def test_other_layers_losses_and_inputs_are_left_to_autograd(
    layer: nn.Linear, loss: CrossEntropyLoss, dtype: torch.dtype
) -> None:
    assert not is_written_out(layer, loss, [torch.randn(3, 4, dtype=dtype)])


@pytest.mark.parametrize(
    "observe",
    [
        lambda layer: layer.register_forward_pre_hook(lambda *_: None),
        lambda layer: layer.register_forward_hook(lambda *_: None),
        lambda layer: layer.register_full_backward_hook(lambda *_: None),
        lambda layer: layer.register_full_backward_pre_hook(lambda *_: None),
        lambda layer: layer.weight.register_hook(lambda gradient: gradient * 0),
        lambda layer: layer.bias.register_post_accumulate_grad_hook(lambda _: None),
        lambda layer: setattr(layer, "forward", lambda inputs: inputs[:, :2]),
    ],
)
def test_a_layer_that_something_else_has_a_say_in_is_left_to_autograd(
    observe: Callable[[nn.Linear], object],
) -> None:
    layer = nn.Linear(4, 2)
    assert is_written_out(layer, CrossEntropyLoss(), [torch.randn(3, 4)])
    observe(layer)
    assert not is_written_out(layer, CrossEntropyLoss(), [torch.randn(3, 4)])
