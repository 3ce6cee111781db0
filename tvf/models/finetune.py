"""The two models that tvf compares: a backbone of which only the head trains, and one of which a fraction trains too.

Both take pixels and normalise them themselves, so a saved model can be fed images as they are.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tvf.errors import InputError, require_choice
from tvf.models.backbones import Backbone
from tvf.models.batchnorm import FROZEN_BN, hold_frozen_batchnorm
from tvf.models.groups import (
    BLOCK,
    check_choice,
    check_direction,
    group_share,
    match_groups,
    select_groups,
    unfreeze,
)


class FineTuneModel(nn.Module):
    """A backbone whose head trains, and with it a part: by default the deepest `pct_unfreeze` of its groups.

    `unit` says what the fraction counts: "groups", or "params"; `direction` from which end, or "block:<group>" that
    this group alone trains (see `select_groups`). `train`, a regular expression or several, names the parameters that
    train instead (see `match_groups`). Where names say what trains, fraction and unit are ignored, and the attribute
    `pct_unfreeze` is the share of the groups that train at least in part.
    `frozen_bn` says what frozen BatchNorm layers do in training: "eval" keeps and uses their statistics, "batch"
    normalises by the batch and goes on updating them, as a plain `model.train()` does. "recalibrate" is "eval" after a
    pass over the training images has set the statistics, which is for the caller to do.
    `head_dropout` is the probability that training hides an input of the head.
    `init_from` names the weights to start from, and reading them is for the caller too (`checkpoint.start_from`):
    several models may be made over one backbone, and none of them may change its weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: Backbone,
        pct_unfreeze: float | None,
        unit: str | None = "groups",
        frozen_bn: str = "eval",
        direction: str = "top",
        train: str | Sequence[str] | None = None,
        head_dropout: float = 0.0,
        init_from: str | None = None,
    ) -> None:
        super().__init__()
        require_choice("model.frozen_bn", frozen_bn, FROZEN_BN)
        direction = check_direction(direction)
        check_choice(direction, train)
        module, groups = backbone.module, backbone.groups
        if train is not None:
            self.trained_groups = match_groups(module, groups, train)
        else:
            self.trained_groups = select_groups(module, groups, pct_unfreeze, unit, direction)
        named = train is not None or BLOCK.fullmatch(direction)
        self.pct_unfreeze = (
            group_share(self.trained_groups, groups) if named else float(pct_unfreeze or 0)
        )
        self.frozen_bn = frozen_bn
        self.head_dropout = check_dropout(head_dropout)
        self.init_from = init_from
        self.module = backbone.module
        self.head = backbone.head
        self.unfreeze()
        self.register_buffer("mean", torch.tensor([*backbone.mean]).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor([*backbone.std]).reshape(1, -1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits [N, classes] of pixels [N, 3, H, W]: uint8, or floats on the same scale, 0 to 255."""
        # Here, not when the model is made: of several models over one backbone the one that computes decides.
        drop_input(self.module.get_submodule(self.head), self.head_dropout)
        return self.module((pixels / 255 - self.mean) / self.std)

    def train(self, mode: bool = True) -> "FineTuneModel":
        """As nn.Module's, but frozen BatchNorm layers keep to `frozen_bn`."""
        super().train(mode)
        if mode and self.frozen_bn != "batch":
            hold_frozen_batchnorm(self.module)
        return self

    def unfreeze(self, count: int | None = None) -> None:
        """Let exactly the head and the first `count` of the trained groups train (None: all of them).

        Whatever another model over this backbone, or an earlier call, has frozen.
        """
        self.unfrozen_groups = self.trained_groups[:count]
        unfreeze(self.module, self.unfrozen_groups, self.head)

    def head_parameters(self) -> list[nn.Parameter]:
        """Weight and bias of the new head."""
        return list(self.module.get_submodule(self.head).parameters())

    def unfrozen_parameters(self) -> list[list[nn.Parameter]]:
        """The parameters of each group that trains now, deepest group first; the head's are not among them."""
        return [
            [self.module.get_parameter(name) for name in group.parameters]
            for group in self.unfrozen_groups
        ]


class TransferModel(FineTuneModel):
    """A backbone of which only the new head trains: the same as `FineTuneModel` at fraction 0.

    `pct_unfreeze`, `unit`, `direction` and `train` are taken so that a sweep over both models may name them, and
    ignored.
    """

    def __init__(
        self,
        backbone: Backbone,
        frozen_bn: str = "eval",
        pct_unfreeze: None = None,
        unit: None = None,
        direction: None = None,
        train: None = None,
        head_dropout: float = 0.0,
        init_from: str | None = None,
    ) -> None:
        super().__init__(
            backbone, 0.0, frozen_bn=frozen_bn, head_dropout=head_dropout, init_from=init_from
        )


def check_dropout(value: object) -> float:
    """Return `value` as a probability of dropout; InputError unless it is a number in [0, 1)."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not (math.isfinite(value) and 0 <= value < 1)
    ):
        raise InputError(
            f"model.head_dropout={value} is refused: it is the part of the head's inputs that training hides, at least "
            "0 and below 1."
        )
    return float(value)


def drop_input(layer: nn.Module, rate: float) -> None:
    """In training hide each input of `layer` with probability `rate`, as nn.Dropout before it would; 0: never.

    A hook rather than a layer: names of parameters stay as they are. torch.fx runs it with the layer.
    """
    if rate or hasattr(layer, "input_dropout"):
        if not hasattr(layer, "input_dropout"):
            layer.register_forward_pre_hook(_drop)
        setattr(layer, "input_dropout", rate)  # noqa: B010  # nn.Module declares tensors and modules alone


def _drop(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    rate: Any = layer.input_dropout
    return (nn.functional.dropout(inputs[0], rate, layer.training), *inputs[1:]) if rate else None


def describe_model(model: FineTuneModel, backbone: Backbone) -> str:
    """Which groups train and how many parameters each has, in a line."""
    sizes = [("head", count_parameters(model.head_parameters()))]
    for group in model.trained_groups:
        sizes.append(
            (
                group.name,
                count_parameters(backbone.module.get_parameter(name) for name in group.parameters),
            )
        )
    parts = ", ".join(f"{name} {size:,}" for name, size in sizes)
    trained, total = sum(size for _, size in sizes), count_parameters(model.parameters())
    groups = f"{len(model.trained_groups)} of {len(backbone.groups)} groups"
    return f"trains {groups}, {trained:,} of {total:,} parameters: {parts}"


def count_parameters(parameters: Iterable[nn.Parameter]) -> int:
    """How many numbers they hold."""
    return sum(parameter.numel() for parameter in parameters)
