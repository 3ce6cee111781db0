"""The two main models: one trains only a backbone's head, the other also a fraction of its groups.

Both take pixels and normalise them, so a saved model accepts images without preprocessing.
"""

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tvf.errors import InputError, require_choice
from tvf.models.backbones import Backbone
from tvf.models.batchnorm import FROZEN_BN, frozen_batchnorm, hold_frozen_batchnorm
from tvf.models.groups import (
    Group,
    Selection,
    group_share,
    select_layers,
    size_of_group,
    unfreeze,
)

SHOWN = 3  # names in a message


class FineTuneModel(nn.Module):
    """A backbone that trains its head and some layers: by default the deepest `pct_unfreeze`.

    `pct_unfreeze`, `unit`, `direction`, `groups` and `train` select what trains, see `Selection`.
    For a selection by name, the attribute `pct_unfreeze` is the share of the groups that train at
    least in part.
    `frozen_bn` says what frozen BatchNorm layers do in training: "eval" keeps and uses their
    statistics, "batch" normalises by the batch and keeps updating them, like a plain training loop.
    Other frozen layers that training would change, such as InstanceNorm with statistics, likewise.
    `head_dropout` is the probability that training drops an input of the head.
    """

    mean: Tensor
    std: Tensor
    settled = False  # whether its layers stay the same, so that their modes are decided only once
    left_out: Sequence[str] = ()  # layers in the trained groups to which the method does not apply

    def __init__(
        self,
        backbone: Backbone,
        pct_unfreeze: float | None,
        *,
        unit: str | None = "groups",
        direction: str = "top",
        groups: Sequence[str] | None = None,
        train: str | Sequence[str] | None = None,
        frozen_bn: str = "eval",
        head_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        require_choice("model.frozen_bn", frozen_bn, FROZEN_BN)
        selection = Selection(pct_unfreeze, unit, direction, groups, train)
        # Of a settled model: the attributes of its layers, which nn.Module sets slowly, and modes.
        self._modes: dict[bool, list[tuple[dict[str, Any], bool]]] = {}
        self.trained_groups = select_layers(backbone.module, backbone.groups, selection)
        self.pct_unfreeze = float(pct_unfreeze or 0)
        if selection.is_named:
            self.pct_unfreeze = group_share(self.trained_groups, backbone.groups)
        self.frozen_bn = frozen_bn
        self.head_dropout = check_dropout(head_dropout)
        self.module = backbone.module
        self.head = backbone.head
        self.heads = backbone.heads
        self.unfreeze()
        self.register_buffer("mean", torch.tensor([*backbone.mean]).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor([*backbone.std]).reshape(1, -1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits [N, classes] of pixels [N, 3, H, W]: uint8, or floats from 0 to 255."""
        # Not in __init__: if several models share a backbone, the one that runs decides.
        for head in self.heads:
            layer = self.module.get_submodule(head)
            if head == self.head or isinstance(layer, nn.Linear):
                drop_input(layer, self.head_dropout)
        return self.module((pixels / 255 - self.mean) / self.std)

    def train(self, mode: bool = True) -> "FineTuneModel":
        """Like nn.Module.train, but frozen layers with statistics follow `frozen_bn`."""
        if mode in self._modes:
            for state, training in self._modes[mode]:
                state["training"] = training
            return self
        super().train(mode)
        if mode and self.frozen_bn != "batch":
            hold_frozen_batchnorm(self.module, self.statistics_train_in)
        if self.settled:
            self._modes[mode] = [(vars(layer), layer.training) for layer in self.modules()]
        return self

    @property
    def statistics_train_in(self) -> tuple[str, ...] | None:
        """Layers outside which all statistics are frozen; None: only in layers that are frozen."""
        return None

    def frozen_batchnorm(self) -> dict[str, _BatchNorm]:
        """The BatchNorm layers whose statistics are frozen, by their names in the network."""
        return frozen_batchnorm(self.module, self.statistics_train_in)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Like nn.Module.load_state_dict; plain tables are taken as written by this version.

        Some layers of torchvision read the version of a state that files do not keep.
        """
        if not hasattr(state_dict, "_metadata"):
            versions = getattr(self.state_dict(), "_metadata")  # noqa: B009
            state_dict = OrderedDict(state_dict)
            setattr(state_dict, "_metadata", versions)  # noqa: B010
        return super().load_state_dict(state_dict, strict, assign)

    def unfreeze(self, count: int | None = None) -> None:
        """Train exactly the head and the first `count` of the trained groups (None: all).

        This overrides what an earlier call, or another model with this backbone, has frozen.
        """
        if not self.settled:
            self._modes.clear()
        self.unfrozen_groups = self.trained_groups[:count]
        unfreeze(self.module, self.unfrozen_groups, *self.heads)

    def head_parameters(self) -> list[nn.Parameter]:
        """Weight and bias of the new head, and those of every other layer that is new with it."""
        heads = map(self.module.get_submodule, self.heads)
        return [parameter for head in heads for parameter in head.parameters()]

    def unfrozen_parameters(self) -> list[list[nn.Parameter]]:
        """The parameters of each group that trains now, deepest group first, without the head's."""
        return [self.parameters_of(group) for group in self.unfrozen_groups]

    def parameters_of(self, group: Group) -> list[nn.Parameter]:
        """What trains in one of the trained groups."""
        return [self.module.get_parameter(name) for name in group.parameters]

    @classmethod
    def trained_sizes(cls, module: nn.Module, groups: Sequence[Group]) -> dict[str, int]:
        """How many values such a model would train in `groups`, by their names."""
        return {group.name: size_of_group(module, group) for group in groups}

    def trained_names(self) -> set[str]:
        """The names in `state_dict` of what trains in some phase, without the head's."""
        return {f"module.{name}" for group in self.trained_groups for name in group.parameters}

    def plain_state_dict(self) -> dict[str, Tensor]:
        """The state to save: that of an ordinary network, whatever has trained."""
        return dict(self.state_dict())

    def load_plain_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load what `plain_state_dict` returns; RuntimeError unless names and shapes match."""
        self.load_state_dict(state)

    def without_adapters(self) -> AbstractContextManager[None]:
        """A context in which the network has no adapters that add something to its layers."""
        return nullcontext()

    def what_trains(self) -> str:
        """What of its groups trains, such as "the biases of "; empty if all."""
        return ""


class TransferModel(FineTuneModel):
    """A backbone that trains only its new head: `FineTuneModel` at fraction 0."""

    def __init__(
        self, backbone: Backbone, frozen_bn: str = "eval", head_dropout: float = 0.0
    ) -> None:
        super().__init__(backbone, 0.0, frozen_bn=frozen_bn, head_dropout=head_dropout)


def check_dropout(
    value: object, option: str = "head_dropout", inputs: str = "the head's inputs"
) -> float:
    """Return `value` as a dropout probability; InputError unless it is a number in [0, 1)."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        if math.isfinite(value) and 0 <= value < 1:
            return float(value)
    raise InputError(
        f"model.{option}={value} must be a number of at least 0 and below 1: the share of {inputs} "
        "that training drops."
    )


def drop_input(layer: nn.Module, rate: float) -> None:
    """During training, drop inputs of `layer` with probability `rate`, like nn.Dropout before it.

    A hook rather than a layer, so that parameter names stay the same. torch.fx runs it with the
    layer.
    """
    if rate or hasattr(layer, "input_dropout"):
        if not hasattr(layer, "input_dropout"):
            layer.register_forward_pre_hook(_drop)
        # By setattr, because nn.Module declares only tensors and modules.
        setattr(layer, "input_dropout", rate)  # noqa: B010


def _drop(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    rate: Any = layer.input_dropout
    return (nn.functional.dropout(inputs[0], rate, layer.training), *inputs[1:]) if rate else None


def describe_model(model: FineTuneModel, backbone: Backbone) -> str:
    """Which groups train and how many parameters each has, in one line."""
    sizes = [("head", count_parameters(model.head_parameters()))]
    for group in model.trained_groups:
        sizes.append((group.name, count_parameters(model.parameters_of(group))))
    parts = ", ".join(f"{name} {size:,}" for name, size in sizes)
    trained, total = sum(size for _, size in sizes), count_parameters(model.module.parameters())
    groups = f"{model.what_trains()}{len(model.trained_groups)} of {len(backbone.groups)} groups"
    left_out = f"; without adapter: {name_some(model.left_out)}" if model.left_out else ""
    return f"trains {groups}, {trained:,} of {total:,} parameters: {parts}{left_out}"


def name_some(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def count_parameters(parameters: Iterable[nn.Parameter]) -> int:
    """The total number of values."""
    return sum(parameter.numel() for parameter in parameters)
