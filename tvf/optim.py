"""Two learning rates: one for the new head, one for the part of the backbone that trains."""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from tvf.errors import require_bool, require_number


@dataclass(frozen=True)
class TwoRates:
    """An optimizer still to be given its parameters: the head learns at `lr`, the backbone at `backbone_lr`.

    `algorithm` is called with parameter groups, as `torch.optim.Adam` is. `weight_decay` holds for both. `fused` asks
    for one kernel for all parameters where the algorithm has it: faster, on CPUs too.
    """

    algorithm: Callable[..., Optimizer]
    lr: float
    backbone_lr: float
    weight_decay: float = 0.0
    fused: bool = True

    def __post_init__(self) -> None:
        require_number("optimizer.lr", self.lr, 0, above=True)
        require_number("optimizer.backbone_lr", self.backbone_lr, 0, above=True)
        require_number("optimizer.weight_decay", self.weight_decay, 0)
        require_bool("optimizer.fused", self.fused)

    def __call__(self, head: Iterable[nn.Parameter], backbone: Iterable[nn.Parameter]) -> Optimizer:
        """Build the optimizer: group 0 is the head, group 1 the unfrozen backbone where there is one."""
        groups: list[dict[str, Any]] = [{"params": list(head), "lr": self.lr, "weight_decay": self.weight_decay}]
        if unfrozen := list(backbone):
            groups.append({"params": unfrozen, "lr": self.backbone_lr, "weight_decay": self.weight_decay})
        has_it = "fused" in inspect.signature(self.algorithm).parameters
        return self.algorithm(groups, **({"fused": True} if self.fused and has_it else {}))
