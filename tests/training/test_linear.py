"""The gradients of a linear layer that trains alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.devices import DEVICES
from tvf.training.linear import _one_over, is_written_out, linear_gradients
from tvf.training.loss import CrossEntropyLoss

VIEWS = ("aten.t", "aten.view", "aten.detach", "aten._to_copy")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("count", [1, 2, 7, 32, 64])
@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_written_out_are_those_of_autograd_bit_for_bit(
    device: str, count: int, classes: int, weighted: bool
) -> None:
    layer, inputs = nn.Linear(1280, classes).to(device), torch.randn(count, 1280, device=device)
    classes_of = torch.randint(classes, (count,))
    loss = CrossEntropyLoss(class_weights=torch.rand(classes) + 0.1 if weighted else None)
    labels, size = classes_of.to(device), loss.size(classes_of)
    expected = loss.sum(layer(inputs), labels) / size
    expected.backward()
    gradients = [layer.weight.grad, layer.bias.grad]
    assert is_written_out(layer, loss, [inputs])
    found, logits = linear_gradients(layer, inputs, labels, loss, size)
    assert torch.equal(found, expected) and torch.equal(logits, layer(inputs))
    for parameter, gradient in zip(layer.parameters(), gradients, strict=True):
        assert gradient is not None and parameter.grad is not gradient
        assert parameter.grad is not None and torch.equal(parameter.grad, gradient)


class Operations(TorchDispatchMode):
    """Notes what is computed, other than views and copies, and on what kind of device."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.devices: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func.overloadpacket).removesuffix("_like")
        if str(func).startswith("aten.") and name not in VIEWS:
            self.names.append(name)
            self.devices |= {value.device.type for value in args if isinstance(value, Tensor)}
        return func(*args, **(kwargs or {}))


def test_a_gpu_is_given_the_operations_that_autograd_calls() -> None:
    """On tensors without values, so that it takes no GPU.

    Autograd's own on a GPU are known up to the loss. Those of the backward pass follow from
    derivatives.yaml, where none of these has another formula for a GPU.
    """

    def noted(device: str, compute: Callable[..., object]) -> Operations:
        _one_over.cache_clear()
        with FakeTensorMode():
            layer, inputs = nn.Linear(8, 3, device=device), torch.randn(5, 8, device=device)
            labels = torch.randint(3, (5,), device=device)
            loss = CrossEntropyLoss(class_weights=torch.rand(3))
            with Operations() as operations:
                compute(layer, inputs, labels, loss)
        _one_over.cache_clear()
        return operations

    def forward(layer: Any, inputs: Any, labels: Any, loss: Any) -> Any:
        return loss.sum(layer(inputs), labels) / 2.5

    written_out = noted("cuda", lambda *given: linear_gradients(*given, size=2.5))
    assert written_out.devices == {"cuda"}
    by_autograd = noted("cpu", lambda *given: forward(*given).backward())
    assert sorted(written_out.names) == sorted(by_autograd.names)
    on_gpu = noted("cuda", forward)
    assert on_gpu.names == by_autograd.names[: len(on_gpu.names)] and len(on_gpu.names) == 4


def test_a_layer_under_autocast_is_left_to_autograd() -> None:
    layer, inputs = nn.Linear(4, 2), [torch.randn(3, 4)]
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_written_out(layer, CrossEntropyLoss(), inputs)


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
