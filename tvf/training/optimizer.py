"""Discriminative fine-tuning: one learning rate for the head, lower ones for the backbone.

The backbone has one learning rate for all groups that train, or one per group.
"""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from tvf.errors import require_bool, require_number


@dataclass(frozen=True)
class DiscriminativeOptimizer:
    """Builds an optimizer in which the head learns at `lr` and the backbone at `backbone_lr`.

    `algorithm` is called with parameter groups, as `torch.optim.Adam` is. With `layer_decay` the
    deepest group learns at `backbone_lr`, and each further group at the previous group's learning
    rate times `layer_decay` (Howard & Ruder 2018). `weight_decay` applies to all weights or, unless
    `decay_all`, to those with more than one dimension, which spares biases and normalisation.
    `fused` asks for one kernel for all parameters if the algorithm has one: faster, on CPUs too.
    """

    algorithm: Callable[..., Optimizer]
    lr: float
    backbone_lr: float
    weight_decay: float = 0.0
    fused: bool = True
    layer_decay: float | None = None
    decay_all: bool = True

    def __post_init__(self) -> None:
        require_number("optimizer.lr", self.lr, 0, above=True)
        require_number("optimizer.backbone_lr", self.backbone_lr, 0, above=True)
        require_number("optimizer.weight_decay", self.weight_decay, 0)
        require_bool("optimizer.fused", self.fused)
        require_bool("optimizer.decay_all", self.decay_all)
        if self.layer_decay is not None:
            require_number("optimizer.layer_decay", self.layer_decay, 0, 1, above=True)

    def __call__(
        self,
        head: Iterable[nn.Parameter],
        backbone: Iterable[Iterable[nn.Parameter]],
        lr: float | None = None,
        backbone_lr: float | None = None,
    ) -> Optimizer:
        """Build the optimizer for the head and the unfrozen groups, deepest first.

        `lr` and `backbone_lr` override the optimizer's own, for one phase. The head's parameters
        are the first parameter group; the deepest backbone group comes next, if any trains.
        """
        layers = [list(group) for group in backbone]
        if self.layer_decay is None:
            layers = [[parameter for layer in layers for parameter in layer]]
        deepest_lr, decay = backbone_lr or self.backbone_lr, self.layer_decay or 1.0
        groups = self._parameter_groups(list(head), lr or self.lr, "head")
        for depth, layer in enumerate(layers):
            groups += self._parameter_groups(layer, deepest_lr * decay**depth, "backbone")
        if self.fused and "fused" in inspect.signature(self.algorithm).parameters:
            return self.algorithm(groups, fused=True)
        return self.algorithm(groups)

    def _parameter_groups(
        self, parameters: list[nn.Parameter], lr: float, part: str
    ) -> list[dict[str, Any]]:
        """One parameter group, or two if some weights do not decay; without empty ones."""
        decaying, exempt = parameters, []
        if not self.decay_all:
            decaying = [parameter for parameter in parameters if parameter.ndim > 1]
            exempt = [parameter for parameter in parameters if parameter.ndim <= 1]
        return [
            {"params": members, "lr": lr, "weight_decay": decay, "part": part}
            for members, decay in ((decaying, self.weight_decay), (exempt, 0.0))
            if members
        ]


def learning_rates(optimizer: Optimizer) -> tuple[float, float | None]:
    """The current learning rates of the head and of the deepest group that trains, if any."""
    backbone = [group["lr"] for group in optimizer.param_groups if group.get("part") == "backbone"]
    return optimizer.param_groups[0]["lr"], next(iter(backbone), None)


def carry_optimizer_state(before: Optimizer, after: Optimizer) -> None:
    """Copy the state (momenta, steps) of each parameter that both optimizers have."""
    for group in after.param_groups:
        for parameter in group["params"]:
            if parameter in before.state:
                after.state[parameter] = before.state[parameter]
