"""Frozen BatchNorm layers, the second half of freezing.

`requires_grad` stops parameters from moving; BatchNorm layers also have running statistics, which
`module.train()` would keep updating. So frozen layers are put back into eval mode.
"""

from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

FROZEN_BN = ("eval", "batch")  # of a model
FROZEN_BN_OPTIONS = (*FROZEN_BN, "recalibrate")  # of a job, which sets statistics before it trains


def needs_batches(module: nn.Module) -> bool:
    """Whether a BatchNorm layer is in training mode: a batch of one has no statistics."""
    return any(isinstance(layer, _BatchNorm) and layer.training for layer in module.modules())


def frozen_batchnorm(module: nn.Module) -> dict[str, _BatchNorm]:
    """The frozen BatchNorm layers, by name.

    A layer is frozen when none of its parameters trains; one without parameters when nothing in its
    parent does.
    """
    frozen = {}
    for name, layer in module.named_modules():
        if isinstance(layer, _BatchNorm):
            parent = module.get_submodule(name.rpartition(".")[0])
            own = list(layer.parameters()) or list(parent.parameters())
            if not any(parameter.requires_grad for parameter in own):
                frozen[name] = layer
    return frozen


def hold_frozen_batchnorm(module: nn.Module) -> None:
    """Put frozen BatchNorm layers into eval mode: their statistics are used and do not change."""
    for layer in frozen_batchnorm(module).values():
        layer.eval()


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
