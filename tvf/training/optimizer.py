"""Two learning rates: one for the new head, one for the part of the backbone that trains, or for each of its groups."""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from tvf.errors import require_bool, require_number


@dataclass(frozen=True)
class DiscriminativeOptimizer:
    """An optimizer still to be given its parameters: the head learns at `lr`, the backbone at `backbone_lr`.

    `algorithm` is called with parameter groups, as `torch.optim.Adam` is. With a `layer_decay` the deepest group learns
    at `backbone_lr` and each further one at that share of the rate before it (Howard & Ruder 2018). `weight_decay` is
    for all weights, or, unless `decay_all`, for those with more than one dimension: not for biases and normalisation.
    Gradients longer than `clip_norm` are to be scaled down to it (Pascanu et al. 2013), which is for the loop to do.
    `fused` asks for one kernel for all parameters where the algorithm has it: faster, on CPUs too.
    """

    algorithm: Callable[..., Optimizer]
    lr: float
    backbone_lr: float
    weight_decay: float = 0.0
    fused: bool = True
    layer_decay: float | None = None
    decay_all: bool = True
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        require_number("optimizer.lr", self.lr, 0, above=True)
        require_number("optimizer.backbone_lr", self.backbone_lr, 0, above=True)
        require_number("optimizer.weight_decay", self.weight_decay, 0)
        require_bool("optimizer.fused", self.fused)
        require_bool("optimizer.decay_all", self.decay_all)
        if self.layer_decay is not None:
            require_number("optimizer.layer_decay", self.layer_decay, 0, 1, above=True)
        if self.clip_norm is not None:
            require_number("optimizer.clip_norm", self.clip_norm, 0, above=True)

    def __call__(
        self,
        head: Iterable[nn.Parameter],
        backbone: Iterable[Iterable[nn.Parameter]],
        lr: float | None = None,
        backbone_lr: float | None = None,
    ) -> Optimizer:
        """Build the optimizer for the head and the unfrozen groups, deepest first; a phase may have rates of its own.

        The first parameter group is the head's; if there is a second rate, the deepest group's comes next.
        """
        parts = [list(group) for group in backbone]
        if self.layer_decay is None:
            parts = [[parameter for part in parts for parameter in part]]
        rate, share = backbone_lr or self.backbone_lr, self.layer_decay or 1.0
        groups = self._decaying(list(head), lr or self.lr, "head")
        for depth, part in enumerate(parts):
            groups += self._decaying(part, rate * share**depth, "backbone")
        has_it = "fused" in inspect.signature(self.algorithm).parameters
        return self.algorithm(groups, **({"fused": True} if self.fused and has_it else {}))

    def _decaying(
        self, parameters: list[nn.Parameter], lr: float, part: str
    ) -> list[dict[str, Any]]:
        """One parameter group, or two where weight decay is not for all; none without parameters."""
        exempt = [] if self.decay_all else [each for each in parameters if each.ndim <= 1]
        rest = parameters if self.decay_all else [each for each in parameters if each.ndim > 1]
        groups = [(rest, self.weight_decay), (exempt, 0.0)]
        return [
            {"params": each, "lr": lr, "weight_decay": decay, "part": part}
            for each, decay in groups
            if each
        ]


def learning_rates(optimizer: Optimizer) -> tuple[float, float | None]:
    """The rates of the head and of the deepest group that trains now, None if there is none."""
    backbone = [group["lr"] for group in optimizer.param_groups if group.get("part") == "backbone"]
    return optimizer.param_groups[0]["lr"], next(iter(backbone), None)


def carry_optimizer_state(before: Optimizer, after: Optimizer) -> None:
    """What `before` has gathered about each parameter (momenta, steps) goes on in `after`, which may have others."""
    for group in after.param_groups:
        for parameter in group["params"]:
            if parameter in before.state:
                after.state[parameter] = before.state[parameter]
