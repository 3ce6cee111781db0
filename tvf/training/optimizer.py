"""Discriminative fine-tuning: one learning rate for the head, lower ones for the backbone.

The backbone has one learning rate for all groups that train, or one per group.
"""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from tvf.errors import require_bool, require_number

L2_SP = "l2_sp"  # the key of a pull's strength in a parameter group


@dataclass(frozen=True)
class DiscriminativeOptimizer:
    """Builds an optimizer in which the head learns at `lr` and the backbone at `backbone_lr`.

    `algorithm` is called with parameter groups, as `torch.optim.Adam` is. With `layer_decay` the
    deepest group learns at `backbone_lr`, and each further group at the previous group's learning
    rate times `layer_decay` (Howard & Ruder 2018). `weight_decay` applies to all weights or, unless
    `decay_all`, to those with more than one dimension, which spares biases and normalisation.
    `l2_sp` replaces it in the backbone by a pull of this strength towards the values at the start,
    see `StartingPoint`. `fused` asks for one kernel for all parameters if the algorithm has one:
    faster, on CPUs too.
    """

    algorithm: Callable[..., Optimizer]
    lr: float
    backbone_lr: float
    weight_decay: float = 0.0
    fused: bool = True
    layer_decay: float | None = None
    decay_all: bool = True
    l2_sp: float | None = None

    def __post_init__(self) -> None:
        require_number("optimizer.lr", self.lr, 0, above=True)
        require_number("optimizer.backbone_lr", self.backbone_lr, 0, above=True)
        require_number("optimizer.weight_decay", self.weight_decay, 0)
        require_bool("optimizer.fused", self.fused)
        require_bool("optimizer.decay_all", self.decay_all)
        if self.l2_sp is not None:
            require_number("optimizer.l2_sp", self.l2_sp, 0)
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
        fused = self.fused and "fused" in inspect.signature(self.algorithm).parameters
        optimizer = self.algorithm(groups, **({"fused": True} if fused else {}))
        if all(p.device.type == "cpu" for group in groups for p in group["params"]):
            # Before each step torch asks the driver for GPUs, a fifth of a step of a head alone.
            optimizer._accelerator_graph_capture_health_check = _is_not_captured
        return optimizer

    def _parameter_groups(
        self, parameters: list[nn.Parameter], lr: float, part: str
    ) -> list[dict[str, Any]]:
        """One parameter group, or two if some weights do not decay; without empty ones."""
        decaying, exempt = parameters, []
        if not self.decay_all:
            decaying = [parameter for parameter in parameters if parameter.ndim > 1]
            exempt = [parameter for parameter in parameters if parameter.ndim <= 1]
        pulled = self.l2_sp is not None and part == "backbone"
        strength, kind = (self.l2_sp, L2_SP) if pulled else (self.weight_decay, "weight_decay")
        same = {"lr": lr, "part": part, "weight_decay": 0.0}
        return [
            {"params": members, **same, kind: decay}
            for members, decay in ((decaying, strength), (exempt, 0.0))
            if members
        ]


def _is_not_captured() -> None:
    """On the CPU there are no graphs to capture."""


class StartingPoint:
    """Builds optimizers that pull parameters towards the values that they have now.

    L2-SP (Li et al. 2018): each step adds strength * (parameter - start) to the gradients of the
    parameter groups with a strength, which is the gradient of strength / 2 * |parameter - start|².
    Like weight decay, it does this after the gradients have been clipped. Create it before a
    resumed job loads its weights.
    """

    def __init__(self, build: DiscriminativeOptimizer, parameters: Iterable[nn.Parameter]) -> None:
        self._build = build
        self._start = {parameter: parameter.detach().clone() for parameter in parameters}

    def __call__(
        self,
        head: Iterable[nn.Parameter],
        backbone: Iterable[Iterable[nn.Parameter]],
        lr: float | None = None,
        backbone_lr: float | None = None,
    ) -> Optimizer:
        """Build the optimizer, see `DiscriminativeOptimizer`."""
        optimizer = self._build(head, backbone, lr, backbone_lr)
        optimizer.register_step_pre_hook(self._pull)
        return optimizer

    @torch.no_grad()
    def _pull(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for group in optimizer.param_groups:
            if strength := group.get(L2_SP):
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        difference = parameter - self._start[parameter]
                        parameter.grad.add_(difference, alpha=strength)


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
