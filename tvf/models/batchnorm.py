"""What frozen BatchNorm layers do: freezing parameters alone does not freeze a BatchNorm layer.

It also carries running statistics, which training mode updates and does not use. So frozen layers
are put back into eval mode, unless a model is to behave like a plain training loop.
"""

from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

FROZEN_BN = ("eval", "batch")  # of a model
FROZEN_BN_OPTIONS = (*FROZEN_BN, "recalibrate")  # of a job: eval, after `recalibrate_batchnorm`


def needs_batches(module: nn.Module) -> bool:
    """Whether a BatchNorm layer is in training mode, which takes batches of more than one image."""
    return any(isinstance(layer, _BatchNorm) and layer.training for layer in module.modules())


def frozen_batchnorm(module: nn.Module) -> dict[str, _BatchNorm]:
    """The frozen BatchNorm layers, by name.

    A layer is frozen if none of its parameters trains; one without parameters, if nothing in its
    parent does.
    """
    frozen = {}
    for name, layer in module.named_modules():
        if isinstance(layer, _BatchNorm):
            parent = module.get_submodule(name.rpartition(".")[0])
            parameters = list(layer.parameters()) or list(parent.parameters())
            if not any(parameter.requires_grad for parameter in parameters):
                frozen[name] = layer
    return frozen


def hold_frozen_batchnorm(module: nn.Module) -> None:
    """Put frozen BatchNorm layers into eval mode: they use their statistics and keep them."""
    for layer in frozen_batchnorm(module).values():
        layer.eval()


def recalibrate_batchnorm(
    module: nn.Module, layers: Iterable[_BatchNorm], run: Callable[[], None]
) -> None:
    """Set the statistics of `layers` to their mean over the batches that `run` feeds to `module`.

    `torch.optim.swa_utils.update_bn` does so for all layers of a network (Izmailov et al. 2018).
    Leaves `module` in eval mode.
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
