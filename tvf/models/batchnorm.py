"""Frozen layers with state, above all BatchNorm: the second half of freezing.

`requires_grad` stops parameters from moving; BatchNorm layers also have running statistics, which
`module.train()` would keep updating. So frozen layers are put back into eval mode, and so is every
other layer with state of its own: InstanceNorm with statistics, and whatever `note_updates` names.
"""

from collections.abc import Callable, Iterable, Sequence
from weakref import WeakSet

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from tvf.models.groups import is_below

FROZEN_BN = ("eval", "batch")  # of a model
FROZEN_BN_OPTIONS = (*FROZEN_BN, "recalibrate")  # of a job, which sets statistics before it trains


def needs_batches(module: nn.Module) -> bool:
    """Whether a BatchNorm layer is in training mode: a batch of one has no statistics."""
    return any(isinstance(layer, _BatchNorm) and layer.training for layer in module.modules())


def frozen_batchnorm(
    module: nn.Module, except_in: Sequence[str] | None = None
) -> dict[str, _BatchNorm]:
    """The frozen BatchNorm layers, by name; see `hold_frozen_batchnorm`."""
    return {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, _BatchNorm) and _is_frozen(module, name, layer, except_in)
    }


def hold_frozen_batchnorm(module: nn.Module, except_in: Sequence[str] | None = None) -> None:
    """Put frozen layers with state into eval mode: it is used and does not change.

    A layer is frozen when none of its parameters trains; one without parameters when nothing in its
    parent does, or nothing in the layer beside it that it follows. With `except_in`, every layer is
    frozen in this sense that is not below one of these paths, whatever trains in it.
    """
    for name, layer in module.named_modules():
        if has_state(layer) and _is_frozen(module, name, layer, except_in):
            layer.training = False  # not eval(), which would switch off dropout inside it as well


def has_state(layer: nn.Module) -> bool:
    """Whether training mode changes the layer's own state, or normalises by the batch."""
    if isinstance(layer, _InstanceNorm):
        return layer.track_running_stats
    return isinstance(layer, _BatchNorm) or layer in _updating


def note_updates(layers: Iterable[nn.Module]) -> None:
    """Remember that these layers change their own state in training mode, such as statistics."""
    _updating.update(layers)


_updating: WeakSet[nn.Module] = WeakSet()


def _is_frozen(
    module: nn.Module, name: str, layer: nn.Module, except_in: Sequence[str] | None
) -> bool:
    if except_in is not None and not is_below(f"{name}.", except_in):
        return True
    return not any(parameter.requires_grad for parameter in _decisive(module, name, layer))


def _decisive(module: nn.Module, name: str, layer: nn.Module) -> list[nn.Parameter]:
    """The parameters that a layer is frozen with: its own, or those around it."""
    own = list(layer.parameters())
    parent = module.get_submodule(name.rpartition(".")[0])
    around = list(parent.parameters())
    if own or not any(parameter.requires_grad for parameter in around):
        return own or around
    beside = list(parent.children())
    place = next(index for index, other in enumerate(beside) if other is layer)
    for other in (*reversed(beside[:place]), *beside[place:]):
        if parameters := list(other.parameters()):
            return parameters
    return around


def recalibrate_batchnorm(
    module: nn.Module, layers: Iterable[_BatchNorm], run: Callable[[], None]
) -> None:
    """Give `layers` the mean statistics of the batches that `run` pushes through `module`.

    Leaves `module` in eval mode. `torch.optim.swa_utils.update_bn` does the same for all layers of
    a network (Izmailov et al. 2018).
    """
    layers = [layer for layer in layers if layer.track_running_stats]
    momenta = [layer.momentum for layer in layers]
    module.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain mean over the batches
        layer.train()
    with torch.no_grad():
        run()
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
        layer.eval()
