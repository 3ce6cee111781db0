"""Collective operations that make the ranks of a job train as a single process would.

Each rank has a share of a global batch. Its loss is the sum over its share divided by the size of
the global batch: summed over ranks, the gradients equal those of the global batch, even if shares
differ in size.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.overrides import TorchFunctionMode

# Ranks may wait for hours while one of them fills the store for all. No rank waits for a dead one,
# see tvf.distributed.ranks.
TIMEOUT = timedelta(days=7)


class RankStrategy(DDPStrategy):
    """Fabric's strategy of one process per device, without its wrapper that reduces gradients.

    tvf.distributed.ranks numbers the ranks, however the job was launched: SLURM, for example, sets
    its own variables.
    """

    def __init__(self) -> None:
        super().__init__(cluster_environment=LightningEnvironment(), timeout=TIMEOUT)

    def setup_module(self, module: nn.Module) -> Any:
        """The module unchanged: `reduce_gradients` does the wrapper's work."""
        return module


def share_of(samples: np.ndarray, rank: int, world: int) -> np.ndarray:
    """This rank's share of a global batch, [N] or [N, ...].

    Shares are contiguous, in rank order, and differ in size by at most one. With fewer samples than
    ranks, the last ranks get none.
    """
    return np.array_split(samples, world)[rank]


def reduce_gradients(fabric: Fabric, parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its sum over the ranks.

    All ranks must pass the same parameters in the same order. A missing gradient counts as zero; if
    it is missing on all ranks, it stays missing, as in one process.

    Why not DistributedDataParallel: it averages over ranks as if their shares had the same size,
    and wraps one module with a fixed set of parameters. Here a share may be smaller or empty, the
    suffix is a different module from the network it is split from, and what trains changes between
    phases.
    """
    if fabric.world_size == 1:
        return
    kinds: dict[tuple[torch.dtype, torch.device], list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.requires_grad:
            kinds.setdefault((parameter.dtype, parameter.device), []).append(parameter)
    for group in kinds.values():
        _reduce_together(group)


def _reduce_together(parameters: list[nn.Parameter]) -> None:
    """Sum the gradients of parameters of one dtype and device in one message."""
    present = parameters[0].new_tensor([parameter.grad is not None for parameter in parameters])
    own = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([*(gradient.flatten() for gradient in own), present])
    distributed.all_reduce(flat)
    *sums, counts = flat.split([*(p.numel() for p in parameters), len(parameters)])
    for parameter, total, count in zip(parameters, sums, counts, strict=True):
        # `count` is read only if needed: on a GPU the read waits for all earlier work.
        if parameter.grad is None and count:
            parameter.grad = torch.empty_like(parameter)
        if parameter.grad is not None:
            parameter.grad.copy_(total.view_as(parameter))


def gather(fabric: Fabric, tensor: Tensor) -> Tensor:
    """Concatenate the ranks' tensors, [N_r, ...], to [sum of N_r, ...] on every rank.

    The N_r may differ and may be 0.
    """
    if fabric.world_size == 1:
        return tensor
    counts = _gather_equal(torch.tensor([len(tensor)], device=tensor.device)).flatten().tolist()
    padded = tensor.new_zeros(max(counts), *tensor.shape[1:])
    padded[: len(tensor)] = tensor
    gathered = _gather_equal(padded)
    return torch.cat([share[:count] for share, count in zip(gathered, counts, strict=True)])


def global_batchnorm(fabric: Fabric) -> AbstractContextManager[Any]:
    """Make BatchNorm layers in train mode use the global batch's statistics inside the context.

    Every rank must pass through the same layers, even with an empty share. Statistics are computed
    in float32, or in float64 for float64 inputs. Layers raise ValueError, as torch does, if the
    global batch has only one value per channel.

    Why not torch.nn.SyncBatchNorm: it does not run on CPUs, and its convert_sync_batchnorm would
    replace timm's BatchNormAct2d together with the activation inside. Weight standardisation, which
    timm also computes with batch_norm, stays correct: ranks have equal weights, so the statistics
    over all ranks equal those of one.
    """
    return _GlobalBatchNorm() if fabric.world_size > 1 else nullcontext()


class _GlobalBatchNorm(TorchFunctionMode):
    """Intercepts torch.nn.functional.batch_norm, which BatchNorm layers and traced graphs call."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        called = _batch_norm if func is functional.batch_norm else func
        return called(*args, **(kwargs or {}))


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """torch.nn.functional.batch_norm of this rank's share, with the global batch's statistics.

    The signature is the same.
    """
    if not training:
        return functional.batch_norm(
            input, running_mean, running_var, weight, bias, training, momentum, eps
        )
    with torch.no_grad():
        mean, var, count = _statistics(input)
        if input.numel() <= input.shape[1] and count.item() == 1:
            raise ValueError(
                "Expected more than 1 value per channel when training, got "
                f"{tuple(input.shape)} here and none on other ranks"
            )
        if running_mean is not None:
            running_mean.mul_(1 - momentum).add_(mean.to(running_mean.dtype), alpha=momentum)
        if running_var is not None:
            unbiased = var * (count / (count - 1))
            running_var.mul_(1 - momentum).add_(unbiased.to(running_var.dtype), alpha=momentum)
    result = _Normalise.apply(input, weight, bias, mean, (var + eps).rsqrt(), count)
    assert isinstance(result, Tensor)
    return result


def _statistics(input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [C], biased variance [C] and number of values [1] per channel of the global batch.

    Combines the ranks' own statistics by the formula of Chan, Golub and LeVeque (1979), which
    avoids cancellation.
    """
    values, channels = _upcast(input), input.shape[1]
    count = input.numel() // channels
    mean = values.sum(_except_channels(input)) / max(count, 1)
    squares = (values - _along_channels(mean, input)).square().sum(_except_channels(input))
    own = torch.cat([mean, squares, mean.new_tensor([count])])
    means, squares, counts = _gather_equal(own).split([channels, channels, 1], dim=1)
    total = counts.sum(0)
    mean = (counts * means).sum(0) / total
    return mean, (squares + counts * (means - mean).square()).sum(0) / total, total


class _Normalise(torch.autograd.Function):
    """Normalises by global statistics; `backward` accounts for their dependence on all inputs."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        invstd: Tensor,
        count: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(input, weight, bias, mean, invstd, count)
        scale = invstd if weight is None else invstd * weight
        shift = -mean * scale if bias is None else bias - mean * scale
        return (_upcast(input) * _along_channels(scale, input) + _along_channels(shift, input)).to(
            input.dtype
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        input, weight, bias, mean, invstd, count = ctx.saved_tensors
        grad, normalised = _upcast(grad), _upcast(input) - _along_channels(mean, input)
        normalised *= _along_channels(invstd, input)
        # This rank's share of the gradients of bias and weight.
        sums = torch.stack(
            [grad.sum(_except_channels(input)), (grad * normalised).sum(_except_channels(input))]
        )
        bias_grad = None if bias is None else sums[0].to(bias.dtype)
        weight_grad = None if weight is None else sums[1].to(weight.dtype)
        input_grad = None
        if ctx.needs_input_grad[0]:  # the same on every rank
            means = sums.clone()
            distributed.all_reduce(means)
            means /= count
            scale = invstd if weight is None else invstd * weight
            input_grad = (
                grad
                - _along_channels(means[0], input)
                - normalised * _along_channels(means[1], input)
            )
            input_grad = (input_grad * _along_channels(scale, input)).to(input.dtype)
        return input_grad, weight_grad, bias_grad, None, None, None


def _gather_equal(tensor: Tensor) -> Tensor:
    """The ranks' tensors, all of the same shape [...], as [ranks, ...]."""
    gathered = [torch.empty_like(tensor) for _ in range(distributed.get_world_size())]
    distributed.all_gather(gathered, tensor)
    return torch.stack(gathered)


def _upcast(tensor: Tensor) -> Tensor:
    """The tensor in the precision used for statistics."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _except_channels(input: Tensor) -> list[int]:
    """All dimensions except the channels."""
    return [0, *range(2, input.dim())]


def _along_channels(tensor: Tensor, input: Tensor) -> Tensor:
    """Reshape one value per channel so that it broadcasts over `input`, [N, C, ...]."""
    return tensor.view(-1, *[1] * (input.dim() - 2))
