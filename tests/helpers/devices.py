"""Devices to test on: the CPU, which stands in for a device with memory of its own, and a GPU."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from torch import Tensor, nn

from tvf.frontier import Residency
from tvf.gpus import count_gpus

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


def replay_on_cpu(module: nn.Module, samples: tuple[Tensor, ...]) -> Callable[..., Tensor]:
    """Stands in for a recorded graph: warms up, then computes where its samples are."""
    trained, training = [*module.parameters()], torch.is_grad_enabled()
    logits = module(*samples)
    for _ in range(3):
        logits = module(*samples)
        if training:
            torch.autograd.grad(logits.sum(), trained, allow_unused=True)

    def replay(*inputs: Tensor) -> Tensor:
        for place, given in zip(samples, inputs, strict=True):
            assert place.shape == given.shape, "a graph has fixed shapes"
            place.copy_(given)
        return module(*samples) if training else logits.copy_(module(*samples))

    return replay


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
