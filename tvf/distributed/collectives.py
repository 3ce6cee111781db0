"""What the ranks of a job compute together, each on its share of a global batch, so that they train as one process.

Losses are sums over a share divided by the size of the global batch: summed over ranks, gradients are those of the
global batch, however unequal the shares.
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

# Ranks may wait for hours while one computes what all will read. Nobody waits for a dead one: see tvf.distributed.ranks.
TIMEOUT = timedelta(days=7)


class RankStrategy(DDPStrategy):
    """Fabric's strategy of one process a device, without the wrapper that reduces gradients: that is for us to do.

    Ranks are told by tvf.distributed.ranks, whatever launched the job (SLURM sets variables of its own).
    """

    def __init__(self) -> None:
        super().__init__(cluster_environment=LightningEnvironment(), timeout=TIMEOUT)

    def setup_module(self, module: nn.Module) -> Any:
        """The module as it is: see `reduce_gradients`."""
        return module


def share_of(samples: np.ndarray, rank: int, world: int) -> np.ndarray:
    """This rank's share of a global batch, [N] or [N, ...]: contiguous, in rank order, sizes differing by at most one.

    With fewer samples than ranks the last ones get none.
    """
    return np.array_split(samples, world)[rank]


def reduce_gradients(fabric: Fabric, parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its sum over the ranks, which must give the same parameters in the same order.

    A rank without a gradient counts as zero; where no rank has one, there is none afterwards, as in one process.

    This, and not DistributedDataParallel, because that averages shares as if they were of one size, and wraps one
    module whose parameters it knows for good: here a share may be smaller or empty, what follows a cut is another
    module than the network that it is cut from, and what trains may change in between.
    """
    if fabric.world_size == 1:
        return
    kinds: dict[tuple[torch.dtype, torch.device], list[nn.Parameter]] = {}
    for each in parameters:
        if each.requires_grad:
            kinds.setdefault((each.dtype, each.device), []).append(each)
    for (dtype, device), group in kinds.items():
        has = torch.tensor([each.grad is not None for each in group], dtype=dtype, device=device)
        own = [torch.zeros_like(each) if each.grad is None else each.grad for each in group]
        flat = torch.cat([*(each.flatten() for each in own), has])
        distributed.all_reduce(flat)
        *sums, has = flat.split([*(each.numel() for each in group), len(group)])
        for each, total, somewhere in zip(group, sums, has, strict=True):
            if (
                each.grad is None and somewhere
            ):  # asked only here: on a GPU it waits for all work before it
                each.grad = torch.empty_like(each)
            if each.grad is not None:
                each.grad.copy_(total.view_as(each))


def gather(fabric: Fabric, tensor: Tensor) -> Tensor:
    """The ranks' tensors [N_r, ...], whose N_r may differ and be 0, one after another: [sum of N_r, ...], on each."""
    if fabric.world_size == 1:
        return tensor
    counts = _gather_equal(torch.tensor([len(tensor)], device=tensor.device)).flatten().tolist()
    padded = tensor.new_zeros(max(counts), *tensor.shape[1:])
    padded[: len(tensor)] = tensor
    return torch.cat(
        [part[:count] for part, count in zip(_gather_equal(padded), counts, strict=True)]
    )


def global_batchnorm(fabric: Fabric) -> AbstractContextManager[Any]:
    """In here BatchNorm layers that train normalise by the global batch's statistics, as one process would.

    Every rank must pass through the same layers, a rank with an empty share too. Statistics are computed in float32,
    or float64 for such inputs. Raises ValueError, as torch does, where the global batch has one value a channel.

    Why not torch.nn.SyncBatchNorm: it does not run on CPUs, and its convert_sync_batchnorm would replace timm's
    BatchNormAct2d, and with it the activation within. Weight standardisation, which timm computes with batch_norm
    too, stays right: the global statistics of equal weights are theirs.
    """
    return _GlobalBatchNorm() if fabric.world_size > 1 else nullcontext()


class _GlobalBatchNorm(TorchFunctionMode):
    """Intercepts torch.nn.functional.batch_norm, which every BatchNorm layer calls, in traced graphs as well."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return (_batch_norm if func is functional.batch_norm else func)(*args, **(kwargs or {}))


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
    """torch.nn.functional.batch_norm of the global batch, for this rank's share of it."""
    if not training:
        return functional.batch_norm(
            input, running_mean, running_var, weight, bias, training, momentum, eps
        )
    with torch.no_grad():
        mean, var, count = _statistics(input)
        if input.numel() <= input.shape[1] and count.item() == 1:
            raise ValueError(
                f"Expected more than 1 value per channel when training, got {tuple(input.shape)} and none"
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
    """Mean [C], biased variance [C] and number of values [1] of each channel of the global batch.

    Each rank's own are combined by the formula of Chan, Golub and LeVeque (1979), which does not cancel.
    """
    values, channels = _wide(input), input.shape[1]
    count = input.numel() // channels
    mean = values.sum(_others(input)) / max(count, 1)
    squares = (values - _along_channels(mean, input)).square().sum(_others(input))
    own = torch.cat([mean, squares, mean.new_tensor([count])])
    means, squares, counts = _gather_equal(own).split([channels, channels, 1], dim=1)
    total = counts.sum(0)
    mean = (counts * means).sum(0) / total
    return mean, (squares + counts * (means - mean).square()).sum(0) / total, total


class _Normalise(torch.autograd.Function):
    """Normalise by statistics of the global batch. That they depend on all inputs is for `backward` to know."""

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
        return (_wide(input) * _along_channels(scale, input) + _along_channels(shift, input)).to(
            input.dtype
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        input, weight, bias, mean, invstd, count = ctx.saved_tensors
        grad, normalised = _wide(grad), _wide(input) - _along_channels(mean, input)
        normalised *= _along_channels(invstd, input)
        # The gradients of bias and weight, as far as this rank's share goes.
        sums = torch.stack([grad.sum(_others(input)), (grad * normalised).sum(_others(input))])
        of_bias = None if bias is None else sums[0].to(bias.dtype)
        of_weight = None if weight is None else sums[1].to(weight.dtype)
        of_input = None
        if ctx.needs_input_grad[0]:  # the same on each rank
            means = sums.clone()
            distributed.all_reduce(means)
            means /= count
            scale = invstd if weight is None else invstd * weight
            of_input = (
                grad
                - _along_channels(means[0], input)
                - normalised * _along_channels(means[1], input)
            )
            of_input = (of_input * _along_channels(scale, input)).to(input.dtype)
        return of_input, of_weight, of_bias, None, None, None


def _gather_equal(tensor: Tensor) -> Tensor:
    """The ranks' tensors, all of one shape [...], as [ranks, ...]."""
    gathered = [torch.empty_like(tensor) for _ in range(distributed.get_world_size())]
    distributed.all_gather(gathered, tensor)
    return torch.stack(gathered)


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _others(input: Tensor) -> list[int]:
    """All dimensions but the channels'."""
    return [0, *range(2, input.dim())]


def _along_channels(tensor: Tensor, input: Tensor) -> Tensor:
    return tensor.view(-1, *[1] * (input.dim() - 2))
