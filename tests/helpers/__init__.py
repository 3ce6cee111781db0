"""Shared by several tests: the checkout's folder, the result of a command, a small network."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from tvf.models import Backbone, group_by_modules

ROOT = Path(__file__).parents[2]
# For commands in which the network does not matter: a job then takes a third of the time. They
# find it if PYTHONPATH is IMPORTABLE.
SMALL = "backbone._target_=helpers.small_backbone"
IMPORTABLE = os.pathsep.join([str(ROOT), str(ROOT / "tests")])


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its exit code and what it printed."""

    code: int
    out: str
    err: str


class SmallNet(nn.Module):
    """Convolution, BatchNorm, twice, then a head: enough to have something to freeze."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, stride=2)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 8, 3, stride=2)
        self.bn2 = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self.bn1(self.conv1(images)).relu()
        return self.head(self.bn2(self.conv2(hidden)).relu().mean((2, 3)))


def small_backbone(num_classes: int = 3) -> Backbone:
    """Four groups: bn2, conv2, bn1, conv1. The same weights at each call."""
    torch.manual_seed(0)
    module = SmallNet(num_classes)
    return Backbone(
        "small", module, "head", group_by_modules(module, [["bn2"], ["conv2"], ["bn1"], ["conv1"]])
    )
