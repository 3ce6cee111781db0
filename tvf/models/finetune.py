"""The models that tvf compares: a backbone with a new head, of which a fraction or nothing trains.

They take pixels and normalise them themselves, so a saved model accepts images as they are.
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
    check_direction,
    check_selection,
    group_share,
    match_groups,
    pick_groups,
    select_groups,
    unfreeze,
)


class FineTuneModel(nn.Module):
    """A backbone whose head trains and, by default, the deepest `pct_unfreeze` of its groups.

    `unit` is what the fraction counts, "groups" or "params", and `direction` the end it starts
    from, "top" or "bottom" (see `select_groups`). Instead of a fraction, `groups` names the groups
    that train (see `pick_groups`), or `train` the parameters, by regular expressions (see
    `match_groups`); `pct_unfreeze` and `unit` are then ignored, and the attribute `pct_unfreeze` is
    the share of the groups that train at least in part.
    `frozen_bn` is what frozen BatchNorm layers do in training mode: "eval" uses and keeps their
    statistics, "batch" normalises by the batch and updates them, like a plain `model.train()`.
    `head_dropout` is the probability of dropping an input of the head in training.
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
        groups: Sequence[str] | None = None,
        train: str | Sequence[str] | None = None,
        head_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        require_choice("model.frozen_bn", frozen_bn, FROZEN_BN)
        check_direction(direction)
        check_selection(direction, groups, train)
        if train is not None:
            trained = match_groups(backbone.module, backbone.groups, train)
        elif groups is not None:
            trained = pick_groups(backbone.groups, groups)
        else:
            trained = select_groups(backbone.module, backbone.groups, pct_unfreeze, unit, direction)
        by_name = train is not None or groups is not None
        self.trained_groups = trained
        self.pct_unfreeze = (
            group_share(trained, backbone.groups) if by_name else float(pct_unfreeze or 0)
        )
        self.frozen_bn = frozen_bn
        self.head_dropout = check_dropout(head_dropout)
        self.module = backbone.module
        self.head = backbone.head
        self.unfreeze()
        self.register_buffer("mean", torch.tensor([*backbone.mean]).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor([*backbone.std]).reshape(1, -1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels [N, 3, H, W], uint8 or float in [0, 255], to logits [N, classes]."""
        # Set here, not in the constructor: several models may share a backbone, and the one that
        # runs decides.
        drop_input(self.module.get_submodule(self.head), self.head_dropout)
        return self.module((pixels / 255 - self.mean) / self.std)

    def train(self, mode: bool = True) -> "FineTuneModel":
        """Set the mode, like nn.Module's; frozen BatchNorm layers follow `frozen_bn`."""
        super().train(mode)
        if mode and self.frozen_bn != "batch":
            hold_frozen_batchnorm(self.module)
        return self

    def unfreeze(self, count: int | None = None) -> None:
        """Let exactly the head and the first `count` of the trained groups train (None: all).

        Overrides what an earlier call, or another model over this backbone, has frozen.
        """
        self.unfrozen_groups = self.trained_groups[:count]
        unfreeze(self.module, self.unfrozen_groups, self.head)

    def head_parameters(self) -> list[nn.Parameter]:
        """The parameters of the new head."""
        return list(self.module.get_submodule(self.head).parameters())

    def unfrozen_parameters(self) -> list[list[nn.Parameter]]:
        """The parameters of each group that trains now, deepest group first, without the head's."""
        return [
            [self.module.get_parameter(name) for name in group.parameters]
            for group in self.unfrozen_groups
        ]


class TransferModel(FineTuneModel):
    """A backbone of which only the new head trains: `FineTuneModel` at fraction 0."""

    def __init__(
        self, backbone: Backbone, frozen_bn: str = "eval", head_dropout: float = 0.0
    ) -> None:
        super().__init__(backbone, 0.0, frozen_bn=frozen_bn, head_dropout=head_dropout)


def check_dropout(value: object) -> float:
    """Return `value` as a dropout probability; InputError unless it is a number in [0, 1)."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        if math.isfinite(value) and 0 <= value < 1:
            return float(value)
    raise InputError(
        f"model.head_dropout={value} must be a number of at least 0 and below 1: the probability "
        "of dropping an input of the head in training."
    )


def drop_input(layer: nn.Module, rate: float) -> None:
    """Drop the inputs of `layer` in training with probability `rate`, like nn.Dropout before it.

    This is a hook rather than a layer, so that parameter names stay as they are; torch.fx traces it
    with the layer. A layer that never had a rate above 0 gets no hook.
    """
    if rate or hasattr(layer, "input_dropout"):
        if not hasattr(layer, "input_dropout"):
            layer.register_forward_pre_hook(_drop)
        # Not `layer.input_dropout = rate`: nn.Module declares attributes as tensors and modules.
        setattr(layer, "input_dropout", rate)  # noqa: B010


def _drop(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    rate: Any = layer.input_dropout
    return (nn.functional.dropout(inputs[0], rate, layer.training), *inputs[1:]) if rate else None


def describe_model(model: FineTuneModel, backbone: Backbone) -> str:
    """Summarise in one line which groups train and how many parameters each of them has."""
    sizes = [("head", count_parameters(model.head_parameters()))]
    for group in model.trained_groups:
        parameters = map(backbone.module.get_parameter, group.parameters)
        sizes.append((group.name, count_parameters(parameters)))
    listed = ", ".join(f"{name} {size:,}" for name, size in sizes)
    trained, total = sum(size for _, size in sizes), count_parameters(model.parameters())
    groups = f"{len(model.trained_groups)} of {len(backbone.groups)} groups"
    return f"trains {groups}, {trained:,} of {total:,} parameters: {listed}"


def count_parameters(parameters: Iterable[nn.Parameter]) -> int:
    """Count the numbers in `parameters`."""
    return sum(parameter.numel() for parameter in parameters)
