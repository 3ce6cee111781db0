"""Low-rank adapters (LoRA, Hu et al. 2021): a layer stays frozen, two small ones beside it train.

A hook adds their output to the layer's, so that the network's parameters keep their names and
torch.fx runs them with the layer. The change of the layer's weight that they stand for can be
added to it, which gives back an ordinary layer.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

ATTRIBUTE = "adapter"  # of an adapted layer


class Adapter(nn.Module):
    """Adds alpha / rank * up(down(dropout(x))) to the output of `layer`; `up` starts at zero.

    `down` has the form of the layer with `rank` outputs, in a grouped convolution `rank` for each
    group, but no more than the layer's weight has singular values; `up` is linear or 1 × 1. Draws
    `down` from torch's random state.
    """

    def __init__(
        self, layer: nn.Linear | nn.Conv2d, rank: int, alpha: float, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.rank = rank = min(rank, full_rank(layer))
        self.scale, self.rate = alpha / rank, dropout
        if isinstance(layer, nn.Linear):
            self.down: nn.Linear | nn.Conv2d = nn.Linear(layer.in_features, rank, bias=False)
            self.up: nn.Linear | nn.Conv2d = nn.Linear(rank, layer.out_features, bias=False)
        else:
            self.down = _narrowed(layer, rank)
            wide = rank * layer.groups
            self.up = nn.Conv2d(wide, layer.out_channels, 1, groups=layer.groups, bias=False)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.up.weight)
        self.to(layer.weight.device, layer.weight.dtype)

    def forward(self, inputs: Tensor) -> Tensor:
        """What is added to the layer's output for these inputs."""
        dropped = nn.functional.dropout(inputs, self.rate, self.training)
        return self.scale * self.up(self.down(dropped))

    @property
    def is_zero(self) -> bool:
        """Whether it adds nothing, as before its first step."""
        return not bool(self.up.weight.any())

    @torch.no_grad()
    def change(self) -> Tensor:
        """The change of the layer's weight that adds the same, float64, shaped like the weight."""
        down, up = self.down.weight.double(), self.up.weight.double()
        if isinstance(self.down, nn.Linear):
            return self.scale * up @ down
        groups = self.down.groups
        rank = len(down) // groups
        product = up.reshape(groups, -1, rank) @ down.reshape(groups, rank, -1)
        return self.scale * product.reshape(len(up), *down.shape[1:])

    @torch.no_grad()
    def reset(self) -> None:
        """Add nothing from now on."""
        nn.init.zeros_(self.up.weight)


def is_adaptable(layer: nn.Module) -> bool:
    """Whether an adapter can be added to the output of `layer` and then to its weight.

    Only where the layer's class is known to apply its weight as it is: subclasses may standardise
    it, or exist for their weight alone, as the projection in nn.MultiheadAttention does.
    """
    kind = type(layer)
    same_padding = kind.__module__.startswith("timm.") and kind.__name__ == "Conv2dSame"
    return kind in (nn.Linear, nn.Conv2d) or same_padding


def full_rank(layer: nn.Linear | nn.Conv2d) -> int:
    """The highest rank that an adapter of `layer` can use, in each of its groups."""
    groups = 1 if isinstance(layer, nn.Linear) else layer.groups
    return min(len(layer.weight) // groups, layer.weight[0].numel())


def adapter_size(layer: nn.Linear | nn.Conv2d, rank: int) -> int:
    """The number of values in an adapter of this rank."""
    groups = 1 if isinstance(layer, nn.Linear) else layer.groups
    each = groups * layer.weight[0].numel() + len(layer.weight)
    return min(rank, full_rank(layer)) * each


def attach(layer: nn.Module, adapter: Adapter) -> None:
    """Let `layer` add the output of `adapter`, instead of that of an earlier one."""
    detach(layer)
    handle = layer.register_forward_hook(_add)
    # Past nn.Module, for which it would be a part of the layer, with parameters of its own.
    object.__setattr__(layer, ATTRIBUTE, (adapter, handle))


def detach(layer: nn.Module) -> None:
    """Make an adapted layer an ordinary one again; does nothing to others."""
    if ATTRIBUTE in layer.__dict__:
        _, handle = layer.__dict__.pop(ATTRIBUTE)
        handle.remove()


def adapter_parameters(module: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters of the adapters of all layers in `module`, which are not its own."""
    for layer in module.modules():
        if ATTRIBUTE in layer.__dict__:
            yield from layer.__dict__[ATTRIBUTE][0].parameters()


def network_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of `model` without those of adapters: the network's own."""
    adapters = (layer for layer in model.modules() if isinstance(layer, Adapter))
    theirs = {id(parameter) for adapter in adapters for parameter in adapter.parameters()}
    return [parameter for parameter in model.parameters() if id(parameter) not in theirs]


def _add(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    return output + layer.__dict__[ATTRIBUTE][0](inputs[0])


def _narrowed(layer: nn.Conv2d, rank: int) -> nn.Conv2d:
    """A convolution of the form and class of `layer`, with `rank` outputs for each group."""
    options: dict[str, Any] = {
        name: getattr(layer, name) for name in ("stride", "padding", "dilation", "groups")
    }
    if layer.padding_mode != "zeros":  # an option that timm's class does not have
        options["padding_mode"] = layer.padding_mode
    size: Any = layer.kernel_size
    return type(layer)(layer.in_channels, rank * layer.groups, size, bias=False, **options)
