"""Which part of a backbone trains: ordered groups, deepest first, and which of them are unfrozen.

Freezing has two halves. Parameters stop moving through `requires_grad`; BatchNorm layers also carry running
statistics, which `module.train()` would go on updating, so `hold_frozen_batchnorm` puts those layers back in eval mode.
"""

from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

FROZEN_BN = ("eval", "batch", "recalibrate")


def needs_batches(module: nn.Module) -> bool:
    """Whether a BatchNorm layer is in training mode: it has no statistics of a batch of one."""
    return any(isinstance(layer, _BatchNorm) and layer.training for layer in module.modules())


def frozen_batchnorm(module: nn.Module) -> dict[str, _BatchNorm]:
    """The BatchNorm layers that are frozen, by name.

    A layer is frozen when none of its parameters trains; one without parameters when nothing in its parent does.
    """
    frozen = {}
    for name, layer in module.named_modules():
        if isinstance(layer, _BatchNorm):
            own = list(layer.parameters()) or list(
                module.get_submodule(name.rpartition(".")[0]).parameters()
            )
            if not any(parameter.requires_grad for parameter in own):
                frozen[name] = layer
    return frozen


def hold_frozen_batchnorm(module: nn.Module) -> None:
    """Put the frozen BatchNorm layers into eval mode: statistics fixed, and used instead of the batch's."""
    for layer in frozen_batchnorm(module).values():
        layer.eval()


def recalibrate_batchnorm(
    module: nn.Module, layers: Iterable[_BatchNorm], run: Callable[[], None]
) -> None:
    """Give `layers` the mean statistics of the batches that `run` pushes through `module`; leave it in eval mode.

    As `torch.optim.swa_utils.update_bn` does for all layers of a network (Izmailov et al. 2018).
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
