"""The two models that tvf compares: a backbone of which only the head trains, and one of which a fraction trains too.

Both take pixels and normalise them themselves, so a saved model can be fed images as they are.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from tvf.backbones import Backbone
from tvf.errors import require_choice
from tvf.freezing import FROZEN_BN, hold_frozen_batchnorm, select_groups, unfreeze


class FineTuneModel(nn.Module):
    """A backbone whose head trains, and with it the deepest `pct_unfreeze` of its groups.

    `unit` says what the fraction counts: "groups", or "params" (see `select_groups`).
    `frozen_bn` says what frozen BatchNorm layers do in training: "eval" keeps and uses their statistics, "batch"
    normalises by the batch and goes on updating them, as a plain `model.train()` does. "recalibrate" is "eval" after a
    pass over the training images has set the statistics, which is for the caller to do.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone, pct_unfreeze: float, unit: str = "groups", frozen_bn: str = "eval") -> None:
        super().__init__()
        require_choice("model.frozen_bn", frozen_bn, FROZEN_BN)
        self.trained_groups = select_groups(backbone.module, backbone.groups, pct_unfreeze, unit)
        self.pct_unfreeze = float(pct_unfreeze)
        self.frozen_bn = frozen_bn
        self.module = backbone.module
        self.head = backbone.head
        self.unfreeze()
        self.register_buffer("mean", torch.tensor([*backbone.mean]).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor([*backbone.std]).reshape(1, -1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits [N, classes] of pixels [N, 3, H, W]: uint8, or floats on the same scale, 0 to 255."""
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
        return [[self.module.get_parameter(name) for name in group.parameters] for group in self.unfrozen_groups]


class TransferModel(FineTuneModel):
    """A backbone of which only the new head trains: the same as `FineTuneModel` at fraction 0.

    `pct_unfreeze` and `unit` are taken so that a sweep over both models may name them, and ignored.
    """

    def __init__(
        self, backbone: Backbone, frozen_bn: str = "eval", pct_unfreeze: None = None, unit: None = None
    ) -> None:
        super().__init__(backbone, 0.0, frozen_bn=frozen_bn)


def describe(model: FineTuneModel, backbone: Backbone) -> str:
    """Which groups train and how many parameters each has, in a line."""
    sizes = [("head", count(model.head_parameters()))]
    for group in model.trained_groups:
        sizes.append((group.name, count(backbone.module.get_parameter(name) for name in group.parameters)))
    parts = ", ".join(f"{name} {size:,}" for name, size in sizes)
    trained, total = sum(size for _, size in sizes), count(model.parameters())
    groups = f"{len(model.trained_groups)} of {len(backbone.groups)} groups"
    return f"trains {groups}, {trained:,} of {total:,} parameters: {parts}"


def count(parameters: Iterable[nn.Parameter]) -> int:
    """How many numbers they hold."""
    return sum(parameter.numel() for parameter in parameters)
