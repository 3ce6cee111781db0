"""Networks from torchvision: created by name, with what their weights were made for."""

import difflib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from tvf.errors import InputError, require_choice
from tvf.models.download import download, first_lines

log = logging.getLogger(__name__)

# Classifiers that train beside the main one; as the weights publish them, their outputs come apart.
AUXILIARY = ("aux1", "aux2", "AuxLogits")
SIZED = "vit_"  # how the names of networks begin that take images of one size
FEW = ("resnet50", "convnext_tiny", "efficientnet_b0", "swin_t", "vit_b_16")  # named in an error
CONVERTING = ("googlenet", "inception_v3")  # they take images normalised as for other networks


@dataclass(frozen=True)
class MadeFor:
    """The images that weights were trained on: pixels per side, interpolation, mean and std."""

    image_size: int
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


def torchvision_names() -> list[str]:
    """The classification networks of torchvision."""
    from torchvision import models

    return models.list_models(module=models)


def check_torchvision(name: str, weights: str | None) -> None:
    """Raise InputError unless torchvision has this network, and weights of this name."""
    from torchvision import models

    if name not in torchvision_names():
        near = difflib.get_close_matches(str(name), torchvision_names(), n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else f"it has {', '.join(FEW)} ..."
        raise InputError(f"backbone.name={name!r} is not a classifier of torchvision: {hint}")
    if weights is not None:
        published = tuple(models.get_model_weights(name).__members__)
        require_choice("backbone.weights", weights, published)


def create_torchvision(
    name: str, weights: str | None, options: Mapping[str, Any], pretrained: bool = True
) -> nn.Module:
    """The network, without auxiliary classifiers; InputError if it cannot be created.

    Without `pretrained`, the network that has such weights, with random ones.
    """
    from torchvision import models

    check_torchvision(name, weights)
    if weights is not None and not pretrained:
        if name.startswith(SIZED):
            options = {"image_size": made_for(name, weights).image_size, **options}
        weights = None
    if weights is None and name in CONVERTING:  # said, because torchvision will change its default
        options = {"init_weights": True, **options}
    try:
        module = download(name, lambda: models.get_model(name, weights=weights, **options))
    except (TypeError, ValueError, AttributeError, AssertionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"backbone.options={dict(options)}: torchvision cannot create {name}: "
            f"{first_lines(error)}. They must be options of this network."
        ) from error
    if hasattr(module, "aux_logits"):
        module.aux_logits = False
        for path in AUXILIARY:
            if hasattr(module, path):
                setattr(module, path, None)
        log.info("%s: its auxiliary classifiers, and their loss, are left out.", name)
    if hasattr(module, "transform_input"):  # the same as the mean and std of `made_for`
        module.transform_input = False
    return module


def made_for(name: str, weights: str | None) -> MadeFor:
    """The images that the weights of a torchvision network were made for.

    Without weights, those that its default weights were made for, or that the network takes.
    InputError for unknown names.
    """
    from torchvision import models

    check_torchvision(name, weights)
    images = models.get_model_weights(name)[weights or "DEFAULT"].transforms()
    size = 224 if weights is None and name.startswith(SIZED) else images.crop_size[0]
    mean, std = tuple(images.mean), tuple(images.std)
    if name in CONVERTING:
        mean = std = (0.5, 0.5, 0.5)
    return MadeFor(size, images.interpolation.value, mean, std)
