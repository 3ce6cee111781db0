"""Devices to test on: the CPU, which stands in for a device with memory of its own, and a GPU."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from torch import Tensor
from torch.autograd.function import once_differentiable

from tvf.frontier import Residency
from tvf.gpus import count_gpus

Forward = Callable[..., Tensor]

GPU = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not count_gpus(), reason="needs a GPU"),
    ],
)
DEVICES = ["cpu", GPU]


def fabric_on(device: str, **options: Any) -> Fabric:
    """Fabric for one device, as jobs have it: SLURM need not be absent."""
    return Fabric(accelerator=device, devices=1, plugins=[LightningEnvironment()], **options)


def replay_on_cpu(forward: Forward, tensors: tuple[Tensor, ...]) -> Forward:
    """Stands in for `record_graph`: warms up, then computes where its tensors are.

    Logits and gradients are in memory that the next replay overwrites, as a graph's are.
    """
    trained, training = [t for t in tensors if t.requires_grad], torch.is_grad_enabled()
    logits, gradients = forward(*tensors), list[Any]()
    for _ in range(3):
        logits = forward(*tensors)
        if training:
            gradients = [*torch.autograd.grad(logits.sum(), trained, allow_unused=True)]
    static, computed = logits.detach().clone(), [logits]

    class Replay(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *given: Tensor) -> Tensor:
            for place, value in zip(tensors, given, strict=True):
                assert (place.shape, place.dtype) == (value.shape, value.dtype), "they are fixed"
                if place.data_ptr() != value.data_ptr():
                    place.copy_(value)
            with torch.set_grad_enabled(training):
                computed[0] = forward(*tensors)
            return static.copy_(computed[0].detach()).detach()

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, gradient: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
            found = torch.autograd.grad(computed[0], trained, gradient, allow_unused=True)
            pairs = zip(gradients, found, strict=True)
            back = iter([None if new is None else place.copy_(new) for place, new in pairs])
            return tuple(next(back) if t.requires_grad else None for t in tensors)

    return Replay.apply  # type: ignore[reportReturnType]


class Apart(Residency):
    """A device whose memory is apart from the host's, whatever its kind, with `free` bytes."""

    is_apart = True  # type: ignore[assignment]

    def __init__(
        self, device: str = "cpu", mode: str = "auto", jobs: int = 1, free: int = 10**9
    ) -> None:
        super().__init__(torch.device(device), mode, jobs)
        self.free = free

    def free_bytes(self) -> int:
        return self.free
