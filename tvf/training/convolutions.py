"""Faster training of convolutions on small maps, on x86 CPUs with AVX2 but without AVX-512.

Two cases in which oneDNN's kernels are far from what such a CPU can do (bench/roof.py):

- The weights' gradient of a depthwise convolution of 5 x 5 or more. On 3 x 3 pixels of 1,152
  channels it takes 28 ms, and the sums of products below 1.4 ms, with a smaller rounding error.
- A 1 x 1 convolution, which is a matrix product: as such its gradients take two thirds of the time.

EfficientNet, MobileNet, MNASNet and others consist of such layers, ResNets' blocks in part.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

# Of depthwise convolutions, pixels per side: smaller ones are fast, larger ones were not measured.
SMALLEST_KERNEL, LARGEST_KERNEL = 5, 7
LARGEST_MAP = 64  # output pixels: beyond, oneDNN is about as fast


def fast_convolutions(device: torch.device) -> AbstractContextManager[Any]:
    """A context in which convolutions train faster, if they can on this device."""
    able = device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2"
    return FastConvolutions() if able else nullcontext()


class FastConvolutions(TorchFunctionMode):
    """In this context, trained convolutions that oneDNN would differentiate slowly are replaced."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.conv2d:
            output = _convolve(*args, **(kwargs or {}))
            if output is not None:
                return output
        return func(*args, **(kwargs or {}))


def _convolve(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    """The output of torch.conv2d with these arguments; None if oneDNN is fast enough."""
    if isinstance(padding, str) or not _is_trained(input, weight):
        return None
    stride, padding, kernel = _pair(stride), _pair(padding), (weight.shape[2], weight.shape[3])
    sizes = zip(input.shape[2:], kernel, stride, padding, strict=True)
    rows, columns = ((size + 2 * pad - side) // step + 1 for size, side, step, pad in sizes)
    if rows * columns > LARGEST_MAP or _pair(dilation) != (1, 1):
        return None
    if groups == 1 and (kernel, stride, padding) == ((1, 1), (1, 1), (0, 0)):
        return linear(input.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)
    if groups == len(weight) > 1 and weight.shape[1] == 1 and bias is None:
        if SMALLEST_KERNEL <= min(kernel) and max(kernel) <= LARGEST_KERNEL:
            return _Depthwise.apply(input, weight, stride, padding)
    return None


def _is_trained(input: Tensor, weight: Tensor) -> bool:
    return (
        weight.requires_grad
        and torch.is_grad_enabled()
        and all(each.device.type == "cpu" for each in (input, weight))
        and all(each.dtype == torch.float32 for each in (input, weight))
        and not torch.is_autocast_enabled("cpu")
        and input.dim() == 4
        and input.is_contiguous(memory_format=torch.channels_last)
        # What a checkpointed block computes again must save the same tensors, outside this context.
        and torch._C._autograd._top_saved_tensors_default_hooks(True) is None  # type: ignore[attr-defined]
    )


class _Depthwise(Function):
    """A depthwise convolution of [N, C, H, W] with [C, 1, K, L], without bias or dilation."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, stride: Any, padding: Any) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.stride, ctx.padding = stride, padding
        return torch.conv2d(input, weight, None, stride, padding, 1, len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        input, weight = ctx.saved_tensors
        of_input = of_weight = None
        if ctx.needs_input_grad[0]:
            geometry = (ctx.stride, ctx.padding, (1, 1), False, (0, 0), len(weight))
            of_input, _, _ = torch.ops.aten.convolution_backward(
                gradient, input, weight, None, *geometry, (True, False, False)
            )
        if ctx.needs_input_grad[1]:
            of_weight = depthwise_weight_gradient(input, gradient, weight, ctx.stride, ctx.padding)
        return of_input, of_weight, None, None


def depthwise_weight_gradient(
    input: Tensor,
    gradient: Tensor,
    weight: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> Tensor:
    """The gradient of `weight` [C, 1, K, L], from `input` [N, C, H, W] and that of the output.

    A sum of products for each place in the kernel, over the pixels where it is on the input.
    """
    pixels, out = input.permute(0, 2, 3, 1), gradient.permute(0, 2, 3, 1)
    places = [
        [*_overlaps(weight.shape[2 + axis], stride[axis], padding[axis], pixels, out, 1 + axis)]
        for axis in (0, 1)
    ]
    found = torch.zeros_like(weight)
    for row, rows, out_rows in places[0]:
        for column, columns, out_columns in places[1]:
            products = pixels[:, rows, columns] * out[:, out_rows, out_columns]
            found[:, 0, row, column] = products.sum((0, 1, 2))
    return found


def _overlaps(
    kernel: int, stride: int, padding: int, pixels: Tensor, out: Tensor, axis: int
) -> Iterator[tuple[int, slice, slice]]:
    """For each place of the kernel along an axis, which pixels of the input and the output meet."""
    for place in range(kernel):
        offset = place - padding
        first = max(0, -(offset // stride))
        end = min(out.shape[axis], (pixels.shape[axis] - 1 - offset) // stride + 1)
        if first < end:
            start = first * stride + offset
            last = start + (end - first - 1) * stride
            yield place, slice(start, last + 1, stride), slice(first, end)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value) * (2 // len(value))
