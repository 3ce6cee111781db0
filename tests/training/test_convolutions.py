"""Convolutions that are trained by other kernels than oneDNN's."""

from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d
from torch.utils.checkpoint import checkpoint

from tvf.models import efficientnet_lite0
from tvf.training.convolutions import FastConvolutions, fast_convolutions


def channels_last(*shape: int) -> Tensor:
    return torch.randn(shape).contiguous(memory_format=torch.channels_last).requires_grad_()


def check_gradients(
    images: Tensor, weight: Tensor, *geometry: int, bias: Tensor | None = None
) -> str:
    """Compare output and gradients with those in float64; return what made the output."""
    operands = [images, weight, *([] if bias is None else [bias])]
    exact = [each.detach().double().requires_grad_() for each in operands]
    expected = conv2d(exact[0], exact[1], exact[2] if len(exact) == 3 else None, *geometry)
    with FastConvolutions():
        output = conv2d(images, weight, bias, *geometry)
    direction = torch.randn_like(output)
    torch.testing.assert_close(output.double(), expected, rtol=1e-5, atol=1e-5)
    found = torch.autograd.grad(output, operands, direction)
    correct = torch.autograd.grad(expected, exact, direction.double())
    for one, other in zip(found, correct, strict=True):
        largest = float(other.abs().max())
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5 * largest)
        assert one.shape == other.shape
    assert output.grad_fn is not None
    return type(output.grad_fn).__name__


@pytest.mark.parametrize(("kernel", "stride", "padding"), [*product((5, 7), (1, 2, 3), (0, 2, 3))])
def test_depthwise_convolutions_have_their_gradients(
    kernel: int, stride: int, padding: int
) -> None:
    for height, width in ((5, 6), (3, 7), (1, 6)):
        if min(height, width) + 2 * padding >= kernel:
            images, weight = channels_last(3, 6, height, width), channels_last(6, 1, kernel, kernel)
            made_by = check_gradients(images, weight, stride, padding, 1, 6)
            assert made_by == "_DepthwiseBackward"


def test_pointwise_convolutions_have_their_gradients() -> None:
    for bias in (None, torch.randn(7, requires_grad=True)):
        images, weight = channels_last(3, 6, 5, 4), channels_last(7, 6, 1, 1)
        assert check_gradients(images, weight, bias=bias) == "PermuteBackward0"


@pytest.mark.parametrize(
    ("images", "weight", "geometry"),
    [
        ((2, 6, 9, 9), (6, 1, 5, 5), (1, 2, 1, 6)),  # a large map
        ((2, 6, 7, 7), (6, 1, 3, 3), (1, 1, 1, 6)),  # a small kernel
        ((2, 6, 7, 7), (12, 1, 5, 5), (1, 2, 1, 6)),  # two filters per channel
        ((2, 6, 7, 7), (6, 2, 5, 5), (1, 2, 1, 3)),  # in groups of two
        ((2, 6, 7, 7), (6, 1, 5, 5), (1, 4, 2, 6)),  # dilated
        ((2, 6, 7, 7), (4, 6, 1, 1), (2,)),
        ((2, 6, 7, 7), (4, 6, 1, 1), (1, 1)),
        ((2, 6, 7, 7), (4, 6, 3, 3), (1, 1)),
    ],
)
def test_other_convolutions_are_left_alone(
    images: tuple[int, ...], weight: tuple[int, ...], geometry: tuple[int, ...]
) -> None:
    made_by = check_gradients(channels_last(*images), channels_last(*weight), *geometry)
    assert made_by == "ConvolutionBackward0"


def test_frozen_weights_and_evaluation_are_left_alone() -> None:
    images, weight = channels_last(2, 6, 3, 3), channels_last(6, 1, 5, 5)
    expected = conv2d(images, weight, None, 1, 2, 1, 6)
    with FastConvolutions():
        frozen = conv2d(images, weight.detach(), None, 1, 2, 1, 6)
        with torch.no_grad():
            evaluated = conv2d(images, weight, None, 1, 2, 1, 6)
        contiguous = conv2d(images.contiguous(), weight, None, 1, 2, 1, 6)
        text = conv2d(images, weight, None, padding="same", groups=6)
    for each in (frozen, evaluated, contiguous, text):
        assert type(each.grad_fn).__name__ in ("ConvolutionBackward0", "NoneType")
        torch.testing.assert_close(each, expected)


def test_other_numbers_are_left_alone() -> None:
    images, weight = channels_last(2, 6, 3, 3), channels_last(4, 6, 1, 1)
    with FastConvolutions():
        double = conv2d(images.double(), weight.double())
        with torch.autocast("cpu", torch.bfloat16):
            mixed = conv2d(images, weight)
    assert mixed.dtype == torch.bfloat16
    for each in (double, mixed):
        assert type(each.grad_fn).__name__ == "ConvolutionBackward0"


@pytest.mark.parametrize(("capability", "fast"), [("AVX2", True), ("AVX512", False)])
def test_only_cpus_on_which_it_was_measured_train_faster(
    capability: str, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    images, weight = channels_last(2, 6, 3, 3), channels_last(4, 6, 1, 1)
    with fast_convolutions(torch.device("cpu")):
        output = conv2d(images, weight)
    assert (type(output.grad_fn).__name__ == "PermuteBackward0") == fast
    assert not isinstance(fast_convolutions(torch.device("meta")), FastConvolutions)


def test_blocks_that_are_computed_again_in_the_backward_pass_can_be_trained() -> None:
    images, weight = channels_last(2, 6, 3, 3), channels_last(4, 6, 1, 1)
    with FastConvolutions():
        output = checkpoint(conv2d, images, weight, use_reentrant=False)
    output.sum().backward()
    assert weight.grad is not None


def test_gradients_of_a_network_agree() -> None:
    """In all layers together: to 1e-5 of the largest. Single layers: see above."""
    torch.manual_seed(1)
    network = efficientnet_lite0(3, pretrained=False).module.eval()
    network.to(memory_format=torch.channels_last)
    images, labels = channels_last(4, 3, 96, 96).detach(), torch.tensor([0, 1, 2, 1])

    def gradients() -> list[Tensor]:
        loss = torch.nn.functional.cross_entropy(network(images), labels)
        return [*torch.autograd.grad(loss, [*network.parameters()])]

    plain = gradients()
    with FastConvolutions():
        fast = gradients()
    assert any((one != other).any() for one, other in zip(plain, fast, strict=True))
    for one, other in zip(plain, fast, strict=True):
        assert (one - other).abs().max() <= 1e-5 * other.abs().max().clamp(min=1e-3)
